"""Uniform random search: the baseline that keeps the seam honest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.spaces.codes import sample_unseen


class RandomSearch:
    """Proposes unseen architectures uniformly and learns nothing.

    Args:
        space: Where to draw from.
        batch: Evaluations it asks for in a step.
    """

    name = "random"

    def __init__(self, space: SearchSpace, *, batch: int = 16) -> None:
        if batch < 1:
            raise ValueError(f"batch is a number of evaluations above 0, got {batch}")
        self.space = space
        self.batch = batch

    def batch_size(self, state: SearchState) -> int:
        del state
        return self.batch

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        return sample_unseen(self.space, n, state.seen, rng=rng)

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        del state, rng

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        del saved
