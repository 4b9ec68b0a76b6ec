"""The contract of a generator as tests: subclass `GeneratorSuite`, say how one is made, and run pytest.

    class TestMine(GeneratorSuite):
        def make(self, space):
            return Mine(space)

The suite drives generators itself (propose, tell, update), on `ToySpace` with a planted objective, so it needs no
tables, no loop and no evaluator. A generator that learns nothing sets `learns = False`; one that a test's few
seconds do not suffice for lowers `steps`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core import pareto
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Measurement, Status
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import Generator, SearchSpace
from hwnas.core.state import SearchState
from hwnas.spaces.codes import every, sample
from hwnas.testing.toy import DEVICE, PHONE, ToyEvaluator, ToySpace

Rule = Callable[[Architecture, str], bool]

OBJECTIVES = (Objective("val_error_pct"), Objective("latency_ms", DEVICE))
WANTED = (("val_error_pct", None), ("latency_ms", DEVICE))
PHONE_LATENCY = Objective("latency_ms", PHONE)


def nothing_fails(architecture: Architecture, metric: str) -> bool:
    """The rule that plants no failure besides those of `ToyEvaluator`."""
    del architecture, metric
    return False


def answer(
    architectures: Sequence[Architecture],
    fails: Rule = nothing_fails,
    wanted: Sequence[tuple[str, str | None]] = WANTED,
) -> list[Measurement]:
    """Planted measurements of `OBJECTIVES`; those that `fails(architecture, metric)` names become failures."""
    return [
        Measurement.failed(row.architecture, row.metric, row.context, Status.CRASHED, "planted failure")
        if fails(row.architecture, row.metric)
        else row
        for row in ToyEvaluator().evaluate(architectures, wanted)
    ]


def truth(device: str = DEVICE) -> NDArray[np.float64]:
    """`81 x 2` planted losses of the whole toy space, error and latency on a device; nan where not measurable."""
    evaluator, metrics = ToyEvaluator(), [metric for metric, _ in WANTED]
    return np.array([[evaluator.truth(a, metric, device) for metric in metrics] for a in every(ToySpace())])


def through_json(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What `state_dict` returned, written to JSON text and read again; arrays keep type and shape.

    Raises:
        TypeError: If it holds anything but dicts with string keys, lists, numbers, strings, None and arrays.
    """
    return dict(_decode(json.loads(json.dumps(_encode(saved)))))


def _encode(item: Any) -> Any:
    if isinstance(item, Mapping):
        if not all(isinstance(key, str) for key in item):
            raise TypeError(f"a saved state has string keys only; got {list(item)}")
        return {"dict": {key: _encode(value) for key, value in item.items()}}
    if isinstance(item, list):
        return {"list": [_encode(value) for value in item]}
    if isinstance(item, np.ndarray):
        return {"dtype": str(item.dtype), "shape": list(item.shape), "data": item.ravel().tolist()}
    if item is None or type(item) in (bool, int, float, str):
        return {"plain": item}
    raise TypeError(f"a saved state holds dicts, lists, numbers, strings, None and arrays; got {type(item)}")


def _decode(item: Any) -> Any:
    if "dict" in item:
        return {key: _decode(value) for key, value in item["dict"].items()}
    if "list" in item:
        return [_decode(value) for value in item["list"]]
    if "dtype" in item:
        return np.asarray(item["data"], dtype=item["dtype"]).reshape(item["shape"])
    return item["plain"]


class GeneratorSuite:
    """Every generator passes these. Subclass, name it `Test...`, override `make`."""

    learns = True  # whether proposals should become better than uniform ones
    steps = 8  # steps of `batch` evaluations: 32 of the 81 architectures
    batch = 4
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # of the tests that look at learning

    def make(self, space: SearchSpace) -> Generator:
        """A fresh generator for `space`; the same each time."""
        raise NotImplementedError("a suite says how its generator is made")

    # -- driving ---------------------------------------------------------------------------------------------

    def space(self) -> SearchSpace:
        return ToySpace()

    def start(self, *, seed: int = 0, latency_budget: float | None = None, queries: int = 1000) -> SearchState:
        constraints = () if latency_budget is None else (Constraint("latency_ms", latency_budget, DEVICE),)
        return SearchState(self.space().name, OBJECTIVES, constraints, queries=queries, seed=seed)

    def advance(
        self,
        state: SearchState,
        generator: Generator,
        n: int,
        fails: Rule = nothing_fails,
    ) -> SearchState:
        """One step: propose, evaluate, tell, update; the proposals are checked."""
        proposed = self.checked(state, generator, n)
        wanted = [(objective.metric, objective.device) for objective in state.objectives]
        state = state.tell(answer(proposed, fails, wanted))
        generator.update(state, rng=state.rng("update"))
        return state

    def checked(self, state: SearchState, generator: Generator, n: int) -> tuple[Architecture, ...]:
        """Proposals of one call: at most `n`, valid, distinct, unseen."""
        proposed = tuple(generator.propose(state, n, rng=state.rng("propose")))
        space = self.space()
        assert len(proposed) <= n, f"{len(proposed)} proposals where {n} were asked for"
        assert len(set(proposed)) == len(proposed), "a proposal is repeated"
        assert not state.seen & set(proposed), "a proposal was already evaluated"
        for architecture in proposed:
            assert isinstance(architecture, Architecture)
            assert all(type(choice) is int for choice in architecture.code), "a code holds Python integers"
            space.validate(architecture)
        return proposed

    def run(
        self,
        *,
        seed: int = 0,
        steps: int = 4,
        latency_budget: float | None = None,
        fails: Rule = nothing_fails,
        several: bool = False,
    ) -> tuple[SearchState, Generator]:
        state, generator = self.start(seed=seed, latency_budget=latency_budget), self.make(self.space())
        if several:
            state = self.for_two_devices(state)
        for _ in range(steps):
            state = self.advance(state, generator, self.batch, fails)
        return state, generator

    def for_two_devices(self, state: SearchState) -> SearchState:
        """The same search with a front for each of two devices."""
        return replace(state, objectives=(*OBJECTIVES, PHONE_LATENCY), front_devices=(DEVICE, PHONE))

    # -- proposals -------------------------------------------------------------------------------------------

    def test_it_has_a_name_and_wants_at_least_one_architecture(self) -> None:
        generator, state = self.make(self.space()), self.start()
        assert generator.name
        assert isinstance(generator, Generator)
        assert type(generator.batch_size(state)) is int
        assert generator.batch_size(state) >= 1

    def test_proposals_are_valid_distinct_unseen_and_enough(self) -> None:
        state, generator = self.start(), self.make(self.space())
        for _ in range(5):
            want = generator.batch_size(state)
            assert want >= 1
            proposed = self.checked(state, generator, want)
            assert proposed, "nothing proposed in a space that is mostly unseen"
            state = state.tell(answer(proposed))
            generator.update(state, rng=state.rng("update"))

    def test_any_number_can_be_asked_for(self) -> None:
        state, generator = self.run(steps=2)
        for n in (1, 2, 37):
            before = len(state.archive)
            state = self.advance(state, generator, n)
            assert before < len(state.archive) <= before + n

    def test_a_budget_smaller_than_the_batch_is_met(self) -> None:
        state, generator = self.start(queries=7), self.make(self.space())
        for _ in range(20):
            if state.remaining == 0:
                break
            state = self.advance(state, generator, min(self.batch, state.remaining))
        assert len(state.archive) == 7

    def test_a_step_that_evaluated_only_some_of_the_proposals(self) -> None:
        state, generator = self.start(), self.make(self.space())
        for _ in range(4):
            proposed = self.checked(state, generator, self.batch)
            state = state.tell(answer(proposed[: max(1, len(proposed) // 3)]))
            generator.update(state, rng=state.rng("update"))
        assert self.checked(state, generator, self.batch)

    def test_architectures_it_never_proposed_are_learned_from_too(self) -> None:
        given = dict.fromkeys(sample(self.space(), 30, rng=np.random.default_rng(5)))
        state, generator = self.start().tell(answer(list(given))), self.make(self.space())
        generator.update(state, rng=state.rng("update"))
        for _ in range(3):
            state = self.advance(state, generator, self.batch)
        assert len(state.archive) > len(given)

    def test_an_exhausted_space_ends_quietly(self) -> None:
        state, generator = self.start(), self.make(self.space())
        everything = list(every(self.space()))
        rest = np.random.default_rng(0).choice(len(everything), size=3, replace=False)
        told = [architecture for i, architecture in enumerate(everything) if i not in rest]
        state = state.tell(answer(told))
        generator.update(state, rng=state.rng("update"))
        for _ in range(12):
            if len(state.archive) == len(everything):
                break
            state = self.advance(state, generator, self.batch)
        assert len(state.archive) == len(everything), "some architectures were never proposed"
        assert tuple(generator.propose(state, self.batch, rng=state.rng("propose"))) == ()

    # -- reproducibility -------------------------------------------------------------------------------------

    def test_same_seed_same_search_and_another_seed_another(self) -> None:
        first, second, other = (self.run(seed=seed, steps=3)[0] for seed in (3, 3, 4))
        assert first.architectures == second.architectures
        assert first.architectures != other.architectures

    def test_global_random_states_are_left_alone(self) -> None:
        def states() -> tuple[str, ...]:
            torch = sys.modules.get("torch")
            drawn = "" if torch is None else str(torch.random.get_rng_state().tolist())
            return str(random.getstate()), str(np.random.get_state()), drawn  # noqa: NPY002

        self.run(steps=1)  # imports what it imports
        before = states()
        self.run(steps=3)
        assert states() == before

    def test_a_restored_generator_continues_equally(self) -> None:
        whole, _ = self.run(steps=5)
        state, generator = self.start(), self.make(self.space())
        for _ in range(5):
            restored = self.make(self.space())
            restored.load_state_dict(through_json(generator.state_dict()))
            generator = restored
            state = self.advance(state, generator, self.batch)
        assert state.architectures == whole.architectures

    def test_saving_changes_nothing_and_what_was_saved_stays(self) -> None:
        state, generator = self.run(steps=2)
        saved = generator.state_dict()
        text = json.dumps(_encode(saved))
        for _ in range(2):
            state = self.advance(state, generator, self.batch)
        assert json.dumps(_encode(saved)) == text, "a saved state changed while the search went on"
        rerun, _ = self.run(steps=4)
        assert rerun.architectures == state.architectures

    def test_proposing_leaves_no_trace_that_saving_would_miss(self) -> None:
        state, generator = self.run(steps=2)
        restored = self.make(self.space())
        restored.load_state_dict(through_json(generator.state_dict()))
        # one proposes twice before it learns, the other (a process that was killed) only once
        generator.propose(state, self.batch, rng=state.rng("propose"))
        after = [self.advance(state, each, self.batch) for each in (generator, restored)]
        assert after[0].architectures == after[1].architectures
        after = [self.advance(told, each, self.batch) for told, each in zip(after, (generator, restored), strict=True)]
        assert after[0].architectures == after[1].architectures

    # -- failures and budgets --------------------------------------------------------------------------------

    def test_failed_rows_are_survived(self) -> None:
        def fails(architecture: Architecture, metric: str) -> bool:
            return architecture.code[0] == 0 and (metric == "latency_ms" or architecture.code[1] == 0)

        state, _ = self.run(steps=4, fails=fails)
        assert np.isnan(state.losses).any(), "no failure happened: the test tests nothing"
        assert len(state.archive) > 2 * self.batch

    def test_an_archive_of_failures_is_survived(self) -> None:
        state, generator = self.run(steps=3, fails=lambda architecture, metric: True)
        assert np.isnan(state.losses).all()
        state = self.advance(state, generator, self.batch)  # and the first successes after it
        assert np.isfinite(state.losses).all(axis=1).any()
        assert self.checked(state, generator, self.batch)

    def test_a_budget_that_nothing_meets_is_survived(self) -> None:
        state, generator = self.run(steps=4, latency_budget=1e-6)
        assert (state.violations > 0).all()
        assert self.checked(state, generator, self.batch)

    def test_the_share_of_feasible_proposals_rises(self) -> None:
        if not self.learns:
            return
        budget = 1.55  # ms: 15 of the 81 architectures meet it
        uniform = float((truth()[:, 1] <= budget).mean())
        shares = []
        for seed in self.seeds:
            state, _ = self.run(seed=seed, steps=self.steps, latency_budget=budget)
            late = state.violations[len(state.archive) // 2 :]
            shares.append(float((late == 0).mean()))
        assert float(np.mean(shares)) >= 1.3 * uniform, f"feasible {shares}; of uniform proposals {uniform:.2f}"

    def test_it_is_no_worse_than_uniform_proposals(self) -> None:
        """By a wide margin: on average at least 0.9 of the volume that as many uniform proposals dominate."""
        table = truth()
        ours, uniform = [], []
        for seed in self.seeds:
            state, _ = self.run(seed=seed, steps=self.steps)
            ours.append(_volume(state.losses, table))
            uniform.append(_uniform_volume(table, len(state.archive), seed))
        assert float(np.mean(ours)) >= 0.9 * float(np.mean(uniform))

    # -- several fronts ---------------------------------------------------------------------------------------

    def test_several_fronts_are_searched_reproducibly_and_through_failures(self) -> None:
        """Each device fails for networks that the other one can run."""
        whole, _ = self.run(steps=6, several=True)
        for goal in whole.goals:
            assert np.isnan(goal.losses).any(axis=1).sum() < len(whole.archive)
            assert len(goal.front_indices)
        state, generator = self.for_two_devices(self.start()), self.make(self.space())
        for _ in range(6):
            restored = self.make(self.space())
            restored.load_state_dict(through_json(generator.state_dict()))
            generator = restored
            state = self.advance(state, generator, self.batch)
        assert state.architectures == whole.architectures

    def test_no_front_of_several_is_given_up_for_another(self) -> None:
        """On each device at least 0.85 of the volume that as many uniform proposals dominate."""
        states = [self.run(seed=seed, steps=self.steps, several=True)[0] for seed in self.seeds[:3]]
        for device in (DEVICE, PHONE):
            table = truth(device)
            ours = [_volume(state.by_device[device].losses, table) for state in states]
            uniform = [_uniform_volume(table, len(state.archive), state.seed) for state in states]
            assert float(np.mean(ours)) >= 0.85 * float(np.mean(uniform)), device


def _volume(losses: NDArray[np.float64], table: NDArray[np.float64]) -> float:
    """Hypervolume up to the medians of all planted losses, which are the unit of each axis."""
    low, high = np.nanmin(table, axis=0), np.nanmedian(table, axis=0)
    return pareto.hypervolume((losses - low) / (high - low), (1.0, 1.0))


def _uniform_volume(table: NDArray[np.float64], n: int, seed: int) -> float:
    """What `n` uniform proposals dominate on average."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(table), size=n, replace=False) for _ in range(10)]
    return float(np.mean([_volume(table[rows], table) for rows in drawn]))
