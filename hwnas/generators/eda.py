"""Marginal estimation of distribution: independent choice frequencies, weighted by rank.

This is what weighted retraining of a graph decoder whose latent is unrelated to its target amounts to (its optimum
are the weighted marginals of the data), without the network: the baseline that such a method has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core import target
from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.spaces.codes import from_array, one_hot, sample_unseen

_CHUNKS = 20  # of 4 n samples each, before uniform draws fill up


class MarginalEDA:
    """Samples each position on its own from weighted frequencies over the archive.

    p_ik = (1 - smoothing) * sum_a w_a [code_ai = k] + smoothing / choices_i, where w are the rank weights of
    `hwnas.core.target.weights` (failures weigh nothing), applied once. A function of the archive alone, so nothing
    has to be saved.

    Args:
        space: Where to search.
        batch: Evaluations it asks for in a step; the first step is uniform.
        smoothing: Share of the uniform distribution, 0..1: what keeps a choice from dying out.
        factor: k of w ~ 1 / (k n + rank); smaller is greedier.
    """

    name = "eda"

    def __init__(self, space: SearchSpace, *, batch: int = 16, smoothing: float = 0.03, factor: float = 0.01) -> None:
        if not (batch >= 1 and 0.0 < smoothing <= 1.0 and factor > 0.0):
            raise ValueError(
                f"batch >= 1, 0 < smoothing <= 1 and factor > 0 are wanted, got {batch=}, {smoothing=}, {factor=}"
            )
        self.space = space
        self.batch = batch
        self.smoothing = smoothing
        self.factor = factor

    def batch_size(self, state: SearchState) -> int:
        del state
        return self.batch

    def marginals(self, state: SearchState) -> list[NDArray[np.float64]]:
        """For each position the probability of each choice; uniform where nothing succeeded yet."""
        weights = target.weights(state, self.factor)
        frequencies = weights @ one_hot(state.architectures, self.space.choices)
        blocks = np.split(frequencies, np.cumsum(self.space.choices)[:-1])
        learned = (1.0 - self.smoothing) if weights.sum() > 0 else 0.0
        return [learned * block + (1.0 - learned) / len(block) for block in blocks]

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        marginals = self.marginals(state)
        chosen: dict[Architecture, None] = {}
        for _ in range(_CHUNKS):
            if len(chosen) >= n:
                break
            columns = [rng.choice(len(p), size=4 * n, p=p / p.sum()) for p in marginals]
            for architecture in from_array(self.space.name, np.stack(columns, axis=1)):
                if len(chosen) < n and architecture not in state.seen:
                    chosen[architecture] = None
        rest = sample_unseen(self.space, n - len(chosen), state.seen.union(chosen), rng=rng)
        return (*chosen, *rest)

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        del state, rng

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        del saved
