"""What an ONNX file says about itself: a hash of its structure, counts, shapes. Needs no runtime and no torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import InvalidModel

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, Sequence[int]]
_Dims = tuple[int | None, ...] | None

# the order of their inputs changes nothing but the names; Concat's and Sub's does
_COMMUTATIVE = frozenset({"Add", "Mul", "Sum", "Max", "Min", "Mean", "And", "Or", "Xor", "Equal"})
_FEW = 64  # integers in a constant that may be a shape, an axis or an index, hence structure and not a weight


@dataclass(frozen=True)
class ModelFacts:
    """Counted from a file.

    Attributes:
        graph_hash: See `graph_hash`.
        model_bytes: Size of the file, external data not included.
        weights_bytes: Of all initializers.
        params: Numbers in floating-point initializers, folded norms included.
        macs: Multiply-accumulates of convolutions and matrix products; None where a shape is not known.
        nodes: Nodes of the main graph.
        operators: How many of each type.
        opset, ir_version: Of the file.
        inputs: Shape of each input that is no initializer; None for a dynamic dimension.
        producer: Name and version of what wrote it.
    """

    graph_hash: str
    model_bytes: int
    weights_bytes: int
    params: int
    macs: int | None
    nodes: int
    operators: Mapping[str, int]
    opset: int
    ir_version: int
    inputs: Mapping[str, tuple[int | None, ...]]
    producer: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_model(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """An ONNX model from a file.

    Args:
        path: The file.
        weights: Whether to read weights that lie in files of their own.

    Raises:
        InvalidModel: It does not exist, is no ONNX model, or its external data is missing.
    """
    import onnx

    if not path.is_file():
        raise InvalidModel(f"{path}: no such file; an ONNX model is wanted")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises what it likes
        raise InvalidModel(f"{path}: not an ONNX model ({_first_line(error)})") from error
    if not model.graph.node or not model.opset_import:
        raise InvalidModel(f"{path}: not an ONNX model: it has no {'nodes' if model.opset_import else 'opset'}")
    folder = path.parent
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            named = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            if not (folder / named).is_file():
                raise InvalidModel(
                    f"{path}: the weights of {tensor.name!r} lie in {named!r}, which is not beside it; "
                    "copy that file, too"
                )
    return onnx.load(path) if weights else model


def model_facts(path: Path, shapes: Shapes | None = None) -> ModelFacts:
    """What a file says about itself.

    Args:
        path: An ONNX file.
        shapes: Static shapes of inputs with dynamic ones, by name.

    Raises:
        InvalidModel: See `read_model`; or a shape that names no input or does not fit.
    """
    model = read_model(path)
    inputs = input_shapes(model)
    set_shapes(model, shapes or {}, str(path))
    return ModelFacts(
        graph_hash=graph_hash(model),
        model_bytes=path.stat().st_size,
        weights_bytes=sum(_size(t) * _item_bytes(t) for t in model.graph.initializer),
        params=count_params(model),
        macs=count_macs(model),
        nodes=len(model.graph.node),
        operators=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        opset=max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0),
        ir_version=model.ir_version,
        inputs=inputs,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
    )


def has_external_data(model: onnx.ModelProto) -> bool:
    """Whether weights lie in files of their own."""
    import onnx

    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shape of each input that is no initializer; None for a dynamic dimension."""
    known = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _dimensions(value) for value in model.graph.input if value.name not in known}


def set_shapes(model: onnx.ModelProto, shapes: Shapes, name: str = "the model") -> None:
    """Make inputs static, in place.

    Raises:
        InvalidModel: A shape names no input of the model, or does not fit the declared one.
    """
    declared = input_shapes(model)
    for wanted, shape in shapes.items():
        if wanted not in declared:
            raise InvalidModel(f"{name} has no input {wanted!r}; its inputs are {', '.join(declared)}")
        now = declared[wanted]
        if len(now) != len(shape) or any(a not in (None, b) for a, b in zip(now, shape, strict=True)):
            raise InvalidModel(f"{name}: input {wanted!r} has the shape {list(now)}; {list(shape)} does not fit it")
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dimension.dim_value = size


def graph_hash(model: onnx.ModelProto) -> str:
    """64 hexadecimal digits for the structure of a model, without the values of its weights.

    Names, the order of nodes and the order of a sum's terms do not matter; operators, attributes, shapes and integer
    constants do. Every node is hashed with all that it is computed from, then once more with what is computed from it
    next, so that one node that is used twice differs from two equal ones.
    """
    values: dict[str, str] = {"": "nothing"}
    for i, (name, shape) in enumerate(input_shapes(model).items()):
        values[name] = _digest("input", str(i), str(shape))
    for tensor in model.graph.initializer:
        values[tensor.name] = _constant(tensor)
    nodes = _live(model)
    consumers: dict[str, list[str]] = defaultdict(list)
    hashes = []
    for node in nodes:
        given = [values.get(name, "outer") for name in node.input]
        if node.op_type in _COMMUTATIVE:
            given.sort()
        told = _digest(node.domain, node.op_type, *given, *sorted(map(_attribute, node.attribute)))
        hashes.append(told)
        for i, name in enumerate(node.output):
            values[name] = _digest(told, str(i))
        for name in node.input:
            consumers[name].append(told)
    used = [
        _digest(told, *sorted(user for name in node.output for user in consumers[name]))
        for node, told in zip(nodes, hashes, strict=True)
    ]
    outputs = [values.get(value.name, "outer") for value in model.graph.output]
    return _digest(*sorted(used), "outputs", *outputs)


def count_params(model: onnx.ModelProto) -> int:
    """Numbers in floating-point initializers, folded norms included."""
    return sum(_size(tensor) for tensor in model.graph.initializer if _is_float(tensor))


def count_macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul; None where a shape is not known."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: _dimensions(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        left, right, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
        macs = _macs(node, left, right, out)
        if macs is None:
            return None
        total += macs
    return total


def _macs(node: onnx.NodeProto, left: _Dims, right: _Dims, out: _Dims) -> int | None:
    if left is None or right is None or out is None:
        return None
    if any(size is None for size in (*left, *right, *out)):
        return None
    return _product_macs(node, *(tuple(int(size or 0) for size in shape) for shape in (left, right, out)))


def _product_macs(node: onnx.NodeProto, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> int:
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * (left[0] if transposed else left[1])
    return math.prod(out) * left[-1]


def _live(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that reach an output, each after those that it needs."""
    made = {name: node for node in model.graph.node for name in node.output if name}
    order: list[onnx.NodeProto] = []
    seen: set[int] = set()
    stack: list[tuple[onnx.NodeProto, bool]] = [
        (made[value.name], False) for value in reversed(model.graph.output) if value.name in made
    ]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(made[name], False) for name in node.input if name in made]
    return order


def _constant(tensor: onnx.TensorProto) -> str:
    import onnx

    shape = str(tuple(tensor.dims))
    if _is_float(tensor) or _size(tensor) > _FEW or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _digest("weight", str(tensor.data_type), shape)
    return _digest("constant", str(tensor.data_type), shape, str(onnx.numpy_helper.to_array(tensor).tolist()))


def _attribute(attribute: onnx.AttributeProto) -> str:
    if attribute.HasField("t"):
        return f"{attribute.name}={_constant(attribute.t)}"
    copy = type(attribute)()
    copy.CopyFrom(attribute)
    copy.doc_string = ""
    return _digest(copy.SerializeToString(deterministic=True).hex())


def _is_float(tensor: onnx.TensorProto) -> bool:
    import onnx

    kinds = onnx.TensorProto
    return tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16)


def _item_bytes(tensor: onnx.TensorProto) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    lines: Iterable[str] = str(error).splitlines()
    return next(iter(lines), type(error).__name__)
