"""Candidates on one worker: batches with references, interleaved rounds, faults that cost only their cause."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.measurement import Status
from hwnas.profiling import statistics
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, SessionConfig, builds_engines
from hwnas.profiling.energy import Energy, why_no_meter
from hwnas.profiling.headway import Headway, OnProgress
from hwnas.profiling.history import History
from hwnas.profiling.host import fingerprint
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import LOOPS, Latency, Record, Sampling, Setup, Subject, single_runs
from hwnas.profiling.room import MIB, Room, footprint, least_need
from hwnas.profiling.statistics import Estimate
from hwnas.profiling.wire import Message, Transport, WorkerDied, WorkerTimeout
from hwnas.seeding import stream

Floats = NDArray[np.float64]
OnBatch = Callable[[Mapping[str, Any]], None]

DEFAULT_SIGMA = statistics.LEAST_SIGMA  # between sessions, relative, on a device that was never calibrated
DRIFT, REPEAT = 0.1, 0.25  # level of the references, log: worth a flag; worth measuring the batch again
BUSY = 20.0  # % of the last 10 s in which some task waited for a CPU
_PREEMPTED = 0.5  # share of samples
_SLOWEST_LOAD_S = {"tensorrt": 600.0, "ort-trt": 600.0}
_LOAD_S, _LEAST_S, _TIMES = 60.0, 10.0, 50.0  # deadlines: loading; any other request; multiples of the expected time
_STRIKES = 2  # times that a worker may end without a network that it is known for
_WINDOW_S, _WINDOWS = 2.0, 3  # of energy
_APART_S = 0.13  # from one round of the references alone to the next that counts: as in a batch of some 16 networks
_WALL, _CPU, _DEVICE, _SWITCHES = 1, 3, 4, 5  # columns of kept samples; 0 is the round


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        id: Unique among those measured together.
        path: Its ONNX file.
        graph_hash: Of its structure; "" where unknown.
        facts: Counted from the file, kept in its record.
        shapes: Static shapes of its dynamic inputs, by name; empty where it has none.
    """

    id: str
    path: Path
    graph_hash: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def configured(self, config: SessionConfig) -> SessionConfig:
        """How this network is run where others are run as `config` says: in shapes of its own."""
        return replace(config, shapes=dict(self.shapes))


@dataclass
class _Loaded:
    """What the worker said of one loaded network, and what was sampled of it since."""

    reply: Mapping[str, Any]
    warm: Mapping[str, Any] = field(default_factory=dict)
    clock: str = ""  # of its samples, once there are any
    loops: int = 1  # inferences in a sample that the figure is made of
    rows: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def samples(self) -> Floats:
        return np.array(self.rows, dtype=np.float64)

    @property
    def own(self) -> Floats:
        """Samples that the figure is made of: without single runs beside loops."""
        samples = self.samples
        return np.asarray(samples[samples[:, LOOPS] == self.loops])


@dataclass
class _Level:
    """Where a batch stands: mean log offset of the references to the first one, and that mean's standard deviation."""

    offset: float = 0.0
    doubt: float = 0.0


@dataclass
class _Session:
    """One worker process's view of a batch: figures by id, in the order of `ids`."""

    ids: list[str]
    wall: Estimate
    cpu: Estimate
    loaded: dict[str, _Loaded]
    rounds: dict[str, int]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    order_hash: str
    wall_s: float

    def at(self, name: str) -> int:
        return self.ids.index(name)


class Bench:
    """A worker, and how it is used.

    Args:
        transport: The worker; it is started here.
        config: How networks are run.
        protocol: How carefully.
        references: Networks that every batch measures as well, by name.
        sigma: Between-session standard deviation of this device, relative; None where it was never calibrated.
        least_sigma: What is known to be too small for it: how badly figures repeated on this device just now.
        seed: Of random orders and resamples.
        memory, energy: Whether to ask for them as well.
        granted_mib: Memory that the device file grants to networks, MiB; None for all.
        clock: Monotonic seconds.
        on_progress: Told how far it is (`hwnas.profiling.headway`).
        history: Of a session that is continued: batches go on counting there, on its level.
        earlier: Finds a network of `history` that this session has not measured, to measure it again; None where it
            cannot be had any more.
        on_batch: Told what a batch added to the history and its records, as plain values, before anybody sees them.

    Attributes:
        history: What later batches have to know of earlier ones.
        info: What the worker found.
        samples: Raw samples of everything measured, by id; of all processes, one behind the other.
        squeezed: Why batches are smaller than the protocol's, in words; "" where memory has not bounded them.
        draws: Resamples of the figures, log ms, by id, on the level of the records. Those of one batch are joint, so
            that differences within a batch are as sure as they can be.
    """

    def __init__(
        self,
        transport: Transport,
        config: SessionConfig,
        protocol: Protocol,
        *,
        references: Mapping[str, Path],
        sigma: float | None = None,
        least_sigma: float = 0.0,
        seed: int = 0,
        memory: bool = False,
        energy: bool = False,
        granted_mib: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_progress: OnProgress | None = None,
        history: History | None = None,
        earlier: Callable[[str], Candidate | None] = lambda name: None,
        on_batch: OnBatch = lambda told: None,
    ) -> None:
        self._transport = transport
        self._config = config
        self._protocol = protocol
        self._references = dict(references)
        self._sigma = sigma
        self._least_sigma = least_sigma
        self._seed = seed
        self._memory, self._energy = memory, energy
        self._granted = None if granted_mib is None else int(granted_mib * MIB)
        self._clock = clock
        # another machine may have a meter that this one lacks: then progress takes the end of a batch for short
        self._metered = energy and not why_no_meter(config.runtime)
        self._headway = Headway(
            on_progress or (lambda done, total, text: None),
            processes=protocol.processes,
            engines=builds_engines(config),
            energy=self._metered,
        )
        self.history = History() if history is None else history
        self._earlier, self._on_batch = earlier, on_batch
        self._measured: dict[str, Candidate] = {}
        self._alive = False
        self._loaded: dict[str, _Loaded] = {}
        self._starts = 0  # of workers
        self._anchor: int | None = None  # the worker, by that count, in which this session's level was found
        self._name = ""  # of the worker, for what is simulated
        self._build = 0  # number of the process among those of a batch, and of the engines that it builds
        self.samples: dict[str, Floats] = {}
        self.draws: dict[str, Floats] = {}
        self.squeezed = ""
        self._room = Room()
        self._start()
        told = self._call({"op": "probe", "runtime": config.runtime}, _LOAD_S)
        self.info = DeviceInfo.from_json(told["info"])
        if not self.info.available:
            raise Failure(Status.BACKEND_UNAVAILABLE, f"{config.runtime}: {self.info.reason}")

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """A record for each candidate, in order; those of a batch come when it ends.

        Raises:
            Failure: The reference networks cannot be run.
            ValueError: Two candidates have one id, or one has a reference's.
        """
        names = [candidate.id for candidate in candidates]
        if len({*names, *self._references}) != len(names) + len(self._references):
            raise ValueError(f"ids are wanted once each, and none of {sorted(self._references)}; got {sorted(names)}")
        self._headway.begin(len(candidates))
        begin = 0
        while begin < len(candidates):
            faults = _Faults()
            batch = self._fitting(candidates[begin:], faults)
            begin += len(batch)
            records = self._batch(batch, faults)
            self._headway.finish()
            for candidate in batch:
                yield records[candidate.id]

    @property
    def levels(self) -> dict[str, float]:
        """Latency of the references in the first batch, ms: the level that all figures of this bench are on."""
        return {name: math.exp(value) for name, value in self.history.level.items()}

    def find_level(self) -> dict[str, float]:
        """`levels`, measured now if nothing has been measured yet.

        A batch's level is of so many rounds over some seconds, and least times count in it. The references alone would
        be through with their rounds within a single mode of the machine; so most of their rounds do not count, and
        those that do are as many as in a batch, and as far apart. How near that comes to a batch's level was measured:
        docs/profiling.md, "The cache".

        Raises:
            WorkerDied, WorkerTimeout, Failure: The references themselves cannot be run.
        """
        if not self.history.level:
            self._headway.begin(0)
            self._level_of(self._references_alone())
            told = self.history.since(len(self.history.pairs), len(self.history.offsets), {})
            self._on_batch({**told, "records": []})
        return self.levels

    def _references_alone(self) -> list[_Session]:
        """As `_sessions`, without a network of anybody's; tried again where the worker ends."""
        strikes = 0
        while True:
            try:
                found = []
                for number in range(self._protocol.processes):
                    if number or not self._alive:
                        self._start()
                    for name, path in self._references.items():
                        if name not in self._loaded:
                            self._load_one(name, path)
                        self._warm(name)
                    apart_s = _APART_S / self._protocol.processes
                    found.append(self._rounds(stream(self._seed, number, "level"), apart_s))
                return found
            except (WorkerDied, WorkerTimeout):
                self._alive, strikes = False, strikes + 1
                if strikes > _STRIKES:
                    raise

    @property
    def retests(self) -> statistics.Retests | None:
        """How well figures repeated in later batches; None before the second."""
        return self.history.retests

    @property
    def sigma(self) -> float:
        """Between-session standard deviation that intervals contain, relative: as calibrated or assumed, or what
        this bench's own retests show where that is more. A machine may be busier than when it was calibrated."""
        return max(DEFAULT_SIGMA if self._sigma is None else self._sigma, self._least_sigma, self.history.sigma)

    def close(self) -> None:
        """End the worker."""
        self._alive = False
        self._transport.close()

    # -- memory ------------------------------------------------------------------------------------------------------

    def _fitting(self, candidates: Sequence[Candidate], faults: _Faults) -> Sequence[Candidate]:
        """As many of the first ones as a batch may have and memory has room for; at least one. Those among them that
        need more than there is fail now: they are not loaded and take no place."""
        self._room = self._ask_room()
        taken, count = self._taken([]), 0
        for place, candidate in enumerate(candidates):
            lacking = self._room.lacks(least_need(candidate.facts, self._config.precision))
            if lacking:
                faults.failed[candidate.id] = (Status.OUT_OF_MEMORY, lacking)
                continue
            if count == self._protocol.batch:
                return candidates[:place]
            taken += footprint(candidate.path, candidate.facts)
            if count and taken > self._room.bytes:
                self.squeezed = (
                    f"batches of fewer than {self._protocol.batch} networks, for want of memory: together they may "
                    f"take {self._room}"
                )
                return candidates[:place]
            count += 1
        return candidates

    def _taken(self, batch: Sequence[Candidate]) -> int:
        """Estimated bytes of a batch with the references."""
        own = sum(footprint(path, {}) for path in self._references.values())
        return own + sum(footprint(candidate.path, candidate.facts) for candidate in batch)

    def _ask_room(self) -> Room:
        """What there is now, with no network of a batch loaded."""
        told: Mapping[str, Any] = {}
        try:
            if not self._alive:
                self._start()
            told = self._call({"op": "room", "config": self._config.to_json()}, _LOAD_S)
        except Failure:  # a worker of an older version, or a driver that does not answer
            pass
        except (WorkerDied, WorkerTimeout):
            self._alive = False
        # a worker that is a little older does not tell the second
        return Room(told.get("free_bytes"), self._granted, told.get("total_bytes"))

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _batch(self, batch: Sequence[Candidate], faults: _Faults) -> dict[str, Record]:
        """Records of a batch, those of it that have failed already (`_fitting`) included."""
        history = self.history
        fitting = [candidate for candidate in batch if candidate.id not in faults.failed]
        rng = stream(self._seed, history.batches, "rounds")
        again = self._retested(batch, rng) if fitting else []
        pairs, offsets = len(history.pairs), len(history.offsets)
        while again and self._taken([*fitting, *again]) > self._room.bytes:
            again.pop()
        history.batches += 1
        self._headway.batch([candidate.id for candidate in fitting], refused=len(batch) - len(fitting))
        members = {candidate.id: candidate for candidate in (*fitting, *again)}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        sessions = self._sessions(members, faults, rng)
        level = self._level_of(sessions)
        if sessions and abs(level.offset) > REPEAT:
            self._headway.again("as the machine has changed its pace")
            sessions = self._sessions(members, faults, rng)
            level = self._level_of(sessions)
        if sessions:
            history.offsets.append(level.offset)
        for candidate in again:
            self._note_retest(candidate, sessions, level)
        records = {}
        for candidate in batch:
            if candidate in fitting and (self._memory or self._energy):
                self._headway.record("energy" if self._metered else "memory", fitting.index(candidate) + 1)
            if candidate.id in faults.failed or not sessions:
                records[candidate.id] = self._failed(candidate, faults)
            else:
                records[candidate.id] = self._record(candidate, sessions, level, faults, started)
                self._keep(candidate.id, sessions, level.offset)
        self._unload([name for name in self._loaded if name not in self._references])
        told = history.since(pairs, offsets, records)
        self._on_batch({**told, "records": [records[candidate.id].to_json() for candidate in batch]})
        return records

    def _keep(self, name: str, sessions: Sequence[_Session], level: float) -> None:
        """Samples and draws of a figure; the draws of several processes average as the figures do."""
        self.samples[name] = np.concatenate([s.loaded[name].samples for s in sessions])
        self.draws[name] = np.asarray(np.mean([s.wall.draws[:, s.at(name)] for s in sessions], axis=0) - level)

    def _sessions(self, members: Mapping[str, Candidate], faults: _Faults, rng: np.random.Generator) -> list[_Session]:
        found = []
        for number in range(self._protocol.processes):
            self._build = number
            self._headway.process(number)
            if number:
                self._start()
            session = self._session(members, faults, rng)
            if session is None:
                return []
            found.append(session)
        return found

    def _session(self, members: Mapping[str, Candidate], faults: _Faults, rng: np.random.Generator) -> _Session | None:
        """All that can be measured, in one worker; None where nothing can. Begins again without whoever broke it."""
        while True:
            try:
                if not self._alive:
                    self._start()
                names = [name for name in members if name not in faults.failed]
                if not names:
                    return None
                if not self._load(names, members, faults):
                    return None
                return self._rounds(rng)
            except (WorkerDied, WorkerTimeout) as fault:
                self._alive = False
                self._isolate(fault, members, faults)
            except Failure as fault:  # a network that loaded, but broke later
                if fault.at is None or fault.at not in members:
                    raise
                faults.failed[fault.at] = (fault.status, fault.message)
                self._unload([fault.at])

    def _isolate(self, fault: WorkerDied | WorkerTimeout, members: Mapping[str, Candidate], faults: _Faults) -> None:
        """Find out whether the network that a worker ended at does so alone as well."""
        name = fault.at
        if name is None or name not in members:
            # a reference, or nobody: whoever ended the worker may have come from outside, so not at the first time
            faults.strikes += 1
            if faults.strikes > _STRIKES:
                for member in members:
                    faults.failed.setdefault(member, _status(fault))
            return
        faults.retries[name] = faults.retries.get(name, 0) + 1
        if faults.retries[name] > 1:
            faults.failed[name] = _status(fault)
            return
        try:
            self._start()
            self._load_candidate(members[name])
            self._warm(name)
        except (WorkerDied, WorkerTimeout) as repeated:
            self._alive = False
            faults.failed[name] = _status(repeated)
        except Failure as failure:
            faults.failed[name] = (failure.status, failure.message)

    def _load(self, names: Sequence[str], members: Mapping[str, Candidate], faults: _Faults) -> bool:
        """Load and warm up references and members; whether any member is left."""
        for name, path in self._references.items():
            if name not in self._loaded:
                self._load_one(name, path)
        left = False
        for number, name in enumerate(names, start=1):
            try:
                if name not in self._loaded:
                    self._headway.loading(name, number, len(names))
                    self._load_candidate(members[name])
                left = True
            except Failure as failure:
                faults.failed[name] = (failure.status, failure.message)
        for number, name in enumerate(list(self._loaded), start=1):
            self._headway.warming(number, len(self._loaded))
            self._warm(name)
        return left

    def _rounds(self, rng: np.random.Generator, apart_s: float = 0.0) -> _Session:
        """Rounds of what is loaded until it is known well enough.

        Args:
            rng: Draws orders and resamples.
            apart_s: Wall seconds that visits take from one round to the next that counts. Those in between are made
                for nothing, in the place of other networks' visits. By what the samples say and not by the clock:
                simulated networks shall be visited equally often each time.
        """
        protocol, loaded = self._protocol, self._loaded
        ids = list(loaded)
        for state in loaded.values():
            state.rows = []
        before, began = self._state(), self._clock()
        plans = {name: self._visit(loaded[name].warm["run_ms"]) for name in ids}
        for name, (_, loops) in plans.items():
            loaded[name].loops = loops
        visits = np.full((len(ids), protocol.most_rounds), np.nan)
        cpu = visits.copy()
        active = [name for name in ids if name not in self._references]
        limit = began + protocol.budget_s * max(1, len(active)) * (1 + len(self._references) / len(ids))
        orders = hashlib.sha256()
        r = 0
        for r in range(protocol.most_rounds):
            order = [str(name) for name in rng.permutation([*self._references, *active])]
            orders.update("\n".join(order).encode())
            self._headway.round(r + 1, protocol.most_rounds, active)
            spent_s = self._round(r, order, plans, ids, visits, cpu)
            while spent_s < apart_s:
                spent_s += self._visited(order, plans)[1]
            if r + 1 >= protocol.rounds and (r + 1 - protocol.rounds) % protocol.step == 0 and r + 1 < visits.shape[1]:
                halves = self._estimate(visits[:, : r + 1], rng).half
                active = [name for name in active if halves[ids.index(name)] > protocol.within]
                if not active or self._clock() > limit:
                    break
        visits, cpu = visits[:, : r + 1], cpu[:, : r + 1]
        wall_s = (self._clock() - began) / len(ids)
        counts = {name: int((~np.isnan(visits[i])).sum()) for i, name in enumerate(ids)}
        return _Session(
            ids,
            self._estimate(visits, rng),
            self._estimate(cpu, rng),
            dict(loaded),
            counts,
            before,
            self._state(),
            orders.hexdigest()[:16],
            wall_s,
        )

    def _round(
        self,
        number: int,
        order: Sequence[str],
        plans: Mapping[str, tuple[int, int]],
        ids: Sequence[str],
        visits: Floats,
        cpu: Floats,
    ) -> float:
        """Visit networks once, and keep what that shows; the wall seconds of it, by the samples."""
        told, wall_s = self._visited(order, plans)
        for name in order:
            k, loops = plans[name]
            rows = [
                (float(number), *(math.nan if x is None else float(x) for x in row), float(loops if i < k else 1))
                for i, row in enumerate(told[name])
            ]
            self._loaded[name].rows += rows
            table = np.array(rows)
            clock = "wall" if np.isnan(table[:, _DEVICE]).any() else "device"
            if self._loaded[name].clock not in ("", clock):
                raise Failure(Status.CRASHED, "the device told its own time for some inferences only", at=name)
            self._loaded[name].clock = clock
            # a device's own events are not disturbed by the host: their median is the visit's figure
            own = table[:k]  # single runs behind loops describe, the figure is made without them
            time_ns = own[:, _WALL].min() if clock == "wall" else float(np.median(own[:, _DEVICE]))
            visits[ids.index(name), number] = math.log(max(time_ns, 1.0) * 1e-6)
            cpu[ids.index(name), number] = math.log(max(own[:, _CPU].min(), 1.0) * 1e-6)
        return wall_s

    def _visited(
        self, order: Sequence[str], plans: Mapping[str, tuple[int, int]]
    ) -> tuple[Mapping[str, Sequence[Sequence[float | None]]], float]:
        """Samples of one visit to each network, as the worker tells them, and the wall seconds that they took."""
        untimed, singles = self._protocol.untimed, self._protocol.singles
        wanted = []
        for name in order:
            wanted.append((name, untimed, *plans[name]))
            if plans[name][1] > 1:  # as a visit of its own, which workers of older versions understand as well
                wanted.append((name, untimed, singles, 1))
        expected = sum(
            self._loaded[name].warm["run_ms"] * 1e-3 * (before + k * loops) for name, before, k, loops in wanted
        )
        told = self._call({"op": "round", "visits": wanted}, max(_LEAST_S, _TIMES * expected))["samples"]
        wall_s = 0.0
        for name in order:
            k, loops = plans[name]
            walls = [1e-9 * float(row[0]) for row in told[name]]
            wall_s += (untimed + k * loops) * sum(walls[:k]) / k + sum(walls[k:])
        return told, wall_s

    def _visit(self, run_ms: float) -> tuple[int, int]:
        """Timed samples of a visit, and inferences in each."""
        protocol = self._protocol
        run_us = max(1e3 * run_ms, 1e-3)
        loops = math.ceil(protocol.sample_us / run_us) if run_us < protocol.sample_us / 2 else 1
        wanted = math.ceil(1e3 * protocol.visit_ms / (run_us * loops))
        return min(max(wanted, protocol.samples[0]), protocol.samples[1]), loops

    def _estimate(self, visits: Floats, rng: np.random.Generator) -> Estimate:
        return statistics.estimate(visits, resamples=self._protocol.resamples, rng=rng)

    # -- talking to the worker ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._loaded = {}
        # another one in every session of a run: those that go on have batches behind them
        self._name = f"{self._protocol.name}-{self._seed}-{self.history.batches}-{self._starts + 1}"
        self._transport.start()
        self._starts += 1
        self._alive = True

    def _call(self, request: Message, timeout: float) -> dict[str, Any]:
        return self._transport.call(request, timeout=timeout)

    def _load_candidate(self, candidate: Candidate) -> None:
        config = candidate.configured(replace(self._config, build=self._build))
        self._load_one(candidate.id, candidate.path, config)

    def _load_one(self, name: str, path: Path, config: SessionConfig | None = None) -> None:
        """Load a file; a reference's without a `config` of its own: references link sessions, and their engines and
        shapes stay the same."""
        config = replace(config or self._config, session=self._name)
        request = {"op": "load", "id": name, "path": self._transport.put(str(path)), "config": config.to_json()}
        self._loaded[name] = _Loaded(self._call(request, _SLOWEST_LOAD_S.get(self._config.runtime, _LOAD_S)))

    def _warm(self, name: str) -> None:
        protocol = self._protocol
        request = {
            "op": "warm",
            "id": name,
            "min_runs": protocol.warm_runs,
            "min_ms": protocol.warm_ms,
            "max_runs": protocol.most_warm_runs,
            "max_ms": protocol.most_warm_ms,
            "tol": protocol.warm_within,
        }
        first_s = 1e-3 * self._loaded[name].reply["first_run_ms"]
        deadline = max(_LEAST_S, _TIMES * first_s) + 1e-3 * protocol.most_warm_ms
        self._loaded[name].warm = self._call(request, deadline)

    def _state(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._call({"op": "state"}, _LOAD_S)["conditions"]
        return found

    def _unload(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._loaded.pop(name, None)
            if self._alive:
                self._call({"op": "unload", "id": name}, _LOAD_S)

    # -- references and retests --------------------------------------------------------------------------------------

    def _level_of(self, sessions: Sequence[_Session]) -> _Level:
        """Where the references are now; the first batch sets the level."""
        if not sessions or not self._references:
            return _Level()
        now = {name: _mean([s.wall.value[s.at(name)] for s in sessions]) for name in self._references}
        if not self.history.level:
            self.history.level, self._anchor = now, self._starts
            self.history.pace = statistics.shared_doubt(_table(sessions)[0])
            return _Level()
        moved = np.array([now[name] - self.history.level[name] for name in now])
        apart = float(moved.std(ddof=1)) if len(moved) > 1 else 0.0
        if self._anchor != self._starts:
            # in another process each reference moves by a part of its own, and so few may seem to agree by chance
            apart = max(apart, math.sqrt(2 / len(sessions)) * self.sigma)
        return _Level(float(moved.mean()), apart / math.sqrt(len(moved)))

    def _retested(self, batch: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
        names = [name for name in self.history.figures if name not in {candidate.id for candidate in batch}]
        chosen = rng.permutation(len(names))[: self._protocol.retests]
        found = [self._measured.get(names[i]) or self._earlier(names[i]) for i in chosen]
        return [candidate for candidate in found if candidate is not None and candidate.path.exists()]

    def _note_retest(self, candidate: Candidate, sessions: Sequence[_Session], level: _Level) -> None:
        found = [s for s in sessions if candidate.id in s.ids]
        if found:
            first, half = self.history.figures[candidate.id]
            second, within = _combined([s.wall for s in found], [s.at(candidate.id) for s in found])
            again = self._halves(within, found, candidate.id, level)[1]
            self.history.pairs.append((first, second - level.offset, (half, again)))

    # -- records -----------------------------------------------------------------------------------------------------

    def _halves(self, within: float, sessions: Sequence[_Session], name: str, level: _Level) -> tuple[float, float]:
        """Half width of a figure with the part between sessions, which several processes show and average out, and the
        doubt about the level that it is brought to; and the same for comparing it with others by this protocol: what is
        uncertain of the first batch's level moves all of them alike."""
        return self._wider(within, *_table(sessions), name, self.history.pace, level.doubt)

    def _cpu_halves(self, within: float, sessions: Sequence[_Session], name: str) -> tuple[float, float]:
        """The same of CPU time, which is on no level."""
        table, names = _table(sessions, "cpu")
        return self._wider(within, table, names, name, statistics.shared_doubt(table))

    def _wider(
        self, within: float, table: Floats, names: Sequence[str], name: str, pace: float, doubt: float = 0.0
    ) -> tuple[float, float]:
        """Half widths, whole and own, of a network within a session, between sessions, and of the level."""
        own = statistics.own_doubt(table, names.index(name), self.sigma)
        whole = statistics.whole_doubt(own, pace, self.sigma)
        half, own_half = (float(statistics.with_session(within, math.hypot(x, doubt))) for x in (whole, own))
        return half, own_half

    def _setup(self, candidate: Candidate, providers: Sequence[str] = ()) -> Setup:
        info = self.info
        return Setup(
            self._config.runtime,
            info.device,
            fingerprint(info.facts),
            dict(info.versions),
            tuple(providers),
            candidate.configured(self._config).to_json(),
            self._protocol.to_json(),
        )

    def _failed(self, candidate: Candidate, faults: _Faults) -> Record:
        status, message = faults.failed.get(candidate.id, (Status.CRASHED, "the worker could not be kept alive"))
        subject = Subject(candidate.id, candidate.graph_hash, candidate.facts)
        return Record(subject, self._setup(candidate), status, message, retries=faults.retries.get(candidate.id, 0))

    def _record(
        self, candidate: Candidate, sessions: Sequence[_Session], at: _Level, faults: _Faults, started: str
    ) -> Record:
        name, last, level = candidate.id, sessions[-1], at.offset
        loaded = last.loaded[name]
        value, within = _combined([s.wall for s in sessions], [s.at(name) for s in sessions])
        half, own_half = self._halves(within, sessions, name, at)
        cpu, cpu_within = _combined([s.cpu for s in sessions], [s.at(name) for s in sessions])
        cpu_half, cpu_own_half = self._cpu_halves(cpu_within, sessions, name)
        singles = single_runs(np.concatenate([s.loaded[name].samples for s in sessions]))
        minimum, polished = (_mean([getattr(s.wall, p)[s.at(name)] for s in sessions]) for p in ("minimum", "polished"))
        factor = 1e-6 * math.exp(-level)
        on_device = statistics.spread(singles[:, _DEVICE] * factor) if loaded.clock == "device" else None
        engines = [math.exp(s.wall.value[s.at(name)] - level) for s in sessions]
        latency = Latency(
            value=math.exp(value - level),
            low=math.exp(value - level - half),
            high=math.exp(value - level + half),
            half_within=within,
            sigma_session=self.sigma,
            calibrated=self._sigma is not None,
            minimum=math.exp(minimum - level),
            polished=math.exp(polished - level),
            level=level,
            spread=statistics.spread(singles[:, _WALL] * factor),
            cpu_time=math.exp(cpu),
            cpu_low=math.exp(cpu - cpu_half),
            cpu_high=math.exp(cpu + cpu_half),
            clock=loaded.clock,
            device_time=None if on_device is None else on_device.median,
            device_spread=on_device,
            own_half=own_half,
            cpu_own_half=cpu_own_half,
            level_doubt=at.doubt,
            engines=tuple(engines) if len(engines) > 1 and builds_engines(self._config) else (),
            first_run=loaded.reply["first_run_ms"],
            load_s=loaded.reply["load_s"],
            build_s=loaded.reply["build_s"],
        )
        sampling = Sampling(
            rounds=sum(s.rounds[name] for s in sessions),
            processes=len(sessions),
            warm_runs=loaded.warm["runs"],
            warm_ok=loaded.warm["steady"],
            seed=self._seed,
            order_hash=last.order_hash,
            batch_size=len(last.ids),
            started=started,
            wall_s=sum(s.wall_s for s in sessions),
            loops=max(s.loaded[name].loops for s in sessions),
        )
        status, message = Status.OK, ""
        if abs(level) > REPEAT:
            status, message = Status.NOISY, f"the reference networks took {math.expm1(level):+.0%} of their first time"
        elif within > self._protocol.within:
            status = Status.UNCONVERGED
            message = f"interval of {within:.1%} after {sampling.rounds} rounds, wanted {self._protocol.within:.1%}"
        self._measured[name] = candidate
        self.history.figures[name] = (value - level, own_half)
        return Record(
            Subject(name, candidate.graph_hash, candidate.facts),
            self._setup(candidate, loaded.reply["providers"]),
            status,
            message,
            latency,
            sampling,
            self._asked_memory(candidate),
            self._asked_energy(candidate),
            {
                "before": sessions[0].before,
                "after": last.after,
                "references": self.levels,
                "free_bytes": self._room.free,
            },
            _flags(minimum, polished, level, name, sessions),
            faults.retries.get(name, 0),
        )

    def _asked_memory(self, candidate: Candidate) -> MemoryInfo | None:
        if not self._memory:
            return None
        told, reason = self._asked(candidate, {"op": "memory"}, _LOAD_S)
        return MemoryInfo(source={"reason": reason}) if told is None else MemoryInfo.from_json(told["memory"])

    def _asked_energy(self, candidate: Candidate) -> Energy | None:
        if not self._energy:
            return None
        request = {"op": "energy", "window_s": _WINDOW_S, "windows": _WINDOWS}
        told, reason = self._asked(candidate, request, _LOAD_S + 4 * _WINDOW_S * _WINDOWS)
        if told is None:
            return Energy(reason=reason)
        energy = told["energy"]
        return Energy(**{**energy, "ci": None if energy["ci"] is None else tuple(energy["ci"])})

    def _asked(self, candidate: Candidate, request: Message, timeout: float) -> tuple[dict[str, Any] | None, str]:
        """What the worker says of a measured network, or why it does not. A worker that ended at an earlier network is
        started again with this one in it: the reason is that network's alone."""
        name = candidate.id
        try:
            if not self._alive:
                self._start()
            if name not in self._loaded:
                self._load_candidate(candidate)
                self._warm(name)
            return self._call({**request, "id": name}, timeout), ""
        except Failure as failure:
            return None, failure.message
        except (WorkerDied, WorkerTimeout) as fault:
            self._alive, self._loaded = False, {}
            return None, str(fault)


@dataclass
class _Faults:
    """What went wrong in a batch: who failed for good, who was tried again, faults that nobody can be named for."""

    failed: dict[str, tuple[Status, str]] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    strikes: int = 0


def _status(fault: WorkerDied | WorkerTimeout) -> tuple[Status, str]:
    if isinstance(fault, WorkerTimeout):
        return Status.TIMEOUT, str(fault)
    return (Status.OUT_OF_MEMORY if fault.out_of_memory else Status.CRASHED), str(fault)


def _combined(estimates: Sequence[Estimate], places: Sequence[int]) -> tuple[float, float]:
    """Log figure and half width over sessions: mean, and root of the mean square over their number."""
    values = [e.value[i] for e, i in zip(estimates, places, strict=True)]
    halves = [e.half[i] for e, i in zip(estimates, places, strict=True)]
    return _mean(values), math.sqrt(_mean([half**2 for half in halves]) / len(halves))


def _table(sessions: Sequence[_Session], which: str = "wall") -> tuple[Floats, list[str]]:
    """`s x n`, log figures of all networks that each of some processes has measured, and their names."""
    names = [name for name in sessions[0].ids if all(name in session.ids for session in sessions)]
    rows = [[getattr(session, which).value[session.at(name)] for name in names] for session in sessions]
    return np.array(rows, dtype=np.float64), names


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _flags(minimum: float, polished: float, level: float, name: str, sessions: Sequence[_Session]) -> tuple[str, ...]:
    """What was particular, in any of the processes that a figure is of."""
    states = [state for session in sessions for state in (session.before, session.after)]
    samples = np.concatenate([session.loaded[name].own for session in sessions])
    told = {
        "bimodal": abs(minimum - polished) > statistics.BIMODAL,
        "drift": abs(level) > DRIFT,
        "preempted": float(np.mean(samples[:, _SWITCHES] > 0)) > _PREEMPTED,
        "busy": max(float(state.get("psi_avg10", 0.0)) for state in states) > BUSY,
        "cold": not all(session.loaded[name].warm["steady"] for session in sessions),
        "throttled": any(map(_throttled, states)),
    }
    return tuple(name for name, so in told.items() if so)


def _throttled(conditions: Mapping[str, Any]) -> bool:
    """Whether a GPU says that it holds back (any bit but idle and set-by-user clocks)."""
    try:
        return bool(int(str(conditions.get("throttle_reasons", "0x0")), 16) & ~0b11)
    except ValueError:
        return False
