"""What a folder of tables holds, and adding to it: all or nothing, and never over something by accident."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import DataError, InvalidTable, TablesNotFound, UsageError
from hwnas.tables import accuracy, hwnasbench
from hwnas.tables.folder import ENVIRONMENT, TableFile, make_folder, missing, target_folder
from hwnas.tables.schema import (
    ACCURACY,
    FBNET,
    HARDWARE,
    KINDS,
    META_SOURCE,
    ROBUSTNESS,
    ROWS,
    Kind,
    classify,
    columns_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

_PICKLES = (".pickle", ".pkl")
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One file of a folder of tables.

    Attributes:
        path: The file.
        kind: What it is, or None for a file that hwnas does not read.
        rows: Number of rows; 0 where it cannot be read.
        columns: Columns that hwnas reads from it.
        source: Where it came from, if its importer wrote that down.
        problem: Why it cannot be used; "" if it can.
    """

    path: Path
    kind: Kind | None
    rows: int
    columns: tuple[str, ...]
    source: str | None
    problem: str

    @property
    def title(self) -> str:
        return self.kind.title if self.kind else "not read by hwnas"


def list_tables(folder: str | os.PathLike[str] | None = None) -> list[TableInfo]:
    """Every Parquet file of a folder, checked in full; an unusable one is listed with the reason.

    Args:
        folder: The folder; None for `HWNAS_TABLES`, else the user's own.

    Returns:
        hwnas's tables first, then other Parquet files by name; empty if the user's own folder does not exist yet.

    Raises:
        TablesNotFound: A folder was named and does not exist.
    """
    where = target_folder(folder)
    if not where.is_dir():
        if not (folder or os.environ.get(ENVIRONMENT)):
            return []
        raise TablesNotFound(missing(where, "--tables" if folder else ENVIRONMENT))
    own = [inspect(where / kind.file, kind) for kind in KINDS if (where / kind.file).is_file()]
    others = sorted(set(where.glob("*.parquet")) - {info.path for info in own})
    return own + [TableInfo(path, None, 0, (), None, "") for path in others]


def inspect(path: Path, kind: Kind) -> TableInfo:
    """One table, every needed column read and checked. Raises nothing for a bad table: `problem` says what it is."""
    try:
        file = TableFile(path, kind)
        columns = tuple(name for name in columns_of(kind) if name in file.columns)
        source = file.source
    except InvalidTable as error:
        return TableInfo(path, kind, 0, (), None, str(error))
    try:
        _check(file, columns)
    except InvalidTable as error:
        return TableInfo(path, kind, file.rows, columns, source, str(error))
    return TableInfo(path, kind, file.rows, columns, source, "")


def add(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    replace: bool = False,
    columns: Mapping[str, str] | None = None,
) -> list[TableInfo]:
    """Import a file into a folder of tables.

    HW-NAS-Bench's pickle (`.pickle`, `.pkl`; read without running any of it), a table in CSV or Parquet (accuracies
    with official strings, or one of hwnas's own tables), or NATS-Bench's folder or `.pbz2` file.

    Args:
        source: What to import.
        folder: Where to; None for `HWNAS_TABLES`, else the user's own. Made if it does not exist.
        replace: Whether a table that is already there may be replaced.
        columns: For CSV and Parquet: hwnas's column name -> the file's.

    Returns:
        The tables written, as they now are.

    Raises:
        UsageError: No such file, a form that is not known, or a table is there and `replace` is false.
        InvalidTable: The file is damaged, unsafe, incomplete or of another form.
        DataError: The folder cannot be written (e.g. the disk is full); what was there is unchanged.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError(f"no file {str(path)!r} to add")
    where = target_folder(folder)
    told = f"{path.name}, imported {datetime.now(UTC).date().isoformat()}"
    try:
        tables = _read(path, columns)
        for kind in tables:
            refuse_existing(where, kind, replace)
        return [write(table, kind, where, source=told) for kind, table in tables.items()]
    except InvalidTable as error:
        raise InvalidTable(
            f"{error}. It was not imported; correct the file or get it again from where it came, then repeat"
        ) from error


def refuse_existing(folder: Path, kind: Kind, replace: bool) -> None:
    """Raise UsageError if a table is there and may not be replaced."""
    if not replace and (folder / kind.file).exists():
        raise UsageError(f"{folder / kind.file} is already there; say --replace to replace it")


def write(table: pa.Table, kind: Kind, folder: Path, *, source: str) -> TableInfo:
    """Write one table: checked as a temporary file first, then put in place in one step.

    Args:
        table: Its content.
        kind: What it is; decides the file's name.
        folder: Where to; made if it does not exist.
        source: Where it came from, kept in the file.

    Raises:
        InvalidTable: If the table is not a valid one of its kind.
        DataError: If it cannot be written. In both cases what was there is unchanged.
    """
    import pyarrow.parquet as pq

    target = folder / kind.file
    temporary = folder / f".{kind.file}.{os.getpid()}.tmp"
    table = table.replace_schema_metadata({META_SOURCE: source.encode()})
    make_folder(folder)
    try:
        pq.write_table(table, temporary, compression="zstd")
        info = inspect(temporary, kind)
        if info.problem:
            raise InvalidTable(info.problem.replace(str(temporary), source))
        os.replace(temporary, target)
    except OSError as error:
        kept = "what was there is unchanged" if target.exists() else "nothing was stored"
        raise DataError(
            f"{target} could not be written ({error}); {kept}. Make room, or choose another folder with --tables"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or the folder cannot be written
            temporary.unlink()
    return inspect(target, kind)


def _read(path: Path, columns: Mapping[str, str] | None) -> dict[Kind, pa.Table]:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        return hwnasbench.read(path)
    if path.is_dir() or suffix == ".pbz2":
        return {ACCURACY: accuracy.read_nats(path)}
    if suffix not in _TABLES:
        raise UsageError(
            f"{path}: wants a file ending in {', '.join((*_PICKLES, *_TABLES))}, or NATS-Bench's folder or .pbz2 file"
        )
    table = accuracy.read_table(path, columns)
    kind = classify(table.column_names)
    if kind is None:
        raise InvalidTable(
            f"{path}: no table that hwnas knows. It wants 'arch' or 'index', and accuracies in percent "
            f"({', '.join(columns_of(ACCURACY))}; under attack {', '.join(columns_of(ROBUSTNESS))}) "
            f"or costs like {columns_of(HARDWARE)[0]}; "
            f"it has {', '.join(table.column_names[:12])}"
        )
    return {kind: table}


def _check(file: TableFile, columns: tuple[str, ...]) -> None:
    if file.kind is FBNET:
        operators = file.texts("op")
        if len(set(operators)) != len(operators) or not operators:
            raise InvalidTable(f"{file.path}: wants each operator once in 'op'")
    elif file.cells is None and file.index is None:
        raise InvalidTable(f"{file.path}: does not say which of the {ROWS:,} cells a row is")
    for column in columns:
        file.values(column)
    _ = file.index
