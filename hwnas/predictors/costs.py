"""What is known of an architecture's cost before a device has been asked, as features for predictors of that device.

Counts of parameters and multiply-accumulates, and what shipped surrogates say for *other* devices: latencies of
devices resemble each other, so after a few measurements a linear map of these ranks architectures better than the
architecture alone does after many (docs/benchmarks/profiling.md). The idea to reuse known devices for a new one is
HELP's (Lee et al., NeurIPS 2021, arXiv 2106.08630), there by meta-learning.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.seeding import stream
from hwnas.spaces.codes import sample
from hwnas.surrogates import ACCURACY, Profile, find_profiles

_METRIC = "latency_ms"  # energies of the same devices add nothing to it
_COUNTS = ("params_m", "macs_m")
_PROBES = 1000  # architectures that scale and centre are taken from


class KnownCosts:
    """Counts and latencies that shipped surrogates predict, standardised; computed once for an architecture and kept.

    Scaled so that two uniformly drawn architectures have a mean squared distance of 1.

    Args:
        space: The search space.
        dataset: Data set that networks are built for.
        columns: Surrogates with the column of each that is read.
    """

    def __init__(self, space: SearchSpace, dataset: str, columns: Sequence[tuple[Profile, int]] = ()) -> None:
        self._space = space
        self._dataset = dataset
        self._columns = tuple(columns)
        self._known: dict[tuple[int, ...], NDArray[np.float32]] = {}
        raw = self._raw(sample(space, _PROBES, rng=stream(0, 0, "known costs")))
        self._centre = raw.mean(axis=0)
        self._scale = 1.0 / (np.maximum(raw.std(axis=0), 1e-12) * np.sqrt(2.0 * raw.shape[1]))

    @classmethod
    def of(
        cls, space: SearchSpace, dataset: str, *, without: Collection[str | None], folder: Path | None = None
    ) -> KnownCosts:
        """With all devices that there are surrogates of but some.

        Args:
            space: The search space.
            dataset: Data set that networks are built for.
            without: Devices that must not be asked about, above all the one that is to be predicted: the surrogate
                of its own table would be the table.
            folder: Where the surrogates lie; default: hwnas's own.
        """
        cards = find_profiles(space.name, folder)
        profiles = [Profile.read(path) for name, path in cards.items() if name != ACCURACY and name not in without]
        found = [(profile, profile.column(_METRIC, dataset)) for profile in profiles]
        return cls(space, dataset, [(profile, column) for profile, column in found if column is not None])

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that are asked about, in the order of their features, which come after those of counts."""
        return tuple(profile.name for profile, _ in self._columns)

    @property
    def labels(self) -> int:
        """How many latencies of other devices the surrogates were fitted to: what a ledger has to say."""
        return sum(int(profile.card["split"]["n_train"]) for profile, _ in self._columns)

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float32]:
        """`n x q` features, one for each count and device."""
        new = [a for a in dict.fromkeys(architectures) if a.code not in self._known]
        if new:
            rows = ((self._raw(new) - self._centre) * self._scale).astype(np.float32)
            self._known.update(zip((a.code for a in new), rows, strict=True))
        if not architectures:
            return np.zeros((0, len(self._centre)), dtype=np.float32)
        return np.stack([self._known[a.code] for a in architectures])

    def _raw(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        codes = np.array([a.code for a in architectures], dtype=np.int64)
        counts = [self._space.complexity(a, self._dataset) for a in architectures]
        features = [np.array([count[metric] for count in counts]) for metric in _COUNTS]
        features += [profile.predict_many(codes)[:, column] for profile, column in self._columns]
        return np.column_stack(features)
