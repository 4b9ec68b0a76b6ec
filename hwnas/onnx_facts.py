"""What an ONNX file says about itself: a hash of its structure, counts, shapes. Needs no runtime and no torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.shapes import inputs_words, shape_words
from hwnas.errors import InvalidModel

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, Sequence[int]]
_Dims = tuple[int | None, ...] | None

# the order of their inputs changes nothing but the names; Concat's and Sub's does
_COMMUTATIVE = frozenset({"Add", "Mul", "Sum", "Max", "Min", "Mean", "And", "Or", "Xor", "Equal"})
_FEW = 64  # numbers in a constant that may be a shape, a scale or an index, hence structure and not a weight
GRAPH_HASH_VERSION = 2  # changes with what `graph_hash` covers: figures that are kept under an older hash are not found

# inputs by whose values the work does not change; a single number is no weight of a sum or product (1 and 0 vanish)
_SUMS = frozenset({"Add", "Sub", "Mul", "Div"})
_WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "InstanceNormalization"), (1, 2)),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "RMSNormalization"), (1, 2)),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), (1, 2, 3)),
    **dict.fromkeys(("MatMul", *_SUMS), (0, 1)),
    "BatchNormalization": (1, 2, 3, 4),
    "Gemm": (0, 1, 2),
    "PRelu": (1,),
}
# the same values in another form
_FORMS = frozenset({"Identity", "Cast", "Transpose"})
# results that may be another's memory, or a part of it, in another form
_VIEWS = _FORMS | frozenset({"CastLike", "Dropout", "Einsum", "Expand", "Flatten", "Gather", "If", "Reshape", "Slice"})
_VIEWS |= frozenset({"Split", "Squeeze", "Unsqueeze", "Constant"})
# inputs by whose values shapes, or how often something runs, change
_SHAPING = {
    **dict.fromkeys(("Slice", "Resize", "NonMaxSuppression", "STFT"), (1, 2, 3, 4)),
    **dict.fromkeys(("Range", "MelWeightMatrix", "Unique", "Compress"), (0, 1, 2, 3, 4)),
    **dict.fromkeys(
        ("ConstantOfShape", "NonZero", "HannWindow", "HammingWindow", "BlackmanWindow", "StringSplit"), (0,)
    ),
    **dict.fromkeys(("Reshape", "Upsample", "Expand", "Tile", "TopK", "Split", "SplitToSequence", "Squeeze"), (1,)),
    **dict.fromkeys(("Unsqueeze", "OneHot", "CenterCropPad", "AffineGrid", "SequenceAt", "SequenceErase"), (1,)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"), (1,)),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), (1,)),
    **dict.fromkeys(("DFT", "Col2Im"), (1, 2)),
    "Pad": (1, 3),
    "MaxUnpool": (1, 2),
}


@dataclass(frozen=True)
class ModelFacts:
    """Counted from a file.

    Attributes:
        graph_hash: See `graph_hash`.
        model_bytes: Size of the file, external data not included.
        weights_bytes: Of all initializers.
        params: Numbers in floating-point initializers, folded norms included.
        macs: Multiply-accumulates of convolutions and matrix products; None where a shape is not known.
        activation_bytes: Highest sum of live activations in the file's order; None where a shape is not known.
        io_bytes: Of the main graph's inputs and outputs together, which no runtime can do without; outputs that may be
            views of something else are not counted. None where a shape is not known.
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
    activation_bytes: int | None
    io_bytes: int | None
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
        raise InvalidModel(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; an ONNX model is wanted")
    if not path.stat().st_size:
        raise InvalidModel(f"{path}: not an ONNX model: the file is empty (0 bytes); export or copy it again")
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
            if not weights and _size(tensor) <= _FEW:  # it may be a shape; it still counts as external
                try:
                    onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
                except Exception as error:  # a file that is too short, a path that leads elsewhere
                    raise InvalidModel(
                        f"{path}: {tensor.name!r} cannot be read from {named!r}: {_first_line(error)}"
                    ) from error
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
    inferred = _inferred(model)
    return ModelFacts(
        graph_hash=graph_hash(model),
        model_bytes=path.stat().st_size,
        weights_bytes=sum(_size(t) * _item_bytes(t) for t in model.graph.initializer),
        params=count_params(model),
        macs=_graph_macs(inferred),
        activation_bytes=_peak_activation_bytes(inferred),
        io_bytes=_io_bytes(inferred),
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


def declared_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """As `input_shapes`, but a dynamic dimension that has a symbolic name is that name."""
    symbols = {
        value.name: [d.dim_param or None for d in value.type.tensor_type.shape.dim] for value in model.graph.input
    }
    return {
        name: tuple(symbol if size is None else size for size, symbol in zip(shape, symbols[name], strict=True))
        for name, shape in input_shapes(model).items()
    }


def set_shapes(model: onnx.ModelProto, shapes: Shapes, name: str = "the model") -> None:
    """Make inputs static, in place.

    Raises:
        InvalidModel: A shape names no input of the model, or does not fit the declared one.
    """
    declared = declared_shapes(model)
    for wanted, shape in shapes.items():
        if wanted not in declared:
            raise InvalidModel(f"{name} has no input {wanted!r}; its inputs are {inputs_words(declared)}")
        now = declared[wanted]
        reason = ""
        if len(now) != len(shape):
            reason = f"it has {len(now)} dimensions, not {len(shape)}"
        else:
            pairs = enumerate(zip(now, shape, strict=True), start=1)
            reason = next(
                (f"dimension {i} is {a}, not {b}" for i, (a, b) in pairs if isinstance(a, int) and a != b), ""
            )
        if reason:
            others = f"; its inputs are {inputs_words(declared)}" if len(declared) > 1 else ""
            raise InvalidModel(
                f"{name}: {'x'.join(map(str, shape))} does not fit the input {wanted!r}, which is {shape_words(now)}: "
                f"{reason}{others}"
            )
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dimension.dim_value = size


def graph_hash(model: onnx.ModelProto) -> str:
    """64 hexadecimal digits for the structure of a model, without the values of its weights.

    Names, the order of nodes and the order of a sum's terms do not matter; operators with their attributes, bodies and
    functions, opsets, element types, shapes of inputs and declared shapes of outputs do. Every node is hashed with all
    that it is computed from, then once more with what is computed from it next, so that one node that is used twice
    differs from two equal ones.

    A constant of up to 64 numbers counts with its values, whatever its type, except floating-point ones that are known
    to be weights: used only as a kernel, matrix, bias or norm (the terms and factors of a sum or product included, if
    they have more than one number), by operators from which nothing leads to an input that shapes the computation
    (scales of a Resize, shape of a Reshape, ...). Where that is not known, as for bodies of If and Loop, functions and
    operators of other domains, values count: a network may be told from its equal, but never taken for another one.

    Raises:
        InvalidModel: The content of a constant does not fit its type and shape.
    """
    scope = _Scope({(f.domain, f.name, f.overload): f for f in model.functions})
    graph = model.graph
    inputs = [
        (value.name, str(value.type.tensor_type.elem_type), str(_dimensions(value)))
        for value in graph.input
        if value.name not in {tensor.name for tensor in graph.initializer}
    ]
    values = {name: _digest("input", str(i), *told) for i, (name, *told) in enumerate(inputs)}
    body = scope.digest(graph.node, graph.initializer, [v.name for v in graph.output], values, inner=False)
    outputs = [f"{value.type.tensor_type.elem_type}{_declared(value)}" for value in graph.output]
    return _digest(body, "opsets", *_opsets(model.opset_import), "outputs", *outputs)


def count_params(model: onnx.ModelProto) -> int:
    """Numbers in floating-point initializers, folded norms included."""
    return sum(_size(tensor) for tensor in model.graph.initializer if _is_float(tensor))


def count_macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul; None where a shape is not known."""
    return _graph_macs(_inferred(model))


def _inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The main graph with as many shapes as can be told."""
    import onnx

    return onnx.shape_inference.infer_shapes(model).graph


def _graph_macs(inferred: onnx.GraphProto) -> int | None:
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


def _peak_activation_bytes(graph: onnx.GraphProto) -> int | None:
    """Highest sum of the inputs and results that are alive at once when the main graph's nodes run in the file's order,
    each result in a place of its own; None where the shape of one is not known.

    A runtime may need less (fusion, work in place) or more (layouts, work space of operators).
    """
    constants = {tensor.name for tensor in graph.initializer}
    values = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input) if v.name not in constants}
    sizes = {name: _value_bytes(value) for name, value in values.items()}
    last = {name: i for i, node in enumerate(graph.node) for name in _needs(node)}
    last |= dict.fromkeys((value.name for value in graph.output), len(graph.node))
    alive = {value.name: sizes[value.name] for value in graph.input if value.name in sizes}
    peak: int | None = 0
    for i, node in enumerate(graph.node):
        if node.op_type == "Constant":
            continue
        alive |= {name: sizes.get(name) for name in node.output if name}
        known = [size for size in alive.values() if size is not None]
        if len(known) < len(alive) or peak is None:
            return None
        peak = max(peak, sum(known))
        alive = {name: size for name, size in alive.items() if last.get(name, i) > i}
    return peak


def _io_bytes(graph: onnx.GraphProto) -> int | None:
    """Sum of inputs and of outputs with places of their own; None where the shape of one is not known."""
    taken = {tensor.name for tensor in graph.initializer}
    taken |= {name for node in graph.node if node.op_type in _VIEWS for name in node.output}
    sizes = {value.name: _value_bytes(value) for value in (*graph.output, *graph.input) if value.name not in taken}
    known = [size for size in sizes.values() if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _value_bytes(value: onnx.ValueInfoProto) -> int | None:
    import onnx

    kind = value.type.tensor_type
    shape = _dimensions(value)
    if not kind.HasField("shape") or None in shape:
        return None
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    except KeyError:  # a sequence or map
        return None
    return math.prod(int(size or 0) for size in shape) * int(item)


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


@dataclass
class _Scope:
    """What the graphs of one model share.

    Attributes:
        functions: By domain, name and overload.
        known: Digests of those that were hashed.
    """

    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    known: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def digest(
        self,
        nodes: Iterable[onnx.NodeProto],
        constants: Iterable[onnx.TensorProto],
        outputs: Sequence[str],
        outer: Mapping[str, str],
        *,
        inner: bool,
    ) -> str:
        """Digest of nodes.

        Args:
            nodes: In any order.
            constants: Initializers beside them.
            outputs: Names of what they are for.
            outer: Digests of what they may use, inputs included, by name.
            inner: Whether they are a body or a function: what becomes of their outputs is not known.
        """
        values = {"": "nothing", **outer}
        live = _live(nodes, outputs)
        telling = _telling(live, outputs, inner)
        for tensor in constants:
            values[tensor.name] = _constant(tensor, telling.get(tensor.name, 0))
        consumers: dict[str, list[str]] = defaultdict(list)
        hashes = []
        for node in live:
            given = [values.get(name, "outer") for name in node.input]
            if node.op_type in _COMMUTATIVE:
                given.sort()
            least = telling.get(node.output[0], 0) if node.op_type == "Constant" else _FEW
            attributes = sorted(self._attribute(attribute, values, least) for attribute in node.attribute)
            told = _digest(*self._operator(node), *given, "attributes", *attributes)
            hashes.append(told)
            for i, name in enumerate(node.output):
                values[name] = _digest(told, str(i))
            for name in _needs(node):
                consumers[name].append(told)
        used = [
            _digest(told, *sorted(user for name in node.output for user in consumers[name]))
            for node, told in zip(live, hashes, strict=True)
        ]
        return _digest(*sorted(used), "outputs", *(values.get(name, "outer") for name in outputs))

    def _operator(self, node: onnx.NodeProto) -> tuple[str, ...]:
        key = (node.domain, node.op_type, node.overload)
        function = self.functions.get(key)
        if function is None:
            return key
        if key not in self.known:
            self.known[key] = "recursive"  # not allowed in ONNX; the content of a file may be anything
            inputs = {name: _digest("argument", str(i)) for i, name in enumerate(function.input)}
            body = self.digest(function.node, (), function.output, inputs, inner=True)
            defaults = sorted(self._attribute(attribute, {}, _FEW) for attribute in function.attribute_proto)
            self.known[key] = _digest("function", body, *_opsets(function.opset_import), *defaults)
        return (self.known[key],)

    def _attribute(self, attribute: onnx.AttributeProto, values: Mapping[str, str], least: int) -> str:
        if attribute.HasField("t"):
            return f"{attribute.name}={_constant(attribute.t, least)}"
        bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        if bodies:
            return _digest(attribute.name, *(self._body(body, values) for body in bodies))
        copy = type(attribute)()
        copy.CopyFrom(attribute)
        copy.doc_string = ""
        return _digest(copy.SerializeToString(deterministic=True).hex())

    def _body(self, graph: onnx.GraphProto, values: Mapping[str, str]) -> str:
        given = {value.name: _digest("argument", str(i)) for i, value in enumerate(graph.input)}
        outputs = [value.name for value in graph.output]
        return self.digest(graph.node, graph.initializer, outputs, {**values, **given}, inner=True)


def _live(nodes: Iterable[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Nodes that reach an output, each after those that it needs."""
    made = {name: node for node in nodes for name in node.output if name}
    order: list[onnx.NodeProto] = []
    seen: set[int] = set()
    stack: list[tuple[onnx.NodeProto, bool]] = [(made[name], False) for name in reversed(outputs) if name in made]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(made[name], False) for name in _needs(node) if name in made]
    return order


def _needs(node: onnx.NodeProto) -> list[str]:
    """Names that a node uses: its inputs, and what its bodies take from outside."""
    names = list(node.input)
    for body in _bodies(node):
        own = {name for inner in body.node for name in inner.output}
        own |= {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        used = [name for inner in body.node for name in _needs(inner)] + [value.name for value in body.output]
        names += sorted({*used} - own)
    return names


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [body for a in node.attribute for body in ([a.g] if a.HasField("g") else a.graphs)]


def _telling(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], inner: bool) -> dict[str, int]:
    """Up to how many numbers the values of a floating-point constant count, by its name; 0 for weights."""
    shaping = {*outputs} if inner else set()
    telling = dict.fromkeys(outputs, _FEW)
    for node in reversed(nodes):
        op, standard = node.op_type, node.domain in ("", "ai.onnx")
        opaque = not standard or bool(_bodies(node))
        shapes = not shaping.isdisjoint(node.output) and op not in ("Shape", "Size")
        for slot, name in enumerate(_needs(node)):
            if opaque or shapes or slot in _SHAPING.get(op, ()):
                shaping.add(name)
                count = _FEW
            elif op in _FORMS:
                count = max(telling.get(output, 0) for output in node.output)
            elif slot in _WEIGHTS.get(op, ()):
                count = 1 if op in _SUMS else 0
            else:
                count = _FEW
            telling[name] = max(count, telling.get(name, 0))
    return telling


def _constant(tensor: onnx.TensorProto, telling: int) -> str:
    """Digest of a constant.

    Args:
        tensor: The constant.
        telling: Its values count up to so many numbers; those of integers always up to `_FEW`.
    """
    import onnx

    told = (str(tensor.data_type), str(tuple(tensor.dims)))
    elsewhere = tensor.data_location == onnx.TensorProto.EXTERNAL
    if _size(tensor) > (telling if _is_float(tensor) else _FEW) or (elsewhere and not tensor.HasField("raw_data")):
        return _digest("weight", *told)
    if elsewhere:  # its content was read from there
        tensor = onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, tensor.raw_data, raw=True)
    try:
        return _digest("constant", *told, str(onnx.numpy_helper.to_array(tensor).tolist()))
    except Exception as error:  # numpy and protobuf raise what they like
        raise InvalidModel(
            f"the constant {tensor.name!r} is damaged: its content does not fit its type and shape "
            f"{list(tensor.dims)} ({_first_line(error)})"
        ) from error


def _declared(value: onnx.ValueInfoProto) -> str:
    """Shape of an output, as far as it is declared."""
    return str(_dimensions(value)) if value.type.tensor_type.HasField("shape") else ""


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> list[str]:
    return sorted(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in imports)


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
