"""Searches that stop by themselves: what is expected, against closed forms and the truth; the rule; continuation."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from commands import cli

import hwnas
from hwnas import api, registry, report
from hwnas.core import pareto
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import Store
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook, StopRule
from hwnas.core.wording import percent
from hwnas.errors import InvalidSetting, UnknownName
from hwnas.generators.acquisition import expected_excess, expected_hypervolume_improvement
from hwnas.generators.agnet import AgNet, Settings
from hwnas.generators.foresight import NEXT_DRAWS, Prospect, foresee
from hwnas.loop import Search
from hwnas.measure import Measure
from hwnas.predictors.compression import Compression
from hwnas.predictors.encoding import Encoder
from hwnas.predictors.gp import GaussianProcess, Posterior
from hwnas.spaces.codes import every, sample
from hwnas.spaces.nb201 import NasBench201
from hwnas.stores.memory import MemoryStore
from hwnas.stores.sqlite import SqliteStore
from hwnas.testing.toy import DEVICE, PHONE, ToyEvaluator, ToySpace

QUICK = Settings(generator=False, generated=60, uniform=40)
RULE = StopRule(threshold=0.01, patience=2, least=16)
BOTH = (Objective("val_error_pct"), Objective("latency_ms", DEVICE))
WANTED = (("val_error_pct", None), ("latency_ms", DEVICE), ("latency_ms", PHONE))
IDENTITY = Compression(np.inf, 1.0)


class Normals:
    """Predictions that do not depend on each other."""

    def __init__(self, mean: Any, std: Any, success: Any = 1.0) -> None:
        self.mean, self.std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
        self.success = np.full(len(self.mean), success)

    def draw(self, rows: Any, n: int, *, rng: np.random.Generator) -> Any:
        return self.mean[rows] + self.std[rows] * rng.standard_normal((n, *self.mean[rows].shape))

    def outlook(self, front: Any, reference: Any, floors: Any = 0.0, seed: int = 0, **more: Any) -> Outlook | None:
        point = np.asarray(reference, dtype=float)
        shown = more.get("shown", (IDENTITY,) * self.mean.shape[1])
        prospect = Prospect(np.asarray(front), point, more.get("bounds", ()), shown, np.zeros(len(point)) + floors)
        return foresee(prospect, cast(Posterior, self), rng=np.random.default_rng(seed))


def expect(normals: Normals, front: Any, reference: Any, **more: Any) -> Outlook:
    found = normals.outlook(front, reference, **more)
    assert found is not None
    return found


class TestForesight:
    def test_the_gain_is_expected_improvement(self) -> None:
        normals = Normals([[4.5]], [[1.0]])
        exact = expected_excess(4.0, np.array([4.5]), np.array([1.0]))[0] / 6.0  # best 4, reference 10
        told = expect(normals, [[4.0], [7.0]], [10.0])
        assert told.gain == pytest.approx(exact, abs=4 * 0.35 / 6 / NEXT_DRAWS**0.5)  # 0.35: of max(4 - y, 0)

    def test_the_gain_is_expected_hypervolume_improvement_of_the_best(self) -> None:
        front, reference = np.array([[0.2, 0.6], [0.6, 0.3]]), np.array([0.9, 0.9])
        rng = np.random.default_rng(3)
        mean, std = 0.3 + 0.5 * rng.random((6, 2)), np.full((6, 2), 0.1)
        gains = expected_hypervolume_improvement(front, reference, mean, std)
        best = np.argsort(-gains)  # the next query comes first
        told = [expect(Normals(mean[best], std), front, reference, seed=seed).gain for seed in range(8)]
        exact = gains.max() / pareto.hypervolume(front, reference)
        assert np.mean(told) == pytest.approx(exact, abs=4 * np.std(told) / 8**0.5)

    def test_what_is_certain_is_told_exactly(self) -> None:
        told = expect(Normals([[0.5, 0.25], [0.25, 0.5], [0.7, 0.7]], np.full((3, 2), 1e-9)), [[0.5, 0.5]], [1.0, 1.0])
        assert told.gain == pytest.approx(0.5)  # 0.25 becomes 0.375
        assert told.missed == pytest.approx(0.5)  # and 0.5 with both
        assert (told.low, told.high) == pytest.approx((0.5, 0.5))

    def test_success_and_budgets_count_as_chances(self) -> None:
        likely = expect(Normals([[1.0]], [[1e-9]], success=0.5), [[2.0]], [3.0])
        assert likely.gain == pytest.approx(0.5, abs=4 * 0.5 / NEXT_DRAWS**0.5)
        # the second column has a budget and is no objective: it is kept with the same chance
        bounded = expect(Normals([[1.0, 5.0]], [[1e-9, 1.0]]), [[2.0]], [3.0], bounds=((1, 5.0),))
        assert bounded.gain == pytest.approx(0.5, abs=4 * 0.5 / NEXT_DRAWS**0.5)

    def test_what_the_noise_hides_is_no_gain(self) -> None:
        normals = Normals([[1.9]], [[1e-9]])
        assert expect(normals, [[2.0]], [3.0]).gain == pytest.approx(0.1)
        assert expect(normals, [[2.0]], [3.0], floors=0.15) == Outlook(0.0, 0.0, 0.0, 0.0, (3.0,))

    def test_it_speaks_of_losses_in_their_own_units(self) -> None:
        show = Compression(1.0, 0.5)
        plain = np.array([0.2, 0.9, 3.0, np.nan])
        assert show.inverse(show(plain)) == pytest.approx(plain, nan_ok=True)
        told = expect(Normals([[0.5]], [[1e-9]]), show(np.array([[1.5]])), show(np.array([3.0])), shown=(show,))
        assert told.gain == pytest.approx(1.0 / 1.5)

    def test_a_front_beyond_the_reference_tells_nothing(self) -> None:
        assert Normals([[0.5]], [[0.1]]).outlook([[2.0]], [1.0]) is None

    def test_draws_are_those_of_the_process(self) -> None:
        space, rng = NasBench201(), np.random.default_rng(0)
        known, pool = sample(space, 30, rng=rng), sample(space, 12, rng=rng)
        process = GaussianProcess(Encoder(space))
        process.fit(known, np.array([[sum(a.code), a.code[0]] for a in known], dtype=float), rng=rng)
        posterior = process.posterior(pool)
        rows = np.array([7, 2, 9])
        draws = posterior.draw(rows, 20_000, rng=rng)
        assert draws.shape == (20_000, 3, 2)
        mean, std = posterior.mean[rows], posterior.std[rows]
        assert (np.abs(draws.mean(axis=0) - mean) < 5 * std / 20_000**0.5).all()
        assert draws.std(axis=0) == pytest.approx(std, rel=0.03)
        for j in range(2):
            covariance = np.cov(draws[:, :, j].T)
            left = posterior.variance[rows, j] - covariance[:, 0] ** 2 / covariance[0, 0]
            believed = process.posterior(pool)
            believed.believe(7)
            noise = process.heads[j].noise
            assert believed.variance[rows[1:], j] == pytest.approx(np.maximum(left[1:], noise), rel=0.05)


class TestRule:
    @pytest.mark.parametrize(
        ("gains", "evaluations", "met"),
        [
            ([0.5, 0.001, 0.001], 50, True),
            ([0.001, 0.001], 15, False),  # too early
            ([0.001], 50, False),  # not often enough
            ([0.001, 0.5, 0.001], 50, False),  # not in a row
            ([0.001, 0.01], 50, False),  # not below
            ([0.001, None, 0.001], 50, False),  # nothing feasible between
            ([], 50, False),
        ],
    )
    def test_it_wants_small_gains_in_a_row(self, gains: list[float | None], evaluations: int, met: bool) -> None:
        outlooks = [None if gain is None else Outlook(gain, 0.1, 0.0, 0.2) for gain in gains]
        assert RULE.met(outlooks, evaluations) is met

    def test_a_state_says_why_it_stopped(self) -> None:
        state = SearchState("toy", BOTH, queries=60)
        assert state.stopped(RULE).reason is None
        ended, _ = searched(rule=RULE)
        told = ended.stopped(RULE)
        assert (told.reason, told.evaluations, told.outlook) == ("converged", len(ended.archive), ended.outlooks[-1])
        assert ended.stopped(None).reason is None  # somebody who would not have stopped there
        assert replace(ended, queries=len(ended.archive)).stopped(RULE).reason == "queries"


def searched(
    rule: StopRule | None = None,
    seed: int = 0,
    store: Store | None = None,
    until: int | None = None,
    objectives: tuple[Objective, ...] = BOTH,
    budgets: tuple[Constraint, ...] = (),
    queries: int = 60,
) -> tuple[SearchState, Store]:
    """A search of the toy space, or the rest of one that `store` holds; `until` kills it after so many steps."""
    store = MemoryStore() if store is None else store
    evaluator = ToyEvaluator()
    asked = dict.fromkeys([*((o.metric, o.device) for o in objectives), *((c.metric, c.device) for c in budgets)])
    search = Search(
        ToySpace(), AgNet(ToySpace(), QUICK), Measure(store, tuple((w, evaluator) for w in asked)), None, rule
    )

    def kill(state: SearchState, ledger: Ledger) -> None:
        if state.step == until:
            raise KeyboardInterrupt

    state, ledger = search.resume(SearchState("toy", objectives, budgets, queries, seed))
    return search.run(state, ledger=ledger, on_step=kill), store


def gap(state: SearchState) -> float:
    """Share of the hypervolume that the toy's front has and the state has not; the reference lies behind the front."""
    _, front = ToyEvaluator().front([(o.metric, o.device) for o in state.objectives])
    reference = front.max(axis=0) + 0.1 * (front.max(axis=0) - front.min(axis=0) + 1e-9)
    return 1 - pareto.hypervolume(state.losses, reference) / pareto.hypervolume(front, reference)


class TestSearch:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_it_stops_where_the_same_search_would_have_gone_on(self, seed: int) -> None:
        stopped, _ = searched(RULE, seed)
        whole, _ = searched(None, seed)
        assert RULE.least <= len(stopped.archive) < 60 == len(whole.archive)
        # asking changes nothing about the search
        assert stopped.archive == whole.archive[: len(stopped.archive)]
        assert set(whole.outlooks[:-1]) == {None}
        assert whole.outlooks[-1] is not None  # a reader wants to know what was missed
        assert gap(stopped) < 0.05

    def test_killed_anywhere_and_resumed_it_stops_at_the_same_step(self, tmp_path: Path) -> None:
        whole, _ = searched(RULE)
        for cut in (1, 3, whole.step - 1, whole.step):
            store = SqliteStore.create(tmp_path / f"{cut}.sqlite")
            with pytest.raises(KeyboardInterrupt):
                searched(RULE, store=store, until=cut)
            store.close()
            store = SqliteStore.open(tmp_path / f"{cut}.sqlite")
            resumed, _ = searched(RULE, store=store)
            assert resumed == whole
            assert store.outlooks() == whole.outlooks
            store.close()

    def test_a_converged_search_can_go_on(self) -> None:
        stopped, store = searched(RULE)
        again, _ = searched(RULE, store=store)
        assert again == stopped
        further, _ = searched(replace(RULE, threshold=1e-9), store=store)
        assert len(further.archive) == 60
        assert further.archive == searched(None)[0].archive

    def test_without_anything_feasible_it_does_not_converge(self) -> None:
        impossible = (Constraint("latency_ms", 0.1, DEVICE),)
        state, _ = searched(RULE, budgets=impossible, queries=40)
        assert len(state.archive) == 40
        assert set(state.outlooks) == {None}

    @pytest.mark.parametrize(
        ("objectives", "budgets"),
        [
            (BOTH[:1], ()),
            (BOTH[:1], (Constraint("latency_ms", 3.0, DEVICE),)),
            (BOTH, (Constraint("latency_ms", 3.0, DEVICE),)),
            ((*BOTH, Objective("energy_mj", DEVICE)), ()),
        ],
    )
    def test_one_objective_budgets_and_several(self, objectives: Any, budgets: Any) -> None:
        state, _ = searched(RULE, objectives=objectives, budgets=budgets)
        assert len(state.archive) < 60
        assert state.stopped(RULE).reason == "converged"
        if len(objectives) < 3:  # of three, the best error lies beyond the medians of the others
            best = min(ToyEvaluator().truth(a, "val_error_pct") for a in every_feasible(budgets))
            assert state.losses[state.violations == 0, 0].min() == pytest.approx(best)

    def test_nothing_is_left_of_an_exhausted_space(self) -> None:
        state, _ = searched(StopRule(threshold=1e-12, least=81), queries=200)
        assert len(state.archive) == 81
        assert state.outlooks[-1] is None

    def test_on_a_device_gains_inside_the_noise_do_not_count(self) -> None:
        exact, noisy = (expected_after_24(half) for half in (0.0, 0.15))
        assert 0 < noisy.missed < exact.missed
        assert noisy.gain < exact.gain
        assert expected_after_24(10.0).missed == 0.0


def every_feasible(budgets: Any) -> list[Any]:
    truth = ToyEvaluator().truth
    return [a for a in every(ToySpace()) if all(truth(a, c.metric) <= c.bound for c in budgets)]


def expected_after_24(half: float) -> Outlook:
    """What is expected after 24 evaluations whose latencies have an interval of so many ms on both sides."""
    toy, rows = ToyEvaluator(), []
    for architecture in dict.fromkeys(sample(ToySpace(), 200, rng=np.random.default_rng(1))):
        latency = toy.truth(architecture, "latency_ms")
        if latency == latency and len(rows) < 2 * 24:
            interval = (latency - half, latency + half) if half else None
            error = toy.truth(architecture, "val_error_pct")
            rows.append(Measurement(architecture, "val_error_pct", error, Context(Source.TABLE)))
            where = Context(Source.MEASURED, device=DEVICE)
            rows.append(Measurement(architecture, "latency_ms", latency, where, interval=interval))
    state = SearchState("toy", BOTH).tell(rows)
    generator = AgNet(ToySpace(), replace(QUICK, reference=0.9))
    generator.update(state, rng=state.rng("update"))
    told = generator.outlook(state, rng=state.rng("outlook"))
    assert told is not None
    return told


def test_a_run_made_before_there_were_outlooks_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "hwnas.sqlite"
    store = SqliteStore.create(path)
    with pytest.raises(KeyboardInterrupt):
        searched(None, store=store, until=3)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE outlooks")
        connection.commit()
    reader = SqliteStore.read(path)
    assert reader.outlooks() == (None,) * 3
    reader.close()
    store = SqliteStore.open(path)
    state, _ = searched(RULE, store=store)
    assert store.outlooks() == state.outlooks
    assert state.outlooks[:3] == (None,) * 3
    assert state.stopped(RULE).reason == "converged"
    store.close()


# -- from the outside --------------------------------------------------------------------------------------------------

SMALL = {"generator": False, "uniform": 60, "neighbours": 100, "iterations": 2}
ASKED: dict[str, Any] = {"device": "edgegpu", "source": "surrogate", "queries": 80, "generator_settings": SMALL}
LOOSE = {"stop_when": "converged", "stop_threshold": "3%"}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def test_a_converged_run_says_so_everywhere_and_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {**ASKED, **LOOSE, "devices": [ASKED["device"]]}
    del asked["device"]
    result = api.open_run(asked, out=tmp_path / "run").finish(models="none")
    told, n = result.stopped, len(result.archive)
    assert (told.reason, told.evaluations, told.queries, told.threshold) == ("converged", n, 80, 0.03)
    assert n < 80
    assert told.outlook is not None
    assert told.outlook.gain < 0.03
    assert told.outlook.low <= told.outlook.missed <= told.outlook.high
    assert hwnas.load("run").stopped == told
    saved = json.loads((tmp_path / "run" / "front.json").read_text())
    assert saved["finished"] is True
    corner = list(told.outlook.reference)
    assert saved["stopped"]["expected"] == {**told.outlook.to_json(), "reference": corner, "source": "predicted"}
    words = f"Converged, stopped after {n} of 80 evaluations: the next query is expected to add"
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        f"of the reachable hypervolume, up to validation error {corner[0]:.2f} % and latency {corner[1]:.3f} ms" in page
    )
    assert words in (tmp_path / "run" / "report.html").read_text()
    assert "--stop-when converged --stop-threshold 3%" in result.command

    assert cli("search", "--resume", "run", "--models", "none") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert words in out
    assert "go on: hwnas search --resume run --stop-when never" in out
    assert len(hwnas.load("run").archive) == n

    assert cli("search", "--resume", "run", "--stop-when", "never", "--json", "--models", "none") == 0
    gone_on = json.loads(capsys.readouterr().out)
    assert gone_on["stopped"]["reason"] == "queries"
    whole = hwnas.search(**ASKED)
    assert whole.stopped.outlook is not None
    assert gone_on["stopped"]["expected"]["missed"] == whole.stopped.outlook.missed
    assert "All 80 evaluations are spent: the next query is expected to add" in " ".join(report.sentences(whole.view))
    assert [found.architecture for found in hwnas.load("run").archive] == [f.architecture for f in whole.archive]


def test_when_to_stop_can_be_said_later_and_holds_from_then_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Killed(BaseException):
        pass

    def kill(state: SearchState, ledger: Ledger) -> None:
        if len(state.archive) == 24:
            raise Killed

    asked = {**ASKED, "devices": [ASKED["device"]]}
    del asked["device"]
    with pytest.raises(Killed):
        api.open_run(asked, out=Path("run")).finish(on_step=kill, models="none")
    again = ("search", "--resume", "run", "--models", "none", "-q")
    assert cli(*again, "--stop-when", "converged", "--stop-threshold", "3%") == 0
    stopped = hwnas.load("run")
    assert (stopped.stopped.reason, stopped.stopped.threshold) == ("converged", 0.03)
    assert "--stop-when converged --stop-threshold 3%" in stopped.command
    n = len(stopped.archive)
    assert n < 80
    assert cli(*again) == 0  # needs not be told again
    assert len(hwnas.load("run").archive) == n
    assert "note: " not in capsys.readouterr().err

    assert cli(*again, "--stop-when", "never") == 0
    assert len(hwnas.load("run").archive) == 80
    assert "stop-when" not in hwnas.load("run").command
    for said in (("--stop-when", "converged"), ("--stop-when", "never")):
        assert cli(*again, *said) == 0
        assert "all 80 evaluations are paid: --stop-when has nothing to decide" in capsys.readouterr().err
        assert hwnas.load("run").stopped.reason == "queries"
        assert "stop-when" not in json.loads(Path("run/front.json").read_text())["command"]


def test_outlooks_of_before_name_no_device_and_no_reference_point() -> None:
    """As they were saved when several fronts had one outlook together."""
    told = Outlook.from_json({"gain": 0.001, "missed": 0.04, "low": 0.01, "high": 0.09})
    objectives = (*BOTH, Objective("latency_ms", PHONE))
    rows = list(ToyEvaluator().evaluate(sample(ToySpace(), 20, rng=np.random.default_rng(0)), WANTED))
    state = SearchState("toy", objectives, (), 40, 0, front_devices=(DEVICE, PHONE)).tell(rows).expect(told)
    view = report.RunView.of(state, Ledger(), ToySpace(), {}, rule=RULE)
    assert view.expected == told
    assert [own.expected for own in view.devices.values()] == [None, None]
    (words,) = report.ending(view)
    assert "of hypervolume of one of the devices; 4.0 % of the reachable hypervolume, up to its own reference" in words
    found = report.to_json(view)
    assert found["stopped"]["expected"] == {**told.to_json(), "source": "predicted"}
    assert found["fronts"][DEVICE]["expected"] is None


def test_each_device_tells_its_own_outlook_and_the_search_why_it_ended() -> None:
    state = replace(several(RULE), queries=60)
    view = report.RunView.of(state, Ledger(), ToySpace(), {}, rule=RULE)
    assert view.stopped.reason == "converged"
    saved = state.outlooks[-1]
    assert saved is not None
    assert saved.most < RULE.threshold
    assert report.ending(view) == [
        f"Converged, stopped after {view.n} of 60 evaluations: on no device is the next query expected to add as much "
        "as 1.0 % of hypervolume."
    ]
    assert "Converged" not in " ".join(report.sentences(view))
    found = report.to_json(view)
    for device, own in view.devices.items():
        expected = saved.fronts[device]
        assert expected is not None
        assert own.stopped.reason == "converged"
        (words,) = [told for told in report.sentences(own) if "expected to add" in told]
        error, latency = expected.reference
        assert f"{percent(expected.missed)} of the reachable hypervolume" in words
        assert f"up to validation error {error:.2f} % and latency {latency:.3f} ms, is expected to be missed" in words
        assert found["fronts"][device]["expected"]["gain"] == expected.gain
    assert found["stopped"]["expected"]["device"] == saved.device


def several(rule: StopRule) -> SearchState:
    """A search of the toy space with two fronts."""
    evaluator = ToyEvaluator()
    plan = Measure(MemoryStore(), tuple((wanted, evaluator) for wanted in WANTED))
    objectives = (*BOTH, Objective("latency_ms", PHONE))
    start = SearchState("toy", objectives, (), 80, 0, front_devices=(DEVICE, PHONE))
    return Search(ToySpace(), AgNet(ToySpace(), QUICK), plan, None, rule).run(start)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"generator": "nsga2"}, InvalidSetting, "'nsga2' cannot tell.*one that can: agnet$"),
        ({"generator": "random"}, InvalidSetting, "'random' cannot tell"),
        ({"generator_settings": {"surrogate": False}}, InvalidSetting, "'agnet' with these settings cannot tell"),
        ({"stop_threshold": "0.1"}, InvalidSetting, r"percentage.*'0\.1'"),
        ({"stop_threshold": 0}, InvalidSetting, "percentage.*got 0"),
        ({"stop_threshold": "100 %"}, InvalidSetting, "percentage"),
        ({"stop_when": "bored"}, UnknownName, "bored"),
        ({"stop_when": "never", "stop_threshold": "1%"}, InvalidSetting, "both or neither"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    given: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    asked = {"devices": ["edgegpu"], "source": "surrogate", "stop_when": "converged", **given}
    with pytest.raises(error, match=words):
        api.open_run(asked, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_does_not_take_a_rule_that_its_generator_knows_nothing_of() -> None:
    with pytest.raises(ValueError, match="random cannot tell"):
        Search(ToySpace(), registry.generator("random", ToySpace()), Measure(MemoryStore(), ()), None, RULE)


def test_progress_tells_the_next_query_and_the_most_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hwnas import progress

    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.0)
    said = StringIO()
    console = Console(file=said, width=200)
    with progress.Progress(console, shown=True) as shown:
        shown.start(SearchState("toy", BOTH, queries=60), None, RULE)
        state, _ = searched(RULE)
        shown.step(state, Ledger())
    assert state.outlooks[-1] is not None
    assert "next query +" in said.getvalue()

    with progress.Progress(console, shown=True) as shown:
        shown.start(SearchState("toy", BOTH, queries=80), None, RULE)
        state = several(RULE)
        shown.step(state, Ledger())
    last = said.getvalue().splitlines()[-1]
    for device, goal in state.by_device.items():
        told = goal.outlooks[-1]
        assert told is not None
        assert (
            f", front {len(goal.front_indices)}, next query +{percent(told.gain)}" in last.partition(f"{device}: ")[2]
        )
