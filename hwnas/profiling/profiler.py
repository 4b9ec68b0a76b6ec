"""One device, ready to measure: its worker, its lock, its calibration, and what was measured on it before."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hwnas import atomic, resources
from hwnas.core.device import Device
from hwnas.core.measurement import Status
from hwnas.devices import lacks
from hwnas.errors import DataError, DeviceUnavailable, RunIncompatible
from hwnas.profiling import statistics
from hwnas.profiling.backend import CPU_RUNTIMES, DEFAULT_OPTIONS, DeviceInfo, Failure, SessionConfig, clock_of
from hwnas.profiling.bench import DEFAULT_SIGMA, Bench, Candidate
from hwnas.profiling.cache import NOT_IDENTITY, ResultCache, result_key
from hwnas.profiling.headway import OnProgress
from hwnas.profiling.history import History
from hwnas.profiling.host import fingerprint, total_bytes
from hwnas.profiling.machine import MachineLock
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Latency, Record
from hwnas.profiling.references import write_references
from hwnas.profiling.room import LIBRARIES_MIB, MIB, Room, least_need
from hwnas.profiling.transport import LocalTransport, SshTransport
from hwnas.profiling.wire import Transport, WorkerDied, WorkerTimeout

_KEPT_FAILURES = ("unsupported_op", "invalid_model", "ep_fallback")  # would fail the same way tomorrow


class Profiler:
    """Measures ONNX files on one device; nobody else does meanwhile.

    Args:
        device: The hardware target; measurable.
        cached: Whether to answer from, and add to, the user's cache of measurements.
        memory, energy: Whether records shall have them.
        seed: Of random orders.
        wait_s: How long to wait for somebody else who measures on it.
        on_progress: Told how far it is (`hwnas.profiling.headway`); figures from the cache are done.
        transport: Makes a worker; default: by the device's host.

    Attributes:
        runtime: Which of the device's runtimes is used.
        info: What the worker found.
        fingerprint: Of the device with its drivers and runtime versions.

    Raises:
        DeviceUnavailable: No runtime of it is here, or the worker does not start.
        DeviceBusy: Somebody else measures on it.
    """

    def __init__(
        self,
        device: Device,
        *,
        cached: bool = True,
        memory: bool = False,
        energy: bool = False,
        seed: int = 0,
        wait_s: float = 0.0,
        on_progress: OnProgress | None = None,
        transport: Callable[[], Transport] | None = None,
    ) -> None:
        self.device = device
        self.runtime = choose_runtime(device)
        self._seed, self._memory, self._energy = seed, memory, energy
        self._on_progress = on_progress
        self._answered = 0  # networks of those that are asked for now that the cache answers
        self._transport = transport or (lambda: _transport(device))
        self._folder = tempfile.TemporaryDirectory(prefix="hwnas-")
        self._references = write_references(Path(self._folder.name))
        self._benches: dict[str, Bench] = {}
        self._histories: dict[str, History] = {}
        self._note: Callable[[Mapping[str, Any]], None] = lambda told: None
        self._earlier: Callable[[str], Candidate | None] = lambda name: None
        self._cache: ResultCache | None = None
        self._lock: MachineLock | None = None
        self.config = session_config(device, self.runtime)
        try:
            self.sigma: float | None = None
            self.info = self._probe()
            self.fingerprint = fingerprint(self.info.facts)
            self.sigma = read_calibration(self.fingerprint, self.config)
            self._lock = MachineLock(device, wait_s)
            self._cache = ResultCache(resources.user_cache() / "measurements.sqlite") if cached else None
        except BaseException:
            self.close()
            raise

    def join(
        self,
        notes: Sequence[Mapping[str, Any]],
        note: Callable[[Mapping[str, Any]], None],
        earlier: Callable[[str], Candidate | None],
    ) -> None:
        """Take up a run: a protocol that measured in its earlier sessions goes on with its next batches, on the level
        and with the noise floor that they began with; one that begins today begins on what the clock shows today. Call
        it before anything is measured.

        Args:
            notes: What earlier sessions noted, in order; empty in the first.
            note: Takes plain values that a later session must know, before anybody sees the records they belong to.
            earlier: Finds a network that an earlier session measured, by its candidate's id.

        Raises:
            RunIncompatible: The run measured with other settings of the device.
            KeyError, TypeError, ValueError: The notes are damaged.
        """
        identity = json.loads(json.dumps({**self.config.to_json(), **dict.fromkeys(NOT_IDENTITY)}))
        began = next((told for told in notes if told["what"] == "device"), None)
        if began is None:
            note({"what": "device", "sigma": self.sigma, "config": identity})
        else:
            changed = [name for name, now in identity.items() if began["config"].get(name) != now]
            if changed:
                words = ", ".join(f"{name} {began['config'].get(name)!r}, now {identity[name]!r}" for name in changed)
                raise RunIncompatible(
                    f"device {self.device.name} was measured with {words}. Restore the device file (where that is as "
                    "it was, a default of hwnas is another now), or start a new run"
                )
            self.sigma = None if began["sigma"] is None else float(began["sigma"])
        for told in notes:
            if told["what"] == "batch":
                self.history(told["protocol"]).add(told)
        self._note, self._earlier = note, earlier

    def history(self, protocol: str) -> History:
        """What later batches by a protocol know of earlier ones, those of earlier sessions included."""
        return self._histories.setdefault(protocol, History())

    def drift(self, before: str, after: str) -> float:
        """How much slower the machine was when the protocol `after` began than when `before` did, as a log factor by
        the reference networks; 0 where either has measured nothing."""
        first, second = self.history(before).level, self.history(after).level
        shared = sorted(first.keys() & second.keys())
        return float(np.mean([second[name] - first[name] for name in shared])) if shared else 0.0

    def measure(self, candidates: Sequence[Candidate], protocol: Protocol) -> Iterator[Record]:
        """A record for each candidate, in order; measured ones as their batch ends, and kept at once.

        Figures from the cache are brought to today's level by the reference networks; their intervals hold today's
        noise floor and the doubt about that level. Where others have to be measured, the first batch of these sets the
        level, and is measured before anything is told; else the references alone do (`Bench.find_level`). Noisy and
        unconverged figures are neither kept nor taken from there.

        Args:
            candidates: With distinct ids; those without a graph hash are never looked up or kept.
            protocol: How carefully.

        Raises:
            DeviceUnavailable: Not even the reference networks can be run.
        """
        keys = {
            c.id: result_key(c.graph_hash, c.configured(self.config), self.fingerprint)
            for c in candidates
            if c.graph_hash
        }
        self._answered = 0
        known = self._known(candidates, keys, protocol)
        self._answered = len(known)
        fresh = iter(self._fresh([c for c in candidates if c.id not in known], keys, protocol))
        # a batch with other networks tells today's level better than the references alone do
        ahead = list(self._up_to_a_level(fresh, protocol)) if any(kept.latency for kept in known.values()) else []
        today = {name: self._on_todays_level(record, protocol) for name, record in known.items()}
        if today:
            records = [record.to_json() for record in today.values()]
            self._note({"what": "kept", "protocol": protocol.name, "records": records})
        measured = chain(ahead, fresh)
        for candidate in candidates:
            yield today[candidate.id] if candidate.id in today else next(measured)

    def _up_to_a_level(self, fresh: Iterator[Record], protocol: Protocol) -> Iterator[Record]:
        """Records of networks that are measured until a batch of them has found the level; none where it is known."""
        while not self.history(protocol.name).level and (record := next(fresh, None)) is not None:
            yield record

    def bench(self, protocol: Protocol) -> Bench:
        """The worker for one protocol, started if need be.

        Raises:
            DeviceUnavailable: It does not start.
        """
        if protocol.name not in self._benches:
            others = [history.sigma for name, history in self._histories.items() if name != protocol.name]
            try:
                self._benches[protocol.name] = Bench(
                    self._transport(),
                    self.config,
                    protocol,
                    references=self._references,
                    sigma=self.sigma,
                    # the search's retests say more of the machine as it is now than any calibration does
                    least_sigma=max(others, default=0.0),
                    seed=self._seed,
                    memory=self._memory,
                    energy=self._energy,
                    granted_mib=self.device.memory_mib,
                    on_progress=self._tell,
                    history=self.history(protocol.name),
                    earlier=lambda name: self._earlier(name),
                    on_batch=lambda told: self._note({"what": "batch", "protocol": protocol.name, **told}),
                )
            except (Failure, WorkerDied, WorkerTimeout) as error:
                raise DeviceUnavailable(f"device {self.device.name} cannot be measured on: {error}") from error
        return self._benches[protocol.name]

    @property
    def benches(self) -> Mapping[str, Bench]:
        """The workers that have been used, by name of their protocol: what they sampled, and how well it repeats."""
        return self._benches

    def watch(self, on_progress: OnProgress) -> None:
        """From now on, say what is being measured."""
        self._on_progress = on_progress

    @property
    def noise_floor(self) -> tuple[float, bool]:
        """Between-session standard deviation, relative, and whether it was measured on this device."""
        return (DEFAULT_SIGMA, False) if self.sigma is None else (self.sigma, True)

    def describe(self) -> dict[str, Any]:
        """What the device is, how networks are run on it, and how sure its figures are, as plain values."""
        floor, calibrated = self.noise_floor
        return {
            "device": self.device.name,
            "title": self.info.device,
            "runtime": self.runtime,
            "threads": self.config.threads,
            "precision": self.config.precision,
            "clock": clock_of(self.config),
            "versions": dict(self.info.versions),
            "fingerprint": self.fingerprint,
            "facts": dict(self.info.facts),
            "noise_floor": floor,
            "calibrated": calibrated,
            "widened": max([floor, *(history.sigma for history in self._histories.values())]),
            "crowded": self._crowded(),
            "squeezed": next((bench.squeezed for bench in self._benches.values() if bench.squeezed), ""),
        }

    def _crowded(self) -> str:
        """That there are more threads than cores, in words; "" where there are not, or nobody knows."""
        cores, threads = self.info.facts.get("usable cores", ""), self.config.threads
        if self.runtime not in CPU_RUNTIMES or not cores.isdigit() or threads <= int(cores):
            return ""
        return f"{threads} threads share {cores} cores and wait for each other: --threads {cores} or fewer"

    def calibrate(self, candidates: Sequence[Candidate], protocol: Protocol, sessions: int = 5) -> float:
        """Measure the same networks in fresh processes, and keep how much their figures differ between them.

        Args:
            candidates: A few networks; the references are measured beside them.
            protocol: How carefully.
            sessions: At least 2.

        Returns:
            The between-session standard deviation, relative.

        Raises:
            ValueError: Fewer than two sessions.
            DeviceUnavailable: A network could not be measured.
        """
        if sessions < 2:
            raise ValueError(f"at least 2 sessions differ from each other; got {sessions}")
        alone = replace(protocol, processes=1)  # several would average out what is asked for
        values, halves = [], []
        for number in range(sessions):
            # each in a process of its own, and on its own level: differences between sessions are what is asked for
            with closing(self._session(alone, number, sessions)) as bench:
                records = list(bench.measure(candidates))
            figures = [_must(record) for record in records]
            values.append([math.log(figure.value) for figure in figures])
            halves.append([figure.half_within for figure in figures])
        found = np.array(values), np.array(halves)
        sigma, seen = statistics.session_sigma(*found), statistics.seen_sigma(*found)
        write_calibration(self.fingerprint, self.config, sigma, sessions, len(candidates), protocol, seen=seen)
        self.sigma = sigma
        return sigma

    def close(self) -> None:
        """End workers and let others measure."""
        for bench in self._benches.values():
            bench.close()
        self._benches = {}
        if self._cache is not None:
            self._cache.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, done: float, total: int, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(self._answered + done, self._answered + total, text)

    def _session(self, protocol: Protocol, number: int, sessions: int) -> Bench:
        """One of several workers that all measure the same."""

        def tell(done: float, total: int, text: str) -> None:
            behind = number + (done / total if total else 0.0)
            self._tell(behind, sessions, f"session {number + 1} of {sessions}, {text}" if text else "")

        try:
            return Bench(
                self._transport(),
                self.config,
                protocol,
                references=self._references,
                seed=self._seed + number,
                granted_mib=self.device.memory_mib,
                on_progress=tell,
            )
        except (Failure, WorkerDied, WorkerTimeout) as error:
            raise DeviceUnavailable(f"device {self.device.name} cannot be measured on: {error}") from error

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """What goes wrong with no candidate, as an error of the device."""
        try:
            yield
        except (Failure, WorkerDied, WorkerTimeout) as error:
            at = f" (at {error.at})" if error.at else ""
            raise DeviceUnavailable(f"device {self.device.name} cannot be measured on: {error}{at}") from error

    def _probe(self) -> DeviceInfo:
        info = probe(self.device, self.runtime, self._transport)
        if not info.available:
            raise DeviceUnavailable(f"device {self.device.name} cannot be measured on: {info.reason}")
        return info

    def _known(self, candidates: Sequence[Candidate], keys: Mapping[str, str], protocol: Protocol) -> dict[str, Record]:
        """What the cache answers, by candidate, as it was measured."""
        if self._cache is None:
            return {}
        linked = self.history(protocol.name).level or self._references
        found = {}
        for candidate in candidates:
            kept = self._cache.get(keys[candidate.id], rank=protocol.rank) if candidate.id in keys else None
            if kept is None:
                continue
            try:
                record = Record.from_json(kept)
            except ValueError:
                continue  # of another version of hwnas: measured again
            if record.status.has_value and record.status is not Status.OK:
                continue  # a quieter machine may tell more
            if not record.tells_single_runs:
                continue  # an earlier version has timed loops only
            if (self._memory and record.memory is None) or (self._energy and record.energy is None):
                continue
            if record.latency is not None and self._may_be_too_large(candidate, record):
                continue  # it was measured with more memory than there is now
            if record.latency is not None and not linked.keys() & record.conditions.get("references", {}).keys():
                continue  # no reference links it to today
            found[candidate.id] = replace(record, subject=replace(record.subject, id=candidate.id))
        return found

    def _may_be_too_large(self, candidate: Candidate, record: Record) -> bool:
        """Whether a network that ran may not run with the memory that it would have now."""
        granted = None if self.device.memory_mib is None else int(self.device.memory_mib * MIB)
        if Room(granted=granted).lacks(least_need(candidate.facts, self.config.precision)):
            return True
        now, then = self.config.memory_limit_mib, record.setup.config.get("memory_limit_mib")
        return now is not None and (then is None or then > now)

    def _on_todays_level(self, record: Record, protocol: Protocol) -> Record:
        """A kept record with its figure as the references are today, and as sure as can be said today."""
        if record.latency is None:
            return record
        with self._reported():
            bench = self.bench(protocol)
            now, then = bench.find_level(), record.conditions["references"]
        moved = np.array([math.log(now[name] / then[name]) for name in sorted(now.keys() & then.keys())])
        # each reference moves by two sessions' parts of its own; so few of them may seem to agree by chance
        apart = max(math.sqrt(2) * bench.sigma, float(moved.std(ddof=1)) if len(moved) > 1 else 0.0)
        processes = 1 if record.sampling is None else record.sampling.processes
        latency = _renewed(
            record.latency,
            shift=float(moved.mean()),
            doubt=apart / math.sqrt(len(moved)),
            pace=bench.history.pace,
            sigma=bench.sigma,
            processes=processes,
        )
        return replace(
            record, latency=replace(latency, calibrated=self.sigma is not None), flags=(*record.flags, "cached")
        )

    def _fresh(self, candidates: Sequence[Candidate], keys: Mapping[str, str], protocol: Protocol) -> Iterator[Record]:
        if not candidates:
            return
        records = self.bench(protocol).measure(candidates)
        while True:
            with self._reported():
                record = next(records, None)
            if record is None:
                return
            keep = record.status is Status.OK or record.status in _KEPT_FAILURES
            if self._cache is not None and keep and record.subject.id in keys:
                self._cache.put([(keys[record.subject.id], protocol.rank, record.to_json())])
            yield record


def choose_runtime(device: Device) -> str:
    """The first of a device's runtimes that is here.

    Raises:
        DeviceUnavailable: None is, with what each lacks; or the device is only known from numbers.
    """
    if not device.measurable:
        raise DeviceUnavailable(
            f"device {device.name} is only known from numbers ({device.origin}); it cannot be measured on"
        )
    if device.host != "local":
        return device.runtimes[0]
    lacking = {runtime: lacks(runtime) for runtime in device.runtimes}
    there = [runtime for runtime, lack in lacking.items() if not lack]
    if not there:
        told = "; ".join(f"{runtime}: {lack}" for runtime, lack in lacking.items())
        raise DeviceUnavailable(f"device {device.name} cannot be measured on: {told}")
    return there[0]


def session_config(device: Device, runtime: str) -> SessionConfig:
    """How networks are run on a device, hwnas's own defaults included where they change figures; networks with dynamic
    inputs also have shapes (`Candidate.configured`)."""
    return SessionConfig(
        runtime,
        threads=device.threads,
        precision=device.precisions[0] if device.precisions else "fp32",
        options={**DEFAULT_OPTIONS.get(runtime, {}), **device.options},
        cache=str(resources.user_cache() / "engines"),
        memory_limit_mib=_memory_limit(device, runtime),
    )


def probe(device: Device, runtime: str, transport: Callable[[], Transport] | None = None) -> DeviceInfo:
    """What a worker finds where a device is; nothing is run there, and no lock is taken.

    Raises:
        DeviceUnavailable: The worker does not start, or does not answer.
    """
    worker = (transport or (lambda: _transport(device)))()
    try:
        worker.start()
        told = worker.call({"op": "probe", "runtime": runtime}, timeout=60.0)
    except (Failure, WorkerDied, WorkerTimeout) as error:
        raise DeviceUnavailable(f"device {device.name} cannot be measured on: {error}") from error
    finally:
        worker.close()
    return DeviceInfo.from_json(told["info"])


def calibration_file(device: str, config: SessionConfig) -> Path:
    """Where the calibration of a device (by fingerprint) with one runtime and so many threads is kept."""
    return (
        resources.user_cache()
        / "calibration"
        / f"{device[:16]}-{config.runtime.replace(':', '-')}-{config.threads}.json"
    )


def read_calibration(device: str, config: SessionConfig) -> float | None:
    """Between-session standard deviation of a device, relative; None where it was never calibrated.

    Raises:
        DataError: The file is damaged.
    """
    path = calibration_file(device, config)
    if not path.exists():
        return None
    try:
        sigma = float(json.loads(path.read_text(encoding="utf-8"))["sigma"])
        if not 0 <= sigma < math.inf:
            raise ValueError(f"a spread of at least 0 is wanted; got {sigma}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the calibration {path} is damaged ({error}); delete it, or run 'hwnas calibrate' again"
        ) from error
    return max(sigma, statistics.LEAST_SIGMA)  # one that was kept before may promise less


def write_calibration(
    device: str,
    config: SessionConfig,
    sigma: float,
    sessions: int,
    networks: int,
    protocol: Protocol,
    *,
    seen: float | None = None,
) -> Path:
    """Keep a calibration, with what it came from: `sigma` is what intervals contain, `seen` what was found."""
    told: dict[str, Any] = {
        "sigma": sigma,
        "seen": seen,
        "sessions": sessions,
        "networks": networks,
        "protocol": protocol.name,
        "config": config.to_json(),
        "fingerprint": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return atomic.write(calibration_file(device, config), json.dumps(told, indent=2) + "\n")


def _memory_limit(device: Device, runtime: str) -> float | None:
    """Address space for a worker, MiB: a network that cannot fit shall fail, and not drive the machine out of memory.
    It is what the device file grants, else, here, all that the machine or this process's container has, and in both
    cases that of libraries beside it.
    GPU drivers reserve far more than they use, so their workers have no limit."""
    if runtime not in CPU_RUNTIMES or (device.host == "local" and sys.platform != "linux"):
        return None
    granted = device.memory_mib
    if granted is None and device.host == "local" and (total := total_bytes()) is not None:
        granted = total / 2**20
    return None if granted is None else granted + LIBRARIES_MIB


def _transport(device: Device) -> Transport:
    if device.host == "local":
        return LocalTransport()
    return SshTransport(device.host.removeprefix("ssh:"), python=device.python)


def _renewed(latency: Latency, *, shift: float, doubt: float, pace: float, sigma: float, processes: int) -> Latency:
    """A kept figure as it is told later; CPU time, which is on no level, only gets its new interval.

    half^2 = within^2 + 1.96^2 (max(sigma^2, own^2 + pace^2) + doubt^2), on the log scale, with own = max(sigma, seen)
    / sqrt(processes); `own_half` is the same of own and doubt alone. What was uncertain of the level then went with it.

    Args:
        latency: As it was measured.
        shift: Log offset of the references since then.
        doubt: Standard deviation of `shift`.
        pace: Of the level as a whole that it is brought to (`History.pace`).
        sigma: Between-session standard deviation, as known now.
        processes: Over how many the figure is a mean.
    """
    within, before = latency.half_within, latency.sigma_session
    # what its processes differed by counts where it was more than the noise floor of then
    seen = latency.between * math.sqrt(processes)
    own = max(sigma, seen if seen > 1.001 * before else 0.0) / math.sqrt(processes)
    half = float(statistics.with_session(within, math.hypot(statistics.whole_doubt(own, pace, sigma), doubt)))
    factor = math.exp(shift)
    value = factor * latency.value
    cpu, cpu_low, cpu_high, cpu_own = latency.cpu_time, latency.cpu_low, latency.cpu_high, latency.cpu_own_half
    if cpu is not None and cpu_high is not None:
        cpu_half = float(statistics.with_session(_without(math.log(cpu_high / cpu), 1.96 * before), sigma))
        cpu_low, cpu_high = cpu * math.exp(-cpu_half), cpu * math.exp(cpu_half)
    if cpu_own is not None:
        own_part = 1 / math.sqrt(processes)
        cpu_own = float(statistics.with_session(_without(cpu_own, 1.96 * before * own_part), sigma * own_part))
    return replace(
        latency,
        value=value,
        low=value * math.exp(-half),
        high=value * math.exp(half),
        sigma_session=sigma,
        minimum=factor * latency.minimum,
        polished=factor * latency.polished,
        level=latency.level - shift,
        spread=latency.spread.scaled(factor),
        device_time=None if latency.device_time is None else factor * latency.device_time,
        device_spread=None if latency.device_spread is None else latency.device_spread.scaled(factor),
        engines=tuple(factor * one for one in latency.engines),
        own_half=float(statistics.with_session(within, math.hypot(own, doubt))),
        level_doubt=doubt,
        cpu_low=cpu_low,
        cpu_high=cpu_high,
        cpu_own_half=cpu_own,
    )


def _without(half: float, part: float) -> float:
    """What is left of a half width without a part of it."""
    return math.sqrt(max(0.0, half**2 - part**2))


def _must(record: Record) -> Latency:
    if record.latency is None:
        raise DeviceUnavailable(f"{record.subject.id} cannot be measured: {record.status}: {record.message}")
    return record.latency
