"""Accuracy against the share that is removed: one trained model, many compressions of it, each on a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from tenfold.errors import ArgumentError, TenfoldError, check, is_share
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.cost import cost
from tenfold.layers.select import Selection
from tenfold.methods.contract.builder import compress
from tenfold.methods.contract.method import Method
from tenfold.plans.apply import build
from tenfold.plans.budget import Budget
from tenfold.plans.problem import survey
from tenfold.plans.prune_filters import prune_filters
from tenfold.plans.uniform_plan import fraction_plan
from tenfold.train.score import score

Cut = Callable[[nn.Module, float], nn.Module]
"""``(model, share) -> model``: a copy without ``share`` of whatever it is that is removed."""


@dataclass(frozen=True)
class RankCut:
    """A cut that removes the same share of the full rank in every layer; layers that would not shrink stay dense.

    Args:
        fold: see `tenfold.linalg.fold`.
        target_modules: see `tenfold.plan`.
        exclude_modules: see `tenfold.plan`.

    Source: Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921), section 4; theirs factorises layers that grow by it, too.
    """

    fold: str = "channel"
    target_modules: Selection = None
    exclude_modules: Selection = None

    def __call__(self, model: nn.Module, share: float) -> nn.Module:
        """A copy of ``model``, by ranks ``max(1, round((1 - share) full))``."""
        problem = survey(model, target_modules=self.target_modules, exclude_modules=self.exclude_modules)
        return build(problem, fraction_plan(problem, "rank-cut", 1 - share, self.fold)).model


@dataclass(frozen=True)
class FilterCut:
    """A cut that removes the share of the filters of least norm; see `tenfold.prune_filters` for the arguments."""

    example_inputs: Any
    norm: float = 2
    together: bool = False
    target_modules: Selection = None
    exclude_modules: Selection = None

    def __call__(self, model: nn.Module, share: float) -> nn.Module:
        """A copy of ``model`` with fewer filters."""
        return prune_filters(
            model,
            remove=share,
            example_inputs=self.example_inputs,
            norm=self.norm,
            together=self.together,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
        ).model


@dataclass(frozen=True)
class SweepRow:
    """The result of one removed share in a sweep.

    Args:
        removed: the share that is removed, in [0, 1).
        params: parameters that are kept.
        macs: MACs that are kept; None without example inputs.
        right_after: accuracy right after, in [0, 1].
        reestimated: accuracy with batch norm re-estimated; None without data for it.
        failure: the error in place of these figures; None where there was none.
    """

    removed: float
    params: int | None = None
    macs: int | None = None
    right_after: float | None = None
    reestimated: float | None = None
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def sweep(
    model: nn.Module,
    method: Method | Cut,
    remove: Sequence[float],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    data: Iterable[Any] | None = None,
    example_inputs: Any = None,
) -> list[SweepRow]:
    """Measure accuracy over a range of removed shares, without retraining. The model is untouched.

    Args:
        model: trained.
        method: a `Method`, which is given ``Budget(params=1 - share)``; or `RankCut`, `FilterCut`, or any function
            ``(model, share) -> model``; ``share`` is what is removed.
        remove: shares to remove, each in [0, 1).
        loader: test batches ``(x, y)``, gone through for every share.
        data: training batches to re-estimate batch norm from, and to calibrate a method that needs them; see
            `tenfold.compress`; gone through for every share.
        example_inputs: for MACs only; see `tenfold.plan`.

    Returns:
        one row per share. What cannot be reached is a row with its failure.

    Raises:
        ArgumentError: a share out of range, or an iterator that can be gone through only once.
    """
    for share in remove:
        check(is_share(share) and share < 1, "remove", "numbers in [0, 1): shares to remove", share)
    for name, value in (("loader", loader), ("data", data)):
        if isinstance(value, Iterator):
            raise ArgumentError(f"`{name}` is gone through for every share; got a {type(value).__name__}. Pass a list.")

    def accuracy(small: nn.Module) -> float:
        return score(small, loader).accuracy

    return measured_rows(model, method, remove, accuracy, data=data, example_inputs=example_inputs)


def measured_rows(
    model: nn.Module,
    method: Method | Cut,
    remove: Sequence[float],
    accuracy: Callable[[nn.Module], float],
    *,
    data: Iterable[Any] | None,
    example_inputs: Any,
) -> list[SweepRow]:
    """The rows of a `sweep` by any ``accuracy`` of a model, in [0, 1]; arguments as in `sweep`, not checked."""
    rows = []
    for share in remove:
        try:
            small = _compressed(model, method, share, data)
        except TenfoldError as error:
            rows.append(SweepRow(share, failure=str(error)))
            continue
        costs, right_after = cost(small, example_inputs), accuracy(small)
        again = None
        if data is not None:
            reestimate_(small, data)
            again = accuracy(small)
        rows.append(SweepRow(share, costs.params, costs.macs, right_after, again))
    return rows


def _compressed(model: nn.Module, method: Method | Cut, share: float, data: Iterable[Any] | None) -> nn.Module:
    if not isinstance(method, Method):
        return method(model, share)
    return compress(model, method, Budget(params=1.0 - share), data=data, norms="keep").model
