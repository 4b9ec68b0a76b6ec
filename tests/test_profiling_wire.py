"""Frames, requests and replies, processes that do not behave, the machine's fingerprint, energy meters."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.measurement import Status
from hwnas.errors import DeviceUnavailable
from hwnas.profiling import energy, host
from hwnas.profiling.backend import Failure, Sample, SessionConfig
from hwnas.profiling.transport import LocalTransport, ProcessTransport, SshTransport
from hwnas.profiling.wire import RS, WorkerDied, WorkerTimeout, frame, unframe
from hwnas.profiling.worker import dispatch
from hwnas.profiling.worker.clock import sample
from hwnas.profiling.worker.dispatch import Dispatcher, explain
from hwnas.profiling.worker.inputs import make_inputs
from hwnas.testing.profiling import DirectTransport, write_relu

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

# -- frames ----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_message_is_one_line_and_comes_back(message: dict[str, Any]) -> None:
    line = frame(message)
    assert line.startswith(RS)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert line.isascii()  # whatever the encoding of the other side
    assert unframe(line) == message


@given(st.text())
def test_noise_is_never_a_message_and_never_an_error(text: str) -> None:
    assert unframe(text.lstrip(RS)) is None
    found = unframe(RS + text)
    assert found is None or isinstance(found, dict)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.data())
def test_half_a_frame_is_noise(message: dict[str, Any], data: st.DataObject) -> None:
    line = frame(message).rstrip("\n")
    assert unframe(line[: data.draw(st.integers(0, len(line) - 1))]) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_not_sent(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        frame({"x": value})


CONFIGS = st.builds(
    SessionConfig,
    st.sampled_from(["ort-cpu", "fake", "ort:Abc"]),
    threads=st.integers(1, 64),
    spinning=st.booleans(),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    cpus=st.lists(st.integers(0, 9)).map(tuple),
    options=st.dictionaries(st.text(), st.text() | st.integers(-9, 9) | st.booleans(), max_size=3),
    cache=st.none() | st.text(),
    memory_limit_mib=st.none() | st.floats(1, 1e6),
    shapes=st.dictionaries(st.text(), st.lists(st.integers(1, 9)).map(tuple), max_size=2),
)


@given(CONFIGS)
def test_configurations_survive_the_wire(config: SessionConfig) -> None:
    told = unframe(frame(config.to_json()))
    assert told is not None
    assert SessionConfig.from_json(told) == config


# -- requests --------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from(["load", "warm", "round", "memory", "x", None]))
def test_no_request_breaks_the_worker(message: dict[str, Any], op: str | None) -> None:
    def no_runtime(name: str) -> Any:
        raise Failure(Status.BACKEND_UNAVAILABLE, f"no {name}")

    reply = Dispatcher(no_runtime, emit=lambda told: None).handle({**message, "op": op})
    assert reply["ok"] is (reply.get("samples") == {})
    assert reply["ok"] or Status(reply["status"])
    frame(reply)


class Steps:
    """A model whose runs take given times, one after the other; the last for ever."""

    build_s = 0.0
    providers = ("steps",)

    def __init__(self, times_ms: list[float]) -> None:
        self.times, self.closed = list(times_ms), 0

    def run(self, n: int = 1) -> None:
        del n

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        del loops
        return [Sample(1e6 * (self.times.pop(0) if len(self.times) > 1 else self.times[0]), 1.0, 1.0) for _ in range(k)]

    def close(self) -> None:
        self.closed += 1


def warm(times_ms: list[float], **limits: float) -> dict[str, Any]:
    model = Steps(times_ms)
    runtime: Any = SimpleNamespace(load=lambda path, config: model)
    worker = Dispatcher(lambda name: runtime, emit=lambda told: None)
    assert worker.handle({"op": "load", "id": "a", "path": "x", "config": {"runtime": "steps"}})["ok"]
    asked = {"min_runs": 3, "min_ms": 0.0, "max_runs": 50, "max_ms": 1000.0, "tol": 0.05, **limits}
    return worker.handle({"op": "warm", "id": "a", **asked})


def test_warming_up_ends_when_two_blocks_agree() -> None:
    assert warm([1.0]) == {"ok": True, "runs": 10, "steady": True, "run_ms": 1.0}
    falling = warm([8.0] * 5 + [4.0] * 5 + [2.0] * 5 + [1.0] * 10)
    assert (falling["runs"], falling["steady"], falling["run_ms"]) == (25, True, 1.0)


def test_warming_up_ends_at_its_limits_and_says_that_it_is_not_steady() -> None:
    restless = [1.0] * 5 + [2.0] * 5
    told = warm(restless * 20)
    assert (told["runs"], told["steady"]) == (50, False)
    assert warm([300.0] * 5 + [100.0] * 5)["runs"] == 5  # more than max_ms in the first block
    assert warm([0.01], min_ms=1.0)["runs"] >= 100  # a small network needs more runs than max_runs


def test_loading_again_closes_what_was_loaded_before() -> None:
    models = [Steps([1.0]), Steps([1.0])]
    waiting = list(models)
    runtime: Any = SimpleNamespace(load=lambda path, config: waiting.pop(0))
    worker = Dispatcher(lambda name: runtime, emit=lambda told: None)
    for _ in range(2):
        worker.handle({"op": "load", "id": "a", "path": "x", "config": {"runtime": "steps"}})
    assert [model.closed for model in models] == [1, 0]
    worker.handle({"op": "quit"})
    assert models[1].closed == 1


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_true_are_a_failure_of_their_network(wrong: float) -> None:
    told = warm([wrong])
    assert (told["ok"], told["status"]) == (False, "crashed")
    assert "above 0" in told["message"]


def test_outputs_are_written_with_their_inputs(tmp_path: Path) -> None:
    transport = DirectTransport()
    transport.start()
    config = SessionConfig("fake").to_json()
    path = str(write_relu(tmp_path / "a.onnx"))
    transport.call({"op": "load", "id": "a", "path": path, "config": config}, timeout=9)
    told = transport.call({"op": "outputs", "id": "a", "path": str(tmp_path / "out.npz")}, timeout=9)
    kept = np.load(tmp_path / "out.npz")
    assert told["names"] == ["output0"]
    np.testing.assert_array_equal(kept["output0"], np.maximum(kept["input:x"], 0))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no"), Status.OUT_OF_MEMORY),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for 4 GB"), Status.OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate"), Status.OUT_OF_MEMORY),
        (RuntimeError("Fatal error: x:Odd(-1) is not a registered function/op"), Status.UNSUPPORTED_OP),
        (
            RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation"),
            Status.UNSUPPORTED_OP,
        ),
        (RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed"), Status.INVALID_MODEL),
        (FileNotFoundError("x.onnx"), Status.INVALID_MODEL),
        (ImportError("libcudnn.so.9"), Status.BACKEND_UNAVAILABLE),
        (Failure(Status.EP_FALLBACK, "cpu"), Status.EP_FALLBACK),
        (ValueError("anything else"), Status.CRASHED),
    ],
)
def test_what_runtimes_raise_becomes_a_status(error: Exception, status: Status) -> None:
    found, message = explain(error)
    assert found is status
    assert message


def test_inputs_are_made_once_for_all_runtimes() -> None:
    declared: Any = [
        ("x", (1, "n"), np.dtype(np.float32)),
        ("i", (4,), np.dtype(np.int64)),
        ("b", (), np.dtype(np.bool_)),
    ]
    made = make_inputs(declared, {"x": (1, 3)})
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        "x": ((1, 3), np.float32),
        "i": ((4,), np.int64),
        "b": ((), np.bool_),
    }
    assert set(np.unique(made["i"])) <= {0, 1}
    np.testing.assert_array_equal(make_inputs(declared, {"x": (1, 3)})["x"], made["x"])
    for wrong in ((2, 3), (1, 3, 1), (1, 0)):
        with pytest.raises(Failure, match="does not fit"):
            make_inputs(declared, {"x": wrong})


def test_a_sample_is_of_one_inference() -> None:
    told = sample(lambda n: time.sleep(0.002 * n), 5, device_ns=lambda: 50.0)
    assert told.wall_ns >= 2e6
    assert told.cpu_ns < told.wall_ns
    assert told.device_ns == 10.0
    assert told.nivcsw >= 0


# -- processes that do not behave ------------------------------------------------------------------------------------


def program(code: str) -> ProcessTransport:
    """A worker that is this program; it finds `say(message)` and `asked()` ready."""
    start = (
        "import sys, json, time, os\n"
        "def asked(): return json.loads(sys.stdin.readline().lstrip('\\x1e'))\n"
        "def say(m): sys.stdout.write('\\x1e' + json.dumps(m) + '\\n'); sys.stdout.flush()\n"
    )
    return ProcessTransport([sys.executable, "-c", start + code])


def call(transport: ProcessTransport, timeout: float = 30.0) -> dict[str, Any]:
    transport.start()
    try:
        return transport.call({"op": "x"}, timeout=timeout)
    finally:
        transport.close()


def test_garbage_on_standard_output_is_counted_and_passed_over() -> None:
    transport = program(
        "n = asked()['n']\nsys.stdout.buffer.write(b'[W] hello\\n\\x1e{half\\n\\x1e[1]\\n\\xff\\xfe\\x00\\n'); "
        "say({'n': n - 1, 'ok': True, 'late': 1})\nsay({'ok': True, 'n': n, 'x': 5})\n"
    )
    assert call(transport)["x"] == 5
    assert transport.noise == 4


def test_a_worker_that_floods_its_output_does_not_block() -> None:
    code = (
        "n = asked()['n']\nfor i in range(200): print('x' * 5000); print('y' * 5000, file=sys.stderr)\n"
        "say({'ok': True, 'n': n})\n"
    )
    assert call(program(code))["ok"]


def test_how_a_worker_ended_is_told_with_its_last_words() -> None:
    with pytest.raises(WorkerDied, match=r"exit status 7; it said: [\s\S]*segfault in libodd") as told:
        call(
            program(
                "asked(); say({'event': 'at', 'id': 'net'}); print('segfault in libodd', file=sys.stderr); sys.exit(7)"
            )
        )
    assert told.value.at == "net"
    assert not told.value.out_of_memory
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        call(program("asked(); os.kill(os.getpid(), 11)"))
    with pytest.raises(WorkerDied) as told:
        call(program("asked(); print('terminate: std::bad_alloc', file=sys.stderr); os.abort()"))
    assert told.value.out_of_memory


def test_a_deadline_is_kept_and_nothing_of_the_worker_is_left(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    transport = program(
        "import subprocess; p = subprocess.Popen(['sleep', '100'])\n"
        f"open({str(note)!r}, 'w').write(str(p.pid)); asked()\n"
        "say({'event': 'at', 'id': 'slow'}); time.sleep(100)"
    )
    transport.start()
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(WorkerTimeout, match="'x' within 1 s") as told:
        transport.call({"op": "x"}, timeout=1.0)
    assert told.value.at == "slow"
    stat = Path(f"/proc/{note.read_text()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_worker_that_does_not_start_is_an_error_of_the_device() -> None:
    with pytest.raises(DeviceUnavailable, match=r"no-such-python -m hwnas\.profiling\.worker does not start"):
        LocalTransport("no-such-python").start()
    with pytest.raises(WorkerDied, match="exit status 1; it said"):
        call(ProcessTransport([sys.executable, "-m", "hwnas.no_such_module"]))


def test_ssh_copies_a_file_once_and_runs_what_is_there(tmp_path: Path) -> None:
    """With a program in place of ssh that runs its last argument here."""
    log = tmp_path / "log"
    fake = tmp_path / "ssh"
    fake.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" | cut -c1-20 >> {log}\nexec sh -c "$last"\n')
    fake.chmod(0o755)
    transport = SshTransport("pi@board", python=sys.executable, ssh=(str(fake),))
    path = write_relu(tmp_path / "net.onnx")
    there = transport.put(str(path))
    assert Path(there).read_bytes() == path.read_bytes()
    assert transport.put(str(path)) == there
    assert len(log.read_text().splitlines()) == 1
    transport.start()
    assert transport.call({"op": "probe", "runtime": "fake"}, timeout=60)["info"]["available"]
    transport.close()
    Path(there).unlink()
    fake.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    with pytest.raises(DeviceUnavailable, match=r"cannot be copied to pi@board: Permission denied"):
        SshTransport("pi@board", ssh=(str(fake),)).put(str(path))
    with pytest.raises(WorkerDied, match="Permission denied"):
        call(SshTransport("pi@board", ssh=(str(fake),)))


# -- the machine -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_what_does_not_change() -> None:
    assert host.fingerprint(host.facts()) == host.fingerprint(host.facts())
    assert host.fingerprint({"a": "1", "b": "2"}) == host.fingerprint({"b": "2", "a": "1"})
    assert host.fingerprint({"a": "1"}) != host.fingerprint({"a": "2"}) != host.fingerprint({"b": "2"})
    assert all(isinstance(value, str) and value for value in host.facts().values())


def test_another_machine_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(name: str, **files: str) -> dict[str, str]:
        for path, text in files.items():
            place = tmp_path / name / path.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        monkeypatch.setattr(host, "_PROC", tmp_path / name)
        monkeypatch.setattr(host, "_SYS", tmp_path / name)
        host._cpuinfo.cache_clear()
        return host.facts()

    desk = machine(
        "desk",
        cpuinfo="processor : 0\nmodel name : Fast 9\nflags : avx hypervisor\n\nprocessor : 1\nmodel name : no\n",
        meminfo="MemTotal:       8388608 kB\n",
    )
    assert (desk["cpu"], desk["memory GiB"], desk["virtual"]) == ("Fast 9", "8", "yes")
    board = machine(
        "board",
        cpuinfo="processor : 0\nFeatures : neon\nCPU part : 0xd0b\nHardware : BCM\n",
        **{"device-tree__model": "Raspberry Pi 5\0"},
    )
    assert (board["cpu"], board["board"]) == ("BCM", "Raspberry Pi 5")
    assert "virtual" not in board
    empty = machine("nothing")
    assert len({host.fingerprint(found) for found in (desk, board, empty)}) == 3
    host._cpuinfo.cache_clear()


def test_conditions_are_plain_values_and_known_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json.dumps(host.conditions(), allow_nan=False)
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/cpu").write_text("some avg10=12.50 avg60=3.00 avg300=1.00 total=5\n")
    (tmp_path / "stat").write_text("cpu  10 0 10 70 0 0 0 10 0 0\ncpu0 1 1 1 1\n")
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("61500\n")
    monkeypatch.setattr(host, "_PROC", tmp_path)
    monkeypatch.setattr(host, "_SYS", tmp_path)
    found = host.conditions()
    assert (found["psi_avg10"], found["steal_ticks"], found["total_ticks"]) == (12.5, 10.0, 100.0)
    assert found["temp_c"] == 61.5
    assert "clock_mhz" not in found


# -- energy ----------------------------------------------------------------------------------------------------------


class Ticks:
    """Time that passes by sleeping and running; a device that draws 5 W idle and 25 W busy."""

    def __init__(self) -> None:
        self.now = self.joules = 0.0
        self.closed = False

    def sleep(self, seconds: float) -> None:
        self.now, self.joules = self.now + seconds, self.joules + 5.0 * seconds

    def run(self, n: int = 1) -> None:
        self.now, self.joules = self.now + 0.01 * n, self.joules + 0.25 * n

    def close(self) -> None:
        self.closed = True


def measured(device: Ticks, joules: Any = None) -> energy.Energy:
    meter = energy.Meter("a meter", joules or (lambda: device.joules), device.close)
    return energy.measure_energy(
        device, window_s=2.0, windows=3, find=lambda: (meter, ""), clock=lambda: device.now, sleep=device.sleep
    )


def test_energy_is_that_above_idling() -> None:
    device = Ticks()
    told = measured(device)
    assert told.energy_mj == pytest.approx(1e3 * 0.01 * 20.0)
    assert (told.power_w, told.idle_w) == (pytest.approx(25.0), pytest.approx(5.0))
    assert told.ci is not None
    assert told.ci[0] <= told.energy_mj <= told.ci[1]
    assert told.source == "a meter"
    assert device.closed


def test_no_more_than_idling_is_no_energy_with_the_reason() -> None:
    class Sparing(Ticks):
        def run(self, n: int = 1) -> None:
            self.now, self.joules = self.now + 0.01 * n, self.joules + 0.04 * n

    device = Sparing()
    told = measured(device)
    assert told.energy_mj is None
    assert "does not surely show more power" in told.reason
    assert device.closed


@pytest.mark.parametrize(("swing", "sure"), [(0.0001, True), (0.02, False)])
def test_an_interval_that_holds_zero_is_no_energy_with_the_reason(swing: float, sure: bool) -> None:
    """Idling that swings by more than what running adds."""

    class Swinging(Ticks):
        windows = 0

        def sleep(self, seconds: float) -> None:
            self.windows += 1
            self.now, self.joules = self.now + seconds, self.joules + (5.0 + 100 * swing * self.windows) * seconds

        def run(self, n: int = 1) -> None:
            self.now, self.joules = self.now + 0.01 * n, self.joules + 0.08 * n

    told = measured(Swinging())
    if sure:
        assert told.energy_mj is not None
        assert told.ci is not None
        assert told.ci[0] > 0
    else:
        assert (told.energy_mj, told.ci) == (None, None)
        assert "±" in told.reason
        assert told.power_w == pytest.approx(8.0)


def test_without_a_meter_there_is_no_energy_but_a_reason() -> None:
    told = energy.measure_energy(Ticks(), window_s=1, windows=2, find=lambda: (None, "nothing here"))
    assert (told.energy_mj, told.reason) == (None, "nothing here")


def rapl(root: Path, micro_joules: int, span: int = 1000, package: int = 0) -> Path:
    place = root / f"intel-rapl:{package}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "energy_uj").write_text(f"{micro_joules}\n")
    (place / "max_energy_range_uj").write_text(f"{span}\n")
    return place


def test_rapl_adds_packages_and_survives_overflow(tmp_path: Path) -> None:
    rapl(tmp_path, 900)
    rapl(tmp_path, 10, package=1)
    rapl(tmp_path / "intel-rapl:0", 5)  # a part of a package, counted in it already
    (tmp_path / "intel-rapl:0:0").mkdir()
    meter, reason = energy._rapl(tmp_path)
    assert meter is not None
    assert reason == ""
    assert meter.joules() == 0.0
    rapl(tmp_path, 50)  # over the end: 150 more
    rapl(tmp_path, 30, package=1)
    assert meter.joules() == pytest.approx(170e-6)
    rapl(tmp_path, 60)
    assert meter.joules() == pytest.approx(180e-6)


def test_rapl_without_permission_or_counters_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy._rapl(tmp_path)[0] is None
    assert "virtual machines" in energy._rapl(tmp_path)[1]
    rapl(tmp_path, 900)

    def denied(self: Path, *args: Any, **named: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)
    meter, reason = energy._rapl(tmp_path)
    assert meter is None
    assert "energy_uj cannot be read (Permission denied); root may" in reason


def test_the_rails_of_a_jetson(tmp_path: Path) -> None:
    assert "no INA3221" in energy._jetson(tmp_path)[1]
    monitor = tmp_path / "hwmon3"
    monitor.mkdir()
    (tmp_path / "hwmon0").mkdir()
    for name, text in {
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "2000",
        "in2_label": "VDD_SOC",
    }.items():
        (monitor / name).write_text(f"{text}\n")
    device = Ticks()
    meter, reason = energy._jetson(tmp_path, clock=lambda: device.now)
    assert meter is not None, reason
    try:
        assert meter.joules() == 0.0
        device.sleep(0.5)
        assert meter.joules() == pytest.approx(10.0 * 0.5)
        (monitor / "curr1_input").write_text("4000\n")
        device.sleep(0.25)
        assert meter.joules() == pytest.approx(10.0 * 0.5 + 20.0 * 0.25)
    finally:
        meter.close()
    assert "the whole board's input rail VDD_IN" in meter.source


def nvml(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[str]:
    said: list[str] = []
    told = {
        "nvmlInit": lambda: said.append("init"),
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 12_500,
        "nvmlShutdown": lambda: said.append("shutdown"),
        **changes,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**told))
    return said


def test_the_counter_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    said = nvml(monkeypatch)
    meter, reason = energy.find_meter("ort-cuda")
    assert meter is not None, reason
    assert meter.joules() == 12.5
    meter.close()
    assert said == ["init", "shutdown"]


def test_a_gpu_without_a_counter_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError_NotSupported(Exception):
        pass

    def unsupported(handle: Any) -> int:
        raise NVMLError_NotSupported

    nvml(monkeypatch, nvmlDeviceGetTotalEnergyConsumption=unsupported)
    meter, reason = energy._nvml()
    assert meter is None
    assert "NVMLError_NotSupported" in reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in energy._nvml()[1]


@pytest.mark.parametrize(
    ("runtime", "there", "source"),
    [
        ("ort-cpu", ("nvml", "rapl", "jetson"), "rapl"),
        ("openvino", ("nvml", "jetson"), "jetson"),
        ("torch-cpu", ("nvml",), None),
        ("ort-cuda", ("rapl",), None),
        ("ort-trt", ("rapl", "jetson"), "jetson"),
        ("tensorrt", ("nvml", "rapl", "jetson"), "nvml"),
        ("torch-cuda", ("nvml", "jetson"), "nvml"),
        ("ort:DmlExecutionProvider", ("nvml", "rapl", "jetson"), None),
    ],
)
def test_a_meter_is_of_what_the_runtime_works_on(
    runtime: str, there: tuple[str, ...], source: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for name in ("nvml", "rapl", "jetson"):
        meter = energy.Meter(name, lambda: 0.0, lambda name=name: closed.append(name)) if name in there else None
        monkeypatch.setattr(energy, f"_{name}", lambda meter=meter, name=name: (meter, "" if meter else f"no {name}"))
    meter, reason = energy.find_meter(runtime)
    assert (None if meter is None else meter.source) == source
    assert bool(reason) == bool(energy.why_no_meter(runtime)) == (source is None)
    if source is None:
        assert all(name not in reason for name in there)
    else:
        assert closed == [source]


def test_a_worker_asks_the_meter_of_the_runtime_that_a_network_was_loaded_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(runtime: str) -> tuple[None, str]:
        asked.append(runtime)
        return None, "none here"

    monkeypatch.setattr(dispatch, "find_meter", find)
    runtime: Any = SimpleNamespace(load=lambda path, config: Steps([1.0]))
    worker = Dispatcher(lambda name: runtime, emit=lambda message: None)
    for name in ("torch-cpu", "ort-cuda"):
        worker.handle({"op": "load", "id": name, "path": "x", "config": {"runtime": name}})
    told = worker.handle({"op": "energy", "id": "torch-cpu", "window_s": 2, "windows": 3})
    assert told["energy"]["reason"] == "none here"
    assert asked == ["torch-cpu"]
