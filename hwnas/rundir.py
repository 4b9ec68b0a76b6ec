"""A run is a directory: everything a search was asked, knew and found, readable without hwnas.

    run.toml       what was asked, as given and as resolved; versions; where numbers come from
    hwnas.sqlite   all measurements and steps (hwnas.stores.sqlite)
    archive.csv    the counted evaluations in order: order,key,arch,<metrics...>,status,source
    front.csv      the front in the same form, with the recommended architecture marked; fronts of several devices in
                   one list, with the devices (a+b) that each row is on the front of, and recommended for
    front.json     the front with contexts, intervals, budgets, reference point, hypervolume and ledger
    report.html    written by hwnas.report
    models/        written by hwnas.export

Only the database decides: the other files are written from it, and again whenever a run is continued.

run.toml is written last of what makes a run, in one step: a folder with it is a run that can be continued, one without
it never became one, and nothing was stored in it. So a process may be killed at any moment.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w

import hwnas
from hwnas import optional
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Measurement, Status
from hwnas.core.state import Evaluation, SearchState
from hwnas.core.wording import origins
from hwnas.errors import RunCorrupt, RunError, RunExists, RunIncompatible
from hwnas.stores.files import replace_text, writing
from hwnas.stores.sqlite import SIDE_FILES, SqliteStore, unused

RUN_TOML, DATABASE, ARCHIVE = "run.toml", "hwnas.sqlite", "archive.csv"
FRONT_CSV, FRONT_JSON, REPORT, MODELS = "front.csv", "front.json", "report.html", "models"

# what can change the course of a search, or the files it writes
_PACKAGES = ("numpy", "torch", "torch-geometric", "pymoo", "moocore", "onnx", "onnxruntime", "pyarrow")
# where tables lie (which tables they are is in every measurement's context), and when a search ends
_MAY_DIFFER = frozenset({"tables", "stop_when", "stop_threshold"})
_STOPPING = "stopping"  # topic of the notes that say when a continued run may end

Notation = Callable[[Architecture], str]


class RunDirectory:
    """One run directory. Made by `create`, `resume` or `read`; a context manager that closes itself.

    Attributes:
        path: The directory.
        store: Its database: what the search loop appends to.
        info: run.toml as parsed: "run", "config", "resolved", "sources", "versions".
    """

    def __init__(self, path: Path, store: SqliteStore, info: Mapping[str, Any], notation: Notation) -> None:
        self.path = path
        self.store = store
        self.info = info
        self._notation = notation
        self._columns: list[str] | None = None  # of archive.csv as this process wrote it
        self._written = 0

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        *,
        config: Mapping[str, Any],
        resolved: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
        notation: Notation = str,
    ) -> RunDirectory:
        """A new run directory, open for writing.

        Args:
            path: The directory, which is made and must not exist, be empty, or hold only what a creation left that was
                killed. None for `runs/<date>-<devices>`, with a number behind it where that is taken.
            config: What the user asked for (`SearchConfig.to_toml()`).
            resolved: What became of it: plain values; None is left out.
            sources: Where each metric's numbers come from, for people.
            notation: The space's `format`: how files write an architecture.

        Raises:
            RunExists: Something is at `path`; it is never overwritten.
            RunLocked: Another process is making a run there.
            RunError: It cannot be written.
        """
        where = _make_default(config) if path is None else _make(Path(path))
        store: SqliteStore | None = None
        try:
            store = SqliteStore.create(where / DATABASE)
            info = _information(store, config, resolved or {}, sources or {})
            replace_text(where / RUN_TOML, tomli_w.dumps(info))
        except BaseException as error:
            # what never became a run must not block the next try
            if store is not None:
                store.close()
                _discard(where)
            with suppress(OSError):
                where.rmdir()
            if type(error) is RunError and error.__cause__ is not None:  # said as if there were a run to continue
                raise _unmade(where, error.__cause__) from error
            raise
        return cls(where, store, info, notation)

    @classmethod
    def resume(
        cls, path: str | Path, *, config: Mapping[str, Any] | None = None, notation: Notation = str
    ) -> RunDirectory:
        """An existing run directory, open for writing. Call `write_archive` once its state is restored.

        Args:
            path: The directory.
            config: What the user asks for now; must say the same as run.toml. None where only the run was named.
            notation: The space's `format`.

        Raises:
            RunIncompatible: Another version of hwnas made it, or another configuration.
            RunCorrupt: There is no run in it, or it is damaged.
            RunLocked: Another process writes to it.
        """
        where = Path(path)
        info = _read_information(where)
        _check_version(where, info)
        if config is not None:
            _check_config(where, info["config"], config)
        return cls(where, SqliteStore.open(where / DATABASE), info, notation)

    @classmethod
    def read(cls, path: str | Path, *, notation: Notation = str) -> RunDirectory:
        """An existing run directory for reports and exports; a search may go on writing to it.

        Raises:
            RunCorrupt, RunIncompatible: As `resume`; the version of hwnas may differ as long as the files' form is
                known.
        """
        where = Path(path)
        info = _read_information(where)
        return cls(where, SqliteStore.read(where / DATABASE), info, notation)

    def set_notation(self, notation: Notation) -> None:
        """Say how files write an architecture, where the space was not known when the directory was opened."""
        self._notation = notation

    @property
    def config(self) -> Mapping[str, Any]:
        """What the user asked for, as `SearchConfig.from_toml` reads it; of when to stop, what was asked for last."""
        return {**self.info["config"], **{name: told for name, told in self._stopping.items() if name != "command"}}

    @property
    def command(self) -> str | None:
        """The command line that makes the run again; None where run.toml does not say."""
        told = self._stopping.get("command") or self.info.get("resolved", {}).get("command")
        return None if told is None else str(told)

    @property
    def _stopping(self) -> Mapping[str, Any]:
        return next(reversed(self.store.notes(_STOPPING)), {})

    def set_stopping(self, config: Mapping[str, Any], command: str) -> None:
        """From now on the run may end when `config` says, whatever it began with: also after another interruption.

        Args:
            config: What is asked for now.
            command: The command line that makes the run again.

        Raises:
            RunError: It cannot be written.
        """
        asked = {name: config[name] for name in ("stop_when", "stop_threshold")}
        if any(self.config.get(name) != told for name, told in asked.items()):
            self.store.note(_STOPPING, {**asked, "command": command})

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Packages whose version is no longer the one the run began with, as (then, now): with them, a resumed run
        need not equal an uninterrupted one bit for bit."""
        then, now = dict(self.info.get("versions", {})), _versions()
        return {
            name: (then.get(name, "none"), now.get(name, "none"))
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        }

    def record(self, state: SearchState) -> None:
        """Append to archive.csv what the last steps told; call it after each committed step.

        Raises:
            RunError: It cannot be written.
        """
        columns = _columns(state)
        if columns != self._columns or self._written > len(state.archive):
            self.write_archive(state)
            return
        text = _csv(_archive_row(i, state.archive[i], columns, self._notation) for i in self._unwritten(state))
        path = self.path / ARCHIVE
        with writing(path), open(path, "a", encoding="utf-8", newline="") as file:
            file.write(text)
        self._written = len(state.archive)

    def _unwritten(self, state: SearchState) -> range:
        return range(self._written, len(state.archive))

    def write_archive(self, state: SearchState) -> None:
        """Write archive.csv anew, in one step; call it when a run is continued and when it ends.

        Args:
            state: What the database holds.

        Raises:
            RunError: It cannot be written.
        """
        columns = _columns(state)
        header = ["order", "key", "arch", *columns, "status", "source"]
        rows = (_archive_row(i, row, columns, self._notation) for i, row in enumerate(state.archive))
        replace_text(self.path / ARCHIVE, _csv([header, *rows]))
        self._columns, self._written = columns, len(state.archive)

    def write_front(
        self,
        state: SearchState,
        told: Mapping[str, Any],
        *,
        marks: Mapping[str, Mapping[Architecture, str]],
        rows: Sequence[int] | None = None,
        reported: Sequence[Measurement] = (),
    ) -> None:
        """Write front.csv and front.json.

        Args:
            state: The state at the end.
            told: The whole result as plain values: what front.json holds.
            marks: Columns that say what is particular about some architectures, e.g. that one is recommended.
            rows: Archive indices to list; the front when not given.
            reported: Facts of front members that the search did not see (a test error); shown behind the others.

        Raises:
            RunError: They cannot be written.
        """
        listed = [int(i) for i in (state.front_indices if rows is None else rows)]
        shown = [_with(state.archive[i], reported) for i in listed]
        columns = _names(shown, _columns(state))
        table = [["order", "key", "arch", *columns, *marks, "status", "source"]]
        for i, evaluation in zip(listed, shown, strict=True):
            *facts, status, source = _archive_row(i, evaluation, columns, self._notation)
            marked = [by_architecture.get(evaluation.architecture, "") for by_architecture in marks.values()]
            table.append([*facts, *marked, status, source])
        replace_text(self.path / FRONT_CSV, _csv(table))
        content = {**told, "run_id": self.store.meta["run_id"]}
        replace_text(self.path / FRONT_JSON, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Release the directory. Closing twice does nothing."""
        self.store.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- making and checking -----------------------------------------------------------------------------------------------


# the lock with its note, the database, and halves of what is written in one step (hwnas.atomic)
_UNBEGUN = re.compile(
    rf"\.lock(\.json)?|{re.escape(DATABASE)}({'|'.join(SIDE_FILES)})|\.(\.lock\.json|{re.escape(RUN_TOML)})\.\d+\.part"
)


def _make(path: Path) -> Path:
    try:
        if path.is_symlink() or path.exists():
            if path.is_dir() and (path / RUN_TOML).exists():
                raise RunExists(
                    f"{path} holds a run, which is never overwritten. Continue it with `hwnas search --resume {path}`, "
                    "or choose another folder (--out)"
                )
            if not _unbegun(path):
                raise RunExists(f"{path} exists and is never overwritten; choose another folder (--out)")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unmade(path, error) from error
    return path


def _make_default(config: Mapping[str, Any]) -> Path:
    devices = "-".join(config.get("devices", ())) or str(config.get("space", "run"))
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", devices)
    for number in count(1):
        path = Path("runs") / f"{date.today().isoformat()}-{label}{'' if number == 1 else f'-{number}'}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.parent.is_dir():
                continue
            raise RunExists(f"{path.parent} exists and is no folder; choose where the run goes with --out") from None
        except OSError as error:
            raise _unmade(path, error) from error
        return path
    raise AssertionError("unreachable")


def _unmade(path: Path, cause: BaseException) -> RunError:
    reason = getattr(cause, "strerror", None) or str(cause)
    return RunError(
        f"could not write a run to {path}: {reason}. Nothing was stored; choose another folder with --out, on a disk "
        "that can be written and has space"
    )


def _unbegun(path: Path) -> bool:
    """Whether a folder that is no run has nothing in it but what a creation left that was killed."""
    try:
        if not all(_UNBEGUN.fullmatch(file.name) for file in path.iterdir()):
            return False
    except OSError:  # no folder, or one that may not be looked into
        return False
    return not (path / DATABASE).exists() or unused(path / DATABASE)


def _discard(path: Path) -> None:
    for file in (*(DATABASE + name for name in SIDE_FILES), RUN_TOML, ".lock"):
        with suppress(OSError):
            (path / file).unlink()


def _information(
    store: SqliteStore, config: Mapping[str, Any], resolved: Mapping[str, Any], sources: Mapping[str, str]
) -> dict[str, Any]:
    run = {
        "id": store.meta["run_id"],
        "created": store.meta["created"],
        "hwnas": hwnas.__version__,
        "seed": config.get("seed", 0),
        "system": f"{platform.system()} {platform.machine()}",
    }
    tables = {"run": run, "config": config, "resolved": resolved, "sources": sources, "versions": _versions()}
    return {name: _without_none(table) for name, table in tables.items()}


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _versions() -> dict[str, str]:
    found = {"hwnas": hwnas.__version__, "python": platform.python_version()}
    found |= {name: version for name in _PACKAGES if (version := optional.version(name)) is not None}
    return found


def _read_information(path: Path) -> dict[str, Any]:
    try:
        with open(path / RUN_TOML, "rb") as file:
            info = tomllib.load(file)
    except OSError as error:
        raise RunCorrupt(f"{path} holds no run: {_missing(path, error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunCorrupt(
            f"{path / RUN_TOML} is damaged: {error}. Restore it from a copy, or start a new run"
        ) from error
    for table, keys in (("run", ("hwnas", "id")), ("config", ())):
        content = info.get(table)
        missing = [key for key in keys if key not in content] if isinstance(content, dict) else [""]
        if missing:
            lacks = f"[{table}] {missing[0]}".rstrip()
            raise RunCorrupt(f"{path / RUN_TOML} is damaged: it lacks {lacks}. Restore it from a copy")
    return info


def _missing(path: Path, error: OSError) -> str:
    """Why a folder without a readable run.toml is no run, and what to do."""
    said = f"{RUN_TOML} cannot be read ({error.strerror})"
    if isinstance(error, FileNotFoundError) and _unbegun(path):
        return (
            f"{said}: nothing was ever stored in it, e.g. as the search was stopped before it began. Start it again "
            f"with the command it was started with; `--out {path}` takes this folder"
        )
    if (path / DATABASE).exists():
        return f"{said}, though {DATABASE} is there. Restore {RUN_TOML} from a copy, or start a new run"
    return f"{said}. Name a folder that `hwnas search` wrote"


def _check_version(path: Path, info: Mapping[str, Any]) -> None:
    made, ours = str(info["run"]["hwnas"]), hwnas.__version__
    if made.split(".")[:2] != ours.split(".")[:2]:
        raise RunIncompatible(
            f"{path} was made by hwnas {made}, this is hwnas {ours}, which may search differently. Continue it with "
            f"hwnas {made}, or start a new run; reports and exports work with both"
        )


def _check_config(path: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differences = [
        f"{key} ({made.get(key, 'unset')!r} there, {asked.get(key, 'unset')!r} asked for)"
        for key in sorted(made.keys() | asked.keys())
        if key not in _MAY_DIFFER and made.get(key) != asked.get(key)
    ]
    if differences:
        raise RunIncompatible(
            f"{path} was begun with other settings: {'; '.join(differences)}. Resume it without "
            "them, or start a new run"
        )


# -- rows --------------------------------------------------------------------------------------------------------------


def _columns(state: SearchState) -> list[str]:
    """Objectives, then budgets, then whatever else was measured."""
    wanted = [*(o.name for o in state.objectives), *(c.name for c in state.constraints)]
    return _names(state.archive, wanted)


def _names(evaluations: Iterable[Evaluation], first: Iterable[str]) -> list[str]:
    measured = (row.column for evaluation in evaluations for row in evaluation.measurements)
    return list(dict.fromkeys([*first, *measured]))


def _with(evaluation: Evaluation, reported: Iterable[Measurement]) -> Evaluation:
    more = tuple(row for row in reported if row.architecture == evaluation.architecture)
    return Evaluation(evaluation.architecture, evaluation.measurements + more)


def _archive_row(index: int, evaluation: Evaluation, columns: Sequence[str], notation: Notation) -> list[str]:
    values = {row.column: "" if math.isnan(row.value) else repr(float(row.value)) for row in evaluation.measurements}
    return [
        str(index + 1),
        evaluation.architecture.key,
        notation(evaluation.architecture),
        *(values.get(column, "") for column in columns),
        str(_status(evaluation.measurements)),
        origins(evaluation.measurements),
    ]


def _status(rows: Sequence[Measurement]) -> Status:
    """The first failure, else the first reservation, else ok; the database has each metric's own."""
    doubtful = [row.status for row in rows if row.status is not Status.OK]
    return next((status for status in doubtful if not status.has_value), doubtful[0] if doubtful else Status.OK)


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
