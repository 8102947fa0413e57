"""Losses and regularisers of adversarial training, pure functions of logits and gradients.

A logit is high where the discriminator takes its input for real. Logits may have any shape: a discriminator of
patches gives one per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``E[softplus(-D(x))] + E[softplus(D(G(z)))]``: Goodfellow et al. 2014 (arXiv:1406.2661), equation 1.

    Args:
        real: logits of real images, any shape.
        fake: logits of generated ones.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def logistic_generator(fake: Tensor) -> Tensor:
    """Non-saturating form ``E[softplus(-D(G(z)))]``: Goodfellow et al. 2014, section 3."""
    return F.softplus(-fake).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]``: Lim and Ye 2017 (arXiv:1705.02894), equation 1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """``-E[D(G(z))]``."""
    return -fake.mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``(E[(D(x) - 1)^2] + E[D(G(z))^2]) / 2``: Mao et al. 2017 (arXiv:1611.04076), equation 9."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def least_squares_generator(fake: Tensor) -> Tensor:
    """``E[(D(G(z)) - 1)^2] / 2``."""
    return (fake - 1).square().mean() / 2


@dataclass(frozen=True)
class AdversarialLoss:
    """The two sides of one game.

    Attributes:
        discriminator: of logits of real and of generated images.
        generator: of logits of generated images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "logistic": AdversarialLoss(logistic_discriminator, logistic_generator),
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    "least_squares": AdversarialLoss(least_squares_discriminator, least_squares_generator),
}


def gradient_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """R1: ``E[|grad_x D(x)|^2] / 2`` on real images (Mescheder et al. 2018, arXiv:1801.04406, equation 9, gamma 1).

    Taken every ``k`` steps and multiplied by ``gamma k`` it is StyleGAN2's lazy regularisation (section 3.1).

    Args:
        logits: ``D(real)``, any shape with the batch first.
        real: ``(B, C, *spatial)``, requires a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


def path_lengths(image: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """``|J_w^T y|`` of each sample: StyleGAN2 (arXiv:1912.04958), equation 4, y the noise over sqrt(voxels).

    Args:
        image: ``G(styles)`` ``(B, C, *spatial)``.
        styles: ``(B, layers, style_dim)``, the leaf that the gradient is taken for.
        noise: standard normal, like ``image``.

    Returns:
        ``(B,)``.
    """
    voxels = image[0, 0].numel()
    (gradient,) = torch.autograd.grad((image * noise).sum() / voxels**0.5, styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """``E[(|J_w^T y| - a)^2]``, ``a`` the running mean of the lengths."""
    return (lengths - mean).square().mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the mean absolute difference of features: pix2pixHD (arXiv:1711.11585), equation 4.

    Args:
        real: features of the discriminator for real images, a tensor per layer; no gradient flows into them.
        fake: the same for generated images of the same conditioning.
    """
    terms = [F.l1_loss(f, r.detach()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def real_sign(logits: Tensor) -> float:
    """``E[sign(D(x))]`` of real images, the sign of overfitting: ADA (arXiv:2006.06676), equation 1."""
    return float(logits.detach().sign().mean())
