"""The small models that hwnas ships: errors and costs of a space's networks, fitted to published tables.

Each lies in `profiles/<device>/<space>.onnx`, errors in `profiles/accuracy/`, with a card of the same name beside it
that says what it was fitted to and how far it was off on cells it had never seen. benchmarks/fit_surrogates.py writes
both.
"""

from __future__ import annotations

import hashlib
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import resources
from hwnas.errors import DataError, InvalidTable

ACCURACY = "accuracy"  # folder of the model for errors, which belong to no device
_BATCH = 256  # of `predict_many`
_REMEDY = "reinstall hwnas, or make it again with benchmarks/fit_surrogates.py"


@dataclass(frozen=True)
class Profile:
    """One shipped model and its card.

    Attributes:
        name: A device's name, or "accuracy".
        path: The card.
        card: Its content.
    """

    name: str
    path: Path
    card: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Profile:
        """The profile whose card is at `path`.

        Raises:
            InvalidTable: If the card is damaged or the model beside it is not the one that it describes.
        """
        try:
            card = tomllib.loads(path.read_text(encoding="utf-8"))
            named, wanted, _ = path.parent / card["model"], card["sha256"], card["outputs"]
            found = hashlib.sha256(named.read_bytes()).hexdigest()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidTable(f"surrogate {path}: cannot be read ({error}); {_REMEDY}") from error
        except KeyError as error:
            raise InvalidTable(f"surrogate {path}: its card lacks {error}; {_REMEDY}") from error
        if found != wanted:
            raise InvalidTable(
                f"surrogate {named}: its card wants sha256 {wanted[:12]}..., the file has {found[:12]}...; {_REMEDY}"
            )
        return cls(path.parent.name, path, card)

    @property
    def metrics(self) -> frozenset[str]:
        """Metrics that the model answers on some data set."""
        return frozenset(output["metric"] for output in self.card["outputs"])

    def column(self, metric: str, dataset: str) -> int | None:
        """Which column of the model's `values` a metric is; None if it has none."""
        named = [(output["metric"], output["dataset"]) for output in self.card["outputs"]]
        return named.index((metric, dataset)) if (metric, dataset) in named else None

    def interval(self, column: int, value: float) -> tuple[float, float]:
        """Around a prediction, at the card's `interval_level`: wider where held-out errors were."""
        output = self.card["outputs"][column]
        place = bisect_right(output["interval_edges"], value)
        top = 100.0 if output["metric"].endswith("_pct") else float("inf")
        return max(0.0, value + output["interval_low"][place]), min(top, value + output["interval_high"][place])

    def predict(self, code: Sequence[int]) -> tuple[NDArray[np.float64], float]:
        """All columns for one architecture, and the probability that its device can run it (1 where all can).

        One at a time: matrix products of another shape round differently, and a number must not depend on what else
        was asked for.
        """
        found = self._session.run(None, {"codes": np.array([code], dtype=np.int64)})
        return found[0][0], float(found[1][0]) if len(found) > 1 else 1.0

    def predict_many(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """All columns for `n` architectures, `n x outputs`; the last digits may differ from those of `predict`.

        In batches of one size, filled up: so a row does not depend on what it was asked for with.
        """
        padding = np.repeat(codes[:1], -len(codes) % _BATCH, axis=0)
        padded = np.concatenate((codes, padding)) if len(codes) else codes
        batches = [padded[i : i + _BATCH] for i in range(0, len(padded), _BATCH)]
        found = [self._session.run(None, {"codes": batch})[0] for batch in batches]
        return np.concatenate(found)[: len(codes)] if found else np.zeros((0, len(self.card["outputs"])))

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = (self.path.parent / self.card["model"]).read_bytes()
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base class
            raise DataError(f"surrogate {self.path}: onnxruntime does not load its model: {error}") from error


def find_profiles(space: str, folder: Path | None = None) -> dict[str, Path]:
    """Cards of all models for a search space, by device (or "accuracy"). Reads no file.

    Args:
        space: Name of the search space.
        folder: Where to look; default: hwnas's own `profiles`.
    """
    root = resources.folder("profiles") if folder is None else folder
    return {path.parent.name: path for path in sorted(root.glob(f"*/{space}.toml"))}
