"""The dense equivalent of a factor pair, multiplied out only where its numbers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only


class Equivalent(Tensor):
    """A lazy dense equivalent: its shape, dtype and device are known, its numbers computed at their first use.

    Host code reads ``layer.weight.dtype`` in every forward pass (transformers' ViT and T5 do, T5 three times a block).
    Multiplying the factors each time would cost more than the layer. Any operation on it is one on the plain product,
    except that nobody can write to it, or to a view of it: what changed would be the product, and no factor.
    """

    _product: Callable[[], Tensor]
    _where: torch.device
    _value: Tensor | None
    _refuse: Callable[[str], NoReturn]

    @classmethod
    def of(
        cls, shape: Sequence[int], like: Tensor, product: Callable[[], Tensor], refuse: Callable[[str], NoReturn]
    ) -> Self:
        """A lazy tensor for the result of ``product()``.

        Args:
            shape: of the result.
            like: has its dtype and device.
            product: computes it.
            refuse: raises the error of a write to it, given what was done.
        """
        new = torch.empty(shape, dtype=like.dtype, device="meta").as_subclass(cls)
        new._product, new._where, new._value, new._refuse = product, like.device, None, refuse
        return new

    def multiplied(self) -> Tensor:
        """The plain tensor; computed once."""
        if self._value is None:
            self._value = self._product()
        return self._value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer questions about the form at once; for everything else put the product in its own place."""
        if func == _DEVICE:
            return args[0]._where
        if func in _FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        for written in _written(func, args, kwargs or {}):
            if isinstance(written, cls):
                written._refuse(f"`{func.__name__}`")
        source = args[0] if args and func in _VIEWS else None
        args, kwargs = tree_map_only(cls, cls.multiplied, (args, kwargs or {}))
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, source._seen, result) if isinstance(source, cls) else result

    def _seen(self, view: Tensor) -> Equivalent:
        """``view``, which is not to be written to either."""
        return Equivalent.of(view.shape, view, lambda: view, self._refuse)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What ``func`` writes to, by torch's rules for names: ``zero_``, ``__iadd__``, ``__setitem__``, ``out=``."""
    name = func.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place or name in _WRITES or kwargs.get("inplace") is True:
        return [*tree_iter(args[:1] or kwargs), *tree_iter(kwargs.get("out"))]
    return list(tree_iter(kwargs.get("out")))


_WRITES = {
    f"__i{name}__"
    for name in [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "matmul",
    ]
} | {
    "__setitem__",
    "__set__",  # of an attribute: `data`, `grad`, `requires_grad`
    "__delete__",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
}
_VIEWS = {
    Tensor.data.__get__,  # pyright: ignore[reportAttributeAccessIssue] - a getter in C
    Tensor.T.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.mT.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    *(
        getattr(Tensor, name)
        for name in ["detach", "__getitem__", "view", "view_as", "reshape", "flatten", "unflatten", "t", "transpose"]
    ),
    *(
        getattr(Tensor, name)
        for name in ["permute", "narrow", "select", "squeeze", "unsqueeze", "chunk", "split", "unbind"]
    ),
}
_DEVICE = Tensor.device.__get__  # pyright: ignore[reportAttributeAccessIssue] - a getter in C
_FORM = {
    Tensor.dtype.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.shape.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.ndim.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
}
