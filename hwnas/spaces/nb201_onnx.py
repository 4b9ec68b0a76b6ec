"""NAS-Bench-201 networks as ONNX models, written directly: opset 18, static batch, norms folded into convolutions.

By default only what reaches the output is written, and a ReLU or pool that two edges share is written once; `verbatim`
writes every edge as a naive export of the torch network would (`none` as a product with 0), which is slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.metrics import CLASSES
from hwnas.seeding import stream
from hwnas.spaces.nb201 import CELLS, CHANNELS, CONV3, EDGES, NONE, POOL, SIDES, SKIP
from hwnas.spaces.onnx_writer import INPUT, OnnxWriter

if TYPE_CHECKING:
    import onnx

    from hwnas.spaces.nb201_torch import Network

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Value:
    """A named value of the graph.

    Attributes:
        name: Its name there.
        parts: Amplitude of each independent part that was added up to it; what `_Seeded` scales by.
    """

    name: str
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def moment(self) -> float:
        """Estimated mean square."""
        return sum(amplitude**2 for amplitude in self.parts.values())


class _Weights(Protocol):
    """Where weights come from. `name` follows the torch network's modules, e.g. "stages.0.1.edges.5"."""

    def conv(self, name: str, shape: tuple[int, int, int, int], moment: float, relu: bool) -> tuple[Array, Array]:
        """Weight of `shape` and bias, norm folded in; `moment` is the input's mean square before its ReLU."""

    def norm(self, moment: float) -> tuple[Array, Array, Array, Array, float]:
        """Scale, shift, mean, variance (64 each) and epsilon of the last norm."""

    def head(self, classes: int) -> tuple[Array, Array]:
        """Weight `classes x 64` and bias of the classifier."""


def from_seed(
    architecture: Architecture, dataset: str, *, seed: int = 0, batch: int = 1, verbatim: bool = False
) -> onnx.ModelProto:
    """A network with random weights that keep activations near unit size, for measuring. Needs no torch.

    Weights are drawn per layer name: `verbatim` or not, the same seed gives the same function.

    Args:
        architecture: A valid architecture of the space.
        dataset: Sets image side and number of classes.
        seed: Which weights.
        batch: Static batch size.
        verbatim: Write dead and `none` edges too.
    """
    return _write(architecture.code, _Seeded(seed), SIDES[dataset], CLASSES[dataset], batch, verbatim)


def from_module(module: Network, side: int, *, batch: int = 1, verbatim: bool = False) -> onnx.ModelProto:
    """The ONNX model of a torch network in evaluation mode, same outputs up to rounding.

    A convolution behind a zero node is written only if training has given it a constant that is not zero.

    Args:
        module: What `NasBench201.build` made.
        side: Height and width of its images.
        batch: Static batch size.
        verbatim: Write dead and `none` edges too.
    """
    return _write(module.code, _FromModule(module), side, module.classes, batch, verbatim)


def _write(
    code: tuple[int, ...], weights: _Weights, side: int, classes: int, batch: int, verbatim: bool
) -> onnx.ModelProto:
    build = _Builder(code, weights, batch, verbatim)
    x = build.conv(_Value(INPUT, {"image": 1.0}), "stem", (CHANNELS[0], 3, 3, 3), side, relu=False)
    now = side
    for stage, channels in enumerate(CHANNELS):
        if stage:
            x = build.reduction(x, f"reductions.{stage - 1}", CHANNELS[stage - 1], channels, now)
            now //= 2
        for cell in range(CELLS):
            x = build.cell(x, f"stages.{stage}.{cell}", channels, now)
    x = x or build.zeros(CHANNELS[-1], now)
    graph = build.graph
    features = graph.global_average(graph.relu(graph.norm(x.name, "norm", *weights.norm(x.moment))))
    logits = graph.linear(features, "head", *weights.head(classes))
    return graph.model("nb201", logits, (batch, 3, side, side), (batch, classes))


class _Builder:
    """Cells and blocks. A value that is zero for every image is None where dead edges are left out."""

    def __init__(self, code: tuple[int, ...], weights: _Weights, batch: int, verbatim: bool) -> None:
        self.graph = OnnxWriter(share=not verbatim)
        self._code, self._weights, self._batch, self._verbatim = code, weights, batch, verbatim

    def cell(self, x: _Value | None, name: str, channels: int, side: int) -> _Value | None:
        nodes: list[_Value | None] = [x]
        for node in (1, 2, 3):
            incoming = [
                self._edge(nodes[source], self._code[i], f"{name}.edges.{i}", channels, side)
                for i, (target, source) in enumerate(EDGES)
                if target == node
            ]
            nodes.append(self._sum(incoming))
        return nodes[3]

    def _edge(self, x: _Value | None, op: int, name: str, channels: int, side: int) -> _Value | None:
        if op == NONE:
            return _Value(self.graph.times(x.name, 0.0)) if self._verbatim and x else None
        if op == SKIP:
            return x
        if op == POOL:
            return self._pool(x, 3, padding=1)
        kernel = 3 if op == CONV3 else 1
        return self.conv(x, name, (channels, channels, kernel, kernel), side)

    def reduction(self, x: _Value | None, name: str, before: int, after: int, side: int) -> _Value | None:
        first = self.conv(x, f"{name}.first", (after, before, 3, 3), side, stride=2)
        second = self.conv(first, f"{name}.second", (after, after, 3, 3), side // 2)
        halved = self._pool(x, 2, stride=2)
        shortcut = self.conv(halved, f"{name}.shortcut", (after, before, 1, 1), side // 2, relu=False)
        return self._sum([shortcut, second])

    def conv(
        self,
        x: _Value | None,
        name: str,
        shape: tuple[int, int, int, int],
        side: int,
        *,
        stride: int = 1,
        relu: bool = True,
    ) -> _Value | None:
        """ReLU where asked for, and a convolution with its norm, on images of `side` pixels."""
        weight, bias = self._weights.conv(name, shape, x.moment if x else 0.0, relu)
        if x is None:
            if not bias.any():
                return None
            x = self.zeros(shape[1], side)
        source = self.graph.relu(x.name) if relu else x.name
        out = self.graph.conv(source, name, weight, bias, stride=stride, padding=shape[2] // 2)
        return _Value(out, {name: 1.0} if x.parts else {})

    def zeros(self, channels: int, side: int) -> _Value:
        shape = (self._batch, channels, side, side)
        return _Value(self.graph.constant(f"zeros_{channels}_{side}", np.zeros(shape, dtype=np.float32)))

    def _pool(self, x: _Value | None, kernel: int, *, stride: int = 1, padding: int = 0) -> _Value | None:
        if x is None:
            return None
        name = self.graph.average_pool(x.name, kernel, stride=stride, padding=padding)
        return _Value(name, {part: _POOLED * amplitude for part, amplitude in x.parts.items()})

    def _sum(self, values: list[_Value | None]) -> _Value | None:
        present = [value for value in values if value is not None]
        if not present:
            return None
        parts: dict[str, float] = {}
        for value in present:
            for part, amplitude in value.parts.items():
                parts[part] = parts.get(part, 0.0) + amplitude
        return _Value(self.graph.add([value.name for value in present]), parts)


# what averaging neighbours leaves of an amplitude: 1/3 for white noise over 3 x 3 pixels, but nearly 1 for what was
# pooled before; repeated 15 times this is about right
_POOLED = 0.9


class _Seeded:
    """He et al. 2015 (arXiv 1502.01852) initialisation divided by the input's size: each output has unit size.

    That is what a norm does; without it, cells of skips multiply amplitudes by 4 each, up to 10^9.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def conv(self, name: str, shape: tuple[int, int, int, int], moment: float, relu: bool) -> tuple[Array, Array]:
        gain = 2.0 if relu else 1.0
        deviation = math.sqrt(gain / (math.prod(shape[1:]) * (moment or 1.0)))
        return self._normal(name, shape, deviation), np.zeros(shape[0], dtype=np.float32)

    def norm(self, moment: float) -> tuple[Array, Array, Array, Array, float]:
        ones, zeros = np.ones(CHANNELS[-1], dtype=np.float32), np.zeros(CHANNELS[-1], dtype=np.float32)
        return ones, zeros, zeros, ones * np.float32(moment or 1.0), 1e-5

    def head(self, classes: int) -> tuple[Array, Array]:
        deviation = math.sqrt(1 / CHANNELS[-1])
        return self._normal("head", (classes, CHANNELS[-1]), deviation), np.zeros(classes, dtype=np.float32)

    def _normal(self, name: str, shape: tuple[int, ...], deviation: float) -> Array:
        return stream(self._seed, 0, name).standard_normal(shape, dtype=np.float32) * np.float32(deviation)


class _FromModule:
    """Weights of a torch network, norms folded: w' = w * g, b' = shift - mean * g, g = scale / sqrt(var + eps)."""

    def __init__(self, module: Network) -> None:
        self._module = module

    def conv(self, name: str, shape: tuple[int, int, int, int], moment: float, relu: bool) -> tuple[Array, Array]:
        del moment, relu
        from torch import nn

        layers = list(self._module.get_submodule(name).children())
        weight = _array(next(layer for layer in layers if isinstance(layer, nn.Conv2d)).weight)
        if weight.shape != shape:
            raise ValueError(f"layer {name} should have weights of shape {shape}, has {weight.shape}")
        norm = next((layer for layer in layers if isinstance(layer, nn.BatchNorm2d)), None)
        if norm is None:
            return weight, np.zeros(shape[0], dtype=np.float32)
        # in double precision, rounded once
        factor = _array(norm.weight) / np.sqrt(_array(norm.running_var).astype(np.float64) + norm.eps)
        bias = _array(norm.bias) - _array(norm.running_mean) * factor
        return (weight * factor[:, None, None, None]).astype(np.float32), bias.astype(np.float32)

    def norm(self, moment: float) -> tuple[Array, Array, Array, Array, float]:
        del moment
        norm = self._module.norm
        scale, shift = _array(norm.weight), _array(norm.bias)
        return scale, shift, _array(norm.running_mean), _array(norm.running_var), norm.eps

    def head(self, classes: int) -> tuple[Array, Array]:
        del classes
        return _array(self._module.head.weight), _array(self._module.head.bias)


def _array(tensor: object) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)  # type: ignore[attr-defined]
