"""Processes that die by SIGKILL before a chosen file operation, or at a chosen moment.

A trial runs in a fork of this process, which has loaded all that it needs: nothing but the work itself takes time. The
file operations of a trial are those of Python inside its folder: a file is opened for writing, renamed, removed, made,
or written to the disk (``fsync``). Libraries in other languages write between two of them; a moment meets these.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_SAID = 3000


@dataclass(frozen=True)
class Ended:
    """How a trial came to its end.

    Args:
        killed: whether it was killed; otherwise it returned.
        operations: that it did; 0 where it was killed.
        seconds: of the clock.
    """

    killed: bool
    operations: int
    seconds: float


def trial(work: Callable[[], None], folder: Path, *, at: int | None = None, after: float | None = None) -> Ended:
    """Do ``work`` in a process of its own whose folder is ``folder``, and kill it on the way.

    Args:
        work: what is done.
        folder: the working folder; operations outside it are not counted.
        at: the number of the operation, from 0, before which it is killed; None: none.
        after: seconds after which it is killed; None: never.

    Raises:
        AssertionError: the work failed, with what it said.
    """
    reader, writer = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, at, writer)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as said:
        text = said.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            raise AssertionError(f"the process died of signal {os.WTERMSIG(status)}")
        return Ended(True, 0, time.monotonic() - start)
    if not text.isdigit():
        raise AssertionError(text or f"the process ended with status {status}")
    return Ended(False, int(text), time.monotonic() - start)


def _child(work: Callable[[], None], folder: Path, at: int | None, writer: int) -> None:
    """The other process; it does not return."""
    said = "?"
    try:
        os.chdir(folder)
        done = _watch(folder, at)
        work()
        said = str(done[0])
    except BaseException:  # noqa: BLE001 - told to the process that waits for it
        said = traceback.format_exc()[-_SAID:]
    finally:
        os.write(writer, said.encode())
        os._exit(0)


def _watch(folder: Path, at: int | None) -> list[int]:
    """Count this process's file operations from now on, and kill it before number ``at``."""
    count, inside = [0], f"{folder}{os.sep}"

    def operation() -> None:
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1

    def here(path: object) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(inside)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITES and here(path):
                operation()
        elif event in _CHANGES and here(args[0]):
            operation()

    sync = os.fsync

    def counted(handle: int) -> None:
        operation()
        sync(handle)

    os.fsync = counted
    sys.addaudithook(hook)
    return count
