"""How many networks may be live at once: bounded by the memory that there is, so that a batch does not exhaust it.

What a loaded network takes is estimated before it is loaded: 20 MiB for the runtime's own structures, twice its weights
and twice the highest sum of its live activations. Measured: a cell of NAS-Bench-201 takes 8 MiB in ONNX Runtime, 17 in
OpenVINO and 7 in torch; of 180 to 200 MiB of weights ONNX Runtime and torch keep one copy and hold two to three while
they load, OpenVINO keeps two; of 192 MiB of live activations ONNX Runtime takes 1.7 times as much, OpenVINO 2.3 times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
LIBRARIES_MIB = 4096  # mapped by a worker beside its networks, not used
# of what is free: the rest is for loading, for others' work, and for what is estimated wrongly
SHARE = 0.25
_OWN, _WEIGHTS, _ACTIVATIONS = 20 * MIB, 2, 2


def footprint(path: Path, facts: Mapping[str, Any]) -> int:
    """Bytes that a network will take once it is loaded, estimated rather too high.

    Args:
        path: Its file, whose size stands for weights that nobody has counted.
        facts: As `hwnas.onnx_facts.ModelFacts` has them; activations that are not known are taken to be as large as
            the weights.
    """
    weights = facts.get("weights_bytes")
    if weights is None:
        weights = path.stat().st_size if path.exists() else 0
    activations = facts.get("activation_bytes")
    return int(_OWN + _WEIGHTS * weights + _ACTIVATIONS * (weights if activations is None else activations))


@dataclass(frozen=True)
class Room:
    """Memory for the networks of a batch, bytes.

    Attributes:
        free: What the worker says is free where networks lie; None where nobody tells.
        granted: What the device file allows; None where it says nothing.
    """

    free: int | None = None
    granted: int | None = None

    @property
    def bytes(self) -> float:
        """How much a batch may take: a quarter of what is free, and not more than is granted."""
        free = float("inf") if self.free is None else SHARE * self.free
        return min(free, float("inf") if self.granted is None else self.granted)

    def __str__(self) -> str:
        if self.granted is not None and self.granted == self.bytes:
            return f"the {self.granted / MIB:,.0f} MiB that the device file grants"
        return "what is free" if self.free is None else f"{SHARE:.0%} of {self.free / MIB:,.0f} MiB that are free"
