"""A comparison of timed models for people: a table, its findings in sentences, a picture, one page of HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas import atomic
from hwnas.comparison import Pair, Timing, Timings
from hwnas.core.measurement import Status
from hwnas.core.wording import quantity, shortened
from hwnas.profiling.record import single_runs
from hwnas.profiling.runs import doubtful, floor, floor_note
from hwnas.report.axes import BLUE, GREY, RED
from hwnas.report.figures import log_axis, new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.console import RenderableType


PICTURE, PAGE = "timings", "report.html"
_FEW = 6  # models whose pairs are all told; of more, each is compared with the next slower one
_LONGEST = 500  # characters of a failure's message
_ADVICE = {
    Status.UNSUPPORTED_OP: " (export it with an older opset, update the runtime, or choose another device)",
    Status.OUT_OF_MEMORY: " (more memory than there is, or than it may use)",
    Status.UNCONVERGED: " (a wider interval than was asked for; a quieter machine or --preset final helps)",
}
_FAR = 5.0  # times as slow: a logarithmic axis
_LONG = 24  # characters of a name; longer ones have letters in their place
_COLUMNS = ("model", "latency [ms]", "clock", "median", "p95", "host", "CPU time", "memory", "energy", "status")
_DISPENSABLE = ("p95", "CPU time", "memory", "median", "energy", "host")  # in a narrow terminal, the first one first
_CLOCK = _COLUMNS.index("clock")
_CLOCKS = (
    "clock device: latency, median and 95th percentile are by the device's own events; host is the median wall time, "
    "from the launch to the end of the work. Compare figures of one clock only"
)
_LOOPED = (
    "where a run takes less than 0.1 ms, latency and CPU time are of loops, median and 95th percentile of single runs "
    "beside them, each of which pays for a call of its own"
)


def cells(timings: Timings, timing: Timing) -> list[str]:
    """One line of the table, as `_COLUMNS`: latency is the robust figure, median and 95th percentile are of
    single runs by the same clock, host is the median wall time where that is another clock, memory is weights and the
    highest sum of live activations."""
    record = timing.record
    name = timings.name(timing)
    told = ", ".join([str(record.status), *record.flags])
    latency = record.latency
    if latency is None:
        return [name, *["-"] * (len(_COLUMNS) - 2), told]
    half = (latency.high - latency.low) / 2
    return [
        name,
        f"{_ms(latency.value)} ± {half:.2g}",
        latency.clock,
        _ms(latency.own_spread.median),
        _ms(latency.own_spread.p95),
        _ms(latency.spread.median if latency.clock == "device" else None),
        _ms(record.cpu_time),
        "-" if record.peak_memory_mib is None else quantity("peak_memory_mib", record.peak_memory_mib),
        "-" if record.energy is None or record.energy.energy_mj is None else f"{record.energy.energy_mj:.3g} mJ",
        told,
    ]


def table(timings: Timings) -> RenderableType:
    """Everything for the terminal."""
    from rich.console import Group
    from rich.text import Text

    from hwnas.report.fitting import fitting_table

    short = _letters(timings)
    rows = [
        [_short_name(timings, timing).replace(" on ", "\non "), *cells(timings, timing)[1:]]
        for timing in ordered(timings)
    ]
    used = [i for i, column in enumerate(zip(*rows, strict=True)) if i == 0 or any(cell != "-" for cell in column)]
    if not _by_device(timings):  # wall time is what everybody expects
        used = [i for i in used if i != _CLOCK]
    shown = fitting_table(
        [_COLUMNS[i] for i in used],
        [[row[i] for i in used] for row in rows],
        _DISPENSABLE,
        title=f"timed with protocol {timings.protocol.name}",
    )
    legend = [f"{letter}: {timings.paths.get(model, model)}" for model, letter in short.items()]
    return Group(shown, *map(Text, [*legend, *findings(timings), *failures(timings), *notes(timings)]))


def ordered(timings: Timings) -> list[Timing]:
    """Devices in their order, the fastest model first, failures last."""
    places = {name: i for i, name in enumerate(timings.devices)}

    def place(timing: Timing) -> tuple[int, float]:
        latency = timing.record.latency
        return places[timing.device], float("inf") if latency is None else latency.value

    return sorted(timings.timings, key=place)


def findings(timings: Timings) -> list[str]:
    """Who is faster: all pairs of a few models; of many, neighbours in the order of latency."""
    models = {timing.model for timing in timings.timings}
    pairs = timings.pairs if len(models) <= _FEW else _neighbours(timings)
    told = [
        f"{pair.sentence(lambda timing: _short_name(timings, timing))}{'' if pair.interleaved else ' *'}"
        for pair in pairs
    ]
    if any(not pair.interleaved for pair in pairs):
        told.append("* not measured in the same rounds: what the machine did meanwhile is in the difference")
    return told


def failures(timings: Timings) -> list[str]:
    """Why models have no figure, or a doubtful one."""
    told = []
    for timing in timings.timings:
        message = shortened(timing.record.message, _LONGEST)
        if message:
            advice = _ADVICE.get(timing.record.status, "")
            told.append(f"{timing.model} on {timing.device}: {timing.record.status}{advice}: {message}")
    return told


def notes(timings: Timings) -> list[str]:
    """Device, runtime and noise floor of each device; shapes that dynamic models were run in; why there is no
    energy."""
    told = [device_note(name, facts) for name, facts in timings.devices.items()]
    told += [
        f"{timing.model} was run with {name} = {'x'.join(map(str, shape))}"
        for timing in {t.model: t for t in timings.timings if t.record.latency is not None}.values()
        for name, shape in timing.record.setup.config.get("shapes", {}).items()
    ]
    told += [_CLOCKS] if _by_device(timings) else []
    told += [_LOOPED] if _looped(timings) else []
    told += [_engines(timings, timing) for timing in ordered(timings) if _spread_of_engines(timing) is not None]
    energies = [timing.record.energy for timing in timings.timings if timing.record.energy is not None]
    told += [f"no energy: {reason}" for reason in dict.fromkeys(energy.reason for energy in energies) if reason]
    return told


def _by_device(timings: Timings) -> bool:
    """Whether some figure is by a device's own events."""
    return any(t.record.latency is not None and t.record.latency.clock == "device" for t in timings.timings)


def _looped(timings: Timings) -> bool:
    """Whether some figure is of loops."""
    return any(t.record.sampling is not None and t.record.sampling.loops > 1 for t in timings.timings)


def _spread_of_engines(timing: Timing) -> float | None:
    return None if timing.record.latency is None else timing.record.latency.engine_spread


def _engines(timings: Timings, timing: Timing) -> str:
    """What building a network's engine again changes."""
    latency = timing.record.latency
    assert latency is not None
    each = ", ".join(_ms(value) for value in latency.engines)
    return (
        f"{timings.name(timing)}: {len(latency.engines)} engines were built, which take {each} ms: the slowest "
        f"{latency.engine_spread:.1%} more than the fastest"
    )


def device_note(name: str, told: Mapping[str, Any]) -> str:
    """A device in one line, with its noise floor and whether that was measured."""
    versions = ", ".join(f"{package} {version.partition('-')[0]}" for package, version in told["versions"].items())
    squeezed = "".join(f"; {told[word]}" for word in ("crowded", "squeezed") if told.get(word))
    threads = f"{told['threads']} thread{'s' * (told['threads'] > 1)}"
    clock = "; timed by the device's own events" if told.get("clock") == "device" else ""
    how = f"{told['runtime']}, {versions}, {threads}, {told['precision']}{clock}"
    return f"{name}: {told['title']}, {how}; {floor_note(told)}{squeezed}"


def picture(timings: Timings) -> Figure:
    """Single runs as violins, the robust figure and its 95 % interval as a point with whiskers."""
    rows = [timing for timing in ordered(timings) if timing.record.latency is not None]
    figure = new_figure(7.2, 1.6 + 0.5 * max(1, len(rows)))
    axes = figure.subplots()
    for place, timing in enumerate(rows):
        latency = timing.record.latency
        assert latency is not None
        singles = None if timing.samples is None else single_runs(timing.samples)
        if singles is not None and len(singles) > 1:
            _violin(axes, singles[:, 4 if latency.clock == "device" else 1] * 1e-6, place)
        colour = RED if doubtful(timing.record.flags) or str(timing.record.status) != "ok" else BLUE
        reach = [[latency.value - latency.low], [latency.high - latency.value]]
        axes.errorbar(latency.value, place, xerr=reach, fmt="o", color=colour, ms=4, capsize=4, lw=1.6, zorder=3)
    names = [fill(timings.name(timing), 36) for timing in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    values = [timing.record.latency.value for timing in rows if timing.record.latency is not None]
    if values and max(values) > _FAR * min(values):
        log_axis(axes, "x")
    axes.set_xlabel("latency [ms]" + (f", clock: {_clocks(rows)}" if _by_device(timings) else ""))
    floors = ", ".join(f"{name} {floor(told)}" for name, told in timings.devices.items())
    looped = " (below 0.1 ms of loops)" if _looped(timings) else ""
    axes.set_title(
        f"point and whiskers: latency{looped}, 95 % interval; grey: single runs (1st to 99th percentile)\n"
        f"noise floor: {floors}; red: flagged or not ok",
        fontsize=6.5,
        loc="left",
        color="0.35",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, lw=0.5)
    return figure


def page(timings: Timings) -> str:
    """One page that needs nothing else."""
    style = resources.files("hwnas.report").joinpath("page.css").read_text(encoding="utf-8")
    image = base64.b64encode(render(picture(timings), "png")).decode()
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(timings, timing)) + "</tr>"
        for timing in ordered(timings)
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>hwnas: timed models</title><style>{style}</style></head><body>",
            "<header><h1>Timed models</h1></header>",
            f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>',
            f'<p><img alt="latencies with intervals" style="max-width:100%" src="data:image/png;base64,{image}"></p>',
            _listed("Models", [f"{letter}: {model}" for model, letter in _letters(timings).items()]),
            _listed("Who is faster", findings(timings)),
            _listed("Without a figure, or doubtful", failures(timings)),
            _listed("How it was measured", notes(timings)),
            "</body></html>",
        ]
    )


def write(timings: Timings, folder: Path) -> list[Path]:
    """Write the picture as PNG and PDF, and the page.

    Raises:
        OSError: As the file system says it.
    """
    figure = picture(timings)
    made = [atomic.write(folder / f"{PICTURE}.{suffix}", render(figure, suffix)) for suffix in ("png", "pdf")]
    return [*made, atomic.write(folder / PAGE, page(timings))]


def _letters(timings: Timings) -> dict[str, str]:
    """A letter for each model where names are long; nothing where they are not."""
    models = list(dict.fromkeys(timing.model for timing in ordered(timings)))
    if len(models) < 2 or max(map(len, models)) <= _LONG:
        return {}
    letters = [chr(ord("A") + i) if len(models) <= 26 else f"#{i + 1}" for i in range(len(models))]
    return dict(zip(models, letters, strict=True))


def _short_name(timings: Timings, timing: Timing) -> str:
    short = _letters(timings)
    if not short:
        return timings.name(timing)
    return timings.name(replace(timing, model=short[timing.model]))


def _neighbours(timings: Timings) -> list[Pair]:
    order = {(timing.device, timing.model): place for place, timing in enumerate(ordered(timings))}

    def place(timing: Timing) -> int:
        return order[timing.device, timing.model]

    near = [
        pair
        for pair in timings.pairs
        if pair.first.device == pair.second.device and abs(place(pair.first) - place(pair.second)) == 1
    ]
    return sorted(near, key=lambda pair: min(place(pair.first), place(pair.second)))


def _violin(axes: Axes, samples: NDArray[np.float64], place: int) -> None:
    """The density of the samples' logarithms, by Gaussian kernels of Silverman's width."""
    low, high = np.quantile(samples, (0.01, 0.99))
    inside = np.log(samples[(samples >= low) & (samples <= high)])
    q1, q3 = np.quantile(inside, (0.25, 0.75))
    width = 0.9 * min(inside.std(), (q3 - q1) / 1.34) * len(inside) ** -0.2
    if width <= 0:
        return
    grid = np.linspace(inside.min(), inside.max(), 300)
    density = np.exp(-0.5 * ((grid[:, None] - inside) / width) ** 2).sum(axis=1)
    reach = 0.38 * density / density.max()
    axes.fill_between(np.exp(grid), place - reach, place + reach, color=GREY, alpha=0.35, lw=0)


def _clocks(rows: Sequence[Timing]) -> str:
    """Which devices are timed by which clock."""
    told = {t.device: t.record.latency.clock for t in rows if t.record.latency is not None}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{clock} on {device}" for device, clock in told.items())


def _listed(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if value >= 1 else f"{value:.3g}"
