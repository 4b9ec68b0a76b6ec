"""How far a measurement is, and what is going on in it: for whoever waits."""

from __future__ import annotations

from collections.abc import Callable, Collection

OnProgress = Callable[[float, int, str], None]  # networks' worth of work done, of how many networks, what goes on

_QUICK, _SLOW = 0.05, 0.5  # share of a process's time for loading (or warming up); of one that builds engines
_ENERGY = 0.5  # share of a batch's time for energy, where it is measured


class Headway:
    """Counts work in networks: what a batch has behind it is a share of its networks, although their figures come all
    at once. References, and networks of earlier batches that are measured again, are no part of the count.

    A batch never goes back: what has to be done again is said, and counts when it gets further than before.

    Args:
        tell: Told (networks' worth of work done, of how many networks, what is going on; "" for nothing).
        processes: Worker processes that each measure a whole batch, one after the other.
        engines: Whether loading a network builds an engine, which takes long.
        energy: Whether energy is measured when the rounds are over.
    """

    def __init__(self, tell: OnProgress, *, processes: int = 1, engines: bool = False, energy: bool = False) -> None:
        self._tell, self._processes = tell, processes
        self._load, self._warm = _SLOW if engines else _QUICK, _QUICK
        self._sampling = 1 - _ENERGY if energy else 1.0
        self._behind = self._total = self._process = 0
        self._own: frozenset[str] = frozenset()
        self._furthest, self._again = 0.0, ""

    def begin(self, total: int) -> None:
        """So many networks shall be measured; 0: only the references."""
        self._behind, self._total = 0, total
        self.batch(())

    def batch(self, names: Collection[str], *, refused: int = 0) -> None:
        """These are measured together now; so many others were refused unmeasured."""
        self._behind += refused
        self._own, self._furthest, self._again, self._process = frozenset(names), 0.0, "", 0

    def process(self, number: int) -> None:
        """The worker process with this number, from 0, measures the batch."""
        self._process = number

    def again(self, why: str) -> None:
        """The batch is measured once more."""
        self._again = f"once more, {why}, "

    def loading(self, name: str, number: int, of: int) -> None:
        """The `number`th of `of` networks is loaded."""
        own = name in self._own
        text = f"loading network {number} of {len(self._own)}" if own else "loading networks of earlier batches"
        self._say(text, self._load * (number - 1) / of)

    def warming(self, number: int, of: int) -> None:
        """The `number`th of `of` networks, references included, is warmed up."""
        self._say("warming up", self._load + self._warm * (number - 1) / of)

    def round(self, number: int, most: int, active: Collection[str]) -> None:
        """Round `number` of at most `most` visits these networks (and the references)."""
        begun = self._load + self._warm
        left = len(self._own.intersection(active))
        if not self._own:
            what = "reference networks"
        else:
            what = f"{left} left" if self._part else f"{left} of {len(self._own)} networks left"
        self._say(f"round {number} of at most {most}, {what}", begun + (1 - begun) * (number - 1) / most)

    def record(self, what: str, number: int) -> None:
        """`what` (memory, energy) of the `number`th network of the batch is measured."""
        share = self._sampling + (1 - self._sampling) * (number - 1) / max(1, len(self._own))
        self._send(f"{what} of network {number} of {len(self._own)}", share)

    def finish(self) -> None:
        """The batch is done."""
        self._behind += len(self._own)
        self.batch(())
        self._tell(self._behind, self._total, "")

    @property
    def _part(self) -> bool:
        """Whether the batch is one of several."""
        return 0 < len(self._own) < self._total

    def _say(self, text: str, part: float) -> None:
        """What goes on in a process that has done this part of its work on the batch."""
        which = f"process {self._process + 1} of {self._processes}, " if self._own and self._processes > 1 else ""
        self._send(f"{which}{text}", self._sampling * (self._process + part) / self._processes)

    def _send(self, text: str, share: float) -> None:
        count = len(self._own)
        self._furthest = max(self._furthest, share)
        first, last = self._behind + 1, self._behind + count
        which = f"network {first}" if count == 1 else f"networks {first}-{last}"
        where = f"{which} of {self._total}, " if self._part else ""
        self._tell(self._behind + count * self._furthest, self._total, f"{where}{self._again}{text}")
