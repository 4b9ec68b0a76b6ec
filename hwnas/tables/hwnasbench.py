"""Importer of HW-NAS-Bench's official file, HW-NAS-Bench-v1_0.pickle (Li et al., ICLR 2021; MIT licence).

Its form: `["nasbench201"][data set][metric][i]` with i the official index, and `["config"][i]["arch_str"]`;
`["fbnet"][metric][operator key]`. -1 says that something was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import InvalidTable
from hwnas.tables.safe_pickle import array, load, mapping
from hwnas.tables.schema import (
    DEVICES,
    FBNET,
    HARDWARE,
    PREFIXES,
    ROWS,
    Floats,
    Kind,
    check_cells,
    clean,
    hardware_column,
    lut_columns,
)

if TYPE_CHECKING:
    import pyarrow as pa

_KEYS: Mapping[str, str] = MappingProxyType({"latency_ms": "latency", "energy_mj": "energy"})
_INTENSITY = "eyeriss_arithmetic_intensity"


def read(path: Path) -> dict[Kind, pa.Table]:
    """The tables in the official pickle, which is read without running any of it.

    Returns:
        The NAS-Bench-201 table (official strings and indices, latency in ms, energy in mJ, nan where not
        measured) and, where the file has that part, the FBNet operator look-up table.

    Raises:
        InvalidTable: If the file is unsafe, truncated or of another form; the message says where.
    """
    content = mapping(load(path), str(path))
    tables = {HARDWARE: _cells(_get(content, "nasbench201", str(path)), f"{path}: ['nasbench201']")}
    if "fbnet" in content:
        tables[FBNET] = _operators(content["fbnet"], f"{path}: ['fbnet']")
    return tables


def _cells(part: object, where: str) -> pa.Table:
    import pyarrow as pa

    datasets = mapping(part, where)
    columns: dict[str, Any] = {"index": np.arange(ROWS, dtype=np.int32)}
    for dataset, prefix in PREFIXES.items():
        here = f"{where}[{dataset!r}]"
        metrics = mapping(_get(datasets, dataset, where), here)
        strings = _strings(metrics, here)
        if columns.setdefault("arch", strings) != strings:
            raise InvalidTable(f"{here}: its cells stand in another order than those of cifar10")
        for device, names in DEVICES.items():
            for metric in names:
                key = f"{device}_{_KEYS[metric]}"
                columns[hardware_column(dataset, device, metric)] = _column(metrics, key, here)
        if _INTENSITY in metrics:  # operations per byte
            columns[f"{prefix}_{_INTENSITY}"] = _column(metrics, _INTENSITY, here)
    return pa.table(columns)


def _strings(metrics: Mapping[Any, Any], where: str) -> list[str]:
    configs = _get(metrics, "config", where)
    if isinstance(configs, dict):
        configs = [configs.get(i) for i in range(len(configs))]
    if not isinstance(configs, list | tuple) or not all(isinstance(config, dict) for config in configs):
        raise InvalidTable(f"{where}['config']: wants a list of dicts")
    strings = [str(config.get("arch_str")) for config in configs]
    check_cells(strings, f"{where}['config']")
    return strings


def _column(metrics: Mapping[Any, Any], key: str, where: str) -> Floats:
    here = f"{where}[{key!r}]"
    values = array(_get(metrics, key, where), here)
    if values.shape != (ROWS,):
        raise InvalidTable(f"{here}: wants {ROWS:,} numbers, has shape {values.shape}")
    return clean(values, key, here)


def _operators(part: object, where: str) -> pa.Table:
    import pyarrow as pa

    metrics = mapping(part, where)
    columns: dict[str, Any] = {}
    for name in lut_columns():
        key = name.rsplit("_", 1)[0]  # without the unit
        here = f"{where}[{key!r}]"
        costs = mapping(_get(metrics, key, where), here)
        operators = columns.setdefault("op", [str(operator) for operator in costs])
        if set(operators) != set(costs):
            raise InvalidTable(f"{here}: has other operators than the metrics before it")
        columns[name] = clean(array([costs[operator] for operator in operators], here), name, here)
    return pa.table(columns)


def _get(content: Mapping[Any, Any], key: str, where: str) -> Any:
    if key not in content:
        have = ", ".join(repr(name) for name in list(content)[:12]) or "nothing"
        raise InvalidTable(f"{where}: has no {key!r}; it has {have}")
    return content[key]
