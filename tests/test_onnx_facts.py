"""What is read from ONNX files: a hash of the structure alone, counts that are known, damaged files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hwnas.core.architecture import Architecture
from hwnas.core.shapes import ask_for_shape, inputs_words
from hwnas.errors import InvalidModel
from hwnas.onnx_facts import count_macs, declared_shapes, graph_hash, input_shapes, model_facts, read_model, set_shapes
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.profiling import write_cell, write_relu

SPACE = NasBench201()
CODES = st.tuples(*[st.integers(0, 4)] * 6)


def network(code: tuple[int, ...]) -> onnx.ModelProto:
    return SPACE.to_onnx(Architecture("nb201", code), "cifar10")


def model(
    *nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None, shape=(1, 4), opset=18
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "test", values, result, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


node = helper.make_node
WEIGHT = np.ones((4, 4), np.float32)


@settings(max_examples=15, deadline=None)
@given(CODES, st.randoms(use_true_random=False))
def test_a_hash_knows_no_weights_names_or_order(code: tuple[int, ...], random: object) -> None:
    plain = network(code)
    wanted = graph_hash(plain)
    other = onnx.ModelProto()
    other.CopyFrom(plain)
    inner = {name for n in other.graph.node for name in n.output} | {t.name for t in other.graph.initializer}
    outer = {value.name for value in other.graph.output}
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        tensor.name = f"renamed {tensor.name}"
    for one in other.graph.node:
        one.name = one.doc_string = f"a name {one.name}"
        for names in (one.input, one.output):
            for i, name in enumerate(names):
                if name in inner - outer:
                    names[i] = f"renamed {name}"
    other.producer_name = "another exporter"
    shuffled = list(other.graph.node)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    del other.graph.node[:]
    other.graph.node.extend(shuffled)
    assert graph_hash(other) == wanted


def test_a_hash_tells_cells_apart_but_not_by_dead_edges_or_the_names_of_inner_nodes() -> None:
    rng = np.random.default_rng(0)
    drawn = {tuple(int(op) for op in code) for code in rng.integers(0, 5, (60, 6))}
    alike: dict[str, tuple[object, int | None]] = {}
    for code in sorted(drawn):
        built = network(code)
        found = graph_hash(built)
        a, b, c, d, e, f = pruned = SPACE.pruned(Architecture("nb201", code)).code
        assert graph_hash(network(pruned)) == found
        # nothing between the inner nodes: they can change places (of three terms, which two are added first may matter)
        if c == 0 and 0 in (d, e, f):
            assert graph_hash(network((b, a, 0, d, f, e))) == found
        work = sorted(one.op_type for one in built.graph.node), count_macs(built)
        assert alike.setdefault(found, work) == work
    assert len(alike) > 40


def test_a_hash_knows_what_a_runtime_would_run_differently() -> None:
    base = model(node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"]), weights={"w": WEIGHT})
    others = [
        model(node("MatMul", ["x", "w"], ["h"]), node("Sigmoid", ["h"], ["y"]), weights={"w": WEIGHT}),
        model(node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"]), weights={"w": WEIGHT}),
        model(
            node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"]), weights={"w": np.ones((4, 5), np.float32)}
        ),
        model(node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"]), weights={"w": WEIGHT}, shape=(2, 4)),
        model(node("LeakyRelu", ["x"], ["y"], alpha=0.1)),
        model(node("LeakyRelu", ["x"], ["y"], alpha=0.2)),
        model(node("Reshape", ["x", "s"], ["y"]), weights={"s": np.array([2, 2])}),
        model(node("Reshape", ["x", "s"], ["y"]), weights={"s": np.array([4, 1])}),
        model(node("Sub", ["x", "w"], ["y"]), weights={"w": WEIGHT}),
        model(node("Sub", ["w", "x"], ["y"]), weights={"w": WEIGHT}),
        # one node that is used twice, and two equal ones
        model(node("Relu", ["x"], ["a"]), node("Add", ["a", "a"], ["y"])),
        model(node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["b"]), node("Add", ["a", "b"], ["y"])),
    ]
    assert len({graph_hash(one) for one in (base, *others)}) == 1 + len(others)


def image(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray], **settings: object) -> onnx.ModelProto:
    return model(*nodes, weights=weights, shape=(1, 3, 8, 8), **settings)  # type: ignore[arg-type]


def resized(scales: list[float]) -> onnx.ModelProto:
    return image(node("Resize", ["x", "", "s"], ["y"]), weights={"s": np.array(scales, np.float32)})


def resized_by_a_product(factor: list[float], *, constant: bool = False) -> onnx.ModelProto:
    """The scales are computed, by operators that have weights elsewhere."""
    given = {"one": np.ones(4, np.float32), "s": np.array(factor, np.float32)}
    before = [node("Constant", [], ["s"], value=numpy_helper.from_array(given.pop("s")))] if constant else []
    return image(
        *before, node("Mul", ["one", "s"], ["scales"]), node("Resize", ["x", "", "scales"], ["y"]), weights=given
    )


def branch(*nodes: onnx.NodeProto, name: str = "z") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def chosen(captured: str, inner: str = "Relu") -> onnx.ModelProto:
    """What `captured` makes is used by a branch alone."""
    body = branch(node(inner, ["h"], ["z"]))
    other = branch(node("Neg", ["x"], ["z"]))
    return model(
        node(captured, ["x"], ["h"]),
        node("If", ["c"], ["y"], then_branch=body, else_branch=other),
        weights={"c": np.array(True)},
    )


def called(op: str, *, name: str = "block", value: float = 1.0) -> onnx.ModelProto:
    """A function of the model's own."""
    made = model(helper.make_node(name, ["x"], ["y"], domain="own"))
    shift = node("Constant", [], ["b"], value_float=value)
    opset = [helper.make_opsetid("", 18)]
    body = helper.make_function(
        "own", name, ["a"], ["r"], [node(op, ["a"], ["h"]), shift, node("Add", "hb", "r")], opset
    )
    made.functions.append(body)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def declared(shape: list[int] | None) -> onnx.ModelProto:
    made = model(node("Relu", ["x"], ["y"]))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return made


def of_type(kind: int) -> onnx.ModelProto:
    made = declared([1, 4])
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = kind
    return made


def clipped(top: float) -> onnx.ModelProto:
    return model(node("Clip", ["x", "", "t"], ["y"]), weights={"t": np.array(top, np.float32)})


def scaled(by: list[float]) -> onnx.ModelProto:
    return model(node("Mul", ["x", "w"], ["y"]), weights={"w": np.array(by, np.float32)})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (resized([1, 1, 2, 2]), resized([1, 1, 8, 8])),
        (resized_by_a_product([1, 1, 2, 2]), resized_by_a_product([1, 1, 8, 8])),
        (resized_by_a_product([1, 1, 2, 2], constant=True), resized_by_a_product([1, 1, 8, 8], constant=True)),
        (clipped(6), clipped(1)),
        (scaled([1]), scaled([2])),  # a product with 1 is left out
        (chosen("Relu"), chosen("Sigmoid")),
        (chosen("Relu"), chosen("Relu", inner="Sigmoid")),
        (called("Relu"), called("Sigmoid")),
        (called("Relu"), called("Relu", value=2.0)),
        (model(node("Relu", ["x"], ["y"]), opset=18), model(node("Relu", ["x"], ["y"]), opset=13)),
        (declared([1, 4]), declared(None)),
        (declared([1, 4]), declared([1, 5])),
        (of_type(TensorProto.FLOAT), of_type(TensorProto.FLOAT16)),
    ],
    ids=[
        "scales",
        "computed-scales",
        "computed-scales-of-a-node",
        "bounds",
        "scalar",
        "captured",
        "body",
        "function",
        "constant-of-a-function",
        "opset",
        "undeclared-output",
        "declared-output",
        "type",
    ],
)
def test_what_runs_differently_has_hashes_of_its_own(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Else a figure that is kept for the one would be told for the other."""
    again = onnx.ModelProto.FromString(one.SerializeToString())
    assert graph_hash(again) == graph_hash(one) != graph_hash(other)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("Conv", [(3, 3, 1, 1), (3,)]),
        ("ConvTranspose", [(3, 2, 1, 1), (2,)]),
        ("BatchNormalization", [(3,)] * 4),
        ("PRelu", [(3, 1, 1)]),
        ("MatMul", [(8, 8)]),
        ("Add", [(3, 1, 1)]),
    ],
)
@pytest.mark.parametrize("form", ["initializer", "node", "identity"])
def test_small_weights_are_weights(op: str, shapes: list[tuple[int, ...]], form: str) -> None:
    def made(value: float) -> onnx.ModelProto:
        arrays = {f"w{i}": np.full(shape, value, np.float32) for i, shape in enumerate(shapes)}
        before = []
        if form == "node":
            before = [node("Constant", [], [n], value=numpy_helper.from_array(a)) for n, a in arrays.items()]
        elif form == "identity":
            before = [node("Identity", [f"of {name}"], [name]) for name in arrays]
        given = {} if form == "node" else {f"of {n}" if before else n: a for n, a in arrays.items()}
        # what is computed from weights has a shape, which they do not change
        after = [node("Shape", ["h"], ["s"]), node("Reshape", ["h", "s"], ["y"])]
        return image(*before, node(op, ["x", *arrays], ["h"]), *after, weights=given)

    assert graph_hash(made(1.5)) == graph_hash(made(2.5))


def test_names_of_functions_and_inside_them_do_not_matter() -> None:
    assert graph_hash(called("Relu", name="block")) == graph_hash(called("Relu", name="another"))


def test_small_constants_in_a_file_of_their_own_count(tmp_path: Path) -> None:
    found = set()
    for size in (2, 8):
        path = tmp_path / f"{size}.onnx"
        content = resized([1, 1, size, size])
        found |= {graph_hash(content)}
        onnx.save(content, path, save_as_external_data=True, location=f"{size}.data", size_threshold=0)
        found |= {model_facts(path).graph_hash}
    assert len(found) == 2
    (tmp_path / "8.data").write_bytes(b"x")
    with pytest.raises(InvalidModel, match=r"8\.onnx: "):
        model_facts(path)


def test_what_reaches_no_output_and_the_order_of_a_sum_change_nothing() -> None:
    base = model(node("Relu", ["x"], ["a"]), node("Add", ["a", "x"], ["y"]))
    dead = model(node("Relu", ["x"], ["a"]), node("Sigmoid", ["x"], ["nowhere"]), node("Add", ["x", "a"], ["y"]))
    assert graph_hash(dead) == graph_hash(base)


@pytest.mark.parametrize("code", [(3,) * 6, (2,) * 6, (3, 2, 3, 2, 3, 2), (3, 1, 2, 1, 4, 3)])
def test_counts_of_a_cell_are_the_official_ones(tmp_path: Path, code: tuple[int, ...]) -> None:
    facts = model_facts(write_cell(tmp_path / "cell.onnx", code))
    official = SPACE.complexity(Architecture("nb201", code), "cifar10")
    assert facts.macs == round(1e6 * official["macs_m"]) - 10  # they count the linear layer's bias
    # norms are folded: a bias in the place of a scale and an offset
    assert facts.params == pytest.approx(1e6 * official["params_m"], rel=0.05)
    assert facts.params < 1e6 * official["params_m"]
    assert facts.weights_bytes >= 4 * facts.params
    assert facts.inputs == {"input": (1, 3, 32, 32)}
    assert (facts.opset, facts.ir_version) == (18, 10)
    assert sum(facts.operators.values()) == facts.nodes


@pytest.mark.parametrize(
    ("one", "macs"),
    [
        (model(node("MatMul", ["x", "w"], ["y"]), weights={"w": np.ones((4, 7), np.float32)}, shape=(3, 4)), 3 * 4 * 7),
        (
            model(node("Gemm", ["x", "w"], ["y"], transA=1), weights={"w": np.ones((3, 7), np.float32)}, shape=(3, 4)),
            84,
        ),
        (
            model(
                node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
                weights={"w": np.ones((8, 1, 3, 3), np.float32)},
                shape=(2, 4, 8, 8),
            ),
            2 * 8 * 4 * 4 * 9,
        ),
        (
            model(
                node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
                weights={"w": np.ones((4, 5, 2, 2), np.float32)},
                shape=(1, 4, 3, 3),
            ),
            4 * 3 * 3 * 5 * 2 * 2,
        ),
        (model(node("Relu", ["x"], ["y"])), 0),
        (model(node("MatMul", ["x", "w"], ["y"]), weights={"w": WEIGHT}, shape=("n", 4)), None),
    ],
)
def test_multiply_accumulates(one: onnx.ModelProto, macs: int | None) -> None:
    assert count_macs(one) == macs


# -- files that are not as they should be ----------------------------------------------------------------------------


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"nowhere\.onnx: no such file"):
        read_model(tmp_path / "nowhere.onnx")
    whole = network((3,) * 6).SerializeToString()
    for name, content in (("text", b"this is no model"), ("empty", b""), ("half", whole[: len(whole) // 2])):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(InvalidModel, match=rf"{name}\.onnx: not an ONNX model"):
            model_facts(path)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_an_error_in_words(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.onnx"
        path.write_bytes(content)
        try:
            model_facts(path)
        except InvalidModel as error:
            assert "any.onnx" in str(error)  # noqa: PT017 - either answer is right


def test_weights_that_lie_elsewhere_have_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(network((3,) * 6), path, save_as_external_data=True, location="big.data", size_threshold=0)
    facts = model_facts(path)
    inside = tmp_path / "inside.onnx"
    onnx.save(network((3,) * 6), inside)
    assert facts.macs == model_facts(inside).macs
    assert facts.params == model_facts(inside).params
    assert len(read_model(path, weights=True).graph.initializer[0].raw_data) > 0
    (tmp_path / "big.data").unlink()
    with pytest.raises(InvalidModel, match=r"lie in 'big\.data', which is not beside it; copy that file"):
        model_facts(path)


def test_dynamic_shapes(tmp_path: Path) -> None:
    path = write_relu(tmp_path / "free.onnx", ("n", 4))
    assert model_facts(path).inputs == {"x": (None, 4)}
    free = read_model(path)
    set_shapes(free, {"x": (5, 4)})
    assert input_shapes(free) == {"x": (5, 4)}
    assert model_facts(path, {"x": (5, 4)}).graph_hash != model_facts(path).graph_hash  # runs differently
    with pytest.raises(InvalidModel, match=r"has no input 'z'; its inputs are x \[n, 4\]"):
        model_facts(path, {"z": (1, 4)})
    for wrong in ((5, 3), (4,), (1, 4, 1)):
        with pytest.raises(InvalidModel, match="does not fit"):
            model_facts(path, {"x": wrong})


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (("batch", 3, "height", "width"), "[batch, 3, height, width]; .*=1x3x224x224 (batch = 1, height = 224, width"),
        ((1, None, None, 3), "[1, ?, ?, 3]; .*=1x224x224x3 (dimension 2 = 224, dimension 3 = 224: yours to choose)"),
        (("N", "C", "H", "W"), "=1x3x224x224 (N = 1, C = 3, H = 224, W = 224: yours"),
        (("N", 64, "H", "W"), "=1x64x224x224 "),
        (("N", 3, "T", "H", "W"), "=1x3x16x224x224 "),
        (("batch", "sequence"), "=1x128 (batch = 1, sequence = 128: yours to choose)"),
        (("N", 784), "=1x784 (N = 1: yours to choose)"),
    ],
)
def test_an_example_of_a_shape_is_one_that_could_be(shape: tuple[int | str | None, ...], told: str) -> None:
    pattern = ".*".join(map(re.escape, told.split(".*")))
    assert re.search(pattern, ask_for_shape("x", shape))


def test_symbolic_names_are_told(tmp_path: Path) -> None:
    free = read_model(write_relu(tmp_path / "free.onnx", ("n", 4)))
    assert declared_shapes(free) == {"x": ("n", 4)}
    assert inputs_words(declared_shapes(free)) == "x [n, 4]"


def test_inputs_and_outputs_are_counted_where_their_shapes_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for shape, found in (((2, 3), 2 * 2 * 3 * 4), (("n", 3), None)):
        values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "test", values[:1], values[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        assert model_facts(path).io_bytes == found
    assert model_facts(path, {"x": (5, 3)}).io_bytes == 2 * 5 * 3 * 4
