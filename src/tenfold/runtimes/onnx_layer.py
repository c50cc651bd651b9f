"""One layer as an ONNX graph, written node by node: in milliseconds, where capturing it takes a second."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tenfold.layers.functional import padding_amounts
from tenfold.layers.matrix import LowRankConv, LowRankLinear
from tenfold.layers.spec import LayerSpec, spec_of
from tenfold.layers.tucker import TuckerConv

_OPSET, _IR = 18, 10
"""Of all versions of ONNX Runtime that the package supports."""
_CHAINS = (LowRankLinear, LowRankConv, TuckerConv, nn.Sequential)
"""Modules that run their children one after another; no subclasses, which may do more."""


def onnx_layer(module: nn.Module, x: Tensor) -> bytes | None:
    """The content of an ONNX file that computes ``module`` for inputs of the shape of ``x``; one input, one output.

    Args:
        module: a plain layer, or a factorised one made of plain layers, or such layers in a row.
        x: its input.

    Returns:
        None where it cannot be written: an input without a batch, padding other than by zeros, hooks, another module.
    """
    parts = _parts(module)
    if parts is None or any(spec.padding_mode != "zeros" for _, spec in parts):
        return None
    axes = len(parts[-1][1].kernel_size)
    if x.ndim != axes + 2 if axes else x.ndim < 1:
        return None
    graph = _Graph(x)
    if isinstance(module, LowRankLinear) and module.slices > 1:  # its encoder is a grouped pointwise convolution
        (encoder, first), (decoder, second) = parts
        graph.reshape((-1, first.in_channels, 1))
        graph.convolution(encoder, first)
        graph.reshape((*x.shape[:-1], first.out_channels))
        graph.linear(decoder, second)
    else:
        for part, spec in parts:
            (graph.linear if spec.linear else graph.convolution)(part, spec)
    return graph.content()


def _parts(module: nn.Module) -> list[tuple[nn.Module, LayerSpec]] | None:
    """The plain layers that run one after another, with their options; None where there is more to it."""
    layers = list(module.children()) if type(module) in _CHAINS else [module]
    specs = [spec_of(layer) for layer in layers]
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in (module, *layers)):
        return None
    found = [(layer, spec) for layer, spec in zip(layers, specs, strict=True) if spec is not None]
    alike = isinstance(module, LowRankLinear) or len({len(spec.kernel_size) for _, spec in found}) == 1
    return found if alike and len(found) == len(layers) else None


class _Graph:
    """Nodes in a row, each on what the one before puts out."""

    def __init__(self, x: Tensor) -> None:
        import onnx

        self.onnx: Any = onnx
        self.kind = onnx.helper.np_dtype_to_tensor_dtype(x.detach().numpy().dtype)
        self.shape = tuple(x.shape)
        self.axes = x.ndim
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.last = "x"

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Another shape; -1 stands for what is left."""
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.helper.make_tensor(name, self.onnx.TensorProto.INT64, [len(shape)], shape))
        self._node("Reshape", [name])
        self.axes = len(shape)

    def linear(self, layer: Any, spec: LayerSpec) -> None:
        """A matrix product on the last axis."""
        weight = layer.weight if spec.kind == "conv1d_gpt2" else layer.weight.mT
        if self.axes == 2:
            self._node("Gemm", [self._constant(weight), *self._bias(layer)])
            return
        self._node("MatMul", [self._constant(weight)])
        if layer.bias is not None:
            self._node("Add", self._bias(layer))

    def convolution(self, layer: Any, spec: LayerSpec) -> None:
        """A convolution, plain or transposed."""
        axes = len(spec.kernel_size)
        amounts = padding_amounts(spec)[::-1]  # (after, before) of the first axis, and so on
        options = {"strides": spec.stride, "dilations": spec.dilation, "group": spec.groups}
        options |= {"kernel_shape": spec.kernel_size, "pads": amounts[1::2] + amounts[0::2]}
        if spec.transposed:
            options["output_padding"] = spec.output_padding
        assert len(amounts) == 2 * axes
        name = "ConvTranspose" if spec.transposed else "Conv"
        self._node(name, [self._constant(layer.weight), *self._bias(layer)], **options)

    def content(self) -> bytes:
        """The whole file."""
        make = self.onnx.helper
        sides = (("x", self.shape), (self.last, None))
        values = [make.make_tensor_value_info(name, self.kind, shape) for name, shape in sides]
        graph = make.make_graph(self.nodes, "layer", values[:1], values[1:], self.constants)
        opsets = [make.make_opsetid("", _OPSET)]
        return make.make_model(graph, opset_imports=opsets, ir_version=_IR).SerializeToString()

    def _node(self, kind: str, inputs: list[str], **options: Any) -> None:
        output = f"y{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, [self.last, *inputs], [output], **options))
        self.last = output

    def _constant(self, value: Tensor) -> str:
        name = f"c{len(self.constants)}"
        array = value.detach().contiguous().cpu().numpy()
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def _bias(self, layer: Any) -> list[str]:
        return [] if layer.bias is None else [self._constant(layer.bias)]
