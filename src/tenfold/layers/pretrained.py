"""Hugging Face's way to save a model, which cannot bring factorised layers back."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from tenfold.errors import CheckpointError
from tenfold.layers.decomposed import Decomposed


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Have ``save_pretrained`` of ``model`` and its parts raise while they hold factorised layers, and work otherwise.

    ``from_pretrained`` would build the dense classes again, find none of their weights in the file, and go on with
    random ones. ``push_to_hub`` saves by ``save_pretrained`` as well.
    """
    for module in model.modules():
        if not callable(getattr(type(module), "save_pretrained", None)):
            continue
        if any(isinstance(part, Decomposed) for part in module.modules()):
            vars(module)["save_pretrained"] = refused  # hides the method
        elif vars(module).get("save_pretrained") is refused:
            del vars(module)["save_pretrained"]
    return model


def refused(*_: Any, **__: Any) -> NoReturn:
    """Raise `CheckpointError`, in place of ``save_pretrained``."""
    raise CheckpointError(
        "`save_pretrained` cannot save a compressed model: from_pretrained would leave its factorised layers with "
        "random weights. Use tenfold.save(model, folder) and tenfold.load(folder, model=...), or make it dense first: "
        "tenfold.to_dense(model)."
    )
