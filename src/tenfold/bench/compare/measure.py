"""What a comparison measures of a network that came out: cost, speed, layers, spectra."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.bench.compare.findings import POINTS, Latency, Layer, LayerSpectrum, Price, Spectra
from tenfold.bench.latency import benchmark
from tenfold.layers.cost import cost
from tenfold.layers.select import Selection
from tenfold.layers.swap import multiplied_back
from tenfold.plans.apply import Report
from tenfold.plans.plan import LayerPlan
from tenfold.plans.problem import survey


def price(report: Report, small: nn.Module, example: Tensor) -> Price:
    """Parameters, and MACs per image: of the dense network as surveyed for ``example``, of ``small`` as it is built."""
    dense, now, images = report.dense, cost(small, example), len(example)
    assert dense.macs is not None
    assert now.macs is not None
    return Price(dense.params, now.params, dense.macs // images, now.macs // images)


def speed(small: nn.Module, example: Tensor, *, batch: int, rounds: int, runtime: str = "eager") -> Latency:
    """Measure the latency of ``small`` against its dense equivalent, in turns; arguments as in `benchmark`.

    Both are optimised for inference in the same way. Torch's present number of threads is used; with one on the CPU
    its own time counts: other runs of the comparison may take turns with it.
    """
    threads = torch.get_num_threads()
    dense = multiplied_back(small)
    x = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example.device)
    found = benchmark(dense, small, x, runtimes=[runtime], threads=threads, rounds=rounds).best
    forms = [str(form.memory_format) for form in (found.dense_form, found.small_form)]
    return Latency(
        example.device.type,
        batch,
        found.threads,
        found.dense_ms,
        found.small_ms,
        found.speedup,
        list(found.speedup_quartiles),
        runtime,
        found.small_form.version,
        forms,
    )


def became(name: str, layer: LayerPlan) -> Layer:
    """The entry of one layer of a plan in a result."""
    rank = list(layer.rank) if isinstance(layer.rank, tuple) else layer.rank
    return Layer(
        name=name,
        kernel=None if layer.layer is None else list(layer.layer.shape),
        decomposition=layer.decomposition,
        rank=rank,
        slices=layer.slices,
        fold=layer.fold,
        dense_params=layer.dense_params,
        params=layer.params,
        dense_macs=layer.dense_macs,
        macs=layer.macs,
        error=finite(layer.error),
        reason=f"shares the weight of {layer.tied_to}" if layer.tied_to else layer.reason,
    )


def sampled_spectra(
    before: nn.Module, after: nn.Module, *, target_modules: Selection = None, exclude_modules: Selection = None
) -> list[Spectra]:
    """Singular values of each layer that may be decomposed, of both networks, sampled; pooled over a layer's groups.

    Groups are pooled as ``sqrt(sum_g s_g[i]^2)``, so that the energies are those of the whole kernel.
    """
    then, now = (_spectra(model, target_modules, exclude_modules) for model in (before, after))
    return [Spectra(name, sampled(s), sampled(now[name])) for name, s in then.items() if name in now]


def _spectra(model: nn.Module, target: Selection, exclude: Selection) -> dict[str, Tensor]:
    problem = survey(model, target_modules=target, exclude_modules=exclude)
    found = problem.spectra("channel", (1,))
    return {site.name: s[1].square().sum((0, 1)).sqrt() for site, s in zip(problem.sites, found, strict=True)}


def sampled(values: Tensor) -> LayerSpectrum:
    """At most `POINTS` of the singular values ``(p,)``: all where there are no more, else closer at the large ones."""
    n = len(values)
    spaced = np.arange(1, n + 1) if n <= POINTS else np.unique(np.geomspace(1, n, POINTS).round().astype(int))
    picked = values.cpu()[torch.from_numpy(spaced) - 1]
    return LayerSpectrum(spaced.tolist(), [float(f"{value:.5g}") for value in picked.tolist()])


def finite(value: float | None) -> float | None:
    """The value, or None where it is not finite: JSON has no such numbers."""
    return value if value is not None and math.isfinite(value) else None
