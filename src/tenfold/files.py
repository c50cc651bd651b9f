"""Files that are whole or absent: written under a temporary name beside their place, then renamed; and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from tenfold.errors import ArgumentError, shortened


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, renamed to ``path`` on success, removed on failure.

    Raises:
        OSError: a folder, a device or a pipe is there, in whose place no file is put.
    """
    path = regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Write a folder atomically: yields a temporary one, put in the place of ``path`` on success, removed on failure.

    A folder that stands at ``path`` already is replaced as a whole, after the new one is complete and on the disk. A
    process that is killed in between leaves what `finish_exchange` finishes: it finds one of both at any moment.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_TEMPORARY, dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for part in temporary.rglob("*"):
            _sync(part)
        _sync(temporary)
        with _locked(path):
            _exchange(path)
            temporary.replace(beside(path, "next"))  # from here on the new one counts
            _sync(path.parent)
            _exchange(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn what libraries written in other languages raise on a full disk into an `OSError`.

    Raises:
        OSError: no space left.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if any(sign in str(error) for sign in _FULL):
            raise OSError(errno.ENOSPC, "no space left: make room, and run it again", str(path)) from error
        raise


_FULL = ("No space left", "os error 28", "PytorchStreamWriter failed writing")


def finish_exchange(path: Path | str) -> None:
    """Complete the replacement of the folder ``path`` where a process was killed in the middle; readers call it first.

    Raises:
        OSError: the folder cannot be put where it belongs, for want of a permission, say.
    """
    path = Path(path)
    if beside(path, "next").exists() or beside(path, "old").exists():
        with _locked(path):
            _exchange(path)


def _exchange(path: Path) -> None:
    """Three renames, each of which a kill may follow: ``next`` counts once it is there, ``old`` until it is not."""
    new, old = beside(path, "next"), beside(path, "old")
    if new.exists():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # of an exchange before this one
            path.replace(old)
        new.replace(path)
        _sync(path.parent)
    elif old.exists() and not path.exists():
        old.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def beside(path: Path, what: str) -> Path:
    """The hidden neighbour of a folder that says of it ``what``."""
    path = Path(os.path.abspath(path))  # "." has no name
    return path.parent / f".{path.name}.{what}"


_LEFT = "__macosx @eadir #recycle #snapshot $recycle.bin lost+found __pycache__ thumbs.db ehthumbs.db desktop.ini"
_HIDDEN = ".ds_store .directory .localized .trashes .fseventsd .spotlight-v100"
_LITTER = frozenset([*_LEFT.split(), *_HIDDEN.split(), "system volume information", "icon\r"])


def is_litter(name: str) -> bool:
    """Whether a name in a folder is of what systems and tools leave behind unasked: ``.DS_Store``, ``Thumbs.db``."""
    return name.startswith("._") or name.lower() in _LITTER


@contextlib.contextmanager
def only_writer(path: Path | str) -> Iterator[None]:
    """Hold the lock on the folder ``path`` for the block: one process of this machine works on it at a time.

    The system releases it when the process ends.

    Raises:
        ArgumentError: another process does.
    """
    lock = _locked(Path(path), "writer")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ArgumentError(
            f"`out` must be a folder that no other process writes; '{path}' is being written by one. Wait for it, or "
            f"choose another."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _locked(path: Path, purpose: str = "exchange") -> FileLock:
    """A lock on the folder ``path`` among processes of this machine, kept where it is in nobody's way."""
    name = hashlib.blake2b(f"{purpose}:{path.resolve()}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"tenfold-locks-{os.getuid() if os.name == 'posix' else 'all'}"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


_TEMPORARY = ".tmp"


def _prefix(path: Path) -> str:
    return f".{path.name}.{platform.node()}-{os.getpid()}-"


def _sweep(path: Path) -> None:
    """Remove temporaries for ``path`` whose process, of this machine, is no more."""
    start = f".{path.name}.{platform.node()}-"
    for left in path.parent.iterdir():
        if left.name.startswith(start) and left.name.endswith(_TEMPORARY):
            pid = left.name.removeprefix(start).partition("-")[0]
            if pid.isdigit() and not _lives(int(pid)):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():
        return  # only POSIX opens folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


_DEEPEST = 64
_LARGEST = 2**64
"""Beyond it a number is no count of anything here."""


def read_json(path: Path | str) -> Any:
    """Read a JSON file strictly; see `parse_json`.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: see `parse_json`.
    """
    return parse_json(read_text(path))


def read_text(path: Path | str) -> str:
    """Read a UTF-8 text file.

    Raises:
        OSError: no regular file (pipes and devices may have no end), or one that cannot be read.
        ValueError: other bytes than UTF-8.
    """
    return regular(path).read_text(encoding="utf-8")


def regular(path: Path | str) -> Path:
    """``path``, which is none of what can be read for ever: a pipe, a device; that there is such a file is not asked.

    Raises:
        OSError: something else is there.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is no regular file")
    return path


def parse_json(text: str) -> Any:
    """Parse JSON text strictly; a byte-order mark is skipped.

    Raises:
        ValueError: no JSON, a key given twice, a number that is not finite or beyond 64 bits, nesting deeper than 64,
            or a string that is no text (half of a surrogate pair).
    """
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_plain(value)
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)[1:-1]} is not a finite number")
    return number


def _bounded(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= _LARGEST:
        raise ValueError(f"the number {shortened(text)[1:-1]} has more than 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shortened(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return made


def _require_plain(value: Any) -> None:
    """Refuse what would break whoever prints or copies the value: deep nesting, and strings that cannot be encoded."""
    level = [value]
    for _ in range(_DEEPEST):
        strings = [part for part in level if isinstance(part, str)]
        strings += [key for part in level if isinstance(part, dict) for key in part]
        for text in strings:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the string {shortened(text)} is no text: it has half of a surrogate pair") from None
        inside = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [item for part in inside for item in part]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEEPEST}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
