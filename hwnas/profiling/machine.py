"""One process at a time measures on a machine, whoever started it."""

from __future__ import annotations

import logging
import re
import socket
from functools import cache
from pathlib import Path
from typing import ClassVar

from hwnas import resources
from hwnas.core.device import Device
from hwnas.errors import DataError, DeviceBusy
from hwnas.locking import ExclusiveLock, Held, SharedLock, lock_file, shared_folder

Lock = ExclusiveLock | SharedLock


class MachineLock:
    """The right to measure on a machine: one process at a time, which may hold it several times.

    All devices of a machine share it: two runtimes that time on the same cores disturb each other as two searches do,
    and so do a CPU and a GPU, which share the host's threads, memory and power (docs/decisions/007).

    Args:
        device: A device of the machine.
        wait_s: How long to wait for another holder.

    Raises:
        DeviceBusy: Another process holds it; says which and since when.
        DataError: There is no folder where it could be locked.
    """

    _held: ClassVar[dict[str, tuple[Lock, int]]] = {}

    def __init__(self, device: Device, wait_s: float) -> None:
        self._machine = machine(device.host)
        known = self._held.get(self._machine)
        lock, count = (self._take(device, wait_s), 0) if known is None else known
        self._held[self._machine] = lock, count + 1

    def release(self) -> None:
        """Give one hold back; after the last, others may measure."""
        lock, count = self._held.pop(self._machine)
        if count > 1:
            self._held[self._machine] = lock, count - 1
        else:
            lock.release()

    def _take(self, device: Device, wait_s: float) -> Lock:
        try:
            folder = shared_folder()
            if folder is not None:
                try:
                    return _acquired(folder, self._machine, device, wait_s)
                except OSError as error:
                    _warn(f"{folder} cannot be used for locks ({error.strerror or error})")
            else:
                _warn("this machine has no folder that is open to all users")
            return _acquired(own_folder(), self._machine, device, wait_s)
        except Held as held:
            raise DeviceBusy(
                f"{held.by} measures on the machine of device {device.name}; two at a time would disturb each "
                "other. Wait until that ends, or let this one wait with --wait SECONDS"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise DataError(
                f"no lock can be taken in {own_folder()}: {error}. Name another folder with HWNAS_LOCKS"
            ) from error


def machine(host: str) -> str:
    """What stands for the machine of a device's `host`, as a part of a file name; "local" for this one."""
    address = host.removeprefix("ssh:").rpartition("@")[2].lower()  # two users of a board measure on the same board
    if address in ("local", "localhost", "127.0.0.1", "::1", socket.gethostname().lower()):
        return "local"
    return re.sub("[^a-z0-9.-]+", "-", address)


def own_folder() -> Path:
    """Where locks go that other users do not see: where nothing is open to all."""
    return resources.user_cache() / "locks"


def _acquired(folder: Path, name: str, device: Device, wait_s: float) -> Lock:
    """The lock, taken; who is waited for is said once."""
    lock = lock_file(folder, name)
    try:
        lock.acquire()
    except Held as held:
        if not wait_s:
            raise
        # a program that sets up no logging of its own, as the command line, writes this to standard error
        logging.getLogger(__name__).warning(
            "waiting for at most %g s: %s measures on the machine of device %s", wait_s, held.by, device.name
        )
        lock.acquire(timeout=wait_s)
    return lock


@cache
def _warn(reason: str) -> None:
    """Say once that other users are not kept out."""
    logging.getLogger(__name__).warning(
        "%s: other users of this machine, or another HWNAS_CACHE, may measure at the same time and disturb the "
        "figures. Name a folder for locks that all of them can write to with HWNAS_LOCKS",
        reason,
    )
