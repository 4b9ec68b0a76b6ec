"""One writer for each run directory."""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import RunError, RunLocked
from hwnas.locking import ExclusiveLock, Held
from hwnas.stores.files import writing

LOCK_NAME = ".lock"


class RunLock:
    """The right to write to a run directory, held from construction to `release`.

    Args:
        folder: The run directory; it exists.

    Raises:
        RunLocked: Another process, or another store in this one, holds it; says which and since when.
        RunError: The file system knows no locks or refuses to write.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = ExclusiveLock(folder / LOCK_NAME)
        try:
            with writing(folder / LOCK_NAME):
                self._lock.acquire()
        except Held as held:
            raise RunLocked(
                f"{folder} is being written by {held.by}. Wait until that ends, or stop it. "
                "Reports and exports can be made meanwhile"
            ) from None
        except NotImplementedError:
            raise RunError(f"the file system of {folder} knows no locks; put the run on a local disk (--out)") from None

    def release(self) -> None:
        """Let others write. Releasing twice does nothing."""
        self._lock.release()
