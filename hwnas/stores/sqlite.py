"""The store of a run directory: SQLite with a write-ahead log, appended to by one process, readable by others.

What survives what. `append` and `commit_step` return after their transaction has been handed to the operating system,
so a process that is killed (`kill -9`, out of memory, Ctrl-C) loses nothing they returned from. They do not wait
for the disk (`synchronous=NORMAL`): that would add a disk's latency to every row. A power cut or a crash of the whole
machine may therefore lose the transactions of the last seconds, always the newest ones and never half of one; the
database stays consistent, and a resumed search pays for those evaluations again. SQLite's write-ahead log needs a local
disk: processes on different machines must not share it over a network file system.

    measurements(id, architecture, metric, device, value, status, low, high, message, context, recorded,
                 own_half)                                                                                 append-only
    steps(step, architectures, ledger, recorded)                                                           append-only
    outlooks(step, outlook)   of steps after which the generator told what it expects                      append-only
    generator(step, state)    one row: what was learned up to the last step (hwnas.stores.codec.pack)
    notes(id, topic, entry, recorded)    what else a continued run has to know, as JSON                    append-only
    meta(key, value)          schema, run_id, created, hwnas

Schema 1 had no notes, and earlier databases of schema 2 no `own_half`. They can be read as they are, and get what they
lack when they are opened to be continued.
"""

from __future__ import annotations

import json
import math
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import hwnas
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Status
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook
from hwnas.errors import RunCorrupt, RunError, RunExists, RunIncompatible, RunLocked
from hwnas.stores import codec
from hwnas.stores.facts import Facts, newly_told, note_text
from hwnas.stores.files import refusal
from hwnas.stores.lock import RunLock

SCHEMA_VERSION = 2
SIDE_FILES = ("", "-wal", "-shm", "-journal")  # what SQLite keeps of one database: behind its name
APPLICATION_ID = 0x68776E61  # "hwna", in the file's header: tells our databases from others
_BUSY_S = 5.0  # how long to wait for a foreign program that holds the database for a moment

_NOW = "(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))"


def _append_only(*tables: str) -> str:
    """Triggers that keep rows as they were written."""
    return "".join(
        f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} are facts: appended, never changed'); END;\n"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


_NOTES = f"""
CREATE TABLE notes (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, entry TEXT NOT NULL, recorded TEXT NOT NULL DEFAULT {_NOW}
);
""" + _append_only("notes")
_OUTLOOKS = "CREATE TABLE IF NOT EXISTS outlooks (step INTEGER PRIMARY KEY, outlook TEXT NOT NULL);\n" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS outlooks_{verb} BEFORE {verb} ON outlooks "
    "BEGIN SELECT RAISE(ABORT, 'outlooks are facts: appended, never changed'); END;\n"
    for verb in ("UPDATE", "DELETE")
)
_SCHEMA = (
    f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY, architecture TEXT NOT NULL, metric TEXT NOT NULL, device TEXT,
    value REAL, status TEXT NOT NULL, low REAL, high REAL, message TEXT NOT NULL, context TEXT NOT NULL,
    recorded TEXT NOT NULL DEFAULT {_NOW}, own_half REAL
);
CREATE TABLE steps (
    step INTEGER PRIMARY KEY, architectures TEXT NOT NULL, ledger TEXT NOT NULL, recorded TEXT NOT NULL DEFAULT {_NOW}
);
CREATE TABLE generator (only INTEGER PRIMARY KEY CHECK (only = 1), step INTEGER NOT NULL, state BLOB NOT NULL);
"""
    + _append_only("measurements", "steps")
    + _NOTES
    + _OUTLOOKS
)
_FIRST_TABLES = {"meta", "measurements", "steps", "generator"}  # of schema 1
_TABLES = {1: _FIRST_TABLES, SCHEMA_VERSION: _FIRST_TABLES | {"notes"}}
_INSERT = (
    "INSERT INTO measurements (architecture, metric, device, value, status, low, high, message, context, "
    "own_half) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# all columns, as an older database lacks one, and whoever continues it may add that while others read
_SELECT = "SELECT * FROM measurements WHERE id > ? ORDER BY id"


class SqliteStore:
    """One database file. Made by `create`, `open` (to continue) or `read` (beside a running search).

    Attributes:
        path: The file.
        meta: Schema, run id, when and by which version of hwnas it was created.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: RunLock | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._facts = Facts()
        self._last_id = 0
        self._steps: list[list[str]] = []
        with _reading(path):
            self.meta: Mapping[str, str] = dict(connection.execute("SELECT key, value FROM meta"))
            self._load()

    @classmethod
    def create(cls, path: str | Path) -> SqliteStore:
        """A new database, open for writing. Its folder exists. One that a killed creation left is made anew.

        Raises:
            RunExists: `path` exists and is more than that (see `unused`).
            RunLocked: Another process writes to the same folder.
            RunError: It cannot be written.
        """
        path = Path(path)
        lock = RunLock(path.parent)
        try:
            if path.exists():
                if not unused(path):
                    raise RunExists(f"{path} exists and is never overwritten; choose another folder (--out)")
                for name in SIDE_FILES:
                    path.with_name(path.name + name).unlink(missing_ok=True)
            return cls._connected(path, lock, _initialise)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: str | Path) -> SqliteStore:
        """An existing database, open for writing.

        Raises:
            RunCorrupt: It is missing or damaged, or no database of hwnas.
            RunIncompatible: It was made by a version of hwnas with another schema.
            RunLocked: Another process writes to it.
            RunError: It cannot be written.
        """
        path = _existing(path)
        lock = RunLock(path.parent)
        try:
            return cls._connected(path, lock, _upgrade)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, path: str | Path) -> SqliteStore:
        """An existing database, only for reading; a search may go on writing to it. What is read later may be
        more: read steps before rows, then the rows of those steps are there.

        Raises:
            RunCorrupt, RunIncompatible: As `open`.
        """
        path = _existing(path)
        try:
            return cls._connected(path, None, _check, "?mode=ro")
        except RunError as error:
            log = path.with_name(path.name + "-wal")
            readable_alone = not log.exists() or log.stat().st_size == 0
            cause = error.__cause__
            if _code(cause) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) and readable_alone:
                # a write-protected folder: SQLite cannot place its lock files there, and nobody can write either
                return cls._connected(path, None, _check, "?mode=ro&immutable=1")
            raise

    @classmethod
    def _connected(cls, path: Path, lock: RunLock | None, prepare: Any, options: str = "?mode=rwc") -> SqliteStore:
        with _errors_of(path):
            uri = path.resolve().as_uri() + options
            connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            with _errors_of(path):
                prepare(connection, path)
                if lock is not None:
                    _journal(connection, path)
                    _complete(connection)
            return cls(path, connection, lock)
        except BaseException:
            connection.close()
            raise

    def append(self, rows: Sequence[Measurement]) -> None:
        """Add facts: all of them or, if this raises, none.

        Raises:
            RunError: They cannot be written (disk full, opened for reading); nothing stored before is lost.
        """
        with self._writing():
            self._connection.executemany(_INSERT, [_columns(row) for row in rows])
        # what was written is read back, so that this process finds exactly what a resumed one would
        with _reading(self.path):
            self._load()

    def find(self, architecture: Architecture, metric: str, context: Context) -> Measurement | None:
        """The newest fact with exactly this context, or None."""
        self._refresh()
        return self._facts.find(architecture, metric, context)

    def rows(self) -> Sequence[Measurement]:
        """All facts in the order in which they came."""
        self._refresh()
        return tuple(self._facts.rows)

    def commit_step(self, state: SearchState, generator: Mapping[str, Any], ledger: Ledger) -> None:
        """Mark a step as done, in one transaction.

        Raises:
            ValueError: If `state` does not follow the last committed step, or tells what was not appended.
            TypeError: If the generator's state holds what `hwnas.stores.codec` does not write.
            RunError: It cannot be written; the last committed step is then still the one before.
        """
        with _reading(self.path):
            self._load()
        keys = newly_told(state, self._steps, self._facts)
        blob = codec.pack(dict(generator))
        with self._writing():
            self._connection.execute(
                "INSERT INTO steps (step, architectures, ledger) VALUES (?, ?, ?)",
                (state.step, json.dumps(keys), json.dumps(ledger.to_json())),
            )
            outlook = state.outlooks[-1]
            if outlook is not None:
                told = json.dumps(outlook.to_json())
                self._connection.execute("INSERT INTO outlooks VALUES (?, ?)", (state.step, told))
            # only the newest is kept: 50 states of a network are far more than all facts together
            self._connection.execute("INSERT OR REPLACE INTO generator VALUES (1, ?, ?)", (state.step, blob))

    def last_step(self) -> tuple[int, list[list[str]], Mapping[str, Any], Ledger] | None:
        """What `commit_step` stored last: step, architecture keys of each step in order, generator state, ledger.

        Raises:
            RunCorrupt: What is stored cannot be read.
        """
        with _reading(self.path):
            # one statement sees one moment, also while a search commits
            found = self._connection.execute(
                "SELECT steps.step, ledger, state, (SELECT json_group_array(architectures) FROM "
                "(SELECT architectures FROM steps ORDER BY step)) FROM steps JOIN generator USING (step)"
            ).fetchone()
            if found is None:
                return None
            step, ledger, blob, lists = found
            steps = [json.loads(keys) for keys in json.loads(lists)]
            if len(steps) != step:
                raise ValueError(f"{len(steps)} steps are stored, the last has the number {step}")
            return step, steps, codec.unpack(blob), Ledger.from_json(json.loads(ledger))

    def note(self, topic: str, entry: Mapping[str, Any]) -> None:
        """Add a note.

        Raises:
            ValueError, TypeError: It holds what is no JSON.
            RunError: It cannot be written; nothing stored before is lost.
        """
        text = note_text(entry)
        with self._writing():
            self._connection.execute("INSERT INTO notes (topic, entry) VALUES (?, ?)", (topic, text))

    def notes(self, topic: str) -> Sequence[Mapping[str, Any]]:
        """All notes of a topic in the order in which they came; none in a database of schema 1.

        Raises:
            RunCorrupt: What is stored cannot be read.
        """
        with _reading(self.path):
            if self._connection.execute("PRAGMA user_version").fetchone() == (1,):
                return ()
            found = self._connection.execute("SELECT entry FROM notes WHERE topic = ? ORDER BY id", (topic,))
            return tuple(json.loads(text) for (text,) in found.fetchall())

    def outlooks(self) -> tuple[Outlook | None, ...]:
        """What was expected after each committed step.

        Raises:
            RunCorrupt: What is stored cannot be read.
        """
        with _reading(self.path):
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outlooks'").fetchone():
                return (None,) * len(self._steps)
            rows = self._connection.execute(
                "SELECT outlook FROM steps LEFT JOIN outlooks USING (step) ORDER BY step"
            ).fetchall()
            return tuple(None if text is None else Outlook.from_json(json.loads(text)) for (text,) in rows)

    def close(self) -> None:
        """Release the file and the right to write to it. Closing twice does nothing."""
        self._connection.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._lock is None:
            raise RunError(f"{self.path} was opened for reading; a search that writes opens the run with --resume")
        with _errors_of(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                _roll_back(self._connection)
                raise

    def _refresh(self) -> None:
        if self._lock is None:  # somebody else may have written
            with _reading(self.path):
                self._load()

    def _load(self) -> None:
        found = self._connection.execute(_SELECT, (self._last_id,))
        names = [name for name, *_ in found.description]
        for columns in found.fetchall():
            row = dict(zip(names, columns, strict=True))
            self._facts.add([_measurement(row)])
            self._last_id = row["id"]
        steps = "SELECT architectures FROM steps WHERE step > ? ORDER BY step"
        self._steps += [json.loads(keys) for (keys,) in self._connection.execute(steps, (len(self._steps),)).fetchall()]


def unused(path: Path) -> bool:
    """Whether a database holds no fact and no step: what a creation that was killed leaves, half or whole."""
    try:
        connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, timeout=_BUSY_S)
        with closing(connection):
            made = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not made:
                return True
            rows = "SELECT 1 FROM measurements UNION ALL SELECT 1 FROM steps"
            return made - {"outlooks"} in _TABLES.values() and connection.execute(rows).fetchone() is None
    except sqlite3.Error:
        return False  # damaged, or no database: somebody's, and not ours to judge


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise RunCorrupt(f"{path} is missing: {path.parent} holds no run that could be continued or read")
    return path


def _initialise(connection: sqlite3.Connection, path: Path) -> None:
    del path
    meta = {
        "schema": str(SCHEMA_VERSION),
        "run_id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hwnas": hwnas.__version__,
    }
    connection.execute("PRAGMA journal_mode = WAL")
    # one transaction: a process killed here leaves a database that `_check` refuses, never half of one
    connection.executescript(f"BEGIN; {_SCHEMA}")
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise RunCorrupt(_damaged(path, "it is empty, truncated or no database of hwnas"))
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in _TABLES:
        other = "a newer" if version > SCHEMA_VERSION else "an older"
        raise RunIncompatible(
            f"{path} has schema {version}, hwnas {hwnas.__version__} reads schema 1 to {SCHEMA_VERSION}: it was made "
            f"by {other} hwnas. Continue it with that version (run.toml names it), or start a new run"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise RunCorrupt(_damaged(path, verdict))
    missing = _TABLES[version] - {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if missing:
        raise RunCorrupt(_damaged(path, f"it lacks the tables {', '.join(sorted(missing))}"))


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Check a database and bring it to this schema, in one transaction. An older hwnas then refuses it by name."""
    _check(connection, path)
    if connection.execute("PRAGMA user_version").fetchone() == (1,):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {_NOTES}")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION),))
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise


def _complete(connection: sqlite3.Connection) -> None:
    """What databases of schema 2 lack that were made before there was any; an older hwnas does without it."""
    connection.executescript(_OUTLOOKS)
    known = connection.execute("SELECT 1 FROM pragma_table_info('measurements') WHERE name = 'own_half'").fetchone()
    if known is None:
        connection.execute("ALTER TABLE measurements ADD COLUMN own_half REAL")


def _journal(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise RunError(
            f"the file system of {path.parent} allows no write-ahead log; put the run on a local disk (--out)"
        )
    connection.execute("PRAGMA synchronous = NORMAL")


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged: {reason}. Keep a copy of {path.parent}; `sqlite3 {path.name} .recover` may save its rows, "
        "and archive.csv beside it holds the counted evaluations as text. Then start a new run"
    )


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
        connection.execute("ROLLBACK")


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Context in which sqlite3's errors become errors of the run."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise RunCorrupt(_damaged(path, str(error))) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RunLocked(
                f"{path} is locked by another program (a database browser?) for more than {_BUSY_S:g} s; close it and "
                f"continue with `hwnas search --resume {path.parent}`"
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise RunError(refusal(path, str(error), full=True)) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise RunError(refusal(path, str(error), full=False)) from error
        raise


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """`_errors_of`, and stored values that make no sense are damage too."""
    try:
        with _errors_of(path):
            yield
    except (ValueError, TypeError, KeyError) as error:
        raise RunCorrupt(_damaged(path, f"a value in it cannot be read ({error})")) from error


def _code(error: BaseException | None) -> int:
    """SQLite's primary result code, 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _columns(row: Measurement) -> tuple[object, ...]:
    low, high = row.interval or (None, None)
    return (
        row.architecture.key,
        row.metric,
        row.context.device,
        None if math.isnan(row.value) else row.value,
        str(row.status),
        low,
        high,
        # what a crashed program printed may be no valid text
        row.message.encode("utf-8", "backslashreplace").decode("utf-8"),
        _text(row.context),
        row.own_half,
    )


@lru_cache(maxsize=1024)
def _text(context: Context) -> str:
    return json.dumps(context.to_json(), sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=1024)
def _context(text: str) -> Context:
    return Context.from_json(json.loads(text))


def _measurement(row: Mapping[str, Any]) -> Measurement:
    value, low = row["value"], row["low"]
    return Measurement(
        Architecture.from_key(row["architecture"]),
        row["metric"],
        math.nan if value is None else value,
        _context(row["context"]),
        Status(row["status"]),
        None if low is None else (low, row["high"]),
        row["message"],
        row.get("own_half"),
    )
