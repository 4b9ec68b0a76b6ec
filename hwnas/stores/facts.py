"""What all stores do alike: keep facts in order, find them again, and check what a step may claim."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement
from hwnas.core.state import SearchState


class Facts:
    """Measurements in the order in which they came."""

    def __init__(self) -> None:
        self.rows: list[Measurement] = []
        self._newest: dict[tuple[Architecture, str, Context], Measurement] = {}

    def add(self, rows: Iterable[Measurement]) -> None:
        for row in rows:
            self.rows.append(row)
            self._newest[row.architecture, row.metric, row.context] = row

    def find(self, architecture: Architecture, metric: str, context: Context) -> Measurement | None:
        """The newest fact with exactly this context, or None."""
        return self._newest.get((architecture, metric, context))


def note_text(entry: Mapping[str, Any]) -> str:
    """A note as it is stored.

    Raises:
        ValueError, TypeError: It holds what is no JSON, such as nan.
    """
    return json.dumps(dict(entry), allow_nan=False, separators=(",", ":"))


def newly_told(state: SearchState, steps: Sequence[Sequence[str]], facts: Facts) -> list[str]:
    """Keys of the architectures that `state` told in its last step.

    Args:
        state: What is to be committed.
        steps: Keys of the steps that are committed already.
        facts: What is stored.

    Raises:
        ValueError: If `state` does not follow the committed steps by exactly one, or tells a measurement that is
            not stored: such a run could not be resumed.
    """
    keys = [architecture.key for architecture in state.architectures]
    before = [key for step in steps for key in step]
    if state.step != len(steps) + 1 or keys[: len(before)] != before:
        raise ValueError(
            f"after {len(steps)} committed steps with {len(before)} evaluations comes step {len(steps) + 1} with the "
            f"same evaluations first; got step {state.step} with {len(keys)}"
        )
    for evaluation in state.archive[len(before) :]:
        for row in evaluation.measurements:
            if facts.find(row.architecture, row.metric, row.context) is None:
                raise ValueError(
                    f"step {state.step} tells {row.metric} of {row.architecture}, which was never appended"
                )
    return keys[len(before) :]
