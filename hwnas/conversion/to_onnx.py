"""Torch modules as ONNX graphs, node by node: milliseconds, where torch's own exporters take seconds.

`torch.fx` traces the module, one run gives every shape, and each layer or function of the lists below is written with
`OnnxWriter`: opset 18, static shapes, batch norms folded into the convolutions before them. What is not on the lists is
refused with its name; `hwnas.conversion.module` then goes on with torch's exporters.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hwnas.errors import HwnasError
from hwnas.spaces.onnx_writer import INPUT, OnnxWriter

if TYPE_CHECKING:
    import onnx

Handler = Callable[..., Any]


class CannotLower(HwnasError):
    """This exporter does not know something that the module does; another one may."""


def to_onnx(module: nn.Module, example: Tensor, *, name: str = "network") -> onnx.ModelProto:
    """A module in evaluation mode as an ONNX model from `input` to `output`, both float32, shapes static.

    Args:
        module: Not changed; with one tensor in and one out.
        example: An input; its shape becomes the model's.
        name: Of the graph.

    Raises:
        CannotLower: `torch.fx` cannot trace the module (its control flow depends on data), or a layer, function or
            type of number is not covered; names it.
    """
    if example.dtype != torch.float32:
        raise CannotLower(f"an input of float32 is wanted, got {example.dtype}")
    with evaluating(module):
        return _Lowering(module, example).model(name)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every part gets back the mode that it had."""
    was = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in was.items():
            part.training = training


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input.

    Attributes:
        name: In the graph.
        shape: Static.
    """

    name: str
    shape: tuple[int, ...]


class _Shapes(fx.Interpreter):
    """Runs the module once: shapes of what depends on the input, values of all else."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # fx would add a page to every message
        self.dynamic: dict[fx.Node, Any] = {}  # shape, or list of shapes
        self.fixed: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        depends = n.op == "placeholder" or any(used in self.dynamic for used in n.all_input_nodes)
        if not depends:
            self.fixed[n] = result
        elif isinstance(result, Tensor) or _is_tensors(result):
            self.dynamic[n] = result.shape if isinstance(result, Tensor) else [part.shape for part in result]
            for part in [result] if isinstance(result, Tensor) else result:
                if part.dtype != torch.float32 and n.op != "output":
                    raise CannotLower(f"{_title(n)} gives {part.dtype}; float32 alone is written")
        elif n.op != "output":
            if not (n.target in _OF_SHAPE or (n.target is getattr and n.args[1] in _OF_SHAPE)):
                raise CannotLower(f"{_title(n)} gives a {type(result).__name__} that may depend on the data")
            self.fixed[n] = result
        return result


# what may be asked of a tensor without asking for its numbers
_OF_SHAPE = ("size", "dim", "ndimension", "numel", "nelement", "shape", "ndim", "dtype", "device", "is_floating_point")


def _is_tensors(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(part, Tensor) for part in value)


def _title(node: fx.Node) -> str:
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{what} ({node.name})"


class _Lowering:
    """One module on its way; what handlers write through.

    Attributes:
        writer: The graph.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        try:
            tracer = fx.Tracer()
            # the layers of torch are known by their types, also where one is all that there is
            root = nn.Sequential(module) if tracer.is_leaf_module(module, "") else module
            traced = fx.GraphModule(root, tracer.trace(root))
        except Exception as error:  # tracing runs the module's own code, which may raise anything
            raise CannotLower(f"torch.fx cannot trace the module: {_first_line(error)}") from error
        self.writer = OnnxWriter()
        self._traced = traced
        self._modules = dict(traced.named_modules())
        self._input_shape = tuple(example.shape)
        self._shapes = _Shapes(traced)
        self._values: dict[fx.Node, Any] = {}
        self._constants = 0
        with torch.no_grad():
            self._result = self._shapes.run(example)

    def model(self, name: str) -> onnx.ModelProto:
        if not isinstance(self._result, Tensor):
            raise CannotLower("one tensor is wanted as output")
        folded = self._folded()
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                if self._values:
                    raise CannotLower("one tensor is wanted as input")
                self._values[node] = Value(INPUT, self._input_shape)
            elif node.op == "output":
                result = self._values.get(node.args[0])
                if not isinstance(result, Value):
                    raise CannotLower("the output does not depend on the input")
                return self.writer.model(name, self._named(result), self._input_shape, result.shape, exporter="fx")
            elif node in self._shapes.dynamic:
                self._values[node] = self._lower(node, folded)
        raise CannotLower("the module gives nothing")

    def _named(self, result: Value) -> str:
        """The result as the output of a node of its own."""
        return self.writer.node("Identity", [INPUT]) if result.name == INPUT else result.name

    def _lower(self, node: fx.Node, folded: dict[fx.Node, nn.Module]) -> Any:
        arguments, named = fx.node.map_arg((node.args, node.kwargs), self._argument)
        shape = self._shapes.dynamic[node]
        if node.op == "call_module":
            layer = self._modules[str(node.target)]
            if folded.get(node) is layer:
                return arguments[0]  # a norm that its convolution has taken in
            handler = _LAYERS.get(type(layer))
            if handler is None:
                raise CannotLower(f"the layer {type(layer).__name__} ({node.target}) is not covered")
            norm = folded.get(node)
            extra = {"norm": norm} if norm is not None else {}
            made = handler(_At(self, node, shape), layer, *arguments, **named, **extra)
        else:
            handler = _METHODS.get(str(node.target)) if node.op == "call_method" else _function_handler(node.target)
            if handler is None:
                raise CannotLower(f"{_title(node)} is not covered")
            try:
                made = handler(_At(self, node, shape), *arguments, **named)
            except TypeError as error:
                raise CannotLower(f"{_title(node)} with these arguments is not covered: {error}") from error
        if isinstance(made, str):
            return Value(made, tuple(shape))
        return made

    def _argument(self, node: fx.Node) -> Any:
        return self._values[node] if node in self._values else self._shapes.fixed[node]

    def _folded(self) -> dict[fx.Node, nn.Module]:
        """Convolutions and the norm each takes in, both ways: by the convolution's node and by the norm's."""
        found: dict[fx.Node, nn.Module] = {}
        for node in self._traced.graph.nodes:
            if node.op != "call_module" or type(self._modules[str(node.target)]) not in _NORMS:
                continue
            before = node.args[0]
            if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
                continue
            norm = self._modules[str(node.target)]
            if type(self._modules[str(before.target)]) in _CONVOLUTIONS and norm.running_mean is not None:
                found[before] = found[node] = norm
        return found

    def constant(self, value: Any) -> str:
        """A constant of its own name."""
        self._constants += 1
        return self.writer.constant(f"constant_{self._constants}", np.asarray(value))


class _At:
    """The writer at one node: its name, and the shape of its result."""

    def __init__(self, lowering: _Lowering, node: fx.Node, shape: Any) -> None:
        self._lowering, self.name, self.shape = lowering, node.name, shape
        self.target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # a layer that is called twice has its weights in the file once
        self.owner = self.target if node.op == "call_module" else node.name
        self.writer = lowering.writer

    def add(self, kind: str, *values: Any, **attributes: Any) -> str:
        """A node; tensors and numbers among its inputs become constants."""
        return self.writer.node(kind, [self.value(value) for value in values], **attributes)

    def shared(self, kind: str, x: Value, **attributes: Any) -> str:
        return self.writer.shared(kind, x.name, **attributes)

    def value(self, value: Any) -> str:
        if isinstance(value, Value):
            return value.name
        if isinstance(value, str):
            return value
        if isinstance(value, Tensor):
            return self._lowering.constant(_array(value).astype(np.float32))  # as torch's promotion does
        if isinstance(value, bool | int | float):
            return self._lowering.constant(np.float32(value))
        raise CannotLower(f"a {type(value).__name__} as an operand ({self.name}) is not covered")

    def whole(self, *sizes: int) -> str:
        """Whole numbers as a constant: a shape, axes, bounds."""
        return self._lowering.constant(np.array(sizes, dtype=np.int64))

    def weight(self, part: str, value: NDArray[Any]) -> str:
        return self.writer.constant(f"{self.owner}.{part}", value.astype(np.float32))

    def reshape(self, x: Value | str) -> str:
        return self.add("Reshape", x, self.whole(*self.shape))

    def refuse(self, what: str) -> CannotLower:
        return CannotLower(f"{self.target} ({self.name}) with {what} is not covered")


def _function_handler(target: Any) -> Handler | None:
    if getattr(target, "__module__", "") == "torchvision.ops.stochastic_depth":
        return _nothing  # drops nothing in evaluation mode; torchvision asks fx not to look inside
    return _FUNCTIONS.get(target)


_LAYERS: dict[type, Handler] = {}
_FUNCTIONS: dict[Any, Handler] = {}
_METHODS: dict[str, Handler] = {}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _layer(*kinds: type) -> Callable[[Handler], Handler]:
    def keep(handler: Handler) -> Handler:
        _LAYERS.update(dict.fromkeys(kinds, handler))
        return handler

    return keep


def _function(*targets: Any) -> Callable[[Handler], Handler]:
    """Functions, and methods by name."""

    def keep(handler: Handler) -> Handler:
        for target in targets:
            if isinstance(target, str):
                _METHODS[target] = handler
            else:
                _FUNCTIONS[target] = handler
        return handler

    return keep


# layers with weights --------------------------------------------------------------------------------------------------


@_layer(*_CONVOLUTIONS)
def _conv(at: _At, layer: Any, x: Value, norm: Any = None) -> Any:
    if layer.padding_mode != "zeros":
        raise at.refuse(f"padding_mode {layer.padding_mode!r}")
    weight = _array(layer.weight)
    bias = None if layer.bias is None else _array(layer.bias)
    if norm is not None:
        at.owner = f"{at.name}.folded"  # called twice, it may have another norm behind it each time
        # w' = w * g, b' = shift + (b - mean) * g, g = scale / sqrt(var + eps); in double precision, rounded once
        scale, shift, mean, variance = _statistics(norm)
        factor = scale / np.sqrt(variance + norm.eps)
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        bias = shift + ((0.0 if bias is None else bias) - mean) * factor
    inputs = [x.name, at.weight("weight", weight)]
    if bias is not None:
        inputs.append(at.weight("bias", bias))
    return at.writer.node(
        "Conv",
        inputs,
        at.name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=_pads(layer),
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _pads(layer: Any) -> list[int]:
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return list(layer.padding) * 2


@_layer(nn.ConvTranspose1d, nn.ConvTranspose2d)
def _conv_transpose(at: _At, layer: Any, x: Value) -> Any:
    inputs = [x.name, at.weight("weight", _array(layer.weight))]
    if layer.bias is not None:
        inputs.append(at.weight("bias", _array(layer.bias)))
    return at.writer.node(
        "ConvTranspose",
        inputs,
        at.name,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=list(layer.padding) * 2,
        output_padding=list(layer.output_padding),
        dilations=list(layer.dilation),
        group=layer.groups,
    )


@_layer(*_NORMS)
def _batch_norm(at: _At, layer: Any, x: Value) -> Any:
    if layer.running_mean is None:
        raise at.refuse("statistics of the batch")
    parts = [part.astype(np.float32) for part in _statistics(layer)]
    return at.writer.norm(x.name, at.name, parts[0], parts[1], parts[2], parts[3], layer.eps)


def _statistics(norm: Any) -> tuple[NDArray[Any], ...]:
    """Scale, shift, mean and variance in double precision."""
    mean, variance = (_array(value).astype(np.float64) for value in (norm.running_mean, norm.running_var))
    if norm.weight is None:
        return np.ones_like(mean), np.zeros_like(mean), mean, variance
    return _array(norm.weight).astype(np.float64), _array(norm.bias).astype(np.float64), mean, variance


@_layer(nn.Linear)
def _linear_layer(at: _At, layer: Any, x: Value) -> Any:
    return _linear(at, x, layer.weight, layer.bias)


@_function(F.linear)
def _linear(at: _At, x: Value, weight: Tensor, bias: Tensor | None = None) -> Any:
    if len(x.shape) == 2:
        zeros = np.zeros(weight.shape[0], dtype=np.float32)
        return at.writer.linear(x.name, at.name, _array(weight), zeros if bias is None else _array(bias))
    product = at.add("MatMul", x, at.weight("weight", _array(weight).T))
    return product if bias is None else at.add("Add", product, at.weight("bias", _array(bias)))


@_layer(nn.LayerNorm)
def _layer_norm_layer(at: _At, layer: Any, x: Value) -> Any:
    return _layer_norm(at, x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


@_function(F.layer_norm)
def _layer_norm(
    at: _At, x: Value, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    shape = tuple(normalized_shape)
    ones, zeros = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    scale = at.weight("scale", ones if weight is None else _array(weight))
    shift = at.weight("shift", zeros if bias is None else _array(bias))
    return at.add("LayerNormalization", x, scale, shift, axis=-len(shape), epsilon=eps)


@_layer(nn.GroupNorm)
def _group_norm(at: _At, layer: Any, x: Value) -> Any:
    groups, channels = layer.num_groups, x.shape[1]
    ones, zeros = np.ones(groups, dtype=np.float32), np.zeros(groups, dtype=np.float32)
    grouped = at.add("Reshape", x, at.whole(x.shape[0], groups, -1))
    normed = at.add(
        "InstanceNormalization", grouped, at.weight("ones", ones), at.weight("zeros", zeros), epsilon=layer.eps
    )
    back = at.reshape(normed)
    if layer.weight is None:
        return back
    shape = (channels, *[1] * (len(x.shape) - 2))
    scaled = at.add("Mul", back, at.weight("scale", _array(layer.weight).reshape(shape)))
    return at.add("Add", scaled, at.weight("shift", _array(layer.bias).reshape(shape)))


@_layer(nn.PReLU)
def _prelu(at: _At, layer: Any, x: Value) -> Any:
    return at.add("PRelu", x, at.weight("slope", _array(layer.weight).reshape(-1, *[1] * (len(x.shape) - 2))))


# activations ----------------------------------------------------------------------------------------------------------


def _unary(kind: str, **attributes: Any) -> Handler:
    return lambda at, x, inplace=False: at.shared(kind, x, **attributes)


def _activation(layer: type | None, handler: Handler, *functions: Any) -> None:
    """A layer without settings, and its functions."""
    if layer is not None:
        _LAYERS[layer] = lambda at, made, x: handler(at, x)
    _function(*functions)(handler)


def _relu6(at: _At, x: Value, inplace: bool = False) -> Any:
    return at.add("Clip", x, 0.0, 6.0)


def _silu(at: _At, x: Value, inplace: bool = False) -> Any:
    return at.add("Mul", x, at.shared("Sigmoid", x))


_activation(nn.ReLU, _unary("Relu"), F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_activation(nn.Sigmoid, _unary("Sigmoid"), torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_")
_activation(nn.Tanh, _unary("Tanh"), torch.tanh, F.tanh, "tanh")
_activation(nn.Hardswish, _unary("HardSwish"), F.hardswish)
_activation(nn.Hardsigmoid, _unary("HardSigmoid", alpha=1 / 6, beta=0.5), F.hardsigmoid)
_activation(nn.Mish, _unary("Mish"), F.mish)
_activation(nn.Softsign, _unary("Softsign"), F.softsign)
_activation(nn.ReLU6, _relu6, F.relu6)
_activation(nn.SiLU, _silu, F.silu)
for _kind, _targets in {
    "Abs": (torch.abs, operator.abs, "abs"),
    "Cos": (torch.cos, "cos"),
    "Erf": (torch.erf, "erf"),
    "Exp": (torch.exp, "exp"),
    "Log": (torch.log, "log"),
    "Neg": (torch.neg, operator.neg, "neg"),
    "Reciprocal": (torch.reciprocal, "reciprocal"),
    "Sin": (torch.sin, "sin"),
    "Sqrt": (torch.sqrt, "sqrt"),
}.items():
    _activation(None, _unary(_kind), *_targets)


@_layer(nn.LeakyReLU)
def _leaky_relu_layer(at: _At, layer: Any, x: Value) -> Any:
    return at.shared("LeakyRelu", x, alpha=layer.negative_slope)


@_layer(nn.ELU)
def _elu_layer(at: _At, layer: Any, x: Value) -> Any:
    return at.shared("Elu", x, alpha=layer.alpha)


@_layer(nn.Softplus)
def _softplus_layer(at: _At, layer: Any, x: Value) -> Any:
    if layer.beta != 1:
        raise at.refuse(f"beta {layer.beta}")
    return at.shared("Softplus", x)


@_layer(nn.GELU)
def _gelu_layer(at: _At, layer: Any, x: Value) -> Any:
    return _gelu(at, x, layer.approximate)


@_function(F.gelu)
def _gelu(at: _At, x: Value, approximate: str = "none") -> Any:
    if approximate == "tanh":  # Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2
        cubed = at.add("Mul", at.add("Mul", at.add("Mul", x, x), x), 0.044715)
        inner = at.add("Mul", at.add("Add", x, cubed), math.sqrt(2 / math.pi))
        return at.add("Mul", at.add("Mul", x, 0.5), at.add("Add", at.add("Tanh", inner), 1.0))
    erf = at.add("Erf", at.add("Mul", x, math.sqrt(0.5)))
    return at.add("Mul", at.add("Mul", x, 0.5), at.add("Add", erf, 1.0))


@_layer(nn.Softmax, nn.LogSoftmax)
def _softmax_layer(at: _At, layer: Any, x: Value) -> Any:
    if layer.dim is None:
        raise at.refuse("no dim")
    return at.shared("Softmax" if isinstance(layer, nn.Softmax) else "LogSoftmax", x, axis=layer.dim)


@_function(F.softmax, torch.softmax, "softmax")
def _softmax(at: _At, x: Value, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return at.shared("Softmax", x, axis=dim)


@_function(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax(at: _At, x: Value, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return at.shared("LogSoftmax", x, axis=dim)


@_layer(nn.Hardtanh)
def _hardtanh_layer(at: _At, layer: Any, x: Value) -> Any:
    return at.add("Clip", x, layer.min_val, layer.max_val)


@_function(torch.clamp, "clamp", "clamp_")
def _clamp(at: _At, x: Value, min: float | None = None, max: float | None = None) -> Any:
    low, high = (-math.inf if min is None else min), (math.inf if max is None else max)
    return at.add("Clip", x, float(low), float(high))


@_layer(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
def _nothing_layer(at: _At, layer: Any, x: Value) -> Any:
    return x


@_function(F.dropout, F.dropout2d, "contiguous", "clone", "float", "detach", torch.clone)
def _nothing(at: _At, x: Value, *settings: Any, **named: Any) -> Any:
    return x


# pools ----------------------------------------------------------------------------------------------------------------


@_layer(nn.MaxPool1d, nn.MaxPool2d)
def _max_pool_layer(at: _At, layer: Any, x: Value) -> Any:
    if layer.return_indices:
        raise at.refuse("return_indices")
    return _max_pool(at, x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)


@_function(F.max_pool2d, torch.max_pool2d)
def _max_pool(
    at: _At,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    rank = len(x.shape) - 2
    return at.shared(
        "MaxPool",
        x,
        kernel_shape=_each(kernel_size, rank),
        strides=_each(stride or kernel_size, rank),
        pads=_each(padding, rank) * 2,
        dilations=_each(dilation, rank),
        ceil_mode=int(ceil_mode),
    )


@_layer(nn.AvgPool1d, nn.AvgPool2d)
def _average_pool_layer(at: _At, layer: Any, x: Value) -> Any:
    divisor = getattr(layer, "divisor_override", None)
    counted = layer.count_include_pad
    return _average_pool(at, x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, counted, divisor)


@_function(F.avg_pool2d)
def _average_pool(
    at: _At,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Any:
    rank = len(x.shape) - 2
    pads = _each(padding, rank)
    if divisor_override is not None or (ceil_mode and any(pads)):
        raise at.refuse("divisor_override, or ceil_mode and padding")
    return at.shared(
        "AveragePool",
        x,
        kernel_shape=_each(kernel_size, rank),
        strides=_each(stride or kernel_size, rank),
        pads=pads * 2,
        count_include_pad=int(count_include_pad and any(pads)),
        ceil_mode=int(ceil_mode),
    )


@_layer(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def _adaptive_layer(at: _At, layer: Any, x: Value) -> Any:
    return _adaptive(at, x, "Max" if "Max" in type(layer).__name__ else "Average")


@_function(F.adaptive_avg_pool2d, F.adaptive_avg_pool1d)
def _adaptive_average(at: _At, x: Value, output_size: Any) -> Any:
    return _adaptive(at, x, "Average")


def _adaptive(at: _At, x: Value, kind: str) -> Any:
    given, wanted = x.shape[2:], tuple(at.shape[2:])
    if set(wanted) == {1}:
        return at.shared(f"Global{kind}Pool", x)
    if any(size % parts for size, parts in zip(given, wanted, strict=True)):
        raise at.refuse(f"{list(given)} in {list(wanted)} uneven parts")
    size = [size // parts for size, parts in zip(given, wanted, strict=True)]
    return at.shared(f"{kind}Pool", x, kernel_shape=size, strides=size)


# arithmetic -----------------------------------------------------------------------------------------------------------


def _binary(kind: str) -> Handler:
    def write(at: _At, a: Any, b: Any, *, alpha: float = 1) -> Any:
        return at.add(kind, a, b if alpha == 1 else at.add("Mul", b, alpha))

    return write


_function(operator.add, operator.iadd, torch.add, "add", "add_")(_binary("Add"))
_function(operator.sub, operator.isub, torch.sub, "sub", "sub_")(_binary("Sub"))
_function(operator.mul, operator.imul, torch.mul, "mul", "mul_")(_binary("Mul"))
_function(torch.maximum)(_binary("Max"))
_function(torch.minimum)(_binary("Min"))
_function(operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")(_binary("MatMul"))


@_function(torch.einsum)
def _einsum(at: _At, equation: Any, *operands: Any) -> Any:
    if not isinstance(equation, str) or "..." in equation:
        raise at.refuse("an equation that is no text, or has an ellipsis")
    flat = operands[0] if len(operands) == 1 and isinstance(operands[0], tuple | list) else operands
    return at.add("Einsum", *flat, equation=equation)


@_function(operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")
def _divide(at: _At, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise at.refuse("rounding")
    return at.add("Div", a, b)


@_function(operator.pow, torch.pow, torch.square, "pow", "square")
def _power(at: _At, x: Any, exponent: Any = 2) -> Any:
    return at.add("Mul", x, x) if exponent == 2 and isinstance(x, Value) else at.add("Pow", x, exponent)


def _reduction(kind: str) -> Handler:
    def write(at: _At, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        rank = len(x.shape)
        axes = list(range(rank)) if dim is None else sorted(axis % rank for axis in _list(dim))
        if kind == "ReduceMean" and rank == 4 and axes == [2, 3]:
            pooled = at.shared("GlobalAveragePool", x)  # which more runtimes have a fast kernel for
            return pooled if keepdim else at.reshape(pooled)
        return at.add(kind, x, at.whole(*axes), keepdims=int(keepdim))

    return write


_function(torch.mean, "mean")(_reduction("ReduceMean"))
_function(torch.sum, "sum")(_reduction("ReduceSum"))
_function(torch.amax, "amax")(_reduction("ReduceMax"))
_function(torch.amin, "amin")(_reduction("ReduceMin"))


# shapes ---------------------------------------------------------------------------------------------------------------


@_layer(nn.Flatten, nn.Unflatten)
def _reshape_layer(at: _At, layer: Any, x: Value) -> Any:
    return _reshape(at, x)


@_function(
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, "flatten", "reshape", "view", "squeeze", "unsqueeze"
)
def _reshape(at: _At, x: Value, *sizes: Any, **named: Any) -> Any:
    """All of these keep the order of the numbers, and the shape after them is known."""
    if tuple(at.shape) == x.shape:
        return x
    if len(at.shape) == 2 and at.shape[0] == x.shape[0]:
        return at.shared("Flatten", x, axis=1)
    return at.reshape(x)


@_function(torch.permute, "permute")
def _permute(at: _At, x: Value, *dims: Any) -> Any:
    chosen = list(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else list(dims)
    return at.add("Transpose", x, perm=[axis % len(x.shape) for axis in chosen])


@_function(torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def _transpose(at: _At, x: Value, first: int, second: int) -> Any:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return at.add("Transpose", x, perm=order)


@_function("t", torch.t)
def _t(at: _At, x: Value) -> Any:
    return at.add("Transpose", x, perm=[1, 0][-len(x.shape) :])


@_function(torch.zeros_like, torch.ones_like)
def _like(at: _At, x: Value, **named: Any) -> Any:
    fill = np.float32(at.target == "ones_like")
    constant = at.weight("filled", np.full(tuple(at.shape), fill, dtype=np.float32))
    return Value(constant, tuple(at.shape))


@_function("expand", torch.broadcast_to)
def _expand(at: _At, x: Value, *sizes: Any) -> Any:
    return at.add("Expand", x, at.whole(*at.shape))


@_function(torch.cat, torch.concat)
def _cat(at: _At, tensors: Sequence[Any], dim: int = 0) -> Any:
    return at.add("Concat", *tensors, axis=dim)


@_function(torch.stack)
def _stack(at: _At, tensors: Sequence[Any], dim: int = 0) -> Any:
    return at.add("Concat", *[at.add("Unsqueeze", part, at.whole(dim)) for part in tensors], axis=dim)


@_function(torch.chunk, torch.split, "chunk", "split")
def _chunk(at: _At, x: Value, sizes: Any, dim: int = 0) -> Any:
    start, parts = 0, []
    for shape in at.shape:
        end = start + shape[dim]
        cut = at.add("Slice", x, at.whole(start), at.whole(end), at.whole(dim % len(x.shape)))
        parts.append(Value(cut, tuple(shape)))
        start = end
    return parts


@_function(operator.getitem)
def _getitem(at: _At, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):
        return x[index]
    chosen = [part for part in (index if isinstance(index, tuple) else (index,)) if part is not None]
    if not all(part is Ellipsis or isinstance(part, int | slice) for part in chosen):
        raise at.refuse("an index that is a tensor or list")
    if Ellipsis in chosen:
        place = chosen.index(Ellipsis)
        chosen[place : place + 1] = [slice(None)] * (len(x.shape) - len(chosen) + 1)
    bounds = []
    for axis, part in enumerate(chosen):
        size = x.shape[axis]
        if isinstance(part, int):
            bounds.append((axis, part % size, part % size + 1, 1))
        elif part != slice(None):
            start, stop, step = part.indices(size)
            bounds.append((axis, start, stop, step))
    name: Any = x
    if bounds:
        axes, starts, stops, steps = (at.whole(*column) for column in zip(*bounds, strict=True))
        name = at.add("Slice", x, starts, stops, axes, steps)
    cut_shape = tuple(len(range(x.shape[i])[p]) for i, p in enumerate(chosen) if isinstance(p, slice))
    same = cut_shape + x.shape[len(chosen) :] == tuple(at.shape) and not any(isinstance(p, int) for p in chosen)
    return name if same else at.reshape(name)


@_layer(nn.ZeroPad2d, nn.ConstantPad2d)
def _zero_pad_layer(at: _At, layer: Any, x: Value) -> Any:
    return _pad(at, x, layer.padding, "constant", getattr(layer, "value", 0.0))


@_layer(nn.ReflectionPad2d)
def _reflection_pad_layer(at: _At, layer: Any, x: Value) -> Any:
    return _pad(at, x, layer.padding, "reflect")


@_function(F.pad)
def _pad(at: _At, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in kinds:
        raise at.refuse(f"mode {mode!r}")
    # torch tells the last dimension first, before and after in turn
    before, after = list(pad[0::2])[::-1], list(pad[1::2])[::-1]
    free = [0] * (len(x.shape) - len(before))
    inputs = [x, at.whole(*free, *before, *free, *after)]
    if mode == "constant":
        inputs.append(at.value(float(value or 0.0)))
    return at.add("Pad", *inputs, mode=kinds[mode])


@_layer(nn.Upsample)
def _upsample_layer(at: _At, layer: Any, x: Value) -> Any:
    return _interpolate(at, x, layer.size, layer.scale_factor, layer.mode, layer.align_corners)


@_function(F.interpolate)
def _interpolate(
    at: _At,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    if len(x.shape) != 4 or antialias or mode not in ("nearest", "bilinear", "bicubic"):
        raise at.refuse(f"mode {mode!r}, antialias {antialias} in {len(x.shape) - 2} dimensions")
    if size is None and not recompute_scale_factor:
        scales = [float(factor) for factor in _each(scale_factor, 2)]
        if any(s * f != out for s, f, out in zip(x.shape[2:], scales, at.shape[2:], strict=True)):
            raise at.refuse("a scale that leaves a fraction of a pixel")
    where = "asymmetric" if mode == "nearest" else "align_corners" if align_corners else "half_pixel"
    attributes = {"nearest": {"mode": "nearest", "nearest_mode": "floor"}, "bilinear": {"mode": "linear"}}
    chosen = attributes.get(mode, {"mode": "cubic", "cubic_coeff_a": -0.75})
    return at.add("Resize", x, "", "", at.whole(*at.shape), coordinate_transformation_mode=where, **chosen)


@_layer(nn.PixelShuffle)
def _pixel_shuffle(at: _At, layer: Any, x: Value) -> Any:
    return at.add("DepthToSpace", x, blocksize=layer.upscale_factor, mode="CRD")


@_layer(nn.ChannelShuffle)
def _channel_shuffle(at: _At, layer: Any, x: Value) -> Any:
    b, c, h, w = x.shape
    parts = at.add("Reshape", x, at.whole(b, layer.groups, c // layer.groups, h, w))
    return at.reshape(at.add("Transpose", parts, perm=[0, 2, 1, 3, 4]))


def _each(size: Any, rank: int) -> list[Any]:
    return list(size) if isinstance(size, tuple | list) else [size] * rank


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _array(value: Tensor) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
