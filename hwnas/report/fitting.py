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
        rows: Cells. A line break is one only in a terminal that is too narrow for all in one line; so is any space of a
            head.
        dispensable: Columns that are left out in a narrower terminal, the first one first; the caption names them.
        title: Above the table.
    """
    cells = [list(row) for row in rows]
    gone = [head for head in dispensable if head in heads]
    whole = [[cell.replace("\n", " ") for cell in row] for row in cells]
    broken = [head.replace(" ", "\n") for head in heads]
    choices = []
    for count in range(len(gone) + 1):
        kept = [i for i, head in enumerate(heads) if head not in gone[:count]]
        left_out = f"in a wider terminal also: {', '.join(gone[:count])}" if count else ""
        choices += [_table(words, some, kept, title, left_out) for words, some in ((heads, whole), (broken, cells))]
    return Fitting(choices)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int], title: str, caption: str) -> Table:
    shown = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for i in kept:
        # what is too wide even so is folded rather than cut off
        shown.add_column(Text(heads[i]), justify="left" if i in (0, len(heads) - 1) else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[i]) for i in kept))
    return shown
