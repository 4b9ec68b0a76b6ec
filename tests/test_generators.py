"""Baseline generators: the shared suite, and what is particular to each."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwnas.core.architecture import Architecture
from hwnas.core.objective import Objective
from hwnas.core.protocols import Generator, SearchSpace
from hwnas.core.state import SearchState
from hwnas.errors import MissingExtra, RunIncompatible, UnknownName
from hwnas.generators.eda import MarginalEDA
from hwnas.generators.evolution import RegularizedEvolution
from hwnas.generators.pymoo_ea import ALGORITHMS, PymooEA, nsga2
from hwnas.generators.random import RandomSearch
from hwnas.spaces.codes import every
from hwnas.testing.generators import GeneratorSuite, answer, through_json
from hwnas.testing.toy import ToySpace


class TestRandomSearch(GeneratorSuite):
    learns = False

    def make(self, space: SearchSpace) -> Generator:
        return RandomSearch(space)


class TestRegularizedEvolution(GeneratorSuite):
    def make(self, space: SearchSpace) -> Generator:
        return RegularizedEvolution(space, population=10, sample=4)

    def test_children_differ_from_a_living_member_in_one_position(self) -> None:
        state, _ = self.run(steps=4)  # 16 evaluations, the last 10 alive
        generator = RegularizedEvolution(self.space(), population=10, sample=10)
        (child,) = generator.propose(state, 1, rng=np.random.default_rng(0))
        alive = state.architectures[-10:]
        distance = [sum(x != y for x, y in zip(child.code, other.code, strict=True)) for other in alive]
        assert min(distance) == 1

    def test_the_dead_have_no_children(self) -> None:
        """The best of all is the oldest; with a full tournament its children would be all there is."""
        ranked = sorted(every(self.space()), key=lambda a: (a.code.count(1), a.code), reverse=True)
        state = self.start().tell(answer([Architecture("toy", (1, 2, 1, 2)), *ranked[:6]]))
        generator = RegularizedEvolution(self.space(), population=6, sample=6)
        children = generator.propose(state, 5, rng=np.random.default_rng(0))
        nearest = [min(_distance(child, other) for other in ranked[:6]) for child in children]
        assert max(nearest) == 1, "a child that is known is dropped, not mutated further"


class TestMarginalEDA(GeneratorSuite):
    def make(self, space: SearchSpace) -> Generator:
        return MarginalEDA(space)

    def test_marginals_are_the_weighted_frequencies(self) -> None:
        state = self.start().tell(answer([Architecture("toy", (1, 2, 1, 2)), Architecture("toy", (2, 0, 0, 0))]))
        # both on the front, so crowding (infinite) ties and the archive's order decides: w ~ 1/0.02, 1/1.02
        first = (1 / 0.02) / (1 / 0.02 + 1 / 1.02)
        marginals = MarginalEDA(self.space(), smoothing=0.3).marginals(state)
        assert marginals[0] == pytest.approx([0.1, 0.1 + 0.7 * first, 0.1 + 0.7 * (1 - first)])
        assert marginals[3] == pytest.approx([0.1 + 0.7 * (1 - first), 0.1, 0.1 + 0.7 * first])

    def test_failures_weigh_nothing(self) -> None:
        failed = Architecture("toy", (2, 2, 2, 2))
        state = self.start().tell(answer([Architecture("toy", (1, 1, 1, 1)), failed]))
        assert np.isnan(state.losses[1]).any()
        marginals = MarginalEDA(self.space(), smoothing=0.03).marginals(state)
        assert marginals[0] == pytest.approx([0.01, 0.98, 0.01])


class PymooSuite(GeneratorSuite):
    algorithm: str

    def make(self, space: SearchSpace) -> Generator:
        return PymooEA(space, self.algorithm, population=8)


class TestNSGA2(PymooSuite):
    algorithm = "nsga2"

    def test_known_offspring_are_told_for_free(self) -> None:
        state, generator = self.start(), self.make(self.space())
        while len(state.archive) < 70:
            state = self.advance(state, generator, generator.batch_size(state))
        told = sum(len(generation["x"]) for generation in generator.state_dict()["told"])
        assert told > len(state.archive), "no offspring was a known one: the test tests nothing"

    def test_failures_are_constraints_and_no_number_is_invented(self) -> None:
        state, generator = self.run(steps=10)
        rows = {architecture.code: i for i, architecture in enumerate(state.architectures)}
        failed = 0
        for generation in generator.state_dict()["told"]:
            for x, f, g in zip(generation["x"], generation["f"], generation["g"], strict=True):
                row = rows[tuple(x.tolist())]
                assert np.array_equal(f, state.losses[row], equal_nan=True)
                assert (g[0] > 0) == bool(np.isnan(f).any())
                failed += int(np.isnan(f).any())
        assert failed, "no failure was told: the test tests nothing"

    def test_another_breed_of_offspring_is_refused(self) -> None:
        _, generator = self.run(steps=6)
        saved = through_json(generator.state_dict())
        saved["told"][1]["x"][0] = (saved["told"][1]["x"][0] + 1) % 3
        with pytest.raises(RunIncompatible, match="pymoo"):
            self.make(self.space()).load_state_dict(saved)

    def test_another_algorithm_is_refused(self) -> None:
        _, generator = self.run(steps=3)
        with pytest.raises(RunIncompatible, match="nsga3"):
            PymooEA(self.space(), "nsga3").load_state_dict(generator.state_dict())

    def test_an_archive_larger_than_the_population_founds_it_with_its_best(self) -> None:
        state = self.start().tell(answer(list(every(self.space()))[:40]))
        generator = self.make(self.space())
        generator.update(state, rng=state.rng("update"))
        founders = {tuple(x.tolist()) for x in generator.state_dict()["told"][0]["x"]}
        assert founders == {state.architectures[i].code for i in state.order[:8]}


class TestNSGA3(PymooSuite):
    algorithm = "nsga3"


class TestSMSEMOA(PymooSuite):
    algorithm = "smsemoa"


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"nsga2", "nsga3", "smsemoa", "ga"}))
def test_other_pymoo_algorithms_search_save_and_continue(name: str) -> None:
    if name == "agemoea":
        pytest.importorskip("numba")
    suite = PymooSuite()
    suite.algorithm = name
    suite.test_a_restored_generator_continues_equally()
    suite.test_an_archive_of_failures_is_survived()
    suite.test_a_budget_that_nothing_meets_is_survived()


@pytest.mark.parametrize("objectives", [1, 3])
def test_pymoo_takes_one_objective_and_three(objectives: int) -> None:
    kinds = (Objective("val_error_pct"), Objective("latency_ms", "toybox"), Objective("val_error_pct", goal="max"))
    state = SearchState("toy", kinds[:objectives], queries=60)
    for name in ("ga",) if objectives == 1 else ("nsga2", "nsga3", "smsemoa"):
        now, generator = state, PymooEA(ToySpace(), name, population=10)
        while now.remaining:
            n = min(generator.batch_size(now), now.remaining)
            now = now.tell(answer(generator.propose(now, n, rng=now.rng("propose"))))
            generator.update(now, rng=now.rng("update"))
        assert len(now.archive) == 60
        if objectives == 1:
            assert np.nanmin(now.losses) == np.nanmin(_errors())


def test_an_unknown_pymoo_algorithm_suggests_a_known_one() -> None:
    with pytest.raises(UnknownName, match="nsga2"):
        PymooEA(ToySpace(), "nsga22")
    with pytest.raises(UnknownName, match="smsemoa"):
        PymooEA(ToySpace(), "pymoo.algorithms.moo.sms:NoSuchClass")


def test_a_pymoo_class_is_found_by_its_path() -> None:
    generator = PymooEA(ToySpace(), "pymoo.algorithms.moo.spea2:SPEA2")
    assert generator.name == "pymoo:pymoo.algorithms.moo.spea2:SPEA2"


def test_a_missing_package_of_an_algorithm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> Any:
        raise Exception("Please install numba")  # what pymoo does

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtra, match="numba"):
        PymooEA(ToySpace(), "agemoea")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda space: RandomSearch(space, batch=0),
        lambda space: RegularizedEvolution(space, population=5, sample=6),
        lambda space: MarginalEDA(space, smoothing=0.0),
        lambda space: nsga2(space, population=1),
        lambda space: nsga2(space, crossover=1.5),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        wrong(ToySpace())


def test_a_search_may_stop_before_the_population_is_complete() -> None:
    generator = nsga2(ToySpace())
    state = replace(GeneratorSuite().start(), queries=7)
    state = state.tell(answer(generator.propose(state, 7, rng=state.rng("propose"))))
    generator.update(state, rng=state.rng("update"))
    restored = nsga2(ToySpace())
    restored.load_state_dict(through_json(generator.state_dict()))
    assert restored.batch_size(state) == 13


def _distance(a: Architecture, b: Architecture) -> int:
    return sum(x != y for x, y in zip(a.code, b.code, strict=True))


def _errors() -> np.ndarray:
    from hwnas.testing.generators import truth

    return truth()[:, 0]
