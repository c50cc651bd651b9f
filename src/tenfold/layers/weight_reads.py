"""Weights that a model reads outside the layer that holds them: tied autoencoders, standardised weights, cosine heads.

A factorised layer has no such weight: each read would multiply the factors back, and cost what decomposing them saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter


class _Reads(TorchFunctionMode):
    """Notes every torch function that is given a watched weight while another module's forward runs.

    Functions that return no tensor (``shape``, ``dtype``, ``size()``) read no number.
    """

    def __init__(self, holders: Mapping[int, set[nn.Module]]) -> None:
        super().__init__()
        self.holders = holders
        self.running: list[nn.Module] = []
        self.read: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) for x in tree_iter(result)):
            for x in tree_iter((args, kwargs)):
                held = self.holders.get(id(x)) if isinstance(x, nn.Parameter) else None
                if held is not None and not held.intersection(self.running[-1:]):
                    self.read.add(id(x))
        return result


@contextmanager
def weight_reads(model: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    """Collect the names of layers whose weight is read outside their own forward, while the block runs.

    Args:
        model: what runs.
        names: of modules that hold a ``weight``; several may hold one.
    """
    modules = {name: model.get_submodule(name) for name in names}
    weights = {name: id(module.weight) for name, module in modules.items() if isinstance(module.weight, nn.Parameter)}
    holders: dict[int, set[nn.Module]] = {key: set() for key in weights.values()}
    for module in model.modules():  # of any kind: an embedding, say, that is tied to a head
        for parameter in module.parameters(recurse=False):
            if id(parameter) in holders:
                holders[id(parameter)].add(module)
    mode, found = _Reads(holders), set[str]()
    handles = []
    for module in {m for held in holders.values() for m in held}:
        handles.append(module.register_forward_pre_hook(lambda m, _: mode.running.append(m)))
        handles.append(module.register_forward_hook(lambda *_: mode.running.pop() and None, always_call=True))
    try:
        with mode:
            yield found
    finally:
        for handle in handles:
            handle.remove()
        found.update(name for name, key in weights.items() if key in mode.read)
