"""The Python interface: `search` runs one, `load` reads one back; the command line calls the same functions."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas import registry, report
from hwnas.assembly import COUNTED, Assembly, assemble
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement, Source
from hwnas.core.metrics import METRICS
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import SearchSpace, Store
from hwnas.core.recommending import by_weights, portfolio, presented
from hwnas.core.state import Evaluation, SearchState
from hwnas.core.stopping import Stopped
from hwnas.core.wording import origin, origins, quantity
from hwnas.errors import ExportFailed, InvalidSetting, RunCorrupt, RunError, UsageError
from hwnas.evaluators.measured import notes_topic
from hwnas.finals import (
    Finals,
    certificates_so_far,
    check_exported,
    keep_samples,
    measure_front,
    note_paid,
    predicted_front,
    stage,
    summarise,
    with_paid,
)
from hwnas.loop import OnStep, Search, replay
from hwnas.measure import Measure, Wanted, count
from hwnas.profiling.runs import Runs
from hwnas.rundir import MODELS, RunDirectory
from hwnas.spaces.codes import size
from hwnas.stores.memory import MemoryStore

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

    from hwnas.config import SearchConfig

_ONE_FRONT = {"fronts": "joint"}  # what several devices had in runs whose run.toml does not say

OnMeasure = Callable[[str, float, int, str], None]


@dataclass(frozen=True, repr=False)
class Found:
    """One evaluated architecture with its numbers.

    Attributes:
        arch: The space's public notation (NB201: the official string).
        architecture: Its identity; `architecture.key` names it on the command line.
        evaluation: All measurements with their contexts.
        runs: By device that was measured on here: median and 95th percentile of the single runs behind the latency, and
            flags (`hwnas.profiling.runs.FLAGS` says what they mean). For the front and what is named beside it.
    """

    arch: str
    architecture: Architecture
    evaluation: Evaluation
    runs: Mapping[str, Runs] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> float:
        """The value of a metric, e.g. `best["latency_ms"]`, or of one on a device, `best["latency_ms@edgegpu"]`."""
        name, _, device = metric.partition("@")
        row = self.evaluation.find(name, device or None)
        if row is None:
            raise KeyError(f"{metric!r} was not measured; there are {', '.join(self.values)}")
        return row.value

    def __repr__(self) -> str:
        numbers = (
            f"{row.column}={quantity(row.metric, row.value, unit=False) if row.status.has_value else row.status}"
            for row in self.evaluation.measurements
        )
        return f"Found({', '.join([self.architecture.key, *numbers])})"

    @property
    def values(self) -> dict[str, float]:
        """Column name to value, in the metric's unit."""
        return {row.column: row.value for row in self.evaluation.measurements}

    @property
    def sources(self) -> dict[str, str]:
        """Column name to "table", "surrogate", "measured", "trained", "predicted" or "counted"."""
        return {row.column: origin(row.context) for row in self.evaluation.measurements}


@dataclass(frozen=True, repr=False)
class Shipped:
    """The one network to ship to several devices.

    Attributes:
        network: The network with its numbers.
        admissible: Whether it meets the budgets of every device; where none does, it is the one that misses them by
            least.
        regrets: By device, how far it is behind the best that was found there; empty where it is not admissible.
        violations: By device, its relative excess over the budgets.
        told: By device, the same in plain words.
    """

    network: Found
    admissible: bool
    regrets: Mapping[str, float]
    violations: Mapping[str, float]
    told: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Shipped({self.network!r}: {'; '.join(self.told.values())})"


class _ByDevice(dict[str, "SearchResult"]):
    """What a search found, by device; another name is answered with those that there are."""

    def __missing__(self, device: str) -> SearchResult:
        there = ", ".join(self) or "none: the search has one front over several devices, or no device"
        raise KeyError(f"{device!r} has no front of its own; there are {there}")


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Prints as a table in a terminal and as a picture in a notebook.

    Attributes:
        state: Everything measured, in order.
        ledger: Everything paid.
        space: The search space.
        config: What was asked for.
        reported: Facts that the search did not see, e.g. the front's test error.
        folder: The run directory, if there is one.
        finals: How the front was measured, where it was measured here.
        command: The command line that makes the search again, from the same sources.
        weights: Importance of each objective, where the user gave some.
    """

    state: SearchState
    ledger: Ledger
    space: SearchSpace
    config: SearchConfig
    reported: tuple[Measurement, ...] = ()
    folder: Path | None = None
    finals: Finals = field(default_factory=Finals)
    command: str = ""
    weights: tuple[float, ...] | None = None

    @cached_property
    def view(self) -> report.RunView:
        """What every report of this result shows."""
        return report.RunView.of(
            self.state,
            self.ledger,
            self.space,
            self.config.to_toml(),
            command=self.command,
            extra=self.reported,
            notes=self.finals.notes,
            measured=self.finals.devices,
            certificates=self.finals.certificates,
            weights=self.weights,
            rule=self.config.stop_rule,
            run=str(self.folder) if self.folder is not None else "RUN",
        )

    @property
    def best(self) -> Found | None:
        """The recommended architecture: the best that meets every budget; without budgets the best by the weights that
        were given, else the knee of the front. With several fronts the one for all devices (`portfolio`); each device's
        own is in `fronts`. None where nothing is feasible."""
        return None if self.view.recommended is None else self._found(self.view.recommended)

    @cached_property
    def fronts(self) -> Mapping[str, SearchResult]:
        """For each device that was searched for, the result as that device sees it: `fronts["fpga"].best` and
        `fronts["fpga"].front`, under its own budgets. Of a search for one device this result itself; empty for a joint
        front over several devices, and without any. Asked for another device, it says which there are."""
        if self.state.front_devices:
            return _ByDevice(
                (device, replace(self, state=own.state, weights=own.weights, reported=(), folder=None))
                for device, own in self.view.devices.items()
            )
        named = {o.device for o in self.state.objectives} | {c.device for c in self.state.constraints}
        devices = [device for device in named if device is not None]
        return _ByDevice({devices[0]: self} if len(devices) == 1 else {})

    @property
    def portfolio(self) -> Shipped | None:
        """The one network to ship to all devices, and how far it is behind what each could have: the evaluated one
        whose largest regret is least (`hwnas.core.recommending.portfolio`). None where there is one front, or where no
        network has its numbers on every device."""
        chosen = self.view.portfolio
        if chosen is None:
            return None
        told = {device: chosen.told(device) for device in self.state.front_devices}
        return Shipped(self._found(chosen.index), chosen.admissible, chosen.regrets, chosen.violations, told)

    @property
    def nearest(self) -> Found | None:
        """Where nothing is feasible the evaluated architecture that misses the budgets by least; else None."""
        return None if self.view.nearest is None else self._found(self.view.nearest)

    @property
    def knee(self) -> Found | None:
        """The front's knee; None for one objective, several fronts or fewer than three points."""
        return None if self.view.knee is None else self._found(self.view.knee)

    def pick(self, *, weights: Mapping[str, float]) -> Found | None:
        """The architecture of the front that is best by some importances of the objectives (`core.picking.asf`).

        Args:
            weights: By objective, e.g. {"error": 2, "latency": 1}; 1 where not named.

        Returns:
            None where nothing is feasible. With several fronts the one for all devices by these importances.

        Raises:
            UsageError: A weight that is no number above 0, or belongs to no objective.
        """
        from hwnas.config import weigh

        importance = weigh(self.state.objectives, weights)
        if self.state.front_devices:
            chosen = portfolio(self.view.state, importance, by_weights=True)
            index = chosen.index if chosen is not None and chosen.admissible else None
        else:
            index = by_weights(self.view.state, importance)
        return None if index is None else self._found(index)

    @property
    def front(self) -> list[Found]:
        """Feasible architectures that no feasible one dominates, by ascending first objective; with several fronts
        those that are on any."""
        return [self._found(i) for i in self.view.front]

    @property
    def archive(self) -> list[Found]:
        """All evaluated architectures in order, failures included."""
        return [self._found(i) for i in range(len(self.state.archive))]

    @property
    def stopped(self) -> Stopped:
        """Why the search ended, after how many evaluations, and what its generator expected of going on then; with
        several fronts, `fronts[device].stopped` says what it expected there."""
        return self.view.stopped

    def to_json(self) -> dict[str, Any]:
        """Front, recommendation, ledger and contexts as plain values."""
        return {**report.to_json(self.view), "folder": None if self.folder is None else str(self.folder)}

    def to_pandas(self) -> pandas.DataFrame:
        """The archive as a data frame: order, key, arch, a column a metric, source, feasible, front, recommended; with
        several fronts also fronts and recommended_on (devices, joined by "+") and portfolio.

        Raises:
            MissingExtra: pandas is not installed (`pip install 'hwnas[pandas]'`).
        """
        from hwnas.optional import load as load_module

        pandas = load_module("pandas", extra="pandas", purpose="to_pandas()")
        front, best = set(self.view.front), self.view.recommended
        rows = [
            {
                "order": i + 1,
                "key": found.architecture.key,
                "arch": found.arch,
                **found.values,
                "source": origins(found.evaluation.measurements),
                "feasible": bool(self.view.feasible[i]),
                "front": i in front,
                "recommended": i == best,
                **_role_columns(self.view, i),
            }
            for i, found in enumerate(self.archive)
        ]
        return pandas.DataFrame(rows)

    def _found(self, index: int) -> Found:
        evaluation = self.view.state.archive[index]
        key = evaluation.architecture.key
        runs = {device: runs for (network, device), runs in self.view.runs.items() if network == key}
        return Found(self.view.texts[index], evaluation.architecture, evaluation, runs)

    def __rich__(self) -> RenderableType:
        return report.full(self.view)

    def _repr_html_(self) -> str:
        return report.repr_html(self.view)

    def __repr__(self) -> str:
        return (
            f"SearchResult({len(self.state.archive)} evaluated, {len(self.view.front)} on the front, best {self.best})"
        )


@dataclass
class Run:
    """A search that is ready to go: `open_run` makes one. Everything that could be refused has been checked."""

    assembly: Assembly
    search: Search
    state: SearchState
    ledger: Ledger
    directory: RunDirectory | None

    def finish(
        self, *, on_step: OnStep | None = None, on_measure: OnMeasure | None = None, models: str = "front"
    ) -> SearchResult:
        """Run to the end, and write the run directory's reports and models.

        Args:
            on_step: Called after each step with state and ledger.
            on_measure: Called while networks are timed with the device, networks' worth of work done, of how many, and
                what goes on.
            models: "front", "best" or "none": which ONNX models to write.
        """
        latest = [self.ledger]
        self._watch(on_measure)

        def after_step(state: SearchState, ledger: Ledger) -> None:
            latest[0] = ledger
            if self.directory is not None:
                self.directory.record(state)
            if on_step is not None:
                on_step(state, ledger)

        from threadpoolctl import threadpool_limits

        try:
            # the matrices here are small: a second thread that waits for the first costs more than it does
            with threadpool_limits(1):
                state = self.search.run(self.state, ledger=self.ledger, on_step=after_step)
            state = self._measure_front(state, on_measure)
            rows, ledger = self._report_only(state, self._paid(latest[0]))
            folder = None if self.directory is None else self.directory.path
            finals, made_by = summarise(self.assembly, state), _command(self.assembly)
            result = SearchResult(
                state,
                ledger,
                self.assembly.space,
                self.assembly.config,
                rows,
                folder,
                finals,
                made_by,
                self.assembly.weights,
            )
            if self.directory is not None:
                self._watch(on_measure, "exported models: ")
                result = self._write(self.directory, result, models)
            else:
                result = self._with_predicted(result)
        finally:
            try:
                if self.directory is not None:
                    keep_samples(self.assembly, self.directory.path)
            finally:
                self.close()
        return result

    def _measure_front(self, state: SearchState, on_measure: OnMeasure | None) -> SearchState:
        began, store = time.perf_counter(), self.search.measure.store

        def say(device: str, turn: int, networks: int) -> None:
            self._watch(on_measure, f"{stage(turn, networks)}: ", only=device)

        state, made = measure_front(self.assembly, store, state, say)
        if made:
            note_paid(store, "finals", time.perf_counter() - began)
        return state

    def _paid(self, ledger: Ledger) -> Ledger:
        return with_paid(ledger, self.search.measure.store, [e.device for e in self.assembly.measured])

    def _watch(self, on_measure: OnMeasure | None, what: str = "", only: str | None = None) -> None:
        if on_measure is None:
            return
        for evaluator in self.assembly.measured:
            if only not in (None, evaluator.device):
                continue

            def tell(done: float, total: int, text: str, device: str = evaluator.device) -> None:
                on_measure(device, done, total, f"{what}{text}" if text else "")

            evaluator.meter.watch(tell)

    @property
    def spent(self) -> bool:
        """Whether there is nothing left to evaluate: all queries are paid, or the space has no more architectures."""
        return _spent(self.state, self.assembly.space)

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Packages whose version is not the one that the run began with, as (then, now)."""
        return {} if self.directory is None else self.directory.changed_versions()

    def close(self) -> None:
        """Release the run directory and the devices."""
        self.assembly.close()
        if self.directory is not None:
            self.directory.close()

    def _report_only(self, state: SearchState, ledger: Ledger) -> tuple[tuple[Measurement, ...], Ledger]:
        plan = self.assembly.reported
        shown = [state.architectures[i] for i in presented(state, self.assembly.weights)]
        if not plan or not shown:
            return (), ledger
        rows, _ = Measure(self.search.measure.store, plan)(shown)
        return tuple(rows), replace(ledger, reported=count(rows, evaluations=0).error_queries)

    def _write(self, directory: RunDirectory, result: SearchResult, models: str) -> SearchResult:
        """Write everything that a finished run has; the result with what the exported models' check said."""
        directory.write_archive(result.state)
        # small and what was paid for: before models, which may fill a disk
        _write_front(result, directory)
        if self.assembly.measured:
            result.finals.write(directory.path)
        files: list[Path] = []
        if models != "none" and result.front:
            which = "best" if models == "best" else "front"
            try:
                manifest = export(result, directory.path / MODELS, which=which, force=True)
            except ExportFailed as error:
                raise ExportFailed(
                    f"{error}. The search is done and its front written; its models, pictures and report come with: "
                    f"hwnas search --resume {shlex.quote(str(directory.path))}"
                ) from error
            files = [directory.path / MODELS / entry["file"] for entry in manifest["models"]]
            if self.assembly.measured:
                result = self._check(result, manifest, files)
        result = self._with_predicted(result, directory.path / MODELS if files and models == "front" else None)
        if self.assembly.measured or result.finals.predicted:
            result.finals.write(directory.path)
        write_report(result, directory)
        return result

    def _check(self, result: SearchResult, manifest: Mapping[str, Any], files: Sequence[Path]) -> SearchResult:
        """Time the exported models from their files; certificates and result then say how that went."""
        from hwnas.export import add_to_certificate

        known = {e.architecture.key: e for e in result.state.archive}
        entries, began, store = manifest["models"], time.perf_counter(), self.search.measure.store
        checked = check_exported(
            self.assembly, {path: known[entry["key"]] for path, entry in zip(files, entries, strict=True)}
        )
        note_paid(store, "files", time.perf_counter() - began, sum(map(len, checked.values())))
        for path in files:
            add_to_certificate(path, checked[path.name])
        recommended: dict[str, Mapping[str, Any]] = {}
        for entry in entries:
            for device, told in checked[entry["file"]].items():
                own = device in entry.get("recommended_on", [device] if entry["recommended"] else [])
                if own:
                    recommended[device] = told
                elif entry["recommended"] and device in result.fronts:  # another network than the device's own
                    recommended[f"{device}, for all"] = told
        finals = replace(result.finals, checked=recommended, exported=checked)
        return replace(result, finals=finals, ledger=self._paid(result.ledger))

    def _with_predicted(self, result: SearchResult, models: Path | None = None) -> SearchResult:
        predicted = predicted_front(self.assembly, result.state, models)
        return replace(result, finals=replace(result.finals, predicted=predicted)) if predicted else result


def open_run(
    given: Mapping[str, Any],
    *,
    config: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    directory: bool = True,
) -> Run:
    """Check a request, and make or reopen its run directory.

    Args:
        given: Settings that the user named; they win over those of `config`.
        config: TOML file with settings.
        out: Where to make the run directory; None for the default place.
        resume: A run directory to continue instead.
        directory: Whether to make one at all; without it everything stays in memory.

    Raises:
        HwnasError: Anything that is wrong with the request, before anything is written.
    """
    from hwnas.config import SearchConfig

    if resume is not None:
        if out is not None or config is not None:
            raise InvalidSetting(
                "--resume continues a run with its own settings and folder; leave out --out and --config"
            )
        return _reopen(resume, given)
    base = SearchConfig.load(config).to_toml() if config is not None else {}
    asked = SearchConfig.from_toml({**base, **given})
    _check_threshold(given, asked)
    assembly = assemble(asked)
    try:
        return _opened(assembly, out, directory)
    except BaseException:
        assembly.close()
        raise


def _opened(assembly: Assembly, out: Path | None, directory: bool) -> Run:
    asked = assembly.config
    if not directory:
        search = assembly.search(MemoryStore())
        _join(assembly, search.measure.store)
        return Run(assembly, search, assembly.start, Ledger(), None)
    generator = assembly.generator()  # a wrong setting is refused before the directory is made
    made = RunDirectory.create(
        out,
        config=asked.to_toml(),
        resolved={
            "objectives": [o.name for o in assembly.objectives],
            "constraints": {c.name: c.bound for c in assembly.constraints},
            "fronts": list(assembly.front_devices) or None,
            "weights": _named(assembly.objectives, assembly.weights),
            "command": _command(assembly),
        },
        sources=assembly.sources,
        notation=assembly.space.format,
    )
    try:
        _join(assembly, made.store)
        made.write_archive(assembly.start)
    except BaseException:
        made.close()
        raise
    return Run(assembly, assembly.search(made.store, generator), assembly.start, Ledger(), made)


def _reopen(path: Path, given: Mapping[str, Any]) -> Run:
    from hwnas.config import SearchConfig

    stopping = not given.keys().isdisjoint(("stop_when", "stop_threshold"))
    if given:
        with RunDirectory.read(path) as directory:
            earlier = directory.config
        began = SearchConfig.from_toml({**_ONE_FRONT, **earlier}).to_toml()
        asked = SearchConfig.from_toml({**_ONE_FRONT, **earlier, **given})
        _check_threshold(given, asked)
        # run.toml of an earlier version says nothing of settings that came later: it had what is their default now
        given = {k: v for k, v in asked.to_toml().items() if k in earlier or v != began.get(k)}
    made = RunDirectory.resume(path, config=given or None)
    assembly = None
    try:
        # where the tables lie may have changed; which tables they are is checked by their origin below
        asked = SearchConfig.from_toml({**_ONE_FRONT, **(given or made.config)})
        assembly = assemble(asked)
        _same_sources(made, assembly)
        made.set_notation(assembly.space.format)
        search = assembly.search(made.store)
        state, ledger = search.resume(assembly.start)
        _join(assembly, made.store)
        if stopping and not _spent(state, assembly.space):
            made.set_stopping(asked.to_toml(), _command(assembly))
        elif stopping:  # nothing is left to decide: the report goes by what was asked for while there was
            before = {name: told for name, told in made.config.items() if name in ("stop_when", "stop_threshold")}
            assembly = replace(assembly, config=replace(asked, **before))
        made.write_archive(state)
    except BaseException:
        made.close()
        if assembly is not None:
            assembly.close()
        raise
    return Run(assembly, search, state, ledger, made)


def _spent(state: SearchState, space: SearchSpace) -> bool:
    return not state.remaining or len(state.archive) == size(space)


def _join(assembly: Assembly, store: Store) -> None:
    for evaluator in assembly.measured:
        evaluator.join(store)


def _check_threshold(given: Mapping[str, Any], asked: SearchConfig) -> None:
    if "stop_threshold" in given and asked.stop_rule is None:
        raise InvalidSetting("a stop_threshold is for searches with stop_when = 'converged'; give both or neither")


def _same_sources(directory: RunDirectory, assembly: Assembly) -> None:
    then = dict(directory.info.get("sources", {}))
    for column, now in assembly.sources.items():
        if then.get(column, now) != now and now != "counted":
            raise RunError(
                f"{directory.path} took {column} from {then[column]!r}; now it would come from {now!r}. Restore the "
                "source (--tables, HWNAS_TABLES), or start a new run"
            )


def search(
    *,
    device: str | Sequence[str] | None = None,
    latency_budget: str | float | None = None,
    objectives: Sequence[str] = ("error", "latency"),
    budgets: Mapping[str, str | float] | None = None,
    fronts: str = "device",
    weights: Mapping[str, float] | None = None,
    dataset: str = "cifar10",
    space: str = "nb201",
    queries: int = 200,
    seed: int = 0,
    generator: str = "agnet",
    generator_settings: Mapping[str, Any] | None = None,
    batch: int | None = None,
    source: str = "auto",
    tables: str | Path | None = None,
    preset: str = "default",
    wait: float = 0.0,
    predict: bool = True,
    cache: bool = True,
    stop_when: str = "never",
    stop_threshold: str | float | None = None,
    out: str | Path | None = None,
    on_step: OnStep | None = None,
) -> SearchResult:
    """Search for the best networks that run on a device within a budget.

    Args:
        device: Hardware target or targets; `hwnas devices` lists them.
        latency_budget: Highest latency: 5 (ms), "5ms", "800us".
        objectives: What to minimise: "error", "robust_error", "latency", "energy", "params", "macs", or full metric
            names.
        budgets: Further budgets by the same words: {"energy": "20mJ", "params": "1M"}.
        fronts: With several devices: "device" searches one front for each from the same evaluations
            (`SearchResult.fronts`) and picks one network for all (`SearchResult.portfolio`); "joint" searches one front
            over the objectives of all.
        weights: Importances of the objectives, {"error": 2, "latency": 1}: without a budget they pick the network to
            recommend. `SearchResult.pick` does so afterwards.
        dataset: "cifar10", "cifar100" or "ImageNet16-120".
        space: Search space.
        queries: Architectures to evaluate.
        seed: Same seed, same result.
        generator: Search method.
        generator_settings: Its settings.
        batch: At most so many evaluations a step; None leaves it to the generator.
        source: "auto", "table" or "surrogate".
        tables: Folder of tables.
        preset: How carefully a device here is measured on: "quick", "default", "final".
        wait: Seconds to wait for somebody else who measures on it.
        predict: Predict latencies that are known well enough; False measures each. The front is always measured, or
            kept from an earlier measurement.
        cache: Use, and add to, figures of earlier measurements in the same conditions; False measures all of them.
        stop_when: "converged" ends the search before its queries are spent, when the expected gain in hypervolume of
            one query stays small; `SearchResult.stopped` says what was expected then.
        stop_threshold: What is small: "0.2%" (the default) of the present hypervolume, or 0.002.
        out: Run directory to write (never overwritten); None keeps everything in memory.
        on_step: Called after each step with `SearchState` and `Ledger`.

    Returns:
        Front, archive and best; `best` is None where nothing meets the budgets.

    Raises:
        HwnasError: See `hwnas.errors`; nothing is written before the request has been checked.
    """
    limits = dict(budgets or {})
    if latency_budget is not None:
        if "latency" in limits:
            raise InvalidSetting("the latency budget is given twice: as latency_budget and in budgets")
        limits["latency"] = latency_budget
    given = {
        "devices": device or (),
        "objectives": objectives,
        "budgets": limits,
        "fronts": fronts,
        "weights": dict(weights or {}),
        "dataset": dataset,
        "space": space,
        "queries": queries,
        "seed": seed,
        "generator": generator,
        "generator_settings": dict(generator_settings or {}),
        "batch": batch,
        "source": source,
        "tables": None if tables is None else str(tables),
        "preset": preset,
        "wait": wait,
        "predict": predict,
        "cache": cache,
        "stop_when": stop_when,
    }
    if stop_threshold is not None:
        given["stop_threshold"] = stop_threshold
    run = open_run(given, out=None if out is None else Path(out), directory=out is not None)
    return run.finish(on_step=on_step, models="front")


def load(run: str | Path) -> SearchResult:
    """A run directory as a result: of a finished search, or of one that is running or was stopped.

    Raises:
        RunError: No run in it, or a damaged one.
    """
    from hwnas.config import SearchConfig, weigh

    with RunDirectory.read(run) as directory:
        config = SearchConfig.from_toml({**_ONE_FRONT, **directory.config})
        space = registry.space(config.space)
        saved = directory.store.last_step()
        outlooks = directory.store.outlooks()
        rows = directory.store.rows()
        finals = Finals.read(directory.path)
        # of a run that has come to its end, the finals have all that is told of its measurements
        devices = {row.context.device for row in rows if row.context.source is Source.MEASURED} - {None}
        paid = None if saved is None else with_paid(saved[3], directory.store, map(str, devices))
        notes = {str(d): directory.store.notes(notes_topic(str(d))) for d in devices} if not finals.devices else {}
        resolved = directory.info.get("resolved", {})
        made_by = directory.command or command(config)
        try:
            objectives = tuple(_objective(name) for name in resolved["objectives"])
            constraints = tuple(_constraint(name, bound) for name, bound in resolved.get("constraints", {}).items())
            given = resolved.get("weights")
            weights = None if given is None else weigh(objectives, given)
            fronts = tuple(map(str, resolved.get("fronts", ())))
        except (KeyError, TypeError, ValueError) as error:
            raise RunCorrupt(
                f"{directory.path}/run.toml is damaged: [resolved] names no objectives or budgets ({error})"
            ) from error
    start = SearchState(config.space, objectives, constraints, config.queries, config.seed, front_devices=fronts)
    if saved is None or paid is None:
        return SearchResult(start, Ledger(), space, config, (), Path(run), command=made_by, weights=weights)
    searched = [(o.metric, o.device) for o in objectives] + [(c.metric, c.device) for c in constraints]
    wanted = list(dict.fromkeys([*searched, *_measured_for_all(rows, saved[1], searched)]))
    replayed = replay(start, saved[1], rows, wanted)
    # a search that goes on meanwhile may have committed more
    replayed = replace(replayed, outlooks=outlooks[: replayed.step])
    state = _amended(replayed, rows)
    front = {state.architectures[i] for i in presented(state, weights)}
    told = {(metric, device) for metric, device in wanted}
    reported = tuple(row for row in rows if row.architecture in front and (row.metric, row.context.device) not in told)
    ledger = replace(paid, reported=len(reported))
    if notes:
        finals = replace(finals, certificates=certificates_so_far(notes, state))
    return SearchResult(state, ledger, space, config, reported, Path(run), finals, made_by, weights)


def _amended(state: SearchState, rows: Sequence[Measurement]) -> SearchState:
    """The state with the last measurement of everything: the front is measured again after a search."""
    current = {(r.architecture, r.metric, r.context.device): r for e in state.archive for r in e.measurements}
    last = {(row.architecture, row.metric, row.context.device): row for row in rows}
    return state.amend([row for key, row in last.items() if key in current and row.context != current[key].context])


def _measured_for_all(
    rows: Sequence[Measurement], steps: Sequence[Sequence[str]], known: Sequence[Wanted]
) -> list[Wanted]:
    """Metrics beside the objectives that every evaluated architecture has, such as its parameters."""
    evaluated = {key for keys in steps for key in keys}
    having: dict[Wanted, set[str]] = {}
    for row in rows:
        having.setdefault((row.metric, row.context.device), set()).add(row.architecture.key)
    return [pair for pair, keys in having.items() if pair not in known and evaluated <= keys and pair in COUNTED]


def _role_columns(view: report.RunView, index: int) -> dict[str, Any]:
    """Columns of a data frame that say what an architecture is on which device; none where there is one front."""
    if not view.devices:
        return {}
    role = view.role(index)
    return {
        "fronts": "+".join(role.fronts),
        "recommended_on": "+".join(role.recommended),
        "portfolio": role.portfolio,
    }


def _named(objectives: Sequence[Objective], weights: Sequence[float] | None) -> dict[str, float] | None:
    return None if weights is None else {o.name: w for o, w in zip(objectives, weights, strict=True)}


def _objective(name: str) -> Objective:
    metric, _, device = name.partition("@")
    return Objective(metric, device or None, METRICS[metric].goal)


def _constraint(name: str, bound: float) -> Constraint:
    metric, _, device = name.partition("@")
    return Constraint(metric, float(bound), device or None, METRICS[metric].goal)


def write_report(result: SearchResult, directory: RunDirectory | None = None) -> list[Path]:
    """Write front.csv, front.json, report.html and the figures into the result's run directory.

    Args:
        result: A search's result.
        directory: Its directory, where that is open already.

    Raises:
        RunError: The result has no directory, or it cannot be written.
    """
    folder = _write_front(result, directory)
    try:
        return report.write_report(result.view, folder)
    except OSError as error:
        raise RunError(f"the report cannot be written to {folder}: {error}. The search itself is kept") from error


def _write_front(result: SearchResult, directory: RunDirectory | None) -> Path:
    """Write front.csv and front.json; the run directory. Errors as `write_report`."""
    if result.folder is None:
        raise UsageError("this result has no run directory; search with out=...")
    view, named = result.view, result.view.state.architectures
    best = {} if view.recommended is None else {named[view.recommended]: "yes"}
    marks: dict[str, dict[Architecture, str]] = {"recommended": best}
    if view.devices:
        roles = {i: view.role(i) for i in view.shown}
        marks = {
            "fronts": {named[i]: "+".join(role.fronts) for i, role in roles.items()},
            "recommended": {named[i]: "+".join(role.recommended) for i, role in roles.items()},
            "portfolio": best,
        }
    with nullcontext(directory) if directory is not None else RunDirectory.read(result.folder) as run:
        run.set_notation(result.space.format)
        run.write_front(
            result.state,
            report.to_json(view),
            marks=marks,
            rows=view.shown,
            reported=result.reported,
        )
    return result.folder


def export(
    result: SearchResult,
    out: str | Path,
    *,
    which: str = "front",
    architectures: Sequence[str] | None = None,
    verbatim: bool = False,
    force: bool = False,
) -> Mapping[str, Any]:
    """Write architectures as checked ONNX models with metadata, a manifest and a model card.

    Args:
        result: A search's result.
        out: Folder to write.
        which: "front" or "best".
        architectures: Keys or public notations to export instead; they need not be in the archive.
        verbatim: Keep edges that do not reach the output.
        force: Write into a folder that holds something.

    Returns:
        The manifest.

    Raises:
        ExportFailed: There is nothing to export, or a model could not be written.
        RunExists: The folder holds something.
    """
    from hwnas.errors import ExportFailed
    from hwnas.export import export_models

    archive = {e.architecture: e for e in result.view.state.archive}
    best = result.view.recommended
    recommended = None if best is None else result.view.state.architectures[best]
    if architectures:
        asked = [result.space.parse(text) for text in architectures]
    elif which == "best":
        asked = [result.view.state.architectures[i] for i in _best(result.view)]
    else:
        asked = [result.view.state.architectures[i] for i in result.view.shown]
    if not asked:
        raise ExportFailed("the run has no feasible architecture to export; name one with --arch")
    outcome = export_models(
        result.space,
        result.config.dataset,
        [archive.get(a, Evaluation(a, ())) for a in asked],
        Path(out),
        objectives=result.state.objectives,
        recommended=asked.index(recommended) if recommended in asked else None,
        roles=_manifest_roles(result.view, asked),
        verbatim=verbatim,
        force=force,
        certificates=result.finals.certificates,
        run={"seed": result.config.seed, "command": result.command},
    )
    outcome.raise_for_failures()
    return outcome.manifest


def _best(view: report.RunView) -> list[int]:
    """Archive indices of what is recommended: with several fronts of each device's, and of the one for all."""
    every = [own.recommended for own in view.devices.values()]
    return list(dict.fromkeys(index for index in (*every, view.recommended) if index is not None))


def _manifest_roles(view: report.RunView, asked: Sequence[Architecture]) -> list[dict[str, Any]] | None:
    """What the manifest says of each architecture where there are several fronts."""
    if not view.devices:
        return None
    place = {architecture: i for i, architecture in enumerate(view.state.architectures)}
    found = [view.role(place[a]) if a in place else report.Role((), (), False) for a in asked]
    return [
        {"fronts": list(role.fronts), "recommended_on": list(role.recommended), "portfolio": role.portfolio}
        for role in found
    ]


def _command(assembly: Assembly) -> str:
    """The command line that makes a search again from the sources that answer it here: with "auto", another machine
    might answer from others without a word."""
    from hwnas.tables.folder import find_folder

    config, used = assembly.config, assembly.kinds
    if config.source == "auto" and config.tables is None:
        if {Source.TABLE, Source.SURROGATE} <= used:
            config = replace(config, tables=str(find_folder()))
        elif Source.TABLE in used:
            config = replace(config, source="table")
        elif Source.SURROGATE in used:
            config = replace(config, source="surrogate")
    return command(config)


def command(config: SearchConfig) -> str:
    """The command line that makes a search again."""
    from hwnas.config import SearchConfig

    words = ["hwnas", "search"]
    plain = SearchConfig()
    if config.devices:
        words += ["--device", ",".join(config.devices)]
    for word, value in config.budgets.items():
        words += ["--budget", f"{word}={value!r}" if isinstance(value, float) else f"{word}={value}"]
    if config.objectives != plain.objectives:
        words += ["--objectives", ",".join(config.objectives)]
    if config.weights:
        words += ["--weights", ",".join(f"{word}={value!r}" for word, value in config.weights.items())]
    for name in ("fronts", "space", "dataset", "generator", "source", "tables", "batch", "preset", "wait"):
        if getattr(config, name) != getattr(plain, name):
            words += [f"--{name}", str(getattr(config, name))]
    words += [f"--no-{name}" for name in ("predict", "cache") if not getattr(config, name)]
    if config.stop_rule is not None:
        words += ["--stop-when", config.stop_when, "--stop-threshold", f"{100 * config.stop_rule.threshold:.12g}%"]
    words += ["--queries", str(config.queries), "--seed", str(config.seed)]
    for key, value in config.generator_settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)
