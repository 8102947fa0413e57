"""Augmentation of what a discriminator sees: nothing at p = 0, only what is allowed, differentiable, repeatable."""

from __future__ import annotations

import pytest
import torch

from medgen.adversarial.augmentation import MOST, AugmentationRange, Change, adapted, apply_change, draw_change
from medgen.diffusion.randomness import generators

ALL = AugmentationRange(flip_axes=(0, 1))


def volume(dims: int, channels: int = 3) -> torch.Tensor:
    sizes = (6, 8, 5)[:dims]
    return torch.rand(4, channels, *sizes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_probability_zero_changes_no_byte(dims: int) -> None:
    x = volume(dims)
    made = apply_change(x, draw_change(ALL, x.shape[2:], 0.0, generators(range(4))), 1)
    assert torch.equal(made, x)


@pytest.mark.parametrize("dims", [2, 3])
def test_same_streams_same_bytes_and_gradients_flow(dims: int) -> None:
    x = volume(dims).requires_grad_(True)
    made = [apply_change(x, draw_change(ALL, x.shape[2:], 1.0, generators(range(4))), 1) for _ in range(2)]
    assert torch.equal(*made)
    assert not torch.allclose(made[0], x)
    made[0].sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert bool(x.grad.abs().sum() > 0)


def test_only_allowed_axes_are_mirrored() -> None:
    still = AugmentationRange((1,), shift=0, scale=0, rotation_degrees=0, contrast=0, brightness=0)
    x = volume(3)
    made = apply_change(x, draw_change(still, x.shape[2:], 1.0, generators(range(4))), 1)
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(made, x, strict=True)]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(made, x, strict=True)]
    assert all(a or b for a, b in zip(kept, mirrored, strict=True))
    assert any(mirrored)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_shift_looks_where_it_says(dims: int) -> None:
    x = volume(dims)
    shift = torch.zeros(4, dims)
    shift[:, 1] = 2.0
    change = Change(torch.eye(dims).expand(4, -1, -1), shift, torch.ones(4), torch.zeros(4))
    made = apply_change(x, change, 1)
    assert torch.allclose(made[:, :, :, :-2], x[:, :, :, 2:], atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_only_shifted_is_not_blurred(dims: int) -> None:
    only = AugmentationRange(shift=0.4, scale=0, rotation_degrees=0, contrast=0, brightness=0)
    change = draw_change(only, volume(dims).shape[2:], 1.0, generators(range(4)))
    assert change.shift.any()
    checks = torch.zeros(volume(dims).shape)
    checks[:] = sum(torch.meshgrid(*(torch.arange(n) for n in checks.shape[2:]), indexing="ij")) % 2
    made = apply_change(checks, change, 0)
    assert torch.allclose(made, made.round(), atol=1e-4)


def test_intensities_of_image_channels_only() -> None:
    x = volume(2)
    change = Change(torch.eye(2).expand(4, -1, -1), torch.zeros(4, 2), torch.full((4,), 2.0), torch.ones(4))
    made = apply_change(x, change, 1)
    assert torch.allclose(made[:, :1], 2 * x[:, :1] + 1)
    assert torch.equal(made[:, 1:], x[:, 1:])


def test_probability_follows_the_sign_and_stays_in_range() -> None:
    assert adapted(0.2, sign=0.9, target=0.6, samples=100, samples_to_full=1000) == pytest.approx(0.3)
    assert adapted(0.2, sign=0.1, target=0.6, samples=100, samples_to_full=1000) == pytest.approx(0.1)
    assert adapted(0.0, sign=0.1, target=0.6, samples=100, samples_to_full=1000) == 0
    assert adapted(MOST, sign=0.9, target=0.6, samples=100, samples_to_full=1000) == MOST
