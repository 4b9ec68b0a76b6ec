"""Energy of one inference, from counters and power meters that a machine has of its own.

In windows of back-to-back inferences, each beside a window of idling whose power is subtracted. A machine without a
meter (every virtual machine, most boards without a power monitor) has no energy, and the reason is said.

The meter has to be of what works: for runtimes on a GPU NVIDIA's counter (NVML), for those on the processor its own
counter (RAPL); on a Jetson, which has neither, for both the input rail of the whole board (INA3221), which says so.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from hwnas.profiling.backend import CPU_RUNTIMES, GPU_RUNTIMES

_POWERCAP = Path("/sys/class/powercap")
_HWMON = Path("/sys/class/hwmon")
_T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, 95 %
_POLL_S = 0.02


class Runs(Protocol):
    """What can be run in a window: `hwnas.profiling.backend.LoadedModel`."""

    def run(self, n: int = 1) -> None: ...


@dataclass(frozen=True)
class Energy:
    """Energy of one inference.

    Attributes:
        energy_mj: Above idling, mJ; None where there is no meter, or where it does not tell running from idling.
        power_w: Mean power while running, W.
        idle_w: Mean power while idling, W.
        ci: 95 % interval of `energy_mj` over windows.
        source: Which meter.
        reason: Why there is none.
    """

    energy_mj: float | None = None
    power_w: float | None = None
    idle_w: float | None = None
    ci: tuple[float, float] | None = None
    source: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Meter:
    """A meter whose `joules` only ever grows.

    Attributes:
        source: For people.
        joules: Energy since some moment, J.
        close: Ends what it needs.
    """

    source: str
    joules: Callable[[], float]
    close: Callable[[], None] = lambda: None


def measure_energy(
    model: Runs,
    *,
    window_s: float,
    windows: int,
    find: Callable[[], tuple[Meter | None, str]],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Energy of one inference above idling.

    Args:
        model: What to run, back to back.
        window_s: Length of a window, s; counters that are updated every 20 to 100 ms want 2 s.
        windows: How many, at least 2, each with a window of idling before it.
        find: The meter to use, and if there is none why; see `find_meter`.
        clock: Monotonic seconds.
        sleep: Idles.
    """
    meter, reason = find()
    if meter is None:
        return Energy(reason=reason)
    try:
        per_run, busy, idle = [], [], []
        for _ in range(max(2, windows)):
            before, start = meter.joules(), clock()
            sleep(window_s)
            idle.append((meter.joules() - before) / (clock() - start))
            before, start, runs = meter.joules(), clock(), 0
            while clock() - start < window_s:
                model.run(1)
                runs += 1
            joules, seconds = meter.joules() - before, clock() - start
            busy.append(joules / seconds)
            per_run.append(1e3 * (joules - idle[-1] * seconds) / runs)
    finally:
        meter.close()
    mean = statistics.mean(per_run)
    half = _T95.get(len(per_run), 1.96) * statistics.stdev(per_run) / len(per_run) ** 0.5
    power_w, idle_w = statistics.mean(busy), statistics.mean(idle)
    if mean - half <= 0:
        reason = f"{meter.source} does not surely show more power while running than while idling"
        return Energy(None, power_w, idle_w, None, meter.source, f"{reason}: {mean:.3g} ± {half:.2g} mJ an inference")
    return Energy(mean, power_w, idle_w, (mean - half, mean + half), meter.source)


def find_meter(runtime: str) -> tuple[Meter | None, str]:
    """The meter of what a runtime works on here; None with the reasons where there is none."""
    finders: tuple[Callable[[], tuple[Meter | None, str]], ...]
    if runtime in GPU_RUNTIMES:
        finders = (_nvml, _jetson)
    elif runtime in CPU_RUNTIMES:
        finders = (_rapl, _jetson)
    else:
        return None, f"no meter is known to be of what {runtime} works on"
    reasons = []
    for finder in finders:
        meter, reason = finder()
        if meter is not None:
            return meter, ""
        reasons.append(reason)
    return None, "; ".join(reasons)


def why_no_meter(runtime: str) -> str:
    """Why there is no meter of what a runtime works on; "" if there is one."""
    meter, reason = find_meter(runtime)
    if meter is not None:
        meter.close()
    return reason


def _nvml() -> tuple[Meter | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, "NVML: package nvidia-ml-py is not installed (pip install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own errors, and whatever a missing driver makes of it
        return None, f"NVML: {type(error).__name__}"
    return (
        Meter(
            "NVML energy counter of the GPU",
            lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            pynvml.nvmlShutdown,
        ),
        "",
    )


def _rapl(root: Path = _POWERCAP) -> tuple[Meter | None, str]:
    """The packages' counters; they overflow, and only root may read them on many systems."""
    packages = [path for path in sorted(root.glob("*-rapl:*")) if path.name.count(":") == 1]
    if not packages:
        return None, "RAPL: no counter (virtual machines have none)"
    try:
        last = {path: int((path / "energy_uj").read_text()) for path in packages}
        span = {path: int((path / "max_energy_range_uj").read_text()) for path in packages}
    except OSError as error:
        return None, f"RAPL: {error.filename or root} cannot be read ({error.strerror}); root may"
    total = 0

    def joules() -> float:
        nonlocal total
        for path in packages:
            now = int((path / "energy_uj").read_text())
            total += (now - last[path]) % span[path]
            last[path] = now
        return total / 1e6

    return Meter("RAPL counter of the processor package", joules), ""


def _jetson(root: Path = _HWMON, clock: Callable[[], float] = time.perf_counter) -> tuple[Meter | None, str]:
    """Power of a Jetson's input rail, summed up by a thread: voltage times current, every 20 ms."""
    for monitor in sorted(root.glob("*")):
        rails = {path.read_text().strip(): path.name[2:-6] for path in sorted(monitor.glob("in*_label"))}
        name = next((rail for rail in rails if rail in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")), None)
        if name is not None:
            volts, amperes = monitor / f"in{rails[name]}_input", monitor / f"curr{rails[name]}_input"
            break
    else:
        return None, "Jetson rails: no INA3221 monitor"
    total, done, lock = 0.0, threading.Event(), threading.Lock()
    then = clock()

    def add() -> float:
        nonlocal total, then
        with lock:
            now = clock()
            total += int(volts.read_text()) * int(amperes.read_text()) / 1e6 * (now - then)
            then = now
            return total

    def watch() -> None:
        while not done.wait(_POLL_S):
            add()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def close() -> None:
        done.set()
        thread.join()

    return Meter(f"INA3221 monitor of the whole board's input rail {name}", add, close), ""
