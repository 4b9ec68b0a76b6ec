"""A search space of 81 networks and an evaluator with planted answers: for tests of everything else.

The whole truth about it can be listed in a millisecond, so a test can compare with the exact Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core import pareto
from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.errors import InvalidArchitecture, UnknownName
from hwnas.spaces import codes
from hwnas.spaces.onnx_writer import INPUT, OnnxWriter

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPS = ("skip", "conv", "pool")
EDGES = ((0, 1), (0, 3), (1, 2), (2, 5), (3, 4), (4, 5))
DATASET = "toy"
DEVICE = "toybox"
PHONE = "toyphone"  # a second device, with another taste
_CHANNELS, _CLASSES, _SIDE = 4, 3, 8
_CONV = 1


class ToySpace:
    """Two parallel branches of two operations, summed: 4 positions x 3 choices = 81 codes, 28 functions.

    Code positions: first and second operation of branch a, then of branch b; 0 skip, 1 conv (3x3, ReLU),
    2 pool (3x3 average). `format` writes "conv-skip|pool-conv".
    """

    name = "toy"
    choices: tuple[int, ...] = (3, 3, 3, 3)
    datasets: tuple[str, ...] = (DATASET,)

    def validate(self, architecture: Architecture) -> None:
        codes.validate(self, architecture, ("branch a, 1st", "branch a, 2nd", "branch b, 1st", "branch b, 2nd"))

    def canonical(self, architecture: Architecture) -> Architecture:
        """Skips stand first in their branch and the smaller branch first: addition commutes."""
        self.validate(architecture)
        code = architecture.code
        branches = sorted(_skip_first(branch) for branch in (code[:2], code[2:]))
        return Architecture(self.name, branches[0] + branches[1])

    def to_graph(self, architecture: Architecture) -> ArchGraph:
        self.validate(architecture)
        return ArchGraph(("input", *(OPS[op] for op in architecture.code), "output"), EDGES)

    def from_graph(self, graph: ArchGraph) -> Architecture:
        if graph.edges != EDGES or graph.n != 6 or (graph.ops[0], graph.ops[-1]) != ("input", "output"):
            raise InvalidArchitecture(
                f"a graph of space 'toy' has input, 4 operations, output and the edges {EDGES}; got {graph}"
            )
        return Architecture(self.name, tuple(_op(name, i) for i, name in enumerate(graph.ops[1:-1])))

    def format(self, architecture: Architecture) -> str:
        self.validate(architecture)
        a, b, c, d = (OPS[op] for op in architecture.code)
        return f"{a}-{b}|{c}-{d}"

    def parse(self, text: str) -> Architecture:
        if text.startswith("toy:"):
            architecture = Architecture.from_key(text)
            self.validate(architecture)
            return architecture
        names = [name for branch in text.split("|") for name in branch.split("-")]
        if text.count("|") != 1 or text.count("-") != 2 or len(names) != 4:
            raise InvalidArchitecture(f"a toy architecture reads 'conv-skip|pool-conv', got {text!r}")
        return Architecture(self.name, tuple(_op(name, i) for i, name in enumerate(names)))

    def complexity(self, architecture: Architecture, dataset: str) -> Mapping[str, float]:
        """Parameters and multiply-accumulates of stem, convolutions and classifier, in millions."""
        self.validate(architecture)
        self.input_shape(dataset)
        convs = architecture.code.count(_CONV)
        stem, conv, head = 2 * _CHANNELS * 9, _CHANNELS * _CHANNELS * 9, _CHANNELS * _CLASSES
        params = stem + _CHANNELS + convs * (conv + _CHANNELS) + head + _CLASSES
        macs = (stem + convs * conv) * _SIDE * _SIDE + head
        return {"params_m": params / 1e6, "macs_m": macs / 1e6}

    def input_shape(self, dataset: str) -> tuple[int, int, int]:
        if dataset not in self.datasets:
            raise UnknownName("data set", dataset, self.datasets)
        return (2, _SIDE, _SIDE)

    def build(self, architecture: Architecture, dataset: str) -> nn.Module:
        self.validate(architecture)
        self.input_shape(dataset)
        return _build(architecture.code)

    def to_onnx(
        self,
        architecture: Architecture,
        dataset: str,
        *,
        seed: int = 0,
        batch: int = 1,
        verbatim: bool = False,
    ) -> onnx.ModelProto:
        """Weights come from `seed`; `verbatim` writes a skip as a product with 1."""
        self.validate(architecture)
        self.input_shape(dataset)
        return _to_onnx(architecture.code, _weights(architecture.code, seed), batch, verbatim)


def onnx_of(module: Any, batch: int = 1) -> onnx.ModelProto:
    """The ONNX model with the weights of a module that `ToySpace.build` made."""
    weights = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return _to_onnx(module.code, weights, batch, verbatim=False)


class ToyEvaluator:
    """Planted objectives, equal for architectures that compute the same function.

    Answers val_error_pct, params_m and macs_m anywhere, latency_ms and energy_mj on the device "toybox", latency_ms on
    the device "toyphone". Error falls with convolutions and latency on the first device grows with them; networks with
    three or four pools cannot be measured there: status `not_measured`, no number. On the other it grows with pools
    instead, and networks of four convolutions cannot be measured.

    Attributes:
        asked: Every (architecture, metric) that was paid, in order.
    """

    name = "toy"

    def __init__(self) -> None:
        self.asked: list[tuple[Architecture, str]] = []
        self._space = ToySpace()

    def context(self, metric: str, device: str | None) -> Context | None:
        if metric == "val_error_pct" and device is None:
            return Context(Source.TABLE, dataset=DATASET, split="val", origin="toy")
        if metric in ("params_m", "macs_m") and device is None:
            return Context(Source.MEASURED, runtime="count", dataset=DATASET)
        if (metric in ("latency_ms", "energy_mj") and device == DEVICE) or (metric, device) == ("latency_ms", PHONE):
            return Context(Source.TABLE, device=device, precision="fp32", batch=1, dataset=DATASET, origin="toy")
        return None

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        for architecture in architectures:
            for metric, device in wanted:
                self.asked.append((architecture, metric))
                yield self._measure(architecture, metric, device)

    def _measure(self, architecture: Architecture, metric: str, device: str | None) -> Measurement:
        context = self.context(metric, device)
        if context is None:
            raise ValueError(f"ToyEvaluator does not answer {metric} on device {device!r}")
        value = self.truth(architecture, metric, device)
        if math.isnan(value):
            what = "convolutions" if device == PHONE else "pools"
            message = f"{self._space.format(architecture)} has no {metric} on {device}: too many {what}"
            return Measurement.failed(architecture, metric, context, Status.NOT_MEASURED, message)
        return Measurement(architecture, metric, value, context)

    def truth(self, architecture: Architecture, metric: str, device: str | None = DEVICE) -> float:
        """The planted value; nan where it cannot be measured. Counts as no query."""
        code = self._space.canonical(architecture).code
        convs, pools = code.count(1), code.count(2)
        if metric in ("params_m", "macs_m"):
            return float(self._space.complexity(architecture, DATASET)[metric])
        if metric == "val_error_pct":
            both = 1 in code[:2] and 1 in code[2:]
            mixed = (1, 2) in (code[:2], code[2:])  # a convolution that is pooled afterwards is the best of all
            return 60.0 - 30.0 * (1 - math.exp(-0.7 * convs)) - 4.0 * both - 5.0 * mixed - 1.5 * min(pools, 1)
        if device == PHONE:
            return math.nan if convs == 4 else 0.4 + 0.1 * convs + 0.9 * pools
        if pools >= 3:
            return math.nan
        latency = 0.5 + 1.0 * convs + 0.3 * pools + 0.2 * (code[0] != code[2])
        return latency if metric == "latency_ms" else 2.0 * latency + 0.7 * pools

    def front(self, wanted: Sequence[tuple[str, str | None]]) -> tuple[list[Architecture], NDArray[np.float64]]:
        """The exact Pareto front of the whole space: `k` architectures (all ties) and their `k x m` values."""
        every = list(codes.every(self._space))
        values = np.array([[self.truth(a, metric, device) for metric, device in wanted] for a in every])
        measured = np.flatnonzero(~np.isnan(values).any(axis=1))
        rows = measured[pareto.non_dominated(values[measured])]
        return [every[i] for i in rows], values[rows]


def _skip_first(branch: tuple[int, ...]) -> tuple[int, ...]:
    return (0, branch[0]) if branch[1] == 0 else branch


def _op(name: str, position: int) -> int:
    if name not in OPS:
        raise InvalidArchitecture(f"position {position} must be one of {', '.join(OPS)}; got {name!r}")
    return OPS.index(name)


def _build(code: tuple[int, ...]) -> nn.Module:
    import torch
    from torch import nn

    class ToyNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = code
            self.stem = nn.Conv2d(2, _CHANNELS, 3, padding=1)
            kinds: dict[str, Callable[[], nn.Module]] = {
                "skip": nn.Identity,
                "conv": lambda: nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1),
                "pool": lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
            }
            self.ops = nn.ModuleList(kinds[OPS[op]]() for op in code)
            self.head = nn.Linear(_CHANNELS, _CLASSES)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.stem(images)
            a = self._apply_op(1, self._apply_op(0, x))
            b = self._apply_op(3, self._apply_op(2, x))
            logits: torch.Tensor = self.head((a + b).mean((2, 3)))
            return logits

        def _apply_op(self, position: int, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.ops[position](x)
            return y.relu() if code[position] == _CONV else y

    return ToyNetwork()


def _weights(code: tuple[int, ...], seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"stem": (_CHANNELS, 2, 3, 3)}
    shapes |= {f"ops.{i}": (_CHANNELS, _CHANNELS, 3, 3) for i, op in enumerate(code) if op == _CONV}
    shapes["head"] = (_CLASSES, _CHANNELS)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        scale = math.sqrt(2 / math.prod(shape[1:]))
        weights[f"{name}.weight"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], dtype=np.float32)
    return weights


def _to_onnx(
    code: tuple[int, ...], weights: Mapping[str, NDArray[np.float32]], batch: int, verbatim: bool
) -> onnx.ModelProto:
    graph = OnnxWriter(share=not verbatim)

    def conv(x: str, name: str) -> str:
        return graph.conv(x, name, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def apply_op(x: str, position: int) -> str:
        if OPS[code[position]] == "conv":
            return graph.relu(conv(x, f"ops.{position}"))
        if OPS[code[position]] == "pool":
            return graph.average_pool(x, 3, padding=1)
        return graph.times(x, 1.0) if verbatim else x

    stem = conv(INPUT, "stem")
    ends = [apply_op(apply_op(stem, 0), 1), apply_op(apply_op(stem, 2), 3)]
    features = graph.global_average(graph.add(ends))
    logits = graph.linear(features, "head", weights["head.weight"], weights["head.bias"])
    return graph.model("toy", logits, (batch, 2, _SIDE, _SIDE), (batch, _CLASSES))
