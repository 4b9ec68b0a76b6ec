"""Facts in words: where a number comes from and how sure it is. Used wherever people read a number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.metrics import METRICS, Metric

_MOST = 12  # digits behind the point


def known(name: str) -> Metric:
    """The metric called `name`; a plain one, without unit, for metrics that hwnas does not know."""
    return METRICS[name] if name in METRICS else Metric(name, name.replace("_", " "), "", {}, decimals=4)


def quantity(name: str, value: float, *, unit: bool = True, decimals: int | None = None) -> str:
    """A value for people, e.g. "4.213 ms"; "-" for nan.

    Args:
        name: Metric.
        value: In its unit.
        unit: Whether to name the unit.
        decimals: Digits behind the point, more where nothing would be left of the value; default: those of `digits`.
    """
    if value != value:
        return "-"
    places = digits(name, value) if decimals is None else max(decimals, _places(value, 1))
    return f"{value:.{places}f} {known(name).unit}".rstrip() if unit else f"{value:.{places}f}"


def digits(name: str, value: float) -> int:
    """Digits behind the point that a value is told with: the metric's, more where less than two significant ones
    would be left (0.0004 ms is not 0.000)."""
    return max(known(name).decimals, _places(value, 2))


def _places(value: float, significant: int) -> int:
    """Digits behind the point that so many significant ones want."""
    if not value or not math.isfinite(value):
        return 0
    return min(_MOST, significant - 1 - math.floor(math.log10(abs(value))))


def difference(name: str, amount: float) -> str:
    """How much two values of a metric differ, for people: "0.41 ms"; of percentages in points, as 1 % of an error may
    also be a hundredth of it."""
    if known(name).unit == "%":
        return f"{quantity(name, amount, unit=False)} points"
    return quantity(name, amount)


def shortened(text: str, most: int) -> str:
    """A long message with at most about so many characters: where it begins, and where it ends, which is where
    runtimes say what it is about. Cut between words; on one line."""
    words = text.split()
    if len(" ".join(words)) <= most:
        return " ".join(words)
    begin, end = _together(words, most // 3), _together(words[::-1], most - most // 3)[::-1]
    return f"{' '.join(begin)} ... {' '.join(end)}"


def _together(words: Sequence[str], most: int) -> list[str]:
    """The first words that have at most so many characters; of one that is longer alone, its beginning."""
    taken: list[str] = []
    for word in words:
        if len(" ".join([*taken, word])) > most:
            break
        taken.append(word)
    return taken or [word[:most] for word in words[:1]]


def percent(share: float) -> str:
    """A share for people: "12 %", "1.4 %", "0.23 %", "0.041 %"."""
    digits = 0 if share >= 0.1 else 1 if share >= 0.01 else 2 if share >= 1e-3 else 3
    return f"{100 * share:.{digits}f} %"


def heading(name: str, device: str | None) -> str:
    """An axis or column title with its unit, e.g. "latency on edgegpu [ms]"."""
    what = known(name)
    where = f" on {device}" if device else ""
    return f"{what.title}{where}" + (f" [{what.unit}]" if what.unit else "")


def origin(context: Context) -> str:
    """Where a number comes from in one word: its source, or "counted" where nothing ran for it."""
    return "counted" if context.counted else str(context.source)


def origins(rows: Iterable[Measurement]) -> str:
    """Where an architecture's numbers come from, e.g. "table+measured". Counts, which every architecture has for
    nothing, are told only where there is nothing else."""
    words = dict.fromkeys(origin(row.context) for row in rows)
    return "+".join([word for word in words if word != "counted"] or words)


def provenance(context: Context) -> str:
    """Source first, then all that makes the number comparable: "table: cifar10, test split, mean of seeds"."""
    kind = "counted from the whole network, dead edges included" if context.counted else str(context.source)
    seed = "mean of seeds" if context.seed == "mean" else f"seed {context.seed}"
    parts = (
        context.dataset,
        context.split and f"{context.split} split",
        context.attack and f"under {context.attack}",
        context.fidelity,
        context.seed and seed,
        context.device,
        None if context.counted else context.runtime,
        context.precision,
        f"batch {context.batch}" if context.batch else None,
        context.origin and context.origin.removeprefix(f"{kind} "),  # "predicted from ..."
    )
    told = ", ".join(part for part in parts if part)
    return f"{kind}: {told}" if told else kind


def provenances(contexts: Iterable[Context]) -> str:
    """Provenances of a column, joined by " | "; of predictions from measurements that are told as well, only that."""
    every = sorted(contexts, key=lambda context: context.source is Source.PREDICTED)
    measured = {_where(context) for context in every if context.source is Source.MEASURED}
    told = [
        "predicted from such" if c.source is Source.PREDICTED and _where(c) in measured else provenance(c)
        for c in every
    ]
    return " | ".join(dict.fromkeys(told))


def _where(context: Context) -> Context:
    """What a measurement and what is predicted from it have in common."""
    return replace(context, source=Source.MEASURED, fidelity=None, origin=None)


def rounding(amount: float, value: float) -> bool:
    """Whether an amount is no more than what rounding leaves of a value."""
    return amount <= 1e-9 * abs(value)


def resolved(row: Measurement) -> bool:
    """Whether an interval has no width, but for rounding: of a surrogate that was right wherever it was checked."""
    return row.interval is not None and rounding(row.half_width, row.value)


def certainty(row: Measurement) -> str:
    """How sure a number is: its interval, or what kind of fact it is; for failures the status and its message."""
    if not row.status.has_value:
        return f"{row.status}: {row.message}" if row.message else str(row.status)
    busy = "" if row.status is Status.OK else f" ({row.status})"
    if row.interval is not None:
        if resolved(row):
            return f"{row.context.source}, no error seen{busy}"
        low, high = (quantity(row.metric, end, unit=False) for end in row.interval)
        return f"95 % interval {low} to {high}{busy}"
    if row.context.counted:
        return "exact count, dead edges included"
    if row.context.source is Source.TABLE:
        seed = row.context.seed
        detail = ", mean of seeds" if seed == "mean" else f", seed {seed}" if seed else ""
        return f"exact table row{detail}{busy}"
    return f"{row.context.source}, interval unknown{busy}"
