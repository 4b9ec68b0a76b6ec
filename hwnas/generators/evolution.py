"""Regularised (ageing) evolution, Real et al. 2019 (arXiv 1802.01548, algorithm 1), for several objectives.

Two things differ from the paper. "Better" is the order that every generator here shares (violation, Pareto rank,
crowding), so budgets, several objectives and several fronts work; and a child that was already evaluated is dropped for
another tournament instead of being paid again. The population is the youngest part of the archive, so nothing has to be
saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.spaces.codes import mutate, sample_unseen

_TRIES = 100  # tournaments for one child before a uniform draw takes its place


class RegularizedEvolution:
    """The best of a random sample of the population has a child by one mutation; the oldest member dies.

    Args:
        space: Where to search.
        population: How many of the youngest evaluations are alive; until there are as many, draws are uniform.
        sample: How many of them compete for one child; a larger sample is greedier.
        batch: Children in a step; all of them come from the same population.
    """

    name = "evolution"

    def __init__(self, space: SearchSpace, *, population: int = 50, sample: int = 10, batch: int = 1) -> None:
        if not (1 <= sample <= population and batch >= 1):
            raise ValueError(
                f"1 <= sample <= population and batch >= 1 are wanted, got {sample=}, {population=}, {batch=}"
            )
        self.space = space
        self.population = population
        self.sample = sample
        self.batch = batch

    def batch_size(self, state: SearchState) -> int:
        return max(self.batch, self.population - len(state.archive))

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        """Uniform until the population is complete, then children."""
        founders = min(n, max(0, self.population - len(state.archive)))
        chosen = dict.fromkeys(sample_unseen(self.space, founders, state.seen, rng=rng))
        if len(chosen) < n and len(chosen) == founders:
            alive = np.arange(max(0, len(state.archive) - self.population), len(state.archive))
            place = np.empty(len(alive), dtype=np.int64)
            place[state.order_among(alive)] = np.arange(len(alive))
            while len(chosen) < n:
                child = self._child(state, chosen, alive, place, rng)
                if child is None:
                    break
                chosen[child] = None
        return tuple(chosen)

    def _child(
        self,
        state: SearchState,
        chosen: Mapping[Architecture, None],
        alive: NDArray[np.int64],
        place: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Architecture | None:
        """An unseen child of a tournament's winner; None where the space is exhausted."""
        for _ in range(_TRIES if len(alive) else 0):
            rivals = rng.choice(len(alive), size=min(self.sample, len(alive)), replace=False)
            winner = state.architectures[alive[rivals[np.argmin(place[rivals])]]]
            child = mutate(winner, self.space.choices, rng=rng)
            if child not in state.seen and child not in chosen:
                return child
        rest = sample_unseen(self.space, 1, state.seen.union(chosen), rng=rng)
        return rest[0] if rest else None

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        del state, rng

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        del saved
