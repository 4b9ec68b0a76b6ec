"""The TensorRT runtime against fakes that have exactly the recorded names of TensorRT 10.0, 10.16 and 11.4."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from recorded import TENSORRT, FakeCuda, FakeTensorRT

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Status
from hwnas.profiling import host
from hwnas.profiling.backend import Failure, SessionConfig
from hwnas.profiling.bench import Bench, Candidate
from hwnas.profiling.protocol import protocol
from hwnas.profiling.worker import engines
from hwnas.profiling.worker.dispatch import Dispatcher
from hwnas.profiling.worker.runtimes.registry import backend
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.profiling import BackendSuite, DirectTransport, write_cell
from hwnas.testing.spaces import difference

NEWEST = TENSORRT[-1]
SPACE = NasBench201()


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime = fake.module
    for name, module in {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": fake.module}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture(params=TENSORRT)
def tensorrt(request, cuda, monkeypatch):
    return install(request.param, cuda, monkeypatch)


@pytest.fixture
def newest(cuda, monkeypatch):
    return install(NEWEST, cuda, monkeypatch)


@pytest.fixture
def ten(cuda, monkeypatch):
    return install(TENSORRT[0], cuda, monkeypatch)


def install(version, cuda, monkeypatch):
    fake = FakeTensorRT(version, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    return fake


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "cell.onnx"
    path.write_bytes(SPACE.to_onnx(Architecture("nb201", (3, 1, 2, 0, 4, 3)), "cifar10").SerializeToString())
    return path


def load(path, **config):
    return backend("tensorrt").load(path, SessionConfig("tensorrt", **config))


def small(path, nodes, shape=(2, 4), kind=TensorProto.FLOAT, constants=()):
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "test", values[:1], values[1:], list(constants))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class TestContract(BackendSuite):
    """On the fakes; on a GPU the same suite runs with the real modules (tests/test_profiling_backends.py)."""

    config = SessionConfig("tensorrt")

    @pytest.fixture(autouse=True)
    def fakes(self, tensorrt):
        return tensorrt


class TestRunning:
    @pytest.mark.parametrize("mode", ["graph", "stream"])
    def test_outputs_are_those_of_the_given_inputs(self, tensorrt, network, mode):
        expected = backend("ort-cpu").load(network, SessionConfig("ort-cpu"))
        model = load(network, options={"mode": mode})
        for seed in (1, 2):
            feeds = {"input": np.random.default_rng(seed).standard_normal((1, 3, 32, 32), dtype=np.float32)}
            assert difference(model.outputs(feeds)[0], expected.outputs(feeds)[0]) < 1e-5

    def test_what_is_timed_stays_after_other_inputs(self, newest, cuda, network):
        model = load(network)
        (before,) = model.outputs(model.inputs())
        model.outputs({"input": np.ones((1, 3, 32, 32), dtype=np.float32)})
        model.run()
        (found,) = model._found
        value = cuda.memory[found.address].view(np.float32)
        assert difference(value, before.ravel()) < 1e-6

    def test_events_enclose_the_launches(self, tensorrt, cuda, network):
        model = load(network)
        cuda.log.clear()
        (sample,) = model.timed(1, loops=3)
        assert cuda.log == ["record 1", *["graph: execute"] * 3, "record 2", "wait 2"]
        assert sample.device_ns == pytest.approx(2e6)  # 6 ms for 3 inferences

    def test_a_stream_is_fed_without_a_graph(self, newest, cuda, network):
        model = load(network, options={"mode": "stream"})
        cuda.log.clear()
        model.run(2)
        assert cuda.log == ["execute", "execute", "synchronize"]

    def test_the_first_run_is_not_captured(self, newest, cuda, network):
        load(network)
        assert cuda.log == ["execute", "synchronize"]

    def test_everything_is_given_back(self, tensorrt, cuda, network):
        model = load(network)
        assert cuda.memory
        model.close()
        model.close()
        assert (cuda.memory, cuda.streams, cuda.events, cuda.graphs) == ({}, 0, 0, 0)

    def test_providers_tell_how_it_runs(self, newest, network):
        version, mode, precision, layers = load(network).providers
        assert (version, mode, precision) == (f"TensorRT {NEWEST}", "graph", "fp32, tf32 off")
        assert layers == f"{len(onnx.load(network).graph.node)} layers"

    def test_dynamic_shapes_get_a_profile(self, newest, tmp_path):
        path = small(tmp_path / "free.onnx", [helper.make_node("Relu", ["x"], ["y"])], shape=("n", 4))
        with pytest.raises(Failure, match="--shape"):
            load(path)
        model = load(path, shapes={"x": (3, 4)})
        assert model.outputs(model.inputs())[0].shape == (3, 4)

    def test_memory(self, tensorrt, network, tmp_path):
        model = load(network, cache=str(tmp_path))
        memory = model.memory()
        (engine,) = tmp_path.glob("*.engine")
        assert memory.engine == engine.stat().st_size
        assert memory.activation_peak == 1234
        assert memory.weights == (None if TENSORRT[0] in model.providers[0] else 5678)
        held = memory.engine if memory.weights is None else memory.weights
        assert memory.device == held + 1234 + 4 * (3 * 32 * 32 + 10)
        assert {"engine", "activation_peak", "device"} <= memory.source.keys()


class TestBuilding:
    def build(self, fake):
        ((_, told),) = [entry for entry in fake.log if entry[0] == "build"]
        return told

    def test_fp32_is_not_tf32_unless_asked_for(self, tensorrt, network):
        load(network)
        assert self.build(tensorrt)["flags"] == []

    def test_options(self, newest, network):
        load(network, options={"tf32": True, "workspace_mib": 64, "optimization_level": 5})
        told = self.build(newest)
        assert (told["flags"], told["pools"], told["level"]) == (["TF32"], {"WORKSPACE": 64 << 20}, 5)

    def test_fp16_is_a_flag_in_10(self, ten, network):
        load(network, precision="fp16")
        assert self.build(ten)["flags"] == ["FP16"]

    def test_fp16_has_to_be_in_the_model_in_11(self, newest, network, tmp_path):
        with pytest.raises(Failure, match=f"TensorRT {NEWEST}.*no fp16") as told:
            load(network, precision="fp16")
        assert told.value.status is Status.INVALID_MODEL
        half = small(tmp_path / "half.onnx", [helper.make_node("Relu", ["x"], ["y"])], kind=TensorProto.FLOAT16)
        model = load(half, precision="fp16")
        assert model.outputs(model.inputs())[0].dtype == np.float32
        assert self.build(newest)["flags"] == []

    def test_int8_wants_quantised_models(self, tensorrt, network, tmp_path):
        with pytest.raises(Failure, match="Q/DQ"):
            load(network, precision="int8")
        scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
        zero = onnx.numpy_helper.from_array(np.int8(0), "zero")
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ]
        load(small(tmp_path / "quantised.onnx", nodes, constants=[scale, zero]), precision="int8")
        weak = not tensorrt.module.__version__.startswith("11")
        assert self.build(tensorrt)["flags"] == (["INT8"] if weak else [])

    def test_engines_are_built_once(self, newest, network, tmp_path):
        first = load(network, cache=str(tmp_path))
        again = load(network, cache=str(tmp_path))
        assert [entry[0] for entry in newest.log if entry != "read engine"] == ["build"]
        assert difference(again.outputs(again.inputs())[0], first.outputs(first.inputs())[0]) < 1e-6

    @pytest.mark.parametrize("change", [{"precision": "fp16"}, {"options": {"workspace_mib": 8}}])
    def test_another_way_to_build_is_another_engine(self, ten, network, tmp_path, change):
        load(network, cache=str(tmp_path))
        load(network, cache=str(tmp_path), **change)
        assert len(list(tmp_path.glob("*.engine"))) == 2

    def test_another_version_is_another_engine(self, cuda, network, tmp_path, monkeypatch):
        for version in TENSORRT:
            install(version, cuda, monkeypatch)
            load(network, cache=str(tmp_path))
        assert len(list(tmp_path.glob("*.engine"))) == len(list(tmp_path.glob("*.timing"))) == len(TENSORRT)

    def test_timings_are_kept_for_the_next_build(self, newest, network, tmp_path):
        other = tmp_path / "other.onnx"
        other.write_bytes(SPACE.to_onnx(Architecture("nb201", (1,) * 6), "cifar10").SerializeToString())
        load(network, cache=str(tmp_path))
        load(other, cache=str(tmp_path))
        builds = [told["timings"] for kind, told in (e for e in newest.log if e != "read engine")]
        assert builds == [b"", b"+timing"]

    def test_timings_of_another_device_are_not_used(self, newest, network, tmp_path):
        load(network, cache=str(tmp_path))
        newest.stale_timings = True
        load(network, cache=str(tmp_path), options={"workspace_mib": 8})
        assert [told["timings"] for kind, told in (e for e in newest.log if e != "read engine")] == [b"", b""]


class TestSeveralBuilds:
    """Builds of one network differ, so the preset `final` measures an engine of its own in each of its processes."""

    def test_each_is_kept_apart_and_none_chooses_as_another_did(self, newest, network, tmp_path):
        for build in (0, 1, 2, 1):
            load(network, cache=str(tmp_path), build=build)
        assert len(list(tmp_path.glob("*.engine"))) == 3
        builds = [told["timings"] for kind, told in (e for e in newest.log if e != "read engine")]
        assert builds == [b"", b"", b""]
        (timings,) = tmp_path.glob("*.timing")
        assert timings.read_bytes() == b"+timing"

    def test_final_builds_three_and_tells_their_spread(self, newest, network, tmp_path):
        transport = DirectTransport()
        config = SessionConfig("tensorrt", cache=str(tmp_path / "engines"))
        how = replace(protocol("final"), rounds=3, most_rounds=3, resamples=20, within=0.9, warm_ms=0.1, visit_ms=0.1)
        reference = write_cell(tmp_path / "reference.onnx", (0, 1, 0, 2, 0, 1))
        with closing(Bench(transport, config, how, references={"reference": reference})) as bench:
            (record,) = bench.measure([Candidate("cell", network)])
        assert record.latency is not None
        assert record.latency.clock == "device"
        assert len(record.latency.engines) == 3
        assert record.latency.engine_spread == pytest.approx(0.0)  # the fake's events always say 6 ms
        kinds = [entry[0] for entry in newest.log if entry != "read engine"]
        assert kinds == ["build"] * 4  # and one of the reference, which links the three

    def test_the_folder_of_engines_is_bounded(self, newest, network, tmp_path):
        sizes = []
        for i in range(4):
            other = tmp_path / f"{i}.onnx"
            other.write_bytes(SPACE.to_onnx(Architecture("nb201", (i,) * 6), "cifar10").SerializeToString())
            dispatcher = Dispatcher(backend, emit=lambda message: None)
            config = SessionConfig("tensorrt", cache=str(tmp_path / "engines"), cache_mib=4.0)
            reply = dispatcher.handle({"op": "load", "id": "a", "path": str(other), "config": config.to_json()})
            assert reply["ok"], reply
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "engines").iterdir()))
            dispatcher.close()
        assert 0 < max(sizes) <= 4 * 2**20
        assert len([entry for entry in newest.log if entry != "read engine"]) == 4


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for i, name in enumerate(("a", "b", "c", "d")):
        (tmp_path / f"{name}.engine").write_bytes(b"x" * 2**20)
        os.utime(tmp_path / f"{name}.engine", (1000 + i, 1000 + i))
    (tmp_path / ".e.engine.1.part").write_bytes(b"x" * 2**20)  # of somebody who is writing
    engines.used(tmp_path / "a.engine")
    engines.bound(tmp_path, 2.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".e.engine.1.part", "a.engine", "d.engine"]
    engines.bound(tmp_path, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [".e.engine.1.part"]
    engines.bound(tmp_path / "nowhere", 1)


class TestFailures:
    def test_unsupported_operator(self, tensorrt, network):
        tensorrt.refuses = ("AveragePool",)
        with pytest.raises(Failure, match="AveragePool") as told:
            load(network)
        assert told.value.status is Status.UNSUPPORTED_OP

    def test_no_model(self, newest, tmp_path):
        path = tmp_path / "text.onnx"
        path.write_text("no model")
        with pytest.raises(Failure, match=r"text\.onnx") as told:
            load(path)
        assert told.value.status is Status.INVALID_MODEL

    @pytest.mark.parametrize(
        ("said", "status"),
        [("Could not find any implementation for node", Status.CRASHED), ("Out of memory", Status.OUT_OF_MEMORY)],
    )
    def test_a_build_that_fails_says_why(self, newest, network, said, status):
        newest.fails = said
        with pytest.raises(Failure, match=said) as told:
            load(network)
        assert told.value.status is status

    def test_a_full_device_leaves_nothing_behind(self, newest, cuda, network):
        cuda.capacity = 4 * 3 * 32 * 32  # room for the input alone
        with pytest.raises(Failure) as told:
            load(network)
        assert told.value.status is Status.OUT_OF_MEMORY
        assert (cuda.memory, cuda.streams, cuda.events) == ({}, 0, 0)

    def test_a_damaged_engine_is_built_again(self, newest, network, tmp_path):
        load(network, cache=str(tmp_path))
        (engine,) = tmp_path.glob("*.engine")
        whole = engine.read_bytes()
        engine.write_bytes(b"damaged")
        assert load(network, cache=str(tmp_path)).memory().engine == len(whole)
        assert engine.read_bytes() == whole

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"options": {"mod": "graph"}}, "no option 'mod'"),
            ({"options": {"mode": "eager"}}, "graph or stream"),
            ({"precision": "fp8"}, "fp32, fp16, int8"),
        ],
    )
    def test_what_cannot_be_is_refused(self, newest, network, config, message):
        with pytest.raises(Failure, match=message):
            load(network, **config)


class TestProbe:
    def test_a_device(self, tensorrt, monkeypatch):
        monkeypatch.setattr(host, "nvidia_gpu", lambda: None)
        info = backend("tensorrt").probe()
        assert info.available, info.reason
        assert info.device == "Fake GPU"
        assert info.facts["compute capability"] == "9.0"
        assert info.facts["cuda driver"] == "13.1"
        assert info.versions == {"tensorrt": tensorrt.module.__version__}

    def test_no_device(self, newest, cuda):
        cuda.devices = 0
        info = backend("tensorrt").probe()
        assert not info.available
        assert "NoDevice" in info.reason

    def test_no_device_is_found_out_before_tensorrt_is_touched(self, newest, cuda, network):
        """Without a driver TensorRT's own runtime ends the process."""
        cuda.devices = 0
        newest.module.Builder = None
        with pytest.raises(Failure) as told:
            load(network)
        assert told.value.status is Status.BACKEND_UNAVAILABLE

    def test_no_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        info = backend("tensorrt").probe()
        assert not info.available
        assert "hwnas[tensorrt]" in info.reason


@pytest.mark.gpu
def test_on_a_gpu(network):
    info = backend("tensorrt").probe()
    if not info.available:
        pytest.skip(info.reason)
    expected = backend("ort-cpu").load(network, SessionConfig("ort-cpu"))
    model = load(network)
    assert difference(model.outputs(model.inputs())[0], expected.outputs(model.inputs())[0]) < 1e-3
    assert all(0 < sample.device_ns < 1.2 * sample.wall_ns for sample in model.timed(5, loops=20))
    memory = model.memory()
    assert memory.engine > 0
    model.close()
