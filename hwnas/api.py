"""The Python interface: `search` runs one, `load` reads one back; the command line calls the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas import registry
from hwnas.assembly import COUNTED
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement, Source
from hwnas.core.metrics import METRICS
from hwnas.core.objective import Constraint, Objective
from hwnas.core.recommending import presented
from hwnas.core.state import SearchState
from hwnas.delivery import export, write_report
from hwnas.errors import InvalidSetting, RunCorrupt
from hwnas.evaluators.measured import notes_topic
from hwnas.finals import Finals, certificates_so_far, with_paid
from hwnas.loop import OnStep, replay
from hwnas.measure import Wanted
from hwnas.result import Found, SearchResult, Shipped
from hwnas.rundir import RunDirectory
from hwnas.running import ONE_FRONT, OnMeasure, Run, open_run

__all__ = [
    "Found",
    "OnMeasure",
    "Run",
    "SearchResult",
    "Shipped",
    "export",
    "load",
    "open_run",
    "search",
    "write_report",
]


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
        config = SearchConfig.from_toml({**ONE_FRONT, **directory.config})
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
        made_by = directory.command or config.command()
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


def _objective(name: str) -> Objective:
    metric, _, device = name.partition("@")
    return Objective(metric, device or None, METRICS[metric].goal)


def _constraint(name: str, bound: float) -> Constraint:
    metric, _, device = name.partition("@")
    return Constraint(metric, float(bound), device or None, METRICS[metric].goal)
