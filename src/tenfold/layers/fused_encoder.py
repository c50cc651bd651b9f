"""Torch's fused inference path for transformer encoders, which factorised layers must stay off."""

from __future__ import annotations

from typing import Any

from torch import nn

from tenfold.layers.decomposed import Decomposed


def keep_off_fused_paths_(model: nn.Module) -> nn.Module:
    """Switch the fused path off where a factor pair stands in it, and on again where none does any more.

    In eval mode that path reads ``linear1.weight`` and multiplies by it: right, but slower than the dense model, which
    did not have to multiply the factors first. Torch takes the path only while two attributes are truthy. They are set
    to None, which is not, and tells a later call that they were before. Outputs at *padded* positions, which torch
    leaves undefined, then come out as in training mode and no longer as zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            gelu = module.activation is nn.functional.gelu or isinstance(module.activation, nn.GELU)
            _switch(module, "activation_relu_or_gelu", 2 if gelu else 1, off=_factorised(module))
        if isinstance(module, nn.TransformerEncoder):
            _switch(module, "use_nested_tensor", True, off=any(_factorised(layer) for layer in module.layers))
    return model


def _factorised(layer: nn.Module) -> bool:
    pair = (layer.linear1, layer.linear2) if isinstance(layer, nn.TransformerEncoderLayer) else ()
    return any(isinstance(linear, Decomposed) for linear in pair)


def _switch(module: nn.Module, attribute: str, on: Any, *, off: bool) -> None:
    value = getattr(module, attribute)
    if off and value:
        setattr(module, attribute, None)
    elif not off and value is None:
        setattr(module, attribute, on)
