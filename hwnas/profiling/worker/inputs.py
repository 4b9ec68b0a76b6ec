"""Inputs for timing: the same for every runtime, so that outputs can be compared as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.measurement import Status
from hwnas.core.shapes import ask_for_shape, shape_words
from hwnas.profiling.backend import Failure

# randn and not zeros: some CPUs are slower on denormals, some runtimes faster on zeros


def make_inputs(
    declared: Sequence[tuple[str, Sequence[int | str | None], np.dtype[Any]]],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, NDArray[Any]]:
    """Standard normal numbers (seed 0) for floats, zeros and ones for integers and booleans.

    Args:
        declared: Name, shape and element type of each input; a shape's entry that is no number is dynamic.
        shapes: Static shapes by input name, which win over declared ones.

    Raises:
        Failure: A dimension is dynamic and nobody said what it is, or a shape does not fit.
    """
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for name, shape, dtype in declared:
        wanted = _static(name, shape, shapes.get(name))
        if np.issubdtype(dtype, np.floating):
            made[name] = rng.standard_normal(wanted).astype(dtype)
        else:
            made[name] = rng.integers(0, 2, wanted).astype(dtype)
    return made


def _static(name: str, declared: Sequence[int | str | None], given: Sequence[int] | None) -> tuple[int, ...]:
    told = [size if isinstance(size, int) and size > 0 else None for size in declared]
    if given is None:
        if None in told:
            raise Failure(Status.INVALID_MODEL, ask_for_shape(name, declared))
        return tuple(size for size in told if size is not None)
    fits = len(given) == len(told) and all(b in (None, a) for a, b in zip(given, told, strict=True))
    if not fits or any(size < 1 for size in given):
        raise Failure(
            Status.INVALID_MODEL, f"input {name!r} has the shape {shape_words(declared)}; {list(given)} does not fit it"
        )
    return tuple(given)
