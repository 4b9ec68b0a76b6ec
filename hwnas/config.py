"""What a user asks for, checked field by field before anything expensive begins.

A configuration is the same thing on the command line, in a TOML file and in run.toml:

    space = "nb201"
    dataset = "cifar10"
    devices = ["edgegpu"]
    objectives = ["error", "latency"]
    queries = 200

    [budgets]
    latency = "5ms"

    [weights]
    error = 2
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hwnas.core.metrics import FAMILIES, METRICS, candidates, metric, parse_quantity
from hwnas.core.objective import Constraint, Objective
from hwnas.core.stopping import StopRule
from hwnas.errors import InvalidBudget, InvalidSetting, UnknownName

SOURCES = ("auto", "table", "surrogate")
STOPS = ("never", "converged")
FRONTS = ("device", "joint")
PRESETS = ("quick", "default", "final")  # hwnas.profiling.protocol

Answers = Callable[[str, str | None], bool]  # (metric, device): is there a source for it?


@dataclass(frozen=True)
class SearchConfig:
    """One search as the user asked for it. Words stay words; `resolve_objectives` gives them their full names.

    Attributes:
        space: Name of the search space.
        dataset: Name of the data set.
        devices: Names of the hardware targets. May be given as "edgegpu,fpga".
        objectives: What to optimise: "error", "latency", ... or full metric names, each with "@device" where it is
            meant for one device only. May be given as "error,latency".
        budgets: The same words, with what may not be exceeded: "5ms", or a number in the metric's own unit.
        fronts: With several devices: "device" searches one front for each, "joint" one front over the objectives of
            all.
        weights: Importances of objectives by the same words, above 0, 1 where not named: without a budget, the network
            to recommend is picked by them.
        queries: Evaluations that may be paid, at least 1.
        seed: 0 to 2^63 - 1.
        generator: Name of the generator.
        generator_settings: Keywords of the generator: numbers, strings, truth values, lists and tables of them.
        source: "table", "surrogate", or "auto" for a table where there is one.
        tables: Folder of tables; None for the usual places.
        batch: At most so many evaluations a step; None leaves it to the generator.
        preset: How carefully a device is measured on during the search: "quick", "default", "final".
        wait: Seconds to wait for somebody else who measures on the device.
        predict: Whether a latency that is known well enough from others is predicted instead of measured, where
            latency is all that is asked of a device. The front is not predicted in any case.
        cache: Whether figures of earlier measurements in the same conditions are used, and new ones kept for others.
        stop_when: "never": all queries are paid; "converged": the search may end before, when the expected gain in
            hypervolume of one query stays below `stop_threshold`.
        stop_threshold: "0.2%" of the present hypervolume, or 0.002; above 0, below 1.

    Raises:
        UnknownName: An unknown objective, budget or source, with the nearest known ones.
        InvalidBudget: A budget that is no quantity of its metric.
        InvalidSetting: Any other field that cannot be meant.
    """

    space: str = "nb201"
    dataset: str = "cifar10"
    devices: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("error", "latency")
    budgets: Mapping[str, str | float] = field(default_factory=dict)
    fronts: str = "device"
    weights: Mapping[str, float] = field(default_factory=dict)
    queries: int = 200
    seed: int = 0
    generator: str = "agnet"
    generator_settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = "auto"
    tables: str | None = None
    batch: int | None = None
    preset: str = "default"
    wait: float = 0.0
    predict: bool = True
    cache: bool = True
    stop_when: str = "never"
    stop_threshold: str | float = "0.2%"

    def __post_init__(self) -> None:
        for name in ("space", "dataset", "generator"):
            _set(self, name, _word(name, getattr(self, name)))
        for name in ("devices", "objectives"):
            _set(self, name, _words(name, getattr(self, name)))
        _set(self, "queries", _whole("queries", self.queries, 1))
        _set(self, "seed", _whole("seed", self.seed, 0))
        if self.batch is not None:
            _set(self, "batch", _whole("batch", self.batch, 1))
        if self.tables is not None:
            # paths are given as such by Python users and as text by everybody else
            tables = str(self.tables) if isinstance(self.tables, Path) else self.tables
            _set(self, "tables", _word("tables", tables))
        if self.preset not in PRESETS:
            raise UnknownName("preset", str(self.preset), PRESETS)
        if isinstance(self.wait, bool) or not isinstance(self.wait, int | float) or not 0 <= self.wait < float("inf"):
            raise InvalidSetting(f"wait wants seconds, 0 or more; got {self.wait!r}")
        for name in ("predict", "cache"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidSetting(f"{name} wants true or false; got {getattr(self, name)!r}")
        if self.stop_when not in STOPS:
            raise UnknownName("stop_when", str(self.stop_when), STOPS)
        _share("stop_threshold", self.stop_threshold)
        if self.fronts not in FRONTS:
            raise UnknownName("kind of fronts", str(self.fronts), FRONTS)
        if self.source not in SOURCES:
            raise UnknownName("source", str(self.source), SOURCES)
        _set(self, "generator_settings", _plain("generator_settings", _table(self, "generator_settings")))
        if not self.objectives:
            raise InvalidSetting(f"a search wants at least one objective, e.g. {', '.join(FAMILIES)}; got none")
        for word in self.objectives:
            _meaning("objective", word)
        _set(self, "budgets", {word: _limit(word, value)[0] for word, value in _table(self, "budgets").items()})
        _set(self, "weights", _importances(_table(self, "weights")))

    @property
    def targets(self) -> tuple[str, ...]:
        """All devices that are named: as devices, and behind an "@"."""
        named = [word.partition("@")[2] for word in (*self.objectives, *self.budgets)]
        return tuple(dict.fromkeys([*self.devices, *filter(None, named)]))

    @property
    def stop_rule(self) -> StopRule | None:
        """When the search may end before its queries are spent; None for never."""
        if self.stop_when == "never":
            return None
        return StopRule(_share("stop_threshold", self.stop_threshold))

    @property
    def front_devices(self) -> tuple[str, ...]:
        """Devices that get a front each: those that are named as devices and have an objective, where they are several
        and some objective or budget is asked of all of them alike. Empty where there is one front: a word with "@"
        means that one device's number, so where all have one, the user has put one set of objectives together."""
        words = (*self.objectives, *self.budgets)
        shared = any(not _narrow(word) and METRICS[_meaning("", word)[0][0]].per_device for word in words)
        owners = [word.partition("@")[2] for word in self.objectives]
        # an objective of a device that is not named as one is everybody's
        found = tuple(d for d in self.devices if any(owner == d or owner not in self.devices for owner in owners))
        return found if self.fronts == "device" and len(found) > 1 and shared else ()

    def limit(self, metric: str, device: str) -> float | None:
        """The budget of a device's metric, in the metric's own unit; None where there is none."""
        for word, value in sorted(self.budgets.items(), key=lambda item: not _narrow(item[0])):
            names, only = _meaning("budget", word)
            if metric in names and only in (None, device):
                return _limit(word, value)[1]
        return None

    def check_names(
        self,
        *,
        spaces: Collection[str] | None = None,
        datasets: Collection[str] | None = None,
        devices: Collection[str] | None = None,
        generators: Collection[str] | None = None,
    ) -> None:
        """Check names against closed lists; None where a list is not known (yet).

        Raises:
            UnknownName: With the nearest names.
        """
        for kind, names, known in (
            ("space", (self.space,), spaces),
            ("data set", (self.dataset,), datasets),
            ("device", self.targets, devices),
            ("generator", (self.generator,), generators),
        ):
            for name in names:
                if known is not None and name not in known:
                    raise UnknownName(kind, name, known)

    def resolve_objectives(self, answers: Answers) -> tuple[Objective, ...]:
        """The objectives with full metric names: "error" is validation error where there is one, else test error;
        a device's metric becomes one objective for each device.

        Args:
            answers: Whether there is a source for a metric on a device (None for metrics of no device).

        Raises:
            InvalidSetting: No source knows it, no device is named, or two words mean the same.
        """
        found: dict[str, Objective] = {}
        for word in self.objectives:
            for name, device in self._resolve("objective", word, answers):
                objective = Objective(name, device, metric(name).goal)
                if objective.name in found:
                    raise InvalidSetting(f"the objectives {', '.join(self.objectives)} name {objective.name} twice")
                found[objective.name] = objective
        return tuple(found.values())

    def resolve_budgets(self, answers: Answers) -> tuple[Constraint, ...]:
        """The budgets as constraints in each metric's own unit; see `resolve_objectives`. A budget of one device wins
        over one of all devices.

        Raises:
            InvalidSetting: As there.
        """
        found: dict[str, tuple[Constraint, bool]] = {}
        for word, value in self.budgets.items():
            bound, narrow = _limit(word, value)[1], _narrow(word)
            for name, device in self._resolve("budget", word, answers):
                constraint = Constraint(name, bound, device, metric(name).goal)
                _, other = found.get(constraint.name, (None, None))
                if other == narrow:
                    raise InvalidSetting(f"the budgets {', '.join(self.budgets)} limit {constraint.name} twice")
                if other is None or narrow:
                    found[constraint.name] = constraint, narrow
        return tuple(constraint for constraint, _ in found.values())

    def _resolve(self, kind: str, word: str, answers: Answers) -> Iterator[tuple[str, str | None]]:
        names, device = _meaning(kind, word)
        targets: tuple[str | None, ...] = (None,)
        if METRICS[names[0]].per_device:
            targets = (device,) if device else self.devices
            if not targets:
                raise InvalidSetting(f"{kind} {word!r} belongs to a device; name one, e.g. --device edgegpu")
        for target in targets:
            name = next((name for name in names if answers(name, target)), None)
            if name is None:
                where = f"{self.space} on {self.dataset}" + (f" and device {target!r}" if target else "")
                raise InvalidSetting(
                    f"no source knows {' or '.join(names)} ({kind} {word!r}) for {where}. Leave it out, choose "
                    f"another device or data set, or add a table (hwnas tables add PATH)"
                )
            yield name, target

    def to_toml(self) -> dict[str, Any]:
        """Plain values for a TOML file; what is None is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    def command(self) -> str:
        """The command line that makes this search again."""
        words = ["hwnas", "search"]
        plain = SearchConfig()
        if self.devices:
            words += ["--device", ",".join(self.devices)]
        for word, value in self.budgets.items():
            words += ["--budget", f"{word}={value!r}" if isinstance(value, float) else f"{word}={value}"]
        if self.objectives != plain.objectives:
            words += ["--objectives", ",".join(self.objectives)]
        if self.weights:
            words += ["--weights", ",".join(f"{word}={value!r}" for word, value in self.weights.items())]
        for name in ("fronts", "space", "dataset", "generator", "source", "tables", "batch", "preset", "wait"):
            if getattr(self, name) != getattr(plain, name):
                words += [f"--{name}", str(getattr(self, name))]
        words += [f"--no-{name}" for name in ("predict", "cache") if not getattr(self, name)]
        if self.stop_rule is not None:
            words += ["--stop-when", self.stop_when, "--stop-threshold", f"{100 * self.stop_rule.threshold:.12g}%"]
        words += ["--queries", str(self.queries), "--seed", str(self.seed)]
        for key, value in self.generator_settings.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        return shlex.join(words)

    @classmethod
    def from_toml(cls, data: Mapping[str, Any]) -> SearchConfig:
        """The configuration that parsed TOML describes; what is left out has its default.

        Raises:
            UnknownName: A key that is none, with the nearest known ones. Otherwise as the class.
        """
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise UnknownName("setting", key, known)
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> SearchConfig:
        """The configuration in a TOML file.

        Raises:
            InvalidSetting: The file is missing or no TOML. Otherwise as `from_toml`.
        """
        try:
            with open(path, "rb") as file:
                data = tomllib.load(file)
        except OSError as error:
            raise InvalidSetting(f"cannot read the configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSetting(f"the configuration {path} is no TOML: {error}") from error
        return cls.from_toml(data)


def weigh(objectives: Sequence[Objective], weights: Mapping[str, float]) -> tuple[float, ...]:
    """The importance of each objective: 1 where none is named; a word for one device wins over one for all.

    Args:
        objectives: `m` objectives.
        weights: Words as in `SearchConfig.weights`, with numbers above 0.

    Returns:
        `m` numbers above 0.

    Raises:
        UnknownName: A word that is no metric's.
        InvalidSetting: A weight that is no number above 0, belongs to no objective, or is given twice.
    """
    found: dict[str, tuple[float, bool]] = {}
    for word, value in _importances(weights).items():
        names, only = _meaning("weight", word)
        meant = [o.name for o in objectives if o.metric in names and only in (None, o.device)]
        if not meant:
            raise InvalidSetting(
                f"the weight {word!r} belongs to none of the objectives {', '.join(o.name for o in objectives)}; "
                "leave it out, or add the objective"
            )
        for name in meant:
            _, other = found.get(name, (None, None))
            if other == _narrow(word):
                raise InvalidSetting(f"the weights {', '.join(weights)} weigh {name} twice")
            if other is None or _narrow(word):
                found[name] = value, _narrow(word)
    return tuple(found[o.name][0] if o.name in found else 1.0 for o in objectives)


def _importances(weights: Mapping[str, Any]) -> dict[str, float]:
    for word, value in weights.items():
        _meaning("weight", word)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise InvalidSetting(f"the weight {word!r} wants a number above 0; got {value!r}")
    return {word: float(value) for word, value in weights.items()}


def _set(config: SearchConfig, name: str, value: object) -> None:
    object.__setattr__(config, name, value)


def _word(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidSetting(f"{name} wants a name; got {value!r}")
    return value.strip()


def _words(name: str, value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) and value.strip() else value
    if isinstance(parts, str):
        parts = ()
    if not isinstance(parts, list | tuple):
        raise InvalidSetting(f"{name} wants a list of names; got {value!r}")
    words = tuple(_word(name, part) for part in parts)
    twice = next((word for i, word in enumerate(words) if word in words[:i]), None)
    if twice is not None:
        raise InvalidSetting(f"{name} names {twice!r} twice: {', '.join(words)}")
    return words


def _whole(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value.__index__() < 2**63:
        raise InvalidSetting(f"{name} wants a whole number of at least {low} (and below 2^63); got {value!r}")
    return int(value.__index__())


def _share(name: str, value: object) -> float:
    """A share of something, given as such or as a percentage."""
    share = value
    if isinstance(value, str):
        number, percent, rest = value.partition("%")
        try:
            share = float(number) / 100 if percent and not rest.strip() else None
        except ValueError:
            share = None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InvalidSetting(
            f"{name} wants a percentage above 0% and below 100%, with its sign, e.g. 0.2%; got {value!r}"
        )
    return float(share)


def _table(config: SearchConfig, name: str) -> Mapping[str, Any]:
    value = getattr(config, name)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidSetting(f"{name} wants a table of names and values; got {value!r}")
    return value


def _plain(where: str, value: object) -> Any:
    """A copy that TOML can hold; tuples become lists."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(where, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(f"{where}.{key}", item) for key, item in value.items()}
    raise InvalidSetting(f"{where} wants numbers, strings, true/false, lists or tables of them; got {value!r}")


def _meaning(kind: str, word: str) -> tuple[tuple[str, ...], str | None]:
    """Metric names that a word may mean, best first, and the device behind its "@"."""
    family, at, device = word.partition("@")
    try:
        names = candidates(family)
    except UnknownName as error:
        raise UnknownName(kind, family, error.known) from None
    if at and not (device and METRICS[names[0]].per_device):
        raise InvalidSetting(
            f"{kind} {word!r}: {family} is the same on every device; leave out the '@'"
            if device
            else f"{kind} {word!r} names no device behind the '@'"
        )
    return names, device or None


def _narrow(word: str) -> bool:
    """Whether a word is about one device only."""
    return "@" in word


def _limit(word: str, value: object) -> tuple[str | float, float]:
    """A budget as it was given (numbers as float or int) and in its metric's own unit."""
    (name, *_), _ = _meaning("budget", word)
    if isinstance(value, str):
        return value, parse_quantity(value, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidBudget(f"budget {word!r} wants a quantity such as '5{METRICS[name].unit}'; got {value!r}")
    # a number beside a full name such as params_m has its unit in the name
    in_unit = f"{float(value)!r}{METRICS[name].unit if word.partition('@')[0] == name else ''}"
    return float(value), parse_quantity(in_unit, name)
