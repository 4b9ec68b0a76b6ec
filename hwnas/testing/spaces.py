"""The contract of a search space as tests: subclass `SpaceSuite`, give the fixture `space`, and run pytest.

class TestMine(SpaceSuite):
    @pytest.fixture
    def space(self):
        return MySpace()

    def onnx_of(self, space, module, dataset):  # optional: the ONNX model with a torch module's weights
        return my_onnx(module)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.protocols import SearchSpace
from hwnas.errors import InvalidArchitecture, UnknownName
from hwnas.spaces import codes

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

# Derandomised: a conformance suite gives the same verdict twice. No deadline: shared machines stall. Subclasses
# share these methods by design, and without a database no example of one is replayed in another.
often = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


def architectures(space: SearchSpace) -> st.SearchStrategy[Architecture]:
    """A hypothesis strategy for the codes of `space`."""
    values = st.tuples(*(st.integers(0, count - 1) for count in space.choices))
    return values.map(lambda code: Architecture(space.name, code))


def run_onnx(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs of a model with one input and one output, from ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # constant outputs are warned about
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    return np.asarray(session.run(None, {source.name: images})[0])


def run_torch(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs of a torch module in evaluation mode."""
    import torch

    with torch.no_grad():
        return np.asarray(module.eval()(torch.from_numpy(images)).numpy())


def difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest absolute difference, relative to the largest absolute value of `b`."""
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12))


def alike(module: nn.Module) -> nn.Module:
    """Give all weights of one shape the same numbers (He's size), and all biases zero.

    Isomorphic networks then compute the same function without a map between their weights.
    """
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(_numbers(tuple(parameter.shape)))
            elif name.endswith("bias"):
                parameter.zero_()
    return module


def _numbers(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    values = np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values * np.float32(math.sqrt(2 / math.prod(shape[1:]))))


class SpaceSuite:
    """Every search space passes these. Subclass, name it `Test...`, give the fixture `space`."""

    samples = 4  # networks that are built and run per test

    def onnx_of(self, space: Any, module: nn.Module, dataset: str) -> onnx.ModelProto | None:
        """The ONNX model, batch 1, with the weights of a module that `space.build` made; None if there is no way."""
        return None

    def some(self, space: SearchSpace) -> list[Architecture]:
        """A few architectures, always the same: the first code, the last, and random ones."""
        rng = np.random.default_rng(0)
        last = tuple(count - 1 for count in space.choices)
        edge = [Architecture(space.name, (0,) * len(last)), Architecture(space.name, last)]
        return edge + codes.sample(space, self.samples - len(edge), rng=rng)

    def images(self, space: SearchSpace, dataset: str) -> NDArray[np.float32]:
        return np.random.default_rng(1).standard_normal((1, *space.input_shape(dataset)), dtype=np.float32)

    def test_follows_the_protocol(self, space: SearchSpace) -> None:
        assert isinstance(space, SearchSpace)
        assert space.name
        assert ":" not in space.name
        assert space.datasets
        assert all(isinstance(count, int) and count >= 1 for count in space.choices)

    @often
    @given(data=st.data())
    def test_every_code_is_valid_and_survives_text(self, space: SearchSpace, data: st.DataObject) -> None:
        architecture = data.draw(architectures(space))
        space.validate(architecture)
        assert space.parse(space.format(architecture)) == architecture
        assert space.parse(architecture.key) == architecture

    @often
    @given(data=st.data())
    def test_a_graph_gives_the_architecture_back(self, space: SearchSpace, data: st.DataObject) -> None:
        architecture = data.draw(architectures(space))
        graph = space.to_graph(architecture)
        assert (graph.ops[0], graph.ops[-1]) == ("input", "output")
        assert space.canonical(space.from_graph(graph)) == space.canonical(architecture)

    @often
    @given(data=st.data())
    def test_canonical_is_a_fixed_point_of_the_space(self, space: SearchSpace, data: st.DataObject) -> None:
        representative = space.canonical(data.draw(architectures(space)))
        space.validate(representative)
        assert space.canonical(representative) == representative

    @often
    @given(data=st.data())
    def test_complexity_is_finite_on_every_data_set(self, space: SearchSpace, data: st.DataObject) -> None:
        architecture = data.draw(architectures(space))
        for dataset in space.datasets:
            numbers = space.complexity(architecture, dataset)
            assert {"params_m", "macs_m"} <= set(numbers)
            assert all(math.isfinite(value) and value >= 0 for value in numbers.values())

    @often
    @given(data=st.data())
    def test_a_wrong_value_is_refused_with_its_position(self, space: SearchSpace, data: st.DataObject) -> None:
        architecture = data.draw(architectures(space))
        position = data.draw(st.integers(0, len(space.choices) - 1))
        count = space.choices[position]
        wrong = data.draw(st.sampled_from([-1, count, count + 100]))
        code = (*architecture.code[:position], wrong, *architecture.code[position + 1 :])
        with pytest.raises(InvalidArchitecture, match=rf"(?s)position {position}\b.*{wrong}"):
            space.validate(Architecture(space.name, code))

    def test_a_foreign_or_cut_code_is_refused(self, space: SearchSpace) -> None:
        architecture = self.some(space)[0]
        with pytest.raises(InvalidArchitecture, match="another-space"):
            space.validate(Architecture("another-space", architecture.code))
        for code in (architecture.code[1:], (*architecture.code, 0)):
            with pytest.raises(InvalidArchitecture, match=f"{len(space.choices)}.*{len(code)}"):
                space.validate(Architecture(space.name, code))

    @pytest.mark.parametrize("text", ["", "|", "nonsense", "a:b:c", ":0.1"])
    def test_unreadable_text_is_refused(self, space: SearchSpace, text: str) -> None:
        with pytest.raises(InvalidArchitecture):
            space.parse(text)

    def test_a_foreign_graph_is_refused(self, space: SearchSpace) -> None:
        with pytest.raises(InvalidArchitecture):
            space.from_graph(ArchGraph(("input", "an operation that nobody has", "output"), ((0, 1), (1, 2))))

    def test_an_unknown_data_set_is_refused_by_name(self, space: SearchSpace) -> None:
        architecture = self.some(space)[0]
        with pytest.raises(UnknownName, match="no-such-data"):
            space.input_shape("no-such-data")
        with pytest.raises(UnknownName, match="no-such-data"):
            space.complexity(architecture, "no-such-data")
        with pytest.raises(UnknownName, match="no-such-data"):
            space.build(architecture, "no-such-data")
        with pytest.raises(UnknownName, match="no-such-data"):
            space.to_onnx(architecture, "no-such-data")

    def test_params_are_those_of_the_built_network(self, space: SearchSpace) -> None:
        for architecture in self.some(space):
            module = space.build(architecture, space.datasets[0])
            built = sum(parameter.numel() for parameter in module.parameters()) / 1e6
            assert space.complexity(architecture, space.datasets[0])["params_m"] == pytest.approx(built, rel=1e-9)

    def test_macs_are_those_of_the_built_network(self, space: SearchSpace) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        for architecture in self.some(space):
            module = space.build(architecture, space.datasets[0])
            with FlopCounterMode(display=False) as counter:
                run_torch(module, self.images(space, space.datasets[0]))
            macs = counter.get_total_flops() / 2e6  # torch counts two operations each
            # a space may count biases, as NAS-Bench-201 officially does for its classifier
            assert space.complexity(architecture, space.datasets[0])["macs_m"] == pytest.approx(macs, rel=1e-3)

    def test_canonical_computes_the_same_function(self, space: SearchSpace) -> None:
        dataset = space.datasets[0]
        moved = [a for a in self._pool(space) if space.canonical(a) != a][: self.samples]
        for architecture in moved:
            own, other = (
                run_torch(alike(space.build(a, dataset)), self.images(space, dataset))
                for a in (architecture, space.canonical(architecture))
            )
            assert difference(own, other) < 1e-3, architecture

    def test_onnx_is_valid_and_runs(self, space: SearchSpace) -> None:
        import onnx

        for architecture in self.some(space):
            for verbatim in (False, True):
                model = space.to_onnx(architecture, space.datasets[-1], verbatim=verbatim)
                onnx.checker.check_model(model, full_check=True)
                output = run_onnx(model, self.images(space, space.datasets[-1]))
                assert output.shape[0] == 1
                assert np.isfinite(output).all()

    def test_onnx_obeys_seed_and_batch(self, space: SearchSpace) -> None:
        architecture, dataset = self.some(space)[-1], space.datasets[0]
        images = np.repeat(self.images(space, dataset), 3, axis=0)
        same, again, other = (
            run_onnx(space.to_onnx(architecture, dataset, seed=seed, batch=3), images) for seed in (4, 4, 5)
        )
        assert len(same) == 3
        assert np.array_equal(same, again)
        assert not np.allclose(same, other)

    def test_verbatim_onnx_computes_the_same_function(self, space: SearchSpace) -> None:
        dataset = space.datasets[0]
        for architecture in self.some(space):
            short, long = (
                run_onnx(space.to_onnx(architecture, dataset, verbatim=verbatim), self.images(space, dataset))
                for verbatim in (False, True)
            )
            assert difference(short, long) < 1e-4, architecture

    def test_onnx_computes_what_torch_computes(self, space: SearchSpace) -> None:
        from hwnas.nn.calibrate import calibrate

        dataset = space.datasets[0]
        for architecture in self.some(space):
            module = space.build(architecture, dataset)
            calibrate(module, space.input_shape(dataset), rng=np.random.default_rng(2))
            model = self.onnx_of(space, module, dataset)
            if model is None:
                pytest.skip("this space has no ONNX builder that takes a module's weights")
            images = self.images(space, dataset)
            assert difference(run_onnx(model, images), run_torch(module, images)) < 1e-4, architecture

    def _pool(self, space: SearchSpace) -> Sequence[Architecture]:
        return codes.sample(space, 200, rng=np.random.default_rng(3))
