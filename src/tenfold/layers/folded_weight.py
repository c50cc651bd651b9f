"""A weight as the matrices of a fold, with the batch-norm metric of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.layers.spec import LayerSpec, to_kernel, to_weight
from tenfold.linalg.fold import Fold

FAINT = 1e-4
"""Least metric of a row, beside the largest of its matrix: fainter rows would be left to chance, or cut to zero."""


@dataclass
class FoldedWeight:
    """A weight as the matrices of a fold, with the batch norm that gives their metric.

    Args:
        name: of the module that holds it.
        module: the module.
        spec: the options of the layer.
        fold: how its kernel is made matrices.
        most: at larger ranks, which save nothing, the weight is left alone.
        norm: the batch norm that gives the metric; None: ones.
    """

    name: str
    module: nn.Module
    spec: LayerSpec
    fold: Fold
    most: int
    norm: _BatchNorm | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module holds it now."""
        return cast("nn.Parameter", self.module.weight)

    @property
    def matrices(self) -> Tensor:
        """The matrices ``(b, rows, columns)``, detached."""
        return self.fold.matrices(to_kernel(self.spec, self.weight.detach()))

    @property
    def metric(self) -> Tensor | None:
        """The row metric ``gamma / sqrt(running_var + eps)``, ``(b, rows)``; ones where all of a matrix are zero."""
        if self.norm is None or self.norm.running_var is None:
            return None
        scale = (self.norm.running_var.detach() + self.norm.eps).rsqrt()
        scale = scale if self.norm.weight is None else scale * self.norm.weight.detach()
        fold = self.fold
        rows = scale.abs().reshape(fold.batch, -1)
        rows = rows.repeat_interleave(fold.rows // rows.shape[1], 1)  # an axis of the kernel may stand in the rows
        top = rows.amax(-1, keepdim=True)
        return torch.where(top == 0, 1.0, torch.maximum(rows, FAINT * top))  # not a number stays none

    def put_(self, matrices: Tensor) -> None:
        """Write the matrices back into the weight."""
        self.weight.copy_(self.as_weight(matrices))

    def as_weight(self, matrices: Tensor) -> Tensor:
        """Matrices of the fold in the layout of the weight."""
        return to_weight(self.spec, self.fold.kernel(matrices))

    @property
    def work(self) -> int:
        """An estimate of the work of one projection, for sharing it out among processes."""
        short, long = sorted((self.fold.rows, self.fold.columns))
        return self.fold.batch * short * short * (10 * short + long)
