"""TRP: cut to the energy that matters every few steps, and pull the nuclear norm down.

Xu, Li, Zhang, Wen, Wang, Dai, Qi, Chen, Lin, Xiong, "TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
IJCAI 2020, arXiv 2004.14566.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tenfold.errors import check, is_count, is_share
from tenfold.layers.spec import LayerSpec
from tenfold.linalg.svd import energy_rank
from tenfold.methods.contract.method import Goal, epoch_steps
from tenfold.methods.contract.projection import Projection, Ranks, Sites, without
from tenfold.optim.projection.projector import ProjectionSettings
from tenfold.ranks.uniform import allocate, ranks_of


@dataclass(frozen=True, kw_only=True)
class TRP(Projection):
    """Trained rank pruning: weights are projected onto low rank every m steps, ``T = project(W)``.

    ::

        t mod m != 0 :  W' = W - lr grad f(W)
        t mod m == 0 :  T = project(W);   W' = T - lr (grad f(T) + lambda U_r V_r^T)

    ``project`` keeps the smallest rank with ``sum_{i<=r} s_i^2 >= energy sum s_i^2``, layer by layer and anew each
    time. The groups of a grouped convolution have one rank, by the energy of all; in the decoupled fold each filter has
    a rank of its own, and the layer the largest of them, so every filter keeps its share. It happens right after step
    ``t - 1``, so loss and gradient of step t are those at T in any loop. With a budget the energy rule's ranks are
    scaled by one factor, down or up, to fit it. In the end layers are factorised at the rank that the same rule gives:
    the factorisation is the last projection.

    On weights that stand still the energy rule goes on shedding: its fixed points obey ``r < 1 / (1 - energy)``. The
    final rank is a race of energy, ``every`` and the learning rate; ``floor``, ``freeze`` and budgets bound it.

    Args:
        energy: T in (0, 1], the share of the energy that is kept.
        every: m, optimizer steps from one projection to the next, >= 1, or "epoch".
        nuclear: lambda, >= 0: weight of the nuclear norm's sub-gradient in the step after a projection.
        fold: "channel", "spatial" or "decoupled" in the paper; see `tenfold.linalg.fold`.
        floor: the least rank of a layer, >= 1, with a budget too; one that cannot be kept then is refused. Full ranks
            below it stay, and a layer for which it saves nothing stays dense.
        freeze: epochs after which the ranks stay as they are while training, >= 0; None: never. Needs the length of an
            epoch. In the end the rule is asked once more.
        shed: project at ranks that save nothing, too, as published: what is shed there may bring them where they do;
            without a budget only: within one, such layers are left alone.
        threshold: in [0, 1): directions with ``s_i < threshold s_1`` are cut too; without a budget only.
        ranks: see `Projection`.
        start: see `Projection`, as the fields that follow.
        momentum: see `Projection`.
        solver: see `Projection`; warm steps are taken once the ranks are frozen or given, and not with ``nuclear``.
        nonfinite: see `Projection`.
        negligible: see `Projection`; 0: as published.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper (alternation, energy rule, nuclear-norm term). Deviations: the first projection is after m steps,
    not before the first; the threshold is relative and holds throughout (the authors' is absolute, 0.05, in the end);
    the smallest layers stay dense.
    Layers: every convolution larger than 1x1 but the first, as there, and only where the rank saves something.
    """

    energy: float = 0.98
    every: int | str = 20
    nuclear: float = 3e-4
    fold: str = "channel"
    floor: int = 1
    freeze: float | None = None
    shed: bool = True
    threshold: float = 1e-3

    name: ClassVar[str] = "trp"
    by_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(is_share(self.energy) and 0 < self.energy <= 1, "energy", "in (0, 1]", self.energy)
        check(is_share(self.nuclear), "nuclear", "a number >= 0", self.nuclear)
        check(is_count(self.floor), "floor", "an integer >= 1", self.floor)
        check(self.freeze is None or is_share(self.freeze), "freeze", "a number of epochs >= 0, or None", self.freeze)
        check(is_share(self.threshold) and self.threshold < 1, "threshold", "in [0, 1)", self.threshold)

    @property
    def settings(self) -> ProjectionSettings:
        """The settings of the projection, the nuclear-norm term of the next step among them."""
        return ProjectionSettings(pull=self.nuclear, momentum=self.momentum)

    @property
    def sheds(self) -> bool:
        """Whether weights are projected at ranks that save nothing, too: the field `shed`."""
        return self.shed

    @property
    def least(self) -> int:
        """The smallest rank that the rule gives a layer: the field `floor`."""
        return self.floor

    def leaves(self, spec: LayerSpec, first: bool) -> str | None:
        """The reason to leave a layer dense: the paper takes every convolution larger than 1x1 except the first."""
        if spec.linear:
            return without("a linear layer", self.name)
        if first:
            return without("the first convolution", self.name)
        return without("a 1x1 convolution", self.name) if math.prod(spec.kernel_size) == 1 else None

    def rule(self, sites: Sites) -> Ranks:
        """The ranks of the energy rule, scaled to the budget where there is one."""
        assert sites.spectra is not None
        threshold = self.threshold if sites.limits is None else 0.0
        ranks = [self._own(spectra, threshold) for spectra in sites.spectra]
        if sites.limits is not None:
            found = allocate(sites.tables, ranks, sites.full, sites.limits, least=self.floor)
            return None if found is None else (ranks_of(sites.tables, found[0]), found[1])
        return [min(n, max(self.floor, r)) for r, n in zip(ranks, sites.full, strict=True)], None

    def _own(self, spectra: Tensor, threshold: float) -> int:
        """The rank that energy and threshold leave one weight, of the singular values ``(matrices, p)``."""
        s = spectra if self.fold == "decoupled" else spectra.square().sum(0, keepdim=True).sqrt()
        above = (s >= threshold * s[:, :1]).sum(-1)
        return int(torch.minimum(energy_rank(s, self.energy), above).max())

    def frozen_after(self, goal: Goal) -> int | None:
        """The step at which the ranks freeze."""
        return None if self.freeze is None else round(self.freeze * epoch_steps(goal, "freeze"))
