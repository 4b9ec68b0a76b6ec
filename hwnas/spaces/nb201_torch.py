"""The networks of NAS-Bench-201 in torch (Dong and Yang, ICLR 2020, figure 1).

Stem (3x3 convolution, norm), three stages of five cells with 16, 32 and 64 channels, a residual block that halves
the image between stages, norm, ReLU, global average, linear classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hwnas.spaces.nb201 import CELLS, CHANNELS, CONV1, CONV3, EDGES, NONE, POOL, SKIP


def relu_conv_norm(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution without bias, batch norm: what an edge called `nor_conv` is."""
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(after))


def _operation(op: int, channels: int) -> nn.Module:
    if op == CONV1:
        return relu_conv_norm(channels, channels, 1)
    if op == CONV3:
        return relu_conv_norm(channels, channels, 3)
    if op == POOL:
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Identity()


class Cell(nn.Module):
    """Four nodes; each but the first sums its incoming edges. A node without any is zero.

    Dead edges are built and computed, as in the benchmark: behind a zero node a convolution with its norm is a
    constant that training can move away from zero.
    """

    def __init__(self, code: Sequence[int], channels: int) -> None:
        super().__init__()
        self.code = tuple(code)
        # a `none` edge keeps its place, so that module i is edge i of the code
        self.edges = nn.ModuleList(_operation(op, channels) for op in code)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes = [x, *[torch.zeros_like(x)] * 3]  # (b, channels, side, side) each
        for (target, source), op, edge in zip(EDGES, self.code, self.edges, strict=True):
            if op != NONE:
                nodes[target] = nodes[target] + (nodes[source] if op == SKIP else edge(nodes[source]))
        return nodes[3]


class Reduction(nn.Module):
    """Residual block between stages: half the side, twice the channels; the shortcut has no norm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = relu_conv_norm(before, after, 3, stride=2)
        self.second = relu_conv_norm(after, after, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = self.second(self.first(x))
        shortcut: torch.Tensor = self.shortcut(x)
        return shortcut + residual


class Network(nn.Module):
    """Images `b x 3 x side x side` to logits `b x classes`.

    Args:
        code: Operation on each edge of the cell.
        classes: Number of classes.
    """

    def __init__(self, code: Sequence[int], classes: int) -> None:
        super().__init__()
        self.code = tuple(code)
        self.classes = classes
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS[0]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Cell(code, channels) for _ in range(CELLS))) for channels in CHANNELS
        )
        self.reductions = nn.ModuleList(Reduction(CHANNELS[i], CHANNELS[i + 1]) for i in range(2))
        self.norm = nn.BatchNorm2d(CHANNELS[-1])
        self.head = nn.Linear(CHANNELS[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = self.stages[0](x)
        for reduction, stage in zip(self.reductions, self.stages[1:], strict=True):
            x = stage(reduction(x))
        features = self.norm(x).relu().mean((2, 3))  # (b, 64)
        logits: torch.Tensor = self.head(features)
        return logits
