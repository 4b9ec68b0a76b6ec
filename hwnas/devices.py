"""Hardware targets as files: one TOML each, hwnas's own and the user's, read strictly.

A user's devices lie in the folder that `HWNAS_DEVICES` names, else in the user's configuration folder; a path to a
single file does as well. Measurements that were saved (`hwnas profile --save NAME`) are devices of their own. The names
of hwnas's own devices are reserved, so that a published number keeps the runtime and precision it was published with.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hwnas import optional, resources
from hwnas.core.device import Device
from hwnas.core.metrics import METRICS
from hwnas.errors import InvalidSetting, TablesNotFound, UnknownName

KINDS = ("asic", "cpu", "fpga", "gpu", "phone", "tpu")
PRECISIONS = ("fp32", "fp16", "int8")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_WORD, _WORDS, _COUNT, _SIZE = "a text", "a list of texts", "a whole number above 0", "a number above 0"
_OPTIONS = "a table of texts, numbers and truth values"
_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "name": _WORD,
        "title": _WORD,
        "kind": _WORD,
        "runtimes": _WORDS,
        "precisions": _WORDS,
        "metrics": _WORDS,
        "measured_how": _WORD,
        "batch": _COUNT,
        "memory_mib": _SIZE,
        "host": _WORD,
        "origin": _WORD,
        "threads": _COUNT,
        "options": _OPTIONS,
        "python": _WORD,
    }
)
_OPTIONAL = frozenset({"batch", "memory_mib", "origin", "threads", "options", "python"})
_LISTS = MappingProxyType({"precisions": PRECISIONS, "metrics": tuple(METRICS)})

# what a local runtime needs: modules of which all must be there, and whether an NVIDIA driver must be
_NEEDS: Mapping[str, tuple[tuple[str, ...], bool]] = MappingProxyType(
    {
        "ort-cpu": (("onnxruntime",), False),
        "ort-cuda": (("onnxruntime",), True),
        "ort-trt": (("onnxruntime", "tensorrt"), True),
        "torch-cpu": (("torch",), False),
        "torch-cuda": (("torch",), True),
        "tensorrt": (("tensorrt", "cuda.bindings"), True),
        "openvino": (("openvino",), False),
        "fake": ((), False),
    }
)
_ORT_GPU = "onnxruntime-gpu"  # its module is called onnxruntime like that of the CPU package
_EXTRAS = MappingProxyType(
    {"tensorrt": "tensorrt", "cuda.bindings": "tensorrt", "openvino": "openvino", _ORT_GPU: "gpu"}
)
_DRIVER_FILES = (
    Path("/proc/driver/nvidia/version"),
    Path("/dev/nvidiactl"),
    Path("/dev/nvhost-ctrl-gpu"),  # Jetson boards
    Path("/dev/dxg"),  # Windows' Linux subsystem
)


def user_folder() -> Path:
    """Where a user's device files lie: `HWNAS_DEVICES`, else `devices` in the user's configuration folder."""
    named = os.environ.get("HWNAS_DEVICES")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_path("hwnas", appauthor=False)) / "devices"


def device_names() -> list[str]:
    """Names of all devices, sorted. Reads no file."""
    return sorted({**_own(), **_users()})


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """A device by its name, or from the TOML file at a path (a name that ends in .toml or holds a separator).

    Raises:
        UnknownName: No such device, with the nearest names; or no such file.
        InvalidSetting: The file has an unknown, missing or mistyped key.
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or name.endswith(".toml") or os.sep in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UnknownName("device file", name, device_names())
        return read_device(path)
    known = {**_users(), **_own()}
    if name not in known:
        raise UnknownName("device", name, known)
    return read_device(known[name])


def read_device(path: Path) -> Device:
    """The device that one file defines.

    Raises:
        InvalidSetting: Naming file and key: not TOML, a key unknown (with the known ones and the nearest), missing or
            of the wrong type, a name that differs from the file's or belongs to one of hwnas's own devices.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{path}: not a TOML file: {error}") from error
    except OSError as error:
        raise InvalidSetting(f"{path}: cannot be read: {error}") from error
    _check(path, content)
    own = _own().get(content["name"])
    if own is not None and own.resolve() != path.resolve():
        raise InvalidSetting(
            f"{path}: the name {content['name']!r} belongs to a device that comes with hwnas; choose another"
        )
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    values.setdefault("origin", str(path))
    return Device(**values)


def availability(device: Device, answered: Collection[str] | None = None) -> tuple[bool, str]:
    """Whether a search for `device` could get numbers on this machine now, and why or why not.

    Imports no framework and never raises: packages are looked for, not loaded.

    Args:
        device: The hardware target.
        answered: Names of the devices that a table or surrogate at hand answers; None where the caller does not know.

    Returns:
        (available, reason), the reason in words for people.
    """
    if answered is not None and device.name in answered:
        return True, "answered by a table or surrogate"
    if device.host == "table":
        if answered is None:
            return True, "answered by tables or surrogates; not measured here"
        return False, f"no table or surrogate for device {device.name}"
    if device.host == "profile":
        return True, f"saved measurements: {device.origin}"
    if device.host != "local":
        return True, f"is at {device.host}; 'hwnas doctor --device {device.name}' asks it"
    lacking = {runtime: lacks(runtime) for runtime in device.runtimes}
    there = [runtime for runtime, lack in lacking.items() if not lack]
    if not there:
        return False, "; ".join(f"{runtime}: {lack}" for runtime, lack in lacking.items())
    return True, f"measured here with {there[0]}"


def lacks(runtime: str) -> str:
    """What a local runtime lacks on this machine, in words; "" if nothing. Never raises, imports no framework."""
    if runtime.startswith("ort:"):  # another execution provider; whether it is there is only known to ONNX Runtime
        runtime = "ort-cpu"
    if runtime not in _NEEDS:
        return f"no runtime of this version (known: {', '.join(_NEEDS)})"
    modules, driver = _NEEDS[runtime]
    for module in modules:
        if not _installed(module):
            extra = _EXTRAS.get(module)
            return f"package {module!r} is not installed" + (f": pip install 'hwnas[{extra}]'" if extra else "")
    if runtime.startswith("ort-") and driver and optional.version(_ORT_GPU) is None:
        return f"package {_ORT_GPU!r} is not installed: pip install 'hwnas[gpu]' && {optional.ONE_ONNXRUNTIME}"
    if runtime == "torch-cuda" and (optional.version("torch") or "").endswith("+cpu"):
        return "the installed torch is built for CPUs only"
    return "no NVIDIA driver found" if driver and not _nvidia_driver() else ""


def free_name(name: str) -> None:
    """Refuse a name for saved measurements that is none, or that another device has.

    Raises:
        InvalidSetting: With the reason.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSetting(f"a device's name holds only letters, digits, '.', '_' and '-'; got {name!r}")
    taken = {**{path.stem: path for path in user_folder().glob("*.toml")}, **_own()}.get(name)
    if taken is not None:
        raise InvalidSetting(f"the name {name!r} belongs to the device in {taken}; choose another")


def no_source(device: Device, metric: str) -> TablesNotFound:
    """The error for a metric that nothing at hand answers on a device that is only known from numbers."""
    title = METRICS[metric].title
    if metric not in device.metrics:
        others = [name for name in _published() if metric in load_device(name).metrics]
        return TablesNotFound(
            f"no {title} of device {device.name} was ever published; there is {_titles(device.metrics)}. "
            f"Devices with {title}: {', '.join(others) or 'none'}; devices here can be measured (hwnas devices)"
        )
    if device.host == "profile":
        return TablesNotFound(
            f"the measurements saved as {device.name} ({device.origin}) are not about this space and data set"
        )
    return TablesNotFound(
        f"no table or surrogate for {title} on device {device.name}; name a folder of tables (--tables, "
        "HWNAS_TABLES) or run 'hwnas tables fetch hw-nas-bench'"
    )


def _titles(metrics: Collection[str]) -> str:
    return ", ".join(METRICS[metric].title for metric in metrics)


def _published() -> list[str]:
    return [name for name, path in sorted(_own().items()) if read_device(path).host == "table"]


def _own() -> dict[str, Path]:
    return {path.stem: path for path in resources.folder("devices").glob("*.toml")}


def _users() -> dict[str, Path]:
    saved = {path.stem: path for path in resources.user_profiles().glob("*/*.toml") if path.stem == path.parent.name}
    return {**saved, **{path.stem: path for path in user_folder().glob("*.toml")}}


def _check(path: Path, content: Mapping[str, Any]) -> None:
    for key in content:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InvalidSetting(f"{path}: no key {key!r} in a device. Known: {', '.join(_KEYS)}.{hint}")
    missing = [key for key in _KEYS if key not in content and key not in _OPTIONAL]
    if missing:
        raise InvalidSetting(f"{path}: the key {missing[0]!r} ({_KEYS[missing[0]]}) is missing")
    for key, value in content.items():
        if not _fits(_KEYS[key], value):
            raise InvalidSetting(f"{path}: {key!r} wants {_KEYS[key]}, got {value!r}")
    for key in ("runtimes", "metrics"):
        if not content[key]:
            raise InvalidSetting(f"{path}: {key!r} wants at least one entry")
    for key, admitted in _LISTS.items():
        for word in content[key]:
            if word not in admitted:
                raise InvalidSetting(f"{path}: {key!r} holds {word!r}; known: {', '.join(admitted)}")
    if content["kind"] not in KINDS:
        raise InvalidSetting(f"{path}: no kind {content['kind']!r}. Known: {', '.join(KINDS)}")
    if content["host"] not in ("local", "table", "profile") and not re.fullmatch(r"ssh:\S+", content["host"]):
        raise InvalidSetting(
            f'{path}: \'host\' wants "local", "table", "profile" or "ssh:ADDRESS"; got {content["host"]!r}'
        )
    if content["host"] == "local" or content["host"].startswith("ssh:"):
        for runtime in content["runtimes"]:
            if runtime not in _NEEDS and not runtime.startswith("ort:"):
                near = difflib.get_close_matches(runtime, _NEEDS, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                known = ", ".join((*_NEEDS, "ort:PROVIDER"))
                raise InvalidSetting(f"{path}: 'runtimes' holds {runtime!r}; known: {known}.{hint}")
    if "fake" in content["runtimes"] and len(content["runtimes"]) > 1:
        raise InvalidSetting(
            f"{path}: the runtime 'fake' simulates a device, so it stands alone: it never takes the place of "
            f"a real one that is not here; got {content['runtimes']!r}"
        )
    if content["name"] != path.stem or not _NAME.fullmatch(content["name"]):
        raise InvalidSetting(
            f"{path}: 'name' is {content['name']!r}; it must equal the file's name {path.stem!r} and hold only "
            "letters, digits, '.', '_' and '-'"
        )


def _fits(wanted: str, value: object) -> bool:
    if wanted == _WORD:
        return isinstance(value, str) and bool(value)
    if wanted == _OPTIONS:
        return isinstance(value, dict) and all(isinstance(v, str | int | float | bool) for v in value.values())
    if wanted == _WORDS:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return number and (wanted == _SIZE or isinstance(value, int))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _nvidia_driver() -> bool:
    try:
        return any(path.exists() for path in _DRIVER_FILES) or shutil.which("nvidia-smi") is not None
    except OSError:
        return False
