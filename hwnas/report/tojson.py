"""The report for machines: strict JSON, null where there is no number."""

from __future__ import annotations

import math
from typing import Any

from hwnas.core.measurement import Measurement, Source
from hwnas.core.metrics import METRICS
from hwnas.core.stopping import Outlook
from hwnas.core.wording import origin
from hwnas.profiling.runs import FLAGS, LATENCY
from hwnas.report.view import RunView

SCHEMA = 1


def to_json(view: RunView) -> dict[str, Any]:
    """The whole result as plain dicts, lists, strings and finite numbers (`json.dumps(..., allow_nan=False)` works).

    Keys: schema, finished, stopped (why, and what was expected of going on: `gain` of the next query as a share of the
    present hypervolume; `missed`, with its 90 % interval `low` to `high`, as a share of the reachable hypervolume, up
    to `reference`, losses in the order of the front's objectives), evaluations, queries, space, seed, objectives,
    budgets, weights, feasible, recommended, nearest, knee, runner_up, front, hypervolume, failures, measured (by
    device: noise floor, retests), flags (those of the measurements, with what they mean), ledger, config, command,
    versions, created. Architectures carry all their metrics, by column: value, unit, source, context, interval, status,
    and `own_half`: half of the interval without what it shares with others of its context, where that is known.
    Those of the front that were measured here also carry runs, by device: median and p95 of the single runs behind the
    latency (ms), flags, and above_budget: which of the two are above the latency budget.

    With several fronts also: fronts (by device: objectives, budgets, weights, feasible, recommended, nearest, knee,
    runner_up, front, hypervolume, failures, expected) and portfolio (by device the regret or the violation, and its
    sentence; `behind` where regrets are shares of a front's range of one metric: how far in that metric). There,
    stopped.expected is of its `device`, whose front may gain most, front is the union of the fronts, recommended the
    one network for all devices, and architectures say which fronts they are on.
    """
    fronts = {name: {**_goal(each), "expected": _expected(each.expected)} for name, each in view.devices.items()}
    several = {"fronts": fronts, "portfolio": _portfolio(view)}
    return {**_run(view), **(several if view.devices else {})}


def _run(view: RunView) -> dict[str, Any]:
    state = view.state
    return {
        "schema": SCHEMA,
        "finished": view.finished,
        "stopped": stopped(view),
        "evaluations": view.n,
        "queries": state.queries,
        "space": state.space,
        "seed": state.seed,
        **_goal(view),
        "measured": plain(view.measured),
        "flags": {flag: FLAGS.get(flag, "") for flag in sorted({f for runs in view.runs.values() for f in runs.flags})},
        "ledger": view.ledger.to_json(),
        "config": plain(view.config),
        "command": view.command,
        "versions": dict(view.versions),
        "created": view.created,
    }


def _goal(view: RunView) -> dict[str, Any]:
    """What was wanted and what was found, on one device or of the whole run."""
    state = view.state
    return {
        "objectives": [
            {"metric": o.metric, "device": o.device, "goal": o.goal, "unit": METRICS[o.metric].unit}
            for o in state.objectives
        ],
        "budgets": [
            {"metric": c.metric, "device": c.device, "bound": c.bound, "unit": METRICS[c.metric].unit, "text": str(c)}
            for c in state.constraints
        ],
        "weights": None
        if view.weights is None
        else {o.name: weight for o, weight in zip(state.objectives, view.weights, strict=True)},
        "feasible": int(view.feasible.sum()),
        "recommended": _maybe(view, view.recommended),
        "nearest": _maybe(view, view.nearest),
        "knee": _maybe(view, view.knee),
        "runner_up": _maybe(view, view.runner_up),
        "front": [architecture(view, i) for i in view.front],
        # volumes of several fronts have no common unit: each front has its own
        "hypervolume": None
        if view.devices
        else {
            "value": float(view.hypervolumes[-1]) if view.n else 0.0,
            "reference": [float(x) for x in view.reference],
            "reference_note": view.reference_note,
        },
        "failures": dict(view.statuses),
    }


def _portfolio(view: RunView) -> dict[str, Any] | None:
    chosen = view.portfolio
    if chosen is None:
        return None
    return {
        **architecture(view, chosen.index),
        "admissible": chosen.admissible,
        "regret_of": chosen.metric or "compromise",
        "relative": chosen.relative,
        "regrets": dict(chosen.regrets),
        "best": {device: architecture(view, index) for device, index in chosen.best.items()},
        "behind": {device: {"metric": name, "value": value} for device, (name, value) in chosen.behind.items()},
        "violations": dict(chosen.violations),
        "told": {device: chosen.told(device) for device in view.devices},
    }


def stopped(view: RunView) -> dict[str, Any]:
    """Why the search ended (null: it did not), and what was expected of going on; with several fronts on the `device`
    whose front may gain most, while `fronts` has the others."""
    told = view.stopped
    return {
        "reason": told.reason,
        "evaluations": told.evaluations,
        "threshold": told.threshold,
        "expected": _expected(told.outlook),
    }


def _expected(outlook: Outlook | None) -> dict[str, Any] | None:
    """What was expected of going on, in shares of the hypervolume up to `reference`, losses in the order of the front's
    objectives."""
    if outlook is None:
        return None
    told = {key: value for key, value in outlook.to_json().items() if key != "fronts"}
    return {**told, "source": str(Source.PREDICTED)}


def architecture(view: RunView, index: int) -> dict[str, Any]:
    """One architecture of the archive with all its facts."""
    violation = float(view.state.violations[index])
    return {
        "order": index + 1,
        "key": view.state.architectures[index].key,
        "arch": view.texts[index],
        "feasible": bool(view.feasible[index]),
        "violation": violation if math.isfinite(violation) else None,
        "recommended": index == view.recommended,
        **(_role(view, index) if view.devices else {}),
        "metrics": {row.column: _metric(row) for row in view.state.archive[index].measurements},
        **_runs(view, index),
    }


def _runs(view: RunView, index: int) -> dict[str, Any]:
    """The single runs behind what was measured here, by device; nothing where nothing was."""
    key = view.state.architectures[index].key
    found = {}
    for (network, device), runs in view.runs.items():
        if network == key:
            budgets = view.budgets_of((LATENCY, device))
            above = dict.fromkeys(name for budget in budgets for name in runs.above(budget))
            found[device] = {**runs.to_json(), "above_budget": list(above)}
    return {"runs": found} if found else {}


def _role(view: RunView, index: int) -> dict[str, Any]:
    role = view.role(index)
    return {"fronts": list(role.fronts), "recommended_on": list(role.recommended), "portfolio": role.portfolio}


def _metric(row: Measurement) -> dict[str, Any]:
    told = {key: value for key, value in row.to_json().items() if key != "architecture"}
    return {**told, "unit": METRICS[row.metric].unit, "source": origin(row.context)}


def plain(value: Any) -> Any:
    """Anything as JSON can say it: nan and infinities become null, unknown objects their text."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _maybe(view: RunView, index: int | None) -> dict[str, Any] | None:
    return None if index is None else architecture(view, index)
