"""The folder of compiled engines and of builders' timings: kept for the next session, and of bounded size."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def used(path: Path) -> None:
    """Remember that a file was used now: those that were not for longest are the first to go."""
    with suppress(OSError):
        os.utime(path)


def bound(folder: Path, mib: float) -> None:
    """Remove files until the others take no more than `mib` MiB; those that were not used for longest go first.

    Whoever has loaded an engine needs its file no more; one that is larger than the bound is not kept at all.
    """
    known = []
    with suppress(OSError):
        for path in folder.rglob("*"):
            with suppress(OSError):  # somebody else may remove it meanwhile
                if path.is_file() and not path.name.startswith("."):  # those are being written
                    told = path.stat()
                    # runtimes that read their files themselves leave a time of access, where the file system keeps one
                    known.append((max(told.st_mtime_ns, told.st_atime_ns), told.st_size, path))
    total = sum(size for _, size, _ in known)
    for _, size, path in sorted(known, key=lambda one: (one[0], str(one[2]))):
        if total <= mib * 2**20:
            break
        with suppress(OSError):
            path.unlink()
            total -= size
