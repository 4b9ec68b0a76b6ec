"""Where files lie: hwnas's own in the wheel below `hwnas/_data` (in a checkout beside the package), measured ones in
the user's folders."""

from __future__ import annotations

import os
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


def user_cache() -> Path:
    """Where measured figures and compiled models are kept between runs: `HWNAS_CACHE`, else the user's cache folder."""
    named = os.environ.get("HWNAS_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_path("hwnas", appauthor=False))


def user_profiles() -> Path:
    """Where a user's saved measurements lie, a folder for each: `HWNAS_PROFILES`, else in the user's data folder."""
    named = os.environ.get("HWNAS_PROFILES")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_path("hwnas", appauthor=False)) / "profiles"
