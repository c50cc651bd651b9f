"""What every factorised layer shares, whatever its format: the way back to dense, and what host code reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, cast

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError
from tenfold.layers.lazy_weight import Equivalent
from tenfold.layers.spec import CONVS, TRANSPOSED, LayerSpec, build_dense, swap_channels, to_weight


class Decomposed(nn.Module, ABC):
    """Base class of factorised layers: one linear or convolutional layer whose weight is a product. Abstract.

    Args:
        spec: the options of the layer this one stands for.
    """

    if TYPE_CHECKING:  # at run time `torch.jit.script` would read them, and knows no module by its base class
        decomposition: ClassVar[str]
        """What plans call the format."""
        rank: Any
        """As in a plan: an int, or one for each mode."""
        slices: int
        fold: str | None
        bias: Any
        """The bias of the layer or None: the parameter itself, or a view of it where one of the parts holds it."""
    slices = 1
    fold = None
    __jit_unused_properties__ = ("factors", "kernel", "weight", "bias", "held_bias", "_fold")
    """What `torch.jit.script` has to leave out: only ``forward`` runs there."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.added_bias = False
        """Whether the layer that this one stands for has no bias, though this one has."""
        if spec.linear:
            self.in_features, self.out_features = spec.in_channels, spec.out_channels
        else:
            self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
            self.kernel_size, self.stride, self.padding = spec.kernel_size, spec.stride, spec.padding
            self.dilation, self.groups, self.padding_mode = spec.dilation, spec.groups, spec.padding_mode
            self.transposed, self.output_padding = spec.transposed, spec.output_padding

    @classmethod
    def _made_like(cls, layer: nn.Module, spec: LayerSpec, make: Callable[[], Self]) -> Self:
        """What ``make`` makes, uninitialised, and all else as it is at ``layer``.

        That is a copy of its bias, and its device, dtype, memory format, mode, and what requires a gradient. No
        random number is drawn.
        """
        weight = cast("Tensor", layer.weight)
        with torch.device("meta"):
            new = make()
        new = new.to(weight.dtype).to_empty(device=weight.device)
        if (form := memory_format(weight)) is not torch.contiguous_format:
            new.to(memory_format=form)  # pyright: ignore[reportCallIssue] - stub lacks the overload
        new.requires_grad_(weight.requires_grad)
        new.added_bias = spec.bias and layer.bias is None
        if new.held_bias is not None:
            if layer.bias is None:
                new.held_bias.data.zero_()
            else:
                bias = cast("Tensor", layer.bias)
                new.tie_bias_(nn.Parameter(bias.detach().clone(), bias.requires_grad))
        return new.train(layer.training)

    @property
    @abstractmethod
    def factors(self) -> tuple[nn.Parameter, ...]:
        """The parameters whose product is the weight."""

    @property
    @abstractmethod
    def kernel(self) -> Tensor:
        """The dense equivalent ``(out, in / groups, *k)``, differentiable in the factors."""

    def share_(self, twin: Decomposed) -> None:
        """Tie the factors to those of ``twin``, a layer of the same structure; the bias stays its own."""
        theirs = dict(zip(map(id, self.factors), twin.factors, strict=True))
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in theirs:
                    module.register_parameter(name, theirs[id(parameter)])

    @property
    @abstractmethod
    def held_bias(self) -> nn.Parameter | None:
        """The parameter behind ``bias``."""

    @abstractmethod
    def tie_bias_(self, bias: nn.Parameter) -> None:
        """Tie the bias: the layer uses the parameter ``bias`` from now on."""

    @property
    def weight(self) -> Tensor:
        """The dense equivalent of the weight, in the layout of the layer that was replaced.

        It is computed anew for each access, but only once its numbers are used: asking for its dtype costs nothing.

        Raises:
            ArgumentError: it, or a view of it, is written to: that would be lost.
        """
        if torch.compiler.is_compiling():  # the compiler drops a product that nobody uses by itself
            return self._product()
        return _marked(
            Equivalent.of(self.spec.weight_shape, self.factors[0], self._product, self._refuse_write), *self.factors
        )

    @weight.setter
    def weight(self, value: object) -> None:
        self._refuse_write(f"assigning a {type(value).__name__}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, as in `torch.nn.Module`; ``layer.weight = parameter``, which calls it, is refused."""
        if name == "weight":
            self._refuse_write("assigning a Parameter")
        if name in ("weight_orig", "bias_orig"):
            self._refuse_write(f"pruning of its {name.removesuffix('_orig')} (torch.nn.utils.prune)")
        super().register_parameter(name, param)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """As in torch, but for the empty tensor by which `tenfold.plans.hf_quantizer` marks a factorised layer."""
        mark = state_dict.get(f"{prefix}weight")
        if isinstance(mark, Tensor) and mark.shape == (0,):
            del state_dict[f"{prefix}weight"]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _refuse_write(self, what: str) -> NoReturn:
        own = {id(p): name for name, p in self.named_parameters()}
        names = " and ".join(own[id(factor)] for factor in self.factors)
        raise ArgumentError(
            f"`weight` of a factorised layer must not be changed; got {what}, which would be lost: it is the "
            f"product of {names}. Change these, or make the model dense first: tenfold.to_dense(model)."
        )

    def _product(self) -> Tensor:
        return to_weight(self.spec, self.kernel)

    def to_layer(self) -> nn.Module:
        """A plain dense layer with the product of the factors as its weight, and the same bias parameter."""
        forms = {memory_format(factor) for factor in self.factors} - {torch.contiguous_format}
        with torch.no_grad():
            weight = self._product().contiguous(memory_format=forms.pop() if forms else torch.contiguous_format)
        dense = build_dense(self.spec, weight.device, weight.dtype)
        dense.weight = nn.Parameter(weight, self.factors[0].requires_grad)
        if self.held_bias is not None:
            dense.bias = self.held_bias
        return dense.train(self.training)


class PlainParts(Decomposed):
    """A factorised layer made of plain torch layers in a row, the last of which carries the bias. Abstract."""

    if TYPE_CHECKING:
        decoder: nn.Module

    @property
    def held_bias(self) -> nn.Parameter | None:
        """See `Decomposed.held_bias`."""
        return cast("nn.Parameter | None", self.decoder.bias)

    def tie_bias_(self, bias: nn.Parameter) -> None:
        """See `Decomposed.tie_bias_`."""
        cast("nn.Linear", self.decoder).bias = bias

    @property
    def bias(self) -> Tensor | None:
        """A view of the decoder's bias: code that collects parameters module by module is to find that one once."""
        held = self.held_bias
        return None if held is None else _marked(held.view_as(held), held)


def _marked(tensor: Tensor, *sources: Tensor) -> Tensor:
    """``tensor`` with the marks that host code has left on all ``sources``.

    transformers marks what it has loaded, and gives new random numbers to what bears no mark.
    """
    for name, mark in vars(sources[0]).items():
        if all(name in vars(source) and vars(source)[name] is mark for source in sources[1:]):
            setattr(tensor, name, mark)
    return tensor


def part_of(
    spec: LayerSpec, channels_in: int, channels_out: int, groups: int, axes: tuple[int, ...], *, bias: bool
) -> nn.Module:
    """One convolution of a factorised layer, with the options of the dense layer on some of its spatial axes.

    Args:
        spec: the options of the dense layer.
        channels_in: of the part.
        channels_out: of the part.
        groups: of the part.
        axes: spatial axes on which it has kernel, stride, padding and dilation of the dense layer; elsewhere pointwise.
        bias: whether it has one.
    """

    def pick(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(v if a in axes else default for a, v in enumerate(values))

    transposed = spec.transposed and len(axes) > 0  # a pointwise part needs no transposition
    options: dict[str, Any] = {
        "stride": pick(spec.stride, 1),
        "padding": spec.padding if isinstance(spec.padding, str) else pick(spec.padding, 0),
        "dilation": pick(spec.dilation, 1),
        "groups": groups,
        "padding_mode": spec.padding_mode,
        "bias": bias,
    }
    if not axes:
        options |= {"padding": 0, "padding_mode": "zeros"}
    if transposed:
        options["output_padding"] = pick(spec.output_padding, 0)
    kind: Any = (TRANSPOSED if transposed else CONVS)[len(spec.kernel_size) - 1]
    return kind(channels_in, channels_out, pick(spec.kernel_size, 1), **options)


def own_layout(part: nn.Module, kernel: Tensor) -> Tensor:
    """Convert between a convolution's own weight layout and ``(out, in / groups, *k)``; its own inverse."""
    return swap_channels(kernel, cast("nn.Conv2d", part).groups) if isinstance(part, TRANSPOSED) else kernel


def memory_format(weight: Tensor) -> torch.memory_format:
    """The memory format of a weight: channels last unless it is (as a 1x1 kernel) contiguous as well."""
    for axes, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if weight.ndim == axes and weight.is_contiguous(memory_format=form) and not weight.is_contiguous():
            return form
    return torch.contiguous_format
