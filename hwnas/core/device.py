"""Hardware targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Device:
    """A hardware target (not a torch device): where a network's latency is asked for.

    Attributes:
        name: What the user types, e.g. "edgegpu".
        title: The real device, e.g. "NVIDIA Jetson TX2".
        kind: "gpu", "cpu", "phone", "asic", "fpga", "tpu".
        runtimes: What can run a network there, in order of preference, e.g. ("tensorrt", "ort-cuda").
        precisions: Number formats, in order of preference: "fp32", "fp16", "int8".
        metrics: Metrics that are known for it, e.g. ("latency_ms", "energy_mj").
        measured_how: One sentence: what was measured and how.
        batch: Batch size of its figures.
        memory_mib: Memory that a model may use, MiB: one that needs more is out of memory; None for all.
        host: Where it is: "local", "table" (only known from a table), "profile" (only known from saved measurements),
            or "ssh:ADDRESS".
        threads: Threads that run one network, where it is measured.
        options: Further options of the runtime, as it spells them.
        python: Python of a device that is reached by ssh.
        origin: Where the definition comes from (file or benchmark).
    """

    name: str
    title: str
    kind: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    metrics: tuple[str, ...]
    measured_how: str
    batch: int = 1
    memory_mib: float | None = None
    host: str = "table"
    origin: str = ""
    threads: int = 1
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    python: str = "python3"

    @property
    def measurable(self) -> bool:
        """Whether networks can be run on it, here or over ssh; else it is only known from numbers."""
        return self.host not in ("table", "profile")
