"""Torch networks as users write them, small enough for tests; their blocks are those of benchmarks/torch_modules.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from torch_modules import Inverted, Loops, Residual, conv_norm

__all__ = ["Branches", "FBNetLike", "Loops", "Pair", "ResNetLike", "Unknown", "Various"]


class FBNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3, 2, act=nn.Hardswish)
        self.blocks = nn.Sequential(
            Inverted(16, 16, 1, 3, 1),
            Inverted(16, 24, 6, 3, 2, squeeze=True),
            Inverted(24, 24, 3, 5, 1, groups=2, act=nn.Hardswish),
            Inverted(24, 40, 3, 5, 2, squeeze=True, act=nn.SiLU),
            Inverted(40, 40, 6, 3, 1, groups=2, squeeze=True, act=nn.ReLU6),
        )
        self.head = nn.Sequential(conv_norm(40, 64, 1, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, x):
        return self.classifier(self.head(self.blocks(self.stem(x))))


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(Residual(16, 16), Residual(16, 32, 2), Residual(32, 32), Residual(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.stages(self.stem(x)), 1), 1))


class Various(nn.Module):
    """Many things that a graph of functions may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5), padding=(2, 4), dilation=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.group = nn.GroupNorm(2, 8)
        self.slope = nn.PReLU(8)
        self.layer = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0] * 4).view(1, 8, 1, 1))
        self.register_buffer("grid", torch.linspace(-1, 1, 16))

    def forward(self, x):
        b, _, h, w = x.shape
        y = self.slope(self.group(self.conv(x))) * self.scale
        left, right = y.chunk(2, dim=1)
        y = torch.cat([F.gelu(left), F.gelu(right, approximate="tanh")], dim=1)[:, ::2, 1:, ...]
        y = F.pad(y, (0, 0, 1, 0), value=0.5)
        y = torch.cat([y, F.avg_pool2d(y, 3, 1, 1), F.max_pool2d(y, 3, 1, 1)], 1)[:, :8]
        y = self.up(F.interpolate(y, scale_factor=0.5, mode="nearest"))
        y = self.layer(self.mix(y).view(b, 8, h, w) + self.grid)
        y = y.permute(0, 2, 3, 1).transpose(1, 3).reshape(b, 8, -1)
        attention = F.softmax(torch.matmul(y, y.transpose(1, 2)) / y.size(-1) ** 0.5, dim=-1)
        y = (attention @ y).mean(-1) - y.clamp(-1, 1).pow(2).sum(dim=2) * 1e-2
        return torch.stack([y, -y.sigmoid()], dim=1).unsqueeze(-1).squeeze(-1)[:, 0]


class Branches(nn.Module):
    """Control flow by data: no static graph does the same."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


class Unknown(nn.Module):
    """An operator that ONNX has no counterpart for."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


class Pair(nn.Module):
    """Two inputs, two outputs."""

    def forward(self, a, b):
        return a + b, a * b
