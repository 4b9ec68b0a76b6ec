"""Integer codes: everything that works on `choices` alone, for every space and every generator.

A code is a tuple with one choice per position; position i takes the values 0 .. choices[i] - 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.errors import InvalidArchitecture

Codes = NDArray[np.int64]

ENUMERABLE = 2_000_000  # codes; beyond this a list of the whole space is a mistake rather than a wish


class Coded(Protocol):
    """What a space has to have here: a name and the number of alternatives at each position."""

    @property
    def name(self) -> str: ...

    @property
    def choices(self) -> tuple[int, ...]: ...


def size(space: Coded) -> int:
    """Number of codes in `space`, exactly (a Python int: some spaces exceed 2**63)."""
    return math.prod(space.choices)


def validate(space: Coded, architecture: Architecture, positions: Sequence[str] | None = None) -> None:
    """Check name, length and range.

    Args:
        space: The space that it should belong to.
        architecture: What to check.
        positions: A name per position, for the message; the bare number where absent.

    Raises:
        InvalidArchitecture: Naming the position and the reason.
    """
    if architecture.space != space.name:
        raise InvalidArchitecture(f"space {space.name!r} was asked about {architecture}, of another space")
    code, choices = architecture.code, space.choices
    if len(code) != len(choices):
        raise InvalidArchitecture(
            f"a code of space {space.name!r} has {len(choices)} positions; {architecture} has {len(code)}"
        )
    for i, (value, count) in enumerate(zip(code, choices, strict=True)):
        what = f"position {i}" + (f" ({positions[i]})" if positions else "")
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArchitecture(
                f"{what} of {architecture} must be an int, got {value!r} ({type(value).__name__})"
            )
        if not 0 <= value < count:
            raise InvalidArchitecture(f"{what} of {architecture} must be 0..{count - 1}, got {value}")


def to_array(architectures: Sequence[Architecture], width: int | None = None) -> Codes:
    """The codes as `n x positions` int64; `width` gives the number of positions where n may be 0."""
    if not architectures:
        return np.zeros((0, width or 0), dtype=np.int64)
    return np.array([architecture.code for architecture in architectures], dtype=np.int64)


def from_array(name: str, codes: Codes) -> list[Architecture]:
    """The inverse of `to_array`: one architecture of the space called `name` for each row."""
    return [Architecture(name, tuple(row)) for row in codes.tolist()]


def sample(space: Coded, n: int, *, rng: np.random.Generator) -> list[Architecture]:
    """`n` codes drawn uniformly and independently: repetitions happen."""
    return from_array(space.name, _draw(space, n, rng))


def sample_unseen(
    space: Coded, n: int, seen: Collection[Architecture], *, rng: np.random.Generator
) -> list[Architecture]:
    """Up to `n` distinct codes, uniformly among those not in `seen`.

    Args:
        space: Where to draw from.
        n: How many are wanted.
        seen: What may not come; entries of other spaces do not matter.
        rng: Source of randomness.

    Returns:
        `n` architectures in random order, or all unseen ones where fewer are left.
    """
    known = {architecture.code for architecture in seen if architecture.space == space.name}
    total = size(space)
    if 2 * (len(known) + n) >= total:
        return _sample_rest(space, n, known, rng)
    fresh: dict[tuple[int, ...], None] = {}
    while len(fresh) < n:  # each draw is new with a chance above one half
        for code in map(tuple, _draw(space, 2 * (n - len(fresh)) + 8, rng).tolist()):
            if code not in known and len(fresh) < n:
                fresh[code] = None
    return [Architecture(space.name, code) for code in fresh]


def _sample_rest(space: Coded, n: int, known: set[tuple[int, ...]], rng: np.random.Generator) -> list[Architecture]:
    """`sample_unseen` where rejection would rarely succeed: list what is left and draw from the list."""
    left = np.ones(size(space), dtype=np.bool_)
    if known:
        left[rank(np.array(list(known), dtype=np.int64), space.choices)] = False
    unseen = np.flatnonzero(left)
    chosen = rng.choice(unseen, size=min(n, len(unseen)), replace=False)
    return from_array(space.name, unrank(chosen, space.choices))


def mutate(
    architecture: Architecture, choices: Sequence[int], *, rng: np.random.Generator, changes: int = 1
) -> Architecture:
    """A neighbour: exactly `changes` positions, chosen uniformly, take another value, chosen uniformly.

    Positions with one choice never change; where fewer than `changes` can, all of those do.
    """
    free = np.flatnonzero(np.asarray(choices) > 1)
    code = list(architecture.code)
    for i in rng.choice(free, size=min(changes, len(free)), replace=False).tolist():
        code[i] = (code[i] + int(rng.integers(1, choices[i]))) % choices[i]
    return Architecture(architecture.space, tuple(code))


def crossover(a: Architecture, b: Architecture, *, rng: np.random.Generator) -> Architecture:
    """Uniform crossover: each position comes from `a` or from `b` with equal chance.

    Raises:
        InvalidArchitecture: If the parents belong to different spaces.
    """
    if a.space != b.space or len(a.code) != len(b.code):
        raise InvalidArchitecture(f"crossover wants two architectures of one space, got {a} and {b}")
    from_a = rng.random(len(a.code)) < 0.5
    return Architecture(a.space, tuple(x if own else y for x, y, own in zip(a.code, b.code, from_a, strict=True)))


def one_hot(architectures: Sequence[Architecture], choices: Sequence[int]) -> NDArray[np.float32]:
    """`n x sum(choices)` float32: a block of indicators for each position, in order."""
    offsets = np.concatenate([[0], np.cumsum(choices)])
    codes = to_array(architectures, len(choices))
    encoded = np.zeros((len(codes), int(offsets[-1])), dtype=np.float32)
    encoded[np.arange(len(codes))[:, None], codes + offsets[:-1]] = 1.0
    return encoded


def enumerate_codes(choices: Sequence[int]) -> Codes:
    """All codes in lexicographic order, `size x positions`.

    Raises:
        ValueError: If there are more than `ENUMERABLE`.
    """
    total = math.prod(choices)
    if total > ENUMERABLE:
        raise ValueError(f"only spaces of up to {ENUMERABLE} codes are enumerated; this one has {total}")
    return unrank(np.arange(total), choices)


def every(space: Coded) -> Iterator[Architecture]:
    """All architectures of a small space, in lexicographic order of their codes."""
    yield from from_array(space.name, enumerate_codes(space.choices))


def rank(codes: Codes, choices: Sequence[int]) -> NDArray[np.int64]:
    """Place of each row of `n x positions` codes in the lexicographic order: `n`."""
    return np.asarray(np.ravel_multi_index(tuple(codes.T), tuple(choices)), dtype=np.int64)


def unrank(ranks: NDArray[np.int64], choices: Sequence[int]) -> Codes:
    """The inverse of `rank`."""
    return np.stack(np.unravel_index(ranks, tuple(choices)), axis=-1).astype(np.int64)


def _draw(space: Coded, n: int, rng: np.random.Generator) -> Codes:
    return rng.integers(0, np.asarray(space.choices), size=(n, len(space.choices)))
