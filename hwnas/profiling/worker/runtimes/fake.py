"""A simulated device: nothing is run and nothing is timed, but the truth is known.

For trying out device files, and for tests of everything above the runtime: statistics against known latencies, faults
that would be hard to provoke. Its figures are never those of any hardware; they carry the runtime's name, "fake".

A network's true latency is `overhead_ms + nodes * node_us / 1000 + macs / (gmacs_per_s * 1e6)` ms, times a factor of
its own (`spread`, log-normal, the same in every session), or what `truth.PATTERN` says. One inference takes

    truth * exp(level_s + session_sa + jitter * |n|) * (1 + drift * minutes) * slow ** (mode * sensitivity_a) * tail

with n standard normal; mode 1 while the machine is slow; tail 1, or with probability `tail` 1 + 2 x, x exponential.
Time is simulated as well: an inference advances a clock instead of waiting.

Options (`SessionConfig.options`; PATTERN is a shell pattern for the file's name without its suffix):

    truth.PATTERN         true latency, ms
    fault.PATTERN         what goes wrong with a network when it is loaded: a word of `FAULTS`; "WORD@N": at its Nth run
    overhead_ms, node_us, gmacs_per_s, spread
    jitter                noise of each inference, relative
    drift                 growth of all latencies per minute, relative
    slow, slow_s, fast_s  factor of the slow mode; mean seconds that either mode lasts
    tail                  share of inferences with a heavy tail
    device_share          share of the wall time that the device's own events show; without it there are no events
    engine                standard deviation between builds of a network's engine (`SessionConfig.build`), relative
    level, session        standard deviation between sessions, relative: of all networks alike, of each for itself
    free_mib, total_mib   memory that is said to be free, and to be there, MiB; without it none is told
    seed                  of all that, with the worker's name (`SessionConfig.session`): sessions differ from each
                          other, in the same way every time; without it every process draws anew
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hwnas import onnx_facts
from hwnas.core.measurement import Status
from hwnas.errors import InvalidModel
from hwnas.onnx_facts import ModelFacts
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.worker.inputs import make_inputs
from hwnas.seeding import stable_hash

FAULTS = ("crash", "killed", "hang", "oom", "garbage", "invalid", "unsupported", "fallback", "nan", "zero")
_MAY_BE_UNTOLD = ("seed", "free_mib", "total_mib")
_SENSITIVITY = (0.8, 1.2)  # the slow mode slows networks down to different degrees


@dataclass(frozen=True)
class Settings:
    """The options that are plain numbers; see the module."""

    overhead_ms: float = 0.05
    node_us: float = 2.0
    gmacs_per_s: float = 50.0
    spread: float = 0.1
    jitter: float = 0.01
    drift: float = 0.0
    slow: float = 1.0
    slow_s: float = 1.0
    fast_s: float = 1.0
    tail: float = 0.0
    level: float = 0.0
    session: float = 0.0
    device_share: float = 0.0
    engine: float = 0.0
    free_mib: float = -1.0  # below 0: not told
    total_mib: float = -1.0  # likewise
    seed: float = -1.0  # below 0: none

    @classmethod
    def read(cls, options: Mapping[str, str | int | float | bool]) -> Settings:
        """From a configuration's options.

        Raises:
            Failure: An option is unknown, no number, or out of its range.
        """
        known = [f.name for f in fields(cls)]
        found: dict[str, float] = {}
        for name, value in options.items():
            if name.startswith("truth.") or name.startswith("fault."):
                continue
            if name not in known:
                raise Failure(
                    Status.BACKEND_UNAVAILABLE,
                    f"runtime fake has no option {name!r}. Known: truth.PATTERN, fault.PATTERN, {', '.join(known)}",
                )
            found[name] = _number(name, value, least=-np.inf if name in _MAY_BE_UNTOLD else 0.0)
        settings = cls(**found)
        if settings.slow < 1 or settings.tail > 1 or min(settings.slow_s, settings.fast_s, settings.gmacs_per_s) <= 0:
            raise Failure(
                Status.BACKEND_UNAVAILABLE,
                f"slow >= 1, tail <= 1 and slow_s, fast_s, gmacs_per_s > 0 are wanted; got {settings}",
            )
        return settings


class SimulatedClock:
    """Seconds that pass only when something is simulated."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def end_process(fault: str) -> NoReturn:
    """What `crash`, `killed` and `hang` do to a real worker."""
    if fault == "crash":
        os._exit(3)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(60.0)


class Fake:
    """One session with the simulated device.

    Args:
        session: Names the session: with a seed, the same name gives the same figures. "": as the configuration of the
            first network says.
        clock: Is advanced by what is simulated.
        end: Does what "crash", "killed" and "hang" want.
    """

    def __init__(
        self, session: str = "", *, clock: SimulatedClock | None = None, end: Callable[[str], NoReturn] = end_process
    ) -> None:
        self._session = session
        self.clock = clock or SimulatedClock()
        self.end = end
        self._machine: tuple[Settings, Machine] | None = None

    def probe(self) -> DeviceInfo:
        versions = {"fake": "1"}
        return DeviceInfo(True, "", "simulated device (no hardware)", versions, {"device": "simulated", **versions})

    def free_bytes(self, config: SessionConfig) -> int | None:
        return _bytes(Settings.read(config.options).free_mib)

    def total_bytes(self, config: SessionConfig) -> int | None:
        return _bytes(Settings.read(config.options).total_mib)

    def load(self, model: Path, config: SessionConfig) -> FakeModel:
        settings = Settings.read(config.options)
        if self._machine is None or self._machine[0] != settings:
            self._session = self._session or config.session
            self._machine = settings, Machine(settings, self._session, self.clock)
        return FakeModel(Path(model), config, self._machine[1], self.end)


class Machine:
    """What all networks of a session share: the clock, the mode, the level.

    Args:
        settings: How noisy it is.
        session: Its name.
        clock: Is advanced.
    """

    def __init__(self, settings: Settings, session: str, clock: SimulatedClock) -> None:
        self.settings, self.clock = settings, clock
        self._name = f"{settings.seed}/{session}" if settings.seed >= 0 else os.urandom(8).hex()
        self.rng = self.stream("inferences")
        self.level = settings.level * float(self.stream("level").standard_normal())
        self._slow = bool(self.rng.random() < settings.slow_s / (settings.slow_s + settings.fast_s))
        self._until = clock.now

    def stream(self, *names: str) -> np.random.Generator:
        """Numbers of this session and a purpose."""
        return np.random.default_rng(stable_hash("/".join((self._name, *names))))

    def slow(self) -> bool:
        """Whether the machine is in its slow mode now."""
        if self.settings.slow == 1:
            return False
        while self._until <= self.clock.now:
            self._slow = not self._slow
            self._until += self.rng.exponential(self.settings.slow_s if self._slow else self.settings.fast_s)
        return self._slow

    def drift(self) -> float:
        """How much slower everything has become since the clock began, as a factor."""
        return 1 + self.settings.drift * self.clock.now / 60.0


class FakeModel:
    """A network that takes time, and does nothing with it."""

    build_s = 0.0
    providers: Sequence[str] = ("simulated clock",)

    def __init__(self, path: Path, config: SessionConfig, machine: Machine, end: Callable[[str], NoReturn]) -> None:
        self._path, self._machine, self._end = path, machine, end
        self._fault, self._fault_at = _fault(path, config.options)
        self._runs = 0
        if self._fault_at == 0:
            self._fail()
        facts = _facts(path, config)
        self._inputs, self._weights = _inputs(path, config), facts.weights_bytes
        self.truth_ms = _truth(path, config, machine.settings, facts)
        self._sensitivity = float(np.random.default_rng(stable_hash(f"slow/{path.stem}")).uniform(*_SENSITIVITY))
        own = machine.settings.session * float(machine.stream("network", path.stem).standard_normal())
        built = np.random.default_rng(stable_hash(f"engine/{machine.settings.seed}/{path.stem}/{config.build}"))
        own += machine.settings.engine * float(built.standard_normal())
        self._log = float(np.log(self.truth_ms)) + machine.level + own

    def run(self, n: int = 1) -> None:
        self._spend(n)

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        return [self._sample(loops) for _ in range(k)]

    def inputs(self) -> dict[str, NDArray[Any]]:
        return self._inputs

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """By ONNX's reference implementation: slow, but true."""
        from onnx.reference import ReferenceEvaluator

        return [np.asarray(value) for value in ReferenceEvaluator(str(self._path)).run(None, dict(feeds))]

    def memory(self) -> MemoryInfo:
        return MemoryInfo(weights=self._weights, source={"weights": "sizes of the file's initializers"})

    def close(self) -> None:
        self._inputs = {}

    def _sample(self, loops: int) -> Sample:
        wall_ms, cpu_ms, slow = self._spend(loops)
        if self._fault in ("nan", "zero") and self._runs >= self._fault_at:
            wall_ms = float("nan") if self._fault == "nan" else 0.0
        share = self._machine.settings.device_share
        return Sample(1e6 * wall_ms, 1e6 * cpu_ms, 1e6 * cpu_ms, share * 1e6 * wall_ms if share else None, int(slow))

    def _spend(self, n: int) -> tuple[float, float, bool]:
        """Simulate `n` inferences: wall and CPU time of one, ms, and whether the machine was slow."""
        machine, settings = self._machine, self._machine.settings
        before, self._runs = self._runs, self._runs + n
        if before < self._fault_at <= self._runs:
            self._fail()
        slow = machine.slow()
        noise = settings.jitter * np.abs(machine.rng.standard_normal(n))
        tails = np.where(machine.rng.random(n) < settings.tail, 1 + 2 * machine.rng.exponential(size=n), 1.0)
        each = np.exp(self._log + noise) * machine.drift()
        slower = settings.slow**self._sensitivity if slow else 1.0
        cpu_ms, wall_ms = float(np.mean(each)), float(np.mean(each * tails)) * slower
        machine.clock.now += 1e-3 * wall_ms * n
        return wall_ms, cpu_ms, slow

    def _fail(self) -> None:
        name = self._path.name
        if self._fault in ("crash", "killed", "hang"):
            self._end(self._fault)
        if self._fault == "oom":
            raise MemoryError(f"{name}: simulated lack of memory")
        if self._fault == "garbage":
            os.write(1, b'\x1e{not json\n\xff\xfe[W:simulated] {"ok": true}\n')
        refusals = {
            "invalid": (Status.INVALID_MODEL, "simulated damage"),
            "unsupported": (Status.UNSUPPORTED_OP, "simulated operator without an implementation"),
            "fallback": (Status.EP_FALLBACK, "asked for the simulated clock, another one would run"),
        }
        if self._fault in refusals:
            status, message = refusals[self._fault]
            raise Failure(status, f"{name}: {message}")


def true_latency_ms(path: Path, config: SessionConfig) -> float:
    """Latency of a network on a machine without any noise, in any session.

    Raises:
        Failure: The file is no model, or an option is wrong.
    """
    return _truth(path, config, Settings.read(config.options), _facts(path, config))


def _truth(path: Path, config: SessionConfig, settings: Settings, facts: ModelFacts) -> float:
    for name, value in config.options.items():
        kind, _, pattern = name.partition(".")
        if kind == "truth" and fnmatchcase(path.stem, pattern):
            return _number(name, value, least=1e-9)
    work = settings.overhead_ms + 1e-3 * settings.node_us * facts.nodes
    work += (facts.macs or 0) / (1e6 * settings.gmacs_per_s)
    own = np.random.default_rng(stable_hash(f"truth/{facts.graph_hash}")).standard_normal()
    return float(work * np.exp(settings.spread * own))


def _facts(path: Path, config: SessionConfig) -> ModelFacts:
    try:
        return onnx_facts.model_facts(path, config.shapes)
    except InvalidModel as error:
        raise Failure(Status.INVALID_MODEL, str(error)) from error


def _fault(path: Path, options: Mapping[str, str | int | float | bool]) -> tuple[str, int]:
    """What goes wrong with a network ("" for nothing), and at which of its runs; 0 is when it is loaded."""
    for name, value in options.items():
        kind, _, pattern = name.partition(".")
        if kind == "fault" and fnmatchcase(path.stem, pattern):
            word, _, at = str(value).partition("@")
            if word not in FAULTS or not (at or "0").isdigit():
                raise Failure(
                    Status.BACKEND_UNAVAILABLE,
                    f"runtime fake: {name} wants one of {', '.join(FAULTS)}, or such a word with @N; got {value!r}",
                )
            return word, int(at or 0)
    return "", 0


def _inputs(path: Path, config: SessionConfig) -> dict[str, NDArray[Any]]:
    import onnx

    model = onnx_facts.read_model(path)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    declared = [
        (name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(types[name])))
        for name, shape in onnx_facts.input_shapes(model).items()
    ]
    return make_inputs(declared, config.shapes)


def _bytes(mib: float) -> int | None:
    return None if mib < 0 else int(mib * 2**20)


def _number(name: str, value: object, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < np.inf:
        raise Failure(
            Status.BACKEND_UNAVAILABLE, f"runtime fake: {name} wants a number of at least {least:g}; got {value!r}"
        )
    return float(value)
