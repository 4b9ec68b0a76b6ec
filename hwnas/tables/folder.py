"""A folder of benchmark tables: found, opened, read column by column and checked.

pyarrow is imported where a file is read, so that commands which need no table do not pay for it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import DataError, InvalidTable, TablesNotFound
from hwnas.tables.schema import (
    ACCURACY,
    CELL_KINDS,
    META_SOURCE,
    ROBUSTNESS,
    ROWS,
    Floats,
    Kind,
    check_cells,
    check_columns,
    check_index,
    clean,
)

ENVIRONMENT = "HWNAS_TABLES"
_FILES = ", ".join(kind.file for kind in CELL_KINDS)


def default_folder() -> Path:
    """The user's own folder of tables, whether it exists or not."""
    import platformdirs

    return Path(platformdirs.user_data_path("hwnas", appauthor=False)) / "tables"


def target_folder(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Where imported tables go: the folder named, else `HWNAS_TABLES`, else the user's own. May not exist yet."""
    named = explicit or os.environ.get(ENVIRONMENT)
    return Path(named).expanduser() if named else default_folder()


def remedy(folder: Path, kind: Kind | None = None) -> str:
    """What to do about a folder that lacks tables or, of a `kind`, about its table that is damaged."""
    where = "" if folder == target_folder() else f" --tables {shlex.quote(str(folder))}"
    if kind is None:
        return f"'hwnas tables fetch hw-nas-bench{where}' or 'hwnas tables add PATH{where}' fill it"
    add = f"'hwnas tables add PATH --replace{where}'"
    if kind in (ACCURACY, ROBUSTNESS):  # no address is known that one could be fetched from
        return f"Replace it with {add}"
    return f"Replace it with 'hwnas tables fetch hw-nas-bench --replace{where}' or {add}"


def make_folder(folder: Path) -> None:
    """Make a folder of tables where there is none.

    Raises:
        DataError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder of tables {str(folder)!r} could not be made ({error.strerror or error}); nothing was stored. "
            f"Choose another with --tables or {ENVIRONMENT}"
        ) from error


def find_folder(explicit: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of tables to use: the one named, else `HWNAS_TABLES`, else the user's own if it holds any.

    Returns:
        The folder, or None where nobody named one and the user's own is missing or empty.

    Raises:
        TablesNotFound: A folder was named and does not exist or holds none of the tables.
    """
    folder = target_folder(explicit)
    named = "--tables" if explicit else ENVIRONMENT if os.environ.get(ENVIRONMENT) else ""
    if not named:
        return folder if _present(folder) else None
    if not folder.is_dir():
        raise TablesNotFound(missing(folder, named))
    if not _present(folder):
        raise TablesNotFound(f"the folder {str(folder)!r} ({named}) holds none of {_FILES}; {remedy(folder)}")
    return folder


def missing(folder: Path, named: str) -> str:
    """What to say of a folder of tables that somebody named and that does not exist."""
    return (
        f"the folder of tables {str(folder)!r} ({named}) does not exist. Name one that does, or none to search on what "
        f"hwnas ships; {remedy(folder)}"
    )


class TableFile:
    """One Parquet file of a folder; its columns are read when they are first asked for.

    Args:
        path: The file.
        kind: What it must be.
        advice: What to do where it is damaged; put behind every message.

    Raises:
        InvalidTable: If it cannot be read, or a needed column is missing, or it has not as many rows as its kind.
    """

    def __init__(self, path: Path, kind: Kind, advice: str = "") -> None:
        self.path = path
        self.kind = kind
        self._advice = advice
        with self._advised():
            self._file = _open(path)
            self.columns = frozenset(self._file.schema_arrow.names)
            self.rows: int = self._file.metadata.num_rows
            check_columns(kind, self.columns, str(path))
            if kind in CELL_KINDS and self.rows != ROWS:
                raise InvalidTable(
                    f"{path}: has {self.rows:,} rows, wants the {ROWS:,} cells of NAS-Bench-201, each once"
                )

    @cached_property
    def origin(self) -> str:
        """File name and the beginning of its SHA-256: which data a number was read from."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{self.path.name} sha256:{digest[:12]}"

    @property
    def source(self) -> str | None:
        """Where the importer had the table from, or None if its file does not say."""
        said = (self._file.schema_arrow.metadata or {}).get(META_SOURCE)
        return None if said is None else str(said.decode(errors="replace"))

    @cached_property
    def cells(self) -> tuple[str, ...] | None:
        """Official strings in the file's order, checked; None if it has no column `arch`."""
        if "arch" not in self.columns:
            return None
        with self._advised():
            strings = self._read("arch").to_pylist()
            check_cells(strings, str(self.path))
        return tuple(strings)

    @cached_property
    def index(self) -> NDArray[np.int64] | None:
        """Official indices in the file's order, checked; None if it has no column `index`."""
        if "index" not in self.columns:
            return None
        with self._advised():
            index = np.asarray(self._floats("index"))
            check_index(np.where(np.isfinite(index), index, -1), str(self.path))
        return index.astype(np.int64)

    def values(self, column: str) -> Floats:
        """One column in the file's order, checked; nan where not measured.

        Raises:
            InvalidTable: If the column is missing, holds no numbers, or numbers that cannot be true.
        """
        with self._advised():
            if column not in self.columns:
                raise InvalidTable(f"{self.path}: the column {column!r} is missing")
            return clean(self._floats(column), column, str(self.path))

    def texts(self, column: str) -> list[str]:
        """One column of texts in the file's order."""
        with self._advised():
            return [str(text) for text in self._read(column).to_pylist()]

    @contextmanager
    def _advised(self) -> Iterator[None]:
        try:
            yield
        except InvalidTable as error:
            raise InvalidTable(f"{error}. {self._advice}" if self._advice else str(error)) from error.__cause__

    def _floats(self, column: str) -> Floats:
        array = self._read(column)
        try:
            return np.asarray(array.cast("float64").to_numpy(), dtype=np.float64)
        except (ValueError, TypeError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
            raise InvalidTable(f"{self.path}: column {column!r} wants numbers, got {array.type}") from error

    def _read(self, column: str) -> Any:
        try:
            return self._file.read(columns=[column], use_threads=False).column(0)
        except (OSError, ValueError) as error:
            raise InvalidTable(
                f"{self.path}: damaged or truncated at column {column!r}: {str(error).rstrip('.')}"
            ) from error


class Tables:
    """The tables of one folder, joined on the official string of each cell.

    Isomorphic cells stay different rows: their measured latencies differ. A search asks through `lookup`, which
    its evaluator counts; `column` is for benchmarks and for fitting surrogates.

    Args:
        folder: Holds at least one of the files of `CELL_KINDS`.
        official: Gives the official strings in official order, for folders in which only `index` tells cells apart.

    Raises:
        TablesNotFound: If it holds none.
        InvalidTable: If one of them is truncated, lacks a column or has a wrong number of rows.
    """

    def __init__(self, folder: Path, official: Callable[[], Sequence[str]] | None = None) -> None:
        self.folder = folder
        self._official = official
        if not _present(folder):
            raise TablesNotFound(f"the folder {str(folder)!r} holds none of {_FILES}; {remedy(folder)}")
        self._files = {
            kind: TableFile(folder / kind.file, kind, remedy(folder, kind))
            for kind in CELL_KINDS
            if (folder / kind.file).is_file()
        }
        self._columns: dict[tuple[Kind, str], Floats] = {}
        self._orders: dict[Kind, NDArray[np.int64]] = {}

    @classmethod
    def find(
        cls, explicit: str | os.PathLike[str] | None = None, official: Callable[[], Sequence[str]] | None = None
    ) -> Tables | None:
        """The tables of `find_folder(explicit)`, or None where there are none and nobody named a folder."""
        folder = find_folder(explicit)
        return None if folder is None else cls(folder, official)

    def file(self, kind: Kind) -> TableFile | None:
        """The file of a kind, or None if the folder has none."""
        return self._files.get(kind)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The 15,625 official strings, in official order where a file tells it."""
        reference = self._reference
        if reference is None:
            assert self._official is not None
            return tuple(self._official())
        strings, index = reference.cells, reference.index
        assert strings is not None
        return strings if index is None else tuple(strings[row] for row in np.argsort(index))

    def lookup(self, kind: Kind, column: str, names: Sequence[str]) -> Floats:
        """Values of some cells, by official string.

        Args:
            kind: Which table.
            column: Which column of it.
            names: `n` official strings.

        Returns:
            `n` values in the column's unit; nan where not measured.

        Raises:
            KeyError: If a name is no official string.
        """
        positions = [self._positions[name] for name in names]
        return self._column(kind, column)[positions]

    def column(self, kind: Kind, column: str) -> Floats:
        """A whole column, `15625`, in the order of `names`: for benchmarks and surrogates, never used by a search."""
        return self._column(kind, column).copy()

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    @cached_property
    def _reference(self) -> TableFile | None:
        """The file whose strings name the cells; None where none has any and the official order serves."""
        for file in self._files.values():
            if "arch" in file.columns:
                return file
        if self._official is not None:
            return None
        have = ", ".join(file.path.name for file in self._files.values())
        raise InvalidTable(
            f"{self.folder}: no table has the column 'arch' (official strings); there is only {have}. "
            f"Add a table of accuracies or import HW-NAS-Bench's own file"
        )

    def _column(self, kind: Kind, column: str) -> Floats:
        if (kind, column) not in self._columns:
            file = self._files[kind]
            if kind not in self._orders:
                self._orders[kind] = self._order(file)
            self._columns[kind, column] = file.values(column)[self._orders[kind]]
        return self._columns[kind, column]

    def _order(self, file: TableFile) -> NDArray[np.int64]:
        """`15625`: the row of `file` for each of `names`."""
        reference = self._reference
        if reference is None:  # then every file has an index, as none has strings
            assert file.index is not None
            return np.argsort(file.index)
        by_index = None if file.index is None or reference.index is None else np.argsort(file.index)
        if file.cells is None:
            if by_index is None:
                raise InvalidTable(
                    f"{file.path}: has no column 'arch', and {reference.path.name} no 'index' to join on. "
                    f"{remedy(self.folder, file.kind)}"
                )
            return by_index
        row_of = {name: row for row, name in enumerate(file.cells)}
        by_name = np.array([row_of[name] for name in self.names])
        if by_index is not None and not np.array_equal(by_index, by_name):
            raise InvalidTable(
                f"{file.path}: its columns 'index' and 'arch' contradict those of {reference.path.name}. "
                f"{remedy(self.folder, file.kind)}"
            )
        return by_name


def _present(folder: Path) -> bool:
    return any((folder / kind.file).is_file() for kind in CELL_KINDS)


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InvalidTable(f"{path}: truncated, or not a Parquet file: {str(error).rstrip('.')}") from error
