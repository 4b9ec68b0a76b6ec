"""Pareto arithmetic and picking: closed forms, a brute force small enough to check by eye, and properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwnas.core import pareto, picking

Floats = NDArray[np.float64]
few = settings(max_examples=60, deadline=None)


@st.composite
def losses(draw: st.DrawFn, failures: bool = False) -> Floats:
    """Few distinct values, so that ties and duplicates are common."""
    n, m = draw(st.integers(0, 9)), draw(st.integers(1, 3))
    values = [0.0, 1.0, 2.0, 3.0, 4.0] + ([np.nan] if failures else [])
    row = st.lists(st.sampled_from(values), min_size=m, max_size=m)
    return np.array(draw(st.lists(row, min_size=n, max_size=n)), dtype=np.float64).reshape(n, m)


def dominates(a: Floats, b: Floats) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_front(points: Floats) -> list[bool]:
    return [not np.isnan(p).any() and not any(dominates(q, p) for q in points) for p in points]


# -- fronts and ranks ----------------------------------------------------------------------------------------------


@few
@given(losses(failures=True))
def test_non_dominated_is_brute_force(points: Floats) -> None:
    assert pareto.non_dominated(points).tolist() == brute_front(points)
    assert pareto.non_dominated(points, np.zeros_like(points)).tolist() == brute_front(points)


@few
@given(losses(failures=True))
def test_ranks_are_what_peeling_fronts_gives(points: Floats) -> None:
    expected = np.full(len(points), len(points))
    left, rank = points.copy(), 0
    while not np.isnan(left).any(axis=1).all():
        front = brute_front(left)
        expected[front] = rank
        left[front] = np.nan
        rank += 1
    assert pareto.pareto_ranks(points).tolist() == expected.tolist()


def test_failures_are_never_on_the_front() -> None:
    points = np.array([[0.0, np.nan], [1.0, 1.0], [np.nan, np.nan]])
    assert pareto.non_dominated(points).tolist() == [False, True, False]
    assert not pareto.non_dominated(points[[0, 2]]).any()
    assert pareto.non_dominated(np.zeros((0, 2))).tolist() == []


# -- ties inside intervals -----------------------------------------------------------------------------------------


def test_a_difference_inside_the_interval_is_a_tie() -> None:
    points = np.array([[10.0, 5.0], [10.1, 5.0], [12.0, 5.0]])
    width = np.array([[0.1, 0.0]] * 3)  # joint 0.141
    assert pareto.non_dominated(points).tolist() == [True, False, False]
    assert pareto.non_dominated(points, width).tolist() == [True, True, False]


def test_better_by_noise_only_does_not_excuse_being_clearly_worse() -> None:
    points = np.array([[10.0, 5.0], [9.95, 8.0]])
    assert pareto.non_dominated(points).tolist() == [True, True]
    assert pareto.non_dominated(points, np.array([[0.1, 0.0]] * 2)).tolist() == [True, False]


def test_a_circle_of_ties_does_not_empty_the_front() -> None:
    circle = np.array([[0.0, 0.6, 1.2], [1.2, 0.0, 0.6], [0.6, 1.2, 0.0]])  # each beats the next
    width = np.full((3, 3), 0.5**0.5)
    assert pareto.non_dominated(circle, width).all()
    apart = np.vstack((circle, [[-50.0, 90.0, 90.0]]))
    assert pareto.non_dominated(apart, np.vstack((width, width[:1]))).all()


@few
@given(losses(), st.floats(0.0, 3.0))
def test_some_row_stays_and_a_removed_row_is_beaten(points: Floats, half_width: float) -> None:
    kept = pareto.non_dominated(points, np.full_like(points, half_width))
    assert kept.any() == bool(len(points))
    joint = np.hypot(half_width, half_width)
    front = points[pareto.non_dominated(points)]
    for row in points[~kept]:
        assert any((f - row <= joint).all() and (f - row < -joint).any() for f in front)


# -- crowding and order --------------------------------------------------------------------------------------------


def test_crowding_by_hand() -> None:
    front = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]])
    distance = pareto.crowding_distance(front)
    assert np.isinf(distance[[0, 3]]).all()
    assert distance[1] == pytest.approx(((4 - 0) / 10 + (10 - 5) / 10) / 2)
    assert distance[2] == pytest.approx(((10 - 1) / 10 + (6 - 0) / 10) / 2)
    assert pareto.crowding_distance(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match="nan"):
        pareto.crowding_distance(np.array([[np.nan, 1.0]]))


@few
@given(losses(failures=True), st.data())
def test_order_is_violation_then_rank_then_failures(points: Floats, data: st.DataObject) -> None:
    n = len(points)
    violations = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, np.inf]), min_size=n, max_size=n)))
    order = pareto.order(points, violations)
    assert sorted(order.tolist()) == list(range(n))
    failed = np.isnan(points).any(axis=1)
    assert not (np.diff(failed[order].astype(int)) < 0).any(), "a failure stands before a number"
    good = order[~failed[order]]
    assert (violations[good][:-1] <= violations[good][1:]).all()
    for i, j in itertools.pairwise(good):
        if violations[i] == violations[j]:
            assert not dominates(points[j], points[i])


def test_order_prefers_the_less_crowded() -> None:
    points = np.array([[0.0, 10.0], [1.0, 9.0], [6.0, 5.0], [10.0, 0.0]])
    assert pareto.order(points).tolist() == [0, 3, 2, 1]


# -- hypervolume ---------------------------------------------------------------------------------------------------


@few
@given(losses(failures=True))
def test_hypervolume_counts_unit_boxes(points: Floats) -> None:
    """On integers, the dominated volume is the number of unit boxes above some point."""
    m = points.shape[1]
    rows = points[~np.isnan(points).any(axis=1)]
    boxes = sum(any((p <= corner).all() for p in rows) for corner in itertools.product(range(3), repeat=m))
    assert pareto.hypervolume(points, [3.0] * m) == pytest.approx(boxes)


def test_hypervolume_of_a_staircase() -> None:
    n = 10
    points = np.array([[i, n - 1 - i] for i in range(n)], dtype=np.float64)
    assert pareto.hypervolume(points, [n, n]) == pytest.approx(n * n - n * (n - 1) / 2)
    assert pareto.hypervolume(points, [0, 0]) == 0
    assert pareto.hypervolume(points[:0], [1, 1]) == 0


def test_reference_point() -> None:
    points = np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 99.0]])
    assert pareto.reference_point(points).tolist() == pytest.approx([3.2, 5.5])  # constant column: share of its size
    assert pareto.reference_point(points[2:]).tolist() == [1.0, 1.0]
    assert (pareto.reference_point(points) > points[:2]).all()


# -- picking -------------------------------------------------------------------------------------------------------


def test_best_under_budget() -> None:
    points = np.array([[1.0, 9.0], [2.0, 3.0], [2.0, 2.0], [np.nan, 0.0], [0.5, 1.0]])
    violations = np.array([0.0, 0.0, 0.0, 0.0, 0.1])
    assert picking.best_under_budget(points, violations) == 0
    assert picking.best_under_budget(points, np.array([1.0, 0.0, 0.0, 0.0, 0.1])) == 2, "a tie goes to the faster"
    assert picking.best_under_budget(points, violations, objective=1) == 2
    assert picking.best_under_budget(points, np.full(5, 0.1)) is None
    assert picking.best_under_budget(points[3:4], np.zeros(1)) is None


def test_nearest_to_feasible() -> None:
    points = np.array([[1.0], [2.0], [np.nan], [3.0]])
    assert picking.nearest_to_feasible(points, np.array([0.3, 0.2, np.inf, np.inf])) == 1
    assert picking.nearest_to_feasible(points[2:], np.array([np.inf, np.inf])) is None


def test_knee_of_an_angle() -> None:
    """Two straight arms that meet at (1, 1): leaving the corner costs most."""
    arms = np.array([[0.0, 10.0], [0.5, 5.5], [1.0, 1.0], [5.5, 0.5], [10.0, 0.0]])
    assert picking.knee(arms) == 2
    assert picking.knee(arms * [1e-3, 1e6]) == 2, "units do not matter"
    assert picking.knee(arms[:1]) == 0
    assert picking.knee(arms[:2]) in (0, 1)
    assert picking.knee(np.repeat(arms[:1], 4, axis=0)) == 0, "equals that no other dominates"
    assert picking.knee(np.repeat(arms[:2], 2, axis=0)) in range(4)


def test_asf_follows_the_weights() -> None:
    front = np.array([[0.0, 1.0], [0.2, 0.6], [0.6, 0.2], [1.0, 0.0]])
    assert picking.asf(front, [100, 1]) == 0
    assert picking.asf(front, [1, 100]) == 3
    assert picking.asf(front, [2, 1]) == 1
    assert picking.asf(front[:1], [1, 1]) == 0
    for bad in ([1], [1, 0], [1, -1], [1, np.nan], [1, np.inf]):
        with pytest.raises(ValueError, match="2 weights above 0"):
            picking.asf(front, bad)


@few
@given(losses(), st.lists(st.sampled_from([0.1, 1.0, 7.0]), min_size=3, max_size=3))
def test_asf_is_its_formula(points: Floats, weights: list[float]) -> None:
    front = points[pareto.non_dominated(points)]
    if len(front):
        importance = weights[: front.shape[1]]
        worst = [max(w * x for w, x in zip(importance, row, strict=True)) for row in picking.normalise(front)]
        assert worst[picking.asf(front, importance)] == pytest.approx(min(worst))
