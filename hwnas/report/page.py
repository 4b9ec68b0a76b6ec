"""report.html: one file with everything in it, plotly.js included; it asks no server for anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from hwnas import atomic
from hwnas.core.wording import known, provenance
from hwnas.report.axes import groups, projections
from hwnas.report.cells import cell_svg
from hwnas.report.plots import every_plot
from hwnas.report.terminal import COMMON, STAR, cell_legend, ending, listed, marks, sentences
from hwnas.report.tojson import plain
from hwnas.report.view import Column, RunView

MAX_DRAWINGS = 2000  # 1.5 kB each; beyond it only the front is drawn as well

# nothing may be fetched; plotly.js compiles code for its WebGL plots
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def write_html(view: RunView, path: Path) -> Path:
    """Write the report; about 5 MB, nearly all of it plotly.js."""
    return atomic.write(path, html(view))


def html(view: RunView) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    title = page_title(view)
    engine = get_plotlyjs()
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_own('page.css')}</style></head><body>",
        f'<header><h1>{escape(title)}</h1><button id="theme" type="button">light / dark</button></header>',
        *_result(view),
        *_fronts(view),
        *_progress(view),
        *_front_table(view),
        *_failures(view),
        *_context(view),
        _footer(view, len(engine)),
        _embedded("hwnas-data", page_data(view)),
        _embedded("hwnas-figures", every_plot(view)),
        f"<script>{engine}</script><script>{_own('page.js')}</script></body></html>",
    ]
    return "\n".join(parts)


def page_title(view: RunView) -> str:
    """What the run was about, e.g. "validation error and latency on edgegpu"."""
    names = [known(o.metric).title + (f" on {o.device}" if o.device else "") for o in view.state.objectives]
    data = view.config.get("dataset")
    return listed(names) + (f", {data}" if isinstance(data, str) else "")


def page_data(view: RunView) -> dict[str, Any]:
    """What the page's script shows beside the plots: every architecture with its numbers, and the drawings."""
    names = _several_roles(view) if view.devices else {i: g.name for g in groups(view) for i in g.indices}
    drawings: dict[str, int] = {}
    drawn = set(view.front) | set(range(min(view.n, MAX_DRAWINGS)))
    points = []
    for index in range(view.n):
        svg = drawings.setdefault(cell_svg(view.graphs[index]), len(drawings)) if index in drawn else None
        violation = float(view.state.violations[index])
        points.append(
            {
                "key": view.state.architectures[index].key,
                "text": view.texts[index],
                "group": names.get(index, "no number"),
                "marks": marks(view, index),
                "violation": violation if 0 < violation < float("inf") else None,
                "values": [_value(view, index, column) for column in view.columns],
                "svg": svg,
            }
        )
    start = next((i for i in (view.recommended, view.nearest) if i is not None), None)
    columns = [{"title": view.title(column)} for column in view.columns]
    return {
        "start": start if start is not None else (0 if view.n else None),
        "run": view.run,
        "columns": columns,
        "points": points,
        "svgs": list(drawings),
    }


def _several_roles(view: RunView) -> dict[int, str]:
    """What each architecture is on each device, in words."""
    told: dict[int, list[str]] = {}
    for device, own in view.devices.items():
        for group in groups(own):
            for index in group.indices:
                told.setdefault(index, []).append(f"{device}: {group.name}")
    return {index: "; ".join(words) for index, words in told.items()}


def facts_table(facts: Mapping[str, Any]) -> str:
    """A two-column table of names and values; nested mappings are written as `outer.inner`."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_plain_text(value))}</td></tr>'
        for name, value in _flat(facts)
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _value(view: RunView, index: int, column: Column) -> dict[str, str | float | None] | None:
    row = view.measurement(index, column)
    if row is None:
        return None
    text = view.value_text(index, column)
    value = row.value if row.status.has_value else None
    return {"value": value, "text": text, "source": provenance(row.context), "sure": view.certainty(index, column)}


def _result(view: RunView) -> list[str]:
    own = [_paragraph(each) for each in view.devices.values()]
    sources = "".join(
        f"<li>{escape(view.title(column))}: <strong>{escape(view.all_sources[column])}</strong></li>"
        for column in view.columns
    )
    end = [f'<p class="sources">{escape(" ".join(told))}</p>'] if (told := ending(view)) else []
    return [*own, *end, _paragraph(view), f'<ul class="sources">{sources}</ul>']


def _paragraph(view: RunView) -> str:
    kind = "result" if view.recommended is not None else "result none"
    star = COMMON if view.devices else STAR
    mark = f"{star} " if view.recommended is not None else ""
    name = f"<strong>{escape(view.device)}</strong>: " if view.device else ""
    return f'<p class="{kind}">{mark}{name}{escape(" ".join(sentences(view)))}</p>'


def _fronts(view: RunView) -> list[str]:
    """The plots of the front, or one heading and its plots after the other for each device, beside the panel."""
    places = "".join(
        (f"<h3>on {escape(own.device)}</h3>" if own.device else "")
        + "".join(
            _place(f"{prefix}{name}", f"all evaluated architectures{f' on {own.device}' if own.device else ''}")
            for name in every_plot(own)
            if name.startswith(("front", "parallel"))
        )
        for prefix, own in _each(view)
    )
    panel = '<aside class="panel" id="panel" aria-live="polite" aria-label="one architecture"></aside>'
    hint = "Point at an architecture to see it; click to keep it."
    shown = [own for _, own in _each(view) if len(own.state.objectives) > 2]
    if shown:
        hint += " What seems dominated on the front is not, in an objective that is on neither axis"
        hint += ": the front's points have its colour." if projections(shown[0])[0].shade else "."
        hint += " In the parallel coordinates, drag along an axis to keep a range; orange lines are the front."
    return [
        f"<h2>{'Fronts' if view.devices else 'Front'}</h2>",
        f'<p class="sources">{hint}</p>',
        f'<div class="columns"><div>{places}</div>{panel if view.n else ""}</div>',
    ]


def _each(view: RunView) -> list[tuple[str, RunView]]:
    """Every view with a front of its own, and what the ids of its plots begin with."""
    return [(f"device-{k}-", own) for k, own in enumerate(view.devices.values())] or [("", view)]


def _progress(view: RunView) -> list[str]:
    parts = [part for prefix, own in _each(view) for part in _progress_of(own, prefix)]
    return ["<h2>Progress</h2>", *parts] if parts else []


def _progress_of(view: RunView, prefix: str) -> list[str]:
    if not view.feasible.any():
        return []
    where = f"{escape(view.device)}: hypervolume" if view.device else "Hypervolume"
    point = ", ".join(
        f"{view.title((o.metric, o.device))} = {o.value(float(x)):.5g}"
        for o, x in zip(view.state.objectives, view.reference, strict=True)
    )
    places = _place(f"{prefix}hypervolume", "hypervolume over evaluations", low=True) + _place(
        f"{prefix}best", "best value over evaluations", low=True
    )
    return [
        f'<p class="sources">{where} {view.hypervolumes[-1]:.6g} with the reference point {escape(point)} '
        f"({escape(view.reference_note)}); only architectures within all budgets count.</p>",
        f'<div class="halves">{places}</div>',
    ]


def _front_table(view: RunView) -> list[str]:
    rows = view.shown or (() if view.nearest is None else (view.nearest,))
    if not rows:
        return []
    heads = "".join(
        f'<th scope="col"{" class=n" if number else ""}><button type="button">{escape(name)}</button></th>'
        for name, number in [("", False), ("query", True), *((view.title(c), True) for c in view.columns)]
    )
    if view.devices:
        heads += "".join(
            f'<th scope="col"><button type="button">{name}</button></th>' for name in ("on the front of", "best for")
        )
    heads += '<th scope="col"><button type="button">architecture</button></th>'
    body = "".join(_front_row(view, index) for index in rows)
    title = "Architectures on the front" if view.front else "Nearest to the budgets"
    if view.devices and view.front:
        title = "Architectures on a front, and the one for all devices"
    return [
        f"<h2>{title} ({len(rows)})</h2>",
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>',
        *(f'<p class="sources">{escape(line)}</p>' for line in cell_legend(view, view.columns, rows)),
    ]


def _front_row(view: RunView, index: int) -> str:
    cells = [
        f'<td data-value="{escape(marks(view, index))}"><button type="button" class="pick" '
        f'aria-label="show query {index + 1}">{escape(marks(view, index)) or "show"}</button></td>',
        f'<td class="n" data-value="{index + 1}">{index + 1}</td>',
    ]
    for column in view.columns:
        row = view.measurement(index, column)
        raw = "" if row is None or not row.status.has_value else repr(row.value)
        sure = "" if row is None else f' title="{escape(view.certainty(index, column))}"'
        text = escape(view.cell_text(index, column))
        cells.append(f'<td class="n" data-value="{raw}"{sure}>{text}</td>')
    if view.devices:
        role = view.role(index)
        cells += [f"<td>{escape(', '.join(devices))}</td>" for devices in (role.fronts, role.recommended)]
    cells.append(f"<td><code>{escape(view.texts[index])}</code></td>")
    return f'<tr data-index="{index}">{"".join(cells)}</tr>'


def _failures(view: RunView) -> list[str]:
    failed = [
        (index, row)
        for index, evaluation in enumerate(view.state.archive)
        for row in evaluation.measurements
        if not row.status.has_value
    ]
    if not failed:
        return []
    counts = ", ".join(f"{count} {status}" for status, count in view.statuses.items())
    body = "".join(
        f'<tr data-index="{index}"><td class="n">{index + 1}</td><td>{escape(known(row.metric).title)}</td>'
        f"<td>{escape(str(row.status))}</td><td>{escape(row.message)}</td>"
        f"<td><code>{escape(view.texts[index])}</code></td></tr>"
        for index, row in failed
    )
    names = ("query", "metric", "status", "message", "architecture")
    heads = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in names)
    return [
        f"<h2>Without a number ({len(failed)})</h2>",
        f'<p class="sources">{escape(counts)}. A failure is kept as a status; no number is made up for it.</p>',
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>',
    ]


def _context(view: RunView) -> list[str]:
    command = f"<pre>{escape(view.command)}</pre>" if view.command else "<p>not recorded</p>"
    run = {"space": view.state.space, "queries": view.state.queries, "seed": view.state.seed, "made": view.created}
    paid = {name.replace("_", " "): value for name, value in view.ledger.to_json().items()}
    measured = [f"<h2>Measured on {escape(name)}</h2>{facts_table(told)}" for name, told in view.measured.items()]
    return [
        *measured,
        "<h2>Make it again</h2>",
        command,
        f'<div class="halves"><div><h2>What the search paid</h2>{facts_table(paid)}</div>',
        f"<div><h2>Configuration</h2>{facts_table({**run, **view.config})}",
        f"<h2>Versions</h2>{facts_table(view.versions)}</div></div>",
    ]


def _footer(view: RunView, engine: int) -> str:
    return (
        f"<footer>Made by hwnas {escape(view.versions.get('hwnas', ''))} at {escape(view.created)}. This file is "
        f"complete: it opens offline and loads nothing. Of its size {engine / 1e6:.1f} MB are plotly.js "
        "(MIT licence). Networks in the export are untrained unless their manifest says otherwise.</footer>"
    )


def _place(name: str, label: str, low: bool = False) -> str:
    return f'<div class="plot{" low" if low else ""}" id="{name}" role="figure" aria-label="{escape(label)}"></div>'


def _embedded(name: str, content: Any) -> str:
    text = json.dumps(plain(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # inside a script element only "<" can end it
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def _own(name: str) -> str:
    return resources.files("hwnas.report").joinpath(name).read_text(encoding="utf-8")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
