"""Where the files that belong to hwnas lie: in the wheel below `hwnas/_data`, in a checkout beside the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `name` ("devices" or "profiles") of this installation.

    Raises:
        FileNotFoundError: If neither the wheel's nor the checkout's folder exists (a broken installation).
    """
    candidates = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"hwnas's own folder {name!r} is missing; looked at {candidates[0]} and {candidates[1]}")
