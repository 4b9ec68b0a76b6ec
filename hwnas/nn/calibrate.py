"""Batch norm statistics for networks that were never trained.

In evaluation mode an untrained network normalises with mean 0 and variance 1: in a deep one activations then vanish
and the logits are little more than the last bias, so comparing outputs would prove nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def calibrate(
    module: nn.Module, input_shape: tuple[int, ...], *, rng: np.random.Generator, batch: int = 32, passes: int = 1
) -> nn.Module:
    """Set every batch norm's running statistics to those of standard normal images.

    Args:
        module: Changed in place: running statistics only; it ends in evaluation mode.
        input_shape: Without batch; of images channels, height, width.
        rng: Draws the images.
        batch: Images per pass.
        passes: Train-mode passes; the statistics are their plain average.

    Returns:
        `module`.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
    module.train()
    weight = next(module.parameters())
    with torch.no_grad():
        for _ in range(passes):
            images = rng.standard_normal((batch, *input_shape), dtype=np.float32)
            module(torch.from_numpy(images).to(weight.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()
