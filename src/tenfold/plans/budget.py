"""Budgets: what may be kept of a whole model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from tenfold.errors import check
from tenfold.layers.cost import Cost


@dataclass(frozen=True)
class Budget:
    """A limit on what is kept of the whole model: a fraction in (0, 1] (or text, "25%"), or a number, an int >= 2.

    Args:
        params: parameters, everything counted (biases, norms, layers left dense; tied ones once; no buffers).
        macs: multiply-adds of one forward pass for the example inputs.
        latency: a fraction of the dense model's time for the example inputs, measured on this machine; see
            `tenfold.plan` for the runtime.
        latency_ms: milliseconds of that time, > 0.

    A limit that is None does not count. Several limits hold at once, and none is ever exceeded.

    Raises:
        ArgumentError: no limit at all, or one out of range. The int 1 is refused: it might mean all of it.
    """

    params: float | int | str | None = None
    macs: float | int | str | None = None
    latency: float | str | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        """Read percentages; check that there is a limit and that each is in its range."""
        for one in fields(self):
            object.__setattr__(self, one.name, _LIMITS[one.name](one.name, getattr(self, one.name)))
        check(bool(self.limits), "Budget", "given at least one limit", self, "Write e.g. Budget(params=0.25).")

    @property
    def limits(self) -> dict[str, float | int]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of the costs that are limited: of "params", "macs" and "latency"."""
        return tuple(dict.fromkeys("latency" if name == "latency_ms" else name for name in self.limits))

    def exceeded(self, dense: Cost, small: Cost) -> str | None:
        """A sentence on the limits that ``small`` exceeds, with both numbers; None where it is within all of them.

        Args:
            dense: cost of the dense model.
            small: cost of the compressed one.
        """
        words = []
        for name in self.costs:
            kept, whole = getattr(small, name, None), getattr(dense, name, None)
            if kept is not None and whole is not None and kept > self.allowed(name, whole):
                words.append(f"{kept:,} {name} where {self.allowed(name, whole):,} of {whole:,} are allowed")
        return ", ".join(words) or None

    def allowed(self, name: str, dense: int) -> int:
        """One limit as a number, rounded down: budgets are one-sided.

        Args:
            name: "params", "macs" or "latency", in nanoseconds.
            dense: that cost of the dense model.
        """
        if name == "latency":
            both = (self.latency and self.latency * dense, self.latency_ms and self.latency_ms * 1e6)
            return int(min(value for value in both if value))
        value = self.limits[name]
        return value if isinstance(value, int) else int(value * dense)


def _limit(name: str, value: Any) -> float | int | None:
    """One limit as a fraction or a number."""
    if value is None:
        return None
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    value = float(percent[1]) / 100 if percent else value
    check(
        value is True or value != 1 or isinstance(value, float),
        name,
        "unambiguous",
        value,
        f"Write 1.0 or '100%' for all of it; one of the {name} alone is no budget.",
    )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(
        number and (value >= 2 if isinstance(value, int) else 0 < value <= 1),
        name,
        "a fraction in (0, 1] as a float or a percentage, or a number >= 2 as an int",
        value,
        "0.25 or '25%' keeps a quarter; 250_000 keeps so many.",
    )
    return value


def _fraction(name: str, value: Any) -> float | None:
    """A limit that can only be a fraction."""
    found = _limit(name, value)
    rule, remedy = "a fraction in (0, 1] as a float or a percentage", "Milliseconds are `latency_ms`."
    check(found is None or isinstance(found, float), name, rule, value, remedy)
    return None if found is None else float(found)


def _milliseconds(name: str, value: Any) -> float | None:
    """A limit in milliseconds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(value is None or (number and 0 < value < math.inf), name, "a number of milliseconds > 0", value)
    return None if value is None else float(value)


_LIMITS = {"params": _limit, "macs": _limit, "latency": _fraction, "latency_ms": _milliseconds}
