"""Measured numbers in a search: what is measured, what is predicted, and that both say which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Constraint, Objective
from hwnas.core.state import SearchState
from hwnas.errors import RunCorrupt
from hwnas.evaluators.measured import MeasuredEvaluator, Screening, notes_topic
from hwnas.evaluators.meter import tally
from hwnas.finals import hopeful, measure_front, note_paid, stage, summarise, with_paid
from hwnas.measure import Measure
from hwnas.profiling.runs import LATENCY
from hwnas.spaces.codes import sample
from hwnas.stores.memory import MemoryStore
from hwnas.testing.evaluators import EvaluatorSuite
from hwnas.testing.toy import DATASET, DEVICE, ToySpace

SPACE = ToySpace()
WANTED = ((LATENCY, DEVICE),)
MEASURED = Context(Source.MEASURED, device=DEVICE, runtime="fake", dataset=DATASET, fidelity="default")


def truth(architecture: Architecture) -> float:
    return 1.0 + sum((2 * i + 1) * op for i, op in enumerate(architecture.code))


class Stopwatch:
    """A meter that knows the truth, and what it was asked."""

    def __init__(self, broken: Sequence[Architecture] = ()) -> None:
        self.asked: list[tuple[Architecture, bool]] = []
        self.broken = set(broken)
        self.closed = False

    def context(self, metric: str, *, final: bool = False) -> Context | None:
        del final
        return MEASURED if metric in (LATENCY, "cpu_time_ms") else None

    def why_not(self, metric: str) -> str:
        return f"a stopwatch knows no {metric}"

    def measure(
        self, architectures: Sequence[Architecture], *, final: bool = False
    ) -> Iterator[Mapping[str, Measurement]]:
        for architecture in architectures:
            self.asked.append((architecture, final))
            value = truth(architecture)
            yield {
                metric: Measurement.failed(architecture, metric, MEASURED, Status.CRASHED, "it broke")
                if architecture in self.broken
                else Measurement(architecture, metric, value, MEASURED, interval=(0.97 * value, 1.03 * value))
                for metric in (LATENCY, "cpu_time_ms")
            }

    def join(self, notes: Sequence[Mapping[str, Any]], note: Callable[[Mapping[str, Any]], None]) -> None:
        del notes, note

    def close(self) -> None:
        self.closed = True


class Oracle:
    """A predictor that is right, to within a width that can be set."""

    def __init__(self, width: float = 0.05) -> None:
        self.width = width
        self.fitted: list[int] = []

    def fit(self, architectures: Sequence[Architecture], latencies: np.ndarray, half_widths: np.ndarray) -> None:
        np.testing.assert_allclose(latencies, [truth(a) for a in architectures])
        np.testing.assert_allclose(half_widths, 0.03 * latencies)
        self.fitted.append(len(architectures))

    def interval(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value = np.array([truth(a) for a in architectures])
        return value, (1 - self.width) * value, (1 + self.width) * value


def drawn(n: int) -> list[Architecture]:
    return list(dict.fromkeys(sample(SPACE, 3 * n, rng=np.random.default_rng(1))))[:n]


class TestWithoutPredictor(EvaluatorSuite):
    wanted = (*WANTED, ("cpu_time_ms", DEVICE))

    def space(self) -> ToySpace:
        return SPACE

    def evaluator(self) -> MeasuredEvaluator:
        return MeasuredEvaluator(DEVICE, Stopwatch(drawn(3)[:1]))


def test_the_first_networks_are_measured_and_others_predicted() -> None:
    meter, oracle = Stopwatch(), Oracle()
    evaluator = MeasuredEvaluator(DEVICE, meter, predictor=oracle, screening=Screening(first=4, audit=0))
    first, later = drawn(10)[:4], drawn(10)[4:]
    assert {row.context.source for row in evaluator.evaluate(first, WANTED)} == {Source.MEASURED}
    rows = list(evaluator.evaluate(later, WANTED))
    assert {row.architecture for row in rows} == set(later)
    assert {row.context for row in rows} == {evaluator.contexts(*WANTED[0])[1]}
    assert all(row.context.source is Source.PREDICTED and row.interval is not None for row in rows)
    assert [architecture for architecture, _ in meter.asked] == first
    assert oracle.fitted == [4]


def test_what_cannot_be_predicted_well_enough_is_measured() -> None:
    meter = Stopwatch()
    evaluator = MeasuredEvaluator(DEVICE, meter, predictor=Oracle(width=0.2), screening=Screening(first=4))
    list(evaluator.evaluate(drawn(4), WANTED))
    assert {row.context.source for row in evaluator.evaluate(drawn(10)[4:], WANTED)} == {Source.MEASURED}


def test_a_prediction_that_leaves_the_budget_open_is_not_good_enough() -> None:
    candidates = drawn(10)[4:]
    budget = 1.01 * truth(candidates[0])
    settings = Screening(first=4, audit=0)
    evaluator = MeasuredEvaluator(DEVICE, Stopwatch(), predictor=Oracle(), screening=settings, budget=budget)
    list(evaluator.evaluate(drawn(4), WANTED))
    for row in evaluator.evaluate(candidates, WANTED):
        open_ = 0.95 * truth(row.architecture) <= budget < 1.05 * truth(row.architecture)
        assert (row.context.source is Source.MEASURED) == open_


def test_some_predictions_are_checked_by_a_measurement() -> None:
    meter = Stopwatch()
    evaluator = MeasuredEvaluator(DEVICE, meter, predictor=Oracle(), screening=Screening(first=4, audit=3))
    list(evaluator.evaluate(drawn(4), WANTED))
    rows = [row for a in drawn(13)[4:] for row in evaluator.evaluate([a], WANTED)]
    assert [row.context.source is Source.MEASURED for row in rows] == [False, False, True] * 3
    assert evaluator.audits == (3, 3)


def test_a_wrong_prediction_is_found_by_the_checks() -> None:
    class Liar(Oracle):
        def interval(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            value, low, high = super().interval(architectures)
            return 2 * value, 2 * low, 2 * high

    evaluator = MeasuredEvaluator(DEVICE, Stopwatch(), predictor=Liar(), screening=Screening(first=4, audit=1))
    list(evaluator.evaluate(drawn(4), WANTED))
    list(evaluator.evaluate(drawn(8)[4:], WANTED))
    assert evaluator.audits == (4, 0)


def test_other_metrics_are_never_predicted() -> None:
    evaluator = MeasuredEvaluator(DEVICE, Stopwatch(), predictor=Oracle(), screening=Screening(first=2))
    both = (*WANTED, ("cpu_time_ms", DEVICE))
    rows = [row for a in drawn(8) for row in evaluator.evaluate([a], both)]
    assert {row.context.source for row in rows} == {Source.MEASURED}


def test_failures_are_rows_and_teach_nothing() -> None:
    broken = drawn(4)[:2]
    oracle = Oracle()
    evaluator = MeasuredEvaluator(DEVICE, Stopwatch(broken), predictor=oracle, screening=Screening(first=3))
    rows = {row.architecture: row for row in evaluator.evaluate(drawn(4), WANTED)}
    assert [rows[a].status for a in drawn(4)] == [Status.CRASHED] * 2 + [Status.OK] * 2
    list(evaluator.evaluate(drawn(5)[4:], WANTED))  # two measured so far: nothing is predicted yet
    assert oracle.fitted == []


def test_a_continued_run_remembers() -> None:
    store = MemoryStore()
    before = MeasuredEvaluator(DEVICE, Stopwatch())
    before.join(store)
    store.append(list(before.evaluate(drawn(4), WANTED)))
    meter = Stopwatch()
    after = MeasuredEvaluator(DEVICE, meter, predictor=Oracle(), screening=Screening(first=4, audit=0))
    after.join(store)
    assert {row.context.source for row in after.evaluate(drawn(6)[4:], WANTED)} == {Source.PREDICTED}
    assert meter.asked == []


def test_an_interrupted_step_finds_predicted_rows_again() -> None:
    meter = Stopwatch()
    evaluator = MeasuredEvaluator(DEVICE, meter, predictor=Oracle(), screening=Screening(first=4, audit=0))
    store = MemoryStore()
    measure = Measure(store, tuple((wanted, evaluator) for wanted in WANTED))
    measure(drawn(4))
    rows, ledger = measure(drawn(6)[4:])
    again, _ = measure(drawn(6)[4:])
    assert again == rows
    assert [row.context.source for row in rows] == [Source.PREDICTED] * 2
    assert (ledger.cost_queries, ledger.predicted) == (0, 2)


@pytest.mark.parametrize("stored", range(9))
def test_a_search_that_ends_inside_a_step_decides_the_rest_of_it_as_it_would_have(stored: int) -> None:
    """Although more is known by then: what is predicted, and which predictions a measurement checks."""
    settings = Screening(first=4, audit=3)

    def made(store: MemoryStore) -> MeasuredEvaluator:
        evaluator = MeasuredEvaluator(DEVICE, Stopwatch(), predictor=Oracle(), screening=settings)
        evaluator.join(store)
        return evaluator

    def search(evaluator: MeasuredEvaluator, store: MemoryStore, upto: int | None = None) -> None:
        measure = Measure(store, tuple((wanted, evaluator) for wanted in WANTED))
        for begin in (0, 8, 16):
            if begin == 8 and upto is not None:
                for row in list(evaluator.evaluate(drawn(16)[8:], WANTED))[:upto]:
                    store.append([row])
                return
            measure(drawn(begin + 8)[begin:])

    whole, broken = MemoryStore(), MemoryStore()
    expected = made(whole)
    search(expected, whole)
    search(made(broken), broken, upto=stored)
    resumed = made(broken)
    search(resumed, broken)
    told = [{row.architecture: row for row in store.rows()} for store in (whole, broken)]
    assert told[0] == told[1]
    assert len(broken.rows()) == len(whole.rows())
    assert resumed.audits == expected.audits == (5, 5)


def test_notes_that_make_no_sense_are_damage() -> None:
    store = MemoryStore()
    store.note(f"measured@{DEVICE}", {"what": "screened", "predicted": 7})
    with pytest.raises(RunCorrupt, match="noted of device"):
        MeasuredEvaluator(DEVICE, Stopwatch()).join(store)


def test_final_measurements_go_to_the_careful_protocol() -> None:
    meter = Stopwatch()
    evaluator = MeasuredEvaluator(DEVICE, meter)
    rows = evaluator.finals(drawn(3), [LATENCY, "cpu_time_ms"])
    assert [(row.architecture, row.metric) for row in rows] == [
        (a, metric) for a in drawn(3) for metric in (LATENCY, "cpu_time_ms")
    ]
    assert all(final for _, final in meter.asked)
    evaluator.close()
    assert meter.closed


def test_what_a_device_cannot_tell_is_said() -> None:
    evaluator = MeasuredEvaluator(DEVICE, Stopwatch())
    assert evaluator.context("energy_mj", DEVICE) is None
    assert evaluator.why_not("energy_mj", DEVICE) == "a stopwatch knows no energy_mj"
    with pytest.raises(ValueError, match="a stopwatch knows no energy_mj"):
        list(evaluator.evaluate(drawn(1), [("energy_mj", DEVICE)]))


@pytest.mark.parametrize("wrong", [{"first": 1}, {"within": 0.0}, {"within": 1.0}, {"audit": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="are wanted; got"):
        Screening(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"), [(Source.PREDICTED, [0, 1]), (Source.MEASURED, [0, 1]), (Source.TABLE, [0])]
)
def test_what_may_be_on_the_front_by_its_interval_is_measured_again(source: Source, expected: list[int]) -> None:
    """The second is dominated, but not beyond doubt where its latency was predicted; the third is, beyond doubt."""
    objectives = (Objective("val_error_pct"), Objective(LATENCY, DEVICE))
    error = Context(Source.TABLE, dataset=DATASET)
    cost = replace(MEASURED, source=source)
    chosen = sample(SPACE, 3, rng=np.random.default_rng(0))
    rows = []
    for architecture, value in zip(chosen, (1.0, 1.05, 2.0), strict=True):
        rows.append(Measurement(architecture, "val_error_pct", 10.0, error))
        rows.append(Measurement(architecture, LATENCY, value, cost, interval=(0.9 * value, 1.1 * value)))
    state = SearchState("toy", objectives, queries=3).tell(rows)
    assert hopeful(state) == [chosen[i] for i in expected]


def test_what_a_machine_at_another_pace_leaves_open_is_measured_again() -> None:
    """Final figures say 1.0 ms; a figure of the search is 1.15 at its own pace, which may be 10 % off from that."""
    objectives = (Objective("val_error_pct"), Objective(LATENCY, DEVICE))
    error = Context(Source.TABLE, dataset=DATASET)
    final = replace(MEASURED, fidelity="final")
    chosen = sample(SPACE, 2, rng=np.random.default_rng(0))
    rows = [Measurement(architecture, "val_error_pct", 10.0, error) for architecture in chosen]
    rows.append(Measurement(chosen[0], LATENCY, 1.0, final, interval=(0.97, 1.03)))
    rows.append(Measurement(chosen[1], LATENCY, 1.15, MEASURED, interval=(1.1, 1.2)))
    budget = Constraint(LATENCY, 1.05, DEVICE)
    for constraints in ((), (budget,)):
        state = SearchState("toy", objectives, constraints=constraints, queries=2).tell(rows)
        assert hopeful(state) == chosen[:1]
        assert hopeful(state, lambda row: 0.1 if row.context == MEASURED else 0.0) == chosen


class Careful(Stopwatch):
    """Its final figures have a context of their own."""

    def context(self, metric: str, *, final: bool = False) -> Context | None:
        return replace(MEASURED, fidelity="final") if final and metric == LATENCY else super().context(metric)

    def measure(
        self, architectures: Sequence[Architecture], *, final: bool = False
    ) -> Iterator[Mapping[str, Measurement]]:
        for rows in super().measure(architectures, final=final):
            yield {LATENCY: replace(rows[LATENCY], context=self.context(LATENCY, final=final) or MEASURED)}

    def drift(self) -> float:
        return 0.0


class Remembering(Careful):
    """All its figures were kept from an earlier day."""

    def summary(self) -> dict[str, Any]:
        return {}

    def network(self, architecture: Architecture) -> str | None:
        del architecture
        return None

    def certificate(self, architecture: Architecture) -> dict[str, Any]:
        return {"flags": ["cached"], "sampling": {"started": f"2026-11-0{1 + architecture.code[0]}"}}


def test_kept_figures_are_counted_on_the_front_only() -> None:
    best, second, fast = (Architecture("toy", code) for code in ((1, 1, 0, 0), (0, 1, 1, 0), (0,) * 4))
    error = Context(Source.TABLE, dataset=DATASET)
    evaluator = MeasuredEvaluator(DEVICE, Remembering())
    rows = [Measurement(a, "val_error_pct", e, error) for a, e in ((best, 10.0), (second, 11.0), (fast, 12.0))]
    rows += list(evaluator.evaluate([best, second, fast], WANTED))
    objectives = (Objective("val_error_pct"), Objective(LATENCY, DEVICE))
    state = SearchState("toy", objectives, (Constraint(LATENCY, 20.0, DEVICE),), queries=3).tell(rows)
    assembly: Any = SimpleNamespace(measured=[evaluator], plan=[(WANTED[0], evaluator)], weights=None)
    found = summarise(assembly, state)
    assert len(found.certificates) == 3  # the runner-up's as well, which is on no front
    assert found.devices[DEVICE]["front"] == 2
    assert found.devices[DEVICE]["kept"] == ["2026-11-01", "2026-11-02"]


def test_the_runner_up_is_measured_with_care_where_it_is_on_no_front_as_well() -> None:
    best, second, fast, slow = (Architecture("toy", c) for c in ((1, 1, 0, 0), (0, 1, 1, 0), (0,) * 4, (2, 2, 2, 2)))
    error = Context(Source.TABLE, dataset=DATASET)
    meter = Careful()
    evaluator = MeasuredEvaluator(DEVICE, meter)
    rows = [Measurement(a, "val_error_pct", e, error) for a, e in ((best, 10.0), (second, 11.0), (fast, 12.0))]
    rows.append(Measurement(slow, "val_error_pct", 11.5, error))
    rows += list(evaluator.evaluate([best, second, fast, slow], WANTED))
    objectives = (Objective("val_error_pct"), Objective(LATENCY, DEVICE))
    state = SearchState("toy", objectives, (Constraint(LATENCY, 20.0, DEVICE),), queries=4).tell(rows)
    assert hopeful(state) == [best, fast]
    assembly: Any = SimpleNamespace(measured=[evaluator], plan=[(WANTED[0], evaluator)], weights=None)
    after, made = measure_front(assembly, MemoryStore(), state)
    careful = [e.architecture for e in after.archive if (row := e.find(*WANTED[0])) and row.context.fidelity == "final"]
    assert careful == [best, second, fast]
    assert made == 3
    assert [asked for asked in meter.asked if asked[1]] == [(best, True), (fast, True), (second, True)]


def batch(what: str, protocol: str, *names: str) -> dict[str, Any]:
    return {"what": what, "protocol": protocol, "records": [{"subject": {"id": name}} for name in names]}


class Slower(Careful):
    """What was the best takes twice as long when it is measured with care."""

    def measure(
        self, architectures: Sequence[Architecture], *, final: bool = False
    ) -> Iterator[Mapping[str, Measurement]]:
        for architecture, rows in zip(architectures, super().measure(architectures, final=final), strict=True):
            row = rows[LATENCY]
            if final and architecture.code == (1, 1, 0, 0):
                value = 2 * row.value
                row = replace(row, value=value, interval=(0.97 * value, 1.03 * value))
            yield {LATENCY: row}


def test_what_comes_to_the_front_only_when_others_were_measured_with_care_is_said_to_be_another_turn() -> None:
    codes = ((1, 1, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0), (0,) * 4)
    best, second, third, fast = (Architecture("toy", code) for code in codes)
    error = Context(Source.TABLE, dataset=DATASET)
    evaluator = MeasuredEvaluator(DEVICE, Slower())
    errors = ((best, 10.0), (second, 10.0), (third, 10.0), (fast, 12.0))
    rows = [Measurement(a, "val_error_pct", e, error) for a, e in errors]
    rows += list(evaluator.evaluate([best, second, third, fast], WANTED))
    objectives = (Objective("val_error_pct"), Objective(LATENCY, DEVICE))
    state = SearchState("toy", objectives, queries=4).tell(rows)
    assembly: Any = SimpleNamespace(measured=[evaluator], plan=[(WANTED[0], evaluator)], weights=None)
    store, turns = MemoryStore(), list[tuple[str, str]]()
    for _ in range(2):  # a session that continues such a run finds all of it there
        after, made = measure_front(assembly, store, state, lambda device, *turn: turns.append((device, stage(*turn))))
        assert made == 3
        assert [after.architectures[i] for i in after.front_indices] == [second, fast]
        assert turns == [
            (DEVICE, "final measurements"),
            (DEVICE, "final measurements, turn 2 (1 more network may be on the front)"),
        ]


def test_what_was_paid_after_a_search_adds_up_over_sessions() -> None:
    store = MemoryStore()
    assert with_paid(Ledger(wall_s=1.0), store, [DEVICE]) == Ledger(wall_s=1.0)
    for finals, files in ((30.0, 8.0), (0.5, 9.0)):  # continued after its end: nothing new, but the files once more
        note_paid(store, "finals", finals)
        note_paid(store, "files", files, 2)
    paid = Ledger(wall_s=1.0, final_wall_s=30.5, file_timings=4, file_wall_s=17.0)
    assert with_paid(Ledger(wall_s=1.0), store, [DEVICE]) == paid


@pytest.mark.parametrize("older", [False, True])
def test_networks_that_were_run_and_networks_that_were_kept_are_counted_apart(older: bool) -> None:
    store = MemoryStore()

    def asked(protocol: str, final: bool, **networks: str) -> dict[str, Any]:
        said = {} if older else {"final": final}
        return {"what": "asked", "protocol": protocol, "networks": networks, **said}

    notes: list[dict[str, Any]] = [
        {"what": "device", "sigma": None, "config": {}},
        {"what": "screened", "measured": [], "predicted": {}, "checked": {}},
        asked("default", False, a="A", twin="A", b="B", c="C"),
        batch("batch", "default"),  # the references alone
        batch("kept", "default", "B"),
        batch("batch", "default", "A", "C"),
        asked("default", False, again="A", b2="B", d="D"),
        batch("kept", "default", "A", "B", "D"),  # A was measured here, B was kept before
        asked("final", True, a="A", b="B"),
        batch("batch", "final", "A"),
        batch("kept", "final", "B"),
        batch("batch", "final", "exported/1", "exported/2"),
    ]
    for note in notes:
        store.note(notes_topic(DEVICE), note)
        store.note(notes_topic("another"), note)
    found = with_paid(Ledger(cost_queries=7), store, [DEVICE])
    counts = {"networks_measured": 2, "networks_kept": 2, "final_measurements": 1, "final_kept": 1}
    assert found == Ledger(cost_queries=7, **counts)
    assert with_paid(found, store, [DEVICE]) == found
    assert with_paid(found, store, [DEVICE, "another"]).networks_measured == 4


def test_a_search_with_the_protocol_final_is_no_final_measurement() -> None:
    told = [
        {"what": "asked", "protocol": "final", "final": False, "networks": {"a": "A"}},
        batch("batch", "final", "A"),
        {"what": "asked", "protocol": "final", "final": True, "networks": {"b": "B"}},
        batch("batch", "final", "B"),
    ]
    assert tally(told) == Ledger(networks_measured=1, final_measurements=1)
