"""A small network that learns to tell generated patches from real ones; its AUC on other subjects is the figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.metrics import classification_auc
from tests.bench.cases import Array, Case


def patch_auc(
    real: Sequence[Array],
    made: Sequence[Array],
    cases: Sequence[Case],
    *,
    size: int = 16,
    per_subject: int = 64,
    steps: int = 250,
    repeats: int = 3,
) -> float:
    """AUC of real against generated brain patches, trained on the first half of the subjects and tested on the rest.

    Real and generated patches lie at the same places of the same subjects. Patches are standardised one by one, so
    that a global shift of intensity is no clue.

    Args:
        real: reference images ``(X, Y, Z)``.
        made: generated images of the same labels.
        cases: of the images.
        size: voxels along an edge of a patch.
        per_subject: patches of each image.
        steps: of training, 64 patches each.
        repeats: trainings from other weights; their mean AUC is returned.

    Returns:
        0.5 where nothing tells them apart, 1.0 where everything does.
    """
    half = len(cases) // 2
    drawn = [_draw(r, m, case, size, per_subject) for r, m, case in zip(real, made, cases, strict=True)]
    train = [torch.cat([pair[k] for pair in drawn[:half]]) for k in (0, 1)]
    test = [torch.cat([pair[k] for pair in drawn[half:]]) for k in (0, 1)]
    return float(np.mean([_one_auc(train, test, steps, seed) for seed in range(repeats)]))


def _one_auc(train: Sequence[Tensor], test: Sequence[Tensor], steps: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv3d(1, 16, 3), nn.LeakyReLU(0.1), nn.Conv3d(16, 32, 3, stride=2), nn.LeakyReLU(0.1)),
            *(nn.Conv3d(32, 32, 3), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 1)),
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(steps):
        parts = [rows[torch.randint(len(rows), (32,), generator=generator)] for rows in train]
        axes = [a + 2 for a in range(3) if torch.rand((), generator=generator) < 0.5]
        logits = network(torch.cat(parts).flip(axes))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat([torch.zeros(32), torch.ones(32)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        negative, positive = (torch.cat([network(part)[:, 0] for part in rows.split(64)]) for rows in test)
    return classification_auc(positive.numpy(), negative.numpy())


def _draw(real: Array, made: Array, case: Case, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Patches ``(count, 1, size, size, size)`` of both images about the same random voxels of the brain."""
    half = size // 2
    middle = np.zeros(case.groups.shape, bool)
    middle[half:-half, half:-half, half:-half] = True
    places = np.argwhere(case.brain & middle)
    chosen = places[np.random.default_rng(case.seed % 2**32).choice(len(places), count)]
    found = []
    for image in (real, made):
        rows = [image[tuple(slice(c - half, c + half) for c in place)] for place in chosen]
        stack = torch.from_numpy(np.stack(rows)).float()[:, None]
        found.append((stack - stack.mean((2, 3, 4), keepdim=True)) / (stack.std((2, 3, 4), keepdim=True) + 1e-3))
    return found[0], found[1]
