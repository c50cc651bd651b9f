"""The dense equivalent of a factor pair, multiplied out only where its numbers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Equivalent(Tensor):
    """A tensor that knows its shape, dtype and device, and computes itself at the first use of its numbers.

    Host code reads ``layer.weight.dtype`` in every forward pass (transformers' ViT and T5 do, T5 three times a block).
    Multiplying the factors each time would cost more than the layer. Any operation on it is one on the plain product.
    """

    _product: Callable[[], Tensor]
    _where: torch.device
    _value: Tensor | None

    @classmethod
    def of(cls, shape: Sequence[int], like: Tensor, product: Callable[[], Tensor]) -> Self:
        """The tensor that ``product()`` will return: of this shape, in the dtype and on the device of ``like``."""
        new = torch.empty(shape, dtype=like.dtype, device="meta").as_subclass(cls)
        new._product, new._where, new._value = product, like.device, None
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
        args, kwargs = tree_map_only(cls, cls.multiplied, (args, kwargs or {}))
        return func(*args, **kwargs)


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
