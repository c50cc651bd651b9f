"""What tenfold raises: every error names the argument, the rule, the value received and the remedy."""

from __future__ import annotations


class TenfoldError(Exception):
    """Base of all errors that tenfold raises on purpose."""


class ArgumentError(TenfoldError, ValueError):
    """An argument outside its range."""


class BudgetError(TenfoldError):
    """A budget that cannot be reached; the message names the smallest reachable value.

    Args:
        message: the message.
        smallest: the smallest reachable value of each limited cost, e.g. ``{"params": 0.034}`` (as a fraction).
    """

    def __init__(self, message: str, smallest: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.smallest = dict(smallest or {})


class PlanError(TenfoldError):
    """A plan that is malformed, impossible, or made for another model."""


class CheckpointError(TenfoldError):
    """A saved model or run that is missing, truncated, or made for another model."""


class UnsupportedLayer(TenfoldError):  # noqa: N818 - the public name
    """A layer that cannot be decomposed, though it was asked for by name, or no layer that can."""


class DataError(TenfoldError):
    """A data set or batch that is missing, damaged, of the wrong shape, or not finite."""


class TenfoldWarning(UserWarning):
    """Base of the warnings that tenfold gives."""


def is_count(value: object, least: int = 1) -> bool:
    """Whether ``value`` is an int (no bool) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value: object) -> bool:
    """Whether ``value`` is a finite number >= 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def shortened(value: object, most: int = 80) -> str:
    """``repr(value)`` on one line, cut to ``most`` characters, for error messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def check(condition: bool, argument: str, rule: str, value: object, remedy: str = "") -> None:
    """Raise `ArgumentError` unless ``condition``: "`rank` must be >= 1; got 0. Pass ...".

    Args:
        condition: what must hold.
        argument: its name in the user's call.
        rule: what it must be, ">= 1".
        value: received.
        remedy: a sentence on what to do; empty for none.
    """
    if not condition:
        raise ArgumentError(
            f"`{argument}` must be {rule}; got {shortened(value, 200)}." + (f" {remedy}" if remedy else "")
        )
