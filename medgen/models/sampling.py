"""The default way to sample a diffusion model: the typed content of ``sampling`` in ``medgen.json``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError
from medgen.models.fields import Checked, checked, choice, integer, number, optional, options, refuse, sequence

if TYPE_CHECKING:
    import torch


def _samplers() -> Iterable[str]:
    from medgen.diffusion.samplers import SAMPLERS

    return SAMPLERS


def _schedules() -> Iterable[str]:
    from medgen.diffusion.schedules import SCHEDULES

    return SCHEDULES


@dataclass(frozen=True)
class Sampling(Checked):
    """Default way to sample a model.

    Args:
        sampler: a name in ``medgen.diffusion.samplers.SAMPLERS``.
        num_inference_steps: steps of one run.
        schedule: a name in ``medgen.diffusion.schedules.SCHEDULES``.
        sigma_min: last noise level, in units of the standardised data.
        sigma_max: first noise level, same unit.
        guidance_scale: classifier-free guidance, 1 = off.
        guidance_interval: lowest and highest noise level with guidance, None = all.
        sampler_options: further arguments of the sampler.
        schedule_options: further arguments of the schedule (``rho``, ``shift``).
        mean_weight: share of what was learnt beyond the reference that the mean output of ``inpaint`` adds to it: a
            shrinkage, to be chosen on scans of other people than those trained on.
    """

    sampler: str = checked(choice(_samplers))
    num_inference_steps: int = checked(integer(1, 10_000))
    schedule: str = checked(choice(_schedules))
    sigma_min: float = checked(number(0, 1e4, above=True))
    sigma_max: float = checked(number(0, 1e6, above=True))
    guidance_scale: float = checked(number(0, 100), default=1.0)
    guidance_interval: tuple[float, float] | None = checked(optional(sequence(number(0, 1e6), 2, 2)), default=None)
    sampler_options: dict[str, Any] = checked(options, default_factory=dict)
    schedule_options: dict[str, Any] = checked(options, default_factory=dict)
    mean_weight: float = checked(number(0, 1), default=1.0)

    def sigmas(self, num_inference_steps: int | None = None) -> torch.Tensor:
        """Noise levels of a run, high to low, ``(num_inference_steps + 1,)`` float64.

        Args:
            num_inference_steps: the default ones if None.

        Returns:
            What the schedule makes of ``sigma_min``, ``sigma_max`` (where it takes them) and ``schedule_options``.
        """
        from medgen.diffusion.schedules import SCHEDULES, make_sigmas

        known = inspect.signature(SCHEDULES[self.schedule]).parameters
        levels = {key: value for key in ("sigma_min", "sigma_max") if key in known for value in [getattr(self, key)]}
        return make_sigmas(
            self.schedule, num_inference_steps or self.num_inference_steps, **self.schedule_options | levels
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise refuse("Sampling", "sigma_min", f"below sigma_max ({self.sigma_max:g})", self.sigma_min)
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise refuse("Sampling", "guidance_interval", "[low, high] with low < high", self.guidance_interval)
        _try_out(self)


def _try_out(sampling: Sampling) -> None:
    """Make the sigmas and take two steps with a single number, so that a bad option shows at once.

    Raises:
        MedgenError: the schedule or the sampler refuses its options.
    """
    import torch

    from medgen.diffusion.samplers import SAMPLERS

    with _blame("schedule_options"):
        sampling.sigmas()
    streams = [torch.Generator().manual_seed(0)]
    steps = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    with _blame("sampler_options"):
        sample = SAMPLERS[sampling.sampler]
        sample(lambda x, _: 0 * x, torch.ones(1, 1), steps, generators=streams, **sampling.sampler_options)


@contextmanager
def _blame(name: str) -> Iterator[None]:
    """Whatever a function makes of options that it did not expect becomes one line about the field ``name``."""
    try:
        yield
    except Exception as error:
        raise MedgenError(f"Sampling: field '{name}' is not accepted: {error}") from error
