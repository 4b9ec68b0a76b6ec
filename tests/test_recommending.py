"""One network for several devices: regrets against a brute force, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core import picking
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Constraint, Objective
from hwnas.core.recommending import Portfolio, by_weights, guessers, portfolio, presented, recommend, weights_of
from hwnas.core.state import SearchState

DEVICES = ("edgegpu", "fpga", "raspi4")
few = settings(max_examples=80, deadline=None)
numbers = st.sampled_from([1.0, 2.0, 3.0, 4.0, math.nan])
archives = st.lists(st.tuples(*[numbers] * 4), min_size=0, max_size=8)


def search(
    rows: Sequence[Sequence[float]], bounds: Sequence[float] = (), objectives: str = "error latency"
) -> SearchState:
    """Networks with an error and a latency on each of three devices; nan is a failure."""
    wanted = [Objective("val_error_pct")] if "error" in objectives else []
    wanted += [Objective("latency_ms", device) for device in DEVICES if "latency" in objectives]
    budgets = [Constraint("latency_ms", bound, device) for bound, device in zip(bounds, DEVICES, strict=False)]
    state = SearchState("toy", tuple(wanted), tuple(budgets), queries=99, front_devices=DEVICES)
    told = []
    for i, (error, *latencies) in enumerate(rows):
        places = [
            ("val_error_pct", None, error),
            *(("latency_ms", d, x) for d, x in zip(DEVICES, latencies, strict=True)),
        ]
        for metric, device, value in places:
            about = Architecture("toy", (i,)), metric
            context = Context(Source.TABLE, device=device)
            failed = Measurement.failed(*about, context, Status.CRASHED, "no")
            told.append(failed if math.isnan(value) else Measurement(*about, value, context))
    return state.tell(told) if told else state


@few
@given(st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=6))
def test_regrets_are_distances_to_the_best_of_each_device(rows: list[list[float]]) -> None:
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    regret = picking.regrets(values)
    for j in range(2):
        known = [row[j] for row in rows if not math.isnan(row[j])]
        for i, row in enumerate(rows):
            assert math.isnan(regret[i, j]) if math.isnan(row[j]) else regret[i, j] == row[j] - min(known)
    worst = [max(row) if not any(map(math.isnan, row)) else math.inf for row in regret.tolist()]
    chosen = picking.least_worst_regret(regret)
    assert (chosen is None) == all(map(math.isinf, worst))
    if chosen is not None:
        assert worst[chosen] == min(worst)
        equals = [i for i, x in enumerate(worst) if x == min(worst)]
        assert regret[chosen].sum() == min(regret[i].sum() for i in equals)


def test_ties_in_regret_go_to_the_smaller_tie_then_to_the_first() -> None:
    regret = np.zeros((3, 2))
    assert picking.least_worst_regret(regret) == 0
    assert picking.least_worst_regret(regret, np.array([2.0, 1.0, 1.0])) == 1
    assert picking.least_worst_regret(np.full((2, 2), np.nan)) is None
    assert picking.least_worst_regret(np.zeros((0, 2))) is None
    assert picking.regrets(np.zeros((0, 2))).shape == (0, 2)


@few
@given(archives, st.lists(st.sampled_from([1.5, 2.5, 9.0]), min_size=3, max_size=3))
def test_with_budgets_it_has_the_least_error_of_what_every_device_admits(
    rows: list[tuple[float, ...]], bounds: list[float]
) -> None:
    """By brute force: regrets are errors behind the best below each device's own budget."""
    chosen = portfolio(search(rows, bounds))
    whole = [row for row in rows if not any(map(math.isnan, row))]
    admitted = [row for row in whole if all(x <= bound for x, bound in zip(row[1:], bounds, strict=True))]
    if not admitted:
        if not whole:
            assert chosen is None
            return
        excess = [
            max(max(0.0, x / b - 1) for x, b in zip(row[1:], bounds, strict=True)) for row in rows if row in whole
        ]
        assert chosen is not None
        assert not chosen.admissible
        assert chosen.regrets == {}
        assert max(chosen.violations.values()) == pytest.approx(min(excess))
        return
    assert chosen is not None
    assert chosen.admissible
    error = rows[chosen.index][0]
    assert error == min(row[0] for row in admitted)
    for j, device in enumerate(DEVICES, start=1):
        usable = [row[0] for row in rows if not math.isnan(row[0]) and row[j] <= bounds[j - 1]]
        assert chosen.regrets[device] == error - min(usable)


@few
@given(archives, st.tuples(*[st.sampled_from([0.5, 1.0, 4.0])] * 4))
def test_without_budgets_it_is_the_least_bad_compromise(
    rows: list[tuple[float, ...]], weights: tuple[float, ...]
) -> None:
    state = search(rows)
    chosen = portfolio(state, weights)
    regrets: dict[int, list[float]] = {}
    for device, goal in state.by_device.items():
        known = [i for i in range(len(rows)) if not np.isnan(goal.losses[i]).any()]
        if not known:
            continue
        front = goal.losses[goal.front_indices]
        low, spans = front.min(axis=0), front.max(axis=0) - front.min(axis=0)
        every = goal.losses[known]
        spans = np.where(spans > 0, spans, every.max(axis=0) - every.min(axis=0))
        scale = np.where(spans > 0, spans, 1.0)
        own = np.array(weights_of(state, goal, weights))
        values = {i: float(((goal.losses[i] - low) / scale * own).max()) for i in known}
        for i in known:
            regrets.setdefault(i, []).append(values[i] - min(values.values()))
        assert own[1] == weights[1 + DEVICES.index(device)]
    worst = {i: max(each) for i, each in regrets.items() if len(each) == len(DEVICES)}
    assert (chosen is None) == (not worst)
    if chosen is not None:
        assert chosen.worst == pytest.approx(min(worst.values()))
        assert chosen.metric is None


def test_a_devices_own_metric_counts_as_a_share_of_its_best() -> None:
    """10 ms more mean little on a slow device, and everything on a fast one."""
    state = search([(9.0, 1.0, 1.0, 100.0), (9.0, 1.1, 1.1, 90.0), (9.0, 2.0, 2.0, 80.0)], objectives="latency")
    chosen = portfolio(state)
    assert chosen is not None
    assert (chosen.index, chosen.metric, chosen.relative) == (1, "latency_ms", True)
    assert chosen.regrets == pytest.approx({"edgegpu": 0.1, "fpga": 0.1, "raspi4": 0.125})
    assert chosen.told("raspi4") == "12.5 % more latency than the best found for raspi4"


def test_regret_is_said_in_plain_words() -> None:
    rows = [(8.0, 1.0, 9.0, 1.0), (8.4, 1.0, 1.0, 1.0), (9.0, 1.0, 1.0, 1.0)]
    chosen = portfolio(search(rows, (5.0, 5.0, 5.0)))
    assert chosen is not None
    assert chosen.told("edgegpu") == "0.40 points of validation error behind the best found for edgegpu"
    assert chosen.told("fpga") == "as good as the best found for fpga"
    assert chosen.worst == pytest.approx(0.4)
    nowhere = portfolio(search(rows[:1], (5.0, 5.0, 5.0)))
    assert nowhere is not None
    assert not nowhere.admissible
    assert nowhere.worst is None
    assert (nowhere.told("edgegpu"), nowhere.told("fpga")) == ("within budget on edgegpu", "80.0 % over budget on fpga")
    plain = Portfolio(0, {"fpga": 0.25}, {"fpga": 0.0}, best={"fpga": 6})
    assert plain.told("fpga") == "25 % of the front's range behind the most balanced network for fpga (query 7)"
    assert replace(plain, regrets={"fpga": 0.004}).told("fpga").startswith("0.40 % of the front's range behind")
    assert replace(plain, regrets={"fpga": 0.0}).told("fpga") == "the most balanced network for fpga"
    assert replace(plain, weighted=True).told("fpga").startswith("25 % of the front's range times the weights behind")


def test_each_device_goes_by_its_own_budgets_where_only_some_have_any() -> None:
    """edgegpu's budget leaves the error to improve; the others have two objectives to compromise between."""
    rows = [
        (5.0, 9.0, 9.0, 9.0),
        (6.0, 5.0, 5.0, 5.0),
        (9.0, 1.0, 1.0, 1.0),
        (6.5, 4.0, 4.4, 4.4),
        (4.0, 99.0, 10.0, 10.0),
    ]
    state = search(rows, (10.0,))
    chosen = portfolio(state)
    assert chosen is not None
    assert chosen.metric is None
    # on edgegpu errors of 5 to 9 are on the front; elsewhere 4 to 9, and latencies of 1 to 10
    elsewhere = [max((row[0] - 4) / 5, (row[2] - 1) / 9) for row in rows]
    behind = {i: max((rows[i][0] - 5) / 4, elsewhere[i] - min(elsewhere)) for i in range(4)}
    assert chosen.index == min(behind, key=lambda i: behind[i]) == 1
    assert chosen.regrets["edgegpu"] == pytest.approx(0.25)
    assert chosen.regrets["fpga"] == pytest.approx(elsewhere[1] - min(elsewhere))
    assert chosen.behind == {"edgegpu": ("val_error_pct", 1.0)}
    words = "1.00 points of validation error (25 % of the front's range) behind the best found for edgegpu"
    assert chosen.told("edgegpu") == words


def classified(rows: Sequence[Sequence[float]], bounds: Sequence[float] = (), dataset: str = "cifar10") -> SearchState:
    """As `search`, on a data set with a known number of classes."""
    state = search(rows, bounds)
    about = replace(Context(Source.TABLE), dataset=dataset)
    errors = [e.measurements[0] for e in state.archive]
    return (
        state.amend([])
        if not errors
        else replace(
            state,
            archive=tuple(
                replace(e, measurements=(replace(row, context=about), *e.measurements[1:]))
                for e, row in zip(state.archive, errors, strict=True)
            ),
        )
    )


def test_networks_that_only_guess_are_left_out_as_long_as_there_are_others() -> None:
    useful = [(6.0, 9.0, 9.0, 9.0), (7.0, 5.0, 5.0, 5.0), (12.0, 3.0, 3.0, 3.0)]
    guess = (90.0, 0.1, 0.1, 0.1)
    state, clean = classified([*useful, guess]), classified(useful)
    assert guessers(state).tolist() == [False, False, False, True]
    assert not guessers(classified([*useful, guess], dataset="one's own")).any()
    with_it, without = portfolio(state), portfolio(clean)
    assert with_it is not None
    assert without is not None
    assert (with_it.index, with_it.regrets) == (without.index, pytest.approx(without.regrets))
    one, alone = (s.by_device["fpga"] for s in (state, clean))
    assert len(one.front_indices) == 4, "it stays on the front"
    assert recommend(one) == recommend(alone)
    assert by_weights(one, (0.1, 10.0)) == by_weights(alone, (0.1, 10.0)) == 2
    assert by_weights(one, (1.0, 1.0), place=3) is None
    # nothing else may be shipped, or there is nothing else
    tight = portfolio(classified([*useful, guess], (1.0, 1.0, 1.0)))
    assert tight is not None
    assert (tight.index, tight.admissible) == (3, True)
    assert recommend(classified([guess, (89.0, 0.2, 0.2, 0.2)]).by_device["fpga"]) is not None


def test_it_may_be_on_no_front_and_is_presented_all_the_same() -> None:
    rows = [(5.0, 1.0, 9.0, 1.0), (5.0, 9.0, 1.0, 1.0), (6.0, 4.0, 4.0, 2.0)]
    state = search(rows, (5.0, 5.0, 5.0))
    assert recommend(state) == 2
    assert sorted(state.front_indices) == [0, 1]
    assert presented(state) == (0, 1, 2)
    assert recommend(search(rows[:2], (5.0, 5.0, 5.0))) is None
    assert recommend(search([])) is None
