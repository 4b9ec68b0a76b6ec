"""Exact JSON for what generators learned: no pickles, nothing rounded, nothing guessed.

JSON itself has no tuples, arrays, nan, bytes or integer keys. Each of them becomes an object with the one key "$",
whose value begins with a word that says what it is:

    {"$": ["tuple", item, ...]}                {"$": ["dict", [key, value], ...]}   keys that are not all strings
    {"$": ["float", "nan" | "inf" | "-inf"]}   {"$": ["int", hex]}                  beyond 64 bits
    {"$": ["bytes", base64]}                   {"$": ["complex", real, imaginary]}
    {"$": ["array" | "scalar", dtype, shape, "raw" | "zlib", data]}                 numpy

The data of an array is base64 in `dumps`; in `pack` it is its length, and the bytes themselves follow the JSON.
Compression is tried on a sample first, because trained weights hardly shrink and would only cost time.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_TAG = "$"
_LEVEL = 1  # weights: level 9 takes ten times as long for 2 % less
_SAMPLE = 4096

Put = Callable[[bytes], str | int]  # stores an array's bytes, returns what the JSON says about them
Take = Callable[[Any], bytes]  # the inverse


def dumps(value: Any) -> str:
    """`value` as JSON text in ASCII.

    Args:
        value: Nested dicts, lists and tuples of bool, int, float, complex, str, bytes, None, numpy arrays and numpy
            scalars of any type without Python objects in it. Types are kept exactly; arrays lose only their memory
            order.

    Raises:
        TypeError: For anything else, naming where in `value` it is.
    """
    return _text(value, _to_base64)


def loads(text: str) -> Any:
    """The inverse of `dumps`; arrays are new and writable.

    Raises:
        ValueError: If `text` was not written by `dumps`.
    """
    return _value(text, _from_base64)


def pack(value: Any) -> bytes:
    """`value` in less room and time than `dumps` takes: the same JSON, compressed, and behind it the arrays' bytes.

    The first 8 bytes are the length of the compressed JSON, little-endian.

    Raises:
        TypeError: As `dumps`.
    """
    parts: list[bytes] = []
    head = zlib.compress(_text(value, lambda data: _put(data, parts)).encode("ascii"), _LEVEL)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def unpack(blob: bytes) -> Any:
    """The inverse of `pack`.

    Raises:
        ValueError: If `blob` was not written by `pack`.
    """
    end = 8 + int.from_bytes(blob[:8], "little")
    try:
        text = zlib.decompress(blob[8:end]).decode("ascii")
    except zlib.error as error:
        raise ValueError(f"not a saved state of hwnas: {error}") from error
    rest = memoryview(blob)[end:]
    taken = 0

    def take(size: int) -> bytes:
        nonlocal taken
        taken += size
        return bytes(rest[taken - size : taken])

    value = _value(text, take)
    if taken != len(rest):
        raise ValueError(f"not a saved state of hwnas: {len(rest)} bytes of arrays, its text names {taken}")
    return value


def _text(value: Any, put: Put) -> str:
    return json.dumps(_encode(value, "state", put), allow_nan=False, separators=(",", ":"))


def _value(text: str, take: Take) -> Any:
    try:
        return _decode(json.loads(text), take)
    except (KeyError, IndexError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(f"not a saved state of hwnas: {error}") from error


def _put(data: bytes, parts: list[bytes]) -> int:
    parts.append(data)
    return len(data)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _encode(value: Any, where: str, put: Put) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        # Python refuses to read decimal integers of more than 4300 digits; hexadecimal ones have no limit
        return value if value.bit_length() <= 64 else {_TAG: ["int", hex(value)]}
    if kind is float:
        return value if math.isfinite(value) else {_TAG: ["float", repr(value)]}
    if kind is list:
        return [_encode(item, f"{where}[{i}]", put) for i, item in enumerate(value)]
    if kind is tuple:
        return {_TAG: ["tuple", *(_encode(item, f"{where}[{i}]", put) for i, item in enumerate(value))]}
    if isinstance(value, Mapping):
        return _encode_mapping(value, where, put)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_numpy(value, where, put)
    if kind is bytes:
        return {_TAG: ["bytes", _to_base64(value)]}
    if kind is complex:
        return {_TAG: ["complex", _encode(value.real, where, put), _encode(value.imag, where, put)]}
    raise TypeError(
        f"a saved state holds dicts, lists, tuples, numbers, strings, bytes, None and numpy arrays; "
        f"{where} is a {kind.__module__}.{kind.__qualname__}"
    )


def _encode_mapping(value: Mapping[Any, Any], where: str, put: Put) -> Any:
    if all(type(key) is str for key in value) and _TAG not in value:
        return {key: _encode(item, f"{where}[{key!r}]", put) for key, item in value.items()}
    pairs = [[_encode(key, where, put), _encode(item, f"{where}[{key!r}]", put)] for key, item in value.items()]
    return {_TAG: ["dict", *pairs]}


def _encode_numpy(value: np.ndarray | np.generic, where: str, put: Put) -> Any:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"a saved state holds arrays of numbers or text; {where} has the dtype {array.dtype}")
    described = _describe(array.dtype)
    if _dtype(described) != array.dtype:
        raise TypeError(f"{where} has the dtype {array.dtype}, which numpy alone cannot restore; convert it first")
    data = array.tobytes()
    how = "raw"
    if _shrinks(data):
        how, data = "zlib", zlib.compress(data, _LEVEL)
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return {_TAG: [kind, described, list(array.shape), how, put(data)]}


def _describe(dtype: np.dtype[Any]) -> Any:
    described = np.lib.format.dtype_to_descr(dtype)
    return described if isinstance(described, str) else _as_lists(described)


def _as_lists(described: Any) -> Any:
    """Field descriptions with tuples as lists; a shape becomes {"shape": ...}, for lists and tuples differ here."""
    if isinstance(described, list):
        return [[field[0], _as_lists(field[1]), *(list(shape) for shape in field[2:])] for field in described]
    if isinstance(described, tuple):
        return {"base": _as_lists(described[0]), "shape": list(described[1])}
    return described


def _dtype(described: Any) -> np.dtype[Any]:
    return np.lib.format.descr_to_dtype(_as_tuples(described))


def _as_tuples(described: Any) -> Any:
    if isinstance(described, list):
        return [
            (tuple(field[0]) if isinstance(field[0], list) else field[0], _as_tuples(field[1]), *map(tuple, field[2:]))
            for field in described
        ]
    if isinstance(described, dict):
        return (_as_tuples(described["base"]), tuple(described["shape"]))
    return described


def _decode(item: Any, take: Take) -> Any:
    if isinstance(item, list):
        return [_decode(entry, take) for entry in item]
    if not isinstance(item, dict):
        return item
    if _TAG not in item:
        return {key: _decode(entry, take) for key, entry in item.items()}
    word, *rest = item[_TAG]
    match word:
        case "tuple":
            return tuple(_decode(entry, take) for entry in rest)
        case "dict":
            return {_decode(key, take): _decode(entry, take) for key, entry in rest}
        case "float":
            return float(rest[0])
        case "int":
            return int(rest[0], 16)
        case "bytes":
            return _from_base64(rest[0])
        case "complex":
            return complex(_decode(rest[0], take), _decode(rest[1], take))
        case "array" | "scalar":
            array = _decode_array(*rest, take=take)
            return array if word == "array" else array[()]
    raise ValueError(f"not a saved state of hwnas: it holds a {word!r}")


def _decode_array(described: Any, shape: list[int], how: str, where: Any, *, take: Take) -> np.ndarray:
    data = take(where)
    if how == "zlib":
        data = zlib.decompress(data)
    array = np.zeros(shape, _dtype(described))
    if array.nbytes != len(data):
        raise ValueError(f"not a saved state of hwnas: {len(data)} bytes for an array of {array.nbytes}")
    if array.nbytes:
        array = np.frombuffer(data, array.dtype).reshape(shape).copy()
    return array


def _shrinks(data: bytes) -> bool:
    """Whether compression is worth its time, judged from the middle of `data`."""
    if len(data) < 128:
        return False
    start = max(0, (len(data) - _SAMPLE) // 2)
    sample = data[start : start + _SAMPLE]
    return len(zlib.compress(sample, _LEVEL)) < 0.7 * len(sample)
