"""A scheduler object and a network of MONAI or diffusers as a denoiser and its noise levels.

Nothing of the scheduler's own stepping is used: it says what the network predicts and at which noise level each of its
timesteps lies; medgen's samplers do the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medgen.checks import MedgenError, check_choice
from medgen.diffusion.denoiser import Preconditioned
from medgen.diffusion.timesteps import ChainTimesteps, FlowTimesteps

__all__ = ["SIGNATURES", "DiffusersSignature", "Parametrisation", "adapt_scheduler", "denoiser_from_scheduler"]

SIGNATURES = ("monai", "diffusers")
NOT_ADAPTED = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler")
CHAIN_PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Parametrisation:
    """What a scheduler says about the network that was trained with it.

    Attributes:
        prediction_type: one of :data:`medgen.diffusion.denoiser.PREDICTION_TYPES`.
        timesteps: from noise levels to what the network is fed.
        sign: -1 where the network predicts minus that (MONAI's rectified flow points from noise to data).
    """

    prediction_type: str
    timesteps: ChainTimesteps | FlowTimesteps
    sign: float = 1.0


def adapt_scheduler(scheduler: Any) -> Parametrisation:
    """Read a scheduler of MONAI (DDPM, DDIM, PNDM, RFlow) or diffusers (DDPM, DDIM, DPM-Solver, Euler, flow, ...).

    Args:
        scheduler: the object; it is only looked at.

    Returns:
        Prediction type and timesteps.

    Raises:
        MedgenError: an object of another kind, or a prediction type that is unknown.

    References:
        MONAI's RFlowScheduler: ``z = (1 - t) x0 + t n``, the network predicts ``x0 - n``; diffusers' FlowMatch
        schedulers: the same z, ``n - x0``. All others: ``z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n``.
    """
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", None)
    if name == "RFlowScheduler":
        return Parametrisation("flow", FlowTimesteps(int(scheduler.num_train_timesteps)), -1.0)
    if name.startswith("FlowMatch"):
        dynamic = bool(_setting(config, "use_dynamic_shifting", False))
        shift = 1.0 if dynamic else float(_setting(config, "shift", 1.0))
        return Parametrisation("flow", FlowTimesteps(int(_setting(config, "num_train_timesteps", 1000)), shift))
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas_cumprod, Tensor) or name in NOT_ADAPTED:
        raise MedgenError(
            f"adapt_scheduler: scheduler must have alphas_cumprod or be a rectified flow. Got {name}. Write "
            "denoise(x, sigma, conditioning) for it yourself."
        )
    if _setting(config, "timestep_type", "discrete") != "discrete":
        raise MedgenError(
            f"adapt_scheduler: {name} with timestep_type 'continuous' feeds log sigma to its network, which is not "
            "adapted. Write denoise(x, sigma, conditioning) for it yourself."
        )
    kind = str(scheduler.prediction_type if config is None else _setting(config, "prediction_type", "epsilon"))
    check_choice("adapt_scheduler", "prediction_type", kind, CHAIN_PREDICTIONS)
    return Parametrisation(kind, ChainTimesteps.of(alphas_cumprod.detach().cpu().double()))


def _setting(config: Any, name: str, default: Any) -> Any:
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


class DiffusersSignature(nn.Module):
    """A diffusers network called as MONAI's are: ``network(x, timesteps, context, class_labels)``.

    Args:
        network: takes ``(sample, timestep, ...)`` and returns an object with ``sample``, or a tuple.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.takes = frozenset(inspect.signature(network.forward).parameters)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """What the network predicts, shape of its output.

        Args:
            x: noisy sample with what is joined to it ``(B, C, *spatial)``.
            timesteps: ``(B,)``.
            context: token embeddings ``(B, T, D)``, called ``encoder_hidden_states`` there.
            class_labels: ``(B,)``.
            **others: passed on.
        """
        if "encoder_hidden_states" in self.takes:
            others["encoder_hidden_states"] = context
        elif context is not None:
            raise MedgenError(
                f"{type(self.network).__name__}: this network takes no context. Got one of shape "
                f"{tuple(context.shape)}. Leave it out."
            )
        found = self.network(x, timesteps, class_labels=class_labels, return_dict=False, **others)
        output: Tensor = found[0] if isinstance(found, tuple) else found.sample
        return output


class _Negated(nn.Module):
    """A network whose output points the other way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.network(*args, **kwargs)
        return -output


def denoiser_from_scheduler(
    network: nn.Module, scheduler: Any, signature: str | None = None
) -> tuple[Preconditioned, Parametrisation]:
    """A network with the scheduler it was trained with, as a medgen denoiser.

    Args:
        network: ``network(x, timesteps, context, class_labels)`` (MONAI) or ``network(sample, timestep, ...)``
            (diffusers). Class labels reach it: ``conditioning["class_labels"]``.
        scheduler: see :func:`adapt_scheduler`.
        signature: ``monai`` or ``diffusers``; by the name of the network's argument if None.

    Returns:
        ``denoise(x, sigma, conditioning) -> x0`` with ``x = x0 + sigma n``, and what was read of the scheduler, whose
        ``timesteps.sigmas(n)`` are the levels of a run.

    Raises:
        MedgenError: see :func:`adapt_scheduler`.

    Example:
        >>> from medgen.diffusion.samplers import SAMPLERS
        >>> import torch
        >>> from monai.networks.schedulers import DDIMScheduler
        >>> class Zero(nn.Module):
        ...     def forward(self, x, timesteps, context=None, class_labels=None):
        ...         return 0 * x
        >>> denoise, found = denoiser_from_scheduler(Zero(), DDIMScheduler())
        >>> SAMPLERS["ddim"](denoise, torch.ones(1, 1, 4, 4), found.timesteps.sigmas(10)).mean().item()
        1.0
    """
    found = adapt_scheduler(scheduler)
    if signature is None:
        signature = "monai" if "timesteps" in inspect.signature(network.forward).parameters else "diffusers"
    check_choice("denoiser_from_scheduler", "signature", signature, SIGNATURES)
    if signature == "diffusers":
        network = DiffusersSignature(network)
    if found.sign < 0:
        network = _Negated(network)
    return Preconditioned(network, found.prediction_type, times=found.timesteps), found
