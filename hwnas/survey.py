"""Networks of a search space measured on a device: a sample of them to save, or a few to calibrate with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwnas.core.architecture import Architecture
from hwnas.core.device import Device
from hwnas.core.measurement import Measurement
from hwnas.core.protocols import SearchSpace
from hwnas.errors import UnknownName
from hwnas.evaluators.meter import SpaceMeter
from hwnas.profiling.headway import OnProgress
from hwnas.profiling.profiler import Profiler
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record
from hwnas.profiling.saved import read_profile, save_profile
from hwnas.profiling.statistics import Retests
from hwnas.seeding import stream
from hwnas.spaces.codes import sample_unseen

SCHEMA = 1


@dataclass
class Survey:
    """What has been measured so far of the networks that were asked for.

    Attributes:
        space, dataset: What the networks are.
        protocol: How carefully.
        asked: The architectures, in order.
        sampled: How they were chosen, in words.
        rows: A row for each measured architecture and metric, architecture by architecture.
        records: All that is known of each.
        device: `Profiler.describe`.
        retests: How well figures repeated; None from fewer than two batches.
        samples: Raw samples by network.
        networks: The network of each architecture, by key: isomorphic ones share one.
    """

    space: SearchSpace
    dataset: str
    protocol: Protocol
    asked: tuple[Architecture, ...]
    sampled: str
    rows: list[Measurement] = field(default_factory=list)
    records: dict[Architecture, Record] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    retests: Retests | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> list[Architecture]:
        """Architectures that have rows."""
        return list(dict.fromkeys(row.architecture for row in self.rows))

    @property
    def complete(self) -> bool:
        """Whether every architecture has a latency."""
        told = [row for row in self.rows if row.metric == "latency_ms" and row.status.has_value]
        return len(told) == len(self.asked)

    def to_json(self) -> dict[str, Any]:
        """Everything but the raw samples, as plain values."""
        return {
            "schema": SCHEMA,
            "space": self.space.name,
            "dataset": self.dataset,
            "sampled": self.sampled,
            "asked": len(self.asked),
            "protocol": self.protocol.to_json(),
            "device": dict(self.device),
            "retests": None if self.retests is None else asdict(self.retests),
            "networks": [
                {
                    "arch": self.space.format(architecture),
                    "key": architecture.key,
                    "samples": self.networks.get(architecture.key),
                    "metrics": {row.metric: _plain(row) for row in self.rows if row.architecture == architecture},
                    "record": self.records[architecture].to_json() if architecture in self.records else None,
                }
                for architecture in self.measured
            ],
        }

    def save(self, name: str, device: Device) -> Path:
        """Keep the rows as a device of their own; see `hwnas.profiling.saved.save_profile`."""
        told = {
            "sampled": self.sampled,
            "asked": len(self.asked),
            "protocol": self.protocol.to_json(),
            "device": dict(self.device),
            "retests": None if self.retests is None else asdict(self.retests),
            "samples": self.networks,
        }
        return save_profile(name, device, self.space, self.rows, told, self.samples)


def choose(
    space: SearchSpace, *, sample: int = 0, archs: Sequence[str] = (), seed: int = 0
) -> tuple[list[Architecture], str]:
    """Which architectures to measure, and how they were chosen, in words.

    Args:
        space: Where they come from.
        sample: So many, at random, each at most once.
        archs: These as well, by notation or key.
        seed: Same seed, same sample.

    Raises:
        InvalidArchitecture: One of `archs` is none.
    """
    named = list(dict.fromkeys(space.parse(text) for text in archs))
    drawn = sample_unseen(space, sample, frozenset(named), rng=stream(seed, 0, "survey"))
    told = [f"{len(named)} named"] if named else []
    told += [f"{len(drawn)} at random, seed {seed}"] if sample else []
    return [*named, *drawn], ", ".join(told)


@contextmanager
def open_meter(
    space: SearchSpace,
    dataset: str,
    device: Device,
    protocol: Protocol,
    *,
    cached: bool = True,
    energy: bool = False,
    seed: int = 0,
    wait_s: float = 0.0,
    on_progress: OnProgress | None = None,
) -> Iterator[SpaceMeter]:
    """A device that runs a space's networks, for as long as the context lasts.

    Raises:
        UnknownName: The space builds no networks for the data set.
        DeviceError: The device cannot be measured on now.
    """
    if dataset not in space.datasets:
        raise UnknownName("data set", dataset, space.datasets)
    profiler = Profiler(
        device,
        cached=cached,
        memory="peak_memory_mib" in device.metrics,
        energy=energy and "energy_mj" in device.metrics,
        seed=seed,
        wait_s=wait_s,
        on_progress=on_progress,
    )
    meter = SpaceMeter(space, dataset, profiler, careful=protocol.name)
    try:
        yield meter
    finally:
        meter.close()


def measure(meter: SpaceMeter, survey: Survey, *, energy: bool = False) -> None:
    """Measure what a survey asks for. It grows as batches end: whatever stops this, what was measured is in it."""
    metrics = [metric for metric in meter.metrics if energy or metric != "energy_mj"]
    survey.device = meter.profiler.describe()
    try:
        for architecture, rows in zip(survey.asked, meter.measure(survey.asked), strict=True):
            survey.rows += [rows[metric] for metric in metrics]
            if architecture in meter.records:
                survey.records[architecture] = meter.records[architecture]
            network = meter.network(architecture)
            if network is not None:
                survey.networks[architecture.key] = f"{survey.protocol.name}/{network}"
    finally:
        survey.device = meter.profiler.describe()
        bench = meter.profiler.benches.get(survey.protocol.name)
        survey.retests = None if bench is None else bench.retests
        survey.samples = meter.samples()


def next_step(name: str, space: SearchSpace) -> str:
    """What a profile that was just saved is good for: the search that uses it, or why none should."""
    from hwnas.evaluators.saved import SavedEvaluator  # its predictors load scipy

    profile = read_profile(name, space)
    few = "" if profile is None else SavedEvaluator(profile, space).too_few("latency_ms")
    return few or f"use it: hwnas search --device {name}"


def calibrate(meter: SpaceMeter, protocol: Protocol, *, networks: int = 8, sessions: int = 5, seed: int = 0) -> float:
    """Measure the noise floor of a device with random networks of a space.

    Returns:
        The between-session standard deviation, relative.

    Raises:
        DeviceUnavailable: A network could not be measured.
    """
    space = meter.space
    chosen = sample_unseen(space, networks, frozenset(), rng=stream(seed, 0, "calibrate"))
    return meter.profiler.calibrate(meter.candidates(chosen), protocol, sessions)


def _plain(row: Measurement) -> dict[str, Any]:
    told: dict[str, Any] = {"value": row.value if row.status.has_value else None, "status": str(row.status)}
    if row.interval is not None:
        told |= {"low": row.interval[0], "high": row.interval[1]}
    return told | ({"message": row.message} if row.message else {})
