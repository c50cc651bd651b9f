"""The trials of each case: at its file operations, and at random moments; afterwards all is as without them."""

import random
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.stress.cases import Case, fresh, left
from tools.stress.kills import trial


@dataclass
class Found:
    """What the trials of a case found.

    Args:
        case: its name.
        operations: file operations that it does where nobody kills it.
        counts: of trials: killed "at" an operation, at a "moment", and "again" while it went on afterwards.
        failures: what was promised and did not hold, by trial.
    """

    case: str
    operations: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        kills = {kind: self.counts[kind] for kind in ("at", "moment", "again")}
        return {"case": self.case, "operations": self.operations, "kills": kills, "failures": self.failures}


def cpu() -> float:
    """CPU seconds of all trials so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stress(case: Case, folder: Path, *, seconds: float, most: int, seed: int) -> Found:
    """Kill a case as often as ``seconds`` of CPU time allow, by turns at an operation and at a moment.

    Args:
        case: what is killed.
        folder: to work in.
        seconds: of CPU time.
        most: kills of either kind; of operations, each is met once, in a random order.
        seed: of order and moments.
    """
    found, draw = Found(case.name), random.Random(seed)  # noqa: S311 - no secret
    before, here = folder / "before", folder / "here"
    before.mkdir(parents=True)
    trial(case.before, before)
    whole = trial(case.work, fresh(here, before))
    found.operations, expected = whole.operations, left(here)
    end = cpu() + seconds
    for kind, how in _kills(whole.operations, whole.seconds, most, draw):
        if cpu() > end:
            break
        try:
            _one(case, fresh(here, before), how, kind == "moment", draw, found)
            changed = _differences(expected, left(here))
            if changed:
                raise AssertionError(f"afterwards these differ: {', '.join(changed[:5])}")
        except AssertionError as error:
            found.failures.append(f"killed {kind} {how}: {error}")
        found.counts[kind] += 1
    return found


def _kills(operations: int, seconds: float, most: int, draw: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Operations and moments by turns."""
    order = draw.sample(range(operations), operations)
    for number in range(most):
        if number < operations:
            yield "at", {"at": order[number]}
        yield "moment", {"after": draw.uniform(0, 1.1 * seconds)}


def _one(case: Case, here: Path, how: dict[str, Any], again: bool, draw: random.Random, found: Found) -> None:
    """Kill once; look; go on, perhaps killed again on the way."""
    ended = trial(case.work, here, **how)
    if "at" in how and not ended.killed:
        raise AssertionError("it was not killed: it does not do the same operations each time")
    trial(case.standing, here)
    if again and draw.random() < 0.5:
        found.counts["again"] += trial(case.after, here, after=draw.uniform(0, ended.seconds + 0.2)).killed
        trial(case.standing, here)
    trial(case.after, here)


def _differences(expected: dict[str, str], there: dict[str, str]) -> list[str]:
    missing = [f"{name} is missing" for name in expected.keys() - there.keys()]
    extra = [f"{name} is left" for name in there.keys() - expected.keys()]
    other = [f"{name} is another" for name in expected.keys() & there.keys() if expected[name] != there[name]]
    return sorted(missing + extra + other)


def alone(folder: Path) -> None:
    """Have locks and temporaries of this process, and of all trials, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
