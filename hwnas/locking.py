"""One holder at a time, across processes. The operating system frees a lock when its process dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hwnas import atomic


class Held(Exception):
    """Somebody else holds the lock.

    Args:
        by: Who, in words, e.g. "process 4242 on desk since 2026-01-31T12:00:00+00:00".
    """

    def __init__(self, by: str) -> None:
        super().__init__(f"held by {by}")
        self.by = by


class ExclusiveLock:
    """A lock file with a note beside it that says who holds it.

    Args:
        path: The lock file; its folder exists. On some systems a locked file cannot be read by others, so the note
            is a file of its own: the same name with ".json" behind it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, thread_local=False)
        self._note = path.with_name(path.name + ".json")

    def acquire(self, *, timeout: float = 0) -> None:
        """Take the lock.

        Args:
            timeout: Seconds to wait for another holder.

        Raises:
            Held: Another process, or another lock object in this one, holds it.
            NotImplementedError: The file system knows no locks.
            OSError: The file system refuses to write.
        """
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            raise Held(self._holder()) from None
        try:
            atomic.write(self._note, json.dumps(_self()) + "\n")
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others in. Releasing twice does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._note.unlink()
            self._lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads(self._note.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _self() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
