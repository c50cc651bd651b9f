"""Budgets: what may be kept of a whole model."""

from __future__ import annotations

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

    A limit that is None does not count. Several limits hold at once, and none is ever exceeded.

    Raises:
        ArgumentError: no limit at all, or one out of range. The int 1 is refused: it might mean all of it.
    """

    params: float | int | str | None = None
    macs: float | int | str | None = None

    def __post_init__(self) -> None:
        """Read percentages; check that there is a limit and that each is in its range."""
        for one in fields(self):
            object.__setattr__(self, one.name, _limit(one.name, getattr(self, one.name)))
        check(bool(self.limits), "Budget", "given at least one limit", self, "Write e.g. Budget(params=0.25).")

    @property
    def limits(self) -> dict[str, float | int]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def exceeded(self, dense: Cost, small: Cost) -> str | None:
        """A sentence on the limits that ``small`` exceeds, with both numbers; None where it is within all of them.

        Args:
            dense: cost of the dense model.
            small: cost of the compressed one.
        """
        words = []
        for name in self.limits:
            kept, whole = getattr(small, name), getattr(dense, name)
            if kept is not None and whole is not None and kept > self.allowed(name, whole):
                words.append(f"{kept:,} {name} where {self.allowed(name, whole):,} of {whole:,} are allowed")
        return ", ".join(words) or None

    def allowed(self, name: str, dense: int) -> int:
        """One limit as a number, rounded down: budgets are one-sided.

        Args:
            name: "params" or "macs".
            dense: that cost of the dense model.
        """
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
