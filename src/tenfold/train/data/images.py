"""Images that stay on the disk and are decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.train.data.decode import decode, workers

AHEAD = 2
"""Batches that are decoded while one is in use: what bounds the memory, whatever the size of the set."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class Images:
    """Image files on the disk that index like a tensor ``(n, channels, size, size)``: uint8, or float32 if deep.

    Only the names are in memory. Each image is cut to a square about its centre, resized and converted; see `decode`.

    Args:
        root: the folder that the names are relative to.
        names: the files, with ``/`` between folder and file.
        channels: 3 (RGB) or 1 (grey).
        size: side of the images in pixels, >= 1.
        deep: whether they are grey and of more than 8 bits.
    """

    root: Path
    names: tuple[str, ...]
    channels: int
    size: int
    deep: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """The shape ``(n, channels, size, size)``, as of a tensor."""
        return torch.Size((len(self), self.channels, self.size, self.size))

    def take(self, indices: torch.Tensor) -> Images:
        """The images at ``indices`` ``(m,)``, still on the disk."""
        return replace(self, names=tuple(self.names[index] for index in indices.tolist()))

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at ``indices`` ``(m,)``: ``(m, channels, size, size)``, on the CPU.

        Raises:
            DataError: a file that is missing, damaged, or no image.
        """
        return next(self.stream([indices]))

    def stream(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Decode ``self[indices]`` for each of ``parts`` in order; worker threads decode the next ones meanwhile.

        Raises:
            DataError: a file that is missing, damaged, or no image; at the batch that it is in.
        """
        pool = ThreadPoolExecutor(workers(), thread_name_prefix="decode")
        waiting: deque[list[Future[np.ndarray]]] = deque()
        try:
            for indices in parts:
                waiting.append([pool.submit(self._decode, index) for index in indices.tolist()])
                if len(waiting) > AHEAD:
                    yield self._stack(waiting.popleft())
            while waiting:
                yield self._stack(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def digest(self, into: _Digest) -> None:
        """Add each file's name and the SHA-256 of its bytes to a hash; each file is read once, none is decoded."""
        into.update(f"{tuple(self.shape)} images".encode())
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(self), 1024):
                some = self.names[start : start + 1024]
                for name, digest in zip(some, pool.map(self._hash, some), strict=True):
                    into.update(f"\n{name} {digest}".encode("utf-8", "surrogateescape"))

    def _decode(self, index: int) -> np.ndarray:
        name = self.names[index]
        return decode(self._read(name), str(self.root / name), self.channels, self.size, deep=self.deep)

    def _stack(self, decoded: list[Future[np.ndarray]]) -> torch.Tensor:
        if not decoded:
            return torch.from_numpy(np.empty((0, *self.shape[1:]), np.float32 if self.deep else np.uint8))
        return torch.from_numpy(np.stack([image.result() for image in decoded]))

    def _hash(self, name: str) -> str:
        return hashlib.sha256(self._read(name)).hexdigest()

    def _read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.root / name} cannot be read: {error}. Put it back, or open the set anew."
            ) from error
