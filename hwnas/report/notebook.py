"""What a result shows in a notebook: the front as a small table beside its picture."""

from __future__ import annotations

import base64
from html import escape

from hwnas.report.figures import front_figure, render
from hwnas.report.terminal import cell_legend, ending, marks, sentences
from hwnas.report.view import RunView


def repr_html(view: RunView, limit: int = 12) -> str:
    """HTML without scripts for `_repr_html_`: summary, front figure, at most `limit` rows of the front; with several
    fronts these of each device, then what is to be said of all."""
    if view.devices:
        own = "".join(repr_html(each, limit) for each in view.devices.values())
        return f"<div>{own}<p>{escape(' '.join([*ending(view), *sentences(view)]))}</p></div>"
    rows = list(view.front) or ([view.nearest] if view.nearest is not None else [])
    shown = sorted(rows, key=lambda i: (not marks(view, i), rows.index(i)))[:limit]
    heads = "".join(f"<th>{escape(view.title(column))}</th>" for column in view.columns)
    body = "".join(
        f"<tr><td>{escape(marks(view, i))}</td>"
        + "".join(f"<td>{escape(view.cell_text(i, column))}</td>" for column in view.columns)
        + f'<td style="text-align:left"><code>{escape(view.texts[i])}</code></td></tr>'
        for i in rows
        if i in shown
    )
    more = f"<p>{len(rows) - len(shown)} more on the front.</p>" if len(rows) > len(shown) else ""
    below = "".join(f"<p>{escape(line)}</p>" for line in cell_legend(view, view.columns, shown))
    picture = base64.b64encode(render(front_figure(view), "png", dpi=80)).decode()
    table = f"<table><thead><tr><th></th>{heads}<th>architecture</th></tr></thead><tbody>{body}</tbody></table>"
    return (
        f"<div><p>{escape(' '.join(sentences(view)))}</p>"
        f'<img alt="front of the search" src="data:image/png;base64,{picture}" style="max-width:100%">'
        f"{table if rows else ''}{more}{below}</div>"
    )
