"""Writing the files of a run so that a reader sees all of the old or all of the new, and a full disk is said so."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwnas import atomic
from hwnas.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which a failed write to `path` becomes a RunError that says what to do."""
    try:
        yield
    except OSError as error:
        raise RunError(refusal(path, error.strerror or str(error), full=error.errno in _FULL)) from error


def refusal(path: Path, reason: str, *, full: bool) -> str:
    """What to say when `path` cannot be written."""
    advice = (
        "Free some space, then continue"
        if full
        else "Check that the folder is writable and its disk healthy, then continue"
    )
    return (
        f"could not write {path}: {reason}. Everything stored before is intact. {advice} with "
        f"`hwnas search --resume {path.parent}`"
    )


def replace_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8, newlines as they are) to `path` in one step.

    Raises:
        RunError: If it cannot be written; a former file is then left as it was.
    """
    with writing(path):
        atomic.write(path, text)
