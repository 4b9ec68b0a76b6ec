"""Core types: facts and their JSON, objectives and budgets, the search state, graphs, random streams."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core import metrics, pareto, target
from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status, joint_half
from hwnas.core.objective import Constraint, Objective
from hwnas.core.state import SearchState
from hwnas.core.wording import provenance, provenances
from hwnas.core.workload import Workload
from hwnas.errors import InvalidArchitecture, InvalidBudget, UnknownName
from hwnas.seeding import stable_hash, stream, torch_generator, torch_seeded

few = settings(max_examples=50, deadline=None)
COUNTED = Context(Source.MEASURED, runtime="count")
ON_GPU = Context(Source.TABLE, device="edgegpu", dataset="cifar10")
ERROR = Context(Source.TABLE, dataset="cifar10", split="val")


def arch(*code: int) -> Architecture:
    return Architecture("toy", code)


# -- architectures and facts ---------------------------------------------------------------------------------------

architectures = st.builds(
    Architecture, st.sampled_from(["nb201", "toy"]), st.lists(st.integers(0, 99), min_size=1).map(tuple)
)
words = st.none() | st.text(min_size=1, max_size=5)
contexts = st.builds(
    Context,
    st.sampled_from(Source),
    device=words,
    batch=st.none() | st.integers(1, 64),
    split=words,
    versions=st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=2).map(tuple),
)


@few
@given(architectures)
def test_keys_round_trip(architecture: Architecture) -> None:
    assert Architecture.from_key(architecture.key) == architecture


@pytest.mark.parametrize(
    "key", ["", "nb201", "nb201:", ":1.2", "nb201:1..2", "nb201:-1", "nb201:1.a", "nb201:²", "a:b:1"]
)
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(InvalidArchitecture, match="key reads"):
        Architecture.from_key(key)


@few
@given(
    architectures,
    contexts,
    st.floats(-1e9, 1e9),
    st.none() | st.floats(0, 10),
    st.none() | st.floats(0, 10),
    st.sampled_from(Status),
)
def test_measurements_survive_json(
    architecture: Architecture,
    context: Context,
    value: float,
    width: float | None,
    own_half: float | None,
    status: Status,
) -> None:
    if status.has_value:
        interval, own_half = (None, None) if width is None else ((value - width, value + width), own_half)
        row = Measurement(architecture, "latency_ms", value, context, status, interval, "why", own_half)
    else:
        row = Measurement.failed(architecture, "latency_ms", context, status, "why")
    back = Measurement.from_json(json.loads(json.dumps(row.to_json(), allow_nan=False)))
    assert back.context == row.context
    assert hash(back.context) == hash(row.context)
    assert repr(back) == repr(row)  # nan equals nan here


def test_a_measurement_is_a_value_or_a_failure_never_both() -> None:
    with pytest.raises(ValueError, match="wants a number"):
        Measurement(arch(1), "latency_ms", math.nan, ON_GPU)
    with pytest.raises(ValueError, match="wants a number"):
        Measurement(arch(1), "latency_ms", math.inf, ON_GPU, Status.NOISY)
    with pytest.raises(ValueError, match="wants nan"):
        Measurement(arch(1), "latency_ms", 1000.0, ON_GPU, Status.TIMEOUT)
    with pytest.raises(ValueError, match="outside its interval"):
        Measurement(arch(1), "latency_ms", 3.0, ON_GPU, interval=(1.0, 2.0))


def test_half_width() -> None:
    shared = Measurement(arch(1), "latency_ms", 3.0, ON_GPU, interval=(2.0, 5.0), own_half=0.2)
    assert (shared.half_width, shared.resolution) == (1.5, 0.2)
    assert replace(shared, own_half=None).resolution == 1.5
    with pytest.raises(ValueError, match="own_half"):
        Measurement(arch(1), "latency_ms", 3.0, ON_GPU, own_half=0.2)
    assert Measurement(arch(1), "latency_ms", 3.0, ON_GPU, interval=(2.0, 5.0)).half_width == 1.5
    assert Measurement(arch(1), "latency_ms", 3.0, ON_GPU).half_width == 0.0


def test_an_unknown_context_field_is_named() -> None:
    with pytest.raises(ValueError, match="devise"):
        Context.from_json({"source": "table", "devise": "edgegpu"})


def test_ledgers_add_up_and_survive_json() -> None:
    one, two = Ledger(evaluations=2, cpu_s=0.5), Ledger(evaluations=3, failures=1, cpu_s=1.0)
    total = one.plus(two)
    assert (total.evaluations, total.failures, total.cpu_s) == (5, 1, 1.5)
    assert one.plus(Ledger()) == one
    assert Ledger.from_json(json.loads(json.dumps(total.to_json()))) == total


def test_a_workload_exports_at_most_once() -> None:
    calls: list[int] = []

    def export() -> bytes:
        calls.append(1)
        return b""

    workload = Workload(arch(1), (1, 3, 32, 32), "fp32", export)
    assert not calls
    assert workload.onnx() == workload.onnx() == b""
    assert len(calls) == 1


# -- objectives and budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("5", "latency_ms", 5.0),
        ("5ms", "latency_ms", 5.0),
        (" 5 ms ", "latency_ms", 5.0),
        ("800us", "latency_ms", 0.8),
        ("800µs", "latency_ms", 0.8),
        ("800μs", "latency_ms", 0.8),  # Greek mu: what keyboards give; the line above has the micro sign
        ("0.005s", "latency_ms", 5.0),
        ("20 mJ", "energy_mj", 20.0),
        ("1e-2J", "energy_mj", 10.0),
        ("1M", "params_m", 1.0),
        ("500k", "params_m", 0.5),
        ("1.5G", "macs_m", 1500.0),
        ("2MiB", "peak_memory_mib", 2.0),
        ("2097152B", "peak_memory_mib", 2.0),
        ("10%", "val_error_pct", 10.0),
        (".5", "latency_ms", 0.5),
    ],
)
def test_budgets_are_read(text: str, metric: str, value: float) -> None:
    assert metrics.parse_quantity(text, metric) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("", "latency_ms"),
        ("ms", "latency_ms"),
        ("five", "latency_ms"),
        ("-5", "latency_ms"),
        ("0ms", "latency_ms"),
        ("nan", "latency_ms"),
        ("inf", "latency_ms"),
        ("1e999", "latency_ms"),
        ("1e-999", "latency_ms"),
        ("5mJ", "latency_ms"),
        ("5 m s", "latency_ms"),
        ("5,5ms", "latency_ms"),
        ("1", "params_m"),
        ("1000000", "macs_m"),
        ("64", "peak_memory_mib"),
        ("5ms", "energy_mj"),
    ],
)
def test_bad_budgets_say_what_is_wanted(text: str, metric: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        metrics.parse_quantity(text, metric)
    message = str(caught.value)
    assert repr(text) in message
    assert all(unit in message for unit in metrics.metric(metric).units)


@few
@given(st.floats(1e-6, 1e6), st.sampled_from(sorted(metrics.METRICS)), st.data())
def test_every_unit_scales_by_its_factor(number: float, name: str, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(metrics.METRICS[name].units)))
    expected = number * metrics.METRICS[name].units[unit]
    assert metrics.parse_quantity(f"{number!r}{unit}", name) == pytest.approx(expected)


def test_names_of_metrics() -> None:
    assert metrics.candidates("error") == ("val_error_pct", "test_error_pct")
    assert metrics.candidates("energy_mj") == ("energy_mj",)
    with pytest.raises(UnknownName, match="latency"):
        metrics.candidates("latencyy")
    with pytest.raises(UnknownName, match="latency_ms"):
        metrics.metric("latency_m")


def test_a_budget_is_told_with_what_is_left_of_it() -> None:
    assert str(Constraint("latency_ms", 4.2134, "edgegpu")) == "latency on edgegpu <= 4.213 ms"
    assert str(Constraint("latency_ms", 0.0004, "edgegpu")) == "latency on edgegpu <= 0.00040 ms"


@few
@given(st.floats(-1e6, 1e6), st.sampled_from(["min", "max"]))
def test_losses_are_minimised(value: float, goal: metrics.Goal) -> None:
    objective = Objective("val_error_pct", goal=goal)
    assert objective.value(objective.loss(value)) == value
    better = value - 1 if goal == "min" else value + 1
    assert objective.loss(better) < objective.loss(value)


def test_objectives_know_which_metrics_belong_to_a_device() -> None:
    assert Objective("latency_ms", "edgegpu").name == "latency_ms@edgegpu"
    assert Objective("params_m").name == "params_m"
    with pytest.raises(ValueError, match="name one"):
        Objective("latency_ms")
    with pytest.raises(ValueError, match="same on every device"):
        Constraint("params_m", 1.0, "edgegpu")
    for bound in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            Constraint("latency_ms", bound, "edgegpu")


def test_violation_is_relative_and_never_a_big_number() -> None:
    budget = Constraint("latency_ms", 4.0, "edgegpu")
    assert budget.violation(4.0) == 0.0
    assert budget.violation(1.0) == 0.0
    assert budget.violation(5.0) == pytest.approx(0.25)
    assert budget.violation(math.nan) == math.inf
    floor = Constraint("val_error_pct", 10.0, goal="max")
    assert floor.violation(12.0) == 0.0
    assert floor.violation(9.0) == pytest.approx(0.1)


# -- the search state ----------------------------------------------------------------------------------------------


def state(*rows: tuple[int, float, float], budget: float | None = None, queries: int = 10) -> SearchState:
    """Architectures toy:i with an error and a latency; nan is a failure."""
    objectives = (Objective("val_error_pct"), Objective("latency_ms", "edgegpu"))
    constraints = () if budget is None else (Constraint("latency_ms", budget, "edgegpu"),)
    empty = SearchState("toy", objectives, constraints, queries=queries, seed=3)
    return empty.tell([m for row in rows for m in measured(*row)]) if rows else empty


def measured(i: int, error: float, latency: float) -> list[Measurement]:
    return [
        Measurement(arch(i), metric, value, context)
        if value == value
        else Measurement.failed(arch(i), metric, context, Status.NOT_MEASURED, "no number")
        for metric, value, context in (("val_error_pct", error, ERROR), ("latency_ms", latency, ON_GPU))
    ]


def test_telling_appends_and_leaves_the_old_state_alone() -> None:
    before = state()
    after = before.tell([*measured(1, 9.0, 2.0), *measured(2, 8.0, math.nan)])
    assert (before.step, len(before.archive), before.remaining) == (0, 0, 10)
    assert (after.step, len(after.archive), after.remaining) == (1, 2, 8)
    assert after.architectures == (arch(1), arch(2))
    np.testing.assert_array_equal(after.losses, [[9.0, 2.0], [8.0, np.nan]])
    with pytest.raises(ValueError, match="evaluated once; toy:1"):
        after.tell(measured(1, 9.0, 2.0))
    assert state(*[(i, 1.0, 1.0) for i in range(12)]).remaining == 0


def test_rows_of_one_architecture_become_one_evaluation_in_any_order() -> None:
    one, two = measured(1, 9.0, 2.0), measured(2, 8.0, 3.0)
    mixed = state().tell([one[0], two[1], one[1], two[0]])
    np.testing.assert_array_equal(mixed.losses, [[9.0, 2.0], [8.0, 3.0]])


def test_other_devices_latencies_are_not_mixed_up() -> None:
    elsewhere = Measurement(arch(1), "latency_ms", 77.0, Context(Source.TABLE, device="fpga"))
    told = state().tell([elsewhere, *measured(1, 9.0, 2.0)])
    assert told.losses.tolist() == [[9.0, 2.0]]


def test_front_holds_feasible_rows_by_first_objective() -> None:
    told = state((1, 5.0, 9.0), (2, 7.0, 3.0), (3, 6.0, 4.0), (4, 8.0, 4.0), (5, 1.0, math.nan), budget=5.0)
    assert told.violations.tolist() == pytest.approx([0.8, 0, 0, 0, math.inf])
    front = told.front()
    assert [a.code for a in front.architectures] == [(3,), (2,)]
    assert front.losses.tolist() == [[6.0, 4.0], [7.0, 3.0]]
    assert front.objectives == ("val_error_pct", "latency_ms@edgegpu")
    assert sorted(told.order[:2].tolist()) == [1, 2]
    assert told.order[2:].tolist() == [3, 0, 4]


def test_a_missing_measurement_is_a_failure() -> None:
    told = state(budget=5.0).tell(measured(1, 9.0, 2.0)[:1])
    assert np.isnan(told.losses[0, 1])
    assert told.violations.tolist() == [math.inf]
    assert len(told.front()) == 0


def test_a_front_without_anything_feasible_is_empty() -> None:
    for told in (state(), state((1, 5.0, 9.0), budget=5.0), state((1, math.nan, math.nan))):
        assert len(told.front()) == 0
        assert told.front().losses.shape == (0, 2)
        assert len(told.order) == len(told.archive)


def row_with(i: int, context: Context, half: float, own_half: float | None = None) -> Measurement:
    return Measurement(arch(i), "latency_ms", 9.0, context, interval=(9.0 - half, 9.0 + half), own_half=own_half)


def test_what_a_difference_is_held_against() -> None:
    quick, final, other = (Context(Source.MEASURED, device="edgegpu", fidelity=word) for word in ("q", "f", "o"))
    careful, beside = row_with(1, final, 5.0, 3.0), row_with(2, final, 5.0, 3.0)
    plain, foreign = row_with(3, quick, 1.0), row_with(4, other, 2.5, 1.5)
    assert joint_half(careful, beside) == pytest.approx(math.hypot(3, 3))
    assert joint_half(careful, plain) == pytest.approx(math.hypot(5, 1))  # what is shared by one kind only
    assert joint_half(plain, foreign) == pytest.approx(math.hypot(1, 2.5))


@pytest.mark.parametrize("seed", range(20))
def test_ties_of_figures_of_several_contexts_are_those_of_their_pairs(seed: int) -> None:
    """Also beside a large figure, whose interval is as wide as small ones are."""
    rng = np.random.default_rng(seed)
    contexts = [Context(Source.MEASURED, device="edgegpu", fidelity=word) for word in "qf"]
    rows = []
    for i, value in enumerate([8.0, *rng.uniform(0.2, 0.5, 5)]):
        half = value * rng.uniform(0.03, 0.2)
        context, own = contexts[i % 2], half * rng.uniform(0.3, 1) if i % 2 else None
        rows.append(
            Measurement(arch(i), "latency_ms", value, context, interval=(value - half, value + half), own_half=own)
        )
    errors = rng.uniform(5, 6, len(rows))
    told = state().tell(
        [row for r, e in zip(rows, errors, strict=True) for row in (measured(r.architecture.code[0], e, 1.0)[0], r)]
    )

    def beats(i: int, j: int) -> bool:
        apart, joint = rows[i].value - rows[j].value, joint_half(rows[i], rows[j])
        return (errors[i] < errors[j] and apart <= joint) or (errors[i] <= errors[j] and apart < -joint)

    front = set(told.front_indices.tolist())
    plain = {
        j
        for j in range(len(rows))
        if not any(errors[i] <= errors[j] and rows[i].value < rows[j].value for i in range(len(rows)) if i != j)
    }
    for j in range(len(rows)):
        if j not in plain:  # a dominated one is on the front where none of the ordinary front beats it
            assert (j in front) == (not any(beats(i, j) for i in plain))


def test_what_all_figures_share_makes_no_tie() -> None:
    """Both intervals hold both latencies, which differ by more than their own parts do."""

    def row(i: int, own_half: float | None) -> list[Measurement]:
        context = Context(Source.MEASURED, device="edgegpu")
        latency = Measurement(arch(i), "latency_ms", 3.0 + i, context, interval=(1, 9), own_half=own_half)
        return [measured(i, 5.0, 1.0)[0], latency]

    for own_half, kept in ((None, 2), (0.1, 1), (0.8, 2)):
        assert len(state().tell(row(1, own_half) + row(2, own_half)).front()) == kept


def test_only_measured_intervals_make_ties() -> None:
    def row(i: int, latency: float, source: Source) -> list[Measurement]:
        context = Context(source, device="edgegpu")
        wide = (latency - 1, latency + 1)
        return [measured(i, 5.0, 1.0)[0], Measurement(arch(i), "latency_ms", latency, context, interval=wide)]

    for source, kept in ((Source.MEASURED, 2), (Source.SURROGATE, 1)):
        assert len(state().tell(row(1, 3.0, source) + row(2, 3.2, source)).front()) == kept


@pytest.mark.parametrize(
    ("source", "violation"), [(Source.MEASURED, 0.1), (Source.PREDICTED, 0.1), (Source.SURROGATE, 0.0)]
)
def test_a_budget_is_held_against_the_worse_end_of_an_interval_from_here(source: Source, violation: float) -> None:
    context = Context(source, device="edgegpu")
    latency = Measurement(arch(1), "latency_ms", 4.9, context, interval=(4.5, 5.5))
    told = state(budget=5.0).tell([measured(1, 9.0, 1.0)[0], latency])
    assert told.violations.tolist() == pytest.approx([violation])


def test_better_measurements_take_the_place_of_earlier_ones() -> None:
    before = state((1, 5.0, 3.0), (2, 6.0, 2.0), budget=5.0)
    better = Measurement(arch(1), "latency_ms", 6.0, Context(Source.MEASURED, device="edgegpu"))
    after = before.amend([better])
    assert (after.step, after.architectures) == (before.step, before.architectures)
    assert after.losses.tolist() == [[5.0, 6.0], [6.0, 2.0]]
    assert after.violations.tolist() == pytest.approx([0.2, 0.0])
    assert before.losses.tolist() == [[5.0, 3.0], [6.0, 2.0]]
    for row in (replace(better, architecture=arch(3)), replace(better, context=Context(Source.MEASURED, "fpga"))):
        with pytest.raises(ValueError, match="that could be replaced"):
            before.amend([row])


def test_streams_depend_on_seed_step_and_role_only() -> None:
    def draw(seed: int, step: int, role: str) -> float:
        return stream(seed, step, role).random()

    told = state((1, 5.0, 9.0))
    assert told.rng("propose").random() == draw(3, 1, "propose")
    draws = {draw(*key) for key in itertools.product((0, 1), (0, 1), ("propose", "update"))}
    assert len(draws) == 8


# -- learning signals ----------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    told = state((1, 9.0, 9.0), (2, 5.0, 5.0), (3, 1.0, math.nan), (4, 7.0, 7.0))
    assert target.positions(told).tolist() == [2, 0, 3, 1]
    raw = np.array([1 / 2.04, 1 / 0.04, 0, 1 / 1.04])
    assert target.weights(told) == pytest.approx(raw / raw.sum())
    assert target.weights(state()).shape == (0,)
    assert target.weights(state((1, 1.0, math.nan))).tolist() == [0.0]


def test_elite_holds_no_failures() -> None:
    told = state((1, 9.0, 9.0), (2, 5.0, 5.0), (3, 1.0, math.nan))
    assert [a.code for a in target.elite(told, 5)] == [(2,), (1,)]
    assert [a.code for a in target.elite(told, 1)] == [(2,)]


def test_conditions_are_quantiles() -> None:
    told = state((1, 9.0, 1.0), (2, 5.0, 1.0), (3, 7.0, math.nan))
    np.testing.assert_allclose(target.conditions(told), [[1.0, 0.0], [0.0, 0.0], [0.5, np.nan]])
    assert target.classes(told, 2).tolist() == [[1, 0], [0, 0], [1, -1]]


def test_requests_reach_beyond_the_front() -> None:
    told = state((1, 5.0, 9.0), (2, 7.0, 3.0), (3, 6.0, 4.0), (4, 8.0, 8.0), budget=20.0)
    asked = target.request(told, 200, rng=np.random.default_rng(0), reach=0.1)
    assert asked.shape == (200, 2)
    span = np.array([3.0, 6.0])
    gaps = asked[:, None, :] - told.front().losses[None]
    assert (((gaps <= 0) & (gaps >= -0.1 * span)).all(2).any(1)).all()
    assert pareto.non_dominated(np.vstack((asked, told.front().losses)))[-3:].sum() < 3
    infeasible = state((1, 5.0, 9.0), (2, 7.0, 3.0), budget=1.0)
    assert (target.request(infeasible, 5, rng=np.random.default_rng(0)) <= [7.0, 3.0]).all()
    with pytest.raises(ValueError, match="at least one"):
        target.request(state(), 5, rng=np.random.default_rng(0))


# -- graphs --------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> ArchGraph:
    n = draw(st.integers(2, 6))
    inner = draw(st.lists(st.sampled_from("ab"), min_size=n - 2, max_size=n - 2))
    pairs = [(s, t) for t in range(n) for s in range(t)]
    return ArchGraph(("input", *inner, "output"), tuple(sorted(draw(st.sets(st.sampled_from(pairs))))))


def relabelled(graph: ArchGraph, order: tuple[int, ...]) -> ArchGraph | None:
    """The graph with its inner nodes in another order; None where that order is not topological."""
    place = {old: new for new, old in enumerate((0, *order, graph.n - 1))}
    edges = sorted((place[s], place[t]) for s, t in graph.edges)
    if any(s >= t for s, t in edges):
        return None
    return ArchGraph(tuple(graph.ops[i] for i in place), tuple(edges))


def same(a: ArchGraph, b: ArchGraph) -> bool:
    """Isomorphism by trying every order of the inner nodes."""
    return a.n == b.n and any(relabelled(a, p) == b for p in itertools.permutations(range(1, a.n - 1)))


@few
@given(graphs())
def test_hash_is_the_same_for_every_order_of_the_nodes(graph: ArchGraph) -> None:
    for order in itertools.permutations(range(1, graph.n - 1)):
        other = relabelled(graph, order)
        if other is not None:
            assert other.canonical_hash() == graph.canonical_hash()


def test_hash_tells_all_small_graphs_apart() -> None:
    """Every graph of four nodes: equal hashes exactly for isomorphic ones."""
    pairs = [(s, t) for t in range(4) for s in range(t)]
    groups: dict[str, list[ArchGraph]] = {}
    for ops in itertools.product("ab", repeat=2):
        for bits in itertools.product((0, 1), repeat=len(pairs)):
            edges = tuple(sorted(pair for pair, bit in zip(pairs, bits, strict=True) if bit))
            graph = ArchGraph(("input", *ops, "output"), edges)
            groups.setdefault(graph.canonical_hash(), []).append(graph)
    firsts = [members[0] for members in groups.values()]
    assert all(same(members[0], other) for members in groups.values() for other in members)
    assert not any(same(a, b) for a, b in itertools.combinations(firsts, 2))


def paths(graph: ArchGraph) -> list[tuple[str, ...]]:
    """Operations along every path from input to output: what a network computes from."""
    found, open_ends = [], [(0,)]
    while open_ends:
        path = open_ends.pop()
        if path[-1] == graph.n - 1:
            found.append(tuple(graph.ops[v] for v in path))
        open_ends += [(*path, t) for s, t in graph.edges if s == path[-1]]
    return sorted(found)


@few
@given(graphs())
def test_pruning_keeps_exactly_what_lies_on_a_path(graph: ArchGraph) -> None:
    pruned = graph.pruned()
    assert paths(pruned) == paths(graph)
    assert pruned.live().all()
    assert pruned.pruned() == pruned
    assert (pruned.ops[0], pruned.ops[-1]) == ("input", "output")
    touched = {v for edge in pruned.edges for v in edge}
    assert touched == set(range(pruned.n)) or pruned.edges == ()


@few
@given(graphs())
def test_adjacency_and_edge_index_say_the_same(graph: ArchGraph) -> None:
    matrix, index = graph.adjacency(), graph.edge_index()
    assert index.shape == (2, len(graph.edges))
    assert np.argwhere(matrix).tolist() == [list(edge) for edge in graph.edges]
    assert index.T.tolist() == [list(edge) for edge in graph.edges]


@pytest.mark.parametrize("edges", [((1, 0),), ((0, 0),), ((0, 3),), ((-1, 1),), ((0, 2), (0, 1)), ((0, 1), (0, 1))])
def test_bad_edges_are_refused(edges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(InvalidArchitecture, match="graph edges"):
        ArchGraph(("input", "a", "output"), edges)


# -- random streams ------------------------------------------------------------------------------------------------


def test_stable_hash_is_the_same_in_every_process() -> None:
    assert stable_hash("propose") == int.from_bytes(bytes.fromhex("12df7f0e"), "little")  # printf propose | sha256sum
    code = "from hwnas.seeding import stream; print(stream(1, 2, 'x').random())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == stream(1, 2, "x").random()


def test_torch_streams_come_from_rng_and_restore_the_global_one() -> None:
    import torch

    def draw() -> list[float]:
        return torch.rand(3, generator=torch_generator(np.random.default_rng(5))).tolist()

    before = torch.random.get_rng_state()
    assert draw() == draw()
    with torch_seeded(np.random.default_rng(5)):
        first = torch.rand(3).tolist()
    with torch_seeded(np.random.default_rng(5)):
        assert torch.rand(3).tolist() == first
    assert (torch.random.get_rng_state() == before).all()
    with pytest.raises(RuntimeError, match="inside"), torch_seeded(np.random.default_rng(5)):
        raise RuntimeError("inside")
    assert (torch.random.get_rng_state() == before).all()


# -- several fronts ------------------------------------------------------------------------------------------------

BOTH = (Objective("val_error_pct"), Objective("latency_ms", "edgegpu"), Objective("latency_ms", "fpga"))


def two_devices(*rows: tuple[int, float, float, float], budgets: Sequence[Constraint] = ()) -> SearchState:
    """Architectures toy:i with an error and a latency on edgegpu and on fpga, which have a front each."""
    told = []
    for i, error, *latencies in rows:
        told += measured(i, error, latencies[0])
        told += [replace(measured(i, error, latencies[1])[1], context=replace(ON_GPU, device="fpga"))]
    empty = SearchState("toy", BOTH, tuple(budgets), queries=20, front_devices=("edgegpu", "fpga"))
    return empty.tell(told) if told else empty


def test_each_device_has_its_own_objectives_and_budgets_over_the_same_archive() -> None:
    budgets = (
        Constraint("latency_ms", 5.0, "fpga"),
        Constraint("params_m", 1.0),
        Constraint("latency_ms", 9.0, "raspi4"),
    )
    told = two_devices((1, 5.0, 3.0, 4.0), budgets=budgets)
    gpu, fpga = told.by_device["edgegpu"], told.by_device["fpga"]
    assert told.goals == (gpu, fpga)
    assert [o.name for o in gpu.objectives] == ["val_error_pct", "latency_ms@edgegpu"]
    assert [o.name for o in fpga.objectives] == ["val_error_pct", "latency_ms@fpga"]
    # what belongs to no device with a front of its own holds for every front
    assert [c.name for c in gpu.constraints] == ["params_m", "latency_ms@raspi4"]
    assert [c.name for c in fpga.constraints] == ["latency_ms@fpga", "params_m", "latency_ms@raspi4"]
    assert gpu.archive is fpga.archive is told.archive
    assert (gpu.by_device, gpu.goals) == ({}, (gpu,))
    assert told.tell(measured(2, 1.0, 1.0)).front_devices == told.front_devices


def test_the_whole_is_the_best_that_any_device_says() -> None:
    told = two_devices(
        (1, 5.0, 3.0, 9.0),  # on the front of edgegpu, over the budget of fpga
        (2, 6.0, 4.0, 2.0),  # dominated on edgegpu, on the front of fpga
        (3, 7.0, 9.0, 9.0),  # over the budget of fpga, dominated on edgegpu
        (4, 4.0, math.nan, math.nan),
        (5, 9.0, 1.0, math.nan),  # fails on fpga only
        budgets=[Constraint("latency_ms", 5.0, "fpga")],
    )
    assert told.violations.tolist() == [0.0, 0.0, 0.0, math.inf, 0.0]
    assert told.failed.tolist() == [False, False, False, True, False]
    assert told.front_indices.tolist() == [0, 1, 4]
    assert [a.code for a in told.front().architectures] == [(1,), (2,), (5,)]
    assert told.order.tolist()[3:] == [2, 3]
    assert set(told.order[:2]) <= {0, 1, 4}
    assert target.weights(told)[3] == 0.0 < target.weights(told)[4]
    assert [a.code for a in target.elite(told, 5)][-1] == (3,)
    assert np.isfinite(target.request(told, 9, rng=np.random.default_rng(0))).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([1.0, 2.0, 3.0, math.nan])] * 3), max_size=7), st.booleans())
def test_the_order_is_the_best_place_on_any_device(rows: list[tuple[float, float, float]], budget: bool) -> None:
    budgets = [Constraint("latency_ms", 2.0, "edgegpu")] if budget else []
    told = two_devices(*[(i, *row) for i, row in enumerate(rows)], budgets=budgets)
    places = [[list(goal.order).index(i) for i in range(len(rows))] for goal in told.goals]
    best = [(bool(told.failed[i]), min(place[i] for place in places)) for i in range(len(rows))]
    assert [best[i] for i in told.order] == sorted(best)
    assert sorted(told.order.tolist()) == list(range(len(rows)))
    some = np.arange(len(rows))[::2]
    alone = two_devices(*[(i, *rows[i]) for i in some], budgets=budgets)
    assert told.order_among(some).tolist() == alone.order.tolist()


def test_without_devices_the_order_among_rows_is_that_of_the_rows() -> None:
    told = state((1, 5.0, 9.0), (2, 7.0, 3.0), (3, 6.0, 4.0), (4, 8.0, 4.0), budget=5.0)
    rows = np.array([3, 0, 2])
    assert told.order_among(rows).tolist() == pareto.order(told.losses[rows], told.violations[rows]).tolist()


def test_predictions_from_measurements_that_are_told_are_not_told_of_twice() -> None:
    measured = Context(
        Source.MEASURED,
        device="board",
        runtime="ort-cpu",
        precision="fp32",
        batch=1,
        dataset="cifar10",
        fidelity="protocol default",
        origin="profile board of a CPU",
    )
    predicted = replace(
        measured, source=Source.PREDICTED, fidelity=None, origin="predicted from profile board of a CPU"
    )
    assert provenances([predicted, measured]) == f"{provenance(measured)} | predicted from such"
    assert provenances([predicted]) == "predicted: cifar10, board, ort-cpu, fp32, batch 1, from profile board of a CPU"
    elsewhere = replace(predicted, device="phone")
    assert provenances([measured, elsewhere]) == f"{provenance(measured)} | {provenance(elsewhere)}"
