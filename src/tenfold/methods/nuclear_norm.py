"""Nuclear norm: a penalty on the sum of the singular values, the convex stand-in for the rank, while a network trains.

Tai, Xiao, Zhang, Wang, E, "Convolutional neural networks with low-rank regularization", ICLR 2016, arXiv 1511.06067;
as the baseline of Zimmer, Spiegel, Pokutta, arXiv 2205.11921.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tenfold.linalg.projection import nuclear_subgradient
from tenfold.linalg.proximal import shrink_spectrum
from tenfold.methods.contract.penalised import Penalised
from tenfold.optim.projection.penalty import Penalty


@dataclass(frozen=True)
class NuclearNorm(Penalised):
    """Nuclear-norm regularisation: ``min loss(W) + lambda sum_l sum_i s_i(W_l)``.

    Each kernel is taken as the matrix ``c_out x (c_in kh kw)``.

    The groups of a grouped convolution are matrices of their own. `plan` takes the same fraction of the rank in every
    layer, the largest that the budget allows; without a budget every layer stays dense.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda U V^T`` to the gradient; "proximal" lowers each singular value by
            ``lambda lr`` after the step, which makes ranks fall exactly.
        every: optimizer steps between proximal maps (their thresholds add up), or for which a sub-gradient is held,
            >= 1. Each costs a factorisation of every layer.
        linear: whether linear layers are penalised too.

    Raises:
        ArgumentError: a value out of range.
        TenfoldError: while training, a weight with NaN or infinite entries.

    Source: Watson 1992 (sub-gradient, of least norm where singular values are zero); Cai, Candes, Shen 2010
    (arXiv 0810.3286), theorem 2.1 (proximal map), with the learning rate as the step.
    """

    name: ClassVar[str] = "nuclear-norm"

    @property
    def penalty(self) -> Penalty:
        """The penalty ``lambda sum_i s_i(W)``."""
        return Penalty(self.strength, _polar, shrink_spectrum)


def _polar(matrices: Tensor) -> Tensor:
    return nuclear_subgradient(matrices, min(matrices.shape[-2:]))
