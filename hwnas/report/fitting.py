"""Tables that leave out columns rather than break words where a terminal is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_WIDE = 10_000  # columns: nothing wraps


@dataclass(frozen=True)
class Fitting:
    """The first of several renderables that the terminal is wide enough for, else the last, which wraps."""

    choices: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=_WIDE)
        fitting = (c for c in self.choices if console.measure(c, options=wide).maximum <= options.max_width)
        yield next(fitting, self.choices[-1])


def fitting_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], dispensable: Sequence[str], *, title: str
) -> Fitting:
    """A table whose first and last columns are words and all others figures.

    Args:
        heads: Of the columns.
        rows: Cells. A cell of words is broken at its spaces into lines, if need be.
        dispensable: Columns that are left out in a narrower terminal, the first one first; the caption names them.
        title: Above the table.
    """
    cells = [list(row) for row in rows]
    gone = [head for head in dispensable if head in heads]
    choices = []
    for count in range(len(gone) + 1):
        kept = [i for i, head in enumerate(heads) if head not in gone[:count]]
        left_out = f"in a wider terminal also: {', '.join(gone[:count])}" if count else ""
        for broken in (False, True):
            choices.append(_table(heads, cells, kept, title, left_out, broken=broken))
    return Fitting(choices)


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int], title: str, caption: str, *, broken: bool
) -> Table:
    ends = (0, len(heads) - 1)
    shown = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for i in kept:
        head = Text(heads[i].replace(" ", "\n") if broken else heads[i])
        # what cannot be helped is folded rather than cut off
        shown.add_column(head, justify="left" if i in ends else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[i].replace(" ", "\n") if broken and i in ends else row[i]) for i in kept))
    return shown
