"""Random streams. The only module that touches a global or torch random state.

A stream is a function of (seed, step, role), so a run that stops and continues draws exactly what an
uninterrupted one would have drawn, and nothing about random state has to be saved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stable_hash(text: str) -> int:
    """A 32-bit hash that is the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def stream(seed: int, step: int, role: str) -> np.random.Generator:
    """The generator for one role in one step of one run.

    Args:
        seed: The run's seed.
        step: The step of the search, 0 for what happens before the first one.
        role: Who draws, e.g. "propose"; different roles never share numbers.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, stable_hash(role))))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A CPU torch generator seeded from `rng` (one draw); torch's global state is left alone."""
    import torch

    return torch.Generator().manual_seed(int(rng.integers(2**62)))


class torch_seeded:
    """Context in which torch's *global* generator is seeded from `rng`; the outer state is restored.

    For code that cannot be given a generator, such as the initialisation of `torch.nn` layers.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**62))

    def __enter__(self) -> None:
        import torch

        self._state = torch.random.get_rng_state()
        torch.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.random.set_rng_state(self._state)
