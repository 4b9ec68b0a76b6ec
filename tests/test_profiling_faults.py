"""Networks that crash, hang, lack memory or talk nonsense cost only themselves; the rest is measured as ever."""

from __future__ import annotations

import math
from collections.abc import Container
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwnas.core.measurement import Status
from hwnas.profiling import bench as benches
from hwnas.profiling.backend import Failure, SessionConfig
from hwnas.profiling.bench import Bench, Candidate
from hwnas.profiling.energy import Energy
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record
from hwnas.profiling.transport import LocalTransport
from hwnas.profiling.wire import WorkerDied
from hwnas.testing.profiling import DirectTransport, simulated_bench, write_relu

REFERENCES = {"ref-a": 0.5, "ref-b": 2.0}
FAULTS = {
    "net-03": ("crash", Status.CRASHED),
    "net-08": ("crash@25", Status.CRASHED),  # survives loading and warming up
    "net-17": ("killed", Status.CRASHED),
    "net-18": ("killed@60", Status.CRASHED),
    "net-31": ("hang", Status.TIMEOUT),
    "net-32": ("hang@30", Status.TIMEOUT),
    "net-40": ("oom", Status.OUT_OF_MEMORY),
    "net-41": ("oom@40", Status.OUT_OF_MEMORY),
    "net-55": ("invalid", Status.INVALID_MODEL),
    "net-60": ("unsupported", Status.UNSUPPORTED_OP),
    "net-61": ("fallback", Status.EP_FALLBACK),
    "net-70": ("nan", Status.CRASHED),
    "net-71": ("zero@50", Status.CRASHED),
    "net-99": ("crash", Status.CRASHED),
}
GARBAGE = {"net-05": "garbage", "net-44": "garbage@20"}  # no fault of the network, and none of its figures
BRIEF = Protocol(rounds=10, most_rounds=10, resamples=100, within=0.2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    names = [f"net-{i:02}" for i in range(100)]
    return {name: write_relu(folder / f"{name}.onnx") for name in (*names, *REFERENCES)}


def options(faults: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = {"seed": 5, "session": 0.02, "slow": 1.3, "tail": 0.02}
    told |= {f"truth.net-{i:02}": 0.3 * 1.03**i for i in range(100)}
    told |= {f"truth.{name}": value for name, value in REFERENCES.items()}
    return told | {f"fault.{name}": fault for name, fault in faults.items()}


def candidates(files: dict[str, Path], count: int = 100) -> list[Candidate]:
    return [Candidate(name, files[name]) for name in list(files)[:count]]


def references(files: dict[str, Path]) -> dict[str, Path]:
    return {name: files[name] for name in REFERENCES}


def sweep(files: dict[str, Path], faults: dict[str, str], name: str) -> dict[str, Record]:
    with closing(
        simulated_bench(options=options(faults), name=name, protocol=BRIEF, references=references(files), sigma=0.02)
    ) as bench:
        return {record.subject.id: record for record in bench.measure(candidates(files))}


class Mortal(DirectTransport):
    """Dies at some of the rounds that it is asked for, by whatever came from outside."""

    def __init__(self, deaths: Container[int]) -> None:
        super().__init__()
        self.deaths, self.rounds = deaths, 0

    def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
        self.rounds += request["op"] == "round"
        if request["op"] == "round" and self.rounds in self.deaths:
            self.close()
            raise WorkerDied("killed from outside")
        return super().call(request, timeout=timeout)


def test_a_worker_that_is_killed_while_the_references_run_alone_is_started_again(files: dict[str, Path]) -> None:
    def bench(deaths: Container[int]) -> Bench:
        transport, told = Mortal(deaths), SessionConfig("fake", options=options({}))
        return Bench(transport, told, BRIEF, references=references(files), clock=transport.clock)

    with closing(bench({2, 9})) as mortal:
        assert list(mortal.find_level()) == list(REFERENCES)
        (record,) = mortal.measure(candidates(files, 1))
        assert record.status is Status.OK
    with closing(bench(range(10**6))) as hopeless, pytest.raises(WorkerDied, match="from outside"):
        hopeless.find_level()


def test_exactly_the_faulty_of_a_hundred_fail_and_the_rest_are_as_in_a_clean_sweep(files: dict[str, Path]) -> None:
    faulty = sweep(files, {name: fault for name, (fault, _) in FAULTS.items()} | GARBAGE, "faulty")
    clean = sweep(files, {}, "clean")
    assert list(faulty) == list(clean) == list(files)[:100]
    failed = {name: record.status for name, record in faulty.items() if not record.status.has_value}
    assert failed == {name: status for name, (_, status) in FAULTS.items()}
    assert all(faulty[name].message and faulty[name].latency is None for name in FAULTS)
    inside = 0
    for name in clean.keys() - FAULTS.keys():
        one, other = clean[name].latency, faulty[name].latency
        assert one is not None
        assert other is not None
        joint = math.hypot(*(math.log(told.high / told.low) / 2 for told in (one, other)))
        inside += abs(math.log(one.value / other.value)) <= joint
        assert abs(math.log(one.value / other.value)) < 2.5 * joint
    assert inside >= 0.9 * (100 - len(FAULTS))


def test_a_network_that_ends_the_worker_once_is_tried_again(files: dict[str, Path]) -> None:
    """A worker that somebody else kills: nobody's fault."""

    class Unlucky(DirectTransport):
        rounds = 0

        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            self.rounds += request["op"] == "round"
            reply = super().call(request, timeout=timeout)
            if self.rounds == 7:
                self.rounds += 1
                self.close()
                raise benches.WorkerDied("was ended by SIGKILL", at=self._at)
            return reply

    transport = Unlucky()
    config = SessionConfig("fake", options=options({}))
    with closing(Bench(transport, config, BRIEF, references=references(files), clock=transport.clock)) as bench:
        records = list(bench.measure(candidates(files, 10)))
    assert all(record.status.has_value for record in records)
    assert sum(record.retries for record in records) <= 1
    assert transport.sessions == 2


def test_a_worker_that_somebody_kills_at_a_reference_costs_nobody(files: dict[str, Path]) -> None:
    class Unlucky(DirectTransport):
        kills = 0

        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            if request["op"] == "round" and self.kills < 2:
                self.kills += 1
                self.close()
                raise benches.WorkerDied("was ended by SIGKILL", at="ref-b")
            return super().call(request, timeout=timeout)

    transport = Unlucky()
    config = SessionConfig("fake", options=options({}))
    with closing(Bench(transport, config, BRIEF, references=references(files), clock=transport.clock)) as bench:
        records = list(bench.measure(candidates(files, 5)))
    assert all(record.status.has_value for record in records)
    assert transport.sessions == 3


def test_a_worker_that_never_lives_ends_in_statuses_not_in_an_endless_loop(files: dict[str, Path]) -> None:
    class Dead(DirectTransport):
        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            if request["op"] == "round":
                self.close()
                raise benches.WorkerDied("was ended by SIGKILL")
            return super().call(request, timeout=timeout)

    transport = Dead()
    with closing(
        Bench(transport, SessionConfig("fake", options=options({})), BRIEF, references=references(files))
    ) as bench:
        records = list(bench.measure(candidates(files, 5)))
    assert {record.status for record in records} == {Status.CRASHED}
    assert all("SIGKILL" in record.message for record in records)
    assert transport.sessions < 10


def test_references_that_fail_are_nobodys_candidate(files: dict[str, Path]) -> None:
    told = options({"ref-b": "crash@40"})
    with closing(simulated_bench(options=told, protocol=BRIEF, references=references(files))) as bench:
        records = list(bench.measure(candidates(files, 4)))
    assert {record.status for record in records} == {Status.CRASHED}


def test_a_batch_of_failures_does_not_spoil_the_next(files: dict[str, Path]) -> None:
    protocol = Protocol(rounds=5, most_rounds=5, resamples=50, within=0.5, batch=3)
    told = options({f"net-0{i}": "unsupported" for i in range(3)} | {"net-05": "oom"})
    with closing(simulated_bench(options=told, protocol=protocol, references=references(files))) as bench:
        records = {record.subject.id: record for record in bench.measure(candidates(files, 8))}
    assert [name for name, record in records.items() if record.latency is None] == [
        "net-00",
        "net-01",
        "net-02",
        "net-05",
    ]


@pytest.mark.parametrize("op", ["memory", "energy"])
def test_a_worker_that_dies_at_memory_or_energy_costs_those_of_one_network(files: dict[str, Path], op: str) -> None:
    class Forgetful(DirectTransport):
        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            if request["op"] == op and request["id"] == "net-01":
                self.close()
                raise benches.WorkerDied("was ended by SIGSEGV")
            reply = super().call({**request, "op": "memory"} if request["op"] == "energy" else request, timeout=timeout)
            return {**reply, "energy": Energy(1.0, 3.0, 2.0, (0.9, 1.1), "a meter").to_json()}

    transport = Forgetful()
    config = SessionConfig("fake", options=options({}))
    protocol = replace(BRIEF, batch=4)
    with closing(
        Bench(
            transport, config, protocol, references=references(files), memory=True, energy=True, clock=transport.clock
        )
    ) as bench:
        records = {record.subject.id: record for record in bench.measure(candidates(files, 6))}
    assert all(record.status.has_value for record in records.values())
    reasons = {}
    for name, record in records.items():
        assert record.memory is not None
        assert record.energy is not None
        reasons[name] = record.memory.source.get("reason", "") if op == "memory" else record.energy.reason
        assert (record.energy.energy_mj == 1.0) is (op == "memory" or name != "net-01")
    assert [name for name, reason in reasons.items() if "SIGSEGV" in reason] == ["net-01"]
    assert not any("not loaded" in reason for reason in reasons.values())
    assert transport.sessions == 2


def test_a_worker_that_does_not_come_back_is_the_reason(files: dict[str, Path]) -> None:
    class Gone(DirectTransport):
        gone = False

        def start(self) -> None:
            if self.gone:
                raise benches.WorkerDied("cannot be started")
            super().start()

        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            if request["op"] == "memory":
                self.close()
                self.gone = True
                raise benches.WorkerDied("was ended by SIGSEGV")
            return super().call(request, timeout=timeout)

    transport = Gone()
    config = SessionConfig("fake", options=options({}))
    with closing(
        Bench(transport, config, BRIEF, references=references(files), memory=True, clock=transport.clock)
    ) as bench:
        records = list(bench.measure(candidates(files, 3)))
    assert all(record.latency is not None and record.memory is not None for record in records)
    assert ["cannot be started" in str(record.memory) for record in records] == [False, True, True]


def test_a_runtime_that_is_not_here_is_said_at_once() -> None:
    with pytest.raises(Failure, match="no runtime 'abacus'") as told:
        Bench(DirectTransport(), SessionConfig("abacus"), BRIEF, references={})
    assert told.value.status is Status.BACKEND_UNAVAILABLE


def test_ids_have_to_be_distinct(files: dict[str, Path]) -> None:
    with closing(simulated_bench(protocol=BRIEF, references=references(files))) as bench:
        with pytest.raises(ValueError, match="once each"):
            list(bench.measure([*candidates(files, 2), *candidates(files, 1)]))
        with pytest.raises(ValueError, match="none of"):
            list(bench.measure([Candidate("ref-a", files["ref-a"])]))
        assert list(bench.measure([])) == []


def test_later_batches_measure_earlier_networks_again(files: dict[str, Path]) -> None:
    protocol = Protocol(rounds=5, most_rounds=5, resamples=50, within=0.5, batch=5, retests=2)
    with closing(simulated_bench(options=options({}), protocol=protocol, references=references(files))) as bench:
        list(bench.measure(candidates(files, 5)))
        assert bench.retests is None
        list(bench.measure(candidates(files, 20)[5:]))
        assert bench.retests is not None
        assert bench.retests.pairs == 6
        assert bench.retests.relative < 0.05
        assert bench.sigma >= benches.DEFAULT_SIGMA


def test_faults_of_real_processes(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a worker in a process of its own: it really dies, and really hangs."""
    for name, seconds in (("_LEAST_S", 3.0), ("_LOAD_S", 20.0)):
        monkeypatch.setattr(benches, name, seconds)
    faults = {"net-01": "crash", "net-03": "killed@30", "net-05": "hang@20", "net-06": "oom", "net-07": "garbage"}
    protocol = Protocol(rounds=5, most_rounds=5, resamples=50, within=0.5, most_warm_ms=100.0)
    transport = LocalTransport()
    config = SessionConfig("fake", options=options(faults))
    with closing(Bench(transport, config, protocol, references=references(files))) as bench:
        records = {record.subject.id: record for record in bench.measure(candidates(files, 10))}
    assert {name: record.status for name, record in records.items() if not record.status.has_value} == {
        "net-01": Status.CRASHED,
        "net-03": Status.CRASHED,
        "net-05": Status.TIMEOUT,
        "net-06": Status.OUT_OF_MEMORY,
    }
    assert "exit status 3" in records["net-01"].message
    assert "SIGKILL" in records["net-03"].message
