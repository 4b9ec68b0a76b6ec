"""A search from its request to its run directory: checked, opened or reopened, run to the end, written."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.assembly import Assembly, assemble
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement, Source
from hwnas.core.objective import Objective
from hwnas.core.protocols import SearchSpace, Store
from hwnas.core.recommending import presented
from hwnas.core.state import SearchState
from hwnas.delivery import export, write_front, write_report
from hwnas.errors import ExportFailed, InvalidSetting, RunError
from hwnas.finals import (
    check_exported,
    keep_samples,
    measure_front,
    note_paid,
    predicted_front,
    stage,
    summarise,
    with_paid,
)
from hwnas.loop import OnStep, Search
from hwnas.measure import Measure, count
from hwnas.result import SearchResult
from hwnas.rundir import MODELS, RunDirectory
from hwnas.spaces.codes import size
from hwnas.stores.memory import MemoryStore

if TYPE_CHECKING:
    from hwnas.config import SearchConfig

ONE_FRONT = {"fronts": "joint"}  # what several devices had in runs whose run.toml does not say

OnMeasure = Callable[[str, float, int, str], None]


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
        write_front(result, directory)
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
        began = SearchConfig.from_toml({**ONE_FRONT, **earlier}).to_toml()
        asked = SearchConfig.from_toml({**ONE_FRONT, **earlier, **given})
        _check_threshold(given, asked)
        # run.toml of an earlier version says nothing of settings that came later: it had what is their default now
        given = {k: v for k, v in asked.to_toml().items() if k in earlier or v != began.get(k)}
    made = RunDirectory.resume(path, config=given or None)
    assembly = None
    try:
        # where the tables lie may have changed; which tables they are is checked by their origin below
        asked = SearchConfig.from_toml({**ONE_FRONT, **(given or made.config)})
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


def _named(objectives: Sequence[Objective], weights: Sequence[float] | None) -> dict[str, float] | None:
    return None if weights is None else {o.name: w for o, w in zip(objectives, weights, strict=True)}


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
    return config.command()
