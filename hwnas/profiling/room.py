"""Which networks fit into memory at all, and how many may be live at once, so that a batch does not exhaust it.

What a loaded network takes is estimated before it is loaded: 20 MiB for the runtime's own structures, twice its weights
and twice the highest sum of its live activations. Measured: a cell of NAS-Bench-201 takes 8 MiB in ONNX Runtime, 17 in
OpenVINO and 7 in torch; of 180 to 200 MiB of weights ONNX Runtime and torch keep one copy and hold two to three while
they load, OpenVINO keeps two; of 192 MiB of live activations ONNX Runtime takes 1.7 times as much, OpenVINO 2.3 times.

Whether a network fits at all is not decided by that estimate, which is on the safe side of the machine, but by what no
runtime can do without: its weights, once, and its inputs and outputs. What takes more than there is, or than the device
file grants, is not even loaded. Activations are no part of that: runtimes fuse operators and work in place (of the live
activations of attention over 2048 tokens OpenVINO took a twentieth), so whether they fit is tried.
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
_NARROWER = {"fp16": 2, "int8": 4}


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
class Need:
    """Memory that a network cannot do without, bytes.

    Attributes:
        weights: All of them, once.
        io: Inputs and outputs; 0 where a shape is not known.
    """

    weights: int
    io: int

    @property
    def bytes(self) -> int:
        """Both together."""
        return self.weights + self.io

    def __str__(self) -> str:
        return f"{_mib(self.bytes)} (weights {_mib(self.weights)}, inputs and outputs {_mib(self.io)})"


def least_need(facts: Mapping[str, Any], precision: str) -> Need | None:
    """What a network needs at least; None where its weights have not been counted.

    Args:
        facts: As `hwnas.onnx_facts.ModelFacts` has them; those of earlier versions know of no inputs and outputs.
        precision: It is run in; a file in fp32 takes half of it in fp16, a quarter in int8.
    """
    weights, share = facts.get("weights_bytes"), _NARROWER.get(precision, 1)
    return None if weights is None else Need(weights // share, (facts.get("io_bytes") or 0) // share)


@dataclass(frozen=True)
class Room:
    """Memory for networks, bytes.

    Attributes:
        free: What the worker says is free where networks lie; None where nobody tells.
        granted: What the device file allows; None where it says nothing.
        total: What there is where networks lie, free or not; None where nobody tells.
    """

    free: int | None = None
    granted: int | None = None
    total: int | None = None

    @property
    def bytes(self) -> float:
        """How much a batch may take: a quarter of what is free, and not more than is granted."""
        free = float("inf") if self.free is None else SHARE * self.free
        return min(free, float("inf") if self.granted is None else self.granted)

    def lacks(self, need: Need | None) -> str:
        """Why a network with this least need cannot run, and what to do; "" where it may, or nobody knows."""
        if need is None:
            return ""
        if self.total is not None and need.bytes > self.total:
            there = f"there are {_mib(self.total)} where it would run"
            return f"it needs at least {need}, {there}; choose a smaller network or input, or another device"
        if self.granted is not None and need.bytes > self.granted:
            granted = f"the device file grants {_mib(self.granted)}"
            return f"it needs at least {need}, {granted}; raise its memory_mib, or choose a smaller network or input"
        return ""

    def __str__(self) -> str:
        if self.granted is not None and self.granted == self.bytes:
            return f"the {_mib(self.granted)} that the device file grants"
        return "what is free" if self.free is None else f"{SHARE:.0%} of {_mib(self.free)} that are free"


def _mib(count: int) -> str:
    mib = count / MIB
    return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB" if mib >= 0.05 else "below 0.1 MiB"
