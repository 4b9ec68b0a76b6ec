"""What a profiler is given: an architecture that is exported only if somebody asks for the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hwnas.core.architecture import Architecture


@dataclass(frozen=True)
class Workload:
    """A network to run.

    Attributes:
        architecture: What it is; tables look it up and never export.
        input_shape: With batch first, e.g. (1, 3, 32, 32).
        precision: "fp32", "fp16", "int8".
        export: Called at most once, when `onnx()` is first asked for.
    """

    architecture: Architecture
    input_shape: tuple[int, ...]
    precision: str
    export: Callable[[], bytes]
    _cache: list[bytes] = field(default_factory=list, repr=False, compare=False)

    def onnx(self) -> bytes:
        """The serialised ONNX model."""
        if not self._cache:
            self._cache.append(self.export())
        return self._cache[0]
