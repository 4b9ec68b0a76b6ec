"""The identity of one architecture."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.errors import InvalidArchitecture


@dataclass(frozen=True, slots=True, order=True)
class Architecture:
    """One point of a search space: the space's name and an integer code. Never holds a module.

    Attributes:
        space: Name of the search space, e.g. "nb201".
        code: One choice per position of the space's code.
    """

    space: str
    code: tuple[int, ...]

    @property
    def key(self) -> str:
        """Compact text form, e.g. `nb201:0.3.1.1.4.2`; `Architecture.from_key` reads it."""
        return f"{self.space}:{'.'.join(map(str, self.code))}"

    @classmethod
    def from_key(cls, key: str) -> Architecture:
        """The architecture that `key` names. Its space has not yet validated the code.

        Raises:
            InvalidArchitecture: If `key` is not `space:int.int...`.
        """
        space, colon, digits = key.partition(":")
        parts = digits.split(".")
        if not (space and colon and all(part.isascii() and part.isdigit() for part in parts)):
            raise InvalidArchitecture(f"an architecture key reads 'space:0.1.2', got {key!r}")
        return cls(space, tuple(map(int, parts)))

    def __str__(self) -> str:
        return self.key
