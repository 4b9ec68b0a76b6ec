"""Reading a pickle without running any of it.

A pickle can name any importable object and call it. This reader answers every such name itself: numbers in numpy
arrays are rebuilt by the few lines below, from bytes; numpy's own reconstruction and every other name are never
reached. Anything else is refused by name. Before that the file is walked once without building anything, because
the unpickler reserves memory for the sizes that a file declares, whether it holds as much or not.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwnas.errors import InvalidTable

_DTYPE = re.compile(r"[biufSU]\d+")  # booleans, integers, floats, fixed-length texts; no objects, no structures
_DIMENSIONS = 8


class _Refused(Exception):
    pass


class _Damaged(Exception):
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
            raise _Refused(f"numpy dtype {_short(spec)}")
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
    if not isinstance(shape, tuple) or len(shape) > _DIMENSIONS or not all(map(_is_length, shape)):
        raise _Refused("a numpy array whose shape is not a few whole numbers")
    kind = dtype.resolve()
    view = memoryview(raw)
    size = view.nbytes
    if size != math.prod(shape) * kind.itemsize:
        raise _Refused(f"a numpy array of shape {shape} and type {kind} in {size:,} bytes")
    # no copy: a file that names the same bytes a million times must not multiply them
    return np.frombuffer(view, kind).reshape(shape, order="F" if order == "F" else "C")


def _is_length(number: object) -> bool:
    return isinstance(number, int) and 0 <= number < 2**48


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: object, dtype: object, shape: object, order: object = "C") -> _Array:
    array = _Array()
    array.values = _from_bytes(raw, dtype, shape, order)
    return array


def _scalar(dtype: object, raw: object) -> Any:
    number = _from_bytes(raw, dtype, (), "C")
    if number.dtype.kind not in "biuf":
        raise _Refused(f"a numpy scalar of type {number.dtype}")
    return number.item()


def _ordered_dict(*content: object) -> OrderedDict[Any, Any]:
    """Its items come afterwards, as a plain dict's do."""
    if content:
        raise _Refused("collections.OrderedDict of something")
    return OrderedDict()


class _Latin1:
    """How protocols 0 to 2 write bytes: `_codecs.encode(text, "latin1")`.

    Args:
        room: How many bytes all calls together may make.
    """

    def __init__(self, room: int) -> None:
        self._room = room

    def __call__(self, text: object, encoding: object = "latin1", *_: object) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused("_codecs.encode of anything but bytes")
        self._room -= len(text)
        if self._room < 0:
            raise _Refused("more bytes than the file holds")
        return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols 0 to 2 write empty bytes: `bytes()`."""
    return b""


def _never(*_: object) -> Any:
    raise _Refused("calling numpy.ndarray")


_NAMES: MappingProxyType[tuple[str, str], Callable[..., Any]] = MappingProxyType(
    {
        ("builtins", "complex"): complex,
        ("__builtin__", "bytes"): _no_bytes,
        ("collections", "OrderedDict"): _ordered_dict,
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


# opcodes that make objects by other ways than `find_class` and a call, or take data from outside the file
_FORBIDDEN = {
    ord(opcode.code): opcode.name
    for opcode in pickletools.opcodes
    if opcode.name.startswith(("EXT", "NEWOBJ")) or opcode.name in {"OBJ", "NEXT_BUFFER"}
}
# bytes that follow an opcode: a fixed number, or a negative one of pickletools' for lengths that the file declares
_WIDTHS = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_STOP, _FRAME, _PUT, _LONG_BINPUT, _GLOBAL, _INST = b".\x95prci"
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_DEEPEST = 32  # tuples in tuples: Python hashes them by recursion in C, and a deep one ends the process


class _Nesting:
    """How deep the tuples on the unpickler's stack are nested, opcode by opcode, without making them.

    Everything else counts as 0: what cannot be hashed is refused by Python before it looks inside.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # depth of each object; None for a mark
        self._places: dict[int, int] = {}

    def follow(self, opcode: int, argument: bytes) -> None:
        """Do to the depths what an opcode does to the objects.

        Raises:
            _Damaged: It takes more from the stack than there is.
            _Refused: Something is nested too deeply.
        """
        known = _OPCODES[opcode]
        name, taken, given = known.name, known.stack_before, known.stack_after
        if name in ("MARK", "POP_MARK"):
            if name == "MARK":
                self._stack.append(None)
            else:
                self._slice()
            return
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self._places) if name == "MEMOIZE" else _number(argument, text=name == "PUT")
            self._places[place] = self._top()
            return
        if name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._places.get(_number(argument, text=name == "GET"), 0))
            return
        depth = 0
        if pickletools.stackslice in taken:
            depth = max(self._slice(), default=0)
            taken = taken[: taken.index(pickletools.markobject)]
        for _ in taken:
            depth = max(depth, self._pop())
        if name.startswith(("TUPLE", "FROZENSET")):
            depth += 1
        elif name != "DUP":
            depth = 0
        if depth > _DEEPEST:
            raise _Refused(f"tuples that are nested more than {_DEEPEST} deep")
        self._stack += [depth] * len(given)

    def _top(self) -> int:
        if not self._stack or self._stack[-1] is None:
            raise _Damaged("it keeps an object that is not there")
        return self._stack[-1]

    def _pop(self) -> int:
        depth = self._top()
        self._stack.pop()
        return depth

    def _slice(self) -> list[int]:
        taken: list[int] = []
        while self._stack:
            depth = self._stack.pop()
            if depth is None:
                return taken
            taken.append(depth)
        raise _Damaged("it takes objects up to a mark that is not there")


def _number(argument: bytes, *, text: bool) -> int:
    try:
        return int(argument) if text else int.from_bytes(argument, "little")
    except ValueError:
        raise _Damaged(f"{_short(argument.decode(errors='replace'))} is no place in the memory of objects") from None


def _walk(data: bytes) -> None:
    """Refuse what would reserve more memory than the file can fill, nest too deeply, or use needless opcodes."""
    here, end = 0, len(data)
    nesting = _Nesting()
    while True:
        if here >= end:
            raise _Damaged("it ends before its end mark")
        opcode = data[here]
        if opcode == _STOP:
            return
        if opcode in _FORBIDDEN:
            raise _Refused(f"the opcode {_FORBIDDEN[opcode]}")
        width = _WIDTHS.get(opcode)
        if width is None:
            raise _Damaged(f"byte {here:,} is no opcode")
        start, here = here, here + 1
        if width < 0:
            here, width = _declared(data, here, width, lines=2 if opcode in (_GLOBAL, _INST) else 1)
        here += width
        if here > end:
            raise _Damaged(f"byte {start:,} declares {width:,} bytes, {max(0, end - here + width):,} follow")
        if opcode in (_PUT, _LONG_BINPUT, _FRAME):
            _check_number(data, start, here)
        nesting.follow(opcode, data[here - width : here] if width <= 20 else b"")


def _declared(data: bytes, here: int, width: int, lines: int) -> tuple[int, int]:
    """Where an argument of a length that the file itself tells begins, and its length in bytes."""
    if width == pickletools.UP_TO_NEWLINE:
        stop = here
        for _ in range(lines):
            stop = data.find(b"\n", stop) + 1
            if stop == 0:
                raise _Damaged(f"the line at byte {here:,} has no end")
        return here, stop - here
    length = _LENGTH_BYTES[width]
    return here + length, int.from_bytes(data[here : here + length], "little")


def _check_number(data: bytes, start: int, here: int) -> None:
    """A frame must be there in full; a place in the memory of objects cannot lie beyond their possible number."""
    if data[start] == _FRAME:
        size, most, what = int.from_bytes(data[start + 1 : here], "little"), len(data) - here, "a frame"
    else:
        text = data[start + 1 : here]
        number = int(text) if data[start] == _PUT and len(text) < 20 else int.from_bytes(text, "little")
        size, most, what = number, start, "a place"
    if size > most:
        raise _Damaged(f"byte {start:,} wants {what} of {size:,} where {most:,} are possible")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._latin1 = _Latin1(2 * len(data))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _Admitted(self._latin1)
        try:
            return _Admitted(_NAMES[module, name])
        except KeyError:
            raise _Refused(_short(f"{module}.{name}").strip("'")) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the persistent object {_short(pid)}")


def _short(value: object) -> str:
    """For messages; a nested value from a file is never written out, it may be endless."""
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


def load(path: Path) -> Any:
    """The content of a pickle of containers, numbers, texts and numpy arrays; nothing in it is run.

    Returns:
        Builtin containers, numbers and texts. Arrays come as objects that `array` unwraps.

    Raises:
        InvalidTable: If the file asks for anything else (the message names it), is truncated or no pickle.
    """
    try:
        data = path.read_bytes()
        _walk(data)
        return _Unpickler(data).load()
    except _Refused as refused:
        raise InvalidTable(
            f"{path}: refused: the pickle asks for {refused}. Only containers, numbers, texts and numpy arrays of "
            f"them are read; nothing in the file was run"
        ) from None
    except FileNotFoundError:
        raise
    except _Damaged as damaged:
        raise InvalidTable(f"{path}: truncated, or not a pickle of the expected form: {damaged}") from None
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
