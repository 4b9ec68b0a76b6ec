"""Runtimes and transports against their contracts; those that are not installed here are skipped with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwnas.core.measurement import Status
from hwnas.profiling.backend import DEFAULT_OPTIONS, Failure, SessionConfig
from hwnas.profiling.transport import LocalTransport
from hwnas.profiling.worker.runtimes.fake import FAULTS, Fake, true_latency_ms
from hwnas.profiling.worker.runtimes.registry import backend
from hwnas.testing.profiling import BackendSuite, DirectTransport, TransportSuite, write_cell


class TestOnnxRuntimeCpu(BackendSuite):
    config = SessionConfig("ort-cpu")


class TestOnnxRuntimeCuda(BackendSuite):
    config = SessionConfig("ort-cuda")


class TestOpenVino(BackendSuite):
    config = SessionConfig("openvino", options=dict(DEFAULT_OPTIONS["openvino"]))


class TestTorchCpu(BackendSuite):
    config = SessionConfig("torch-cpu")


class TestTorchCuda(BackendSuite):
    config = SessionConfig("torch-cuda")


class TestTensorRT(BackendSuite):
    config = SessionConfig("tensorrt")


class TestFake(BackendSuite):
    config = SessionConfig("fake", options={"seed": 0, "slow": 1.3, "tail": 0.01, "level": 0.02, "session": 0.02})


class TestLocalTransport(TransportSuite):
    def make(self) -> LocalTransport:
        return LocalTransport()


class TestDirectTransport(TransportSuite):
    def make(self) -> DirectTransport:
        return DirectTransport()


class TestTheFakeRuntime:
    @pytest.fixture
    def network(self, tmp_path: Path) -> Path:
        return write_cell(tmp_path / "cell.onnx", (3, 3, 1, 3, 2, 3))

    def test_without_noise_it_takes_the_true_time(self, network: Path) -> None:
        config = SessionConfig("fake", options={"jitter": 0})
        runtime = Fake("a")
        model = runtime.load(network, config)
        truth = true_latency_ms(network, config)
        before = runtime.clock.now
        assert [s.wall_ns for s in model.timed(3, loops=4)] == pytest.approx([1e6 * truth] * 3)
        assert runtime.clock.now - before == pytest.approx(12e-3 * truth)

    def test_the_truth_can_be_said(self, network: Path) -> None:
        assert true_latency_ms(network, SessionConfig("fake", options={"truth.c*": 7.5})) == 7.5
        assert true_latency_ms(network, SessionConfig("fake", options={"truth.other": 7.5})) != 7.5

    def test_same_seed_and_session_same_figures_another_session_others(self, network: Path) -> None:
        config = SessionConfig("fake", options={"seed": 3, "session": 0.05, "slow": 1.4, "tail": 0.1})

        def figures(session: str) -> list[float]:
            return [sample.wall_ns for sample in Fake(session).load(network, config).timed(20)]

        assert figures("one") == figures("one")
        assert figures("one") != figures("two")

    def test_drift(self, network: Path) -> None:
        config = SessionConfig("fake", options={"jitter": 0, "drift": 0.5})
        runtime = Fake("a")
        model = runtime.load(network, config)
        first = model.timed(1)[0].wall_ns
        runtime.clock.now += 120
        assert model.timed(1)[0].wall_ns == pytest.approx(2 * first, rel=1e-3)

    def test_modes_flip_and_tails_are_as_many_as_told(self, network: Path) -> None:
        truth = true_latency_ms(network, SessionConfig("fake"))

        def relative(**options: float) -> list[float]:
            config = SessionConfig("fake", options={"seed": 0, "jitter": 0, **options})
            return [sample.wall_ns * 1e-6 / truth for sample in Fake("a").load(network, config).timed(5000)]

        walls = relative(slow=2.0, slow_s=0.1, fast_s=0.3)
        assert all(wall == pytest.approx(1.0) or 1.7 < wall < 2.4 for wall in walls)
        # a quarter of the time; a slow sample lasts twice as long, so they are fewer: 1/7
        assert sum(wall > 1.2 for wall in walls) / len(walls) == pytest.approx(1 / 7, abs=0.08)
        walls = relative(tail=0.1)
        assert sum(wall > 1.001 for wall in walls) / len(walls) == pytest.approx(0.1, abs=0.02)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"jiter": 0.1}, "no option 'jiter'"),
            ({"jitter": -0.1}, "jitter wants a number"),
            ({"jitter": "much"}, "jitter wants a number"),
            ({"slow": 0.5}, "slow >= 1"),
            ({"fault.*": "explode"}, "wants one of crash"),
            ({"fault.*": "crash@soon"}, "with @N"),
            ({"truth.*": 0}, "truth.* wants a number"),
        ],
    )
    def test_wrong_options_are_refused(self, network: Path, options: dict[str, object], told: str) -> None:
        with pytest.raises(Failure) as refused:
            Fake("a").load(network, SessionConfig("fake", options=options))
        assert refused.value.status is Status.BACKEND_UNAVAILABLE
        assert told in refused.value.message

    def test_faults_are_those_of_the_named_networks(self, network: Path) -> None:
        for fault in FAULTS:
            config = SessionConfig("fake", options={"fault.other-*": fault})
            Fake("a").load(network, config).timed(3)

    def test_an_unknown_runtime_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(Failure, match=r"no runtime 'fast'\. Known: ort-cpu, .*fake"):
            backend("fast")

    def test_a_worker_with_the_fake_loads_no_framework(self, tmp_path: Path, network: Path) -> None:
        import subprocess

        code = (
            "import sys; from pathlib import Path; from hwnas.profiling.worker.runtimes.fake import Fake\n"
            "from hwnas.profiling.backend import SessionConfig\n"
            f"Fake().load(Path({str(network)!r}), SessionConfig('fake')).timed(3)\n"
            "print([m for m in ('torch', 'onnxruntime', 'pandas', 'pymoo') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
