"""What a user sees while something takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hwnas.core import pareto, picking
from hwnas.core.ledger import Ledger
from hwnas.core.recommending import primary_objective
from hwnas.core.state import SearchState
from hwnas.core.stopping import StopRule
from hwnas.core.wording import percent, quantity

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

_PLAIN_EVERY_S = 10.0


class Measuring:
    """What a user sees while networks are timed: a live bar on a terminal; elsewhere a line now and then, so that log
    files stay readable.

    Args:
        console: Where to write.
        shown: Whether to write at all.
    """

    def __init__(self, console: Console, *, shown: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column
        from rich.text import Text

        class Lined(Bar):
            """Bars with lines below them, for what is too long to stand beside one."""

            below: tuple[str, ...] = ()

            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                yield from (Text(line, no_wrap=True, overflow="ellipsis") for line in self.below)

        self._console, self._shown = console, shown
        self._live = shown and console.is_terminal
        self._bar = Lined(
            TextColumn("[bold]{task.description}"),
            # the words need the room, and go on in another line where they have too little
            BarColumn(max(8, min(40, console.width // 8)), table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[told]}", markup=False, table_column=Column(no_wrap=False)),
            TextColumn("{task.fields[most]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, float] = {}
        self._said = time.monotonic()

    def on_device(self, device: str, done: float, total: int, text: str) -> None:
        """So much of the work on so many networks is done on a device (a total of 0: nobody can say); `text` is what
        goes on."""
        if not self._shown:
            return
        # no count of networks: their figures come all at once when a batch ends
        count = f"{100 * done / total:.0f} %" if total else ""
        if device not in self._tasks:
            self._tasks[device] = self._bar.add_task(device, total=None, told="", most="", count="")
        if done < self._done.get(device, 0.0):  # other work: what is left of it does not go by the pace of the last
            self._bar.reset(self._tasks[device])
        self._done[device] = done
        self._bar.update(
            self._tasks[device], completed=done, total=total or None, told=text, count=count, visible=bool(text)
        )
        if not self._live and text and time.monotonic() - self._said >= _PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(
                "  ".join(filter(None, [f"{device}:", count, text])), highlight=False, markup=False, soft_wrap=True
            )

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._bar.stop()

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Progress(Measuring):
    """What a user sees while a search runs.

    Its hypervolume names its reference point, the worst values of the first step. The report has another one, the worst
    of the whole run, which is known only at the end; so the last line, which stays, leaves it to the report.

    Args:
        console: Where to write.
        shown: Whether to write at all.
    """

    def __init__(self, console: Console, *, shown: bool) -> None:
        super().__init__(console, shown=shown)
        self.folder: Path | None = None
        self._task = self._bar.add_task("search", total=None, told="", most="", count="")
        self._reference: np.ndarray | None = None
        self._rule: StopRule | None = None

    def start(self, state: SearchState, folder: Path | None, rule: StopRule | None = None) -> None:
        """The search begins (or continues) with this state, and may end by this rule before its queries are spent."""
        self.folder, self._rule = folder, rule
        most = "" if rule is None else "at most"
        self._bar.update(
            self._task, total=state.queries, completed=len(state.archive), most=most, count=self._count(state)
        )
        if self._shown and folder is not None:
            self._console.print(f"run directory {folder}", highlight=False)
        if self._live:
            self._bar.start()

    def step(self, state: SearchState, ledger: Ledger) -> None:
        """One step is done."""
        if not self._shown:
            return
        finished = state.stopped(self._rule).reason is not None
        told = self._told(state, finished)
        self._bar.below = told if len(told) > 1 else ()
        self._bar.update(
            self._task, completed=len(state.archive), told="" if len(told) > 1 else told[0], count=self._count(state)
        )
        if not self._live and (finished or time.monotonic() - self._said >= _PLAIN_EVERY_S):
            self._said = time.monotonic()
            self._console.print(
                f"{len(state.archive)}/{state.queries} evaluations  {'  '.join(told)}  {ledger.cpu_s:.0f} search CPU s",
                highlight=False,
            )

    @staticmethod
    def _count(state: SearchState) -> str:
        return f"{len(state.archive)}/{state.queries}"

    def _told(self, state: SearchState, finished: bool) -> tuple[str, ...]:
        """How it stands, in one line, or in one for each of several fronts."""
        goals = state.by_device.items()
        if goals:  # a line has no room for the volumes of several fronts
            return tuple(
                f"{device}: {self._best(goal)}, front {len(goal.front_indices)}{self._next(goal, ', ', device)}"
                for device, goal in goals
            )
        words = self._best(state)
        if len(state.objectives) > 1 and not finished:
            words += self._volume(state)
        return (f"{words}  front {len(state.front_indices)}{self._next(state, '  ')}",)

    @staticmethod
    def _next(state: SearchState, between: str, device: str | None = None) -> str:
        """What the next query is expected to add, where that is known of this front."""
        expected = state.outlooks[-1] if state.outlooks else None
        if expected is None or expected.device != device:  # one of before each front had its own names none
            return ""
        return f"{between}next query +{percent(expected.gain)}"

    @staticmethod
    def _best(state: SearchState) -> str:
        objective = primary_objective(state)
        best = picking.best_under_budget(state.losses, state.violations, objective)
        if best is None:
            return "nothing feasible yet"
        wanted = state.objectives[objective]
        return "best " + quantity(wanted.metric, wanted.value(float(state.losses[best, objective])))

    def _volume(self, state: SearchState) -> str:
        if self._reference is None:
            self._reference = pareto.reference_point(state.losses)  # fixed by the first step: later ones compare
        volume = pareto.hypervolume(state.losses[state.violations == 0], self._reference)
        corner = ", ".join(
            quantity(o.metric, o.value(float(x))) for o, x in zip(state.objectives, self._reference, strict=True)
        )
        return f"  hypervolume {volume:.4g} (up to {corner})"

    def __enter__(self) -> Self:
        return self  # the bar begins with the search
