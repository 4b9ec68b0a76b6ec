"""The seam inside the worker: what a runtime must offer to be timed. Standard library and numpy only.

A runtime is a module of `hwnas.profiling.worker.runtimes` with a class that implements `Backend`. It raises `Failure`
with the status that the candidate shall carry; anything else that it raises is reported as `crashed` with its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.core.measurement import Status

CPU_RUNTIMES = ("ort-cpu", "openvino", "torch-cpu")  # work on the processor, in the machine's own memory
GPU_RUNTIMES = ("ort-cuda", "ort-trt", "torch-cuda", "tensorrt")  # work on an NVIDIA GPU

DEVICE_CLOCK = ("torch-cuda", "tensorrt")  # are timed by the device's own events
ENGINES = ("tensorrt", "ort-trt")  # build an engine for each network, and no two builds are alike

# below a device file's options, and like these part of a result's identity
DEFAULT_OPTIONS: Mapping[str, Mapping[str, str | int | float | bool]] = MappingProxyType(
    {
        # OpenVINO's default ties its thread to one core, also while somebody else works there: on a busy machine of
        # two cores the median of a run was eight times that of a thread that may move (docs/runtimes.md)
        "openvino": MappingProxyType({"ENABLE_CPU_PINNING": False}),
    }
)


class Failure(Exception):
    """A candidate could not be measured; becomes a row with this status and message, never a number.

    Args:
        status: One of the statuses without a value.
        message: What was wanted, what came, and what to do, for people.
        at: Model that was being worked on, where the host knows it.
    """

    def __init__(self, status: Status, message: str, *, at: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.at = at


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a network shall be run. Part of a result's identity: two values differ, two results are not comparable.

    Attributes:
        runtime: "ort-cpu", "ort-cuda", "ort-trt", "ort:PROVIDER", "openvino", "torch-cpu", "torch-cuda", "tensorrt",
            "fake".
        threads: Threads inside an operator; always explicit.
        spinning: Whether idle threads spin (ONNX Runtime).
        precision: "fp32", "fp16", "int8".
        cpus: CPUs that the worker may use; () leaves it to the scheduler.
        options: Further options of the runtime, as it spells them; a host puts `DEFAULT_OPTIONS` below them.
        cache: Folder for engines and timing caches; None keeps nothing.
        cache_mib: How large that folder may be; what was not used for longest is removed.
        build: Number of the engine, where engines are built: another number is another build of the same network.
        memory_limit_mib: Address space that the worker may use; None for no limit.
        shapes: Input name to static shape, for models with dynamic ones; of one network, never of a whole session.
        session: Names the worker process, for what is simulated from a seed; "" where nobody counts.
    """

    runtime: str
    threads: int = 1
    spinning: bool = False
    precision: str = "fp32"
    cpus: tuple[int, ...] = ()
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    cache: str | None = None
    cache_mib: float = 4096.0
    build: int = 0
    memory_limit_mib: float | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    session: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        values["cpus"] = tuple(values.get("cpus", ()))
        values["shapes"] = {name: tuple(shape) for name, shape in values.get("shapes", {}).items()}
        return cls(**values)


def clock_of(config: SessionConfig) -> str:
    """What latencies are timed with: "device" (its own events), or "wall" (from the launch to the end of the work)."""
    simulated = config.runtime == "fake" and bool(config.options.get("device_share"))
    return "device" if simulated or config.runtime in DEVICE_CLOCK else "wall"


def builds_engines(config: SessionConfig) -> bool:
    """Whether the latency of a network depends on which build of its engine runs."""
    simulated = config.runtime == "fake" and bool(config.options.get("engine"))
    return simulated or config.runtime in ENGINES


class Sample(NamedTuple):
    """One timed piece of work: `loops` back-to-back inferences, synchronised; all figures are per inference.

    Attributes:
        wall_ns: Wall time.
        cpu_ns: CPU time of the calling thread.
        proc_cpu_ns: CPU time of the whole worker process.
        device_ns: Time on the device (events); None where the runtime has none.
        nivcsw: Involuntary context switches of the thread meanwhile (whole sample).
        run_delay_ns: Time that the thread was runnable but did not run (Linux; whole sample); 0 where unknown.
    """

    wall_ns: float
    cpu_ns: float
    proc_cpu_ns: float
    device_ns: float | None = None
    nivcsw: int = 0
    run_delay_ns: int = 0


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a worker finds where it runs.

    Attributes:
        available: Whether the runtime can run a network here.
        reason: Why not, with the line that installs what is missing; "" if available.
        device: The real device's name, e.g. the CPU's model.
        versions: Package or driver to version.
        facts: Everything that identifies the device, as words; its hash is the device's fingerprint.
    """

    available: bool
    reason: str
    device: str
    versions: Mapping[str, str]
    facts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Memory of one loaded network, in bytes; None where the runtime does not tell.

    Attributes:
        weights: Parameters as the runtime keeps them.
        activation_peak: Highest sum of live activations in the runtime's own plan.
        engine: Compiled engine.
        rss_delta: Growth of the process by loading it; a rough figure.
        device: Device memory.
        source: What each figure comes from, by attribute name; as `reason` why there are none.
    """

    weights: int | None = None
    activation_peak: int | None = None
    engine: int | None = None
    rss_delta: int | None = None
    device: int | None = None
    source: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


class LoadedModel(Protocol):
    """One network, ready to run on fixed inputs (randn, seed 0) that are already where the device wants them."""

    providers: Sequence[str]  # what really runs it, best first
    build_s: float  # compiling, where that is apart from loading; else 0

    def run(self, n: int = 1) -> None:
        """`n` back-to-back inferences, synchronised at return."""

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        """`k` samples of `loops` inferences each."""

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Outputs in the model's order, for given inputs."""

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The inputs that are timed, by name."""

    def memory(self) -> MemoryInfo:
        """May cost a run of its own (with profiling on); never timed."""

    def close(self) -> None:
        """Free everything; closing twice does nothing."""


class Backend(Protocol):
    """A runtime."""

    def probe(self) -> DeviceInfo:
        """Cheap, and never raises."""

    def free_bytes(self, config: SessionConfig) -> int | None:
        """Memory that networks could still take where they lie; None where nobody tells."""

    def total_bytes(self, config: SessionConfig) -> int | None:
        """All memory that there is where networks lie, whoever uses it now; None where nobody tells."""

    def load(self, model: Path, config: SessionConfig) -> LoadedModel:
        """Raises Failure. A silent fallback to another provider is a failure of status `ep_fallback`."""
