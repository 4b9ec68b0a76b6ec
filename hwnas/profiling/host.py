"""The machine that a worker runs on: what identifies it, and in what state it is. Standard library only.

Every figure may be missing (containers and virtual machines hide much); what is unknown is left out, never guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from hwnas.profiling.backend import DeviceInfo

_PROC, _SYS = Path("/proc"), Path("/sys")
_SMI_FIELDS = ("name", "uuid", "driver_version", "memory.total", "vbios_version")
_SMI_STATE = ("temperature.gpu", "clocks.sm", "clocks.mem", "clocks_throttle_reasons.active", "power.draw")


def fingerprint(facts: Mapping[str, str]) -> str:
    """64 hexadecimal digits that stand for a device: its facts hashed."""
    told = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


def unavailable(reason: str, versions: Mapping[str, str] | None = None) -> DeviceInfo:
    """What a probe says of a runtime that cannot run here."""
    return DeviceInfo(False, reason, "", dict(versions or {}), {})


def facts() -> dict[str, str]:
    """What identifies this machine: processor, memory, system, virtualisation. Nothing that changes from day to day."""
    cpu = _cpuinfo()
    known = {
        "cpu": cpu.get("model name") or cpu.get("Hardware") or platform.processor() or platform.machine(),
        "cpu details": "/".join(cpu.get(key, "") for key in ("cpu family", "model", "stepping", "CPU part")),
        "cpu flags": hashlib.sha256((cpu.get("flags") or cpu.get("Features", "")).encode()).hexdigest()[:12],
        "cores": str(os.cpu_count()),
        "usable cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory GiB": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "governor": _read(_SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "virtual": "yes" if "hypervisor" in cpu.get("flags", "") else "",
        "board": _read(_PROC / "device-tree/model").strip("\0"),
    }
    return {key: value for key, value in known.items() if value}


def limits() -> dict[str, str]:
    """What holds this process back, or makes clocks change, in words; only what is known."""
    known = {
        "container": "yes" if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() else "",
        "CPU quota": _quota(_read(_SYS / "fs/cgroup/cpu.max")),
        "memory limit": _gib(_read(_SYS / "fs/cgroup/memory.max")),
        "governor": _read(_SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": {"0": "on", "1": "off"}.get(_read(_SYS / "devices/system/cpu/intel_pstate/no_turbo"), "")
        or {"0": "off", "1": "on"}.get(_read(_SYS / "devices/system/cpu/cpufreq/boost"), ""),
        "clock": _clocks(),
    }
    return {key: value for key, value in known.items() if value}


def conditions() -> dict[str, float | str | list[str]]:
    """How busy and how warm the machine is now.

    Returns:
        Of these what is known: `psi_avg10` (share of the last 10 s in which some task waited for a CPU, %), `load1`,
        `steal_ticks`, `total_ticks` (since boot; their differences give the share stolen by other virtual machines),
        `temp_c`, `clock_mhz`, and of an NVIDIA GPU `gpu_temp_c`, `gpu_clock_mhz`, `gpu_mem_clock_mhz`,
        `throttle_reasons`, `gpu_power_w`, `gpu_processes`.
    """
    found: dict[str, float | str | list[str]] = {}
    pressure = re.search(r"some avg10=([\d.]+)", _read(_PROC / "pressure/cpu"))
    if pressure:
        found["psi_avg10"] = float(pressure.group(1))
    with contextlib.suppress(OSError):
        found["load1"] = os.getloadavg()[0]
    ticks = _read(_PROC / "stat").partition("\n")[0].split()[1:9]
    if len(ticks) == 8:
        found["steal_ticks"], found["total_ticks"] = float(ticks[7]), float(sum(map(int, ticks)))
    zones = [float(text) / 1000 for path in _SYS.glob("class/thermal/thermal_zone*/temp") if (text := _read(path))]
    if zones:
        found["temp_c"] = max(zones)
    clock = _read(_SYS / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if clock:
        found["clock_mhz"] = float(clock) / 1000
    return {**found, **_gpu_state()}


def nvidia_gpu() -> dict[str, str] | None:
    """What identifies the first NVIDIA GPU, as nvidia-smi says it; None where there is none."""
    return _smi(_SMI_FIELDS)


def free_bytes() -> int | None:
    """Memory that this process may still take: what the system has left, or what is left of a limit that it is held to
    (cgroup, version 1 or 2, the nearest one counts); None where the system does not tell."""
    known = [*_meminfo("MemAvailable"), *(left for _, left in _cgroup_rooms())]
    return max(0, min(known)) if known else None


def total_bytes() -> int | None:
    """Memory of the machine, or the limit that this process is held to; None where the system does not tell. What can
    be swapped out is not counted: nothing is timed from there."""
    return min([*_meminfo("MemTotal"), *(most for most, _ in _cgroup_rooms())], default=None)


def free_gpu_bytes() -> int | None:
    """Free memory of the first NVIDIA GPU, as nvidia-smi says it; None where it does not tell."""
    return _gpu_bytes("memory.free")


def total_gpu_bytes() -> int | None:
    """Memory of the first NVIDIA GPU, likewise."""
    return _gpu_bytes("memory.total")


def resident_bytes() -> int:
    """Memory of this process that is really there; 0 where the system does not tell."""
    pages = _read(_PROC / "self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _gpu_state() -> dict[str, float | str | list[str]]:
    told = _smi(_SMI_STATE)
    if told is None:
        return {}
    names = ("gpu_temp_c", "gpu_clock_mhz", "gpu_mem_clock_mhz", "throttle_reasons", "gpu_power_w")
    found: dict[str, float | str | list[str]] = {}
    for name, value in zip(names, told.values(), strict=True):
        number = re.match(r"-?\d+(\.\d+)?", value)
        if name == "throttle_reasons":
            found[name] = value
        elif number:
            found[name] = float(number.group())
    processes = _run(["nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader"])
    if processes is not None:
        found["gpu_processes"] = [line.strip() for line in processes.splitlines() if line.strip()]
    return found


def _meminfo(name: str) -> list[int]:
    """One of the system's own figures, bytes; nothing where it does not tell."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(_PROC / "meminfo"), re.MULTILINE)
    return [int(found.group(1)) * 1024] if found else []


def _gpu_bytes(which: str) -> int | None:
    told = _smi(("memory.free", "memory.total"))
    number = re.match(r"(\d+) MiB", (told or {}).get(which, ""))
    return int(number.group(1)) * 2**20 if number else None


def _cgroup_rooms() -> Iterator[tuple[int, int]]:
    """Each memory limit of this process's groups and their parents and what is left of it, bytes. Cached files are not
    counted as taken: the kernel gives them up first."""
    for line in _read(_PROC / "self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            root, limit, usage, cached = _SYS / "fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = _SYS / "fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        # in a container the path may be the host's, which is not there: its own group is the root then
        own = root / path.strip("/")
        for folder in (own, *(parent for parent in own.parents if parent == root or root in parent.parents)):
            most, used = _read(folder / limit), _read(folder / usage)
            if most.isdecimal() and used.isdecimal():
                files = re.search(rf"^{cached} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield int(most), int(most) - int(used) + (int(files.group(1)) if files else 0)


def _smi(fields: tuple[str, ...]) -> dict[str, str] | None:
    told = _run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"])
    values = [value.strip() for value in (told or "").partition("\n")[0].split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else None


def _run(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _quota(told: str) -> str:
    """cgroup's "QUOTA PERIOD" in CPUs."""
    quota, _, period = told.partition(" ")
    return f"{int(quota) / int(period):g} CPUs" if quota.isdecimal() and period.isdecimal() else ""


def _gib(told: str) -> str:
    return f"{int(told) / 2**30:.1f} GiB" if told.isdecimal() else ""


def _clocks() -> str:
    """Range of the first CPU's clock, where the system scales it."""
    low, high = (_read(_SYS / f"devices/system/cpu/cpu0/cpufreq/scaling_{end}_freq") for end in ("min", "max"))
    return f"{int(low) / 1e6:.2f} to {int(high) / 1e6:.2f} GHz" if low.isdecimal() and high.isdecimal() else ""


@cache
def _cpuinfo() -> dict[str, str]:
    """Keys of the first processor in /proc/cpuinfo, and those of the board behind it."""
    pairs = (line.split(":", 1) for line in _read(_PROC / "cpuinfo").splitlines() if ":" in line)
    found: dict[str, str] = {}
    for key, value in pairs:
        found.setdefault(key.strip(), value.strip())
    return found


def _memory_gib() -> str:
    return "".join(f"{total / 2**30:.0f}" for total in _meminfo("MemTotal"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
