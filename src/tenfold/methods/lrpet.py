"""LRPET: fixed low rank from the first step, projected in the batch norm's metric, no energy lost.

Guo, Xie, Xu, Xing, "Compact Model Training by Low-Rank Projection with Energy Transfer", TNNLS 2024, arXiv 2204.05566.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from tenfold.errors import check, is_share
from tenfold.layers.batchnorm import norm_after
from tenfold.layers.spec import LayerSpec
from tenfold.methods.contract.projection import Projection, Ranks, Sites, without
from tenfold.optim.projection.projector import ProjectionSettings
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.uniform import allocate, ranks_of


@dataclass(frozen=True, kw_only=True)
class LRPET(Projection):
    """Training with periodic low-rank projection and energy transfer, in the metric of the batch norm.

    ::

        W <- c M V_r V_r^T,    A = diag(a) M,    c = ||A||_F / ||A V_r V_r^T||_F

    with ``V_r`` the top right singular vectors of A and ``a_i = gamma_i / sqrt(running_var_i + eps)`` of the batch norm
    that follows (rectification). The rank is ``r = floor(n (1 - prune_ratio))``, n the full rank of each layer; with a
    budget the ratio is the smallest that fits it, which is the plan's level. A layer that its rank would not make
    smaller is neither projected nor factorised.

    In training mode ``c`` cancels in the batch norm that follows; it acts through the effective learning rate and
    leaves running statistics stale: give `finish` data to estimate them again.

    Args:
        prune_ratio: p in [0, 1): the share of the full rank that is removed; without a budget only.
        every: optimizer steps from one projection to the next, >= 1, or "epoch".
        rectify: project in the metric of the batch norm that follows, where one does; a weight of several layers has
            one where it is the same for all.
        transfer: scale what is kept by c.
        tail: ``rho`` in [0, 1), the factor that scales the rest while training; see `tenfold.linalg.projection`.
        linear: whether linear layers are projected too; the paper's are not.
        norms: pairs of layer and batch norm, over those that are found; see `tenfold.norm_after`.
        fold: see `Projection`, as the fields that follow; the paper's is "channel".
        ranks: see `Projection`.
        start: see `Projection`.
        momentum: see `Projection`.
        solver: see `Projection`.
        nonfinite: see `Projection`.
        negligible: see `Projection`; 0: as published, where deep cuts leave a first convolution of few inputs rank 1.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper (low-rank projection, energy transfer, batch-norm rectification). Deviations: no division by a
    (the authors' damped one shrinks channels of small gamma at each projection, even at full rank); statistics are
    re-estimated and the projected model is what is evaluated, where theirs evaluate between projections; with a budget
    p is found, where theirs is given; the smallest layers stay dense.
    """

    prune_ratio: float = 0.5
    every: int | str = "epoch"
    rectify: bool = True
    transfer: bool = True
    tail: float = 0.0
    linear: bool = False
    norms: Mapping[str, str] | None = None

    name: ClassVar[str] = "lrpet"
    by_spectra: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(is_share(self.prune_ratio) and self.prune_ratio < 1, "prune_ratio", "in [0, 1)", self.prune_ratio)
        check(is_share(self.tail) and self.tail < 1, "tail", "in [0, 1)", self.tail)

    @property
    def settings(self) -> ProjectionSettings:
        """The settings of the projection, energy transfer among them."""
        return ProjectionSettings(transfer=self.transfer, tail=self.tail, momentum=self.momentum)

    def leaves(self, spec: LayerSpec, first: bool) -> str | None:
        """The reason to leave a layer dense: the paper takes every convolution, the first and 1x1 ones too."""
        return without("a linear layer", self.name) if spec.linear and not self.linear else None

    def rule(self, sites: Sites) -> Ranks:
        """The ranks ``floor(n (1 - p))``, at least 1; p given, or the smallest that the budget allows."""
        if sites.limits is None:
            keep = 1 - self.prune_ratio
            return [max(1, math.floor(n * keep + 1e-9)) for n in sites.full], self.prune_ratio
        found = allocate(sites.tables, sites.full, sites.full, sites.limits, half=0.0)
        return None if found is None else (ranks_of(sites.tables, found[0]), 1 - found[1])

    def metrics(self, model: nn.Module) -> Mapping[str, str]:
        """The batch norm that follows each layer."""
        return norm_after(model, self.norms) if self.rectify else {}

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks of the rule; layers are cut in their batch norm's metric and scaled by the transfer."""
        made, norms = super().choose(problem, budget), self.metrics(problem.model)
        layers = dict(made.layers)
        for site in problem.sites:
            behind = {norms.get(name) for name in site.names}
            norm = behind.pop() if len(behind) == 1 else None  # one metric for all uses, or none
            for name in site.names:
                if layers[name].decomposition != "dense":
                    layers[name] = replace(layers[name], norm=norm, transfer=self.transfer)
        return replace(made, layers=layers)
