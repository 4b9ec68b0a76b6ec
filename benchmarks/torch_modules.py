"""Torch networks as users write them, for the comparison of exported files with torch: random members of two families
of mobile networks, and modules with what is rare in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIDE = 32
CLASSES = 10


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
    """Inverted residual: 1x1, depthwise, 1x1; in FBNet (Wu et al. 2019) the 1x1 may be grouped, with a shuffle."""

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


class Mobile(nn.Module):
    """A stem, inverted residuals or skips, a head."""

    def __init__(self, blocks: list[nn.Module], before: int, act: type) -> None:
        super().__init__()
        self.stem, self.blocks = conv_norm(3, 16, 3, 2, act=act), nn.Sequential(*blocks)
        self.head, self.classifier = conv_norm(before, 96, 1, act=act), nn.Linear(96, CLASSES)

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def fbnet_like(rng: np.random.Generator) -> nn.Module:
    """FBNet's nine choices for each of eight blocks: expansion 1, 3, 6, kernel 3 or 5, groups 1 or 2, or a skip."""
    return _mobile(
        rng, expansions=(1, 3, 6), kernels=(3, 5), groups=(1, 2), squeeze=(False,), acts=(nn.ReLU,), skips=True
    )


def mobilenet_like(rng: np.random.Generator) -> nn.Module:
    """As MobileNet v2 and v3 and MnasNet choose: kernels to 7, squeeze and excitation, four activations."""
    acts = (nn.ReLU6, nn.Hardswish, nn.SiLU, nn.ReLU)
    return _mobile(
        rng, expansions=(3, 4, 6), kernels=(3, 5, 7), groups=(1,), squeeze=(False, True), acts=acts, skips=False
    )


def _mobile(rng, *, expansions, kernels, groups, squeeze, acts, skips) -> nn.Module:
    blocks: list[nn.Module] = []
    before = 16
    for after, stride in ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (64, 1), (64, 1), (96, 2)):
        if skips and before == after and stride == 1 and rng.random() < 0.2:
            blocks.append(nn.Identity())
            continue
        choice = [options[int(rng.integers(len(options)))] for options in (expansions, kernels, groups, squeeze, acts)]
        expansion, kernel, group, squeezed, act = choice
        blocks.append(Inverted(before, after, expansion, kernel, stride, group, squeezed, act))
        before = after
    return Mobile(blocks, before, acts[0])


class Residual(nn.Module):
    """ResNet's basic block, with sums and activations in place."""

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
        self.stages = nn.Sequential(Residual(16, 16), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class DenseLike(nn.Module):
    """Every layer reads all earlier ones (Huang et al. 2017): concatenations, norms before convolutions."""

    def __init__(self, layers: int = 4, growth: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        widths = [24 + growth * i for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, growth, 3, padding=1)) for w in widths
        )
        self.head = nn.Linear(24 + growth * layers, CLASSES)

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, dim=1)))
        return self.head(F.avg_pool2d(torch.cat(found, dim=1), SIDE).flatten(1))


class Attention(nn.Module):
    """Convolutional patches, then self-attention written by hand, and what a user may add to it."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.patches = heads, nn.Conv2d(3, width, 4, 4)
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)
        self.place = nn.Parameter(torch.randn(1, (SIDE // 4) ** 2, width) * 0.1)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        b, n, c = x.shape
        q, k, v = self.mix(self.norm(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = F.softmax(q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))
        return self.head(F.gelu(x).mean(1))


class Encoder(nn.Module):
    """Down, up, and across (Ronneberger et al. 2015): transposed convolutions, resizing, padding, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(3, 16, 3, act=nn.LeakyReLU), conv_norm(16, 32, 3, 2, act=nn.ELU)
        self.third, self.up = conv_norm(32, 32, 3, 2), nn.ConvTranspose2d(32, 32, 2, 2)
        self.group, self.slope, self.last = nn.GroupNorm(4, 48), nn.PReLU(48), nn.Conv2d(48, CLASSES, 1)

    def forward(self, x):
        a = self.first(x)
        b = self.second(a)
        c = self.up(self.third(b)) + b
        c = F.interpolate(c, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = self.slope(self.group(torch.cat([c, F.pad(a[:, :, 1:, :], (0, 0, 1, 0))], dim=1)))
        return self.last(y).amax(dim=(2, 3))


class Loops(nn.Module):
    """Control flow by shapes, which fx cannot trace and tracing by example can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv_norm(3, 16, 3), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.conv(x)
        while x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


def families(count: int, rng: np.random.Generator) -> Iterator[tuple[str, nn.Module]]:
    """Family and network: `count` random ones of each mobile family, then the others once each."""
    for _ in range(count):
        yield "FBNet-like", fbnet_like(rng)
    for _ in range(count):
        yield "MobileNet-like", mobilenet_like(rng)
    for kind in (ResNetLike, DenseLike, Attention, Encoder, Loops):
        yield "user modules", kind()
