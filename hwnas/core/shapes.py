"""Shapes of a model's inputs as it declares them, for people: what they are, and what to say where one is dynamic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Declared = Sequence[int | str | None]  # a number, a symbolic name, or neither

_CHANNELS, _SIDE, _DEPTH, _LENGTH = 3, 224, 16, 128  # of an example: images, videos and sequences


def shape_words(shape: Declared) -> str:
    """A declared shape for people: "[batch, 3, ?, ?]"."""
    return f"[{', '.join(str(size or '?') for size in shape)}]"


def inputs_words(declared: Mapping[str, Declared]) -> str:
    """All inputs for people: "image [batch, 3, ?, ?], mask [1, 64]"."""
    return ", ".join(f"{name} {shape_words(shape)}" for name, shape in declared.items())


def ask_for_shape(name: str, shape: Declared) -> str:
    """What to say where a dynamic input has no shape to run with: what it declares, and an example of an answer.

    Args:
        name: Of the input.
        shape: As it is declared; an entry that is no number above 0 is dynamic.
    """
    fixed = [size if isinstance(size, int) and size > 0 else None for size in shape]
    example = [size or _example(fixed, i) for i, size in enumerate(fixed)]
    chosen = [
        f"{symbol if isinstance(symbol, str) and symbol else f'dimension {i + 1}'} = {size}"
        for i, (symbol, known, size) in enumerate(zip(shape, fixed, example, strict=True))
        if known is None
    ]
    return (
        f"input {name!r} has the dynamic shape {shape_words(shape)}; say what to run with, e.g. "
        f"--shape {name}={'x'.join(map(str, example))} ({', '.join(chosen)}: yours to choose)"
    )


def _example(shape: Sequence[int | None], place: int) -> int:
    """A size that a dynamic dimension might have: of a batch of one image (either order), video or sequence."""
    rank = len(shape)
    if place == 0:
        return 1
    if rank < 4:
        return _LENGTH
    last = shape[-1] is not None and shape[-1] <= 4 and shape[1] is None  # channels come last
    channels = rank - 1 if last else 1
    if place == channels:
        return _CHANNELS
    return _SIDE if place >= rank - 2 - last else _DEPTH
