"""ONNX files timed against each other: who is faster on a device, by how much, and how sure that is."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import atomic
from hwnas.core.device import Device
from hwnas.core.shapes import Declared, ask_for_shape, inputs_words
from hwnas.errors import InvalidModel, RunError, RunExists
from hwnas.onnx_facts import ModelFacts, Shapes, declared_shapes, has_external_data, model_facts, read_model
from hwnas.profiling.bench import Candidate
from hwnas.profiling.profiler import Profiler, choose_runtime
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record, write_samples
from hwnas.profiling.statistics import Comparison, compare
from hwnas.profiling.wire import Transport
from hwnas.seeding import stream

Floats = NDArray[np.float64]

SCHEMA = 1
_DRAWS = 500  # of a figure from the cache, whose own draws are not kept
_LISTED = 4  # models whose inputs are told
RECORDS, SAMPLES = "profile.json", "samples.npz"

OnProgress = Callable[[str, float, int, str], None]


@dataclass(frozen=True)
class Timing:
    """One model on one device.

    Attributes:
        model: Its name, unique among those compared.
        device: The device's name.
        record: All that is known; a failure is a status.
        samples: `s x 8` raw samples (`hwnas.profiling.record.write_samples`); None where the figure is from the cache.
    """

    model: str
    device: str
    record: Record
    samples: Floats | None = None


@dataclass(frozen=True)
class Pair:
    """Two timings against each other.

    Attributes:
        first, second: What is compared.
        result: Ratio of the latencies, with interval and certainty.
        interleaved: Whether both were measured in the same rounds. Figures of two devices, or from the cache, were
            not: what the machine did meanwhile is in their difference.
    """

    first: Timing
    second: Timing
    result: Comparison
    interleaved: bool

    def sentence(self, name: Callable[[Timing], str]) -> str:
        """The pair in words: who is faster, by how much, how sure; with what `name` calls the two."""
        one, two = name(self.first), name(self.second)
        unlike = "" if self.comparable else "; but one is timed by its device's own events, the other by wall time"
        ratio, low, high = self.result.ratio, self.result.low, self.result.high
        if self.result.tie:
            return f"{one} and {two}: a tie (ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}){unlike}"
        if ratio > 1:
            one, two = two, one
        else:
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        # an interval that does not hold 1 shall not look as if it did; far from 1 nobody reads the decimals
        places = next(n for n, below in ((3, 1.2), (2, 10.0), (1, 100.0), (0, math.inf)) if ratio < below)
        sure = f"({low:.{places}f} to {high:.{places}f}), {_sure(self.result.chance)}{unlike}"
        return f"{one} is {ratio:.{places}f} times as fast as {two} {sure}"

    @property
    def clocks(self) -> tuple[str, ...]:
        """What each is timed with, "wall" or "device"."""
        both = (self.first.record.latency, self.second.record.latency)
        return tuple(latency.clock for latency in both if latency is not None)

    @property
    def comparable(self) -> bool:
        """Whether both are timed with the same clock."""
        return len(set(self.clocks)) < 2


@dataclass(frozen=True)
class Timings:
    """Everything that came of a comparison.

    Attributes:
        timings: Devices in the order in which they were named, models in theirs.
        pairs: All pairs of models on a device, then each model's of two devices; those with figures only.
        devices: For each device what it is, how it was run, and how well its figures repeat.
        protocol: How carefully.
    """

    timings: tuple[Timing, ...]
    pairs: tuple[Pair, ...]
    devices: Mapping[str, Mapping[str, Any]]
    protocol: Protocol
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every model has a figure on every device."""
        return all(timing.record.status.has_value for timing in self.timings)

    def name(self, timing: Timing) -> str:
        """A timing's model, and device where there are several."""
        return f"{timing.model} on {timing.device}" if len(self.devices) > 1 else timing.model

    def to_json(self) -> dict[str, Any]:
        """Everything but the raw samples, as plain values."""
        return {
            "schema": SCHEMA,
            "protocol": self.protocol.to_json(),
            "devices": {name: dict(told) for name, told in self.devices.items()},
            "records": [
                {"model": t.model, "path": self.paths.get(t.model), "on": t.device, **t.record.to_json()}
                for t in self.timings
            ],
            "comparisons": [
                {
                    "first": {"model": p.first.model, "on": p.first.device},
                    "second": {"model": p.second.model, "on": p.second.device},
                    **asdict(p.result),
                    "tie": p.result.tie,
                    "interleaved": p.interleaved,
                    "clocks": list(p.clocks),
                    "text": p.sentence(self.name),
                }
                for p in self.pairs
            ],
        }

    def write(self, folder: Path) -> list[Path]:
        """Write records and raw samples.

        Raises:
            RunError: The folder cannot be written.
        """
        kept = {f"{t.device}/{t.model}": t.samples for t in self.timings if t.samples is not None}
        return write_records(folder, self.to_json(), kept)


def write_records(folder: Path, told: Mapping[str, Any], samples: Mapping[str, Floats]) -> list[Path]:
    """Write records and, in a compressed file beside them, raw samples.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        return [
            atomic.write(folder / RECORDS, json.dumps(told, indent=1, allow_nan=False) + "\n"),
            write_samples(folder / SAMPLES, samples),
        ]
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}") from error


def new_folder(path: Path) -> Path:
    """A folder to write to, made now, so that nothing is measured in vain.

    Raises:
        RunExists: Something is there; it is never overwritten.
        RunError: It cannot be made.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunExists(f"{path} exists and is never overwritten; choose another folder (--out)")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error.strerror or error}") from error
    return path


def time_models(
    paths: Sequence[Path],
    devices: Sequence[Device],
    protocol: Protocol,
    *,
    shapes: Shapes | None = None,
    cached: bool = True,
    energy: bool = True,
    seed: int = 0,
    wait_s: float = 0.0,
    on_progress: OnProgress | None = None,
    transport: Callable[[], Transport] | None = None,
) -> Timings:
    """Time models on devices; those of one device interleaved, one device after the other.

    Args:
        paths: ONNX files, at least one; the same file may be named twice (two equal networks are a tie).
        devices: Where.
        protocol: How carefully.
        shapes: Static shapes by input name; each is used by the models that have such an input and where it is
            dynamic, and by these alone: models in shapes of their own stay as they are.
        cached: Whether figures of earlier measurements on the same device in the same way are good enough.
        energy: Whether to measure energy where the device has a meter.
        seed: Of random orders.
        wait_s: How long to wait for somebody else who measures there.
        on_progress: Told (device, networks' worth of work done, of how many, what is going on).
        transport: Makes workers; default: by each device's host.

    Raises:
        InvalidModel: A file that is no ONNX model, lacks its external data, or has a dynamic shape that nobody set; a
            shape that no model needs, or that does not fit one that does.
        DeviceError: A device that cannot be measured on now. Nothing has been measured then.
    """
    with ExitStack() as opened:
        candidates, names = _candidates(paths, shapes or {})
        for device in devices:
            choose_runtime(device)
            if device.host != "local":
                _refuse_split(paths, device)
        profilers = [
            opened.enter_context(
                Profiler(
                    device,
                    cached=cached,
                    memory="peak_memory_mib" in device.metrics,
                    energy=energy and "energy_mj" in device.metrics,
                    seed=seed,
                    wait_s=wait_s,
                    on_progress=_named(on_progress, device.name),
                    transport=transport,
                )
            )
            for device in devices
        ]
        timings: list[Timing] = []
        draws: dict[tuple[str, str], Floats] = {}
        told: dict[str, dict[str, Any]] = {}
        for device, profiler in zip(devices, profilers, strict=True):
            for record in profiler.measure(candidates, protocol):
                bench = profiler.benches.get(protocol.name)
                fresh = bench is not None and "cached" not in record.flags
                name = record.subject.id
                timings.append(Timing(name, device.name, record, bench.samples.get(name) if bench and fresh else None))
                if bench is not None and fresh and name in bench.draws:
                    draws[device.name, name] = bench.draws[name]
            told[device.name] = profiler.describe()
    pairs = tuple(_pairs(timings, draws, stream(seed, 0, "comparisons")))
    return Timings(tuple(timings), pairs, told, protocol, names)


def _candidates(paths: Sequence[Path], shapes: Shapes) -> tuple[list[Candidate], dict[str, str]]:
    """What to measure, each with the shapes that it needs, and where each lies."""
    inputs = [declared_shapes(read_model(path)) for path in paths]
    for name in shapes:
        if not any(name in declared and _dynamic(declared[name]) for declared in inputs):
            raise InvalidModel(_needless(name, dict(zip(paths, inputs, strict=True))))
    candidates, names = [], {}
    for path, name, declared in zip(paths, _names(paths), inputs, strict=True):
        free = {key: shape for key, shape in declared.items() if _dynamic(shape)}
        mine = {key: tuple(shapes[key]) for key in free if key in shapes}
        for key, shape in free.items():
            if key not in mine:
                raise InvalidModel(f"{path}: {ask_for_shape(key, shape)}")
        facts: ModelFacts = model_facts(path, mine)
        candidates.append(Candidate(name, path, facts.graph_hash, facts.to_json(), mine))
        names[name] = str(path)
    return candidates, names


def _dynamic(shape: Declared) -> bool:
    """Whether some dimension has to be told."""
    return not all(isinstance(size, int) for size in shape)


def _needless(name: str, inputs: Mapping[Path, Mapping[str, Declared]]) -> str:
    """Why no model needs a shape of an input of this name."""
    having = {path: declared for path, declared in inputs.items() if name in declared}
    told = [f"{path} has {inputs_words(declared)}" for path, declared in (having or inputs).items()]
    listed = "; ".join(told[:_LISTED]) + (f"; and {len(told) - _LISTED} more" if len(told) > _LISTED else "")
    if having:
        return f"--shape {name} is for dynamic inputs, and {name!r} is static: {listed}. Leave it out"
    return f"--shape {name}: no model has an input {name!r}; {listed}"


def _refuse_split(paths: Sequence[Path], device: Device) -> None:
    """A worker elsewhere gets one file for each model."""
    for path in paths:
        if has_external_data(read_model(path)):
            raise InvalidModel(
                f"{path}: weights in files of their own are not copied to {device.host}; save the model as one file"
            )


def _names(paths: Sequence[Path]) -> list[str]:
    """File names where they tell the models apart, else paths; a file that is named again has a number behind it."""
    plain = [path.name for path in paths]
    apart = len({path.resolve() for path in paths}) == len(set(plain))
    seen: Counter[str] = Counter()
    names = []
    for name in plain if apart else map(str, paths):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _pairs(
    timings: Sequence[Timing], draws: Mapping[tuple[str, str], Floats], rng: np.random.Generator
) -> Iterator[Pair]:
    measured = [timing for timing in timings if timing.record.latency is not None]
    pairs = [pair for pair in itertools.combinations(measured, 2) if pair[0].device == pair[1].device]
    pairs += [pair for pair in itertools.combinations(measured, 2) if pair[0].model == pair[1].model]
    for first, second in pairs:
        keys = [(timing.device, timing.model) for timing in (first, second)]
        both = [
            draws[key] if key in draws else _drawn(timing.record, rng)
            for key, timing in zip(keys, (first, second), strict=True)
        ]
        length = min(map(len, both))
        near = first.device == second.device
        together = near and all(key in draws for key in keys) and _orders(first) == _orders(second)
        between = [_between(timing.record, near, together) for timing in (first, second)]
        sigma = float(np.sqrt(np.mean(np.square(between))))
        result = compare(both[0][:length], both[1][:length], sigma, rng=rng)
        yield Pair(first, second, result, together)


def _orders(timing: Timing) -> str | None:
    """What is the same for all networks of a batch, and for no others."""
    sampling = timing.record.sampling
    return None if sampling is None else sampling.order_hash


def _drawn(record: Record, rng: np.random.Generator) -> Floats:
    """Draws of a figure whose own are not known: normal on the log scale, as wide as its interval within the
    session."""
    latency = record.latency
    assert latency is not None
    return np.asarray(np.log(latency.value) + latency.half_within / 1.96 * rng.standard_normal(_DRAWS))


def _between(record: Record, near: bool, together: bool) -> float:
    """What a comparison has to add to the interval within the session, as a standard deviation, relative.

    Args:
        record: Of one of the two.
        near: Both are of one device: the level of all its figures does not matter.
        together: Both are of the same rounds: nor does where their batch stands on it.
    """
    latency = record.latency
    assert latency is not None
    if together:
        return latency.between
    half = latency.apart if near else latency.half
    return float(np.sqrt(max(0.0, half**2 - latency.half_within**2)) / 1.96)


def _sure(chance: float) -> str:
    certainty = max(chance, 1 - chance)
    return "certainty above 99 %" if certainty > 0.99 else f"certainty {100 * certainty:.0f} %"


def _named(told: OnProgress | None, device: str) -> Callable[[float, int, str], None] | None:
    if told is None:
        return None
    return lambda done, total, text: told(device, done, total, text)
