"""Integer codes, and the suite of spaces on the toy space."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Status
from hwnas.core.protocols import Evaluator, SearchSpace
from hwnas.errors import InvalidArchitecture
from hwnas.spaces import codes
from hwnas.testing import toy
from hwnas.testing.spaces import SpaceSuite


class TestToySpace(SpaceSuite):
    samples = 12

    @pytest.fixture
    def space(self):
        return toy.ToySpace()

    def onnx_of(self, space, module, dataset):
        return toy.onnx_of(module)

    def test_it_has_81_codes_and_28_functions(self, space):
        every = list(codes.every(space))
        assert len(set(every)) == 81
        assert len({space.canonical(architecture) for architecture in every}) == 28


@dataclass(frozen=True)
class Plain:
    """All that the functions on codes need of a space."""

    name: str
    choices: tuple[int, ...]


SMALL = Plain("small", (2, 1, 3))
NB201 = Plain("nb201", (5,) * 6)
HUGE = Plain("huge", (9,) * 22)  # 9^22 > 2^63


def test_size_is_exact_beyond_64_bits():
    assert codes.size(NB201) == 15_625
    assert codes.size(HUGE) == 9**22


def test_enumeration_is_lexicographic_and_complete():
    assert [a.code for a in codes.every(SMALL)] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2)]
    ranks = codes.rank(codes.enumerate_codes(NB201.choices), NB201.choices)
    assert np.array_equal(ranks, np.arange(15_625))
    with pytest.raises(ValueError, match=str(9**22)):
        codes.enumerate_codes(HUGE.choices)


def test_sample_is_uniform_over_every_position():
    drawn = codes.to_array(codes.sample(NB201, 20_000, rng=np.random.default_rng(0)))
    for position in range(6):
        share = np.bincount(drawn[:, position], minlength=5) / len(drawn)
        assert np.abs(share - 0.2).max() < 0.015  # five standard deviations
    assert len(codes.sample(HUGE, 50, rng=np.random.default_rng(0))) == 50


def test_unseen_samples_are_uniform_among_the_unseen():
    """Both ways of drawing, by rejection (few seen) and from the list (many seen), give each its equal chance."""
    every = list(codes.every(SMALL))
    wide = Plain("wide", (4, 4))
    for space, seen, left in ((SMALL, every[:3], every[3:]), (wide, list(codes.every(wide))[:2], None)):
        rng = np.random.default_rng(1)
        left = left or [a for a in codes.every(space) if a not in seen]
        counts = dict.fromkeys(left, 0)
        for _ in range(4000):
            for architecture in codes.sample_unseen(space, 1, seen, rng=rng):
                counts[architecture] += 1
        expected = 4000 / len(left)
        assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


@given(seen=st.integers(0, 6), n=st.integers(0, 9), seed=st.integers(0, 99))
@settings(deadline=None, derandomize=True)
def test_unseen_samples_are_new_distinct_and_end_with_the_space(seen, n, seed):
    known = [*list(codes.every(SMALL))[:seen], Architecture("other", (0, 0, 0))]
    fresh = codes.sample_unseen(SMALL, n, known, rng=np.random.default_rng(seed))
    assert len(fresh) == min(n, 6 - seen)
    assert len(set(fresh)) == len(fresh)
    assert not set(fresh) & set(known)


def test_the_last_unseen_codes_of_a_space_are_found_at_once():
    every = list(codes.every(NB201))
    hidden = {every[7], every[9000], every[15_000]}
    begin = time.process_time()
    found = codes.sample_unseen(NB201, 10, frozenset(every) - hidden, rng=np.random.default_rng(0))
    assert set(found) == hidden
    assert time.process_time() - begin < 1.0


def test_unseen_samples_of_a_huge_space():
    seen = codes.sample(HUGE, 500, rng=np.random.default_rng(0))
    fresh = codes.sample_unseen(HUGE, 1000, seen, rng=np.random.default_rng(0))  # the same stream proposes them again
    assert len(set(fresh)) == 1000
    assert not set(fresh) & set(seen)


@given(changes=st.integers(1, 8), seed=st.integers(0, 999))
@settings(deadline=None, derandomize=True)
def test_mutation_changes_exactly_so_many_positions(changes, seed):
    parent = Architecture("mixed", (0, 0, 2, 1, 0))
    choices = (2, 1, 3, 4, 1)
    child = codes.mutate(parent, choices, rng=np.random.default_rng(seed), changes=changes)
    differing = [i for i in range(5) if child.code[i] != parent.code[i]]
    assert len(differing) == min(changes, 3)
    assert not {1, 4} & set(differing)
    codes.validate(Plain("mixed", choices), child)


def test_mutation_reaches_every_neighbour_equally():
    rng = np.random.default_rng(0)
    parent = Architecture("wide", (0, 0))
    children = [codes.mutate(parent, (3, 3), rng=rng).code for _ in range(4000)]
    counts = [children.count(code) for code in ((1, 0), (2, 0), (0, 1), (0, 2))]
    assert sum(counts) == 4000
    assert max(abs(count - 1000) for count in counts) < 150


def test_crossover_takes_each_position_from_a_parent():
    a, b = Architecture("wide", (0,) * 8), Architecture("wide", (1,) * 8)
    rng = np.random.default_rng(0)
    share = np.mean([codes.crossover(a, b, rng=rng).code for _ in range(500)], axis=0)
    assert np.abs(share - 0.5).max() < 0.12
    with pytest.raises(InvalidArchitecture, match="one space"):
        codes.crossover(a, Architecture("other", (1,) * 8), rng=rng)


def test_one_hot_blocks():
    encoded = codes.one_hot([Architecture("small", (1, 0, 2)), Architecture("small", (0, 0, 0))], SMALL.choices)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[0, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0]]
    assert codes.one_hot([], SMALL.choices).shape == (0, 6)


def test_validation_refuses_what_is_no_integer():
    for value in (True, 1.0, "1"):
        with pytest.raises(InvalidArchitecture, match=r"position 2.*int"):
            codes.validate(SMALL, Architecture("small", (0, 0, value)))


class TestToyEvaluator:
    def test_it_answers_counts_and_fails_as_planted(self):
        evaluator, space = toy.ToyEvaluator(), toy.ToySpace()
        assert isinstance(evaluator, Evaluator)
        assert isinstance(space, SearchSpace)
        assert evaluator.context("latency_ms", "elsewhere") is None
        every = list(codes.every(space))
        rows = list(evaluator.evaluate(every, [("val_error_pct", None), ("latency_ms", toy.DEVICE)]))
        assert evaluator.asked == [(row.architecture, row.metric) for row in rows]
        failed = [row for row in rows if not row.status.has_value]
        assert {row.status for row in failed} == {Status.NOT_MEASURED}
        assert {row.architecture for row in failed} == {a for a in every if a.code.count(2) >= 3}
        for row in rows:
            assert row.context == evaluator.context(row.metric, row.context.device)

    def test_architectures_of_one_function_have_equal_values(self):
        evaluator, space = toy.ToyEvaluator(), toy.ToySpace()
        for metric in ("val_error_pct", "latency_ms", "energy_mj", "params_m"):
            for architecture in codes.every(space):
                here = evaluator.truth(architecture, metric)
                assert here == pytest.approx(evaluator.truth(space.canonical(architecture), metric), nan_ok=True)

    def test_its_front_trades_error_for_latency(self):
        front, values = toy.ToyEvaluator().front([("val_error_pct", None), ("latency_ms", toy.DEVICE)])
        distinct = np.unique(values, axis=0)
        assert len(front) == len(values)
        assert len(distinct) >= 6
        assert (np.diff(distinct[:, 0]) > 0).all()
        assert (np.diff(distinct[:, 1]) < 0).all()
