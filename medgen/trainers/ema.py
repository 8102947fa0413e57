"""Averaged weights and the learning rate of a run."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from medgen.trainers.config import Optimisation


class Ema:
    """Exponential moving average of a network's weights (Karras et al. 2022, section 5; warm-up as in TensorFlow's).

    Args:
        network: whose weights are averaged.
        decay: of the average, reached as ``min(decay, (1 + k) / (10 + k))`` at update ``k``.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        """Move the average towards ``network`` after optimiser step ``step`` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        own: list[Tensor] = list(self.network.parameters())
        new: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(own, new, weight)
        for buffer, latest in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(latest)


def learning_rate(step: int, steps: int, settings: Optimisation) -> float:
    """Linear warm-up, then a cosine to zero at ``steps``; a function of the step alone, so that resuming is exact."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
