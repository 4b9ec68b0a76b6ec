"""Importers of accuracies: CSV and Parquet files with official strings, and NATS-Bench's own files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hwnas import optional
from hwnas.errors import InvalidTable, UsageError
from hwnas.tables.schema import ACCURACY, ROBUSTNESS, ROWS, check_cells, check_columns, columns_of

if TYPE_CHECKING:
    import pyarrow as pa

# column -> (data set, entry) of NATS-Bench; c10 trains on half of the training set for validation, on all for test
_NATS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "c10_val_200": ("cifar10-valid", "valid-accuracy"),
        "c10_test_200": ("cifar10", "test-accuracy"),
        "c100_val_200": ("cifar100", "valid-accuracy"),
        "c100_test_200": ("cifar100", "test-accuracy"),
        "in16_val_200": ("ImageNet16-120", "valid-accuracy"),
        "in16_test_200": ("ImageNet16-120", "test-accuracy"),
    }
)


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> pa.Table:
    """A CSV or Parquet file as it is, with some columns renamed.

    Args:
        path: The file; `.csv` is read as CSV with a header, all else as Parquet.
        columns: hwnas's column name -> the file's, e.g. {"arch": "cell", "c10_val_200": "valid"}.

    Raises:
        InvalidTable: If the file cannot be read or lacks a named column.
        UsageError: If `columns` names a column that hwnas does not know.
    """
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        table = pyarrow.csv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InvalidTable(f"{path}: truncated, or not a table: {str(error).rstrip('.')}") from error
    known = ("arch", "index", *columns_of(ACCURACY), *columns_of(ROBUSTNESS))
    for ours, theirs in (columns or {}).items():
        if ours not in known:
            raise UsageError(f"no column {ours!r} in a table of accuracies. Known: {', '.join(known)}")
        if theirs not in table.column_names:
            have = ", ".join(table.column_names[:20])
            raise InvalidTable(f"{path}: the column {theirs!r} is missing; it has {have}")
        if ours != theirs and ours in table.column_names:
            table = table.drop_columns([ours])
        table = table.rename_columns([ours if name == theirs else name for name in table.column_names])
    return table


def read_nats(path: str | os.PathLike[str]) -> pa.Table:
    """Accuracies after 200 epochs, mean over seeds, from NATS-Bench's topology files.

    The files are pickles, and the `nats-bench` package that reads them runs what they say: give only a path
    whose origin you trust.

    Args:
        path: The folder `NATS-tss-v1_0-3ffb9-simple` or the file `NATS-tss-v1_0-3ffb9-full.pickle.pbz2`.

    Raises:
        MissingExtra: If the package `nats-bench` is not installed.
        InvalidTable: If it reads something other than the 15,625 cells.
    """
    nats = optional.load("nats_bench", extra="nats-bench", purpose="importing NATS-Bench's own files")
    try:
        api = nats.create(os.fspath(path), "tss", fast_mode=Path(path).is_dir(), verbose=False)
    except Exception as error:  # the package raises whatever its pickles and asserts raise
        raise InvalidTable(f"{path}: nats-bench cannot read it: {type(error).__name__}: {error}") from error
    return nats_table(api, str(path))


def nats_table(api: Any, where: str) -> pa.Table:
    """The table of a NATS-Bench API object; an accuracy that it does not have is nan.

    Args:
        api: Has `len`, `arch(i)` (official string) and `get_more_info(i, dataset, hp=, is_random=)`.
        where: The path, for messages.

    Raises:
        InvalidTable: If it does not know each of the 15,625 cells once, or none of the accuracies.
    """
    import pyarrow as pa

    if len(api) != ROWS:
        raise InvalidTable(f"{where}: nats-bench knows {len(api):,} architectures there, wants {ROWS:,}")
    strings = [str(api.arch(i)) for i in range(ROWS)]
    check_cells(strings, where)
    values: dict[str, list[float]] = {column: [] for column in _NATS}
    for i in range(ROWS):
        told: dict[str, Mapping[str, Any]] = {}
        for column, (dataset, entry) in _NATS.items():
            if dataset not in told:
                told[dataset] = api.get_more_info(i, dataset, hp="200", is_random=False)
            number = told[dataset].get(entry)
            values[column].append(float("nan") if number is None else float(number))
    known = {column: numbers for column, numbers in values.items() if any(n == n for n in numbers)}
    check_columns(ACCURACY, {"arch", *known}, where)
    return pa.table({"index": pa.array(range(ROWS), pa.int32()), "arch": strings, **known})
