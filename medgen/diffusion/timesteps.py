"""Between noise levels and the timesteps that a network was trained with.

A network knows its noise level as a timestep: the index in a chain of betas (DDPM, latent diffusion), or the time of a
rectified flow. Here both become functions of sigma, continuous, so that any sampler and schedule can be used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count
from medgen.diffusion.schedules import alphas_cumprod_to_sigmas, flow_sigmas, spaced_timesteps

HIGHEST_SIGMA = 1e6
"""Levels above stand for it: a chain with zero terminal signal has an infinite one."""


class Timesteps(Protocol):
    """What a network is fed at each noise level."""

    num_train_timesteps: int

    def __call__(self, sigma: Tensor) -> Tensor:
        """Timesteps of noise levels ``(B,)``, float64, not rounded."""

    def sigmas(self, num_inference_steps: int, spacing: str = "trailing") -> Tensor:
        """Noise levels of one run, high to low, ending at 0."""


@dataclass(frozen=True)
class ChainTimesteps:
    """Timesteps of a chain of betas: index ``t`` where ``sigma = levels[t]``, in between linear in ``log sigma``.

    Args:
        levels: sigma of every training timestep, rising, ``(num_train_timesteps,)`` float64.

    Example:
        >>> chain = ChainTimesteps(torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64))
        >>> chain(torch.tensor([10.0, 1.0, 0.1, 0.01])).round(decimals=6).tolist()
        [2.0, 1.0, 0.0, 0.0]
        >>> chain.sigmas(3).tolist()
        [10.0, 1.0, 0.1, 0.0]
    """

    levels: Tensor

    def __post_init__(self) -> None:
        levels = self.levels.double().clamp(max=HIGHEST_SIGMA)
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels[1:] > levels[:-1]).all()) or levels[0] <= 0:
            raise MedgenError(
                "ChainTimesteps: levels must be a row of rising noise levels above 0. Got "
                f"{[round(x, 4) for x in self.levels.flatten()[:4].tolist()]}... Give the scheduler's alphas_cumprod."
            )
        object.__setattr__(self, "levels", levels)

    @classmethod
    def of(cls, alphas_cumprod: Tensor) -> ChainTimesteps:
        """The chain with these ``alpha_bar``, in order of timesteps."""
        return cls(alphas_cumprod_to_sigmas(alphas_cumprod.clamp(min=1e-12)))

    @property
    def num_train_timesteps(self) -> int:
        """Length of the chain."""
        return len(self.levels)

    def __call__(self, sigma: Tensor) -> Tensor:
        """See :class:`Timesteps`; beyond the chain its ends."""
        log, table = sigma.detach().cpu().double().clamp(min=1e-12).log(), self.levels.log()
        above = torch.searchsorted(table, log).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + ((log - low) / (high - low)).clamp(0, 1)

    def sigmas(self, num_inference_steps: int, spacing: str = "trailing") -> Tensor:
        """The levels that :func:`~medgen.diffusion.schedules.spaced_timesteps` keeps, and 0."""
        kept = self.levels[spaced_timesteps(num_inference_steps, self.num_train_timesteps, spacing)]
        return torch.cat([kept, kept.new_zeros(1)])


@dataclass(frozen=True)
class FlowTimesteps:
    """Timesteps of a rectified flow: ``num_train_timesteps * sigma / (1 + sigma)``.

    Args:
        num_train_timesteps: what time 1 is called.
        shift: of the run's levels, see :func:`~medgen.diffusion.schedules.flow_sigmas`.

    Example:
        >>> FlowTimesteps()(torch.tensor([1.0, 3.0])).tolist()
        [500.0, 750.0]
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    def __call__(self, sigma: Tensor) -> Tensor:
        """See :class:`Timesteps`."""
        level = sigma.detach().cpu().double()
        return self.num_train_timesteps * level / (1 + level)

    def sigmas(self, num_inference_steps: int, spacing: str = "trailing") -> Tensor:
        """Levels uniform in (shifted) flow time; time 1, sigma infinite, is replaced by the last before it."""
        highest = float(self.num_train_timesteps - 1)
        return flow_sigmas(num_inference_steps, 1 / self.num_train_timesteps, highest, shift=self.shift)


def _linear(count: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Betas of Ho et al. 2020."""
    return torch.linspace(beta_start, beta_end, count, dtype=torch.float64)


def _scaled_linear(count: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Betas of Rombach et al. 2022."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64) ** 2


def _sigmoid(count: int, beta_start: float = 1e-4, beta_end: float = 0.02, sig_range: float = 6.0) -> Tensor:
    """Betas of MONAI's ``sigmoid_beta``."""
    ramp = torch.linspace(-sig_range, sig_range, count, dtype=torch.float64)
    return torch.sigmoid(ramp) * (beta_end - beta_start) + beta_start


def _cosine(count: int, s: float = 0.008) -> Tensor:
    """Betas of Nichol and Dhariwal 2021, equation 17, cut at 0.999."""
    time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    alpha_bar = torch.cos((time + s) / (1 + s) * torch.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS: dict[str, Callable[..., Tensor]] = {
    "linear_beta": _linear,
    "scaled_linear_beta": _scaled_linear,
    "sigmoid_beta": _sigmoid,
    "cosine": _cosine,
}
"""Chains by MONAI's names, with MONAI's arguments."""


def make_timesteps(form: Mapping[str, Any]) -> ChainTimesteps | FlowTimesteps:
    """The timesteps that plain values describe.

    Args:
        form: ``schedule``, one of ``BETAS`` or ``flow``; ``num_train_timesteps`` (1000); what that schedule takes.

    Returns:
        The function of sigma.

    Raises:
        MedgenError: an unknown schedule or argument, or a count that is none.

    Example:
        >>> make_timesteps({"schedule": "linear_beta", "num_train_timesteps": 10}).num_train_timesteps
        10
        >>> make_timesteps({"schedule": "linear_beta", "beta_stop": 0.1})
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: make_timesteps: argument of 'linear_beta' must be one of beta_start, beta_end; \
got 'beta_stop'. Did you mean 'beta_start'?
    """
    options = dict(form)
    schedule, count = options.pop("schedule", "flow"), options.pop("num_train_timesteps", 1000)
    check_choice("make_timesteps", "schedule", schedule, (*BETAS, "flow"))
    check_count("make_timesteps", "num_train_timesteps", count)
    function = FlowTimesteps if schedule == "flow" else BETAS[schedule]
    for name in options:
        known = list(inspect.signature(function).parameters)[1:]
        check_choice("make_timesteps", f"argument of '{schedule}'", name, known)
    if schedule == "flow":
        return FlowTimesteps(count, **options)
    return ChainTimesteps.of(torch.cumprod(1 - BETAS[schedule](count, **options), dim=0))
