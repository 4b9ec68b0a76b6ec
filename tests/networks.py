"""Torch networks as users write them, small enough for tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv_norm(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU):
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([act()] if act else []))


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.relu(self.down(self.pool(x)), inplace=True)))


class Shuffle(nn.Module):
    """Channel shuffle (Zhang et al. 2018)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x):
        b, c, h, w = x.size()
        return x.view(b, self.groups, c // self.groups, h, w).permute(0, 2, 1, 3, 4).contiguous().view(b, c, h, w)


class Inverted(nn.Module):
    """Inverted residual of FBNet: grouped 1x1, depthwise, grouped 1x1."""

    def __init__(self, before, after, expansion, kernel, stride, groups=1, squeeze=False, act=nn.ReLU) -> None:
        super().__init__()
        middle = before * expansion
        self.layers = nn.Sequential(
            conv_norm(before, middle, 1, groups=groups, act=act),
            Shuffle(groups) if groups > 1 else nn.Identity(),
            conv_norm(middle, middle, kernel, stride, groups=middle, act=act),
            Squeeze(middle) if squeeze else nn.Identity(),
            conv_norm(middle, after, 1, groups=groups, act=None),
        )
        self.skip = stride == 1 and before == after

    def forward(self, x):
        return x + self.layers(x) if self.skip else self.layers(x)


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


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.second, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = conv_norm(before, after, 1, stride, act=None) if stride > 1 or before != after else None

    def forward(self, x):
        out = self.norm2(self.second(self.relu(self.norm1(self.first(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


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


class Loops(nn.Module):
    """Control flow by shapes, which fx cannot trace and tracing by example can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv_norm(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x)
        while x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


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
