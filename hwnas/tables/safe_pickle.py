"""Reading a pickle without running any of it.

A pickle can name any importable object and call it. This reader answers every such name itself: numbers in numpy
arrays are rebuilt by the few lines below, from bytes; numpy's own reconstruction and every other name are never
reached. Anything else is refused by name.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwnas.errors import InvalidTable

_DTYPE = re.compile(r"[biufSU]\d+")  # booleans, integers, floats, fixed-length texts; no objects, no structures


class _Refused(Exception):
    pass


class _Admitted:
    """What a pickle gets for an admitted name: it can be called, and nothing about it can be changed."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused(f"setting {name!r}")

    def __setstate__(self, state: object) -> None:
        raise _Refused("changing an admitted name")


class _Dtype:
    """Stands for a numpy dtype of plain numbers or fixed-length texts."""

    __slots__ = ("_endian", "_spec")

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
            raise _Refused(f"numpy dtype {spec!r}")
        self._spec, self._endian = spec, "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("a numpy dtype of unknown form")
        if any(part is not None for part in state[2:5]):
            raise _Refused("a structured numpy dtype")
        self._endian = state[1]

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self._endian + self._spec)


class _Array:
    """Stands for a numpy array until its numbers arrive."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray[Any, Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("a numpy array of unknown form")
        _, shape, dtype, column_major, raw = state
        self.values = _from_bytes(raw, dtype, shape, "F" if column_major else "C")


def _from_bytes(raw: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray | memoryview | pickle.PickleBuffer):
        raise _Refused("a numpy array that is not plain bytes")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise _Refused(f"a numpy array of shape {shape!r}")
    kind = dtype.resolve()
    flat = bytes(raw)
    if len(flat) != math.prod(shape) * kind.itemsize:
        raise _Refused(f"a numpy array of shape {shape} and type {kind} in {len(flat)} bytes")
    return np.frombuffer(flat, kind).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object = "C") -> _Array:
    array = _Array()
    array.values = _from_bytes(raw, dtype, shape, order)
    return array


def _scalar(dtype: object, raw: object) -> Any:
    return _from_bytes(raw, dtype, (), "C").item()


def _latin1(text: object, encoding: object = "latin1", *_: object) -> bytes:
    """How protocols 0 to 2 write bytes: `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("_codecs.encode of anything but bytes")
    return text.encode("latin1")


def _never(*_: object) -> Any:
    raise _Refused("calling numpy.ndarray")


_NAMES: MappingProxyType[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("builtins", "complex"): complex,
        ("__builtin__", "set"): set,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _latin1,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _never,  # only named, as an argument of _reconstruct
        # the module moved with numpy 2
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _Admitted(_NAMES[module, name])
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"persistent object {pid!r}")


def load(path: Path) -> Any:
    """The content of a pickle of containers, numbers, texts and numpy arrays; nothing in it is run.

    Returns:
        Builtin containers, numbers and texts. Arrays come as objects that `array` unwraps.

    Raises:
        InvalidTable: If the file asks for anything else (the message names it), is truncated or no pickle.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except _Refused as refused:
        raise InvalidTable(
            f"{path}: refused: the pickle asks for {refused}. Only containers, numbers, texts and numpy arrays of "
            f"them are read; nothing in the file was run"
        ) from None
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InvalidTable(
            f"{path}: truncated, or not a pickle of the expected form: {type(error).__name__}: {error}"
        ) from error


def array(value: object, where: str) -> np.ndarray[Any, Any]:
    """A list, tuple or loaded array of numbers as float64.

    Args:
        value: A part of what `load` returned.
        where: File and key, for messages.

    Raises:
        InvalidTable: If it is none of them or holds anything but numbers.
    """
    if isinstance(value, _Array):
        if value.values.dtype.kind not in "biuf":
            raise InvalidTable(f"{where}: wants numbers, got an array of {value.values.dtype}")
        return value.values.astype(np.float64)
    if not isinstance(value, list | tuple) or not all(isinstance(number, int | float) for number in value):
        raise InvalidTable(f"{where}: wants a list or array of numbers, got {_kinds(value)}")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise InvalidTable(f"{where}: {error}") from error


def mapping(value: object, where: str) -> dict[Any, Any]:
    """A dict.

    Raises:
        InvalidTable: If it is none.
    """
    if not isinstance(value, dict):
        raise InvalidTable(f"{where}: wants a dict, got {_kinds(value)}")
    return value


def _kinds(value: object) -> str:
    if not isinstance(value, list | tuple):
        return type(value).__name__
    return f"a {type(value).__name__} of {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'}"
