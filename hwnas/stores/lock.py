"""One writer for each run directory. The operating system releases the lock when its process dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hwnas.errors import RunError, RunLocked
from hwnas.stores.files import replace_text, writing

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock.json"  # beside the lock: on some systems a locked file cannot be read by others


class RunLock:
    """The right to write to a run directory, held from construction to `release`.

    Args:
        folder: The run directory; it exists.

    Raises:
        RunLocked: Another process, or another store in this one, holds it; says which and since when.
        RunError: The file system knows no locks or refuses to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK_NAME, thread_local=False)
        try:
            with writing(folder / LOCK_NAME):
                self._acquire()
            replace_text(folder / HOLDER_NAME, json.dumps(_self()) + "\n")
        except BaseException:
            self._lock.release()
            raise

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLocked(
                f"{self.folder} is being written by {_holder(self.folder)}. Wait until that ends, or stop it. "
                "Reports and exports can be made meanwhile"
            ) from None
        except NotImplementedError:
            raise RunError(
                f"the file system of {self.folder} knows no locks; put the run on a local disk (--out)"
            ) from None

    def release(self) -> None:
        """Let others write. Releasing twice does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                (self.folder / HOLDER_NAME).unlink()
            self._lock.release()


def _self() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
