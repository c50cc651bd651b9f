"""Times that were measured, kept on disk for the next process: a table measured once serves every later budget.

One file for each set of conditions: processor, runtime with version, threads, memory format, protocol. It also holds
the time of the yardstick; where that has changed by more than a tenth, the machine is another one, or busy with other
work, and nothing that was kept is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.files import read_json, write_json

_FORMAT = "tenfold-times/1"
_DRIFT = 0.1
"""Relative change of the yardstick above which nothing kept is believed."""


def cache_folder() -> Path:
    """Where times are kept: ``$TENFOLD_CACHE``, else ``tenfold`` in the user's own cache folder."""
    named = os.environ.get("TENFOLD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenfold"


class TimeCache:
    """The times measured under some conditions, in memory and on disk.

    A folder that cannot be written, or a file that is no longer what was written, is as good as none.

    Args:
        conditions: all that times depend on; JSON.
        folder: see `cache_folder`; None: nothing is kept on disk.
    """

    def __init__(self, conditions: Mapping[str, Any], folder: Path | None) -> None:
        self.conditions = dict(conditions)
        named = hashlib.sha256(json.dumps(self.conditions, sort_keys=True).encode()).hexdigest()[:16]
        self.file = None if folder is None else folder / f"times-{named}.json"
        self.yardstick: float | None = None
        self.times: dict[str, dict[str, float]] = {}
        self._read()

    def agree(self, yardstick: float) -> float:
        """The yardstick's seconds that all times kept are in units of: the kept one, if what is measured now is near.

        Args:
            yardstick: seconds, measured now.
        """
        if self.yardstick is None or abs(yardstick / self.yardstick - 1) > _DRIFT:
            self.yardstick, self.times = yardstick, {}
        return self.yardstick

    def keep(self, key: str, times: Mapping[str, float]) -> None:
        """Keep the times of some options of ``key``, beside those that are there."""
        self.times.setdefault(key, {}).update(times)
        if self.file is None:
            return
        body = {"format": _FORMAT, "conditions": self.conditions, "yardstick": self.yardstick, "times": self.times}
        with contextlib.suppress(OSError, TenfoldError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, body)

    def _read(self) -> None:
        if self.file is None or not self.file.exists():
            return
        with contextlib.suppress(OSError, ValueError, TenfoldError):
            self._take(read_json(self.file))

    def _take(self, body: Any) -> None:
        """What was read, if it is what was written."""
        mine = isinstance(body, dict) and (body.get("format"), body.get("conditions")) == (_FORMAT, self.conditions)
        if not mine or not isinstance(body.get("yardstick"), float) or not isinstance(body.get("times"), dict):
            return
        times = {key: each for key, each in body["times"].items() if isinstance(each, dict)}
        if all(isinstance(t, (int, float)) for each in times.values() for t in each.values()):
            self.yardstick, self.times = body["yardstick"], times
