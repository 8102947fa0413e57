"""Networks of the package diffusers behind the signatures of MONAI's.

They serve where a diffusers network has no exact counterpart in MONAI (see :mod:`medgen.models.interop.diffusers`).
The package is imported when one is built, never before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medgen.checks import MedgenError, check_choice

UNETS = ("UNet2DModel", "UNet2DConditionModel")


def _class(name: str) -> Any:
    """A class of diffusers by one of the names written here."""
    check_choice("diffusers", "_class_name", name, (*UNETS, "AutoencoderKL"))
    try:
        import diffusers
    except ImportError as error:
        raise MedgenError(f"{name}: needs the package diffusers. Install it: pip install diffusers.") from error
    return getattr(diffusers, name)


def changed_settings(name: str, config: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """What a configuration sets to something else than the class does by itself.

    Args:
        name: of the class.
        config: content of its ``config.json``.
        without: settings to leave out.

    Raises:
        MedgenError: diffusers is not installed, or its class does not know a setting that is in use.
    """
    known = inspect.signature(_class(name).__init__).parameters
    changed = {}
    for key, value in config.items():
        if key.startswith("_") or key in without:
            continue
        if key not in known and value:
            raise MedgenError(f"{name}: this diffusers does not know '{key}'. Install the version it was saved with.")
        if key in known and _plain(value) != _plain(known[key].default):
            changed[key] = value
    return changed


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _build(name: str, said: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    """A class of diffusers from plain values."""
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    network: nn.Module = _class(name)(**{**arguments, **said})
    return network


class DiffusersUNet(nn.Module):
    """``UNet2DModel`` or ``UNet2DConditionModel`` called as ``network(x, timesteps, context, class_labels)``.

    Args:
        spatial_dims: 2.
        in_channels: of the noisy sample and what is joined to it.
        out_channels: of the prediction.
        channels: of each level.
        config: ``_class_name`` and the settings that are not the class's own, see :func:`changed_settings`.

    Raises:
        MedgenError: diffusers is not installed, another class, or more than two axes.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, channels: Sequence[int], config: dict[str, Any]
    ) -> None:
        super().__init__()
        _check_dims("DiffusersUNet", spatial_dims)
        name = config.get("_class_name", UNETS[0])
        check_choice("DiffusersUNet", "config._class_name", name, UNETS)
        said = {"in_channels": in_channels, "out_channels": out_channels, "block_out_channels": tuple(channels)}
        self.network = _build(name, said, config)
        self.conditional = name == "UNet2DConditionModel"

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """What the network predicts ``(B, out_channels, H, W)``.

        Args:
            x: ``(B, in_channels, H, W)``.
            timesteps: ``(B,)``.
            context: ``(B, T, D)``, of a ``UNet2DConditionModel``.
            class_labels: ``(B,)``.
        """
        others = {"encoder_hidden_states": context} if self.conditional else {}
        output: Tensor = self.network(x, timesteps, class_labels=class_labels, return_dict=False, **others)[0]
        return output


def _check_dims(who: str, spatial_dims: int) -> None:
    if spatial_dims != 2:
        raise MedgenError(f"{who}: spatial_dims must be 2. Got {spatial_dims}. Use a network of MONAI in 3D.")


class DiffusersAutoencoderKL(nn.Module):
    """``AutoencoderKL`` of diffusers with the methods of MONAI's, on images in its own range (mostly -1..1).

    Args:
        spatial_dims: 2.
        in_channels: of an image.
        out_channels: of an image.
        channels: of each level.
        latent_channels: of a latent.
        config: the settings that are not the class's own, see :func:`changed_settings`.

    Raises:
        MedgenError: diffusers is not installed, or more than two axes.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        latent_channels: int,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        _check_dims("DiffusersAutoencoderKL", spatial_dims)
        said = {"in_channels": in_channels, "out_channels": out_channels, "latent_channels": latent_channels}
        self.network = _build("AutoencoderKL", {**said, "block_out_channels": tuple(channels)}, config)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent ``(B, latent_channels, *reduced)`` of images ``x``."""
        posterior = self.network.encode(x).latent_dist  # type: ignore[operator]
        return posterior.mean, posterior.std

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents ``z``."""
        output: Tensor = self.network.decode(z, return_dict=False)[0]  # type: ignore[operator]
        return output

    def sampling(self, z_mu: Tensor, z_sigma: Tensor) -> Tensor:
        """A latent drawn from its posterior, with the global generator, as MONAI's does."""
        return z_mu + torch.randn_like(z_sigma) * z_sigma

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images after encoding (the mean) and decoding."""
        return self.decode(self.encode(x)[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction of a drawn latent, its mean and standard deviation."""
        mean, std = self.encode(x)
        return self.decode(self.sampling(mean, std)), mean, std
