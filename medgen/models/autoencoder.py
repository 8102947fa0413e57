"""A trained autoencoder: volumes to standardised latents or code book entries, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError, check_positive
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.geometry import ModelGrid
from medgen.intensity import IntensityWindow
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.base import Model, refuse_options
from medgen.models.codec import VoxelCodec
from medgen.networks.threads import at_most_threads
from medgen.networks.tiled import TiledAutoencoder


class LatentSpace:
    """The space of an autoencoder's latents, each channel standardised over the training data; no gradients.

    Volumes of any size are padded at their far ends to what the network halves, by continuing the outermost voxels;
    decoding cuts that off again.

    Args:
        spec: of the autoencoder.
        network: in evaluation mode.
        memory_budget: bytes for feature maps, see :class:`~medgen.networks.tiled.TiledAutoencoder`; None: no bound.
    """

    def __init__(self, spec: AutoencoderSpec, network: nn.Module, memory_budget: int | None = None) -> None:
        self.spec = spec
        self.network: Any = network
        self._coder: Any = network if memory_budget is None else TiledAutoencoder(network, memory_budget)
        self._mean = torch.tensor(spec.latent_mean, dtype=torch.float32)
        self._std = torch.tensor(spec.latent_std, dtype=torch.float32)
        self._channel_mean = torch.tensor(spec.channel_mean or 0.0, dtype=torch.float32)
        self._channel_std = torch.tensor(spec.channel_std or 1.0, dtype=torch.float32)

    def encode(self, x: Tensor) -> Tensor:
        """Voxel channels ``(B, C, *spatial)`` to the standardised mean of the posterior, or codes before quantisation.

        Returns:
            ``(B, Z, *spec.latent_size(spatial))``.
        """
        return (self.raw(x) - _column(self._mean, x)) / _column(self._std, x)

    def decode(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Inverse of :meth:`encode`; latents of a code book are first moved to their nearest entries.

        Args:
            z: ``(B, Z, *small)``.
            size: voxels of the volume, at most ``small * spec.downsampling`` per axis.

        Returns:
            ``(B, C, *size)``.
        """
        raw = z * _column(self._std, z) + _column(self._mean, z)
        if self.spec.kind == "vq":
            with torch.no_grad():
                raw = self.network.quantizer.embed(self.network.quantizer.quantize(raw))
        return self._decoded(raw, size)

    def raw(self, x: Tensor) -> Tensor:
        """:meth:`encode` without standardisation."""
        with torch.no_grad():
            made = self._coder.encode(self.padded(x))
        latent: Tensor = made if self.spec.kind == "vq" else made[0]
        return latent

    def tokens(self, x: Tensor) -> Tensor:
        """Indices of code book entries ``(B, *small)`` int64 of voxel channels ``(B, C, *spatial)`` (``vq``)."""
        with torch.no_grad():
            found: Tensor = self.network.quantizer.quantize(self.raw(x))
        return found

    def decode_tokens(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Voxel channels ``(B, C, *size)`` of indices ``(B, *small)`` (``vq``)."""
        with torch.no_grad():
            entries = self.network.quantizer.embed(tokens)
        return self._decoded(entries, size)

    def padded(self, x: Tensor) -> Tensor:
        """What the network sees of ``(B, C, *spatial)``: padded, packed, standardised."""
        unit = self.spec.downsampling
        pads = [p for n in reversed(x.shape[2:]) for p in (0, -n % unit)]
        x = F.pad(x, pads, mode="replicate") if any(pads) else x
        for _ in range(self.spec.packing_levels):
            x = haar_pack(x)
        return (x - _column(self._channel_mean, x)) / _column(self._channel_std, x)

    def unpadded(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """Inverse of :meth:`padded` for a volume of ``size`` voxels."""
        y = y * _column(self._channel_std, y) + _column(self._channel_mean, y)
        for _ in range(self.spec.packing_levels):
            y = haar_unpack(y)
        return y[(slice(None), slice(None), *(slice(n) for n in size))]

    def _decoded(self, latent: Tensor, size: Sequence[int]) -> Tensor:
        if any(have * self.spec.downsampling < n for have, n in zip(latent.shape[2:], size, strict=True)):
            raise MedgenError(
                f"{self.spec.name}: a latent of {tuple(latent.shape[2:])} cannot become {tuple(size)} voxels, at most "
                f"{self.spec.downsampling} times as many. Give the size that was encoded."
            )
        with torch.no_grad():
            return self.unpadded(self._coder.decode(latent), size)


class AutoencoderModel(Model[AutoencoderSpec]):
    """An autoencoder that reconstructs scans."""

    def __init__(
        self, spec: AutoencoderSpec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = ""
    ) -> None:
        super().__init__(spec, networks, device, hash)
        self._codec = VoxelCodec(spec)
        self.latent = LatentSpace(spec, self.networks["autoencoder"])

    @property
    def codec(self) -> VoxelCodec:
        return self._codec

    def settings(self, **options: Any) -> dict[str, Any]:
        refuse_options(self.spec, options, ("memory_budget",))
        return {"memory_budget": options.get("memory_budget")}

    def _check_generates(self) -> None:
        raise MedgenError(
            f"{self.spec.name}: an autoencoder reconstructs scans and has nothing to sample alone. Use reconstruct, or "
            "train a latent model over it."
        )

    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The reconstruction of ``known["image"]`` (and ``known["label"]``, where there is one)."""
        if self.spec.makes_image and "image" not in known:
            self._check_generates()
        image = known["image"][None] if "image" in known else torch.zeros(1, self.spec.image_channels, *size)
        label = known["label"][None] if "label" in known else torch.zeros(1, 1, *size, dtype=torch.int16)
        latent = self.encode(image, label, settings.get("memory_budget"))
        made, made_label = self._recoded(latent, size, settings)
        return (None if made is None else made[0]), (None if made_label is None else made_label[0])

    def encode(self, image: Tensor, label: Tensor | None = None, memory_budget: int | None = None) -> Tensor:
        """Standardised latent ``(B, Z, *small)`` of images ``(B, C, *spatial)`` in 0..1 (and label ids).

        Raises:
            MedgenError: the model encodes a label too and there is none; too small a memory budget.
        """
        stack = self.codec.stack(image, label).to(self.device)
        with at_most_threads(2, self.device):
            return self._space(memory_budget).encode(stack)

    def decode(
        self, latent: Tensor, size: Sequence[int], memory_budget: int | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Images ``(B, C, *size)`` in about 0..1 or None, and label maps ``(B, 1, *size)`` or None.

        Raises:
            MedgenError: too small a latent or memory budget.
        """
        with at_most_threads(2, self.device):
            return self.codec.unstack(self._space(memory_budget).decode(latent.to(self.device), size))

    def reconstruct(
        self, image: MetaTensor, label: MetaTensor | None = None, *, memory_budget: float | None = None
    ) -> dict[str, MetaTensor | Tensor]:
        """Encode and decode a scan: the network sees it at the model's spacing, the result is on the scan's own grid.

        Args:
            image: ``(C, X, Y, Z)`` of any grid and intensity unit, RAS+ affine in mm; for a model with two axes
                ``(C, X, Y)`` at the model's spacing.
            label: ids on the same grid, where the model encodes a label.
            memory_budget: bytes, see :class:`~medgen.networks.tiled.TiledAutoencoder`.

        Returns:
            ``image`` (float32, in the scan's unit), ``label`` (int16) where the model makes one, and the ``latent``
            ``(Z, *small)``.

        Raises:
            MedgenError: other channels than the model's, a missing label, or too small a memory budget.
        """
        if memory_budget is not None:
            check_positive("reconstruct", "memory_budget", memory_budget)
        self._check_input(image)
        grid = self._grid(image)
        on_grid = image.as_tensor().float() if grid is None else grid.to_model(image.float(), "area").as_tensor()
        windows = [IntensityWindow.of(channel) for channel in on_grid]
        scaled = torch.stack([window.forward(x) for window, x in zip(windows, on_grid, strict=True)])
        ids = label if label is None or grid is None else grid.to_model(label, "nearest")
        settings = self.settings(memory_budget=None if memory_budget is None else int(memory_budget))
        latent = self.encode(scaled[None], None if ids is None else ids.as_tensor()[None], settings["memory_budget"])
        made, made_label = self._recoded(latent, tuple(scaled.shape[1:]), settings)
        meta = {"synthetic": True, "provenance": self.provenance(0, settings) | {"latent": list(latent.shape[1:])}}
        result: dict[str, MetaTensor | Tensor] = {"latent": latent[0].cpu()}
        if made is not None:
            values = torch.stack([w.inverse(x) for w, x in zip(windows, made[0].cpu().float(), strict=True)])
            result["image"] = self._back(values, grid, image, meta, "area")
        if made_label is not None:
            result["label"] = self._back(made_label[0].cpu(), grid, image, meta, "nearest")
        return result

    def _recoded(
        self, latent: Tensor, size: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.decode(latent, size, settings.get("memory_budget"))

    def _space(self, memory_budget: int | None) -> LatentSpace:
        if memory_budget is None:
            return self.latent
        return LatentSpace(self.spec, self.networks["autoencoder"], memory_budget)

    def _check_input(self, image: MetaTensor) -> None:
        if image.shape[0] != self.spec.image_channels or image.ndim != 1 + self.spec.spatial_dims:
            raise MedgenError(
                f"{self.spec.name}: image must have {self.spec.image_channels} channels and {self.spec.spatial_dims} "
                f"axes. Got {tuple(image.shape)}. Give {', '.join(self.spec.channels) or self.spec.modality}."
            )

    def _grid(self, image: MetaTensor) -> ModelGrid | None:
        """The model's spacing over the whole scan; None with two axes, which are taken as they are."""
        if self.spec.spatial_dims == 2:
            return None
        return ModelGrid.around(image.affine, image.shape[1:], self.spec.grid.spacing, multiple=1)

    @staticmethod
    def _back(values: Tensor, grid: ModelGrid | None, like: MetaTensor, meta: dict[str, Any], mode: Any) -> MetaTensor:
        if grid is not None:
            values = grid.from_model(values, mode).as_tensor()
        return MetaTensor(values, affine=like.affine, meta=dict(meta))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).reshape(1, -1, *[1] * (like.ndim - 2))
