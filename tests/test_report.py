"""Reports: every number shown is the state's, and every case that a search can end in is told."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hwnas import report
from hwnas.core import pareto
from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Constraint, Objective
from hwnas.core.state import SearchState
from hwnas.core.wording import certainty, origin, origins, provenance
from hwnas.profiling import bench
from hwnas.profiling.record import Latency, Record, Setup, Subject
from hwnas.profiling.runs import FLAGS
from hwnas.profiling.statistics import Spread
from hwnas.progress import Progress
from hwnas.report.axes import MARKED, feasible_area, groups, projections, staircase
from hwnas.report.cells import BOX, HEIGHT, cell_svg, layout, short
from hwnas.report.plots import every_plot
from hwnas.report.view import hypervolume_curve, live_graph
from hwnas.spaces import codes
from hwnas.testing.toy import DEVICE, PHONE, ToyEvaluator, ToySpace

SPACE = ToySpace()
PHONE_LATENCY = ("latency_ms", PHONE)
ERROR, LATENCY, ENERGY = ("val_error_pct", None), ("latency_ms", DEVICE), ("energy_mj", DEVICE)
CONFIG = {"space": "toy", "dataset": "toy", "generator": {"name": "random"}, "tables": None}


def search(
    *objectives: tuple[str, str | None], bound: float | None = 2.0, count: int = 81, queries: int = 81
) -> SearchState:
    wanted = objectives or (ERROR, LATENCY)
    constraints = () if bound is None else (Constraint("latency_ms", bound, DEVICE),)
    state = SearchState("toy", tuple(Objective(*o) for o in wanted), constraints, queries=queries, seed=7)
    every = list(codes.every(SPACE))
    order = np.random.default_rng(3).permutation(len(every))
    asked = dict.fromkeys([*wanted, *((c.metric, c.device) for c in constraints)])
    rows = list(ToyEvaluator().evaluate([every[i] for i in order[:count]], list(asked)))
    return state.tell(rows) if rows else state


def two_devices(state: SearchState) -> SearchState:
    """The same search with a front for each device."""
    return replace(state, front_devices=(DEVICE, PHONE))


def view_of(state: SearchState, **more: Any) -> report.RunView:
    ledger = Ledger(evaluations=len(state.archive), error_queries=len(state.archive), cpu_s=1.25)
    more.setdefault("command", ["hwnas", "search", "--device", "toy box"])
    return report.RunView.of(state, ledger, SPACE, CONFIG, **more)


CASES = {
    "budget": lambda: search(),
    "no budget": lambda: search(bound=None),
    "one objective": lambda: search(ERROR, bound=None),
    "one objective, budget on another": lambda: search(ERROR),
    "three objectives": lambda: search(ERROR, LATENCY, ENERGY),
    "nothing feasible": lambda: search(bound=0.01),
    "interrupted": lambda: search(count=10),
    "first ones over budget": lambda: search(bound=1.0),
    "one evaluation": lambda: search(count=1),
    "two devices": lambda: two_devices(search(ERROR, LATENCY, PHONE_LATENCY, bound=None)),
    "two devices, budgets": lambda: two_devices(search(ERROR, LATENCY, PHONE_LATENCY, bound=2.5)),
    "two devices, nothing meets both budgets": lambda: two_devices(search(ERROR, LATENCY, PHONE_LATENCY, bound=0.01)),
    "two devices, one evaluation": lambda: two_devices(search(ERROR, LATENCY, PHONE_LATENCY, count=1)),
    "two devices, none": lambda: two_devices(search(ERROR, LATENCY, PHONE_LATENCY, count=0)),
    "none": lambda: search(count=0),
}


@pytest.fixture(params=CASES)
def view(request: pytest.FixtureRequest) -> report.RunView:
    return view_of(CASES[request.param]())


def measured(index: int, error: float, latency: float, half: float) -> list[Measurement]:
    architecture = Architecture("toy", (0, index // 9, index // 3 % 3, index % 3))
    where = Context(Source.MEASURED, device=DEVICE, runtime="ort-cpu", precision="fp32", batch=1)
    return [
        Measurement(architecture, "val_error_pct", error, Context(Source.TABLE, seed="mean")),
        Measurement(architecture, "latency_ms", latency, where, Status.OK, (latency - half, latency + half)),
    ]


def text(renderable: Any, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    console.print(renderable)
    console.file.close()
    return console.export_text()


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, embedded JSON, visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.visible: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.visible.append(data)

    def embedded(self, name: str) -> Any:
        scripts = [attrs for tag, attrs in self.elements if tag == "script"]
        place = next(i for i, attrs in enumerate(scripts) if attrs.get("id") == name)
        return json.loads(self.scripts[place])


# -- the view ----------------------------------------------------------------------------------------------------------


def test_recommended_is_the_best_of_the_whole_space_under_the_budget() -> None:
    view = view_of(search(bound=2.0))
    truth = ToyEvaluator().truth
    inside = [a for a in codes.every(SPACE) if truth(a, "latency_ms") <= 2.0]
    best = min(truth(a, "val_error_pct") for a in inside)
    assert view.recommended is not None
    assert view.values[view.recommended, view.columns.index(ERROR)] == best
    assert view.recommended in view.front
    assert view.runner_up is not None
    assert view.runner_up != view.recommended


def test_best_is_about_the_objective_without_a_budget() -> None:
    view = view_of(search(LATENCY, ERROR, bound=2.0))
    assert view.objective.metric == "val_error_pct"
    other = view_of(search(ERROR, LATENCY, bound=2.0))
    assert view.recommended is not None
    assert other.recommended is not None
    assert view.values[view.recommended, view.columns.index(ERROR)] == other.values[other.recommended, 0]


def test_without_a_budget_the_knee_is_recommended() -> None:
    view = view_of(search(bound=None))
    assert view.knee is not None
    assert view.recommended == view.knee
    assert view.runner_up is None  # a knee stands alone
    told = " ".join(report.sentences(view))
    values = ", ".join(view.value_text(view.knee, column) for column in (ERROR, LATENCY))
    assert "Runner-up" not in told
    assert values.split(", ")[0] in told
    assert f"latency {values.split(', ')[1]}" in told


def test_hypervolume_curve_equals_the_prefixes() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((40, 3)).round(1)
    losses[5] = np.nan
    feasible = rng.random(40) < 0.7
    feasible[5] = False
    reference = np.array([0.9, 1.1, 1.0])
    curve = hypervolume_curve(losses, feasible, reference)
    for k in range(40):
        rows = losses[: k + 1][feasible[: k + 1]]
        assert curve[k] == pytest.approx(pareto.hypervolume(rows, reference), abs=1e-12)


def test_best_values_are_a_running_minimum_of_feasible_ones() -> None:
    view = view_of(search(bound=2.0))
    errors = [v if ok else math.inf for v, ok in zip(view.values[:, 0], view.feasible, strict=True)]
    expected = np.minimum.accumulate(errors)
    assert np.array_equal(np.nan_to_num(view.best_values, nan=np.inf), expected)


def test_facts_from_after_the_search_are_shown_but_change_nothing() -> None:
    state = search()
    front = state.architectures[state.front_indices[0]]
    extra = [Measurement(front, "test_error_pct", 12.5, Context(Source.TABLE, split="test"))]
    view, plain = view_of(state, extra=extra), view_of(state)
    assert view.front == plain.front
    assert view.recommended == plain.recommended
    assert view.columns == (*plain.columns, ("test_error_pct", None))
    assert view.value_text(view.front[0], ("test_error_pct", None)) == "12.50 %"
    assert "12.50" in text(report.front_table(view))


def test_projections_put_the_budget_first_and_one_objective_over_time() -> None:
    assert [p.x for p in projections(view_of(search(ERROR, ENERGY, bound=2.0)))] == [LATENCY, ENERGY]
    (alone,) = projections(view_of(search(ERROR, bound=None)))
    assert alone.x is None
    assert alone.coordinates(view_of(search(ERROR, bound=None, count=3)))[0].tolist() == [1, 2, 3]


def test_a_front_of_three_objectives_has_the_colour_of_the_one_on_neither_axis() -> None:
    view = view_of(search(ERROR, LATENCY, ENERGY, bound=None))
    assert [(p.x, p.shade) for p in projections(view)] == [(LATENCY, ENERGY), (ENERGY, LATENCY)]
    for k, column in enumerate((ENERGY, LATENCY)):
        (front,) = [t for t in every_plot(view)[f"front-{k}"]["data"] if t["name"].startswith("front")]
        values = view.values[front["customdata"], view.columns.index(column)]
        assert front["marker"]["color"] == values.tolist()
        assert front["marker"]["colorbar"]["title"]["text"] == f"front: {view.title(column)}"
    bars = [axes.get_ylabel() for axes in report.front_figure(view).axes if axes.get_ylabel().startswith("front")]
    assert bars == [f"front: {view.title(column)}" for column in (ENERGY, LATENCY)]
    assert "the front's points have its colour" in "".join(Page(report.html(view)).visible)
    # both objectives are on the axes, or two are on none: the front has a colour of its own
    for objectives in ((ERROR, LATENCY), (ERROR, LATENCY, ENERGY, ("params_m", None))):
        assert {p.shade for p in projections(view_of(search(*objectives, bound=None)))} == {None}


def test_staircase_bounds_every_point_of_the_front_and_no_better_one() -> None:
    view = view_of(search(bound=None))
    (plot,) = projections(view)
    x, y = staircase(view, plot)
    corners = set(zip(x, y, strict=True))
    points = {(view.values[i, 1], view.values[i, 0]) for i in view.front}
    assert points <= corners
    # axis-parallel: every move changes one coordinate, right or down
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        assert (x0 == x1) or (y0 == y1)
        assert x1 >= x0
        assert y1 <= y0


def parts(view: report.RunView) -> list[tuple[str, report.RunView]]:
    """Views with one front each, and what the names of their plots begin with."""
    return [(f"device-{k}-", own) for k, own in enumerate(view.devices.values())] or [("", view)]


def test_legends_count_what_the_text_counts(view: report.RunView) -> None:
    labels = {text.get_text() for text in report.front_figure(view).legends[0].get_texts()} if view.n else set()
    figures = every_plot(view)
    for prefix, own in parts(view):
        legend_counts(own, labels, {trace["name"] for trace in figures[f"{prefix}front-0"]["data"]})


def legend_counts(view: report.RunView, labels: set[str], names: set[str]) -> None:
    told = {group.name: group for group in groups(view)}
    drawn = [i for group in told.values() for i in group.indices]
    assert sorted(drawn) == [i for i in range(view.n) if not view.failed[i]]  # each once
    totals = {name: group.total for name, group in told.items()}
    assert totals.get("front", len(view.front)) == len(view.front)
    others = int(view.feasible.sum()) - len(view.front)
    assert sum(n for name, n in totals.items() if name.endswith("not on the front")) == others
    over = view.n - int(view.feasible.sum()) - int(view.failed.sum())
    assert totals.get("over budget", over) == over
    for group in told.values():
        assert (group.label if view.device is None else group.name) in labels
        assert group.label in names
        assert group.total == 1 or group.label == f"{group.name} ({group.total})"


@pytest.mark.parametrize("device", [DEVICE, "a-board-with-a-name-that-leaves-no-room-for-three-columns"])
def test_a_legend_stays_inside_its_figure(device: str) -> None:
    state = search()
    rows = [
        replace(row, context=replace(row.context, device=row.context.device and device))
        for evaluation in state.archive
        for row in evaluation.measurements
    ]
    named = SearchState(
        "toy", (Objective(*ERROR), Objective("latency_ms", device)), (Constraint("latency_ms", 2.0, device),), 81
    ).tell(rows)
    figure = report.front_figure(view_of(named))
    (legend,) = figure.legends
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_say_source_and_certainty() -> None:
    table = Context(Source.TABLE, dataset="cifar10", split="test", seed="mean", origin="here")
    row = Measurement(Architecture("toy", (0,)), "val_error_pct", 5.0, table)
    assert provenance(table) == "table: cifar10, test split, mean of seeds, here"
    assert certainty(row) == "exact table row, mean of seeds"
    surrogate = Measurement(row.architecture, "val_error_pct", 5.0, Context(Source.SURROGATE), interval=(4.5, 5.5))
    assert certainty(surrogate) == "95 % interval 4.50 to 5.50"
    assert certainty(Measurement(row.architecture, "params_m", 1.0, Context(Source.MEASURED, runtime="count"))) == (
        "exact count, dead edges included"
    )
    failed = Measurement.failed(
        row.architecture, "latency_ms", Context(Source.TABLE, device="x"), Status.TIMEOUT, "9 s"
    )
    assert certainty(failed) == "timeout: 9 s"
    noisy = Measurement(row.architecture, "latency_ms", 1.0, Context(Source.MEASURED, device="x"), Status.NOISY)
    assert "noisy" in certainty(noisy)


def test_counts_are_no_measurements() -> None:
    one = Architecture("toy", (0,))
    count = Measurement(one, "params_m", 1.0, Context(Source.MEASURED, runtime="count"))
    table = Measurement(one, "val_error_pct", 5.0, Context(Source.TABLE))
    timed = Measurement(one, "latency_ms", 5.0, Context(Source.MEASURED, device="x", runtime="ort-cpu"))
    assert [origin(row.context) for row in (count, table, timed)] == ["counted", "table", "measured"]
    assert origins([table, count]) == "table"
    assert origins([count, table, timed]) == "table+measured"
    assert origins([count, count]) == "counted"
    assert origins([]) == ""


def test_summary_names_an_order_that_the_intervals_leave_open_and_an_uncertain_budget() -> None:
    state = SearchState(
        "toy",
        (Objective("latency_ms", DEVICE), Objective("val_error_pct")),
        (Constraint("val_error_pct", 50.0),),
        queries=2,
    ).tell([*measured(0, 10.0, 4.0, 0.3), *measured(1, 20.0, 4.1, 0.3)])
    told = " ".join(report.sentences(view_of(state)))
    assert "not resolved" in told
    clear = SearchState("toy", state.objectives, state.constraints, queries=2).tell(
        [*measured(0, 10.0, 4.0, 0.01), *measured(1, 20.0, 4.1, 0.01)]
    )
    assert "not resolved" not in " ".join(report.sentences(view_of(clear)))
    tight = SearchState(
        "toy", (Objective("val_error_pct"), Objective("latency_ms", DEVICE)), (Constraint("latency_ms", 4.1, DEVICE),)
    )
    rows = measured(0, 10.0, 4.0, 0.3)
    guessed = [replace(row, context=replace(row.context, source=Source.SURROGATE)) for row in rows]
    told = " ".join(report.sentences(view_of(tight.tell(guessed))))
    assert "reaches 4.300 ms, beyond the budget" in told
    assert "97.6 % of the latency budget" in told
    assert "Nothing feasible" in " ".join(report.sentences(view_of(tight.tell(rows))))


def test_choosing_on_the_test_split_is_said() -> None:
    told = []
    for metric, split in (("test_error_pct", "test"), ("val_error_pct", "val")):
        context = Context(Source.TABLE, split=split)
        state = SearchState("toy", (Objective(metric),), (), queries=1)
        row = Measurement(Architecture("toy", (0, 0, 0, 0)), metric, 5.0, context)
        told.append("Chosen on the test split" in " ".join(report.sentences(view_of(state.tell([row])))))
    assert told == [True, False]


# -- terminal and JSON -------------------------------------------------------------------------------------------------


def test_terminal_marks_the_recommended_row() -> None:
    view = view_of(search())
    shown = text(report.front_table(view, limit=None))
    assert view.recommended is not None
    (row,) = [line for line in shown.splitlines() if "│ ★" in line or "│ ★" in line.replace("◆", "")]
    assert view.texts[view.recommended] in row
    assert f"{view.values[view.recommended, 0]:.2f}" in row
    assert f"{view.values[view.recommended, 1]:.3f}" in row
    assert "validation error [%]: table: toy, val split, toy" in shown
    for index in view.front:
        assert view.texts[index] in shown


def test_terminal_limit_keeps_the_marked_rows() -> None:
    view = view_of(search())
    assert len(view.front) > 3
    shown = text(report.front_table(view, limit=2))
    assert "★" in shown
    assert "◆" in shown
    assert view.recommended is not None
    assert view.texts[view.recommended] in shown
    assert re.search(rf"{len(view.front)} of 81 evaluated, \d+ of them shown", " ".join(shown.split()))


@pytest.mark.parametrize(
    ("width", "all_numbers", "notation"), [(150, True, True), (80, False, True), (62, False, False)]
)
def test_terminal_shows_what_its_width_allows(width: int, all_numbers: bool, notation: bool) -> None:
    front = search().front().architectures
    extra = [Measurement(a, m, 1.5, Context(Source.TABLE)) for a in front for m in ("params_m", "test_error_pct")]
    view = view_of(search(), extra=extra)
    shown = text(report.full(view), width)
    rows = [line for line in shown.splitlines() if line.startswith("│") and view_row(line)]
    assert len(rows) == min(20, len(view.front))  # none is broken into several lines
    assert ("parameters" in shown.split("├")[0].split("★ recommended")[0]) == all_numbers
    assert view.recommended is not None
    name = view.texts[view.recommended] if notation else view.state.architectures[view.recommended].key
    assert sum(name in row for row in rows) == 1


def view_row(line: str) -> bool:
    return re.match(r"│ [★◆≈]* *│ +\d+ │", line) is not None


def test_nothing_feasible_says_so_and_shows_the_nearest() -> None:
    view = view_of(search(bound=0.01))
    least = min(ToyEvaluator().truth(a, "latency_ms") for a in codes.every(SPACE) if a.code.count(2) < 3)
    assert view.recommended is None
    assert view.nearest is not None
    assert view.values[view.nearest, 1] == least
    shown = text(report.full(view))
    assert "Nothing feasible" in shown
    assert "≈" in shown
    assert f"; {least / 0.01:.1f} times the budget (" in " ".join(report.sentences(view))
    near = view_of(search(bound=0.9 * least))
    assert f"; {100 * (1 / 0.9 - 1):.1f} % beyond (" in " ".join(report.sentences(near))
    assert "Nothing feasible" in report.html(view)


def test_several_devices_are_named_with_each_number() -> None:
    one = Architecture("toy", (0, 0, 0, 0))
    rows = [
        Measurement(one, "val_error_pct", 9.0, Context(Source.TABLE)),
        Measurement(one, "latency_ms", 3.0, Context(Source.TABLE, device="a")),
        Measurement(one, "latency_ms", 8.0, Context(Source.TABLE, device="b")),
    ]
    objectives = (Objective("val_error_pct"), Objective("latency_ms", "a"), Objective("latency_ms", "b"))

    def told(low: float, high: float) -> str:
        budgets = (Constraint("latency_ms", low, "a"), Constraint("latency_ms", high, "b"))
        return " ".join(report.sentences(view_of(SearchState("toy", objectives, budgets, queries=1).tell(rows))))

    met = told(4.0, 10.0)
    assert "It uses 75.0 % of the latency on a budget (3.000 ms)" in met
    assert "It uses 80.0 % of the latency on b budget (8.000 ms)" in met
    missed = told(2.0, 2.0)
    assert "latency on a 3.000 ms, latency on b 8.000 ms" in missed
    assert "; latency on a 50.0 % beyond, latency on b 4.0 times the budget (" in missed


def test_the_second_figure_of_time_has_a_name() -> None:
    assert "1.2 search CPU s, 3.4 wall s." in " ".join(
        report.sentences(
            report.RunView.of(search(count=1), Ledger(evaluations=1, cpu_s=1.2, wall_s=3.4), SPACE, CONFIG)
        )
    )


def test_the_live_hypervolume_names_its_reference_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.progress._PLAIN_EVERY_S", 0.0)
    state = search(count=10)
    console = Console(width=200, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    progress = Progress(console, shown=True)
    progress.step(replace(state, queries=20), Ledger())
    progress.step(replace(state, queries=10), Ledger())
    console.file.close()
    error, latency = pareto.reference_point(state.losses)
    live, last = console.export_text().splitlines()
    assert f"(up to {error:.2f} %, {latency:.3f} ms)" in live
    assert "hypervolume" not in last  # the report follows, with its own reference point


def test_a_search_that_has_seen_everything_says_so() -> None:
    state = replace(search(count=81), queries=200)
    view = report.RunView.of(state, Ledger(evaluations=81), SPACE, CONFIG)
    assert view.finished
    assert "Ended after 81 of 200 evaluations: the space has no more architectures." in report.sentences(view)
    assert report.to_json(view)["stopped"]["reason"] == "exhausted"
    fewer = report.RunView.of(replace(search(count=80), queries=200), Ledger(), SPACE, CONFIG)
    assert not fewer.finished


def test_the_live_line_has_the_best_and_the_front_of_each_device() -> None:
    state = replace(two_devices(search(ERROR, LATENCY, PHONE_LATENCY, bound=2.5, count=20)), queries=20)
    console = Console(width=200, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    Progress(console, shown=True).step(state, Ledger())
    console.file.close()
    told = console.export_text()
    for device, goal in state.by_device.items():
        best = goal.losses[goal.violations == 0, 0].min()
        assert f"{device}: best {best:.2f} %, front {len(goal.front_indices)}" in told
    assert "hypervolume" not in told


def test_all_failed_is_not_called_nearest() -> None:
    bad = [a for a in codes.every(SPACE) if a.code.count(2) >= 3]
    rows = list(ToyEvaluator().evaluate(bad, [ERROR, LATENCY]))
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), queries=len(bad)).tell(rows)
    view = view_of(state)
    assert (view.recommended, view.nearest, view.front) == (None, None, ())
    told = " ".join(report.sentences(view))
    assert f"none of {len(bad)} evaluated architectures has all its numbers" in told
    assert f"{len(bad)} not_measured" in told
    assert "every evaluation failed" in text(report.front_table(view))


def test_json_is_strict_and_holds_the_state(view: report.RunView) -> None:
    found = json.loads(json.dumps(report.to_json(view), allow_nan=False))
    assert found["evaluations"] == view.n
    assert found["ledger"] == view.ledger.to_json()
    assert [entry["key"] for entry in found["front"]] == [view.state.architectures[i].key for i in view.front]
    for entry, index in zip(found["front"], view.front, strict=True):
        facts = [{k: v for k, v in row.items() if k not in ("unit", "source")} for row in entry["metrics"].values()]
        rows = [Measurement.from_json({**row, "architecture": entry["key"]}) for row in facts]
        assert tuple(rows) == view.state.archive[index].measurements
    recommended = None if view.recommended is None else view.state.architectures[view.recommended].key
    assert (found["recommended"] or {}).get("key") == recommended
    assert ("fronts" in found) == ("portfolio" in found) == bool(view.devices)
    for told, own in zip(found.get("fronts", {"": found}).values(), [own for _, own in parts(view)], strict=True):
        assert told["hypervolume"]["reference"] == own.reference.tolist()
        feasible = own.state.losses[own.feasible]
        assert told["hypervolume"]["value"] == pytest.approx(pareto.hypervolume(feasible, own.reference))
        assert [entry["key"] for entry in told["front"]] == [own.state.architectures[i].key for i in own.front]


def test_json_of_several_fronts_says_who_is_on_which() -> None:
    view = view_of(CASES["two devices, budgets"]())
    found = report.to_json(view)
    assert list(found["fronts"]) == [DEVICE, PHONE]
    assert [b["device"] for b in found["fronts"][DEVICE]["budgets"]] == [DEVICE]
    assert found["fronts"][PHONE]["budgets"] == []
    assert found["hypervolume"] is None
    for entry in found["front"]:
        on = [name for name, told in found["fronts"].items() if entry["key"] in [e["key"] for e in told["front"]]]
        best = [name for name, told in found["fronts"].items() if entry["key"] == told["recommended"]["key"]]
        assert (entry["fronts"], entry["recommended_on"]) == (on, best)
    shipped = found["portfolio"]
    assert shipped["key"] == found["recommended"]["key"]
    assert shipped["admissible"]
    assert set(shipped["regrets"]) == set(shipped["told"]) == {DEVICE, PHONE}
    assert all(text in " ".join(report.sentences(view)) for text in shipped["told"].values())


@pytest.mark.parametrize(("half", "unresolved"), [(0.0, False), (0.1, False), (0.4, True)])
def test_the_one_network_for_all_may_be_as_good_as_the_best(half: float, unresolved: bool) -> None:
    """The best on each device misses the budget of the other."""
    rows = []
    for i, (error, here, there) in enumerate([(5.0, 1.0, 9.0), (5.2, 9.0, 1.0), (5.5, 1.0, 1.0)]):
        about, table = Architecture("toy", (0, 0, 0, i)), Context(Source.TABLE)
        rows.append(Measurement(about, "val_error_pct", error, table, interval=(error - half, error + half)))
        rows.append(Measurement(about, "latency_ms", here, replace(table, device=DEVICE)))
        rows.append(Measurement(about, "latency_ms", there, replace(table, device=PHONE)))
    objectives = (Objective(*ERROR), Objective(*LATENCY), Objective(*PHONE_LATENCY))
    budgets = (Constraint("latency_ms", 2.0, DEVICE), Constraint("latency_ms", 2.0, PHONE))
    view = view_of(SearchState("toy", objectives, budgets, 3, 0, front_devices=(DEVICE, PHONE)).tell(rows))
    told = " ".join(report.sentences(view))
    words = f"0.50 points of validation error behind the best found for {DEVICE}"
    assert words in told
    assert (f"{words} (inside the intervals: not resolved)" in told) == unresolved
    assert f"It uses 50.0 % of the latency on {PHONE} budget" in told
    own = " ".join(report.sentences(view.devices[DEVICE]))
    assert ("the difference of 0.50 points is inside the intervals" in own) == unresolved
    assert ("95 % interval" in certainty(rows[0])) == (half > 0)


def test_a_devices_own_view_knows_nothing_of_the_others() -> None:
    view = view_of(CASES["two devices"]())
    for device, own in view.devices.items():
        assert {column[1] for column in own.columns} == {None, device}
        assert own.recommended == report_of(device).recommended
        assert own.front == report_of(device).front
        assert device in text(report.front_table(own)).splitlines()[0]
    told = text(report.full(view))
    assert told.count("Paid: ") == 1
    assert told.index(f"result on {DEVICE}") < told.index(f"result on {PHONE}") < told.index("one network for all")


def report_of(device: str) -> report.RunView:
    """What a search for one of the two devices alone, of the same networks, recommends."""
    return view_of(search(ERROR, ("latency_ms", device), bound=None))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_is_complete_and_fetches_nothing(view: report.RunView) -> None:
    page = Page(report.html(view))
    assert page.open == []
    assert [tag for tag, _ in page.elements].count("html") == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name), f"<{tag} {name}=...> may fetch something"
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = re.search(r"<style>(.*?)</style>", report.html(view), re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert sum("Plotly.react" in script and len(script) < 20_000 for script in page.scripts) == 1
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1  # plotly.js, once
    own = next(script for script in page.scripts if "Plotly.react" in script and len(script) < 20_000)
    assert "showSendToCloud: false" in own


def test_page_shows_the_state_numbers(view: report.RunView) -> None:
    page = Page(report.html(view))
    data, figures = page.embedded("hwnas-data"), page.embedded("hwnas-figures")
    assert [point["key"] for point in data["points"]] == [a.key for a in view.state.architectures]
    shown = {c["title"]: j for j, c in enumerate(data["columns"])}
    for column in view.columns:
        for index, point in enumerate(data["points"]):
            cell, row = point["values"][shown[view.title(column)]], view.state.archive[index].find(*column)
            assert row is not None
            assert cell["value"] == (row.value if row.status.has_value else None)
    for prefix, own in parts(view):
        drawn: dict[int, tuple[float, float]] = {}
        for trace in figures[f"{prefix}front-0"]["data"]:
            if "customdata" in trace:
                drawn |= dict(zip(trace["customdata"], zip(trace["x"], trace["y"], strict=True), strict=True))
        assert set(drawn) == {i for i in range(own.n) if not own.failed[i]}  # each once
        plot = projections(own)[0]
        x, y = plot.coordinates(own)
        assert all(drawn[i] == (x[i], y[i]) for i in drawn)
        if own.feasible.any():
            assert figures[f"{prefix}hypervolume"]["data"][0]["y"] == own.hypervolumes.tolist()
            # a gap, not a zero, before the first feasible architecture
            best = [None if v != v else v for v in own.best_values.tolist()]
            assert figures[f"{prefix}best"]["data"][0]["y"] == best
    elements = {attributes.get("id") for _, attributes in page.elements}
    assert set(figures) <= elements, "a plot without a place"
    told = "".join(page.visible)
    assert "hwnas search --device 'toy box'" in told
    for name, number in view.versions.items():
        assert name in told
        assert number in told


def test_plots_are_valid_plotly(view: report.RunView) -> None:
    import plotly.graph_objects

    colours = re.compile(r'"@(fg|muted|grid|bg|card|accent)"')
    for figure in every_plot(view).values():
        plain = json.loads(colours.sub('"#123456"', json.dumps(figure)))
        plotly.graph_objects.Figure(plain)  # refuses unknown keys and wrong values


def test_three_objectives_have_parallel_coordinates_of_all_with_numbers() -> None:
    view = view_of(search(ERROR, LATENCY, ENERGY))
    (trace,) = every_plot(view)["parallel"]["data"]
    assert len(trace["dimensions"]) == 3
    assert len(trace["dimensions"][0]["values"]) == int((~view.failed).sum())
    assert "parallel" not in every_plot(view_of(search()))


def test_failures_are_listed_with_status_and_not_drawn() -> None:
    view = view_of(search())
    failed = [i for i in range(view.n) if view.failed[i]]
    assert failed
    told = "".join(Page(report.html(view)).visible)
    assert f"Without a number ({len(failed)})" in told
    (sentence,) = [line for line in report.sentences(view) if line.startswith("Without a number")]
    assert told.count("too many pools") == len(failed) + sentence.count("too many pools")
    first = f"{view.state.architectures[failed[0]].key} (query {failed[0] + 1})"
    assert first in sentence
    assert "too many pools" in sentence
    assert sentence.count("(query ") <= 9  # few networks of few reasons, and how many more


def test_intervals_become_error_bars() -> None:
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), queries=1).tell(measured(0, 10.0, 4.0, 0.25))
    (trace,) = every_plot(view_of(state))["front-0"]["data"]
    assert trace["error_x"]["array"] == [pytest.approx(0.25)]
    assert trace["error_x"]["arrayminus"] == [pytest.approx(0.25)]
    assert "error_y" not in trace


def test_a_lopsided_interval_shows_both_sides() -> None:
    (error, latency) = measured(0, 10.0, 4.0, 0.25)
    wide = Measurement(latency.architecture, latency.metric, 4.0, latency.context, Status.OK, (3.9, 4.5))
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), queries=1).tell([error, wide])
    view = view_of(state)
    assert view.value_text(0, LATENCY) == "4.000 +0.500 -0.100 ms"
    (trace,) = every_plot(view)["front-0"]["data"]
    assert trace["error_x"]["array"] == [pytest.approx(0.5)]
    assert trace["error_x"]["arrayminus"] == [pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((4.0 - 1e-13, 4.0 + 2e-13), "4.000 ms"),
        ((4.0 - 1e-13, 4.5), "4.000 +0.500 -0.000 ms"),
        ((4.0, 4.0), "4.000 ms"),
    ],
)
def test_what_rounding_leaves_of_an_interval_is_not_shown(ends: tuple[float, float], shown: str) -> None:
    (error, latency) = measured(0, 10.0, 4.0, 0.25)
    narrow = Measurement(latency.architecture, latency.metric, 4.0, latency.context, Status.OK, ends)
    assert ("no error seen" in certainty(narrow)) == (ends[1] < 4.1)
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), queries=1).tell([error, narrow])
    assert view_of(state).value_text(0, LATENCY) == shown


def test_feasible_area_meets_every_budget_of_the_plot() -> None:
    state = search(bound=2.0)
    both = SearchState(
        "toy", state.objectives, (*state.constraints, Constraint("val_error_pct", 40.0)), archive=state.archive
    )
    view = view_of(both)
    (plot,) = projections(view)
    area = feasible_area(view, plot)
    assert area is not None
    (left, right), (bottom, top) = area
    assert (right, top) == (2.0, 40.0)
    x, y = plot.coordinates(view)
    inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
    assert np.array_equal(inside, view.feasible)
    assert inside.any()
    assert feasible_area(view_of(search(bound=None)), plot) is None


@pytest.mark.parametrize("bad", [1, 9])
def test_few_failed_networks_do_not_flatten_the_plot(bad: int) -> None:
    rows = [row for i in range(12) for row in measured(i, 90.0 if i < bad else 9.0 + i / 10, 4.0 + i, 0.1)]
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), queries=12).tell(rows)
    axis = every_plot(view_of(state))["front-0"]["layout"]["yaxis"]
    if bad == 1:
        assert axis["type"] == "log"
        assert 10 ** axis["range"][0] < 9.0 < 90.0 < 10 ** axis["range"][1]
    else:
        assert "type" not in axis
        assert axis["range"][0] < 9.0 < 90.0 < axis["range"][1]
    (axes,) = report.front_figure(view_of(state)).axes
    assert axes.get_yscale() == ("log" if bad == 1 else "linear")
    assert axes.get_ylim()[0] < 9.0 < 90.0 < axes.get_ylim()[1]


def test_hostile_text_stays_text() -> None:
    nasty = "</script><img src=x onerror=alert(1)>"
    view = view_of(search(count=3), command=nasty, run=nasty)
    source = report.html(report.RunView(**{**vars_of(view), "texts": (nasty,) * 3, "config": {nasty: nasty}}))
    page = Page(source)
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert page.embedded("hwnas-data")["points"][0]["text"] == nasty
    assert nasty in "".join(page.visible)


def vars_of(view: report.RunView) -> dict[str, Any]:
    return {name: getattr(view, name) for name in view.__dataclass_fields__}


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_cell_drawing_has_every_operation_and_crosses_no_box() -> None:
    ops = ("input", "conv", "pool", "conv", "odd<&>name", "output")
    graph = ArchGraph(ops, ((0, 1), (0, 2), (0, 5), (1, 3), (1, 5), (2, 4), (3, 4), (4, 5)))
    svg = cell_svg(graph)
    assert svg.count("<rect") == graph.n
    assert svg.count("<path") == len(graph.edges)
    assert "<&>" not in svg
    places, through = layout(graph)
    assert len(set(places)) == graph.n
    boxes = [(x - BOX / 2, x + BOX / 2, y - HEIGHT / 2, y + HEIGHT / 2) for x, y in places]
    for points in through.values():
        for x, y in points:
            assert not any(left < x < right and top < y < bottom for left, right, top, bottom in boxes)
    assert short("nor_conv_3x3") == "conv 3×3"


def test_disconnected_network_is_drawn_as_such() -> None:
    graph = live_graph(ArchGraph(("input", "none", "conv", "output"), ((0, 1), (0, 2), (1, 3))))
    assert graph == ArchGraph(("input", "output"), ())
    assert "no path" in cell_svg(graph)
    kept = live_graph(ArchGraph(("input", "none", "conv", "output"), ((0, 1), (0, 2), (1, 3), (2, 3))))
    assert kept == ArchGraph(("input", "conv", "output"), ((0, 1), (1, 2)))


# -- files -------------------------------------------------------------------------------------------------------------


def test_write_report_writes_whole_files(view: report.RunView, tmp_path: Path) -> None:
    paths = report.write_report(view, tmp_path / "run")
    names = ["report.html", "front.png", "front.pdf", "hypervolume.png", "hypervolume.pdf"]
    assert [path.name for path in paths] == names
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(names)
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert content.endswith(b"IEND\xaeB`\x82")
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF-")
            assert content.rstrip().endswith(b"%%EOF")
    assert paths[0].stat().st_size < 6_000_000


def test_figures_leave_matplotlib_alone() -> None:
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    figure = report.front_figure(view_of(search()))
    report.figures.render(figure, "pdf")
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs
    same = [report.figures.render(report.front_figure(view_of(search())), "pdf") for _ in range(2)]
    assert same[0] == same[1]


def test_notebook_form_has_no_script(view: report.RunView) -> None:
    source = report.repr_html(view)
    page = Page(source)
    assert page.open == []
    assert "script" not in [tag for tag, _ in page.elements]
    images = [a for tag, a in page.elements if tag == "img"]
    assert len(images) == len(parts(view))
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    if view.recommended is not None:
        assert view.texts[view.recommended] in "".join(page.visible)


@pytest.mark.parametrize(
    ("value", "half", "told"),
    [
        (1.2345, None, "1.234 ms"),
        (0.0004, None, "0.00040 ms"),
        (0.00437, None, "0.0044 ms"),
        (0.0, None, "0.000 ms"),
        (1.5, 0.25, "1.500 ± 0.250 ms"),
        (1.5, 0.0004, "1.500 ± 0.0004 ms"),
        (0.0004, 0.00002, "0.00040 ± 0.00002 ms"),
    ],
)
def test_tiny_numbers_keep_significant_digits(value: float, half: float | None, told: str) -> None:
    where = Context(Source.MEASURED, device=DEVICE)
    ends = None if half is None else (value - half, value + half)
    row = Measurement(Architecture("toy", (0, 0, 0, 0)), "latency_ms", value, where, Status.OK, ends)
    state = SearchState("toy", (Objective("latency_ms", DEVICE),), (), queries=1, seed=0).tell([row])
    assert view_of(state).value_text(0, LATENCY) == told
    assert told.split()[0] in " ".join(report.sentences(view_of(state)))
    if half:
        assert "0.000 to" not in certainty(row)


@pytest.mark.parametrize(
    ("errors", "dataset", "start"),
    [
        ([90.0, 89.2], "cifar10", "No feasible network classifies better than guessing: validation error 89.20 %"),
        ([99.1, 98.9], "cifar100", "No feasible network classifies better than guessing"),
        ([90.0, 40.0], "cifar10", None),
        ([90.0, 89.2], "a data set of one's own", None),
    ],
)
def test_a_search_whose_best_is_no_better_than_guessing_says_so(
    errors: list[float], dataset: str, start: str | None
) -> None:
    where = Context(Source.MEASURED, device=DEVICE)
    rows = [
        row
        for i, error in enumerate(errors)
        for row in (
            Measurement(
                Architecture("toy", (0, 0, 0, i)), "val_error_pct", error, Context(Source.TABLE, dataset=dataset)
            ),
            Measurement(Architecture("toy", (0, 0, 0, i)), "latency_ms", 1.0 + i, where),
        )
    ]
    budget = Constraint("latency_ms", 5.0, DEVICE)
    view = view_of(SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), (budget,), 2, 0).tell(rows))
    told = [sentence for sentence in report.sentences(view) if "guessing" in sentence]
    if start is None:
        assert told == []
    else:
        (sentence,) = told
        assert sentence.startswith(start)
        assert dataset in sentence
        assert sentence in " ".join(text(report.summary(view), 4000).split())
        assert sentence in " ".join("".join(Page(report.html(view)).visible).split())


def test_weights_do_not_pick_a_guesser_and_a_budget_that_does_is_told() -> None:
    where = Context(Source.MEASURED, device=DEVICE)
    rows = [
        row
        for i, (error, latency) in enumerate([(90.0, 0.1), (5.0, 9.0)])
        for row in (
            Measurement(
                Architecture("toy", (0, 0, 0, i)), "val_error_pct", error, Context(Source.TABLE, dataset="cifar10")
            ),
            Measurement(Architecture("toy", (0, 0, 0, i)), "latency_ms", latency, where),
        )
    ]
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), (), 2, 0).tell(rows)
    view = view_of(state, weights=(0.1, 10.0))
    assert view.measurement(view.recommended or 0, ERROR).value == 5.0
    view = view_of(replace(state, constraints=(Constraint("val_error_pct", 95.0),)))
    assert view.measurement(view.recommended or 0, ERROR).value == 90.0
    assert any("recommended network classifies no better than guessing" in told for told in report.sentences(view))


# -- how the single runs behind a measured latency went ----------------------------------------------------------------


def of_runs(median: float, p95: float, *flags: str, value: float = 1.0) -> dict[str, Any]:
    """A record of a measurement as runs keep it."""
    plain = dict.fromkeys(("minimum", "mean", "p90", "iqr", "mad", "cov"), 1.0)
    counts = dict.fromkeys(("low", "high", "mild", "severe", "samples"), 9)
    latency = Latency(
        value=value, low=0.97 * value, high=1.03 * value, half_within=0.01, sigma_session=0.025, calibrated=False,
        minimum=value, polished=value, level=0.0, spread=Spread(median=median, p95=p95, p99=None, **plain, **counts),
    )  # fmt: skip
    setup = Setup("ort-cpu", "a box", "1234", {}, (), {}, {"name": "final"})
    return {"batch": 1, **Record(Subject("net"), setup, Status.OK, latency=latency, flags=flags).to_json()}


def run_view(certificates: list[dict[str, Any]], bound: float | None = 2.0, **more: Any) -> report.RunView:
    """A search whose networks, each a bit better than the one before, took 1 ms, with these records."""
    constraints = () if bound is None else (Constraint("latency_ms", bound, DEVICE),)
    state = SearchState("toy", (Objective(*ERROR), Objective(*LATENCY)), constraints, queries=9)
    rows = [measured(i, 40.0 - i, 1.0 + 0.1 * i, 0.03) for i in range(len(certificates))]
    state = state.tell([row for pair in rows for row in pair])
    kept = {pair[0].architecture.key: {DEVICE: told} for pair, told in zip(rows, certificates, strict=True)}
    return view_of(state, certificates=kept, **more)


def test_runs_above_the_budget_are_said_beside_within_the_budget() -> None:
    view = run_view([of_runs(2.41, 3.1, "busy", "cold")])
    told = " ".join(report.sentences(view))
    assert (
        "It uses 50.0 % of the latency budget (1.000 ms); within the budget, but the median of its runs was 2.410 ms "
        f"and their 95th percentile 3.100 ms, above it; flags: busy ({FLAGS['busy']}), cold ({FLAGS['cold']})."
    ) in told
    assert view.cell_text(0, LATENCY) == "1.000 ± 0.030 !▲"
    table = " ".join(text(report.front_table(view), width=400).split())
    assert f"! flagged: busy ({FLAGS['busy']}), cold ({FLAGS['cold']})" in table
    assert "▲ latency within the budget, but the median or the 95th percentile of its runs above it" in table
    assert "median of its runs 2.410 ms, 95th percentile 3.100 ms; flags: busy, cold" in table
    page = "".join(Page(report.html(view)).visible)
    for shown in (page, "".join(Page(report.repr_html(view)).visible)):
        assert "1.000 ± 0.030 !▲" in shown
        assert f"! flagged: busy ({FLAGS['busy']})" in shown
        assert "the median of its runs was 2.410 ms" in shown
    found = json.loads(json.dumps(report.to_json(view), allow_nan=False))
    above = {"median": 2.41, "p95": 3.1, "flags": ["busy", "cold"], "above_budget": ["median", "p95"]}
    assert found["recommended"]["runs"] == found["front"][0]["runs"] == {DEVICE: above}
    assert found["flags"] == {flag: FLAGS[flag] for flag in ("busy", "cold")}
    assert found["recommended"]["feasible"]


@pytest.mark.parametrize(
    ("runs", "mark", "said"),
    [
        (of_runs(1.1, 2.2), "▲", "; within the budget, but the 95th percentile of its runs was 2.200 ms, above it."),
        (of_runs(1.1, 1.9), "", "; median of its runs 1.100 ms, 95th percentile 1.900 ms: within the budget as well."),
        (of_runs(1.1, 1.9, "cached"), "", "95th percentile 1.900 ms: within the budget as well."),
        (of_runs(1.1, 1.9, "cold", "cached"), "!", f": within the budget as well; flags: cold ({FLAGS['cold']})."),
        (of_runs(1.1, 1.9, "of tomorrow"), "!", ": within the budget as well; flags: of tomorrow."),
        (of_runs(9.0, 9.9, "busy", value=1.5), "", "(1.000 ms). "),  # the record of another measurement than the row's
        ({**of_runs(9.0, 9.9, "busy"), "version": 99}, "", "(1.000 ms). "),
    ],
)
def test_what_is_said_of_runs(runs: dict[str, Any], mark: str, said: str) -> None:
    view = run_view([runs])
    assert said in " ".join(report.sentences(view))
    assert view.cell_marks(0, LATENCY) == mark


def test_flags_are_told_without_a_budget_and_of_the_nearest() -> None:
    runs = [of_runs(1.2, 1.3, "bimodal")]
    sentence = f"Flags of its measurement on {DEVICE}: bimodal ({FLAGS['bimodal']}); median of its runs 1.200 ms"
    for bound in (None, 0.5):
        view = run_view(runs, bound)
        assert (view.recommended is None) is (bound is not None)
        assert sentence in " ".join(report.sentences(view))
        assert view.cell_marks(0, LATENCY) == "!"


def test_pictures_ring_what_is_flagged_and_tell_the_noise_floor() -> None:
    fine, flagged = of_runs(1.0, 1.1), of_runs(1.1, 1.2, "busy", value=1.1)
    floor = {DEVICE: {"noise_floor": 0.031, "calibrated": False}}
    for view, rings in (run_view([fine, flagged], measured=floor), [1.1]), (run_view([fine], measured=floor), []):
        (plot,) = (each for name, each in every_plot(view).items() if name == "front-0")
        drawn = [trace for trace in plot["data"] if trace["name"] == MARKED]
        assert [x for trace in drawn for x in trace["x"]] == rings
        points = [trace for trace in plot["data"] if trace["mode"] == "markers" and trace["name"] != MARKED]
        assert points
        assert all("error_x" in trace for trace in points)
        (axes,) = report.front_figure(view).axes
        assert (MARKED in axes.get_legend_handles_labels()[1]) is bool(rings)
        assert f"noise floor of {DEVICE}, 3.1% between sessions (assumed)" in " ".join(axes.get_title("left").split())
    hover = " ".join(next(t for t in plot["data"] if t["name"] == "recommended")["hovertext"])
    assert "median of its runs 1.000 ms" in hover


def test_sources_under_a_front_are_those_of_its_rows() -> None:
    state = run_view([of_runs(1.0, 1.1)] * 2).state
    rows = [row for e in state.archive for row in e.measurements]
    early = replace(rows[1], context=replace(rows[1].context, source=Source.PREDICTED), value=1.9, interval=(1.8, 2.1))
    state = replace(state, archive=()).tell([rows[0], early, *rows[2:]])
    view = view_of(state)
    assert view.front == (1,)  # the other one may be above the budget
    assert "predicted" not in text(report.front_table(view), width=400)
    assert view.all_sources[LATENCY].startswith("measured: ")
    assert view.all_sources[LATENCY].endswith("; others also: predicted")
    assert "others also: predicted" in "".join(Page(report.html(view)).visible)


def test_a_runner_up_that_is_less_sure_is_said_to_be() -> None:
    state = run_view([of_runs(1.0, 1.1)] * 2).state
    rows = [row for e in state.archive for row in e.measurements]
    for change, said in (
        ({"source": Source.PREDICTED}, "(latency predicted, not measured)"),
        ({"fidelity": "protocol quick"}, "(latency only with protocol quick)"),
        ({}, ""),
    ):
        second = replace(rows[1], context=replace(rows[1].context, **change))
        told = report.sentences(view_of(replace(state, archive=()).tell([rows[0], second, *rows[2:]])))
        (sentence,) = (each for each in told if each.startswith("Runner-up: "))
        assert sentence.endswith(f"{said}.")
        assert ("(latency" in sentence) is bool(said)


def test_what_was_paid_after_a_search_is_told_apart() -> None:
    state = search()
    paid = Ledger(error_queries=3, wall_s=1.0, final_measurements=4, final_wall_s=20.0, file_timings=2, file_wall_s=9.5)
    told = report.sentences(report.RunView.of(state, paid, SPACE, CONFIG))
    assert told[-1].endswith(
        "1.0 wall s; then 4 final measurements in 20.0 wall s and 2 timings of exported files in 9.5 wall s."
    )
    assert "then" not in report.sentences(view_of(state))[-1]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"networks_measured": 7}, "9 cost queries (7 networks measured), "),
        ({"networks_measured": 1, "networks_kept": 8}, "(1 network measured, 8 kept from earlier measurements), "),
        ({"networks_kept": 9}, "9 cost queries (0 networks measured, 9 kept from earlier measurements), "),
        ({"final_measurements": 1, "final_kept": 4}, "; then 1 final measurement (4 more kept from earlier ones) in "),
        ({"final_kept": 2}, "; then 0 final measurements (2 more kept from earlier ones) in 0.0 wall s."),
    ],
)
def test_what_was_measured_is_told_apart_from_what_was_kept(counts: dict[str, int], said: str) -> None:
    view = report.RunView.of(search(), Ledger(cost_queries=9, **counts), SPACE, CONFIG)
    assert said in report.sentences(view)[-1]
    assert report.to_json(view)["ledger"].items() >= counts.items()
    page = report.html(view)
    for name, count in counts.items():
        assert re.search(rf"<th[^>]*>{name.replace('_', ' ')}</th>\s*<td[^>]*>{count}</td>", page)


def test_every_flag_of_a_measurement_has_a_meaning_which_the_docs_give_as_well() -> None:
    busy = {"psi_avg10": 99.0, "throttle_reasons": "0x8"}
    interrupted = np.ones((9, 8))  # in each sample
    loaded = {"net": SimpleNamespace(warm={"steady": False}, own=interrupted)}
    session: Any = SimpleNamespace(before=busy, after={}, loaded=loaded)
    given = bench._flags(0.0, 1.0, 1.0, "net", [session])
    assert {*given, "cached"} == FLAGS.keys()
    docs = (Path(__file__).parents[1] / "docs" / "profiling.md").read_text(encoding="utf-8")
    for flag, meaning in FLAGS.items():
        assert f"| `{flag}` | {meaning} |" in docs
