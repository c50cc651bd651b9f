"""Project many weights of a model in place: layers of one shape together, one look at the results, shared by processes.

The mathematics is `tenfold.linalg.project`'s. What is here is bookkeeping: which matrices of which layers go into one
batch; spectra of all of them copied to the host at once, so that a rank rule may look at the whole model; a weight that
is not finite, or that is of the rank already, left as it is.

Where several processes train copies of the model, each weight is projected by *one* of them and sent to the others:
directions that are nearly tied would come out differently on each. The layers are shared out longest first. That holds
for projections in the step of an optimizer, which all processes take; any other may happen on one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from tenfold.layers.folded_weight import FoldedWeight
from tenfold.layers.spec import to_kernel
from tenfold.linalg.projection import Basis, Spectrum, Weighted, full_precision, transfer_scale
from tenfold.optim.distributed import owners, process

Ranks = Callable[[list[Tensor]], list[int]]
"""Singular values of every weight, ``(matrices, p)``, descending -> a rank for each weight; 0 leaves it alone."""

TIDY = 1e-12
"""A weight of which the projection would take a smaller share of the energy is of the rank: it is left bit for bit."""
DRIFT = 1e-5
"""Residual of a warm step above which the exact answer is taken."""
RENEW = 50
"""Projections after which it is taken anyway."""


@dataclass
class ProjectionResult:
    """The result of one projection of all weights.

    Args:
        ranks: of the weights that were projected.
        broken: names of the weights that are not finite: left alone.
        pull: ``lambda U_r V_r^T`` in the layout of the weight, by name; where it was asked for.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    pull: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectionSettings:
    """The settings of a projection.

    Args:
        transfer: see `tenfold.linalg.projection`.
        tail: see `tenfold.linalg.projection`.
        pull: lambda, the weight of ``U_r V_r^T``; 0: it is not wanted.
        momentum: what becomes of an optimizer's first moments: "keep", "project" (by ``V_r V_r^T``) or "reset" (to
            zero: fused optimizers want all of them or none).
    """

    transfer: bool = False
    tail: float = 0.0
    pull: float = 0.0
    momentum: Literal["keep", "project", "reset"] = "keep"


@torch.no_grad()
def project_(
    weights: Sequence[FoldedWeight],
    ranks: Ranks | Sequence[int],
    settings: ProjectionSettings,
    optimizer: Optimizer | None = None,
    bases: dict[str, Tensor] | None = None,
) -> ProjectionResult:
    """Project every weight onto low rank, in place.

    Args:
        weights: what is projected.
        ranks: one per weight, or a rule that finds them from all spectra.
        settings: how.
        optimizer: in whose step this happens: its buffers are treated as the settings say, and the work is shared with
            the other processes. None: this process does all of it.
        bases: by name, from the last projection; with known ranks one warm step starts there. None: all is exact.
    """
    if not weights:
        return ProjectionResult()
    with full_precision(weights[0].weight):
        return _project_(weights, ranks, settings, optimizer, bases)


def _project_(
    weights: Sequence[FoldedWeight],
    ranks: Ranks | Sequence[int],
    settings: ProjectionSettings,
    optimizer: Optimizer | None,
    bases: dict[str, Tensor] | None,
) -> ProjectionResult:
    mine_is, processes = (0, 1) if optimizer is None else process()
    whose = owners([folded.work for folded in weights], processes)
    mine = [i for i, owner in enumerate(whose) if owner == mine_is]
    known = None if callable(ranks) else list(ranks)
    batches = [_Batch.of([weights[i] for i in part], part) for part in _alike(weights, mine, known)]
    for batch in batches:
        batch.decompose(None if known is None or settings.pull else bases)
    finite, residuals, spectra = _look(weights, batches, whole=known is None, shared=processes > 1)
    chosen = known if known is not None else ranks(spectra)  # pyright: ignore[reportCallIssue] - narrowed by known
    outcome = ProjectionResult()
    for batch in batches:
        if any(residuals[i] > DRIFT for i in batch.indices):
            batch.decompose(None)
        batch.write(chosen, settings, optimizer, bases, outcome)
    if processes > 1:
        held = {} if bases is None else _whole_bases(weights, chosen, bases)
        _share(weights, whose, settings, optimizer, outcome, held)
    for folded, rank, ok in zip(weights, chosen, finite, strict=True):
        if not ok:
            outcome.broken.append(folded.name)
        elif 0 < rank <= folded.most:
            outcome.ranks[folded.name] = rank
            for buffer in _buffers(folded, optimizer if settings.momentum == "reset" else None):
                buffer.zero_()
    return outcome


@dataclass
class _Batch:
    """Weights whose matrices have one shape, as one batch."""

    weights: list[FoldedWeight]
    indices: list[int]
    matrices: Tensor
    metric: Tensor | None
    finite: Tensor = field(init=False)
    weighted: Weighted = field(init=False)
    spectrum: Spectrum | None = None
    basis: Basis | None = None
    residual: Tensor | None = None

    @classmethod
    def of(cls, weights: list[FoldedWeight], indices: list[int]) -> _Batch:
        each = [folded.matrices for folded in weights]
        matrices = torch.cat(each) if len(each) > 1 else each[0]
        matrices = matrices.float() if matrices.element_size() < 4 else matrices
        metrics = [folded.metric for folded in weights]
        metric = None
        if any(one is not None for one in metrics):
            ones = [
                torch.ones(s.fold.batch, s.fold.rows).to(matrices) if m is None else m.to(matrices)
                for s, m in zip(weights, metrics, strict=True)
            ]
            metric = torch.cat(ones)
        return cls(weights, indices, matrices, metric)

    def decompose(self, bases: dict[str, Tensor] | None) -> None:
        """Decompose the matrices: by a warm step where every weight has a basis, else exactly."""
        old = [] if bases is None else [bases.get(folded.name) for folded in self.weights]
        warm = bool(old) and all(one is not None for one in old)
        weighted = Weighted.of(self.matrices, self.metric, coarse=warm)
        # The Gram matrices tell, without another pass over the weights, and zeros in their place harm no eigenproblem.
        self.finite = torch.isfinite(weighted.energy)
        clean = self.finite[:, None, None]
        inner = None if weighted.inner is None else torch.where(clean, weighted.inner, 0)
        self.weighted = replace(weighted, inner=inner, gram=torch.where(clean, weighted.gram, 0))
        if warm:
            self.basis, self.residual = self.weighted.refined(torch.cat([one for one in old if one is not None]))
        else:
            self.spectrum, self.basis, self.residual = self.weighted.spectrum(), None, None

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor over all matrices into the parts of each weight."""
        return x.split([folded.fold.batch for folded in self.weights])

    def report(self, whole: bool) -> list[Tensor]:
        """Per weight: whether it is finite, the residual, and with ``whole`` all singular values, one after another."""
        residual = torch.zeros_like(self.finite, dtype=torch.float64) if self.residual is None else self.residual
        spectra = [None] * len(self.weights)
        if whole and self.spectrum is not None:
            spectra = [s.flatten() for s in self.parts(self.spectrum.values)]
        return [
            torch.stack([ok.all().double(), r.max().double()])
            if s is None
            else torch.cat([ok.all().double()[None], r.max()[None], s])
            for ok, r, s in zip(self.parts(self.finite), self.parts(residual), spectra, strict=True)
        ]

    def write(
        self,
        ranks: Sequence[int],
        settings: ProjectionSettings,
        optimizer: Optimizer | None,
        bases: dict[str, Tensor] | None,
        outcome: ProjectionResult,
    ) -> None:
        """Project the weights, and what else the settings ask for."""
        device = self.matrices.device
        each = torch.tensor([ranks[i] for i in self.indices for _ in range(self.weights[0].fold.batch)])
        basis = self.basis
        if basis is None:
            assert self.spectrum is not None
            same = int(each.max()) == int(each.min())
            basis = self.spectrum.leading(int(each[0]) if same else each.to(device))
        left, right = self.weighted.factors(basis)
        tail = settings.tail
        scale = transfer_scale(self.weighted.energy, basis.energy, tail) if settings.transfer else 1.0
        new = ((scale - tail) * torch.ones_like(basis.energy)).to(left)[:, None, None] * left @ right
        new = new.add_(self.matrices, alpha=tail) if tail else new
        # Not by the Gram matrix: rows that count for little in the metric may still have to change.
        lost = torch.linalg.vector_norm(self.matrices - new, dim=(-2, -1)).square()
        size = torch.linalg.vector_norm(self.matrices, dim=(-2, -1)).square()
        changed = lost > TIDY * size  # not a number: not changed
        polar = None
        if settings.pull and self.spectrum is not None:
            polar = settings.pull * self.weighted.polar(self.spectrum, each.to(device))
        start = 0
        for folded, i in zip(self.weights, self.indices, strict=True):
            part = slice(start, start := start + folded.fold.batch)
            if not 0 < ranks[i] <= folded.most:
                continue
            made = new[part].to(folded.weight)
            good = self.finite[part].all() & torch.isfinite(lost[part]).all()
            if made.element_size() < 4:
                good &= torch.isfinite(made).all()  # what fits into float32 may not fit
            # Before the weight changes: the matrices may be a view of it.
            for buffer in _buffers(folded, optimizer if settings.momentum == "project" else None):
                old = folded.fold.matrices(to_kernel(folded.spec, buffer)).to(self.matrices)
                inside = self.weighted[part].within(old, basis[part])
                buffer.copy_(folded.as_weight(torch.where(good, inside, old)))
            folded.put_(torch.where(good & changed[part, None, None], made, folded.matrices))
            if polar is not None:
                outcome.pull[folded.name] = folded.as_weight(torch.where(good, polar[part], 0)).to(folded.weight)
            if bases is not None:
                bases[folded.name] = basis.vectors[part].clone()


def _look(
    weights: Sequence[FoldedWeight], batches: list[_Batch], *, whole: bool, shared: bool
) -> tuple[list[bool], list[float], list[Tensor]]:
    """The one look of the host at the device: finite or not, residuals, spectra; of all processes' weights."""
    sizes = [2 + (s.fold.batch * s.fold.full_rank if whole else 0) for s in weights]
    rows = [torch.zeros(n, dtype=torch.float64) for n in sizes]
    found = {i: row for batch in batches for i, row in zip(batch.indices, batch.report(whole), strict=True)}
    if found:
        device = weights[0].weight.device
        flat = torch.cat([row.to(device) for row in found.values()]).cpu()
        for i, row in zip(found, flat.split([sizes[i] for i in found]), strict=True):
            rows[i] = row
    if shared:
        device = weights[0].weight.device  # gloo takes CPU tensors, nccl those of the device
        flat = torch.cat(rows).to(device)
        distributed.all_reduce(flat)
        rows = list(flat.cpu().split(sizes))
    spectra = [
        r[2:].reshape(s.fold.batch, s.fold.full_rank if whole else 0) for r, s in zip(rows, weights, strict=True)
    ]
    return [bool(r[0]) for r in rows], [float(r[1]) for r in rows], spectra


def _alike(weights: Sequence[FoldedWeight], mine: Sequence[int], known: Sequence[int] | None) -> list[list[int]]:
    """Which of my weights go into one batch: those whose matrices agree in all that a batch must agree in."""
    groups: dict[Any, list[int]] = {}
    for i in mine:
        folded, weight = weights[i], weights[i].weight
        key = (folded.fold.batch, folded.fold.rows, folded.fold.columns, weight.dtype, weight.device)
        groups.setdefault((*key, None if known is None else known[i]), []).append(i)
    return list(groups.values())


def _buffers(folded: FoldedWeight, optimizer: Optimizer | None) -> list[Tensor]:
    """The first moments that an optimizer keeps of a weight."""
    state = {} if optimizer is None else optimizer.state.get(folded.weight, {})
    return [x for key in ("momentum_buffer", "exp_avg") if isinstance(x := state.get(key), Tensor)]


def _whole_bases(weights: Sequence[FoldedWeight], ranks: Sequence[int], bases: dict[str, Tensor]) -> dict[str, Tensor]:
    """``bases`` with room for those that other processes make: any of them may write, or read, the checkpoint."""
    for folded, rank in zip(weights, ranks, strict=True):
        if 0 < rank <= folded.most:
            shape = (folded.fold.batch, min(folded.fold.rows, folded.fold.columns), rank)
            empty = torch.zeros(shape, dtype=torch.float64, device=folded.weight.device)
            bases[folded.name] = bases.get(folded.name, empty).double().reshape(shape)
    return bases


def _share(
    weights: Sequence[FoldedWeight],
    whose: Sequence[int],
    settings: ProjectionSettings,
    optimizer: Optimizer | None,
    outcome: ProjectionResult,
    bases: dict[str, Tensor],
) -> None:
    """Send what each process has made to the others, in one message per process."""
    if settings.pull:
        for folded in weights:
            outcome.pull.setdefault(folded.name, torch.zeros_like(folded.weight))
    for owner in range(max(whose) + 1):
        tensors: list[Tensor] = []
        for folded, own in zip(weights, whose, strict=True):
            if own == owner:
                tensors.append(folded.weight.data)
                tensors += _buffers(folded, optimizer if settings.momentum == "project" else None)
                tensors += [outcome.pull[folded.name]] if settings.pull else []
                tensors += [bases[folded.name]] if folded.name in bases else []
        flat = torch.cat([x.reshape(-1) for x in tensors])
        distributed.broadcast(flat, owner)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(part.reshape(x.shape))
