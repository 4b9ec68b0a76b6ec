"""pymoo's evolutionary algorithms as generators, through ask and tell.

An individual is a code; operators are those of categorical variables (uniform crossover, random reset), because
neighbouring numbers of a choice mean nothing. Budgets and failures are one inequality constraint (G > 0: the
state's relative violation, inf for a failure), so no loss is ever replaced by a big number.

An algorithm object cannot be saved without a pickle. It is a function of its seed and of what it was told, so that
history is saved and replayed; a replay that asks for other offspring (another pymoo) is refused.

An algorithm has one set of objectives. Where a search has several fronts it sees those of all devices together: what is
on the front of one device is not dominated there either, unless an equal is better on another one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.config import Config
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.termination.max_gen import MaximumGenerationTermination

from hwnas import optional
from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.errors import InvalidSetting, MissingExtra, RunIncompatible, UnknownName
from hwnas.spaces.codes import Codes, from_array, sample_unseen, size, to_array

Floats = NDArray[np.float64]

# those that never look at the losses of infeasible individuals, which may be nan (C-TAEA does; MOEA/D refuses
# constraints; AGE-MOEA-II divides by zero on small fronts)
_MOO, _SOO = "pymoo.algorithms.moo", "pymoo.algorithms.soo.nonconvex"
ALGORITHMS: Mapping[str, str] = {
    "nsga2": f"{_MOO}.nsga2:NSGA2",
    "nsga3": f"{_MOO}.nsga3:NSGA3",
    "unsga3": f"{_MOO}.unsga3:UNSGA3",
    "agemoea": f"{_MOO}.age:AGEMOEA",
    "smsemoa": f"{_MOO}.sms:SMSEMOA",
    "spea2": f"{_MOO}.spea2:SPEA2",
    "rvea": f"{_MOO}.rvea:RVEA",
    "ga": f"{_SOO}.ga:GA",  # one objective
}
_FREE_TURNS = 30  # generations of known offspring in a row before uniform immigrants take their place


class RandomReset(Mutation):  # type: ignore[misc]
    """Each position takes another value, uniformly, with chance `prob_var` (default 1 / positions)."""

    def _do(self, problem: Any, X: Codes, *args: Any, random_state: Any = None, **kwargs: Any) -> Codes:
        chance = self.get_prob_var(problem, size=len(X))[:, None]
        hit = random_state.random(X.shape) < chance
        choices = np.asarray(problem.xu, dtype=np.int64) + 1
        shift = 1 + np.floor(random_state.random(X.shape) * (choices - 1)).astype(np.int64)
        return np.where(hit & (choices > 1), (X + shift) % choices, X)


@dataclass(frozen=True)
class _Generation:
    """What an algorithm was told: its own offspring first (`own` of them), then architectures from elsewhere."""

    own: int
    x: Codes
    f: Floats
    g: Floats


class PymooEA:
    """One of pymoo's algorithms (Blank & Deb 2020, doi:10.1109/ACCESS.2020.2990567).

    The first `population` proposals are uniform and found the population; where an archive exists already, its best
    rows do. Offspring that were evaluated before are told from the archive and not paid again.

    Args:
        space: Where to search.
        algorithm: A name of `ALGORITHMS`, or "module:Class" of any class with pymoo's genetic interface.
        population: Individuals, and offspring a generation.
        crossover: Chance that two parents are crossed.
        mutation: Chance that a position of a child takes another value; None for 1 / positions.

    Raises:
        UnknownName: No such algorithm.
        MissingExtra: The algorithm needs a package that is not installed (AGE-MOEA: numba).
    """

    def __init__(
        self,
        space: SearchSpace,
        algorithm: str = "nsga2",
        *,
        population: int = 20,
        crossover: float = 0.9,
        mutation: float | None = None,
    ) -> None:
        if population < 2:
            raise ValueError(f"a population has at least 2 individuals, got {population}")
        if not 0.0 <= crossover <= 1.0 or not (mutation is None or 0.0 <= mutation <= 1.0):
            raise ValueError(f"crossover and mutation are chances in 0..1, got {crossover=}, {mutation=}")
        self.name = algorithm if algorithm in ALGORITHMS else f"pymoo:{algorithm}"
        self.space = space
        self.population = population
        self.crossover = crossover
        self.mutation = mutation
        self._class = _find(algorithm)
        self._forget()

    def _forget(self) -> None:
        self._algorithm: Any = None
        self._setup: dict[str, int] = {}
        self._told: list[_Generation] = []
        self._asked: Any = None  # pymoo's individuals of the present generation
        self._pending: tuple[Architecture, ...] = ()
        self._known = 0  # rows of the archive that were told or passed over

    # -- the seam --------------------------------------------------------------------------------------------

    def batch_size(self, state: SearchState) -> int:
        if self._algorithm is None:
            return max(1, self.population - len(state.archive))
        return max(1, sum(architecture not in state.seen for architecture in self._pending))

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        """The rest of the present generation, up to `n`."""
        if self._algorithm is None:
            return sample_unseen(self.space, n, state.seen, rng=rng)
        return [architecture for architecture in self._pending if architecture not in state.seen][:n]

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        """Tell complete generations and ask for the next, until something in it has not been evaluated."""
        if len(state.seen) >= size(self.space):
            return
        if self._algorithm is None:
            if len(state.archive) < self.population:
                return
            self._begin(state, rng)
        for turn in range(_FREE_TURNS + 1):
            if not all(architecture in state.seen for architecture in self._pending):
                return
            if self._pending:
                self._tell(state)
            self._ask()
            if turn == _FREE_TURNS or not self._pending:
                self._asked = Population.new(X=np.zeros((0, len(self.space.choices)), dtype=np.int64))
                self._pending = tuple(sample_unseen(self.space, self.population, state.seen, rng=rng))

    def state_dict(self) -> dict[str, Any]:
        return {
            "algorithm": self.name,
            "pymoo": str(optional.version("pymoo")),
            "setup": dict(self._setup),
            "told": [
                {"own": each.own, "x": each.x.copy(), "f": each.f.copy(), "g": each.g.copy()} for each in self._told
            ],
            "own": 0 if self._asked is None else len(self._asked),
            "pending": to_array(self._pending, len(self.space.choices)),
            "known": self._known,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Replay what was told.

        Raises:
            RunIncompatible: If it was saved by another algorithm, or this pymoo breeds other offspring.
        """
        if saved["algorithm"] != self.name:
            raise RunIncompatible(f"a state of {saved['algorithm']!r} was given to generator {self.name!r}")
        self._forget()
        if not saved["told"]:
            return
        self._build({key: int(value) for key, value in saved["setup"].items()})
        for each in saved["told"]:
            generation = _Generation(
                int(each["own"]),
                np.asarray(each["x"], dtype=np.int64),
                np.asarray(each["f"], dtype=np.float64),
                np.asarray(each["g"], dtype=np.float64),
            )
            if self._told:
                self._ask()
                self._check(generation.own, generation.x, saved)
            self._advance(generation)
        self._ask()
        pending = np.asarray(saved["pending"], dtype=np.int64)
        self._check(int(saved["own"]), pending, saved)
        self._asked = self._asked[: int(saved["own"])]
        self._pending = tuple(from_array(self.space.name, pending))
        self._known = int(saved["known"])

    # -- pymoo -----------------------------------------------------------------------------------------------

    def _begin(self, state: SearchState, rng: np.random.Generator) -> None:
        """Found the population from the best rows of the archive."""
        generations = max(1, state.queries // self.population)
        self._build(
            {
                "seed": int(rng.integers(2**31)),
                "objectives": len(state.objectives),
                "generations": generations,
            }
        )
        founders = np.sort(state.order[: self.population])
        x = to_array([state.architectures[i] for i in founders])
        self._advance(_Generation(0, x, state.losses[founders], _excess(state)[founders, None]))
        self._known = len(state.archive)

    def _build(self, setup: Mapping[str, int]) -> None:
        """A fresh algorithm that has been told nothing."""
        self._setup = dict(setup)
        upper = np.asarray(self.space.choices) - 1
        problem = Problem(
            n_var=len(upper), n_obj=setup["objectives"], n_ieq_constr=1, xl=np.zeros_like(upper), xu=upper, vtype=int
        )
        settings: dict[str, Any] = {
            "pop_size": self.population,
            "sampling": None,  # founders are told, not drawn
            "crossover": UniformCrossover(prob=self.crossover),
            "mutation": RandomReset(prob=1.0, prob_var=self.mutation),
            "eliminate_duplicates": DefaultDuplicateElimination(),
        }
        admitted = inspect.signature(self._class).parameters
        if "ref_dirs" in admitted:
            settings["ref_dirs"] = _directions(setup["objectives"], self.population)
            if "pop_size" not in admitted:
                del settings["pop_size"]  # one individual a direction
        self._algorithm = self._class(**settings)
        try:
            self._algorithm.setup(
                problem,
                seed=setup["seed"],
                termination=MaximumGenerationTermination(setup["generations"]),
                verbose=False,
            )
        except AssertionError as error:
            raise InvalidSetting(
                f"generator {self.name!r} cannot be used: failures are constraints to pymoo, and {error}"
            ) from error

    def _ask(self) -> None:
        offspring = self._algorithm.ask()
        empty = offspring is None or len(offspring) == 0
        self._asked = Population() if empty else offspring
        codes = np.zeros((0, len(self.space.choices))) if empty else np.asarray(offspring.get("X"))
        self._pending = tuple(dict.fromkeys(from_array(self.space.name, codes.astype(np.int64))))

    def _tell(self, state: SearchState) -> None:
        """Tell the present generation and whatever else was evaluated meanwhile."""
        own = [tuple(map(int, x)) for x in self._asked.get("X")] if len(self._asked) else []
        rows = {architecture.code: i for i, architecture in enumerate(state.architectures)}
        known = set(own)
        others = [a.code for a in (*self._pending, *state.architectures[self._known :]) if a.code not in known]
        codes = own + list(dict.fromkeys(others))
        chosen = [rows[code] for code in codes]
        self._advance(
            _Generation(
                len(own),
                np.array(codes, dtype=np.int64),
                state.losses[chosen],
                _excess(state)[chosen, None],
            )
        )
        self._known = len(state.archive)

    def _advance(self, generation: _Generation) -> None:
        own = self._asked if generation.own else Population()
        told = Population.merge(own, Population.new(X=generation.x[generation.own :]))
        told.set("F", generation.f, "G", generation.g)
        told.apply(lambda individual: individual.evaluated.update("FG"))
        if not self._told:
            self._algorithm.initialization.sampling = told
            told = self._algorithm.ask()
        self._algorithm.tell(infills=told)
        self._told.append(generation)

    def _check(self, own: int, wanted: Codes, saved: Mapping[str, Any]) -> None:
        asked = np.asarray(self._asked.get("X")) if len(self._asked) else wanted[:0]
        if own and not np.array_equal(asked, wanted[:own]):
            raise RunIncompatible(
                f"{self.name} of pymoo {optional.version('pymoo')} breeds other offspring than the run's, which was "
                f"made with pymoo {saved['pymoo']}: install that version to continue it"
            )


def nsga2(
    space: SearchSpace, *, population: int = 20, crossover: float = 0.9, mutation: float | None = None
) -> PymooEA:
    """NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) as pymoo has it."""
    return PymooEA(space, "nsga2", population=population, crossover=crossover, mutation=mutation)


def _excess(state: SearchState) -> Floats:
    """`n` violations, inf for failures: with several fronts a network may be feasible on one device and fail on
    another, but an algorithm has one population, which is compared in all objectives."""
    return np.where(np.isnan(state.losses).any(axis=1), np.inf, state.violations)


def _find(algorithm: str) -> Any:
    """The class that a name of `ALGORITHMS` or a "module:Class" stands for."""
    module, colon, name = ALGORITHMS.get(algorithm, algorithm).partition(":")
    if not colon:
        raise UnknownName("pymoo algorithm", algorithm, ALGORITHMS)
    Config.warnings["not_compiled"] = False
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnknownName("pymoo algorithm", algorithm, ALGORITHMS) from error
    except Exception as error:  # pymoo raises a bare Exception where numba is missing
        raise MissingExtra(f"pymoo's {name} needs a package that is not installed: {error}") from error


def _directions(objectives: int, population: int) -> Floats:
    """At most `population` reference directions, evenly spread over the unit simplex (Das & Dennis 1998)."""
    from pymoo.util.ref_dirs import get_reference_directions

    if objectives == 1:
        return np.ones((1, 1))
    chosen = np.eye(objectives)
    for partitions in range(1, population):
        finer = np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=partitions))
        if len(finer) > population:
            break
        chosen = finer
    return chosen
