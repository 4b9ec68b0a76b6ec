"""A space's networks on a measured device: exported, timed, and the records turned into measurements."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.protocols import SearchSpace
from hwnas.errors import ExportFailed, HwnasError
from hwnas.evaluators.measured import FileTiming
from hwnas.onnx_facts import model_facts
from hwnas.profiling.backend import clock_of
from hwnas.profiling.bench import Candidate
from hwnas.profiling.energy import why_no_meter
from hwnas.profiling.headway import OnProgress
from hwnas.profiling.profiler import Profiler
from hwnas.profiling.protocol import Protocol, protocol
from hwnas.profiling.record import Record, tells_cpu_time
from hwnas.profiling.runs import LATENCY, Runs

Note = Callable[[Mapping[str, Any]], None]
Figure = tuple[float, tuple[float, float], float | None]

FINAL = "final"  # protocol of what is reported
_ENTRIES = {  # of a ledger, by whether final and whether kept
    (False, False): "networks_measured",
    (False, True): "networks_kept",
    (True, False): "final_measurements",
    (True, True): "final_kept",
}


class SpaceMeter:
    """Runs a space's networks on one device. Isomorphic networks are one graph, are run once and share its figure.

    Args:
        space: The search space.
        dataset: Fixes input shape and number of classes.
        profiler: The device; closed with this.
        careful: Protocol of searches.
        final: Protocol of what is reported.

    Attributes:
        space: As given.
        records: What the profiler said of each architecture last.
    """

    def __init__(
        self,
        space: SearchSpace,
        dataset: str,
        profiler: Profiler,
        *,
        careful: str = "default",
        final: str = FINAL,
    ) -> None:
        self.space, self._dataset, self.profiler = space, dataset, profiler
        self._careful, self._final = protocol(careful), protocol(final)
        self._folder = tempfile.TemporaryDirectory(prefix="hwnas-")
        self._exported: dict[Architecture, Candidate] = {}
        self.records: dict[Architecture, Record] = {}
        self._networks: dict[Architecture, str] = {}  # of earlier sessions of the run as well
        self._earlier: dict[tuple[str, Architecture], Record] = {}  # what those measured, by protocol
        self._note: Note = lambda told: None
        self._energy = _energy_reason(profiler)

    def context(self, metric: str, *, final: bool = False) -> Context | None:
        """What an answer of the search's, or the final, protocol carries; None where the device cannot tell this."""
        return None if self.why_not(metric) else self._context(self._final if final else self._careful)

    def why_not(self, metric: str) -> str:
        """Why a metric cannot be told, in words; "" if it can."""
        runtime, threads = self.profiler.runtime, self.profiler.device.threads
        known = self.profiler.device.metrics
        if metric not in known:
            return f"device {self.profiler.device.name} tells {', '.join(known)}, not {metric}"
        if metric == "cpu_time_ms" and not tells_cpu_time(runtime, threads):
            return f"CPU time says nothing of {runtime} with {threads} threads"
        return self._energy if metric == "energy_mj" else ""

    @property
    def metrics(self) -> list[str]:
        """What can be told."""
        return [metric for metric in self.profiler.device.metrics if not self.why_not(metric)]

    def candidates(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Their networks, each graph once.

        Raises:
            ExportFailed: One cannot be written.
        """
        for architecture in architectures:
            told = self._export(architecture)
            if told is not None:
                raise ExportFailed(f"{self.space.format(architecture)} cannot be written as ONNX: {told}")
        return list({self._exported[a].id: self._exported[a] for a in architectures}.values())

    def join(self, notes: Sequence[Mapping[str, Any]], note: Note) -> None:
        """See `hwnas.evaluators.measured.Meter`."""
        for told in notes:
            if told["what"] == "asked":
                self._networks |= {Architecture.from_key(key): name for key, name in told["networks"].items()}
        for protocol_name, architecture, record in noted(notes):
            self.records[architecture] = self._earlier[protocol_name, architecture] = record
        self._note = note
        self.profiler.join(notes, note, self._find)

    def watch(self, on_progress: OnProgress) -> None:
        """See `hwnas.evaluators.measured.Meter`."""
        self.profiler.watch(on_progress)

    def samples(self) -> dict[str, NDArray[np.float64]]:
        """Raw samples of this session by protocol and network: "default/<start of the graph's hash>"."""
        benches = self.profiler.benches.items()
        return {f"{name}/{network}": table for name, bench in benches for network, table in bench.samples.items()}

    def network(self, architecture: Architecture) -> str | None:
        """The name of an architecture's network in `samples`; None where it was not run."""
        return self._networks.get(architecture)

    def measure(
        self, architectures: Sequence[Architecture], *, final: bool = False
    ) -> Iterator[Mapping[str, Measurement]]:
        """See `hwnas.evaluators.measured.Meter`."""
        how = self._final if final else self._careful
        context = self._context(how)
        # an earlier session ended before its answers were stored: they are not measured twice
        before = {a: record for a in architectures if (record := self._earlier.get((how.name, a))) is not None}
        asked = [a for a in dict.fromkeys(architectures) if a not in before]
        failed = {a: told for a in asked if (told := self._export(a)) is not None}
        runnable = {a: self._exported[a] for a in asked if a not in failed}
        once = list({candidate.id: candidate for candidate in runnable.values()}.values())
        if once:
            networks = {a.key: candidate.id for a, candidate in runnable.items()}
            self._note({"what": "asked", "protocol": how.name, "final": final, "networks": networks})
        found: dict[str, Record] = {}
        waiting = self.profiler.measure(once, how)
        for architecture in architectures:
            if architecture in before:
                yield {m: measurement(before[architecture], architecture, m, context) for m in self.metrics}
                continue
            if architecture in failed:
                yield {
                    m: _failure(architecture, m, context, Status.EXPORT_FAILED, failed[architecture])
                    for m in self.metrics
                }
                continue
            wanted = self._exported[architecture].id
            while wanted not in found:
                record = next(waiting)
                found[record.subject.id] = record
            self.records[architecture] = found[wanted]
            yield {m: measurement(found[wanted], architecture, m, context) for m in self.metrics}

    def measure_files(self, paths: Sequence[Path]) -> list[FileTiming | str]:
        """See `hwnas.evaluators.measured.Meter`."""
        # without their hashes, so that neither cache nor an earlier record answers: these very files are timed
        files = [Candidate(f"exported/{path.stem}", path) for path in paths]
        found: list[FileTiming | str] = []
        for record in self.profiler.measure(files, self._final):
            latency = record.latency
            told = f"{record.status}: {record.message}"
            if latency is None:
                found.append(told)
            else:
                runs = Runs.of(record, slower=latency.level)
                others = {metric: figure(record, metric) for metric in self.metrics if metric != LATENCY}
                beside = {m: told if isinstance(told, str) else (told[0], *told[1]) for m, told in others.items()}
                found.append(FileTiming(latency.value, latency.low, latency.high, latency.level, runs, beside))
        return found

    def drift(self) -> float:
        """See `hwnas.evaluators.measured.Meter`."""
        return self.profiler.drift(self._careful.name, self._final.name)

    def summary(self) -> dict[str, Any]:
        """See `hwnas.evaluators.measured.Meter`."""
        history = self.profiler.history(self._careful.name)
        repeated, paces = history.retests, [math.expm1(offset) for offset in history.offsets]
        return self.profiler.describe() | {
            "retests": None if repeated is None else asdict(repeated),
            "drift": math.expm1(self.drift()),
            "paces": [min(paces), max(paces)] if paces else None,
        }

    def certificate(self, architecture: Architecture) -> dict[str, Any] | None:
        """See `hwnas.evaluators.measured.Meter`."""
        record = self.records.get(architecture)
        return None if record is None else {"batch": self.profiler.device.batch, **record.to_json()}

    def close(self) -> None:
        """Release the device."""
        self.profiler.close()
        self._folder.cleanup()

    def _context(self, how: Protocol) -> Context:
        profiler = self.profiler
        threads = f"{profiler.config.threads} thread{'s' * (profiler.config.threads > 1)}"
        clock = ", by the device's own events" if clock_of(profiler.config) == "device" else ""
        return Context(
            Source.MEASURED,
            device=profiler.device.name,
            runtime=profiler.runtime,
            precision=profiler.config.precision,
            batch=profiler.device.batch,
            dataset=self._dataset,
            fidelity=f"protocol {how.name}, {threads}{clock}",
            origin=f"{profiler.info.device} ({profiler.fingerprint[:12]})",
            versions=tuple(sorted(profiler.info.versions.items())),
        )

    def _export(self, architecture: Architecture) -> str | None:
        """Write a network's file once; what went wrong, if anything did."""
        if architecture in self._exported:
            return None
        path = Path(self._folder.name) / f"{len(self._exported)}.onnx"
        try:
            batch = self.profiler.device.batch
            path.write_bytes(self.space.to_onnx(architecture, self._dataset, batch=batch).SerializeToString())
            facts = model_facts(path)
        except (HwnasError, ValueError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        same = facts.graph_hash[:16]
        self._exported[architecture] = Candidate(same, path, facts.graph_hash, facts.to_json())
        self._networks[architecture] = same
        return None

    def _find(self, name: str) -> Candidate | None:
        """A network that an earlier session measured, written anew; None where that is not possible."""
        architecture = next((a for a, known in self._networks.items() if known == name), None)
        if architecture is None or self._export(architecture) is not None:
            return None
        return self._exported[architecture]


def noted(notes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Architecture, Record]]:
    """What a run's notes on a device tell of measurements, in order: protocol, architecture and record.

    Raises:
        KeyError, TypeError, ValueError: The notes are damaged.
    """
    asked: dict[str, Mapping[str, str]] = {}
    for told in notes:
        if told["what"] == "asked":
            asked[told["protocol"]] = told["networks"]
        elif told["what"] in ("batch", "kept"):
            records = {record["subject"]["id"]: record for record in told["records"]}
            for key, name in asked.get(told["protocol"], {}).items():
                if name in records:
                    yield told["protocol"], Architecture.from_key(key), Record.from_json(records[name])


def tally(notes: Sequence[Mapping[str, Any]]) -> Ledger:
    """How many networks a run had run on a device, and of how many the user's cache knew the figures, by its notes on
    the device: the entries `networks_*` and `final_*` of a ledger.

    A network that the run has measured itself is not kept from earlier, also where the cache answers when another
    architecture that builds the same network is asked for. Exported files, which nobody asks for by architecture, are
    not among them.

    Raises:
        KeyError, TypeError: The notes are damaged.
    """
    counts: Counter[str] = Counter()
    asked: dict[str, tuple[bool, frozenset[str]]] = {}
    known: set[tuple[str, str]] = set()
    for told in notes:
        if told["what"] == "asked":
            # a run of an earlier version does not say whether they are for the search or final
            final = told.get("final", told["protocol"] == FINAL)
            asked[told["protocol"]] = final, frozenset(told["networks"].values())
        elif told["what"] in ("batch", "kept"):
            how = told["protocol"]
            final, wanted = asked.get(how, (False, frozenset()))
            names = {(how, record["subject"]["id"]) for record in told["records"] if record["subject"]["id"] in wanted}
            kept = told["what"] == "kept"
            counts[_ENTRIES[final, kept]] += len(names - known if kept else names)
            known |= names
    return Ledger(**counts)


def measurement(record: Record, architecture: Architecture, metric: str, context: Context) -> Measurement:
    """One metric of a record as a row; a failure, or a metric that the record lacks, is a row with a status."""
    if record.latency is None:
        return _failure(architecture, metric, context, record.status, record.message)
    found = figure(record, metric)
    if isinstance(found, str):
        return _failure(architecture, metric, context, Status.NOT_MEASURED, found)
    value, interval, own = found
    if metric == "peak_memory_mib":  # a plan, whatever the timing was like
        return Measurement(architecture, metric, value, context)
    own_half = None if own is None else value * math.sinh(own)  # as half of the interval is
    return Measurement(architecture, metric, value, context, record.status, interval, record.message, own_half)


def figure(record: Record, metric: str) -> Figure | str:
    """One metric of a record that has a latency: its value, its interval, and, relative, half of what of that is its
    own where it is known; or why there is none."""
    latency = record.latency
    assert latency is not None
    if metric == "peak_memory_mib":
        source = {} if record.memory is None else record.memory.source
        peak = record.peak_memory_mib
        if peak is None:
            return str(source.get("reason", f"{record.setup.runtime} does not tell its memory plan"))
        return peak, (peak, peak), None
    if metric == "energy_mj":
        energy = record.energy
        if energy is None or energy.energy_mj is None:
            return "not asked for" if energy is None else energy.reason
        return energy.energy_mj, energy.ci or (energy.energy_mj, energy.energy_mj), None
    if metric == "latency_ms":
        return latency.value, (latency.low, latency.high), latency.own_half
    if latency.cpu_time is None or latency.cpu_low is None or latency.cpu_high is None:
        return f"{record.setup.runtime} tells no {metric}"
    return latency.cpu_time, (latency.cpu_low, latency.cpu_high), latency.cpu_own_half


def _failure(architecture: Architecture, metric: str, context: Context, status: Status, message: str) -> Measurement:
    return Measurement.failed(architecture, metric, context, status, message)


def _energy_reason(profiler: Profiler) -> str:
    if profiler.device.host != "local":
        return ""  # only the worker there knows; a device without a meter gives rows with the reason
    reason = why_no_meter(profiler.runtime)
    return f"no energy meter here: {reason}" if reason else ""
