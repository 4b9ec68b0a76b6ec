"""What single runtimes do beyond their contract (test_profiling_backends.py): options, precision, memory, calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Status
from hwnas.devices import load_device
from hwnas.profiling.backend import Failure, SessionConfig
from hwnas.profiling.profiler import session_config
from hwnas.profiling.transport import LocalTransport
from hwnas.profiling.worker.runtimes import ort, torch_runtime
from hwnas.profiling.worker.runtimes.registry import backend
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.spaces import difference

SPACE = NasBench201()
CELL = Architecture("nb201", (3, 1, 2, 0, 4, 3))
IMAGE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "cell.onnx"
    path.write_bytes(SPACE.to_onnx(CELL, "cifar10").SerializeToString())
    return path


def write(path: Path, *nodes, shape=("n", 4), kind=TensorProto.FLOAT, opset=18) -> Path:
    """A model from `x` to `y`."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes), "test", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def weight_bytes(path: Path) -> int:
    return sum(4 * int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)


def test_a_network_that_is_all_constants_has_no_memory_plan_and_says_why(tmp_path):
    path = tmp_path / "constant.onnx"
    path.write_bytes(SPACE.to_onnx(Architecture("nb201", (0,) * 6), "cifar10").SerializeToString())
    memory = backend("ort-cpu").load(path, SessionConfig("ort-cpu")).memory()
    assert memory.activation_peak is None
    assert "constants" in memory.source["reason"]


class TestTorchOnTheCpu:
    def test_channels_last_is_the_same_function(self, network):
        plain = backend("torch-cpu").load(network, SessionConfig("torch-cpu"))
        options = {"memory_format": "channels_last"}
        model = backend("torch-cpu").load(network, SessionConfig("torch-cpu", options=options))
        assert difference(model.outputs(model.inputs())[0], plain.outputs(plain.inputs())[0]) < 1e-4
        assert "channels_last" in model.providers

    def test_half_precision_is_less_precise(self, network):
        plain = backend("torch-cpu").load(network, SessionConfig("torch-cpu"))
        model = backend("torch-cpu").load(network, SessionConfig("torch-cpu", precision="fp16"))
        (found,), (wanted,) = model.outputs(plain.inputs()), plain.outputs(plain.inputs())
        assert found.dtype == np.float32
        assert 1e-6 < difference(found, wanted) < 0.1
        assert model.memory().weights < 0.6 * plain.memory().weights

    def test_threads_are_those_of_the_configuration(self, network):
        import torch

        before = torch.get_num_threads()
        try:
            two = backend("torch-cpu").load(network, SessionConfig("torch-cpu", threads=2))
            one = backend("torch-cpu").load(network, SessionConfig("torch-cpu", threads=1))
            two.run()
            assert torch.get_num_threads() == 2
            one.run()
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    def test_memory_tells_its_sources(self, network):
        memory = backend("torch-cpu").load(network, SessionConfig("torch-cpu")).memory()
        assert memory.weights == pytest.approx(weight_bytes(network), rel=0.01)
        assert memory.activation_peak >= 2 * 4 * 16 * 32 * 32  # a stage's input and output
        assert {"weights", "activation_peak"} <= memory.source.keys()

    @pytest.mark.parametrize(
        ("config", "status", "message"),
        [
            ({"options": {"mode": "graph"}}, Status.BACKEND_UNAVAILABLE, "CUDA only"),
            ({"options": {"mod": "eager"}}, Status.BACKEND_UNAVAILABLE, "no option 'mod'"),
            ({"options": {"memory_format": "nchw"}}, Status.BACKEND_UNAVAILABLE, "channels_last"),
            ({"precision": "int8"}, Status.INVALID_MODEL, "fp32, fp16"),
        ],
    )
    def test_what_cannot_be_is_refused(self, network, config, status, message):
        with pytest.raises(Failure, match=message) as told:
            backend("torch-cpu").load(network, SessionConfig("torch-cpu", **config))
        assert told.value.status is status

    def test_unknown_operator(self, tmp_path):
        path = write(tmp_path / "odd.onnx", helper.make_node("GlobalLpPool", ["x"], ["y"]), shape=(1, 2, 3, 3))
        with pytest.raises(Failure, match="GlobalLpPool") as told:
            backend("torch-cpu").load(path, SessionConfig("torch-cpu"))
        assert told.value.status is Status.UNSUPPORTED_OP

    def test_a_worker_runs_it(self, network):
        transport = LocalTransport()
        transport.start()
        try:
            config = SessionConfig("torch-cpu").to_json()
            info = transport.call({"op": "probe", "runtime": "torch-cpu"}, timeout=120)["info"]
            loaded = transport.call({"op": "load", "id": "a", "path": str(network), "config": config}, timeout=120)
            told = transport.call({"op": "round", "visits": [["a", 1, 2, 1]]}, timeout=120)
        finally:
            transport.close()
        assert info["available"]
        assert info["versions"]["torch"]
        assert loaded["providers"][0] == "torch cpu"
        assert len(told["samples"]["a"]) == 2


class FakeCuda:
    """As much of `torch.cuda` as the runtime uses, with the order of its calls; computes on the CPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded = 0

    def install(self, monkeypatch) -> None:
        import torch

        fake, log = self, self.calls.append

        class Stream:
            name = "side"

            def wait_stream(self, other):
                log(f"{self.name} waits for {other.name}")

            def synchronize(self):
                log("stream synchronize")

        class Main(Stream):
            name = "main"

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                fake.recorded += 1
                self.name = f"event{fake.recorded}"

            def record(self):
                log(f"record {self.name}")

            def synchronize(self):
                log(f"wait {self.name}")
                self.done = True

            def elapsed_time(self, end):
                assert end.done, "read before the device was there"
                return 6.0

        class Within:
            def __init__(self, name):
                self.name = name

            def __enter__(self):
                log(f"enter {self.name}")

            def __exit__(self, *error):
                log(f"leave {self.name}")

        class Graph:
            def replay(self):
                log("replay")

        main = Main()
        for name, value in {
            "is_available": lambda: True,
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "current_stream": lambda: main,
            "stream": lambda stream: Within("side stream"),
            "graph": lambda graph: Within("capture"),
            "synchronize": lambda: log("synchronize"),
            "mem_get_info": lambda: (6 << 30, 8 << 30),
            "memory_allocated": lambda: 1000,
            "max_memory_allocated": lambda: 5000,
            "reset_peak_memory_stats": lambda: log("reset peak"),
            "empty_cache": lambda: log("empty cache"),
        }.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch_runtime, "_place", lambda device: torch.device("cpu"))


class TestTorchOnCudaLogic:
    @pytest.fixture
    def cuda(self, monkeypatch):
        import torch

        fake, flags = FakeCuda(), (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [flag.allow_tf32 for flag in flags]
        fake.install(monkeypatch)
        yield fake
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value

    def test_a_graph_is_captured_after_runs_on_a_side_stream(self, cuda, network):
        model = backend("torch-cuda").load(network, SessionConfig("torch-cuda"))
        assert cuda.calls == [
            "side waits for main",
            "enter side stream",
            "leave side stream",
            "main waits for side",
            "enter capture",
            "leave capture",
        ]
        assert model.providers == ("torch cuda", "graph", "fp32, tf32 off", "contiguous")

    def test_events_enclose_the_launches(self, cuda, network):
        model = backend("torch-cuda").load(network, SessionConfig("torch-cuda"))
        cuda.calls.clear()
        (sample,) = model.timed(1, loops=3)
        assert cuda.calls == ["record event1", *["replay"] * 3, "record event2", "wait event2"]
        assert sample.device_ns == pytest.approx(2e6)  # 6 ms for 3 inferences

    def test_a_run_ends_synchronised(self, cuda, network):
        model = backend("torch-cuda").load(network, SessionConfig("torch-cuda"))
        cuda.calls.clear()
        model.run(2)
        assert cuda.calls == ["replay", "replay", "stream synchronize"]

    def test_eager_launches_no_graph(self, cuda, network):
        config = SessionConfig("torch-cuda", options={"mode": "eager", "tf32": True})
        model = backend("torch-cuda").load(network, config)
        model.timed(2)
        assert "replay" not in cuda.calls
        assert "enter capture" not in cuda.calls
        assert model.providers[1:3] == ("eager", "fp32, tf32 on")

    def test_tf32_is_off_unless_asked_for(self, cuda, network):
        import torch

        for wanted in (True, False):
            backend("torch-cuda").load(network, SessionConfig("torch-cuda", options={"tf32": wanted}))
            assert torch.backends.cudnn.allow_tf32 is wanted
            assert torch.backends.cuda.matmul.allow_tf32 is wanted

    def test_memory_is_the_peak_over_what_was_there(self, cuda, network):
        memory = backend("torch-cuda").load(network, SessionConfig("torch-cuda")).memory()
        assert memory.activation_peak == 4000
        assert memory.device == 5000
        assert "reset peak" in cuda.calls


@pytest.mark.gpu
class TestTorchOnCuda:
    @pytest.fixture(autouse=True)
    def needs_cuda(self):
        info = backend("torch-cuda").probe()
        if not info.available:
            pytest.skip(info.reason)

    @pytest.mark.parametrize("mode", ["eager", "graph"])
    def test_equals_onnx_runtime(self, network, mode):
        expected = backend("ort-cpu").load(network, SessionConfig("ort-cpu"))
        model = backend("torch-cuda").load(network, SessionConfig("torch-cuda", options={"mode": mode}))
        assert difference(model.outputs(model.inputs())[0], expected.outputs(model.inputs())[0]) < 1e-4

    @pytest.mark.parametrize("mode", ["eager", "graph"])
    def test_device_time_is_within_host_time(self, network, mode):
        model = backend("torch-cuda").load(network, SessionConfig("torch-cuda", options={"mode": mode}))
        model.run(20)
        samples = model.timed(10, loops=20)
        assert all(0 < sample.device_ns < 1.2 * sample.wall_ns for sample in samples)

    def test_memory(self, network):
        memory = backend("torch-cuda").load(network, SessionConfig("torch-cuda")).memory()
        assert memory.weights == pytest.approx(weight_bytes(network), rel=0.01)
        assert 0 < memory.activation_peak < memory.device


class TestOnnxRuntime:
    def test_memory(self, network):
        memory = backend("ort-cpu").load(network, SessionConfig("ort-cpu")).memory()
        assert memory.weights == pytest.approx(weight_bytes(network), rel=0.05)
        assert memory.activation_peak > 4 * 16 * 32 * 32
        assert memory.engine is None
        assert memory.source.keys() == {"weights", "activation_peak", "rss_delta"}

    def test_a_missing_provider_is_said(self, network):
        with pytest.raises(Failure, match="no TensorrtExecutionProvider") as told:
            backend("ort-trt").load(network, SessionConfig("ort-trt"))
        assert told.value.status is Status.BACKEND_UNAVAILABLE

    def test_silent_fallback_is_refused(self, network, monkeypatch):
        """ONNX Runtime is given a provider that it cannot load, and would go on with the CPU."""
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CUDA, ort.CPU])
        with pytest.raises(Failure, match=ort.CUDA) as told:
            backend("ort-cuda").load(network, SessionConfig("ort-cuda"))
        assert told.value.status is Status.EP_FALLBACK

    def test_fp16_is_not_pretended(self, network):
        with pytest.raises(Failure, match="takes fp32") as told:
            backend("ort-cpu").load(network, SessionConfig("ort-cpu", precision="fp16"))
        assert told.value.status is Status.INVALID_MODEL

    def test_fp16_models_run(self, tmp_path):
        path = write(
            tmp_path / "half.onnx", helper.make_node("Relu", ["x"], ["y"]), shape=(2, 4), kind=TensorProto.FLOAT16
        )
        model = backend("ort-cpu").load(path, SessionConfig("ort-cpu", precision="fp16"))
        assert model.outputs(model.inputs())[0].dtype == np.float16


class FakeSession:
    """An ONNX Runtime session on a provider that is not here; keeps what it was made with."""

    def __init__(self, path, options, providers):
        self.path, self.options, ((self.provider, self.provider_options),) = path, options, providers

    def disable_fallback(self):
        pass

    def get_providers(self):
        return [self.provider, ort.CPU]

    def get_inputs(self):
        return [SimpleNamespace(name="input", shape=list(IMAGE), type="tensor(float)")]

    def get_outputs(self):
        return [SimpleNamespace(name="output", shape=[1, 10], type="tensor(float)")]

    def io_binding(self):
        return self

    def bind_ortvalue_input(self, name, value):
        self.bound = {name: value}

    def bind_ortvalue_output(self, name, value):
        self.bound[name] = value


class TestGpuProviders:
    @pytest.fixture
    def sessions(self, monkeypatch):
        import onnxruntime

        made = []

        def create(*arguments, **named):
            made.append(FakeSession(*arguments, **named))
            return made[-1]

        class Value:
            def __init__(self, *where):
                self.where = where

        values = SimpleNamespace(
            ortvalue_from_numpy=lambda array, device, number: Value("filled", device),
            ortvalue_from_shape_and_type=lambda shape, kind, device, number: Value(tuple(shape), device),
        )
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.TENSORRT, ort.CUDA, ort.CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", create)
        monkeypatch.setattr(onnxruntime, "OrtValue", values)
        return made

    def test_cuda_options(self, sessions, network):
        config = SessionConfig("ort-cuda", options={"enable_cuda_graph": True, "session.use_env_allocators": 1})
        backend("ort-cuda").load(network, config)
        (session,) = sessions
        assert session.provider_options == {
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
            "enable_cuda_graph": "True",
        }
        assert session.options.get_session_config_entry("session.use_env_allocators") == "1"
        assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"

    def test_inputs_and_outputs_stay_on_the_gpu(self, sessions, network):
        backend("ort-cuda").load(network, SessionConfig("ort-cuda"))
        assert {name: value.where for name, value in sessions[0].bound.items()} == {
            "input": ("filled", "cuda"),
            "output": ((1, 10), "cuda"),
        }

    def test_tensorrt_keeps_engines_and_timings(self, sessions, network, tmp_path, monkeypatch):
        cache = tmp_path / "engines"
        config = SessionConfig("ort-trt", precision="fp16", cache=str(cache))
        model = backend("ort-trt").load(network, config)
        options = sessions[0].provider_options
        prefix = options.pop("trt_engine_cache_prefix")
        assert options == {
            "trt_fp16_enable": "True",
            "trt_int8_enable": "False",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
        (cache / f"{prefix}_subgraph_sm90.engine").write_bytes(b"e" * 321)
        (cache / "hwnas-another_sm90.engine").write_bytes(b"e" * 1000)
        monkeypatch.setattr(model, "_profiled", list)
        assert model.memory().engine == 321

    def test_another_build_has_another_engine_and_none_of_the_timings(self, sessions, network, tmp_path):
        for build in (0, 1):
            backend("ort-trt").load(network, SessionConfig("ort-trt", cache=str(tmp_path), build=build))
        first, second = (session.provider_options for session in sessions)
        assert not second["trt_engine_cache_prefix"].startswith(first["trt_engine_cache_prefix"])
        assert (first["trt_timing_cache_enable"], second["trt_timing_cache_enable"]) == ("True", "False")

    def test_another_model_has_another_engine(self, sessions, network, tmp_path):
        other = tmp_path / "other.onnx"
        other.write_bytes(SPACE.to_onnx(CELL, "cifar10", seed=1).SerializeToString())
        for path in (network, other):
            backend("ort-trt").load(path, SessionConfig("ort-trt", cache=str(tmp_path)))
        first, second = (session.provider_options["trt_engine_cache_prefix"] for session in sessions)
        assert first != second

    def test_another_shape_of_a_model_has_another_engine(self, sessions, network, tmp_path):
        for shapes in ({}, {"input": IMAGE}):
            backend("ort-trt").load(network, SessionConfig("ort-trt", cache=str(tmp_path), shapes=shapes))
        first, second = (session.provider_options["trt_engine_cache_prefix"] for session in sessions)
        assert not second.startswith(first)


class TestOpenVino:
    @pytest.fixture(autouse=True)
    def needs_openvino(self):
        pytest.importorskip("openvino")

    def test_memory(self, network):
        memory = backend("openvino").load(network, SessionConfig("openvino")).memory()
        assert memory.weights == pytest.approx(weight_bytes(network), rel=0.01)
        assert memory.engine > memory.weights
        assert memory.source.keys() == {"weights", "engine", "rss_delta"}

    @pytest.mark.parametrize(("options", "pinned"), [({}, False), ({"ENABLE_CPU_PINNING": True}, True)])
    def test_its_thread_may_move_to_a_free_core_unless_told_otherwise(self, network, options, pinned):
        device = replace(load_device("openvino"), options=options)
        model = backend("openvino").load(network, session_config(device, "openvino"))
        assert model._compiled.get_property("ENABLE_CPU_PINNING") is pinned

    def test_int8_has_to_be_in_the_model(self, network):
        with pytest.raises(Failure, match="int8 has to be in the model"):
            backend("openvino").load(network, SessionConfig("openvino", precision="int8"))


class TestRegistry:
    def test_unknown_runtime(self):
        with pytest.raises(Failure, match=r"no runtime 'ort-gpu'.*torch-cpu"):
            backend("ort-gpu")
