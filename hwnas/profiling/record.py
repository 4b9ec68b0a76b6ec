"""What is known about one network on one device after it was measured, or was not: the row that is kept."""

from __future__ import annotations

import dataclasses
import io
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hwnas import atomic
from hwnas.core.measurement import Status
from hwnas.profiling.backend import GPU_RUNTIMES, MemoryInfo
from hwnas.profiling.energy import Energy
from hwnas.profiling.statistics import Spread

VERSION = 2
_READ = (1, VERSION)  # the first described loops as if they were single runs (`Record.tells_single_runs`)
LOOPS = 7  # column of raw samples: inferences in the sample
ESTIMATOR = "geometric mean of the minimum and the polished effect at the minima's level"


def tells_cpu_time(runtime: str, threads: int) -> bool:
    """Whether CPU time is that of the inference: not where a GPU works, nor where other threads than the timed one do,
    unless the whole process is timed."""
    return runtime not in GPU_RUNTIMES and (threads == 1 or runtime == "openvino")


@dataclass(frozen=True)
class Subject:
    """What was run.

    Attributes:
        id: Name that the caller gave.
        graph_hash: Of its structure, without weights; "" where unknown.
        facts: Counted from the file: parameters, multiply-accumulates, nodes, opset, bytes, ...
    """

    id: str
    graph_hash: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """Where and how it was run.

    Attributes:
        runtime, device, fingerprint: As the worker found them.
        versions: Of the runtime and its drivers.
        providers: What really ran it.
        config: `SessionConfig`, whole; its shapes are this network's.
        protocol: `Protocol`, whole.
    """

    runtime: str
    device: str
    fingerprint: str
    versions: Mapping[str, str]
    providers: tuple[str, ...]
    config: Mapping[str, Any]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Latency:
    """Figures in ms, widths relative.

    Attributes:
        value, low, high: The latency and its 95 % interval, between-session part included.
        half_within: Half width within the session.
        own_half: Half of the interval for comparing it with others of its device and protocol: without what is
            uncertain of the level of all. None where nobody has told it apart (a record of an earlier version).
        level_doubt: Standard deviation of `level`, which all figures of its batch share; part of `own_half`.
        sigma_session: Between-session standard deviation that was added.
        calibrated: Whether that was measured on this device; else it is the default.
        minimum, polished: The two parts of the figure.
        level: Log offset of the reference networks to the first batch, which the figure is corrected by.
        spread: Of the wall time of single runs, corrected likewise; whatever the clock of `value` is. Where `value` is
            made of loops, these are runs beside them.
        cpu_time, cpu_low, cpu_high: CPU time of one inference by the same estimate, with its 95 % interval;
            uncorrected, as the references' level is one of wall time. `cpu_own_half` as `own_half`.
        clock: What `value` and its interval are made of: "wall", or "device" for the device's own events, which leave
            out what the host takes to launch the work. The two are not to be compared with each other.
        device_time: Median time of single runs on the device by its own events, corrected; None where it has none.
        device_spread: As `spread`, of the time on the device.
        engines: Latency with each engine that was built, in the order of the processes, by `clock` and corrected; ()
            where no engines are built or only one was.
        first_run, load_s, build_s: The first inference, ms; loading and compiling, s.
    """

    value: float
    low: float
    high: float
    half_within: float
    sigma_session: float
    calibrated: bool
    minimum: float
    polished: float
    level: float
    spread: Spread
    cpu_time: float | None = None
    cpu_low: float | None = None
    cpu_high: float | None = None
    clock: str = "wall"
    device_time: float | None = None
    device_spread: Spread | None = None
    engines: tuple[float, ...] = ()
    own_half: float | None = None
    level_doubt: float = 0.0
    cpu_own_half: float | None = None
    first_run: float = 0.0
    load_s: float = 0.0
    build_s: float = 0.0
    estimator: str = ESTIMATOR

    def __post_init__(self) -> None:
        told = self.clock == "device"
        if self.clock not in ("wall", "device") or {told} != {
            x is not None for x in (self.device_time, self.device_spread)
        }:
            raise ValueError(f"a latency by the clock 'device' has a device time and its spread; got {self}")

    @property
    def half(self) -> float:
        """Half of the interval."""
        return math.log(self.high / self.value)

    @property
    def apart(self) -> float:
        """`own_half`, or the interval's where that is not known."""
        return self.half if self.own_half is None else self.own_half

    @property
    def between(self) -> float:
        """Standard deviation between sessions in the interval, relative, for comparing it with others of its batch."""
        return math.sqrt(max(0.0, self.apart**2 - self.half_within**2 - (1.96 * self.level_doubt) ** 2)) / 1.96

    @property
    def own_spread(self) -> Spread:
        """Of single runs by the clock of `value`."""
        return self.spread if self.device_spread is None else self.device_spread

    @property
    def engine_spread(self) -> float | None:
        """By how much the slowest engine is slower than the fastest, relative; None from fewer than two."""
        return max(self.engines) / min(self.engines) - 1 if len(self.engines) > 1 else None


@dataclass(frozen=True)
class Sampling:
    """How it was sampled.

    Attributes:
        rounds, processes: Visits, over so many fresh processes.
        loops: Inferences in a sample that the latency is made of, at most; above 1, single runs were timed beside them.
        warm_runs, warm_ok: Warm-up, and whether it became steady.
        seed, order_hash: Of the random orders.
        batch_size: Networks that were interleaved, references included.
        started: ISO 8601.
        wall_s: Wall time of the batch over its networks.
    """

    rounds: int
    processes: int
    warm_runs: int
    warm_ok: bool
    seed: int
    order_hash: str
    batch_size: int
    started: str
    wall_s: float
    loops: int = 1


@dataclass(frozen=True)
class Record:
    """One network on one device by one protocol.

    Attributes:
        subject: What.
        setup: Where and how.
        status: Ok, or why there is no figure or a doubtful one.
        message: For people, where the status is not ok.
        latency: None where the status has no value.
        sampling: None where nothing was sampled.
        memory: None where it was not asked for.
        energy: None where it was not asked for.
        conditions: State of the machine before and after.
        flags: Words of `hwnas.profiling.runs.FLAGS`.
        retries: How often it was tried again.
    """

    subject: Subject
    setup: Setup
    status: Status
    message: str = ""
    latency: Latency | None = None
    sampling: Sampling | None = None
    memory: MemoryInfo | None = None
    energy: Energy | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    retries: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.status.has_value != (self.latency is not None):
            raise ValueError(
                f"{self.subject.id}: status {self.status} and latency {self.latency} contradict each other"
            )
        if self.latency is not None and not 0 < self.latency.low <= self.latency.value <= self.latency.high < math.inf:
            raise ValueError(f"{self.subject.id}: a latency is above 0 and inside its interval; got {self.latency}")

    @property
    def tells_single_runs(self) -> bool:
        """Whether its spread is that of single runs. It may not be in a record of version 1, which does not say whether
        its samples are loops: they may be where it took less than the shortest sample."""
        if self.latency is None or self.version > 1:
            return True
        return self.latency.own_spread.minimum >= 1e-3 * float(self.setup.protocol.get("sample_us", 0.0))

    @property
    def cpu_time(self) -> float | None:
        """CPU time of one inference, ms; None where it says nothing (`tells_cpu_time`)."""
        if self.latency is None or not tells_cpu_time(self.setup.runtime, self.setup.config.get("threads", 1)):
            return None
        return self.latency.cpu_time

    @property
    def peak_memory_mib(self) -> float | None:
        """Weights and the highest sum of live activations, MiB; None where the runtime does not tell its plan."""
        memory: Any = self.memory
        if memory is None or memory.activation_peak is None:
            return None
        # as the runtime keeps them, in its precision; else as they are in the file
        weights = self.subject.facts.get("weights_bytes", 0) if memory.weights is None else memory.weights
        return float((memory.activation_peak + weights) / 2**20)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for files that leave this machine: without the path of its folder for engines, and without
        the name of a worker, which may be one of several."""
        told = {**dataclasses.asdict(self), "status": str(self.status)}
        own = ("cache", "session")
        told["setup"]["config"] = {name: value for name, value in self.setup.config.items() if name not in own}
        return told

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ValueError: Another version, or not a record.
        """
        if data.get("version") not in _READ:
            raise ValueError(f"a record of version {VERSION} is wanted; got {data.get('version')}")
        try:
            made: Self = _build(cls, data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a record of a measurement: {error}") from error
        return made


def write_samples(path: Path, samples: Mapping[str, NDArray[np.float64]]) -> Path:
    """Raw samples in a compressed file beside the records, one array a network.

    Args:
        path: Ends in ".npz".
        samples: `s x 8` each: round, the fields of `hwnas.profiling.backend.Sample`, and how many inferences the sample
            has: 1 is a single run, more a loop.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(samples)
    np.savez_compressed(buffer, **arrays)
    return atomic.write(path, buffer.getvalue())


def single_runs(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of raw samples (`write_samples`) that are of one inference each."""
    return np.asarray(samples[samples[:, LOOPS] == 1])


def _build(kind: Any, data: Any) -> Any:
    """A value of a dataclass, of its fields' types, from plain JSON."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if data is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        unknown = set(data) - known
        if unknown:
            raise TypeError(f"{kind.__name__} has no {sorted(unknown)}")
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(data)
    return Status(data) if kind is Status else data
