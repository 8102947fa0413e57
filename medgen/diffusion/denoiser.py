"""The one interface of every diffusion model: ``denoise(x, sigma, conditioning) -> x0``.

A noisy sample is always ``x = x0 + sigma * n`` with ``n ~ N(0, I)``. Networks trained in other
conventions (variance preserving, flow) are wrapped here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from medgen.checks import check_choice, check_positive

Conditioning = Mapping[str, Tensor]


class Denoiser(Protocol):
    """The expected clean sample given a noisy one.

    Args:
        x: noisy sample ``(B, C, *spatial)``, ``x = x0 + sigma * n``.
        sigma: noise level of each sample, ``(B,)``.
        conditioning: what the network is told besides; ``"concat"`` ``(B, K, *spatial)`` is joined to
            the input, ``"context"`` and ``"class_labels"`` go to the network under MONAI's names.
    """

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Preconditioning:
    """Coefficients of ``D(x) = c_skip * x + c_out * F(c_in * x)`` at given noise levels, each ``(B,)`` float64."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def edm(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """Karras et al. 2022 (arXiv:2206.00364), table 1, last column."""
    total = sigma**2 + sigma_data**2
    return Preconditioning(sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt())


def epsilon(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """F predicts the noise: ``x0 = x - sigma * F`` (Ho et al. 2020, equation 9), input scaled to unit variance."""
    return Preconditioning(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt())


def v_prediction(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """F predicts ``v = alpha n - s x0`` with ``alpha = (1 + sigma**2)**-0.5``, ``s = sigma alpha``.

    Salimans and Ho 2022 (arXiv:2202.00512), section 4: ``x0 = alpha z - s v`` with ``z = alpha x``.
    """
    alpha = (1 + sigma**2).rsqrt()
    return Preconditioning(alpha**2, -sigma * alpha, alpha)


def sample(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """F predicts the clean sample itself."""
    return Preconditioning(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2).rsqrt())


def flow(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """F predicts the velocity ``n - x0`` at ``z = (1 - t) x0 + t n``, ``t = sigma / (1 + sigma)``.

    Liu et al. 2022 (arXiv:2209.03003), Lipman et al. 2022 (arXiv:2210.02747): ``x0 = z - t F``, ``z = (1 - t) x``.
    """
    t = sigma / (1 + sigma)
    return Preconditioning(1 - t, -t, 1 - t)


PREDICTION_TYPES: dict[str, Callable[[Tensor, float], Preconditioning]] = {
    "edm": edm,
    "epsilon": epsilon,
    "v_prediction": v_prediction,
    "sample": sample,
    "flow": flow,
}


def network_time(sigma: Tensor) -> Tensor:
    """What MONAI's sinusoidal embedding is fed: ``1000 * sigma / (1 + sigma)``, in [0, 1000)."""
    return 1000 * sigma / (1 + sigma)


class Preconditioned(nn.Module):
    """A denoiser over any network with MONAI's signature ``network(x, timesteps, context, class_labels)``.

    Args:
        network: maps ``(B, C [+ K], *spatial)`` to ``(B, C, *spatial)``.
        prediction_type: what the network predicts, one of ``PREDICTION_TYPES``.
        sigma_data: standard deviation of the clean samples (used by ``edm``).
        times: from noise levels to the network's timesteps, see :mod:`medgen.diffusion.timesteps`.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction_type: str = "edm",
        sigma_data: float = 1.0,
        times: Callable[[Tensor], Tensor] = network_time,
    ) -> None:
        super().__init__()
        check_choice("Preconditioned", "prediction_type", prediction_type, PREDICTION_TYPES)
        check_positive("Preconditioned", "sigma_data", sigma_data)
        self.network = network
        self.prediction_type = prediction_type
        self.sigma_data = sigma_data
        self.times = times

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        """Preconditioning at ``sigma`` ``(B,)``, in float64."""
        return PREDICTION_TYPES[self.prediction_type](exact(sigma), self.sigma_data)

    def raw(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """The network's own output ``F(c_in * x)`` ``(B, C, *spatial)``."""
        given = dict(conditioning or {})
        concat = given.pop("concat", None)
        scaled = x * _column(self.coefficients(sigma).c_in, x)
        inputs = scaled if concat is None else torch.cat([scaled, concat.to(x.dtype)], dim=1)
        output: Tensor = self.network(inputs, timesteps=_like(self.times(exact(sigma)), x), **given)
        return output

    def forward(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Expected clean sample; see :class:`Denoiser`."""
        c = self.coefficients(sigma)
        return _column(c.c_skip, x) * x + _column(c.c_out, x) * self.raw(x, sigma, conditioning)


def exact(sigma: Tensor) -> Tensor:
    """Noise levels in float64 on the CPU: Apple's GPUs have no float64."""
    return sigma.detach().cpu().double()


def _like(values: Tensor, like: Tensor) -> Tensor:
    """First the type, then the device of ``like``."""
    return values.to(like.dtype).to(like.device)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` float64 to ``(B, 1, ...)`` in the type and device of ``like``."""
    return _like(values, like).reshape(-1, *[1] * (like.ndim - 1))
