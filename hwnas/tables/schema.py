"""What tables there are: file names, columns, units, and the checks that every number passes.

Columns of NAS-Bench-201 tables begin with the data set's short name (c10, c100, in16). A row is identified by its
official string in `arch`, by its official index 0..15624 in `index`, or both. Other columns are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InvalidTable

Floats = NDArray[np.float64]

ROWS = 15_625
PREFIXES: Mapping[str, str] = MappingProxyType({"cifar10": "c10", "cifar100": "c100", "ImageNet16-120": "in16"})
SPLITS: Mapping[str, str] = MappingProxyType({"val_error_pct": "val", "test_error_pct": "test"})
# errors under attack: the column of accuracies, and the attack in words. White-box APGD-CE is the strongest. At 1/255
# all four attacks tell networks apart: at 2/255 APGD-CE leaves half of them under 1 % of accuracy, at 0.1/255 the order
# is that without attack (Spearman 0.97)
ATTACKED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "robust_error_pct": ("apgd-ce_linf_1.0", "APGD-CE, L-inf, eps 1/255"),
        "robust_error_pgd_pct": ("pgd_linf_1.0", "PGD, L-inf, eps 1/255"),
        "robust_error_fgsm_pct": ("fgsm_linf_1.0", "FGSM, L-inf, eps 1/255"),
        "robust_error_square_pct": ("square_linf_1.0", "Square, L-inf, eps 1/255"),
    }
)
ATTACKED_DATASET = "cifar10"  # the only one that the table is about
UNITS: Mapping[str, str] = MappingProxyType({"latency_ms": "latency_ms", "energy_mj": "energy_mJ"})

# which metrics HW-NAS-Bench has for which device (Li et al., ICLR 2021)
DEVICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "edgegpu": ("latency_ms", "energy_mj"),
        "raspi4": ("latency_ms",),
        "edgetpu": ("latency_ms",),
        "pixel3": ("latency_ms",),
        "eyeriss": ("latency_ms", "energy_mj"),
        "fpga": ("latency_ms", "energy_mj"),
    }
)

_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_CELL = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
EXAMPLE = _CELL.format(*_OPS[1:], *_OPS[2:4])


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of table.

    Attributes:
        name: Short name, e.g. "accuracy".
        file: File name in a folder of tables.
        title: For people.
    """

    name: str
    file: str
    title: str


ACCURACY = Kind("accuracy", "nb201_accuracy.parquet", "NAS-Bench-201 accuracies")
HARDWARE = Kind("hardware", "hwnasbench_nb201.parquet", "HW-NAS-Bench latency and energy, NAS-Bench-201 space")
FBNET = Kind("fbnet", "hwnasbench_fbnet_lut.parquet", "HW-NAS-Bench operator look-up table, FBNet space")
ROBUSTNESS = Kind("robustness", "nb201_robustness_c10.parquet", "NAS-Bench-201 accuracies under attack, CIFAR-10")
CELL_KINDS = (ACCURACY, HARDWARE, ROBUSTNESS)  # one row for each cell of NAS-Bench-201: what a search reads
KINDS = (*CELL_KINDS, FBNET)
META_SOURCE = b"hwnas.source"  # where an imported table came from, in the Parquet file's metadata


@cache
def cells() -> frozenset[str]:
    """The 15,625 official strings of NAS-Bench-201."""
    return frozenset(_CELL.format(*ops) for ops in product(_OPS, repeat=6))


def accuracy_column(dataset: str, metric: str) -> str:
    """Column of the accuracy in percent behind an error metric after 200 epochs, e.g. "c10_val_200"."""
    return f"{PREFIXES[dataset]}_{SPLITS[metric]}_200"


def hardware_column(dataset: str, device: str, metric: str) -> str:
    """Column of a device metric, e.g. "c10_edgegpu_latency_ms"."""
    return f"{PREFIXES[dataset]}_{device}_{UNITS[metric]}"


def lut_columns() -> tuple[str, ...]:
    """Value columns of the FBNet look-up table; HW-NAS-Bench has none for the Edge TPU there."""
    return tuple(
        f"{device}_{UNITS[metric]}" for device, metrics in DEVICES.items() for metric in metrics if device != "edgetpu"
    )


def columns_of(kind: Kind) -> tuple[str, ...]:
    """Value columns that hwnas reads from a kind of table."""
    if kind is ACCURACY:
        return tuple(accuracy_column(d, m) for d in PREFIXES for m in SPLITS)
    if kind is ROBUSTNESS:
        return tuple(column for column, _ in ATTACKED.values())
    if kind is FBNET:
        return lut_columns()
    return tuple(hardware_column(d, v, m) for d in PREFIXES for v, metrics in DEVICES.items() for m in metrics)


def classify(columns: Collection[str]) -> Kind | None:
    """The kind of table that has these columns; None where they fit none."""
    if "op" in columns and set(lut_columns()) & set(columns):
        return FBNET
    if not {"arch", "index"} & set(columns):
        return None
    for kind in (HARDWARE, ACCURACY, ROBUSTNESS):
        if set(columns_of(kind)) & set(columns):
            return kind
    return None


def check_columns(kind: Kind, columns: Collection[str], where: str) -> None:
    """Whether a table has the columns that its kind needs.

    A hardware table is complete; a table of accuracies, under attack or not, needs one column of them.

    Raises:
        InvalidTable: Naming the missing column.
    """
    wanted = columns_of(kind)
    if kind is FBNET:
        wanted = ("op", *wanted)
    elif not {"arch", "index"} & set(columns):
        raise InvalidTable(f"{where}: neither a column 'arch' (official strings) nor 'index' (0..{ROWS - 1})")
    missing = [name for name in wanted if name not in columns]
    if kind in (ACCURACY, ROBUSTNESS):
        if len(missing) == len(wanted):
            raise InvalidTable(f"{where}: no column of accuracies; it needs at least one of {', '.join(wanted)}")
    elif missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidTable(f"{where}: the column {missing[0]!r}{more} is missing")


def check_cells(strings: Sequence[str], where: str) -> None:
    """Whether the official strings are all 15,625 cells, each once.

    Raises:
        InvalidTable: Saying how many are wrong, missing or repeated, with one example.
    """
    given = set(strings)
    if len(strings) == ROWS and given == cells():
        return
    wrong = sorted(str(text) for text in given - cells())
    missing = sorted(cells() - given)
    repeated = sorted(text for text, n in Counter(strings).items() if n > 1 and text in cells())
    told = [
        f"{len(found):,} {what}, e.g. {found[0]!r}"
        for what, found in (
            ("are no official strings", wrong),
            ("missing", missing),
            ("more than once", repeated),
        )
        if found
    ]
    raise InvalidTable(
        f"{where}: wants each of the {ROWS:,} cells of NAS-Bench-201 once in 'arch' (like {EXAMPLE}); "
        f"has {len(strings):,} rows: {'; '.join(told)}"
    )


def check_index(index: NDArray[np.int64], where: str) -> None:
    """Whether the official indices are 0..15624, each once.

    Raises:
        InvalidTable: Naming a missing index.
    """
    if len(index) == ROWS and bool((np.sort(index) == np.arange(ROWS)).all()):
        return
    missing = np.setdiff1d(np.arange(ROWS), index)
    raise InvalidTable(
        f"{where}: wants each index 0..{ROWS - 1} once in 'index'; has {len(index):,} rows, "
        f"{len(missing):,} indices missing" + (f", e.g. {missing[0]}" if len(missing) else "")
    )


def clean(values: Floats, name: str, where: str) -> Floats:
    """Numbers as they are used: "not measured" (-1) becomes nan; what cannot be true is refused.

    Args:
        values: One column, `n`.
        name: The column's name; accuracies are those ending in `_200` and those under attack.
        where: The file, for messages.

    Raises:
        InvalidTable: An infinite or negative number, an accuracy above 100, or a column of fractions.
    """
    values = np.where(values == -1.0, np.nan, values)
    percent = name.endswith("_200") or name in columns_of(ROBUSTNESS)
    top = 100.0 if percent else np.finfo(np.float64).max
    wrong = np.flatnonzero((values < 0) | (values > top))
    if len(wrong):
        wanted = "a percentage" if percent else "a finite number of at least 0"
        raise InvalidTable(
            f"{where}: column {name!r} wants {wanted} (or nan or -1 for not measured), "
            f"row {wrong[0]} has {values[wrong[0]]}"
        )
    known = values[~np.isnan(values)]
    if percent and len(known) and known.max() <= 1.0:
        raise InvalidTable(f"{where}: column {name!r} wants percent; its largest value is {known.max()}")
    return np.asarray(values)
