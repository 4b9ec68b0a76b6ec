"""The end of a search in the terminal: the front as a table and what it means in a few sentences."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hwnas.core.measurement import Measurement, Source, joint_half
from hwnas.core.objective import Constraint
from hwnas.core.recommending import Portfolio, error_column, guessed, guessers, undecided
from hwnas.core.wording import difference, known, percent, quantity, shortened
from hwnas.profiling.runs import LATENCY, explained
from hwnas.report.fitting import Fitting
from hwnas.report.view import ABOVE, FLAGGED, Column, RunView

STAR, KNEE, NEAREST, COMMON = "★", "◆", "≈", "●"
_FEW, _REASON = 3, 200  # networks and reasons that are named; characters of one


def front_table(
    view: RunView, limit: int | None = 20, *, columns: Sequence[Column] | None = None, keys: bool = False
) -> Table:
    """The front, recommended architecture marked ★ and the knee ◆; where nothing is feasible, the nearest one.

    Args:
        view: What to show.
        limit: At most so many rows, spread over the front, the marked ones always; None for all.
        columns: Which numbers; all of `view.columns` when not given.
        keys: Write architectures as keys, which are shorter than the space's notation.
    """
    shown_columns = view.columns if columns is None else columns
    rows = list(view.front) or ([view.nearest] if view.nearest is not None else [])
    shown = _spread(rows, limit, keep=(view.recommended, view.knee))
    table = Table(title=_table_title(view, len(rows), len(shown)), title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("query", justify="right", no_wrap=True)
    for column in shown_columns:
        what = known(column[0])
        unit = f" [{what.unit}]" if what.unit else ""
        table.add_column(Text(f"{what.title}{unit}" + (f"\n{column[1]}" if column[1] else "")), justify="right")
    table.add_column("key" if keys else "architecture", overflow="fold")
    for index in shown:
        values = [Text(view.cell_text(index, column)) for column in shown_columns]
        style = "bold green" if index == view.recommended else "yellow" if index == view.nearest else None
        name = view.state.architectures[index].key if keys else view.texts[index]
        table.add_row(marks(view, index), str(index + 1), *values, Text(name), style=style)
    left_out = [known(column[0]).title for column in view.columns if column not in shown_columns]
    more = [f"in a wider terminal also: {', '.join(left_out)}"] if left_out else []
    table.caption = Text("\n".join(legend(view, shown_columns, shown) + more))
    return table


def fitting_front(view: RunView) -> Fitting:
    """The front's table with as much as the terminal is wide enough for: first all numbers and the space's notation,
    then objectives and budgets only, then keys instead of the notation."""
    asked = _wanted(view)
    return Fitting(
        [
            front_table(view),
            front_table(view, columns=asked),
            front_table(view, keys=True),
            front_table(view, columns=asked, keys=True),
        ]
    )


def summary(view: RunView) -> RenderableType:
    """What came out, in one paragraph: best under budget, runner-up, distance to the budget, knee, ledger."""
    colour = "green" if view.recommended is not None else "yellow"
    title = "one network for all devices" if view.devices else f"result on {view.device}" if view.device else "result"
    return Panel(Text(" ".join(sentences(view))), title=title, title_align="left", border_style=colour)


def ending(view: RunView) -> list[str]:
    """Of a search with several fronts: why it ended, which belongs to no device and not to the one network for all. Of
    others it is among their `sentences`."""
    return _stopped(view) if view.devices else []


def full(view: RunView) -> RenderableType:
    """Table, as wide as the terminal allows, and summary together; with several fronts one of each, then what is
    to be said of all devices."""
    if view.devices:
        end = [Text(" ".join(told))] if (told := ending(view)) else []
        return Group(*map(full, view.devices.values()), *end, summary(view))
    return Group(fitting_front(view), summary(view))


def marks(view: RunView, index: int) -> str:
    """ "★" for the recommended architecture, "◆" for the knee, "≈" for the nearest infeasible one, "●" for the one that
    is recommended for all devices, where there are several fronts."""
    recommended, common = (None, view.recommended) if view.devices else (view.recommended, view.common)
    pairs = ((STAR, recommended), (KNEE, view.knee), (NEAREST, view.nearest), (COMMON, common))
    return "".join(mark for mark, marked in pairs if marked == index)


def legend(view: RunView, columns: Sequence[Column], rows: Sequence[int]) -> list[str]:
    """What the marks mean and, for each column, where the numbers of some rows come from and how sure they are."""
    lines = []
    if view.recommended is not None:
        knee = f"   {KNEE} knee" if view.knee is not None else ""
        lines.append(
            f"{STAR} recommended{knee}" + (f"   {COMMON} for all devices" if view.common in view.front else "")
        )
    if view.nearest is not None:
        lines.append(f"{NEAREST} misses a budget by least")
    lines += cell_legend(view, columns, rows)
    shown = view.recommended if view.recommended is not None else view.nearest
    sources = view.sources(rows)
    for column in columns:
        words = "" if shown is None else view.certainty(shown, column)
        lines.append(f"{view.title(column)}: {sources[column]}" + (f"; {words}" if words else ""))
    return lines


def cell_legend(view: RunView, columns: Sequence[Column], rows: Sequence[int]) -> list[str]:
    """What the marks beside the figures of some rows mean; nothing where there are none."""
    marked = {(i, column): view.cell_marks(i, column) for column in columns for i in rows}
    flags = [flag for cell in marked if (runs := view.runs_of(*cell)) is not None for flag in runs.doubts]
    lines = []
    if flags:
        lines.append(f"{FLAGGED} flagged: {explained(flags)}")
    if any(ABOVE in mark for mark in marked.values()):
        lines.append(f"{ABOVE} latency within the budget, but the median or the 95th percentile of its runs above it")
    return lines


def sentences(view: RunView) -> list[str]:
    """The summary, sentence by sentence; all numbers with units. Of a view with several fronts: what is to be said of
    all devices; what each has is in its own view's."""
    if view.devices:
        return [*_missed(view), *_portfolio(view)]
    state = view.state
    budgets = " and ".join(str(c) for c in state.constraints)
    if view.n == 0:
        return ["Nothing was evaluated yet.", *_whole_run(view)]
    told = [] if view.device is not None else [*_missed(view), *_stopped(view)]
    if view.recommended is None:
        flagged = [] if view.nearest is None else _flagged(view, view.nearest)
        last = [*flagged, *_failures(view), *_left(view), *_whole_run(view)]
        return [*told, *_nothing_feasible(view, budgets), *last]
    column = (view.objective.metric, view.objective.device)
    if undecided(state):
        why = "the knee of the front" if view.by_knee else f"the best of the front by the weights {_weights(view)}"
        told.append(f"Recommended without a budget: {why}: {_values(view, view.recommended)}")
    else:
        under = f" with {budgets}" if budgets else ""
        told.append(f"Best {_title(view, column)}{under}: {view.value_text(view.recommended, column)}")
    told[-1] += f" ({view.texts[view.recommended]}, query {view.recommended + 1})."
    told += [*_guessing(view), *_room(view), *_flagged(view, view.recommended), *_runner_up(view)]
    if view.weighted is not None and not undecided(state) and len(state.objectives) > 1:
        what = (
            "the same network"
            if view.weighted == view.recommended
            else f"{_values(view, view.weighted)} (query {view.weighted + 1})"
        )
        told.append(f"A budget decides before weights; by the weights {_weights(view)} it would be {what}.")
    if view.knee not in (None, view.recommended):
        told.append(f"Knee of the front: {_values(view, view.knee)} (query {view.knee + 1}).")
    told.append(f"{int(view.feasible.sum())} of {view.n} evaluated are feasible, {len(view.front)} on the front.")
    return [*told, *_split(view), *_predicted(view), *_failures(view), *_left(view), *_whole_run(view)]


def _missed(view: RunView) -> list[str]:
    """Budgets that exported models may not keep."""
    return [f"A budget may NOT be kept: {message}" for message in view.missed]


def listed(words: Iterable[str]) -> str:
    """Words as in a sentence: "a, b and c"."""
    every = list(words)
    return " and ".join(filter(None, [", ".join(every[:-1]), every[-1]]))


def _whole_run(view: RunView) -> list[str]:
    """What is said once of a run, not of each device."""
    return [] if view.device is not None else [*view.notes, *_ledger(view)]


def _portfolio(view: RunView) -> list[str]:
    """The one network for all devices, and how far it is behind what each could have."""
    chosen, every = view.portfolio, listed(view.devices)
    if chosen is None:
        if view.n == 0:
            return ["Nothing was evaluated yet.", *_whole_run(view)]
        return [f"No evaluated network has its numbers on {every}.", *_whole_run(view)]
    named = f"{_values(view, chosen.index)} ({view.texts[chosen.index]}, query {chosen.index + 1})"
    behind = "; ".join(chosen.told(device) + _unresolved(own, chosen) for device, own in view.devices.items())
    if not chosen.admissible:
        told = [
            f"No evaluated network meets the budgets of {every} together.",
            f"Nearest: {named}.",
            f"It is {behind}.",
        ]
        return [*told, *_whole_run(view)]
    fronts = view.role(chosen.index).fronts
    where = f"It is on the front of {listed(fronts)}." if fronts else "It is on no device's own front."
    told = [f"To ship one network to {every}: {named}.", f"It is {behind}."]
    told += ["No other evaluated network has a smaller largest regret.", where, *_guessing(view), *_room(view)]
    return [*told, *_flagged(view, chosen.index), *_whole_run(view)]


def _unresolved(own: RunView, chosen: Portfolio) -> str:
    """Whether all differences to the best found for a device, in what the regret there is about, may be noise."""
    device = own.device or ""
    if not chosen.regrets.get(device):
        return ""
    compromise = chosen.metric is None and device not in chosen.behind
    about = own.state.objectives if compromise else (own.objective,)
    for column in ((o.metric, o.device) for o in about):
        one, best = (own.measurement(i, column) for i in (chosen.index, chosen.best[device]))
        if one is None or best is None or not (one.value == best.value or _tied(one, best)):
            return ""
    return " (inside the intervals: not resolved)"


def _stopped(view: RunView) -> list[str]:
    """Why the search ended, unless it just paid all that it might; what it expected of going on, where that is known
    and no device's own view tells it."""
    told, expected = view.stopped, _expected(view)
    words = f"{told.evaluations} of {told.queries} evaluations"
    if told.reason is None:
        return [f"Stopped after {words}" + (f": {expected}" if expected else ".")]
    if told.reason == "exhausted":
        return [f"Ended after {words}: the space has no more architectures."]
    if told.reason == "queries":
        return []
    if not expected:
        threshold = "" if told.threshold is None else f" as much as {percent(told.threshold)} of hypervolume"
        expected = f"on no device is the next query expected to add{threshold}."
    go_on = [f"To go on: hwnas search --resume {shlex.quote(view.run)} --stop-when never."] if view.run != "RUN" else []
    return [f"Converged, stopped after {words}: {expected}", *go_on]


def _left(view: RunView) -> list[str]:
    """What the search expected of going on, where that is no reason for its end: behind what was found."""
    told, expected = view.stopped, _expected(view)
    if not expected or (view.device is None and told.reason != "queries"):
        return []
    if view.device is None:
        return [f"All {told.queries} evaluations are spent: {expected}"]
    return [expected[0].upper() + expected[1:]]


def _expected(view: RunView) -> str:
    """What the search expected of going on, on this front; nothing where nobody asked, or other views tell it."""
    expected = view.expected
    if expected is None:
        return ""
    missed, low, high = (percent(x) for x in (expected.missed, expected.low, expected.high))
    corner = "its own reference point"
    if expected.reference:
        pairs = zip(view.state.objectives, expected.reference, strict=True)
        corner = listed(f"{_title(view, (o.metric, o.device))} {quantity(o.metric, o.value(x))}" for o, x in pairs)
    where = " of one of the devices" if view.devices else ""  # runs made before each front had its own
    interval = f"{low.removesuffix(' %')} to {high}"
    return (
        f"the next query is expected to add {percent(expected.gain)} of hypervolume{where}; {missed} of the reachable "
        f"hypervolume, up to {corner}, is expected to be missed ({interval}, {Source.PREDICTED})."
    )


def _guessing(view: RunView) -> list[str]:
    """A network that is no better than guessing is no result, however well it keeps a budget."""
    column = error_column(view.state)
    row = None if column is None else view.measurement(view.recommended or 0, column)
    guess = None if row is None else guessed(row)
    if column is None or row is None or guess is None:
        return []
    rest = (view.feasible & ~guessers(view.state)).any()
    start = (
        "The recommended network classifies no better than guessing"
        if rest
        else "No feasible network classifies better than guessing"
    )
    way = "other budgets" if rest else "a larger budget or more queries"
    return [
        f"{start}: {known(row.metric).title} {quantity(row.metric, row.value)}, where guessing gives {guess:.2f} % on "
        f"{row.context.dataset}. It is of no use as a classifier; choose {way}."
    ]


def _predicted(view: RunView) -> list[str]:
    """A front that is partly a guess is no finding yet."""
    told = []
    for column in view.columns:
        rows = [row for i in view.front if (row := view.measurement(i, column)) is not None]
        guessed = sum(row.context.source is Source.PREDICTED for row in rows)
        if guessed:
            title = known(column[0]).title
            told.append(f"{title.capitalize()} is predicted, not measured, for {guessed} of the front's {len(rows)}.")
    return told


def _split(view: RunView) -> list[str]:
    """Whoever chooses on test figures has to know that the best of them is too good."""
    found = {o.metric: view.measurement(0, (o.metric, o.device)) for o in view.state.objectives} if view.n else {}
    chosen = [known(name).title for name, row in found.items() if row is not None and row.context.split == "test"]
    if not chosen:
        return []
    return [
        f"Chosen on the test split, for want of validation figures: the best {' and '.join(chosen)} of many is "
        "optimistic as an estimate for new data."
    ]


def _table_title(view: RunView, total: int, shown: int) -> str:
    budgets = ", ".join(str(c) for c in view.state.constraints)
    where = (f" on {view.device}" if view.device else "") + (f" with {budgets}" if budgets else "")
    if view.n == 0:
        return f"Front{where}: nothing evaluated yet"
    if not view.front:
        return f"Nothing feasible{where}" + ("; the nearest:" if total else ": every evaluation failed")
    some = f", {shown} of them shown" if shown < total else ""
    return f"Front{where}: {total} of {view.n} evaluated{some}"


def _spread(rows: list[int], limit: int | None, keep: tuple[int | None, ...]) -> list[int]:
    if limit is None or len(rows) <= limit:
        return rows
    step = (len(rows) - 1) / max(1, limit - 1)
    chosen = {rows[round(i * step)] for i in range(limit)} | {i for i in keep if i is not None}
    return [row for row in rows if row in chosen]


def _nothing_feasible(view: RunView, budgets: str) -> list[str]:
    if view.nearest is None:
        return [f"Nothing feasible: none of {view.n} evaluated architectures has all its numbers."]
    return [
        f"Nothing feasible: none of {view.n} evaluated architectures meets {budgets}.",
        f"Nearest: {_values(view, view.nearest)}; {_excess(view, view.nearest)} "
        f"({view.texts[view.nearest]}, query {view.nearest + 1}).",
        "Allow more queries or a larger budget.",
    ]


def _excess(view: RunView, index: int) -> str:
    """By how much an architecture misses each budget, as a factor where a percentage is hard to read."""
    told = []
    for constraint in view.state.constraints:
        column = (constraint.metric, constraint.device)
        row = view.measurement(index, column)
        excess = 0.0 if row is None else constraint.violation(row.promised(constraint.goal))
        if excess > 0:
            text = f"{100 * excess:.1f} % beyond" if excess <= 1 else f"{1 + excess:.1f} times the budget"
            told.append(text if len(view.state.constraints) == 1 else f"{_title(view, column)} {text}")
    return ", ".join(told)


def _room(view: RunView) -> list[str]:
    """How close the recommended architecture is to each budget, its interval included."""
    told = []
    for constraint in view.state.constraints:
        column = (constraint.metric, constraint.device)
        row = view.measurement(view.recommended or 0, column)
        if row is None:
            continue
        share = 100 * row.value / constraint.bound
        text = f"It uses {share:.1f} % of the {_title(view, column)} budget ({quantity(row.metric, row.value)})"
        worst = None if row.interval is None else row.interval[1 if constraint.goal == "min" else 0]
        if worst is not None and constraint.violation(worst) > 0:
            text += f"; its interval reaches {quantity(row.metric, worst)}, beyond the budget: not certain"
        told.append(f"{text}{_of_runs(view, view.recommended or 0, constraint)}.")
    return told


def _of_runs(view: RunView, index: int, budget: Constraint) -> str:
    """How the single runs behind a latency went beside its budget: the figure is that of the machine's fast mode."""
    runs = view.runs_of(index, (budget.metric, budget.device))
    if runs is None or budget.metric != LATENCY:
        return ""
    beyond = runs.beyond(budget)
    told = f"; within the budget, but {beyond}" if beyond else f"; {runs.figures}: within the budget as well"
    return f"{told}; flags: {runs.flagged}" if runs.doubts else told


def _flagged(view: RunView, index: int) -> list[str]:
    """The flags of a network's measurements on devices whose latency has no budget beside which they were told."""
    told = []
    bounded = {c.device for c in view.state.constraints if c.metric == LATENCY and index == view.recommended}
    for device in dict.fromkeys(device for _, device in view.columns if device not in bounded):
        found = (view.runs_of(index, column) for column in view.columns if column[1] == device)
        runs = next((runs for runs in found if runs is not None), None)
        if runs is not None and runs.doubts:
            told.append(f"Flags of its measurement on {device}: {runs.flagged}; {runs.figures}.")
    return told


def _runner_up(view: RunView) -> list[str]:
    if view.runner_up is None or view.recommended is None:
        return []
    column = (view.objective.metric, view.objective.device)
    best, second = view.measurement(view.recommended, column), view.measurement(view.runner_up, column)
    if best is None or second is None:
        return []
    text = f"Runner-up: {_values(view, view.runner_up)} (query {view.runner_up + 1})"
    if _tied(best, second):
        apart = difference(column[0], abs(second.value - best.value))
        text += f"; the difference of {apart} is inside the intervals: not resolved"
    text += _less_sure(view, view.runner_up, view.recommended)
    for budget in view.state.constraints:
        runs = view.runs_of(view.runner_up, (budget.metric, budget.device))
        if runs is not None and budget.metric == LATENCY and (beyond := runs.beyond(budget)):
            text += f"; within the budget, but {beyond}"
    return [f"{text}."]


def _less_sure(view: RunView, index: int, other: int) -> str:
    """Which numbers of an architecture are predicted, or measured by another protocol than another one's."""
    told = []
    for column in _wanted(view):
        row, beside = view.measurement(index, column), view.measurement(other, column)
        if row is None or beside is None or row.context == beside.context:
            continue
        if row.context.source is not beside.context.source:
            told.append(f"{_title(view, column)} {row.context.source}, not {beside.context.source}")
        elif row.context.fidelity != beside.context.fidelity and row.context.source is Source.MEASURED:
            told.append(f"{_title(view, column)} only with {row.context.fidelity}")
    return f" ({', '.join(told)})" if told else ""


def _tied(one: Measurement, other: Measurement) -> bool:
    """Whether the difference of two numbers is inside their intervals."""
    width = joint_half(one, other)
    return width > 0 and abs(one.value - other.value) <= width


def _failures(view: RunView) -> list[str]:
    if not view.statuses:
        return []
    cases: dict[str, dict[str, list[int]]] = {}  # queries by status and reason
    for index, evaluation in enumerate(view.state.archive):
        for row in evaluation.measurements:
            if not row.status.has_value:
                told = f"{known(row.metric).title}: {shortened(row.message, _REASON)}".removesuffix(": ")
                cases.setdefault(str(row.status), {}).setdefault(told, []).append(index)
    counts = [f"{count} {status} for {_causes(view, cases[status])}" for status, count in view.statuses.items()]
    return [f"Without a number: {'; '.join(counts)}."]


def _causes(view: RunView, reasons: Mapping[str, Sequence[int]]) -> str:
    """A few reasons, the most frequent first, each with a few of its networks."""
    often = sorted(reasons.items(), key=lambda case: -len(case[1]))
    told = []
    for reason, indices in often[:_FEW]:
        names = [f"{view.state.architectures[i].key} (query {i + 1})" for i in indices[:_FEW]]
        more = f" and {len(indices) - _FEW} more" if len(indices) > _FEW else ""
        told.append(f"{', '.join(names)}{more}, {reason.rstrip('.')}")
    return "; ".join(told) + (f"; and {len(often) - _FEW} other reasons" if len(often) > _FEW else "")


def _ledger(view: RunView) -> list[str]:
    ledger = view.ledger
    paid = f"Paid: {ledger.error_queries} error and {ledger.cost_queries} cost queries"
    if ledger.networks_measured or ledger.networks_kept:
        kept = f", {ledger.networks_kept} kept from earlier measurements" if ledger.networks_kept else ""
        paid += f" ({_several(ledger.networks_measured, 'network')} measured{kept})"
    if ledger.pretraining_labels:
        paid += f", {ledger.pretraining_labels} pretraining labels"
    paid += f", {ledger.cpu_s:.1f} search CPU s, {ledger.wall_s:.1f} wall s"
    after = ""
    if ledger.final_measurements or ledger.final_kept:
        kept = f" ({ledger.final_kept} more kept from earlier ones)" if ledger.final_kept else ""
        after = f"; then {_several(ledger.final_measurements, 'final measurement')}{kept} in "
        after += f"{ledger.final_wall_s:.1f} wall s"
    if ledger.file_timings:
        after += f"{' and' if after else '; then'} {ledger.file_timings} timings of exported files in "
        after += f"{ledger.file_wall_s:.1f} wall s"
    return [f"{paid}{after}."]


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _values(view: RunView, index: int) -> str:
    return ", ".join(f"{_title(view, c)} {view.value_text(index, c)}" for c in _wanted(view))


def _title(view: RunView, column: Column) -> str:
    """A metric's name, with its device where several devices were asked about."""
    metric, device = column
    several = len({where for _, where in _wanted(view) if where is not None}) > 1
    return known(metric).title + (f" on {device}" if device and several else "")


def _weights(view: RunView) -> str:
    pairs = zip(view.state.objectives, view.weights or (), strict=True)
    return ", ".join(f"{_title(view, (o.metric, o.device))} {weight:g}" for o, weight in pairs)


def _wanted(view: RunView) -> tuple[Column, ...]:
    """Objectives and budgets: what was asked about."""
    objectives = [(o.metric, o.device) for o in view.state.objectives]
    return tuple(dict.fromkeys([*objectives, *((c.metric, c.device) for c in view.state.constraints)]))
