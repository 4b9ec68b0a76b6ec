"""A configuration with all its names resolved: which part of hwnas answers what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hwnas import registry
from hwnas.config import SearchConfig, weigh
from hwnas.core.device import Device
from hwnas.core.measurement import Source
from hwnas.core.metrics import FAMILIES, METRICS, candidates
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import Evaluator, Generator, SearchSpace, Store
from hwnas.core.state import SearchState
from hwnas.core.wording import origin
from hwnas.devices import device_names, load_device, no_source
from hwnas.errors import InvalidSetting, TablesNotFound, TooFewMeasurements
from hwnas.evaluators.measured import MeasuredEvaluator
from hwnas.loop import Search, foresees
from hwnas.measure import Measure, Wanted
from hwnas.tables.schema import ATTACKED, ATTACKED_DATASET, ROBUSTNESS

COUNTED: tuple[Wanted, ...] = (("params_m", None), ("macs_m", None))  # of every architecture, for nothing


@dataclass(frozen=True)
class Assembly:
    """A configuration with all its names resolved; nothing has been evaluated or written yet.

    Attributes:
        config: What the user asked for.
        space: The search space.
        objectives: With full metric names.
        constraints: Budgets in the metrics' own units.
        plan: Which evaluator answers which (metric, device): objectives, budgets, then numbers that are free.
        reported: The same for numbers that only the report shows (the front's test error).
        weights: Importance of each objective; None where none was given.
        front_devices: Devices with a front each; none for one front.
    """

    config: SearchConfig
    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    plan: tuple[tuple[Wanted, Evaluator], ...]
    reported: tuple[tuple[Wanted, Evaluator], ...]
    weights: tuple[float, ...] | None = None
    front_devices: tuple[str, ...] = ()

    @property
    def start(self) -> SearchState:
        """The state before the first evaluation."""
        config = self.config
        return SearchState(
            config.space,
            self.objectives,
            self.constraints,
            config.queries,
            config.seed,
            front_devices=self.front_devices,
        )

    @property
    def sources(self) -> dict[str, str]:
        """Column name to source and origin, for people and for run.toml."""
        told = {}
        for (metric, device), evaluator in (*self.plan, *self.reported):
            context = evaluator.context(metric, device)
            assert context is not None
            words = [origin(context)]
            if not context.counted:
                words += [context.origin or context.runtime or "", context.split or ""]
            told[f"{metric}@{device}" if device else metric] = ", ".join(filter(None, words))
        return told

    @property
    def kinds(self) -> frozenset[Source]:
        """Kinds of sources that answer something; counts are from the network itself."""
        contexts = (evaluator.context(*wanted) for wanted, evaluator in (*self.plan, *self.reported))
        return frozenset(context.source for context in contexts if context is not None and not context.counted)

    def generator(self) -> Generator:
        """The generator.

        Raises:
            UsageError: No such one, settings that it refuses, or a rule to stop that it can tell nothing for.
        """
        made = registry.generator(self.config.generator, self.space, self.config.generator_settings)
        if self.config.stop_rule is not None and not foresees(made):
            others = ", ".join(registry.foreseeing(self.space))
            raise InvalidSetting(
                f"generator {self.config.generator!r}{' with these settings' * bool(self.config.generator_settings)} "
                "cannot tell what more queries would bring, which stop_when = 'converged' asks for. Leave that out, or "
                f"choose one that can: {others}"
            )
        return made

    def search(self, store: Store, generator: Generator | None = None) -> Search:
        """The search; with a generator that was made before, if there is one."""
        made = self.generator() if generator is None else generator
        return Search(self.space, made, Measure(store, self.plan), self.config.batch, self.config.stop_rule)

    @property
    def measured(self) -> tuple[MeasuredEvaluator, ...]:
        """Evaluators of the plan that run networks on a device."""
        found = {id(e): e for _, e in self.plan if isinstance(e, MeasuredEvaluator)}
        return tuple(found.values())

    def close(self) -> None:
        """Release the devices."""
        for evaluator in self.measured:
            evaluator.close()


def assemble(config: SearchConfig) -> Assembly:
    """Resolve every name of a configuration and find a source for every number it needs.

    Raises:
        UsageError: A name, budget or setting that does not exist or cannot be met.
        DataError: Tables or surrogates that are missing or cannot be trusted.
        DeviceError: A device that would have to be measured on, and cannot be.
    """
    # the generator's settings are checked where it is built; its name here, before anything is read
    config.check_names(
        spaces=registry.spaces(),
        devices=[*device_names(), *(name for name in config.targets if _is_file(name))],
        generators=[*registry.generators(), *filter(registry.is_pymoo, [config.generator])],
    )
    space = registry.space(config.space)
    config.check_names(datasets=space.datasets)
    targets = {device.name: device for device in map(load_device, config.targets)}
    named = _with_device_names(config)
    evaluators = [*_saved(named, space, targets.values()), *_evaluators(named, space)]
    try:
        evaluators += _measured(named, space, targets.values())
        return _assembled(config, named, space, evaluators, targets)
    except BaseException:
        for evaluator in evaluators:
            if isinstance(evaluator, MeasuredEvaluator):
                evaluator.close()
        raise


def _assembled(
    config: SearchConfig,
    named: SearchConfig,
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    targets: Mapping[str, Device],
) -> Assembly:
    answering = _Answers(evaluators)
    _check_devices(named, answering, evaluators, targets)
    _check_attacks(named, answering, evaluators)
    objectives = named.resolve_objectives(answering)
    constraints = named.resolve_budgets(answering)
    wanted = dict.fromkeys(
        [
            *((o.metric, o.device) for o in objectives),
            *((c.metric, c.device) for c in constraints),
            *(pair for pair in COUNTED if answering(*pair)),
        ]
    )
    plan = tuple((pair, evaluator) for pair in wanted if (evaluator := answering.find(*pair)) is not None)
    reported = tuple(
        (("test_error_pct", None), evaluator)
        for (metric, _), evaluator in plan
        if metric == "val_error_pct" and evaluator.context("test_error_pct", None) is not None
    )
    weights = weigh(objectives, named.weights) if named.weights else None
    return Assembly(config, space, objectives, constraints, plan, reported, weights, named.front_devices)


def _with_device_names(config: SearchConfig) -> SearchConfig:
    """The same wishes with devices by name where they were given as files."""

    def word(text: str) -> str:
        family, at, device = text.partition("@")
        return f"{family}{at}{load_device(device).name}" if _is_file(device) else text

    return replace(
        config,
        devices=tuple(load_device(name).name if _is_file(name) else name for name in config.devices),
        objectives=tuple(map(word, config.objectives)),
        budgets={word(text): value for text, value in config.budgets.items()},
        weights={word(text): value for text, value in config.weights.items()},
    )


class _Answers:
    """Which evaluator answers a metric: the first that can. Called as (metric, device) it says whether any does."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = evaluators

    def __call__(self, metric: str, device: str | None) -> bool:
        found = self.find(metric, device)
        if found is None or metric not in FAMILIES["error"]:
            return found is not None
        # "error" is validation error where there is one, but a table's test error comes before a surrogate's guess
        # of the validation error
        errors = (self.find(name, device) for name in FAMILIES["error"])
        return found is min(filter(None, errors), key=self._evaluators.index)

    def find(self, metric: str, device: str | None) -> Evaluator | None:
        """The first evaluator that answers a metric, or None."""
        return next((e for e in self._evaluators if e.context(metric, device) is not None), None)


def _is_file(name: str) -> bool:
    return name.endswith(".toml")


def _evaluators(config: SearchConfig, space: SearchSpace) -> list[Evaluator]:
    from hwnas.evaluators.counting import CountingEvaluator

    found: list[Evaluator] = []
    if config.source in ("auto", "table"):
        from hwnas.evaluators.table import TableEvaluator
        from hwnas.spaces.nb201 import official_strings
        from hwnas.tables.folder import Tables

        tables = Tables.find(config.tables, official_strings)
        if tables is not None:
            found.append(TableEvaluator(tables, space, config.dataset))
        elif config.source == "table":
            raise TablesNotFound(
                "source 'table' wants a folder of tables: name it with --tables or HWNAS_TABLES, or fill the default "
                "one ('hwnas tables fetch hw-nas-bench', 'hwnas tables add PATH')"
            )
    if config.source in ("auto", "surrogate"):
        from hwnas.evaluators.surrogate import SurrogateEvaluator

        found.append(SurrogateEvaluator(space, config.dataset))
    found.append(CountingEvaluator(space, config.dataset))
    return found


def _saved(config: SearchConfig, space: SearchSpace, targets: Iterable[Device]) -> Iterator[Evaluator]:
    """An evaluator for each device that is a saved profile of this space and data set.

    Raises:
        TooFewMeasurements: One holds so few networks that nearly every query would be paid for nothing.
    """
    wished = _wished(config)
    for device in targets:
        if device.host == "profile":
            from hwnas.evaluators.saved import SavedEvaluator
            from hwnas.profiling.saved import read_profile

            profile = read_profile(device.name, space)
            if profile is not None and profile.dataset == config.dataset:
                evaluator = SavedEvaluator(profile, space)
                few = (evaluator.too_few(m) for m in wished if evaluator.context(m, device.name) is not None)
                if reason := next(filter(None, few), ""):
                    raise TooFewMeasurements(reason)
                yield evaluator


def _measured(config: SearchConfig, space: SearchSpace, targets: Iterable[Device]) -> Iterator[MeasuredEvaluator]:
    """An evaluator for each device that has to be measured on."""
    words = _wished(config)
    for device in targets:
        if not device.measurable or not any(METRICS[name].per_device for name in words):
            continue
        from hwnas.evaluators.meter import SpaceMeter
        from hwnas.predictors.latency import LatencyPredictor
        from hwnas.profiling.profiler import Profiler

        profiler = Profiler(
            device,
            cached=config.cache,
            memory="peak_memory_mib" in words,
            energy="energy_mj" in words,
            seed=config.seed,
            wait_s=config.wait,
        )
        yield MeasuredEvaluator(
            device.name,
            SpaceMeter(space, config.dataset, profiler, careful=config.preset),
            predictor=LatencyPredictor(space, config.dataset, device.name) if config.predict else None,
            budget=config.limit("latency_ms", device.name),
        )


def _wished(config: SearchConfig) -> set[str]:
    """Metrics of objectives and budgets."""
    return {candidates(word.partition("@")[0])[0] for word in (*config.objectives, *config.budgets)}


def _check_attacks(config: SearchConfig, answering: _Answers, evaluators: Sequence[Evaluator]) -> None:
    """A robust error is known from one table about one data set: who lacks either is told so."""
    from hwnas.evaluators.table import TableEvaluator

    reasons = [e.why_not for e in evaluators if isinstance(e, TableEvaluator)]
    for word in (*config.objectives, *config.budgets):
        (metric, *_) = candidates(word.partition("@")[0])
        if metric not in ATTACKED or answering.find(metric, None) is not None:
            continue
        if config.dataset != ATTACKED_DATASET:
            raise InvalidSetting(
                f"{word!r} is known on {ATTACKED_DATASET} only; the data set of this search is {config.dataset}. "
                "Leave it out, or choose that data set"
            )
        missing = reasons[0](metric, None) if reasons else "this search reads no tables"
        raise InvalidSetting(
            f"{word!r} comes from the table {ROBUSTNESS.file} alone, and {missing}. Add it with 'hwnas tables add PATH'"
            + (", and leave out --source surrogate" if config.source == "surrogate" else "")
        )


def _check_devices(
    config: SearchConfig, answering: _Answers, evaluators: Sequence[Evaluator], targets: Mapping[str, Device]
) -> None:
    """A device for which nothing at hand knows a wanted metric is refused with the way out."""
    measured = {e.device: e for e in evaluators if isinstance(e, MeasuredEvaluator)}
    words = [word.partition("@") for word in (*config.objectives, *config.budgets)]
    owners = [only for family, _, only in words if any(METRICS[metric].per_device for metric in candidates(family))]
    idle = [device for device in config.devices if owners and all(owners) and device not in owners]
    if idle:
        raise InvalidSetting(
            f"device {idle[0]} is named, but every objective and budget of a device is another one's "
            f"({', '.join(dict.fromkeys(owners))}). Give it one, e.g. latency@{idle[0]}, or leave the device out"
        )
    for word in (*config.objectives, *config.budgets):
        family, _, only = word.partition("@")
        metrics = [metric for metric in candidates(family) if METRICS[metric].per_device]
        for name in (only,) if only else config.devices:
            if not metrics or any(answering.find(metric, name) for metric in metrics):
                continue
            if name in measured:
                able = [d for d in config.devices if any(answering.find(metric, d) for metric in metrics)]
                hint = "" if only or not able else f"; write {' or '.join(f'{family}@{d}' for d in able)}"
                raise InvalidSetting(f"{word!r} cannot be measured: {measured[name].why_not(metrics[0], name)}{hint}")
            raise no_source(targets[name], metrics[0])
