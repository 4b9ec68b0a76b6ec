"""Downloading the official HW-NAS-Bench file, verified before anything is read from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from hwnas.errors import DataError, FetchFailed, UnknownName
from hwnas.tables import hwnasbench
from hwnas.tables.catalogue import TableInfo, refuse_existing, write
from hwnas.tables.folder import make_folder, target_folder
from hwnas.tables.schema import FBNET, HARDWARE

COMMIT = "393bb8a02554dcd28e091fbbdb4d7aefe590018a"
URL = f"https://raw.githubusercontent.com/GATECH-EIC/HW-NAS-Bench/{COMMIT}/HW-NAS-Bench-v1_0.pickle"
BLOB = "b0634cb7f6e7be07192c77833df9eafa4baf705e"  # git's own hash of that file in that commit
FETCHABLE = ("hw-nas-bench",)
_TIMEOUT_S = (15, 60)  # to connect, between two pieces of the file


def fetch(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    replace: bool = False,
    url: str = URL,
    blob: str = BLOB,
) -> list[TableInfo]:
    """Download a published table, verify it and import it.

    Args:
        name: One of `FETCHABLE`.
        folder: Where to; None for `HWNAS_TABLES`, else the user's own.
        replace: Whether tables that are already there may be replaced.
        url: Where the file lies.
        blob: Git's blob hash of the file, 40 hex digits.

    Returns:
        The tables written.

    Raises:
        UnknownName: No such published table.
        UsageError: A table is there and `replace` is false.
        FetchFailed: No network, or the file is not the expected one (it is deleted).
        DataError: The folder cannot be written.
    """
    if name not in FETCHABLE:
        raise UnknownName("published table", name, FETCHABLE)
    where = target_folder(folder)
    refuse_existing(where, HARDWARE, replace)
    pickle = where / f".{name}.{os.getpid()}.download"
    make_folder(where)
    try:
        _download(url, pickle)
        _verify(pickle, blob, url)
        tables = hwnasbench.read(pickle)
    except OSError as error:
        raise DataError(
            f"{where}: the download could not be written ({error}). Make room, or choose another folder with --tables"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written: nothing was downloaded
            pickle.unlink()
    if not replace and (where / FBNET.file).exists():
        tables.pop(FBNET, None)  # not what was asked for; the one that is there stays
    told = f"{url} (git blob {blob}), fetched {datetime.now(UTC).date().isoformat()}"
    return [write(table, kind, where, source=told) for kind, table in tables.items()]


def git_blob_hash(path: Path) -> str:
    """Git's hash of a file's content: SHA-1 of "blob <size>\\0" and the content; 40 hex digits."""
    # no defence against a forger's collision by itself: the restricted reader is what keeps a bad file harmless
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _download(url: str, path: Path) -> None:
    import pooch
    import requests

    try:
        pooch.HTTPDownloader(progressbar=False, timeout=_TIMEOUT_S)(url, str(path), None)
    except requests.RequestException as error:
        # what requests says of a missing network is long and names its own internals
        offline = isinstance(error, requests.ConnectionError | requests.Timeout)
        reason = f"no answer from {urlsplit(url).hostname}: is there a network?" if offline else f"{error}."
        raise FetchFailed(
            f"{url} could not be downloaded: {reason} It can be downloaded on another machine and imported with "
            f"'hwnas tables add FILE'"
        ) from error


def _verify(path: Path, blob: str, url: str) -> None:
    found = git_blob_hash(path)
    if found != blob:
        raise FetchFailed(
            f"{url}: wants the file with git blob hash {blob}, got {path.stat().st_size:,} bytes with {found}; "
            f"the download was deleted and nothing was read from it. Try again; a proxy on the way may have changed it"
        )
