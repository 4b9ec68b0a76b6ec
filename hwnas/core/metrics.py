"""Named numbers: unit, split and direction are in the name (design: metrics carry split, unit and device)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from hwnas.errors import InvalidBudget, UnknownName

Goal = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric's number means.

    Attributes:
        name: Full name with unit, e.g. "latency_ms".
        title: For people, e.g. "latency".
        unit: Unit of the stored number, e.g. "ms".
        units: Accepted units of a budget, as factor to `unit`.
        bare: Whether a budget without a unit is read as `unit`; counts need one (1 could be 1 or 1 M).
        per_device: Whether the number belongs to a device.
        goal: The direction a user wants.
        decimals: Digits behind the point in tables.
    """

    name: str
    title: str
    unit: str
    units: Mapping[str, float]
    bare: bool = True
    per_device: bool = False
    goal: Goal = "min"
    decimals: int = 2


_TIME = MappingProxyType({"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3})
_ENERGY = MappingProxyType({"uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3})
_COUNT = MappingProxyType({"k": 1e-3, "K": 1e-3, "M": 1.0, "G": 1e3, "B": 1e3})
_BYTES = MappingProxyType(
    {
        "B": 2.0**-20,
        "kB": 1e3 / 2**20,
        "KiB": 2.0**-10,
        "MB": 1e6 / 2**20,
        "MiB": 1.0,
        "GB": 1e9 / 2**20,
        "GiB": 1024.0,
    }
)
_PERCENT = MappingProxyType({"%": 1.0, "pct": 1.0})

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("val_error_pct", "validation error", "%", _PERCENT),
            Metric("test_error_pct", "test error", "%", _PERCENT),
            # under attack (Jung et al., ICLR 2023), test images changed by at most 1/255 a value
            Metric("robust_error_pct", "robust error (APGD-CE)", "%", _PERCENT),
            Metric("robust_error_pgd_pct", "robust error (PGD)", "%", _PERCENT),
            Metric("robust_error_fgsm_pct", "robust error (FGSM)", "%", _PERCENT),
            Metric("robust_error_square_pct", "robust error (Square)", "%", _PERCENT),
            Metric("latency_ms", "latency", "ms", _TIME, per_device=True, decimals=3),
            Metric("cpu_time_ms", "CPU time", "ms", _TIME, per_device=True, decimals=3),
            Metric("energy_mj", "energy", "mJ", _ENERGY, per_device=True, decimals=3),
            Metric("params_m", "parameters", "M", _COUNT, bare=False, decimals=3),
            Metric("macs_m", "multiply-accumulates", "M", _COUNT, bare=False, decimals=1),
            Metric("peak_memory_mib", "peak memory", "MiB", _BYTES, bare=False, per_device=True, decimals=2),
        )
    }
)

CLASSES: Mapping[str, int] = MappingProxyType({"cifar10": 10, "cifar100": 100, "ImageNet16-120": 120})

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # search on validation where there is one, else on test (and say so)
        "error": ("val_error_pct", "test_error_pct"),
        "robust_error": ("robust_error_pct",),  # under the strongest of the attacks
        "robust_error_pgd": ("robust_error_pgd_pct",),
        "robust_error_fgsm": ("robust_error_fgsm_pct",),
        "robust_error_square": ("robust_error_square_pct",),
        "latency": ("latency_ms",),
        "cpu_time": ("cpu_time_ms",),
        "energy": ("energy_mj",),
        "params": ("params_m",),
        "macs": ("macs_m",),
        "memory": ("peak_memory_mib",),
        "peak_memory": ("peak_memory_mib",),
    }
)


def metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        UnknownName: With the nearest known names.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise UnknownName("metric", name, METRICS) from None


def candidates(name: str) -> tuple[str, ...]:
    """Metrics that a user's word may mean, best first: "error" is validation error, else test error.

    Raises:
        UnknownName: If it is neither a family ("error", "latency") nor a full metric name.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if name in METRICS:
        return (name,)
    raise UnknownName("objective", name, [*FAMILIES, *METRICS])


_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\s\d]*)\s*")


def parse_quantity(text: str, name: str) -> float:
    """A budget such as "5", "5ms", "20 mJ" or "1.5M" as a number in the metric's own unit.

    Args:
        text: What the user wrote.
        name: Full name of the metric.

    Raises:
        InvalidBudget: If it is no number, not above zero, or its unit is wrong or missing.
    """
    what = metric(name)
    example = f"{'5' if what.bare else '1' + what.unit}"
    wanted = f"a {what.title} budget is a number above 0 with one of the units {', '.join(what.units)}"
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidBudget(f"{wanted}, e.g. {example!r}; got {text!r}")
    number, unit = match.group(1), match.group(2).replace("\u03bc", "\u00b5")  # Greek mu to the micro sign
    if not 0 < float(number) < float("inf"):
        raise InvalidBudget(f"{wanted}; got {text!r}")
    if not unit and not what.bare:
        raise InvalidBudget(f"{wanted}; {text!r} has none. Write {_suggested(float(number), what)}")
    if unit and unit not in what.units:
        raise InvalidBudget(f"{wanted}; {text!r} has the unit {unit!r}")
    value = float(number) * (what.units[unit] if unit else 1.0)
    if not 0 < value < float("inf"):
        raise InvalidBudget(f"{wanted}; got {text!r}")
    return value


def _suggested(number: float, what: Metric) -> str:
    """How a number without a unit may have been meant: a large one counts single things or bytes."""
    one = 2.0**-20 if what.unit == "MiB" else 1e-6
    if number * one >= 0.9:
        return f"{number * one:.6g}{what.unit}"
    if what.unit == "M":
        return f"{number / 1e3:.6g}k" if number >= 1e3 else f"{number:.6g}M, {number:.6g}k, ... (see units)"
    return f"{number:.6g}{what.unit}"
