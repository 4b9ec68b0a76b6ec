"""What was measured before on the same device in the same way, so that nobody pays for it twice.

One SQLite file for a user (write-ahead log, so several processes may read and write). A figure is found again by a key
over everything that makes two measurements comparable; a more careful protocol overwrites a less careful one, never the
other way round. Nothing expires by age: another driver, runtime or machine has another fingerprint, hence another key.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from hwnas.errors import DataError
from hwnas.onnx_facts import GRAPH_HASH_VERSION
from hwnas.profiling.backend import SessionConfig

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, rank INTEGER NOT NULL, record TEXT NOT NULL,
    recorded TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) WITHOUT ROWID
"""
_PUT = """
INSERT INTO results (key, rank, record) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET rank = excluded.rank, record = excluded.record, recorded = excluded.recorded
WHERE excluded.rank >= results.rank
"""
_BUSY_S = 30.0
# where files are kept or how much a worker may use changes no figure; which engine runs, and in which process, is in
# the figure's interval
NOT_IDENTITY = ("cache", "cache_mib", "build", "memory_limit_mib", "session")


def result_key(graph_hash: str, config: SessionConfig, fingerprint: str) -> str:
    """Key of one network on one device, run in one way.

    Args:
        graph_hash: Of the network's structure and input shapes; weights are not part of it, so isomorphic cells
            share one entry.
        config: How it is run, in which shapes.
        fingerprint: Of the device with its drivers and runtime versions.

    Returns:
        64 hexadecimal digits.
    """
    settings = {name: value for name, value in config.to_json().items() if name not in NOT_IDENTITY}
    told = json.dumps([GRAPH_HASH_VERSION, graph_hash, settings, fingerprint], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


class ResultCache:
    """Records by key.

    Args:
        path: The database; made, with its folder, if it does not exist.

    Raises:
        DataError: It is no database of this kind, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"the cache of measurements {path} cannot be used: {error}. Delete the file, name another folder with "
                "HWNAS_CACHE, or do without it (--no-cache)"
            ) from error

    def get(self, key: str, *, rank: int) -> dict[str, Any] | None:
        """The record of a key if it was measured at least as carefully as `rank`, else None."""
        found = self._database.execute("SELECT record FROM results WHERE key = ? AND rank >= ?", (key, rank)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, entries: Iterable[tuple[str, int, Mapping[str, Any]]]) -> None:
        """Keep records, each with its key and rank; one of a lower rank than what is there is dropped."""
        rows = [(key, rank, json.dumps(record, allow_nan=False)) for key, rank, record in entries]
        with closing(self._database.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.executemany(_PUT, rows)
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def close(self) -> None:
        """Release the file."""
        self._database.close()
