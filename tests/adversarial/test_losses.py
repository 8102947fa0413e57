"""Adversarial losses and penalties against values known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from medgen.adversarial.losses import (
    ADVERSARIAL_LOSSES,
    feature_matching,
    gradient_penalty,
    path_length_penalty,
    path_lengths,
    real_sign,
)

KNOWN = {  # discriminator at real 2 and fake -3; generator at fake -3
    "logistic": (math.log1p(math.exp(-2)) + math.log1p(math.exp(-3)), math.log1p(math.exp(3))),
    "hinge": (0.0, 3.0),
    "least_squares": ((1 + 9) / 2, 16 / 2),
}


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_values(name: str) -> None:
    loss, (discriminator, generator) = ADVERSARIAL_LOSSES[name], KNOWN[name]
    real, fake = torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -3.0)
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-5)
    assert loss.generator(fake).item() == pytest.approx(generator, rel=1e-5)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_each_side_gains_by_what_the_other_loses(name: str) -> None:
    loss = ADVERSARIAL_LOSSES[name]
    logit = torch.full((4,), 0.5, requires_grad=True)
    (up,) = torch.autograd.grad(loss.discriminator(torch.ones(4), logit), logit)
    (down,) = torch.autograd.grad(loss.generator(logit), logit)
    assert bool((up > 0).all()), "a discriminator lowers the logits of generated images"
    assert bool((down < 0).all()), "a generator raises them"


def test_gradient_penalty_of_a_linear_discriminator_is_half_its_squared_norm() -> None:
    weight = torch.randn(12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    real = torch.ones(3, 1, 3, 4, requires_grad=True)
    penalty = gradient_penalty(real.flatten(1) @ weight, real)
    assert penalty.item() == pytest.approx(float(weight.detach().square().sum()) / 2, rel=1e-5)
    penalty.backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, weight.detach(), atol=1e-5)


def test_path_length_of_a_linear_generator() -> None:
    stream = torch.Generator().manual_seed(1)
    matrix = torch.randn(5, 6, generator=stream)
    styles = torch.randn(2, 3, 5, generator=stream).requires_grad_(True)
    noise = torch.randn(2, 1, 2, 3, generator=stream)
    image = (styles.sum(1) @ matrix).reshape(2, 1, 2, 3)
    expected = (noise.flatten(1) @ matrix.T).norm(dim=1) / math.sqrt(6)
    lengths = path_lengths(image, styles, noise)
    assert torch.allclose(lengths, expected, atol=1e-5)
    assert path_length_penalty(lengths, lengths.mean()).item() == pytest.approx(
        lengths.var(unbiased=False).item(), rel=1e-4
    )


def test_feature_matching_is_zero_for_equal_features_and_sends_no_gradient_to_real_ones() -> None:
    real, fake = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    assert feature_matching([real, real], [real, real]).item() == 0
    loss = feature_matching([real, real * 2], [fake, fake])
    assert loss.item() == pytest.approx(1.5)
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None


def test_real_sign() -> None:
    assert real_sign(torch.tensor([1.0, 2.0, -1.0, 3.0])) == pytest.approx(0.5)
