"""Work shared by processes through a folder: each piece is done by one of them, and none is lost with its process.

A claim is a file ``NAME.GENERATION``, created exclusively. Its owner touches it every few seconds. A claim is dead when
its process is, as far as that can be seen (same machine), or else when it has not been touched for long. Over a dead
claim the next generation is created, exclusively again; whoever finds another live claim after creating one withdraws.
So there is never more than one owner, and no file is ever renamed or removed while someone else may hold it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class Claims:
    """The claims in a folder.

    Args:
        folder: is made.
        stale: seconds without a touch after which the claim of a process on another machine is dead, > 0. Far more
            than ``beat``.
        beat: seconds between touches, > 0.
    """

    def __init__(self, folder: Path, *, stale: float = 60.0, beat: float = 5.0) -> None:
        self._folder, self._stale, self._beat = folder, stale, beat
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether ``name`` is ours for the length of the block. What is left, by whatever way, is free again."""
        taken = self._take(name)
        if taken is None:
            yield False
            return
        mine, dead = taken
        stop = threading.Event()
        heart = threading.Thread(target=self._touch, args=(mine, stop), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            stop.set()
            heart.join()
            for path in (*dead, mine):  # our own last: it guards the rest
                path.unlink(missing_ok=True)

    def _take(self, name: str) -> tuple[Path, list[Path]] | None:
        """Our claim, and the dead ones before it."""
        there = self._generations(name)
        if any(map(self._alive, there)):
            return None
        generation = int(there[-1].suffix[1:]) + 1 if there else 1
        mine = self._folder / f"{name}.{generation}"
        try:
            handle = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}, file)
        if any(self._alive(path) for path in self._generations(name) if path != mine):
            mine.unlink(missing_ok=True)
            return None
        return mine, there

    def _generations(self, name: str) -> list[Path]:
        found = [p for p in self._folder.glob(f"{name}.*") if p.stem == name and p.suffix[1:].isdigit()]
        return sorted(found, key=lambda path: int(path.suffix[1:]))

    def _alive(self, path: Path) -> bool:
        touched = 0.0
        try:
            touched = path.stat().st_mtime
            who = json.loads(path.read_text(encoding="utf-8"))
            if os.name == "posix" and who["machine"] == machine():
                return started(who["pid"]) == who["started"] and _runs(who["pid"])
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):  # created, not yet written: the touches decide
            pass
        return self._now() - touched < self._stale

    def _now(self) -> float:
        """The time by the clock of whoever stamps the files: on a network share not that of this machine."""
        probe = self._folder / f"clock-{machine().split()[0]}-{os.getpid()}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _touch(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self._beat):
            with contextlib.suppress(OSError):
                os.utime(path)


def machine() -> str:
    """This machine since it was started, and the set of processes that can be seen from here: containers have own."""
    parts = [platform.node() or "unknown"]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process was started, where that can be seen: their numbers are used again. None for one that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *others = stat.rpartition(")")[2].split()
    return None if state in "ZX" else others[18]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def journal(path: Path, text: str) -> None:
    """Add a line with the time and the process; lines of several processes do not mix."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} {os.getpid()} {text}\n"
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
