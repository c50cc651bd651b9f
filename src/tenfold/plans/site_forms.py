"""One layer as output-aware low-rank problems, in any fold and number of slices, from the moments of its inputs.

For the mathematics see `tenfold.linalg.output_forms`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.layers.input_moments import InputSide
from tenfold.layers.tucker import tucker_factors as weight_tucker
from tenfold.linalg.alternation import alternate, best_encoder, better_start
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments
from tenfold.linalg.output_decoders import factors, lost, outer_basis, tucker_factors, tucker_lost
from tenfold.linalg.output_forms import OutputForm, encoder_start, form_order, weight_start
from tenfold.plans.plan import Factors


@dataclass(frozen=True)
class SiteForms:
    """A layer and the centred moments of its inputs, on one side of it.

    Args:
        site: the layer.
        side: what the moments are of.
        moments: from `input_moments`.
    """

    site: FoundLayer
    side: InputSide
    moments: JointMoments

    def form(self, fold: str, slices: int = 1) -> OutputForm:
        """The problem in a fold; from output moments in the channel fold alone, or any of a linear layer, unsliced."""
        whole = Fold(self.site.cost.shape, self.site.cost.groups, slices, fold)
        covariance = self.moments.xx / self.moments.count
        make = OutputForm.of_inputs if self.side.slices is None else OutputForm.of_outputs
        return make(whole, self.site.kernel.to(covariance.device), covariance)

    def shift(self, form: OutputForm, v: Tensor, h: Tensor) -> Tensor:
        """The change of the bias that keeps the mean of the outputs, ``(out,)``.

        Args:
            form: from `form`.
            v: the encoder.
            h: the decoder.
        """
        mean = self.moments.mean_x
        if form.reads is None:
            mean = mean[:, form_order(form.fold).to(mean.device)]
        gap = (form.w - form.product(v, h)).flatten(2)
        return (gap @ mean[..., None]).flatten()

    def pair_errors(self, inner: Sequence[int]) -> Tensor:
        """Relative errors in Tucker format, at each input rank in ``inner`` and output rank 1, 2, ..., full."""
        form = self.form("input")
        energy = tucker_lost(form, encoder_start(form), inner)
        return _relative(energy[:, 1:], energy[0, 0])

    def low_rank(self, fold: str, slices: int, rank: int, *, rounds: int = 2) -> Factors:
        """Left and right factors, and the shift of the bias; no worse than the error that `relative_errors` tells.

        Args:
            fold: any but the decoupled one.
            slices: of the input channels.
            rank: of each slice.
            rounds: of alternation.
        """
        form = self.form(fold, slices)
        v, h = best_encoder(form, rank, rounds=rounds)
        return self._as_weights(factors(form, v, h), self.shift(form, v, h))

    def tucker(self, ranks: tuple[int, int], *, rounds: int = 2) -> Factors:
        """Core, output and input basis, and the shift of the bias.

        No worse than the error that `pair_errors` tells, nor than the Tucker decomposition of the weight, from whose
        input basis, too, alternation may start.

        Args:
            ranks: ``(r_out, r_in)`` of each group.
            rounds: of alternation.
        """
        outer, inner = ranks
        form = self.form("input")
        by_weight = weight_tucker(self.site.kernel, self.site.cost.groups, ranks)[2].to(form.w)
        starts = [start(form)[:, :, :inner] for start in (encoder_start, weight_start)]
        starts.append(by_weight.reshape(len(form.w), 1, -1, inner).mT)
        start = better_start(form, starts, outer)
        v, h = alternate(form, start, rounds=rounds, outer_rank=outer)
        made = tucker_factors(form, v, h, outer_basis(form, v, outer))
        return self._as_weights(made, self.shift(form, v, h))

    def _as_weights(self, made: tuple[Tensor, ...], shift: Tensor) -> Factors:
        return tuple(t.to(self.site.weight.dtype) for t in made), shift


def relative_errors(form: OutputForm, ranks: int) -> Tensor:
    """Relative errors ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)`` of the outputs at rank 1, 2, ..., ``ranks``."""
    energy = lost(form, encoder_start(form)[:, :, :ranks])
    return _relative(energy[1:], energy[0])


def competing(site: FoundLayer, folds: Sequence[str], slices: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Leave out folds that are the same for this kernel; the others with their numbers of slices.

    Args:
        site: the layer.
        folds: by name; of equal ones the first stays.
        slices: by fold.
    """
    parts = {Fold(site.cost.shape, site.cost.groups, 1, fold).encoder_axes: fold for fold in reversed(folds)}
    return {fold: slices[fold] for fold in folds if fold in parts.values()}


def side_of(
    site: FoundLayer, modules: Sequence[str], forms: Mapping[str, Sequence[int]], memory: int
) -> tuple[InputSide, Mapping[str, Sequence[int]]]:
    """The side whose moments tell the forms of a layer, and the forms that it tells.

    What the layer puts out tells the unsliced channel fold: it is taken where nothing else competes and the outputs are
    fewer, and where they are fewer and the covariance of the inputs alone would exceed the memory.

    Args:
        site: the layer.
        modules: that hold its weight.
        forms: numbers of slices by fold.
        memory: in bytes.
    """
    (f, *_), groups = site.cost.shape, site.cost.groups
    n = math.prod(site.cost.shape[1:])
    told = {x: (1,) for x, ks in forms.items() if 1 in ks and not Fold(site.cost.shape, groups, 1, x).decoder_axes}
    alone = all(tuple(ks) == told.get(fold) for fold, ks in forms.items())
    if told and f // groups < n and (alone or 8 * groups * n**2 > memory):
        return InputSide(modules, 1), told
    return InputSide(modules), forms


def _relative(energy: Tensor, total: Tensor) -> Tensor:
    return (energy / total if total > 0 else torch.zeros_like(energy)).clamp(0, 1).sqrt().cpu()
