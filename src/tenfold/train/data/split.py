"""A data set: three splits, the statistics of the first, and a checksum of them all."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace

import torch

from tenfold.errors import DataError, check, is_count
from tenfold.train.data.images import Images

VALIDATION_SEED = 20240
"""Fixed for ever: what is validation in one run is never training in another."""
SAMPLE = 2000
"""Images on the disk that the mean and the deviation are measured on, spread evenly over the training set."""

Pair = tuple[torch.Tensor | Images, torch.Tensor]


@dataclass(frozen=True)
class Split:
    """The images and labels of one part of a data set, as they were stored; `batches` normalises them.

    Args:
        x: images ``(n, channels, height, width)``, uint8 or float32, in memory or on the disk.
        y: labels ``(n,)``, int64, from 0.
        mean: per channel, in the units of ``x``.
        std: per channel, in the units of ``x``, > 0.
    """

    x: torch.Tensor | Images
    y: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """A copy of the split with its tensors on ``device``; images on the disk stay there."""
        x = self.x if isinstance(self.x, Images) else self.x.to(device)
        return replace(self, x=x, y=self.y.to(device))

    def part(self, examples: int, name: str = "examples") -> Split:
        """A fixed random subset of the examples; a smaller one is part of a larger one.

        Args:
            examples: how many.
            name: the name of the number in the user's call, for errors.

        Raises:
            ArgumentError: less than one, or more than there are.
        """
        check(is_count(examples) and examples <= len(self), name, f"in [1, {len(self)}]", examples)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(VALIDATION_SEED))[:examples]
        x, y = _take((self.x, self.y), order)
        return replace(self, x=x, y=y)


@dataclass(frozen=True)
class Data:
    """A data set in three splits. Choose on ``validation``; ``test`` is for the figure at the very end.

    Args:
        name: as given to `load_data`.
        train: the training examples.
        validation: carved out of the published training set, the same examples every time.
        test: the published test set.
        classes: number of labels.
        channels: number of image channels.
        size: side of the images in pixels.
        checksum: SHA-256 over the bytes of all three splits; of images on the disk, over names and files.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    channels: int
    size: int
    checksum: str

    def part(self, train: int | None = None, validation: int | None = None) -> Data:
        """A copy of the data set with fewer examples to train and to validate on; the checksum is that of the whole.

        Args:
            train: how many, see `Split.part`; None: all.
            validation: likewise.
        """
        return replace(
            self,
            train=self.train if train is None else self.train.part(train),
            validation=self.validation if validation is None else self.validation.part(validation, "validation"),
        )


def stratified(y: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stratified split of the indices of ``y``: every class gives the same share, rounded.

    Args:
        y: labels ``(n,)``.
        fraction: share to hold out, in (0, 1).
        seed: the split is a function of ``y``, ``fraction`` and ``seed``.

    Returns:
        The indices kept and the indices held out, each ascending; together, all of them.

    Raises:
        ArgumentError: a fraction out of range.
    """
    check(0 < fraction < 1, "fraction", "in (0, 1)", fraction)
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = (y == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held[members[order[: round(len(members) * fraction)]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def make_data(name: str, train: Pair, test: Pair, held: Pair | None = None, *, validation: float = 0.1) -> Data:
    """Make a `Data` from published sets: holds out a validation set, and measures mean and deviation.

    Args:
        name: what the data set is called.
        train: images ``(n, channels, size, size)``, uint8 or float32, and labels ``(n,)`` from 0.
        test: the same.
        held: the validation set where one is published; None carves it out of ``train``.
        validation: share of ``train`` held out, in (0, 1); stratified, by a fixed seed. Unused with ``held``.

    Raises:
        DataError: images and labels that do not belong together, or are not square images; an empty set; labels that
            are not 0 ... classes - 1, each with an example to train on.
    """
    parts = {"train": train, "test": test} | ({} if held is None else {"validation": held})
    for part, (x, y) in parts.items():
        _check_part(name, part, x, y, train[0].shape)
    classes = _classes(name, train[1], [y for _, y in parts.values()])
    if held is None:
        kept, out = stratified(train[1], validation, VALIDATION_SEED)
        train, held = _take(train, kept), _take(train, out)
    mean, std = _statistics(train[0])

    def split(x: torch.Tensor | Images, y: torch.Tensor) -> Split:
        return Split(x if isinstance(x, Images) else x.contiguous(), y.long(), mean, std)

    splits = (split(*train), split(*held), split(*test))
    return Data(
        name,
        *splits,
        classes=classes,
        channels=train[0].shape[1],
        size=train[0].shape[2],
        checksum=_checksum(splits),
    )


def _check_part(name: str, part: str, x: torch.Tensor | Images, y: torch.Tensor, like: torch.Size) -> None:
    shape = tuple(x.shape)
    square = len(shape) == 4 and shape[2] == shape[3] and shape[1:] == like[1:]
    if not square or tuple(y.shape) != shape[:1]:
        raise DataError(
            f"The {part} set of {name!r} must be square images (n, channels, size, size) with one label each; "
            f"got images {shape} and labels {tuple(y.shape)}."
        )
    if len(y) == 0 or int(y.min()) < 0:
        found = "no example" if len(y) == 0 else f"the label {int(y.min())}"
        raise DataError(f"The {part} set of {name!r} must hold examples with labels from 0; got {found}.")


def _classes(name: str, train: torch.Tensor, labels: list[torch.Tensor]) -> int:
    """The number of classes: one more than the largest label, each with an example in ``train``."""
    classes = max(int(y.max()) for y in labels) + 1
    present = train.unique().tolist()
    if len(present) == classes:
        return classes
    held = set(present)
    missing = list(itertools.islice((label for label in range(classes) if label not in held), 5))
    some = ", ".join(map(str, missing)) + (" ..." if classes - len(present) > len(missing) else "")
    remedy = "Subtract 1 from all labels." if 0 not in held and len(present) == classes - 1 else "Number them anew."
    raise DataError(
        f"The labels of {name!r} must be 0 ... classes - 1, each with an example to train on; the largest is "
        f"{classes - 1}, {len(present)} occur in the train set, and {some} not. {remedy}"
    )


def _take(pair: Pair, indices: torch.Tensor) -> Pair:
    x, y = pair
    return (x.take(indices) if isinstance(x, Images) else x[indices]), y[indices]


def _statistics(x: torch.Tensor | Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(x, Images):
        x = x[torch.arange(len(x)) if len(x) <= SAMPLE else torch.linspace(0, len(x) - 1, SAMPLE).long()]
    mean, std = [], []
    for channel in x.unbind(1):
        values = channel.double()
        mean.append(float(values.mean()))
        std.append(float(values.std(correction=0)) or 1.0)
    return tuple(mean), tuple(std)


def _checksum(splits: tuple[Split, ...]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        if isinstance(split.x, Images):
            split.x.digest(digest)
        for tensor in (split.y,) if isinstance(split.x, Images) else (split.x, split.y):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.numpy().data)
    return digest.hexdigest()
