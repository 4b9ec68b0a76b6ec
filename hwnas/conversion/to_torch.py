"""ONNX graphs as torch modules: one functional torch call for each operator, no library in between.

Every operator is one function of torch tensors (`_OPERATORS`), and running it is all that a converter needs: on
proxies, which records the calls as a `torch.fx` graph; on meta tensors, which gives the shapes of results; and on
numbers instead, where all inputs are known, which folds constants away.

Shapes are static. An operator, attribute or data-dependent shape that is not covered is refused, never approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hwnas.errors import HwnasError, InvalidModel

if TYPE_CHECKING:
    import onnx

Operator = Callable[..., Any]


class UnsupportedOperator(HwnasError):
    """A node that torch is not asked to run, because its meaning there would not be certain."""


def to_torch(model: onnx.ModelProto) -> fx.GraphModule:
    """A module that computes what an ONNX model does.

    Args:
        model: With weights, and with static shapes of all inputs (`hwnas.onnx_facts.set_shapes`).

    Returns:
        Module in evaluation mode. Inputs in the model's order (initializers are none), outputs as a tuple in the
        model's order. Weights are buffers; `float` weights follow `.to(dtype)`.

    Raises:
        UnsupportedOperator: Naming the operator and the node.
        InvalidModel: An input has a dynamic shape, or a node does not fit its inputs.
    """
    return _Converter(model).convert()


class _Converter:
    """The state of one conversion.

    Attributes:
        opset: Of the default domain.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.onnx = onnx
        self._graph_proto = model.graph
        self.opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._tracer = fx.proxy.GraphAppendingTracer(self._graph)
        self._known: dict[str, Tensor] = {}  # constants by name
        self._meta: dict[str, Tensor] = {}  # shape and type of everything else
        self._nodes: dict[str, fx.Node] = {}
        self._used = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}

    def convert(self) -> fx.GraphModule:
        for tensor in self._graph_proto.initializer:
            self._known[tensor.name] = self.tensor(tensor)
        for value in self._graph_proto.input:
            if value.name not in self._known:
                self._input(value)
        for node in self._graph_proto.node:
            self._add(Node(node, self))
        self._graph.output(tuple(self.proxy(value.name).node for value in self._graph_proto.output))
        self._graph.eliminate_dead_code()
        self._graph.lint()
        return fx.GraphModule(self._root, self._graph, "OnnxModule").eval()

    def known(self, name: str) -> Tensor | None:
        return self._known.get(name)

    def meta(self, name: str) -> Tensor:
        if name in self._known:
            return self._known[name].to("meta")
        if name not in self._meta:
            raise InvalidModel(f"nothing in the graph makes the value {name!r}")
        return self._meta[name]

    def proxy(self, name: str) -> fx.Proxy:
        """The value in the recorded graph; a constant becomes a buffer when it is first used there."""
        if name not in self._nodes:
            if name not in self._known:
                raise InvalidModel(f"nothing in the graph makes the value {name!r}")
            buffer = f"constant_{len(self._nodes)}"
            self._root.register_buffer(buffer, self._known[name])
            self._nodes[name] = self._graph.get_attr(buffer)
        return fx.Proxy(self._nodes[name], self._tracer)

    def _input(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if not kind.HasField("shape") or min(shape, default=1) < 1:
            raise InvalidModel(f"input {value.name!r} has a dynamic shape; static ones are wanted")
        self._meta[value.name] = torch.empty(shape, dtype=self.dtype(kind.elem_type), device="meta")
        self._nodes[value.name] = self._graph.placeholder(f"input_{len(self._nodes)}")

    def _add(self, node: Node) -> None:
        operator = _OPERATORS.get(node.kind)
        if operator is None or node.proto.domain not in ("", "ai.onnx"):
            domain = f"{node.proto.domain}." if node.proto.domain else ""
            raise UnsupportedOperator(
                f"the operator {domain}{node.kind} (node {node.title}) has no counterpart here; "
                "another runtime may run it, e.g. ort-cpu"
            )
        if self.opset < 7 and node.kind in _BINARY and ("axis" in node.attributes or node.kind == "PRelu"):
            raise node.refuse(f"the broadcasting of opset {self.opset}")
        names = list(node.proto.input)
        try:
            if all(name == "" or name in self._known for name in names):
                found = operator(node, *(self._known[name] if name else None for name in names))
                self._keep(node, found, self._known.__setitem__)
                return
            metas = [self.meta(name) if name else None for name in names]
            shaped = operator(node, *metas)
            if node.shape_only:  # what depends on shapes alone is known now
                self._keep(node, shaped, self._known.__setitem__)
                return
            recorded = operator(node, *(self.proxy(name) if name else None for name in names))
        except (UnsupportedOperator, InvalidModel):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            raise InvalidModel(f"the node {node.title} ({node.kind}) does not fit its inputs: {error}") from error
        self._keep(node, shaped, self._meta.__setitem__)
        self._keep(node, recorded, lambda name, value: self._nodes.__setitem__(name, value.node))

    def _keep(self, node: Node, found: Any, keep: Callable[[str, Any], None]) -> None:
        outputs = list(node.proto.output)
        values = found if isinstance(found, tuple) else (found,)
        for name, value in zip(outputs, values, strict=False):
            keep(name, value)
        if self._used.intersection(outputs[len(values) :]) - {""}:
            raise node.refuse(f"{len(outputs)} outputs")

    def tensor(self, proto: onnx.TensorProto) -> Tensor:
        if proto.data_type == self.onnx.TensorProto.BFLOAT16:
            return torch.from_numpy(self.onnx.numpy_helper.to_array(proto).astype("float32")).to(torch.bfloat16)
        self.dtype(proto.data_type)
        return torch.from_numpy(self.onnx.numpy_helper.to_array(proto).copy())

    def dtype(self, kind: int) -> torch.dtype:
        """torch's type for one of ONNX's."""
        name = self.onnx.TensorProto.DataType.Name(kind)
        if name not in _DTYPES:
            raise UnsupportedOperator(f"values of type {name} have no counterpart here")
        return _DTYPES[name]


class Node:
    """A node as operators see it: attributes, and what is known of its inputs."""

    def __init__(self, proto: onnx.NodeProto, converter: _Converter) -> None:
        self.proto = proto
        self.kind = proto.op_type
        self.title = repr(proto.name or proto.output[0])
        self.shape_only = proto.op_type in ("Shape", "Size")
        self._converter = converter
        self.attributes = {a.name: converter.onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; texts are decoded."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    @property
    def opset(self) -> int:
        return self._converter.opset

    def shape(self, i: int = 0) -> tuple[int, ...]:
        """Static shape of an input."""
        return tuple(self._converter.meta(self.proto.input[i]).shape)

    def dtype(self, i: int = 0) -> torch.dtype:
        return self._converter.meta(self.proto.input[i]).dtype

    def is_const(self, i: int) -> bool:
        return self.has(i) and self._converter.known(self.proto.input[i]) is not None

    def has(self, i: int) -> bool:
        """Whether an optional input is given."""
        return len(self.proto.input) > i and self.proto.input[i] != ""

    def const(self, i: int, default: Any = None) -> Any:
        """An input that has to be known now, as a list or number."""
        if not self.has(i):
            return default
        value = self._converter.known(self.proto.input[i])
        if value is None:
            raise UnsupportedOperator(
                f"{self.kind} (node {self.title}) computes input {i} from the data; its value has to be in the model"
            )
        return value.tolist()

    def number(self, i: int, default: Any = None) -> Any:
        """A single number that has to be known now; some exporters write it as a list of one."""
        value = self.const(i, default)
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def axes(self, i: int, default: Any = None) -> Any:
        """What newer opsets give as input `i` and older ones as the attribute `axes`."""
        return self.const(i) if self.has(i) else self.get("axes", default)

    def refuse(self, what: str) -> UnsupportedOperator:
        return UnsupportedOperator(f"{self.kind} (node {self.title}) with {what} is not covered")

    def torch_dtype(self, kind: int) -> torch.dtype:
        return self._converter.dtype(kind)

    def tensor(self, name: str) -> Tensor | None:
        proto = self.attributes.get(name)
        return None if proto is None else self._converter.tensor(proto)


_DTYPES: Mapping[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "DOUBLE": torch.float64,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
_OPERATORS: dict[str, Operator] = {}


def _operator(*kinds: str) -> Callable[[Operator], Operator]:
    def keep(function: Operator) -> Operator:
        _OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return keep


def supported() -> list[str]:
    """Names of the ONNX operators that are covered, sorted."""
    return sorted(_OPERATORS)


# element by element ---------------------------------------------------------------------------------------------------

_UNARY: Mapping[str, Callable[[Any], Any]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
}
_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x >= 0, x, x * slope),
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
for _kind, _function in _UNARY.items():
    _OPERATORS[_kind] = lambda node, x, _function=_function: _function(x)
for _kind, _pair in _BINARY.items():
    _OPERATORS[_kind] = lambda node, a, b, _pair=_pair: _pair(a, b)


@_operator("Div")
def _div(node: Node, a: Any, b: Any) -> Any:
    if node.dtype(0).is_floating_point:
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@_operator("Mod")
def _mod(node: Node, a: Any, b: Any) -> Any:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@_operator("Pow")
def _pow(node: Node, base: Any, exponent: Any) -> Any:
    if node.is_const(1) and node.shape(1) in ((), (1,)):
        power = torch.pow(base, node.number(1))
    else:
        power = torch.pow(base, exponent)
    return power.to(node.dtype(0))


@_operator("Sum", "Max", "Min", "Mean")
def _variadic(node: Node, *values: Any) -> Any:
    pair = {"Max": torch.maximum, "Min": torch.minimum}.get(node.kind, torch.add)
    total = values[0]
    for value in values[1:]:
        total = pair(total, value)
    return total / len(values) if node.kind == "Mean" else total


@_operator("LeakyRelu")
def _leaky_relu(node: Node, x: Any) -> Any:
    return F.leaky_relu(x, node.get("alpha", 0.01))


@_operator("Elu")
def _elu(node: Node, x: Any) -> Any:
    return F.elu(x, node.get("alpha", 1.0))


@_operator("Celu")
def _celu(node: Node, x: Any) -> Any:
    return F.celu(x, node.get("alpha", 1.0))


@_operator("Selu")
def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@_operator("HardSigmoid")
def _hard_sigmoid(node: Node, x: Any) -> Any:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@_operator("Gelu")
def _gelu(node: Node, x: Any) -> Any:
    return F.gelu(x, approximate=node.get("approximate", "none"))


@_operator("Clip")
def _clip(node: Node, x: Any, *bounds: Any) -> Any:
    low, high = node.number(1, node.get("min")), node.number(2, node.get("max"))
    return x if low is None and high is None else torch.clamp(x, low, high)


@_operator("Where")
def _where(node: Node, condition: Any, a: Any, b: Any) -> Any:
    return torch.where(condition, a, b)


@_operator("Cast")
def _cast(node: Node, x: Any) -> Any:
    return x.to(node.torch_dtype(node.get("to")))


@_operator("Dropout")
def _dropout(node: Node, x: Any, ratio: Any = None, training: Any = None) -> Any:
    if node.has(2) and node.number(2):
        raise node.refuse("training mode")
    return x


# layers ---------------------------------------------------------------------------------------------------------------


@_operator("Conv")
def _conv(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    kernel = node.shape(1)[2:]
    rank = len(kernel)
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    before, after = _padding(node, kernel, stride, dilation)
    if before != after:
        x, before = F.pad(x, _torch_pads(before, after)), [0] * rank
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, bias, tuple(stride), tuple(before), tuple(dilation), node.get("group", 1))


@_operator("ConvTranspose")
def _conv_transpose(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = len(node.shape(1)) - 2
    if node.get("output_shape") or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refuse("output_shape or auto_pad")
    pads = node.get("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        raise node.refuse("asymmetric padding")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return function(
        x,
        weight,
        bias,
        tuple(node.get("strides", [1] * rank)),
        tuple(pads[:rank]),
        tuple(node.get("output_padding", [0] * rank)),
        node.get("group", 1),
        tuple(node.get("dilations", [1] * rank)),
    )


@_operator("Gemm")
def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if not node.get("transA", 0) and node.get("transB", 0) and alpha == beta == 1.0 and _is_row(node):
        return F.linear(a, b, c)
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    product = torch.matmul(a, b)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


def _is_row(node: Node) -> bool:
    return not node.has(2) or len(node.shape(2)) == 1


@_operator("BatchNormalization")
def _batch_norm(node: Node, x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
    if node.get("training_mode", 0):
        raise node.refuse("training mode")
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, node.get("epsilon", 1e-5))


@_operator("InstanceNormalization")
def _instance_norm(node: Node, x: Any, scale: Any, shift: Any) -> Any:
    return F.instance_norm(x, weight=scale, bias=shift, eps=node.get("epsilon", 1e-5))


@_operator("LayerNormalization")
def _layer_norm(node: Node, x: Any, scale: Any, shift: Any = None) -> Any:
    shape = node.shape(0)[node.get("axis", -1) % len(node.shape(0)) :]
    if node.shape(1) != shape or (node.has(2) and node.shape(2) != shape):
        raise node.refuse("a scale or shift that is broadcast")
    return F.layer_norm(x, shape, scale, shift, node.get("epsilon", 1e-5))


@_operator("LRN")
def _lrn(node: Node, x: Any) -> Any:
    if node.get("size") % 2 == 0:
        raise node.refuse("an even size")  # torch's window lies elsewhere
    return F.local_response_norm(
        x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


@_operator("MaxPool")
def _max_pool(node: Node, x: Any) -> Any:
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    stride, dilation = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    before, after = _padding(node, kernel, stride, dilation)
    ceil = bool(node.get("ceil_mode", 0))
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        if ceil:
            raise node.refuse("ceil_mode and padding that torch does not know")
        x, before = F.pad(x, _torch_pads(before, after), value=-math.inf), [0] * rank
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return function(x, tuple(kernel), tuple(stride), tuple(before), tuple(dilation), ceil)


@_operator("AveragePool")
def _average_pool(node: Node, x: Any) -> Any:
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    stride = node.get("strides", [1] * rank)
    if any(size != 1 for size in node.get("dilations", [1] * rank)):
        raise node.refuse("dilation")
    before, after = _padding(node, kernel, stride, [1] * rank)
    counted = bool(node.get("count_include_pad", 0))
    ceil = bool(node.get("ceil_mode", 0))
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        if not counted or ceil:
            raise node.refuse("padding that torch does not know")
        x, before = F.pad(x, _torch_pads(before, after)), [0] * rank
    arguments = (x, tuple(kernel), tuple(stride), tuple(before), ceil, counted)
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1](*arguments)


@_operator("GlobalAveragePool")
def _global_average_pool(node: Node, x: Any) -> Any:
    return torch.mean(x, dim=list(range(2, len(node.shape(0)))), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max_pool(node: Node, x: Any) -> Any:
    return torch.amax(x, dim=list(range(2, len(node.shape(0)))), keepdim=True)


@_operator("Softmax", "LogSoftmax")
def _softmax(node: Node, x: Any) -> Any:
    function = F.softmax if node.kind == "Softmax" else F.log_softmax
    if node.opset >= 13:
        return function(x, dim=node.get("axis", -1))
    # until opset 12 everything from the axis on was one dimension
    shape, axis = node.shape(0), node.get("axis", 1)
    flat = torch.reshape(x, (math.prod(shape[: axis % len(shape)]), -1))
    return torch.reshape(function(flat, dim=1), shape)


# shapes ---------------------------------------------------------------------------------------------------------------


@_operator("Shape")
def _shape(node: Node, x: Any) -> Any:
    shape = node.shape(0)[slice(node.get("start", 0), node.get("end"))]
    return torch.tensor(shape, dtype=torch.int64)


@_operator("Size")
def _size(node: Node, x: Any) -> Any:
    return torch.tensor(math.prod(node.shape(0)), dtype=torch.int64)


@_operator("Constant")
def _constant(node: Node) -> Any:
    value = node.tensor("value")
    if value is not None:
        return value
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for key in (name, f"{name}s"):
            if node.get(key) is not None:
                return torch.tensor(node.get(key), dtype=dtype)
    raise node.refuse("a value that is no tensor")


@_operator("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Any) -> Any:
    value = node.tensor("value")
    fill = torch.zeros(1) if value is None else value
    return torch.full(tuple(node.const(0)), fill.item(), dtype=fill.dtype)


@_operator("Range")
def _range(node: Node, start: Any, limit: Any, delta: Any) -> Any:
    return torch.arange(node.const(0), node.const(1), node.const(2), dtype=node.dtype(0))


@_operator("Reshape")
def _reshape(node: Node, x: Any, shape: Any) -> Any:
    wanted = node.const(1)
    if not node.get("allowzero", 0):
        wanted = [node.shape(0)[i] if size == 0 else size for i, size in enumerate(wanted)]
    return torch.reshape(x, tuple(wanted))


@_operator("Flatten")
def _flatten(node: Node, x: Any) -> Any:
    shape = node.shape(0)
    axis = node.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return torch.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


@_operator("Transpose")
def _transpose(node: Node, x: Any) -> Any:
    return torch.permute(x, tuple(node.get("perm", range(len(node.shape(0)))[::-1])))


@_operator("Squeeze")
def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = node.axes(1)
    return torch.squeeze(x) if chosen is None else torch.squeeze(x, tuple(chosen))


@_operator("Unsqueeze")
def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = node.axes(1)
    rank = len(node.shape(0)) + len(chosen)
    shape = list(node.shape(0))
    for axis in sorted(axis % rank for axis in chosen):
        shape.insert(axis, 1)
    return torch.reshape(x, tuple(shape))


@_operator("Expand")
def _expand(node: Node, x: Any, shape: Any) -> Any:
    return torch.broadcast_to(x, np.broadcast_shapes(node.shape(0), tuple(node.const(1))))


@_operator("Tile")
def _tile(node: Node, x: Any, repeats: Any) -> Any:
    return torch.tile(x, tuple(node.const(1)))


@_operator("Concat")
def _concat(node: Node, *values: Any) -> Any:
    return torch.cat(values, dim=node.get("axis"))


@_operator("Split")
def _split(node: Node, x: Any, sizes: Any = None) -> Any:
    axis = node.get("axis", 0)
    lengths = node.const(1, node.get("split"))
    if lengths is None:
        count = node.get("num_outputs", len(node.proto.output))
        each = -(-node.shape(0)[axis] // count)
        lengths = [each] * (count - 1) + [node.shape(0)[axis] - each * (count - 1)]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return tuple(torch.narrow(x, axis, start, length) for start, length in zip(starts, lengths, strict=True))


@_operator("Slice")
def _slice(node: Node, x: Any, *bounds: Any) -> Any:
    starts, ends = node.const(1, node.get("starts")), node.const(2, node.get("ends"))
    axes = node.const(3, node.get("axes")) or list(range(len(starts)))
    steps = node.const(4) or [1] * len(starts)
    index: list[slice] = [slice(None)] * len(node.shape(0))
    flipped = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = node.shape(0)[axis]
        if step < 0:  # torch has no steps backwards
            first, last, step = slice(start, end, step).indices(size)
            taken = range(first, last, step)
            start, end, step = (taken[-1], taken[0] + 1, -step) if taken else (0, 0, 1)
            flipped.append(axis)
        index[axis] = slice(*slice(start, end, step).indices(size))
    x = x[tuple(index)]
    return torch.flip(x, flipped) if flipped else x


@_operator("Gather")
def _gather(node: Node, x: Any, indices: Any) -> Any:
    axis = node.get("axis", 0) % len(node.shape(0))
    size = node.shape(0)[axis]
    if node.is_const(1):
        chosen = node.const(1)
        if isinstance(chosen, int):
            return torch.select(x, axis, chosen % size)
    shape = (*node.shape(0)[:axis], *node.shape(1), *node.shape(0)[axis + 1 :])
    flat = torch.reshape(indices, (-1,)).to(torch.int64)
    return torch.reshape(torch.index_select(x, axis, torch.where(flat < 0, flat + size, flat)), shape)


@_operator("Pad")
def _pad(node: Node, x: Any, *rest: Any) -> Any:
    rank, mode = len(node.shape(0)), node.get("mode", "constant")
    pads = node.const(1, node.get("pads"))
    axes = [axis % rank for axis in node.const(3, list(range(rank)))]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    if mode == "constant":
        return F.pad(x, _torch_pads(before, after), value=node.number(2, node.get("value", 0.0)))
    if mode not in ("reflect", "edge") or any(before[:2]) or any(after[:2]) or rank not in (3, 4, 5):
        raise node.refuse(f"mode {mode!r} on these dimensions")
    return F.pad(x, _torch_pads(before[2:], after[2:]), mode="reflect" if mode == "reflect" else "replicate")


@_operator("DepthToSpace")
def _depth_to_space(node: Node, x: Any) -> Any:
    b, c, h, w = node.shape(0)
    n = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, n)
    parts = torch.permute(torch.reshape(x, (b, n, n, c // n**2, h, w)), (0, 3, 4, 1, 5, 2))
    return torch.reshape(parts, (b, c // n**2, h * n, w * n))


@_operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Any) -> Any:
    b, c, h, w = node.shape(0)
    n = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, n)
    parts = torch.permute(torch.reshape(x, (b, c, h // n, n, w // n, n)), (0, 3, 5, 1, 2, 4))
    return torch.reshape(parts, (b, c * n**2, h // n, w // n))


@_operator("Resize", "Upsample")
def _resize(node: Node, x: Any, *rest: Any) -> Any:
    shape = node.shape(0)
    old = node.kind == "Upsample" or node.opset < 11
    scales = (node.const(1) if node.has(1) else node.get("scales")) if old else node.const(2)
    sizes = None if old else node.const(3)
    mode = node.get("mode", "nearest")
    where = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    if node.get("axes") or node.get("antialias", 0) or node.get("exclude_outside", 0) or len(shape) != 4:
        raise node.refuse("axes, antialias, exclude_outside or other than 4 dimensions")
    out = sizes or [math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)]
    if tuple(out[:2]) != shape[:2]:
        raise node.refuse("a change of batch or channels")
    whole = all(big % small == 0 for big, small in zip(out[2:], shape[2:], strict=True))
    if sizes is None and not all(b == s * scale for b, s, scale in zip(out, shape, scales, strict=True)):
        raise node.refuse("scales that leave a fraction of a pixel")
    if mode == "nearest":
        # torch: pixel i is that at floor(i * in / out). For whole factors all usual ways to round agree with it.
        floor_asymmetric = where == "asymmetric" and (old or node.get("nearest_mode") == "floor")
        usual = whole and where in ("half_pixel", "pytorch_half_pixel") and _rounds_half_down(node)
        if not (floor_asymmetric or usual):
            raise node.refuse(f"nearest, {where}, {node.get('nearest_mode', 'round_prefer_floor')}")
        return F.interpolate(x, size=tuple(out[2:]), mode="nearest")
    kinds = {"linear": "bilinear", "cubic": "bicubic"}
    corners = where == "align_corners"
    # despite its name that mode is not torch's where one pixel is left
    half = where == "half_pixel" or (where == "pytorch_half_pixel" and 1 not in out[2:])
    if mode not in kinds or not (corners or half):
        raise node.refuse(f"{mode}, {where}")
    if mode == "cubic" and node.get("cubic_coeff_a", -0.75) != -0.75:
        raise node.refuse("another cubic_coeff_a than -0.75")
    return F.interpolate(x, size=tuple(out[2:]), mode=kinds[mode], align_corners=corners)


def _rounds_half_down(node: Node) -> bool:
    return node.get("nearest_mode", "round_prefer_floor") in ("round_prefer_floor", "round_prefer_ceil")


# reductions and the rest ----------------------------------------------------------------------------------------------

_REDUCTIONS: Mapping[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceMean": lambda x, dim, keep: torch.mean(x, dim=dim, keepdim=keep),
    "ReduceSum": lambda x, dim, keep: torch.sum(x, dim=dim, keepdim=keep),
    "ReduceMax": lambda x, dim, keep: torch.amax(x, dim=dim, keepdim=keep),
    "ReduceMin": lambda x, dim, keep: torch.amin(x, dim=dim, keepdim=keep),
    "ReduceL1": lambda x, dim, keep: torch.sum(torch.abs(x), dim=dim, keepdim=keep),
    "ReduceL2": lambda x, dim, keep: torch.sqrt(torch.sum(x * x, dim=dim, keepdim=keep)),
    "ReduceSumSquare": lambda x, dim, keep: torch.sum(x * x, dim=dim, keepdim=keep),
    "ReduceLogSumExp": lambda x, dim, keep: torch.logsumexp(x, dim=dim, keepdim=keep),
}


@_operator(*_REDUCTIONS)
def _reduce(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = node.axes(1)
    if not chosen:
        if node.get("noop_with_empty_axes", 0):
            if node.kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
                return x
            raise node.refuse("noop_with_empty_axes")
        chosen = list(range(len(node.shape(0))))
    return _REDUCTIONS[node.kind](x, list(chosen), bool(node.get("keepdims", 1)))


@_operator("ArgMax", "ArgMin")
def _arg(node: Node, x: Any) -> Any:
    if node.get("select_last_index", 0):
        raise node.refuse("select_last_index")
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return function(x, dim=node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))


@_operator("Einsum")
def _einsum(node: Node, *values: Any) -> Any:
    return torch.einsum(node.get("equation"), *values)


def _padding(
    node: Node, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Pixels before and after each spatial dimension."""
    rank, auto = len(kernel), node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = list(node.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    totals = [
        max((-(-size // step) - 1) * step + (width - 1) * gap + 1 - size, 0)
        for size, width, step, gap in zip(node.shape(0)[2:], kernel, stride, dilation, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _torch_pads(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Last dimension first, before and after in turn: the order of `torch.nn.functional.pad`."""
    pairs = list(zip(before, after, strict=True))[::-1]
    return tuple(size for pair in pairs for size in pair)


def live_peak(module: fx.GraphModule, inputs: Sequence[Tensor]) -> int:
    """Most bytes of inputs and intermediate results alive at once, as `module` frees each after its last use.

    A view and what it views count once; weights and the operators' own work space do not count. Nothing is computed.

    Args:
        module: What `to_torch` made.
        inputs: Of the shapes that it is run with; may be on any device.
    """
    last_use = {used: node for node in module.graph.nodes for used in node.all_input_nodes}
    weights = {name: _like(value) for name, value in module.named_buffers()}
    kept = {value.untyped_storage()._cdata for value in weights.values()}
    values: dict[fx.Node, Tensor] = {}
    feeds = iter(inputs)
    peak = 0
    for node in module.graph.nodes:
        if node.op == "output":
            break
        if node.op == "get_attr":
            values[node] = weights[node.target]
        elif node.op == "placeholder":
            values[node] = _like(next(feeds))
        else:
            arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda used: values[used])
            function = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
            values[node] = function(*arguments, **named)
        storages = {s._cdata: s.nbytes() for value in values.values() for s in [value.untyped_storage()]}
        peak = max(peak, sum(size for key, size in storages.items() if key not in kept))
        for used in [used for used in values if used is not node and last_use.get(used) is node]:
            del values[used]
    return peak


def _like(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
