"""The benchmarks' networks, with weights of known spectra in place of trained ones."""

import torch
from torch import nn

from tenfold.train.models import build_model

NETS = {
    "resnet20": {},
    "resnet56": {},
    "vgg16_bn": {},
    "resnet18": {},
    "resnet50": {"classes": 1000},
}
SEED = 0
SPECTRUM = "kernel (f, c k1 k2) = U diag(i^-a) V^T, U and V random orthonormal, a uniform in [0.5, 1] per layer"


def network(name: str, seed: int = SEED) -> nn.Module:
    """A network in evaluation mode; every kernel gets the spectrum of `SPECTRUM`, at the norm it had."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = minilm() if name == "minilm" else build_model(name, **NETS.get(name, {}))
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _set_spectrum_(module.weight.data, generator)
    return model.eval()


def minilm() -> nn.Module:
    """An encoder of the sizes of all-MiniLM-L6: six layers of 384 channels, twelve heads."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    return BertModel(BertConfig(**sizes), add_pooling_layer=False)


def example(name: str, batch: int, size: int) -> torch.Tensor:
    """Inputs: normal images of ``size`` x ``size``, or ``size`` words."""
    generator = torch.Generator().manual_seed(SEED)
    if name == "minilm":
        return torch.randint(1000, 20000, (batch, size), generator=generator)
    return torch.randn(batch, 3, size, size, generator=generator)


def size(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _set_spectrum_(weight: torch.Tensor, generator: torch.Generator) -> None:
    f, n = len(weight), weight[0].numel()
    u = torch.linalg.qr(torch.randn(f, min(f, n), generator=generator))[0]
    v = torch.linalg.qr(torch.randn(n, min(f, n), generator=generator))[0]
    a = 0.5 + 0.5 * torch.rand((), generator=generator)
    s = torch.arange(1, min(f, n) + 1) ** -a
    kernel = (u * s) @ v.mT
    weight.copy_((kernel * (weight.norm() / kernel.norm())).view_as(weight))
