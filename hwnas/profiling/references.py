"""Three fixed networks that every batch measures as well: they link batches, and tell a machine that drifts.

Cells of NAS-Bench-201 on 32 x 32 images, made on the spot and always the same: with skips alone, with 1x1 convolutions,
and with 3x3 convolutions on every edge (about 1 : 4 : 20 in multiply-accumulates).
"""

from __future__ import annotations

from pathlib import Path

from hwnas import atomic
from hwnas.core.architecture import Architecture
from hwnas.spaces.nb201 import CONV1, CONV3, SKIP, NasBench201

_CELLS = {"small": (SKIP,) * 6, "medium": (CONV1, SKIP, CONV3, SKIP, CONV1, SKIP), "large": (CONV3,) * 6}
_DATASET = "cifar10"


def write_references(folder: Path) -> dict[str, Path]:
    """The reference networks as ONNX files, by name."""
    space = NasBench201()
    return {
        f"reference-{name}": atomic.write(
            folder / f"reference-{name}.onnx",
            space.to_onnx(Architecture(space.name, code), _DATASET).SerializeToString(),
        )
        for name, code in _CELLS.items()
    }
