"""What works here, what is missing, and the line that installs it: `hwnas doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hwnas
from hwnas import optional, registry, resources
from hwnas.devices import device_names, lacks, load_device, user_folder
from hwnas.errors import HwnasError
from hwnas.locking import Held, lock_file, shared_folder
from hwnas.profiling import host
from hwnas.profiling.bench import BUSY, DEFAULT_SIGMA
from hwnas.profiling.energy import find_meter
from hwnas.profiling.machine import own_folder
from hwnas.profiling.probing import Probed, probe_devices
from hwnas.profiling.saved import profile_folder, read_profile
from hwnas.surrogates import Profile, find_profiles
from hwnas.tables import catalogue
from hwnas.tables.folder import remedy, target_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hwnas.core.device import Device

OK, NOTE, MISSING, BROKEN = "ok", "note", "missing", "broken"
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
# packages that bring the same module as the one that is asked for
_INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}
_NOT_FOR_USERS = ("dev", "bench", "distributed")  # the last one is reserved: no code uses it yet


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: "python", "packages", "extras", "runtimes", "devices", "data", "folders", "machine", "locks".
        name: Which.
        state: "ok", "note" (works, but should be known), "missing" (optional), "broken" (hwnas does not work so).
        told: What was found.
        fix: What to do; a command where there is one.
    """

    area: str
    name: str
    state: str
    told: str
    fix: str = ""


def examine(device: str | None = None, tables: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is changed, and nothing raises.

    Args:
        device: A device that is asked as well, also over ssh; by default those of this machine.
        tables: Folder of tables; None for the usual places.
    """
    areas: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _extras,
        lambda: _devices(device),
        lambda: _data(tables),
        lambda: _folders(tables),
        _machine,
        _locks,
    ]
    return [finding for area in areas for finding in _guarded(area)]


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether hwnas itself works; what is optional may be missing."""
    return all(finding.state != BROKEN for finding in findings)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain values."""
    return {"hwnas": hwnas.__version__, "healthy": healthy(findings), "findings": [asdict(f) for f in findings]}


def table(findings: Sequence[Finding]) -> RenderableType:
    """The findings for the terminal, area by area."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(4):
        shown.add_column(overflow="fold")
    styles = {OK: "green", NOTE: "yellow", MISSING: "dim", BROKEN: "bold red"}
    area = ""
    for finding in findings:
        told = finding.told + (f"\n{finding.fix}" if finding.fix else "")
        first = "" if finding.area == area else finding.area
        shown.add_row(Text(first, "bold"), Text(finding.name), Text(finding.state, styles[finding.state]), Text(told))
        area = finding.area
    last = "hwnas works here." if healthy(findings) else "hwnas does not work here: see what is broken."
    return Group(shown, Text(last, "bold" if healthy(findings) else "bold red"))


def _guarded(area: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A doctor that falls ill helps nobody."""
    try:
        yield from area()
    except Exception as error:
        yield Finding("doctor", getattr(area, "__name__", "check").strip("_"), NOTE, f"{type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    enough = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        platform.python_version(),
        OK if enough else BROKEN,
        sys.executable,
        "" if enough else "hwnas wants Python 3.11 or newer",
    )
    yield Finding("python", "hwnas", OK, f"{hwnas.__version__} in {Path(hwnas.__file__).parent}")


def _packages() -> Iterator[Finding]:
    for name in _requirements().get("", []):
        version = _version(name)
        state, fix = (OK, "") if version else (BROKEN, f"pip install {name}")
        yield Finding("packages", name, state, version or "not installed", fix)
    if all(optional.version(name) for name in ("onnxruntime", "onnxruntime-gpu")):
        told = "both onnxruntime and onnxruntime-gpu are installed: they overwrite each other's files"
        yield Finding("packages", "onnxruntime-gpu", NOTE, told, optional.ONE_ONNXRUNTIME)


def _extras() -> Iterator[Finding]:
    for extra, names in _requirements().items():
        if not extra or extra in _NOT_FOR_USERS:
            continue
        absent = [name for name in names if _version(name) is None]
        told = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in names)
        fix = f"pip install 'hwnas[{extra}]'" if absent else ""
        if absent and "onnxruntime-gpu" in names:
            fix += f" && {optional.ONE_ONNXRUNTIME}"
        yield Finding("extras", extra, MISSING if absent else OK, told, fix)


def _requirements() -> Mapping[str, list[str]]:
    """Names of packages by extra, "" for those that are always wanted."""
    found: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires("hwnas") or ():
        name, extra = _NAME.match(line), _EXTRA.search(line)
        if name is not None:
            found.setdefault(extra.group(1) if extra else "", []).append(name.group())
    return found


def _version(name: str) -> str | None:
    versions = (optional.version(known) for known in (name, *_INSTEAD.get(name, ())))
    return next(filter(None, versions), None)


def _devices(name: str | None) -> Iterator[Finding]:
    readable = []
    for known in device_names() if name is None else [name]:
        try:
            readable.append(load_device(known))
        except HwnasError as error:
            yield Finding("devices", known, NOTE, str(error), "correct the file or delete it")
    asked = [device for device in readable if device.measurable and (device.host == "local" or name is not None)]
    for runtime in dict.fromkeys(runtime for device in asked if device.host == "local" for runtime in device.runtimes):
        lack = lacks(runtime) or _lacks_provider(runtime)
        told, _, line = lack.partition(": pip install ")
        yield Finding(
            "runtimes", runtime, MISSING if lack else OK, told or "found", f"pip install {line}" if line else ""
        )
    if optional.version("onnxruntime") or optional.version("onnxruntime-gpu"):
        import onnxruntime

        yield Finding("runtimes", "ONNX Runtime's providers", OK, ", ".join(onnxruntime.get_available_providers()))
    for device_name, found in probe_devices(asked).items():
        yield _device(device_name, found)
    for device in readable:
        if device.host.startswith("ssh:") and name is None:
            yield Finding("devices", device.name, NOTE, f"is at {device.host}", f"hwnas doctor --device {device.name}")
        elif device.host == "profile":
            yield _profile(device)


def _lacks_provider(runtime: str) -> str:
    """What ONNX Runtime, which is there, lacks for a provider by its name; "" if nothing."""
    if not runtime.startswith("ort:"):
        return ""
    import onnxruntime

    provider = runtime.removeprefix("ort:")
    there = onnxruntime.get_available_providers()
    return "" if provider in there else f"the installed onnxruntime has no {provider}, only {', '.join(there)}"


def _device(name: str, found: Probed) -> Finding:
    if found.reason or found.info is None:
        return Finding("devices", name, MISSING, found.reason)
    versions = ", ".join(f"{package} {version.partition('-')[0]}" for package, version in found.info.versions.items())
    what = f"{found.info.device}, {found.runtime}, {versions}"
    if found.sigma is None:
        told = f"{what}; noise floor {DEFAULT_SIGMA:.1%} assumed"
        return Finding("devices", name, NOTE, told, f"hwnas calibrate --device {name}")
    return Finding("devices", name, OK, f"{what}; noise floor {found.sigma:.2%}")


def _profile(device: Device) -> Finding:
    """A saved profile: what it holds, where it lies, and whether a search can use it."""
    from hwnas.evaluators.saved import SavedEvaluator  # its predictors load scipy

    folder = profile_folder(device.name)
    told, reasons = [], []
    for path in sorted(folder.glob("*.toml")):
        if path.stem not in registry.spaces():
            continue
        space = registry.space(path.stem)
        try:
            profile = read_profile(device.name, space)
        except HwnasError as error:
            return Finding("devices", device.name, NOTE, str(error), f"or remove {folder}")
        if profile is not None:
            told.append(f"{len({row.architecture for row in profile.rows})} networks of {space.name}")
            reasons.append(SavedEvaluator(profile, space).too_few("latency_ms"))
    what = f"{device.origin}; {', '.join(told) or 'no networks'}, in {folder}"
    short = next(filter(None, reasons), "")
    return Finding("devices", device.name, NOTE if short else OK, what, short)


def _data(tables: Path | None) -> Iterator[Finding]:
    folder = target_folder(tables)
    infos = list(catalogue.list_tables(tables))
    for info in infos:
        told = info.problem or (f"{info.title}, {info.rows} rows" if info.rows else info.title)
        advice = remedy(folder, info.kind) if info.problem else ""
        yield Finding("data", info.path.name, NOTE if info.problem else OK, told, advice)
    if not infos:
        yield Finding("data", "tables", MISSING, f"none in {folder}", "hwnas tables fetch hw-nas-bench")

    for name, path in find_profiles("nb201").items():
        try:
            Profile.read(path)
        except HwnasError as error:
            yield Finding("data", f"surrogate {name}", BROKEN, str(error))
        else:
            yield Finding("data", f"surrogate {name}", OK, str(path.parent))


def _folders(tables: Path | None) -> Iterator[Finding]:
    wanted = {
        "cache": (resources.user_cache(), "HWNAS_CACHE"),
        "saved profiles": (resources.user_profiles(), "HWNAS_PROFILES"),
        "device files": (user_folder(), "HWNAS_DEVICES"),
        "tables": (target_folder(tables), "HWNAS_TABLES"),
        "runs": (Path("runs").absolute(), "--out"),
    }
    for name, (path, variable) in wanted.items():
        problem = _unwritable(path)
        fix = f"name another folder with {variable}" if problem else ""
        yield Finding("folders", name, NOTE if problem else OK, f"{path}{f': {problem}' if problem else ''}", fix)


def _unwritable(path: Path) -> str:
    """Why nothing could be written there; "" if it could. Makes no folder."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), path)
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there} cannot be written ({error.strerror})"


def _machine() -> Iterator[Finding]:
    for name, told in host.facts().items():
        if not name.startswith("cpu "):
            yield Finding("machine", name, OK, told)
    for name, told in host.limits().items():
        quiet = name == "governor" and told not in ("performance",)
        fix = (
            "clocks change with the load; for steadier figures: cpupower frequency-set -g performance" if quiet else ""
        )
        yield Finding("machine", name, NOTE if quiet or name in ("CPU quota", "container") else OK, told, fix)
    now = host.conditions()
    load = [f"load {now['load1']:.1f} on {os.cpu_count()} CPUs"] if "load1" in now else []
    pressure = now.get("psi_avg10")
    load += [f"some task waited for a CPU in {pressure:.0f} % of the last 10 s"] if isinstance(pressure, float) else []
    busy = isinstance(pressure, float) and pressure > BUSY
    fix = "figures will be flagged 'busy'; intervals say what that costs" if busy else ""
    yield Finding("machine", "now", NOTE if busy else OK, ", ".join(load) or "unknown", fix)
    gpu = host.nvidia_gpu()
    yield Finding("machine", "NVIDIA GPU", OK if gpu else MISSING, ", ".join(gpu.values()) if gpu else "none found")
    for part, runtime in (("CPU", "ort-cpu"), ("GPU", "ort-cuda")):
        meter, reason = find_meter(runtime)
        if meter is not None:
            meter.close()
        found = OK if meter else MISSING
        yield Finding("machine", f"energy meter, {part}", found, meter.source if meter else reason)


def _locks() -> Iterator[Finding]:
    shared = shared_folder()
    if shared is None:
        told = f"{own_folder()}: other users are not kept out, as no folder is open to all"
        yield Finding("locks", "folder", NOTE, told, "name one that all users can write to with HWNAS_LOCKS")
    else:
        yield Finding("locks", "folder", OK, str(shared))
    folder = own_folder() if shared is None else shared
    for path in sorted(folder.glob("hwnas-*.lock")):
        name = path.stem.removeprefix("hwnas-")
        lock = lock_file(folder, name)
        try:
            lock.acquire()
        except Held as held:
            yield Finding("locks", name, NOTE, f"{held.by} measures there", "wait, or use --wait SECONDS")
        except OSError as error:
            yield Finding("locks", name, NOTE, f"{path} cannot be used: {error.strerror or error}", "remove it")
        else:
            lock.release()
            yield Finding("locks", name, OK, "free")
