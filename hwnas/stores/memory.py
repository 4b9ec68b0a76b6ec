"""A store that ends with its process: for tests, benchmarks and searches that nobody will resume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook
from hwnas.stores import codec
from hwnas.stores.facts import Facts, newly_told, note_text


class MemoryStore:
    """Facts and steps in memory."""

    def __init__(self) -> None:
        self._facts = Facts()
        self._steps: list[list[str]] = []
        self._saved: tuple[bytes, Ledger] | None = None
        self._notes: list[tuple[str, str]] = []
        self._outlooks: list[Outlook | None] = []

    def append(self, rows: Sequence[Measurement]) -> None:
        """Add facts."""
        self._facts.add(rows)

    def find(self, architecture: Architecture, metric: str, context: Context) -> Measurement | None:
        """The newest fact with exactly this context, or None."""
        return self._facts.find(architecture, metric, context)

    def rows(self) -> Sequence[Measurement]:
        """All facts in the order in which they came."""
        return tuple(self._facts.rows)

    def commit_step(self, state: SearchState, generator: Mapping[str, Any], ledger: Ledger) -> None:
        """Mark a step as done.

        Raises:
            ValueError: If `state` does not follow the last committed step, or tells what was not appended.
            TypeError: If the generator's state holds what `hwnas.stores.codec` does not write.
        """
        keys = newly_told(state, self._steps, self._facts)
        # through the codec, so that later changes of the generator's arrays do not reach what was saved
        self._saved = codec.pack(generator), ledger
        self._steps.append(keys)
        self._outlooks.append(state.outlooks[-1])

    def last_step(self) -> tuple[int, list[list[str]], Mapping[str, Any], Ledger] | None:
        """What `commit_step` stored last: step, architecture keys of each step in order, generator state, ledger."""
        if self._saved is None:
            return None
        blob, ledger = self._saved
        return len(self._steps), [list(keys) for keys in self._steps], codec.unpack(blob), ledger

    def note(self, topic: str, entry: Mapping[str, Any]) -> None:
        """Add a note.

        Raises:
            ValueError, TypeError: It holds what is no JSON.
        """
        self._notes.append((topic, note_text(entry)))

    def notes(self, topic: str) -> Sequence[Mapping[str, Any]]:
        """All notes of a topic in the order in which they came."""
        return tuple(json.loads(text) for name, text in self._notes if name == topic)

    def outlooks(self) -> tuple[Outlook | None, ...]:
        """What was expected after each committed step."""
        return tuple(self._outlooks)

    def close(self) -> None:
        """Nothing to release."""
