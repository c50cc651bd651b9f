"""How transformers saves and loads compressed models: the plan in their config, the factors among their weights.

transformers lets other packages take part in ``save_pretrained`` and ``from_pretrained`` as *quantizers*: the config of
a saved model names one under ``quantization_config``, and it may replace layers before weights are loaded. Nothing is
quantized here. This module registers tenfold's when it is imported, which `tenfold.plans.pretrained` sees to.

Where tenfold has not been imported transformers says that it does not know the quantizer and *goes on*, with dense
layers and random weights. Each factorised layer is therefore saved with an empty tensor under the name of the dense
weight, whose shape fits no layer: transformers raises there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tenfold.errors import CheckpointError, shortened
from tenfold.layers import swap
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.pretrained import METHOD, join_save_pretrained_
from tenfold.plans.apply import check_fits, plan_of
from tenfold.plans.plan import LayerPlan, Plan

NOTE = "Low-rank layers: `import tenfold` before from_pretrained; without it, loading raises."


class LowRankConfig(QuantizationConfigMixin):
    """The entry of ``config.json`` for a compressed model: its plan, as `Plan.to_json` writes it.

    Args:
        plan: the plan; None for a model that has not been saved yet, whose layers say what it is.
        rest: the other entries of the file; not used.
    """

    def __init__(self, plan: Mapping[str, Any] | None = None, **rest: Any) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue] - declared as one of theirs
        self.note = NOTE
        self.plan = plan


class LowRankQuantizer(HfQuantizer):
    """Puts factorised layers where the plan says before weights are loaded, and the plan into the config that is saved.

    The model stays an ordinary one: it trains, changes its type and compiles as before.
    """

    quantization_config: Any
    """A `LowRankConfig`."""

    def is_serializable(self) -> Any:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> Any:
        """Yes: factors are parameters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Yes: they are trained without an adapter."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Yes."""
        return True

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[Any, dict[str, str]]:
        """The state to save, with the plan read off the layers put into the model's config.

        Raises:
            PlanError: a layer is in a form that no plan describes.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # an adapter is saved alone
        plan = plan_of(model)
        self.quantization_config.plan = _written(plan)
        model.config.quantization_config = self.quantization_config
        return _state(model) | {f"{name}.weight": torch.empty(0) for name in plan.layers}, {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        written = _plan(self.quantization_config)
        plan = _placed(written, model)
        check_fits(model, plan)
        swap.replace_(model, plan.layers)
        model.all_tied_weights_keys = _ties(model, plan)
        empty = [f"^{re.escape(name)}\\.weight$" for name in {*written.layers, *plan.layers}]
        self._ignored = model._keys_to_ignore_on_load_unexpected
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        kind = list if self._ignored is None else type(self._ignored)  # a list or a set, by version
        model._keys_to_ignore_on_load_unexpected = kind([*(self._ignored or ()), *empty])

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        model._keys_to_ignore_on_load_unexpected = self._ignored
        _refuse_unloaded(model, self._shapes)
        for name in ("is_quantized", "quantization_method"):  # it is not: `half`, `float` and training work
            vars(model).pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)
        join_save_pretrained_(model)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> nn.Module:
        return swap.to_dense(model)


def _written(plan: Plan) -> dict[str, Any]:
    """The plan as in its JSON, without the entries that are empty; an error that nobody knows stays said."""

    def terse(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key == "error" or value not in (None, False, {})}

    body = terse(json.loads(plan.to_json()))
    return body | {"layers": {n: terse(x) | {"layer": terse(x["layer"])} for n, x in body["layers"].items()}}


def _plan(config: LowRankConfig) -> Plan:
    if config.plan is None:
        raise CheckpointError(
            "`quantization_config` of the saved model must hold the `plan` of its layers; it has none. Save it again."
        )
    return Plan.from_json(json.dumps(config.plan))


def _placed(plan: Plan, model: PreTrainedModel) -> Plan:
    """The plan of the layers that ``model`` has, under its names.

    As transformers does it for weights: a model with a head takes what was saved from the one without, whose names lack
    a prefix, and the other way round. What is then missing is left out; its weights are not looked for either.
    """
    prefix = f"{model.base_model_prefix}."
    there = dict(model.named_modules(remove_duplicate=False))
    names = {name: next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in there), None)
             for name in plan.layers}  # fmt: skip

    def renamed(layer: LayerPlan) -> LayerPlan:
        return replace(layer, tied_to=names.get(layer.tied_to) if layer.tied_to else None)

    return replace(plan, layers={new: renamed(plan.layers[old]) for old, new in names.items() if new is not None})


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of a model: once what layers share and loading ties again, and for each a bias that nobody ties."""
    state = model.state_dict()
    seen: set[int] = set()
    for name, layer in model.named_modules(remove_duplicate=False):
        for part, p in layer.named_parameters() if isinstance(layer, Decomposed) else ():
            tied = not model.all_tied_weights_keys.keys().isdisjoint({f"{name}.bias", f"{name}.{part}"})
            if id(p) in seen and (tied or p is not layer.held_bias):
                del state[f"{name}.{part}"]
            elif id(p) in seen:
                state[f"{name}.{part}"] = p.detach().clone()
            seen.add(id(p))
    return state


def _ties(model: PreTrainedModel, plan: Plan) -> dict[str, str]:
    """What transformers is to tie once weights are loaded, target -> source: as the class says, and the plan."""
    moved: dict[str, str] = {}
    factors: dict[str, str] = {}
    for name, entry in plan.layers.items():
        layer = cast("Decomposed", model.get_submodule(name))
        for part, p in layer.named_parameters():
            if p is layer.held_bias:
                moved[f"{name}.bias"] = f"{name}.{part}"
            elif entry.tied_to:
                factors[f"{name}.{part}"] = f"{entry.tied_to}.{part}"
    declared: dict[str, str] = model.all_tied_weights_keys
    said = {moved.get(a, a): moved.get(b, b) for a, b in declared.items()}
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {target: source for target, source in (said | factors).items() if {target, source} <= there}


def _refuse_unloaded(model: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Raise `CheckpointError` where the file has not what the plan says: transformers would go on with what there is.

    That is random factors for those that are missing, and in some versions tensors of any shape.
    """
    factors = [f"{name}.{own}" for name, x in swap.structure_of(model).items() for own, _ in x.named_parameters()]
    missing = [name for name in factors if not getattr(model.get_parameter(name), "_is_hf_initialized", False)]
    other = [name for name, p in model.named_parameters() if p.shape != shapes.get(name, p.shape)]
    if missing or other:
        raise CheckpointError(
            f"the saved model lacks {len(missing)} tensors of its factorised layers {shortened(missing[:3], 200)}, and "
            f"has {len(other)} in other shapes {shortened(other[:3], 200)}. Save the model again."
        )


register_quantization_config(METHOD)(LowRankConfig)
register_quantizer(METHOD)(LowRankQuantizer)
