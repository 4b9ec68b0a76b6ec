"""What is read from ONNX files: a hash of the structure alone, counts that are known, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hwnas.core.architecture import Architecture
from hwnas.errors import InvalidModel
from hwnas.onnx_facts import count_macs, graph_hash, input_shapes, model_facts, read_model, set_shapes
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
    with pytest.raises(InvalidModel, match=r"has no input 'z'; its inputs are x"):
        model_facts(path, {"z": (1, 4)})
    for wrong in ((5, 3), (4,), (1, 4, 1)):
        with pytest.raises(InvalidModel, match="does not fit"):
            model_facts(path, {"x": wrong})
