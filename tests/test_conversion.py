"""ONNX graphs as torch modules: the official test cases of ONNX, and networks against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwnas.conversion.to_torch import UnsupportedOperator, live_peak, supported, to_torch
from hwnas.errors import InvalidModel
from hwnas.spaces import codes
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.spaces import difference, run_onnx

SPACE = NasBench201()


def graph(nodes, inputs, outputs, constants=None, opset=18):
    """A model of nodes; `inputs` and `outputs` are names to shapes, all float32."""
    kind = TensorProto.FLOAT
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


def official_cases():
    """ONNX's own cases of single operators that are covered, integers and scalars given as constants."""
    from onnx.backend.test.case.node import collect_testcases

    known = set(supported())
    for case in collect_testcases(None):
        if not all(node.op_type in known and node.domain in ("", "ai.onnx") for node in case.model.graph.node):
            continue
        given, wanted = case.data_sets[0]
        if not all(isinstance(value, np.ndarray) and value.dtype.kind in "biuf" for value in (*given, *wanted)):
            continue  # sequences, optionals, texts, and types that numpy does not know
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        first = model.graph.node[0].input[:1]
        feeds = []
        for value, data in zip(case.model.graph.input, given, strict=True):
            if value.name not in first and (data.dtype.kind in "iu" or data.ndim == 0 or data.size == 0):
                model.graph.initializer.append(numpy_helper.from_array(data, value.name))
            else:
                feeds.append(torch.from_numpy(data.copy()))
        yield case.name, model, feeds, wanted


@pytest.mark.filterwarnings("ignore")  # the cases compute infinities and overflows on purpose
def test_official_cases_are_right_or_refused():
    right, refused = 0, []
    for name, model, feeds, wanted in official_cases():
        try:
            module = to_torch(model)
        except (UnsupportedOperator, InvalidModel) as error:
            refused.append((name, str(error)))
            continue
        with torch.inference_mode():
            found = module(*feeds)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.from_numpy(b.copy()).dtype, name
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-3, atol=1e-5, err_msg=name)
        right += 1
    assert right > 450, f"only {right} cases ran; refused: {refused}"
    assert all(text for _, text in refused)


@pytest.mark.parametrize("verbatim", [False, True])
@pytest.mark.parametrize("architecture", codes.sample(SPACE, 4, rng=np.random.default_rng(3)), ids=lambda a: a.key)
def test_networks_equal_onnx_runtime(architecture, verbatim):
    model = SPACE.to_onnx(architecture, "cifar10", verbatim=verbatim)
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        (found,) = to_torch(model)(torch.from_numpy(images))
    assert difference(found.numpy(), run_onnx(model, images)) < 1e-4


def test_shapes_are_computed_once():
    """What exporters write around a reshape depends on shapes alone, and costs nothing later."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
    ]
    model = graph(nodes, {"x": [2, 3, 4]}, {"y": [2, 12]}, {"first": np.array([0]), "rest": np.array([-1])})
    module = to_torch(model)
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert module(torch.ones(2, 3, 4))[0].shape == (2, 12)


def test_several_inputs_and_outputs_keep_their_order():
    nodes = [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Split", ["d"], ["y", "z"], num_outputs=2)]
    module = to_torch(graph(nodes, {"a": [4], "b": [4]}, {"z": [2], "y": [2]}))
    z, y = module(torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([1.0, 1.0, 2.0, 2.0]))
    assert y.tolist() == [4, 5]
    assert z.tolist() == [5, 6]


class TestRefusals:
    def test_unknown_operator_is_named(self):
        node = helper.make_node("NonMaxSuppression", ["x"], ["y"], name="nms")
        with pytest.raises(UnsupportedOperator, match=r"NonMaxSuppression.*'nms'"):
            to_torch(graph([node], {"x": [1]}, {"y": [1]}))

    def test_another_domain_is_not_mistaken(self):
        node = helper.make_node("Relu", ["x"], ["y"], domain="my.own")
        with pytest.raises(UnsupportedOperator, match=r"my\.own\.Relu"):
            to_torch(graph([node], {"x": [1]}, {"y": [1]}))

    def test_dynamic_shape(self):
        node = helper.make_node("Relu", ["x"], ["y"])
        with pytest.raises(InvalidModel, match="dynamic"):
            to_torch(graph([node], {"x": ["n"]}, {"y": ["n"]}))

    def test_shape_from_data(self):
        nodes = [
            helper.make_node("Cast", ["s"], ["i"], to=TensorProto.INT64),
            helper.make_node("Tile", ["x", "i"], ["y"]),
        ]
        with pytest.raises(UnsupportedOperator, match="from the data"):
            to_torch(graph(nodes, {"x": [2], "s": [1]}, {"y": [4]}))

    def test_node_that_does_not_fit(self):
        with pytest.raises(InvalidModel, match="MatMul"):
            to_torch(graph([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}))

    def test_value_that_nothing_makes(self):
        with pytest.raises(InvalidModel, match="'z'"):
            to_torch(graph([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [2]}, {"y": [2]}))


class TestLivePeak:
    def test_a_chain_keeps_two_at_a_time(self):
        nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["b"])]
        nodes.append(helper.make_node("Neg", ["b"], ["y"]))
        module = to_torch(graph(nodes, {"x": [100]}, {"y": [100]}))
        assert live_peak(module, [torch.ones(100)]) == 2 * 400

    def test_a_skip_keeps_its_source(self):
        nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["b"])]
        nodes.append(helper.make_node("Add", ["x", "b"], ["y"]))
        module = to_torch(graph(nodes, {"x": [100]}, {"y": [100]}))
        assert live_peak(module, [torch.ones(100)]) == 3 * 400

    def test_views_and_weights_do_not_count(self):
        nodes = [
            helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
            helper.make_node("MatMul", ["w", "a"], ["y"]),
        ]
        module = to_torch(graph(nodes, {"x": [10, 50]}, {"y": [7, 10]}, {"w": np.ones((7, 50), dtype=np.float32)}))
        assert live_peak(module, [torch.ones(10, 50)]) == 4 * (500 + 70)
