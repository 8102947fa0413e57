"""Random patches and holes: every place, the sizes asked for."""

from __future__ import annotations

import numpy as np
import torch

from medgen.patches import random_holes, random_window
from medgen.trainers.config import LONGEST_AXIS


def test_the_largest_hole_is_as_long_as_the_configuration_assumes() -> None:
    """Along one axis, over many draws: close to LONGEST_AXIS diameters, never above."""
    longest = 0.0
    for seed in range(200):
        hole = random_holes((200, 200), (0.5, 0.5), (20.0, 20.0), 1, seed)
        longest = max(longest, float(hole.amax(2).sum()) * 0.5)
    assert 0.97 * LONGEST_AXIS * 20 < longest <= LONGEST_AXIS * 20 + 0.5


def test_windows_reach_every_place() -> None:
    stream = torch.Generator().manual_seed(0)
    starts = {random_window((6, 4), (3, 4), stream)[1].start for _ in range(60)}
    assert starts == {0, 1, 2, 3}


def test_holes_have_the_size_asked_for() -> None:
    for seed in range(5):
        hole = random_holes((48, 48, 48), (2.0, 2.0, 2.0), (30.0, 30.0), 1, seed)
        volume = float(hole.sum()) * 8
        assert 0.6 < volume / (4 / 3 * np.pi * 15**3) < 1.5
        assert set(hole.unique().tolist()) == {0.0, 1.0}
