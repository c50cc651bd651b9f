"""Layers of every kind with a norm each, and what their projection is by one float64 SVD per matrix."""

import math

import torch
from torch import Tensor, nn

from tenfold.layers.folded_weight import FoldedWeight
from tenfold.layers.spec import spec_of
from tenfold.linalg import Fold

LAYERS = {
    "linear": lambda: nn.Linear(7, 9),
    "conv1d": lambda: nn.Conv1d(5, 6, 3),
    "conv2d": lambda: nn.Conv2d(5, 8, (3, 2), stride=2, padding=1),
    "twin": lambda: nn.Conv2d(5, 8, (3, 2)),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(4, 6, (2, 3, 2)),
    "transposed": lambda: nn.ConvTranspose2d(6, 5, 3, stride=2),
    "grouped transposed": lambda: nn.ConvTranspose2d(6, 8, (2, 3), groups=2),
}


def made(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {name: make().to(dtype) for name, make in LAYERS.items()}


def norm_of(layer: nn.Module, seed: int = 1) -> nn.BatchNorm2d:
    """A batch norm with statistics and scales of its own, some of them negative."""
    g = torch.Generator().manual_seed(seed)
    n = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    norm = nn.BatchNorm2d(n).to(layer.weight.dtype)
    norm.running_var.copy_(torch.rand(n, generator=g) + 0.1)
    norm.weight.data.copy_(torch.randn(n, generator=g))
    return norm


def folded_weights(layers: dict[str, nn.Module], fold: str = "channel", *, norms: bool = False) -> list[FoldedWeight]:
    made = []
    for name, layer in layers.items():
        spec = spec_of(layer)
        shape = Fold(spec.shape, spec.groups, 1, fold)
        made.append(FoldedWeight(name, layer, spec, shape, shape.full_rank, norm_of(layer) if norms else None))
    return made


def scales(folded: FoldedWeight) -> Tensor | None:
    """``gamma / sqrt(var + eps)`` per output channel, float64."""
    norm = folded.norm
    return None if norm is None else norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()


def matrices_of(weight: Tensor, folded: FoldedWeight) -> tuple[list[Tensor], list[int], list[int]]:
    """One matrix per group (decoupled: per output channel), output channels and the decoder's axes in the rows.

    Written out from the table of the folds, not by them. Returns the matrices, their common shape before flattening,
    and the order of the axes.
    """
    spec, name = folded.spec, folded.fold.name
    w = weight.double()
    groups = spec.groups
    if spec.transposed:  # (in, out / g, *k) -> (out, in / g, *k)
        w = torch.cat([x.transpose(0, 1) for x in w.chunk(groups)])
    k = list(range(2, w.ndim))
    rows, columns = {
        "channel": ([0], [1, *k]),
        "spatial": ([0, *k[1:]], [1, *k[:1]]),
        "spatial-t": ([0, *k[:1]], [1, *k[1:]]),
        "input": ([0, *k], [1]),
        "decoupled": ([0, *k], [1]),
    }[name]
    blocks = w.shape[0] if name == "decoupled" and k else groups
    parts = [x.permute(*rows, *columns) for x in w.chunk(blocks)]
    shape = list(parts[0].shape)
    return [x.reshape(math.prod(shape[: len(rows)]), -1) for x in parts], shape, rows + columns


def weight_from(matrices: list[Tensor], shape: list[int], order: list[int], folded: FoldedWeight) -> Tensor:
    back = [order.index(i) for i in range(len(order))]
    w = torch.cat([m.reshape(shape).permute(back) for m in matrices])
    if folded.spec.transposed:
        w = torch.cat([x.transpose(0, 1) for x in w.chunk(folded.spec.groups)])
    return w


def directions(weight: Tensor, folded: FoldedWeight, rank: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per matrix: M, all singular values of ``diag(a) M``, and the leading left and right vectors."""
    matrices, _, _ = matrices_of(weight, folded)
    a = scales(folded)
    per = len(matrices)
    found = []
    for i, m in enumerate(matrices):
        row = None if a is None else a.chunk(per)[i].repeat_interleave(len(m) // (len(a) // per))
        u, s, vh = torch.linalg.svd(m if row is None else row[:, None] * m, full_matrices=False)
        found.append((m, s, u[:, :rank], vh[:rank]))
    return found


def projected(weight: Tensor, folded: FoldedWeight, rank: int, *, transfer: bool = False, tail: float = 0.0) -> Tensor:
    """The projection of one weight, by an SVD per matrix."""
    out = []
    for m, s, _, v in directions(weight, folded, rank):
        inside = m @ v.T @ v
        kept, rest = (s[:rank] ** 2).sum(), (s[rank:] ** 2).sum()
        c = ((kept + rest - tail**2 * rest) / kept).sqrt() if transfer else 1.0
        out.append(c * inside + tail * (m - inside))
    return weight_from(out, *matrices_of(weight, folded)[1:], folded)


def polar(weight: Tensor, folded: FoldedWeight, rank: int) -> Tensor:
    """``U_r V_r^T`` of each matrix, as a weight."""
    out = [u @ v for _, _, u, v in directions(weight, folded, rank)]
    return weight_from(out, *matrices_of(weight, folded)[1:], folded)


def on_rows_of(x: Tensor, weight: Tensor, folded: FoldedWeight, rank: int) -> Tensor:
    """``X V_r V_r^T`` with the directions of ``weight``."""
    matrices, shape, order = matrices_of(x, folded)
    found = directions(weight, folded, rank)
    return weight_from([m @ v.T @ v for m, (*_, v) in zip(matrices, found, strict=True)], shape, order, folded)
