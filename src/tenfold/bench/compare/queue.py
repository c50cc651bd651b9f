"""Work shared by processes through a folder: each piece is done by one of them, and none is lost with its process."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Try to claim a piece of work for the block: yields whether it is ours; never waits.

    The claim is a lock of the operating system on ``folder/NAME.lock``, which is made and stays. The system lets go of
    it when its process ends, however that comes about: the work of a killed process is free at once.

    Args:
        folder: of the locks, on this machine or on a network share that knows ``flock``; is made.
        name: of the work, fit for a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def journal(path: Path, text: str) -> None:
    """Append a line with the time and the process to a log; lines of several processes do not mix."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} {os.getpid()} {text}\n"
    with path.open("a", encoding="utf-8") as file:  # one write at the end of the file: the system keeps it whole
        file.write(line)
