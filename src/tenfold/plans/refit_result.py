"""A built model refitted to the dense one's outputs, and the figures of it in the report.

Whoever compresses, `tenfold.compress`, the end of a training, the command line or a comparison, refits by this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from tenfold.errors import ArgumentError, check
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.calibration_runs import kept_batches
from tenfold.layers.norm_choice import Norms
from tenfold.layers.output_loss import mean_output_loss
from tenfold.layers.refit import refit_
from tenfold.plans.apply import Result

Refit = Literal["last", "both"]
"""Which factors of each layer are refitted; see `tenfold.refit_`."""
SAMPLES = 1024
"""Examples that a refit looks at, at most: each is run once for every layer of a small network."""
COMPARED = 256
"""Of these, those on which outputs are compared."""


def check_refit(refit: Any, data: Any) -> None:
    """Raise `ArgumentError` for what is no kind of refit, or one without data."""
    check(refit is None or refit in get_args(Refit), "refit", "'last', 'both' or None", refit)
    if refit is not None and data is None:
        raise ArgumentError(f"`data` must be given for refit={refit!r}: batches x or (x, y); no labels are needed.")


def norms_after(norms: Norms, *, fitted: bool) -> Norms:
    """The treatment of batch-norm statistics: where factors were fitted for the dense network's, they stay by default.

    Args:
        norms: what was asked for.
        fitted: whether factors were fitted to the dense layers' outputs.
    """
    return "keep" if fitted and norms == "auto" else norms


def refitted(
    result: Result,
    dense: nn.Module,
    data: Iterable[Any],
    factors: Refit,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """``result`` with its model refitted in place; where nothing was compressed, as it is.

    The report gets the seconds that the fit took, and the error of the network's outputs before and after, on up to 256
    of the examples; for what it is see `tenfold.layers.output_loss`.

    Args:
        result: of `tenfold.plans.apply.build`.
        dense: the model that it was built from.
        data: calibration batches; 1,024 examples are used at most, and kept in memory.
        factors: which; see `tenfold.refit_`.
        progress: see `tenfold.refit_`.

    Raises:
        DataError: see `tenfold.refit_`; outputs that cannot be compared.
    """
    if not result.plan.compresses:
        return result
    batches = kept_batches(dense, data, SAMPLES)

    def error() -> float:
        part = kept_batches(dense, batches, COMPARED)
        return mean_output_loss(result.model, dense, calibration_batches(dense, part))

    before, clock = error(), time.perf_counter()
    refit_(result.model, dense, batches, factors=factors, progress=progress)
    seconds = result.report.seconds | {"refit": time.perf_counter() - clock}
    errors = result.report.output_error | {"built": before, "refitted": error()}
    return replace(result, report=replace(result.report, seconds=seconds, output_error=errors))
