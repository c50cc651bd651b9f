"""Hugging Face's ``save_pretrained``: taken part in where a model can come back, refused where it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import nn

from tenfold.errors import CheckpointError
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.recurrent import Recurrent

METHOD = "tenfold"
"""The name under which transformers knows who saves and loads factorised layers; see `tenfold.plans.hf_quantizer`."""


def join_save_pretrained_(model: nn.Module) -> nn.Module:
    """Have ``save_pretrained`` of ``model`` and its parts write what they are, or raise where that cannot be read back.

    A transformers model is given what transformers calls a quantizer: it is asked when the model is saved, by whomever
    (``Trainer``, ``push_to_hub``). The models of other libraries would be built from their dense classes again, with
    random weights: they raise while they hold factorised layers.
    """
    for module in _saving(model):
        state = vars(module)
        if state.get("save_pretrained") is refused:
            del state["save_pretrained"]
        parts = list(module.modules())
        factorised = any(isinstance(part, Decomposed) for part in parts)
        back = factorised and not any(isinstance(part, Recurrent) for part in parts)
        if _joined(module) and not back:
            _leave_(module)
        if factorised and not _joined(module) and not (back and _join_(module)):
            state.setdefault("save_pretrained", refused)  # hides the method
    return model


def refuse_save_pretrained_(model: nn.Module) -> nn.Module:
    """Have ``save_pretrained`` of ``model`` and its parts raise: neither their classes nor a plan say what they are."""
    for module in _saving(model):
        vars(module)["save_pretrained"] = refused_for_good
    return model


def _saving(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if callable(getattr(type(module), "save_pretrained", None)))


def _joined(module: nn.Module) -> bool:
    config = getattr(vars(module).get("hf_quantizer"), "quantization_config", None)
    return config is not None and config.quant_method == METHOD


def _join_(module: nn.Module) -> bool:
    """Give a transformers model tenfold's quantizer; whether it could be given."""
    modeling, auto = (sys.modules.get(f"transformers.{name}") for name in ("modeling_utils", "quantizers.auto"))
    if modeling is None or auto is None or not isinstance(module, modeling.PreTrainedModel):
        return False
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING or vars(module).get("hf_quantizer") is not None:
        return False
    vars(module)["hf_quantizer"] = auto.AutoHfQuantizer.from_config({"quant_method": METHOD})
    return True


def _leave_(module: Any) -> None:
    del module.hf_quantizer
    vars(module.config).pop("quantization_config", None)


def refused(*_: Any, **__: Any) -> NoReturn:
    """Raise `CheckpointError`, in place of ``save_pretrained``."""
    raise CheckpointError(
        "`save_pretrained` cannot save this compressed model: only models of transformers 5 or newer come back from it "
        "with their factorised layers, and none with factorised recurrent ones: weights would be random. Use "
        "tenfold.save(model, folder) and tenfold.load(folder, model=...), or make it dense first: "
        "tenfold.to_dense(model)."
    )


def refused_for_good(*_: Any, **__: Any) -> NoReturn:
    """Raise `CheckpointError`, in place of ``save_pretrained``."""
    raise CheckpointError(
        "`save_pretrained` cannot save a model that was made ready for inference, or lost filters: from_pretrained "
        "would build what was folded, joined or removed again, with fresh weights. Save the model that it was made of."
    )
