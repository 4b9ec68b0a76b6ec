"""The contracts of a runtime and of a transport as tests, and a worker without a process for tests of the host.

    class TestMine(BackendSuite):
        config = SessionConfig("mine")

    class TestMyTransport(TransportSuite):
        def make(self):
            return MyTransport(...)

Both suites run networks of NAS-Bench-201. A runtime that is not installed here skips its suite with the reason that
its own probe gives; `Backend`s of a fake are tested as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Status
from hwnas.profiling.backend import Backend, DeviceInfo, Failure, LoadedModel, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.bench import Bench
from hwnas.profiling.transport import good
from hwnas.profiling.wire import Message, Transport, WorkerDied, WorkerTimeout, frame, unframe
from hwnas.profiling.worker.dispatch import Dispatcher
from hwnas.profiling.worker.runtimes.fake import Fake, SimulatedClock
from hwnas.profiling.worker.runtimes.registry import backend
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.spaces import difference

_SMALL, _LARGE = (0, 1, 0, 2, 0, 1), (3, 3, 1, 3, 2, 3)
_TOLERANCE = 1e-4  # of outputs, relative: what is promised for exported networks


class _Ended(BaseException):
    """A simulated end of the worker; no Exception, so that the dispatcher does not make an answer of it."""


class DirectTransport:
    """A worker in this process: no start-up, and with the runtime "fake" no waiting either.

    Messages pass through their frames as they do in a real one. A network that crashes or hangs the simulated device
    ends the session as it would end a process; time is that of `clock`, deadlines included.

    Args:
        find: A runtime by its name; default: the fake one of this transport, and the real ones.
        name: Of this worker; sessions with the fake runtime and a seed repeat for the same name.

    Attributes:
        clock: Simulated seconds, over all sessions; to be given to the `Bench` as well.
        sessions: How many were started.
        noise: 0.
    """

    noise = 0

    def __init__(self, find: Callable[[str], Backend] = backend, *, name: str = "direct") -> None:
        self._find, self._name = find, name
        self._dispatcher: Dispatcher | None = None
        self._at: str | None = None
        self.clock = SimulatedClock()
        self.sessions = 0

    def start(self) -> None:
        """Begin a fresh session; one that runs is ended first."""
        self.close()
        self.sessions += 1
        fake = Fake(f"{self._name}-{self.sessions}", clock=self.clock, end=_end)
        self._dispatcher = Dispatcher(
            lambda name: fake if name == "fake" else self._find(name), emit=self._told, clock=self.clock
        )

    def call(self, request: Message, *, timeout: float) -> dict[str, Any]:
        """See `hwnas.profiling.wire.Transport`."""
        if self._dispatcher is None:
            raise WorkerDied("the worker has not been started")
        began, self._at = self.clock.now, None
        try:
            reply = _framed(self._dispatcher.handle(_framed(request)))
        except _Ended as ended:
            self._dispatcher = None  # nothing is unloaded in order when a process ends
            if str(ended) != "hang":
                raise WorkerDied(f"the simulated worker ended: {ended}", at=self._at) from None
            self.clock.now += timeout
        if self._dispatcher is None or self.clock.now - began > timeout:
            self._dispatcher = None
            raise WorkerTimeout(f"no answer to {request.get('op')!r} within {timeout:.0f} s", at=self._at)
        if request.get("op") == "quit":
            self._dispatcher = None
        return good(reply, self._at)

    def put(self, path: str) -> str:
        """The path itself."""
        return path

    def close(self) -> None:
        """End the session; closing twice does nothing."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None

    def _told(self, message: Message) -> None:
        self._at = _framed(message).get("id", self._at)


def _end(fault: str) -> NoReturn:
    raise _Ended(fault)


def _framed(message: Message) -> dict[str, Any]:
    found = unframe(frame(message))
    assert found is not None
    return found


def write_cell(path: Path, code: tuple[int, ...]) -> Path:
    """A cell of NAS-Bench-201 on 32 x 32 images as an ONNX file; input "input", `1 x 3 x 32 x 32`."""
    space = NasBench201()
    path.write_bytes(space.to_onnx(Architecture(space.name, code), "cifar10").SerializeToString())
    return path


class BackendSuite:
    """Every runtime: says whether it is here, runs networks and tells how long each took, refuses in statuses.

    Attributes:
        config: How networks are run; its runtime is the one under test.
        numerics: Largest difference of outputs from those of ONNX Runtime, relative.
        in_order: Whether a network of 19 times the work is slower for certain.
    """

    config = SessionConfig("")
    numerics = _TOLERANCE
    in_order = True

    def backend(self) -> Backend:
        """The runtime."""
        return backend(self.config.runtime)

    @pytest.fixture
    def runtime(self) -> Backend:
        found = self.backend()
        info = found.probe()
        if not info.available:
            pytest.skip(info.reason)
        return found

    @pytest.fixture
    def network(self, tmp_path: Path) -> Path:
        return write_cell(tmp_path / "cell.onnx", _LARGE)

    @pytest.fixture
    def model(self, runtime: Backend, network: Path) -> Iterator[LoadedModel]:
        loaded = runtime.load(network, self.config)
        yield loaded
        loaded.close()

    def test_probe_says_what_is_here_or_why_not(self) -> None:
        info = self.backend().probe()
        assert info.available == (info.reason == "")
        if info.available:
            assert info.device
            assert info.versions
            assert info.facts
        assert all(isinstance(text, str) for text in (*info.facts.values(), *info.versions.values()))
        assert DeviceInfo.from_json(json.loads(json.dumps(info.to_json()))) == info

    def test_probing_again_finds_the_same_device(self, runtime: Backend) -> None:
        assert runtime.probe() == runtime.probe()

    def test_free_memory_is_told_or_not_at_all(self, runtime: Backend) -> None:
        free = runtime.free_bytes(self.config)
        total = runtime.total_bytes(self.config)
        assert free is None or free > 0
        assert total is None or (free is not None and total >= free)

    def test_names_what_runs_it(self, model: LoadedModel) -> None:
        assert model.providers
        assert all(isinstance(name, str) and name for name in model.providers)
        assert model.build_s >= 0

    def test_inputs_are_those_of_the_model_and_always_the_same(self, runtime: Backend, network: Path) -> None:
        first, second = runtime.load(network, self.config), runtime.load(network, self.config)
        assert list(first.inputs()) == ["input"]
        assert first.inputs()["input"].shape == (1, 3, 32, 32)
        np.testing.assert_array_equal(first.inputs()["input"], second.inputs()["input"])
        first.close()
        second.close()

    def test_outputs_equal_those_of_onnx_runtime(self, model: LoadedModel, network: Path) -> None:
        import onnxruntime

        feeds = {"input": np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)}
        (wanted,) = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"]).run(None, feeds)
        (found,) = model.outputs(feeds)
        assert found.shape == wanted.shape == (1, 10)
        assert difference(np.asarray(found), wanted) < self.numerics

    def test_asking_for_outputs_does_not_change_what_is_timed(self, model: LoadedModel) -> None:
        before = {name: value.copy() for name, value in model.inputs().items()}
        model.outputs({name: 0 * value for name, value in before.items()})
        model.run(2)
        for name, value in model.inputs().items():
            np.testing.assert_array_equal(value, before[name])

    @pytest.mark.parametrize(("k", "loops"), [(1, 1), (4, 1), (2, 3)])
    def test_as_many_samples_as_asked_for_all_above_zero(self, model: LoadedModel, k: int, loops: int) -> None:
        model.run()
        samples = model.timed(k, loops=loops)
        assert len(samples) == k
        for sample in samples:
            assert math.isfinite(sample.wall_ns)
            assert sample.wall_ns > 0
            assert sample.cpu_ns >= 0
            assert sample.proc_cpu_ns >= 0
            assert sample.device_ns is None or sample.device_ns > 0
            assert sample.nivcsw >= 0
            assert sample.run_delay_ns >= 0

    def test_figures_are_for_one_inference(self, model: LoadedModel) -> None:
        model.run(3)
        one = min(sample.wall_ns for sample in model.timed(10))
        many = min(sample.wall_ns for sample in model.timed(3, loops=20))
        assert many < 8 * one

    def test_single_runs_beside_loops_are_runs_of_the_same_network(self, runtime: Backend, tmp_path: Path) -> None:
        """What a visit of a tiny network has: loops for its latency, and single runs that tell how it varies."""
        dispatcher = Dispatcher(lambda name: runtime, emit=lambda message: None)
        path = str(write_relu(tmp_path / "tiny.onnx"))
        loaded = dispatcher.handle({"op": "load", "id": "a", "path": path, "config": self.config.to_json()})
        assert loaded["ok"], loaded
        reply = dispatcher.handle({"op": "round", "visits": [["a", 1, 6, 20], ["a", 1, 40, 1]]})
        dispatcher.close()
        assert reply["ok"], reply
        samples = [Sample(*row) for row in reply["samples"]["a"]]
        assert len(samples) == 46
        looped, single = (min(sample.wall_ns for sample in part) for part in (samples[:6], samples[6:]))
        # launching and waiting are paid once in a loop; half as long would be no whole run
        assert looped / 2 < single
        if samples[0].device_ns is not None:
            assert all(sample.device_ns is not None and sample.device_ns > 0 for sample in samples)

    def test_much_more_work_takes_longer(self, runtime: Backend, network: Path, tmp_path: Path) -> None:
        if not self.in_order:
            pytest.skip("its figures do not follow the work")
        small = runtime.load(write_cell(tmp_path / "small.onnx", _SMALL), self.config)
        large = runtime.load(network, self.config)
        for model in (small, large):
            model.run(3)
        # interleaved, and the best of each: a busy machine slows both down
        times = [(small.timed(1)[0].wall_ns, large.timed(1)[0].wall_ns) for _ in range(30)]
        assert min(a for a, _ in times) < min(b for _, b in times)
        small.close()
        large.close()

    def test_networks_do_not_disturb_each_other(self, runtime: Backend, network: Path, tmp_path: Path) -> None:
        first = runtime.load(network, self.config)
        feeds = first.inputs()
        (before,) = first.outputs(feeds)
        second = runtime.load(write_cell(tmp_path / "small.onnx", _SMALL), self.config)
        second.run()
        second.close()
        (after,) = first.outputs(feeds)
        first.run()
        np.testing.assert_array_equal(after, before)
        first.close()

    def test_memory_is_told_with_its_source_or_not_at_all(self, model: LoadedModel) -> None:
        memory = model.memory()
        figures = {name: getattr(memory, name) for name in ("weights", "activation_peak", "engine", "device")}
        for name, value in figures.items():
            assert value is None or value > 0
            assert (value is None) or memory.source[name]
        assert MemoryInfo.from_json(json.loads(json.dumps(memory.to_json()))) == memory
        model.run()  # still there

    def test_closing_twice_does_nothing(self, runtime: Backend, network: Path) -> None:
        model = runtime.load(network, self.config)
        model.close()
        model.close()

    def test_what_is_no_model_is_refused(self, runtime: Backend, tmp_path: Path) -> None:
        path = tmp_path / "text.onnx"
        path.write_text("this is no model")
        told = self._refused(runtime, path)
        assert told["status"] == Status.INVALID_MODEL, told

    def test_half_a_model_is_refused(self, runtime: Backend, network: Path, tmp_path: Path) -> None:
        path = tmp_path / "half.onnx"
        path.write_bytes(network.read_bytes()[: network.stat().st_size // 2])
        told = self._refused(runtime, path)
        assert told["status"] == Status.INVALID_MODEL, told

    def test_a_missing_file_is_refused(self, runtime: Backend, tmp_path: Path) -> None:
        told = self._refused(runtime, tmp_path / "nowhere.onnx")
        assert told["status"] == Status.INVALID_MODEL, told

    def test_dynamic_shapes_have_to_be_told(self, runtime: Backend, tmp_path: Path) -> None:
        path = write_relu(tmp_path / "free.onnx", ("n", 4))
        told = self._refused(runtime, path)
        assert told["status"] == Status.INVALID_MODEL, told
        assert "--shape" in told["message"]
        assert "'x'" in told["message"]
        config = SessionConfig.from_json({**self.config.to_json(), "shapes": {"x": (5, 4)}})
        model = runtime.load(path, config)
        assert model.inputs()["x"].shape == (5, 4)
        model.run()
        model.close()

    def _refused(self, runtime: Backend, path: Path) -> dict[str, Any]:
        """What a worker would answer; what a runtime raises is its own affair."""
        dispatcher = Dispatcher(lambda name: runtime, emit=lambda message: None)
        reply = dispatcher.handle({"op": "load", "id": "a", "path": str(path), "config": self.config.to_json()})
        assert not reply["ok"], f"{path.name} was accepted"
        assert reply["message"], "refused without a word"
        return reply


def write_relu(path: Path, shape: tuple[int | str, ...] = (1, 4)) -> Path:
    """A network of one Relu from "x" to "y": the smallest one there is."""
    import onnx

    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return path


class TransportSuite:
    """Every way to a worker: answers in order, tells failures from ends, and can be started again."""

    timeout_s = 60.0

    def make(self) -> Transport:
        """A transport whose worker has the runtime "fake"; not started."""
        raise NotImplementedError("a suite says how its transport is made")

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        made = self.make()
        made.start()
        yield made
        made.close()

    @pytest.fixture
    def network(self, tmp_path: Path) -> Path:
        return write_cell(tmp_path / "cell.onnx", _SMALL)

    def load(self, transport: Transport, path: Path, name: str = "a", **options: Any) -> dict[str, Any]:
        """The reply to loading a network on the fake runtime."""
        config = SessionConfig("fake", options=options).to_json()
        request = {"op": "load", "id": name, "path": transport.put(str(path)), "config": config}
        return transport.call(request, timeout=self.timeout_s)

    def test_answers(self, transport: Transport, network: Path) -> None:
        info = transport.call({"op": "probe", "runtime": "fake"}, timeout=self.timeout_s)["info"]
        assert DeviceInfo.from_json(info).available
        loaded = self.load(transport, network)
        assert loaded["providers"] == ["simulated clock"]
        visits = [["a", 1, 3, 2], ["a", 1, 4, 1]]  # loops and, beside them, single runs
        told = transport.call({"op": "round", "visits": visits}, timeout=self.timeout_s)["samples"]
        assert [len(row) for row in told["a"]] == [6] * 7

    def test_a_failure_names_its_status_and_network(self, transport: Transport, network: Path) -> None:
        with pytest.raises(Failure, match="simulated operator") as told:
            self.load(transport, network, **{"fault.*": "unsupported"})
        assert (told.value.status, told.value.at) == (Status.UNSUPPORTED_OP, "a")
        self.load(transport, network)  # the worker is still there

    def test_an_unknown_request_is_a_failure(self, transport: Transport) -> None:
        with pytest.raises(Failure, match="no request 'dance'"):
            transport.call({"op": "dance"}, timeout=self.timeout_s)

    @pytest.mark.parametrize("fault", ["crash", "killed"])
    def test_an_end_names_the_network(self, transport: Transport, network: Path, fault: str) -> None:
        self.load(transport, network, name="good")
        with pytest.raises(WorkerDied) as told:
            self.load(transport, network, name="bad", **{"fault.*": fault})
        assert told.value.at == "bad"
        assert not told.value.out_of_memory

    def test_a_lack_of_memory_is_no_end(self, transport: Transport, network: Path) -> None:
        with pytest.raises(Failure) as told:
            self.load(transport, network, **{"fault.*": "oom"})
        assert told.value.status is Status.OUT_OF_MEMORY

    def test_a_hang_ends_at_its_deadline(self, transport: Transport, network: Path) -> None:
        self.load(transport, network, name="slow", **{"fault.*": "hang@3"})
        with pytest.raises(WorkerTimeout, match="'round' within 1 s") as told:
            transport.call({"op": "round", "visits": [["slow", 1, 4, 1]]}, timeout=1.0)
        assert told.value.at == "slow"

    def test_after_an_end_it_can_be_started_again(self, transport: Transport, network: Path) -> None:
        with pytest.raises(WorkerDied):
            self.load(transport, network, **{"fault.*": "crash"})
        with pytest.raises(WorkerDied):
            self.load(transport, network)
        transport.start()
        self.load(transport, network)

    def test_starting_again_forgets_what_was_loaded(self, transport: Transport, network: Path) -> None:
        self.load(transport, network)
        transport.start()
        with pytest.raises(Failure, match="a is not loaded"):
            transport.call({"op": "memory", "id": "a"}, timeout=self.timeout_s)

    def test_garbage_is_passed_over(self, transport: Transport, network: Path) -> None:
        self.load(transport, network, **{"fault.*": "garbage"})
        assert transport.call({"op": "memory", "id": "a"}, timeout=self.timeout_s)["memory"]["weights"] > 0

    def test_closing_twice_does_nothing(self) -> None:
        made = self.make()
        made.close()
        made.start()
        made.close()
        made.close()
        with pytest.raises(WorkerDied, match="not been started"):
            made.call({"op": "state"}, timeout=self.timeout_s)


def simulated_bench(*, options: dict[str, Any] | None = None, name: str = "direct", **settings: Any) -> Bench:
    """A bench on the fake runtime in this process, in simulated time.

    Args:
        options: Of the runtime.
        name: Of the worker: with a seed among the options, another name is another run of the same networks.
        settings: Arguments of `Bench`.
    """
    transport = DirectTransport(name=name)
    config = SessionConfig("fake", options=options or {})
    return Bench(transport, config, clock=transport.clock, **settings)
