"""What can be measured on now: a worker is asked for each device. Nothing is run, and no lock is taken."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hwnas.core.device import Device
from hwnas.errors import DataError, DeviceError
from hwnas.profiling import host
from hwnas.profiling.backend import DeviceInfo
from hwnas.profiling.bench import DEFAULT_SIGMA
from hwnas.profiling.profiler import choose_runtime, probe, read_calibration, session_config


@dataclass(frozen=True)
class Probed:
    """A device that a worker has looked at.

    Attributes:
        runtime: Which of its runtimes would be used; "" where none is there.
        info: What the worker found; None where it could not be asked.
        reason: Why it cannot be measured on; "" if it can.
        sigma: Between-session standard deviation that it was calibrated with, relative; None where it was not.
    """

    runtime: str
    info: DeviceInfo | None
    reason: str = ""
    sigma: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the noise floor is the one that intervals would contain."""
        info = self.info
        usable = info is not None and not self.reason
        return {
            "runtime": self.runtime,
            "hardware": info.device if info is not None else "",
            "versions": dict(info.versions) if info is not None else {},
            "fingerprint": host.fingerprint(info.facts) if usable and info is not None else None,
            "noise_floor": (DEFAULT_SIGMA if self.sigma is None else self.sigma) if usable else None,
            "calibrated": self.sigma is not None,
        }


def probe_devices(devices: Sequence[Device]) -> dict[str, Probed]:
    """Ask a worker for each device, all at once; devices that are only known from numbers are left out."""
    asked = [device for device in devices if device.measurable]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip([device.name for device in asked], pool.map(_probed, asked), strict=True))


def _probed(device: Device) -> Probed:
    try:
        runtime = choose_runtime(device)
        info = probe(device, runtime)
        if not info.available:
            return Probed(runtime, info, info.reason)
    except DeviceError as error:
        return Probed("", None, str(error))
    try:
        sigma = read_calibration(host.fingerprint(info.facts), session_config(device, runtime))
    except DataError as error:
        return Probed(runtime, info, str(error))
    return Probed(runtime, info, "", sigma)
