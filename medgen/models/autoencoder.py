"""A trained autoencoder: volumes to standardised latents or code book entries, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError, check_choice, check_positive
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.geometry import NORMAL_AXIS, ModelGrid, same_grid, spacing_of
from medgen.intensity import IntensityWindow
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.base import Model, refuse_options
from medgen.models.codec import VoxelCodec, column
from medgen.networks.threads import at_most_threads
from medgen.networks.tiled import TiledAutoencoder

SLICES = 16  # of a volume that a model with two axes takes at a time


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
        return (self.raw(x) - column(self._mean, x)) / column(self._std, x)

    def decode(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Inverse of :meth:`encode`; latents of a code book are first moved to their nearest entries.

        Args:
            z: ``(B, Z, *small)``.
            size: voxels of the volume, at most ``small * spec.downsampling`` per axis.

        Returns:
            ``(B, C, *size)``.
        """
        raw = z * column(self._std, z) + column(self._mean, z)
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
        return (x - column(self._channel_mean, x)) / column(self._channel_std, x)

    def unpadded(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """Inverse of :meth:`padded` for a volume of ``size`` voxels."""
        y = y * column(self._channel_std, y) + column(self._channel_mean, y)
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

    def encode(self, image: Tensor | None, label: Tensor | None = None, memory_budget: int | None = None) -> Tensor:
        """Standardised latent ``(B, Z, *small)`` of images ``(B, C, *spatial)`` in 0..1 and label ids, as it has them.

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
        self,
        image: MetaTensor | None,
        label: MetaTensor | None = None,
        *,
        plane: str = "axial",
        memory_budget: float | None = None,
    ) -> dict[str, MetaTensor | Tensor]:
        """Encode and decode a scan: the network sees it at the model's spacing, the result is on the scan's own grid.

        Args:
            image: ``(C, X, Y, Z)`` of any grid and intensity unit, RAS+ affine in mm; a model with two axes takes it
                slice by slice, or ``(C, X, Y)`` at the model's spacing. None where the model encodes a label alone.
            label: ids on the same grid ``(1, X, Y, Z)``, where the model encodes a label.
            plane: of such slices, ``axial``, ``coronal`` or ``sagittal`` in the world's axes: what it was trained on.
            memory_budget: bytes, see :class:`~medgen.networks.tiled.TiledAutoencoder`.

        Returns:
            ``image`` (float32, in the scan's unit) and ``label`` (int16) where the model makes them, and the ``latent``
            ``(Z, *small)``; of slices their number comes last.

        Raises:
            MedgenError: other channels than the model's, a missing image or label, one of the two that the model does
                not encode, or too small a memory budget.
        """
        if memory_budget is not None:
            check_positive("reconstruct", "memory_budget", memory_budget)
        settings = self.settings(memory_budget=None if memory_budget is None else int(memory_budget))
        check_choice("reconstruct", "plane", plane, NORMAL_AXIS)
        like = self._check_input(image, label)
        across = NORMAL_AXIS[plane] if like.ndim - 1 > self.spec.spatial_dims else None
        grid = self._grid(like, across)
        known: dict[str, Tensor] = {}
        windows: list[IntensityWindow] = []
        if image is not None:
            windows = [IntensityWindow.of(channel) for channel in image.as_tensor()]
            known["image"] = torch.cat([self._seen(image, k, window, grid) for k, window in enumerate(windows)])
        if label is not None:
            known["label"] = (label if grid is None else grid.to_model(label, "nearest")).as_tensor()
        latent, made = self._through(known, across, settings)
        meta = {"synthetic": True, "provenance": self.provenance(0, settings) | {"latent": list(latent.shape[1:])}}
        result: dict[str, MetaTensor | Tensor] = {"latent": latent}
        if "image" in made:
            values = torch.stack([w.inverse(x) for w, x in zip(windows, made["image"].float(), strict=True)])
            result["image"] = self._back(values, grid, like, meta, "area")
        if "label" in made:
            result["label"] = self._back(made["label"], grid, like, meta, "nearest")
        return result

    def _through(
        self, known: Mapping[str, Tensor], across: int | None, settings: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latent ``(Z, *small)`` and what is decoded from it, on the CPU; slices lie along ``across``."""
        pieces = {
            name: [v[None]] if across is None else list(v.movedim(1 + across, 0).split(SLICES))
            for name, v in known.items()
        }
        latents: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        for some in zip(*pieces.values(), strict=True):
            given = dict(zip(pieces, some, strict=True))
            size = next(iter(given.values())).shape[2:]
            code = self.encode(given.get("image"), given.get("label"), settings.get("memory_budget"))
            latents.append(code.cpu())
            for name, piece in zip(("image", "label"), self._recoded(code, size, settings), strict=True):
                if piece is not None:
                    parts.setdefault(name, []).append(piece.cpu())
        latent, made = torch.cat(latents), {name: torch.cat(of_all) for name, of_all in parts.items()}
        if across is None:
            return latent[0], {name: x[0] for name, x in made.items()}
        return latent.movedim(0, -1), {name: x.movedim(0, 1 + across) for name, x in made.items()}

    @staticmethod
    def _seen(image: MetaTensor, channel: int, window: IntensityWindow, grid: ModelGrid | None) -> Tensor:
        """A channel ``(1, *size)`` in 0..1 at the model's spacing; what the scan does not reach is its lowest."""
        one = image[channel : channel + 1].float()
        return window.forward(one.as_tensor() if grid is None else grid.to_model(one, "area", window.low).as_tensor())

    def _recoded(
        self, latent: Tensor, size: Sequence[int], settings: Mapping[str, Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.decode(latent, size, settings.get("memory_budget"))

    def _space(self, memory_budget: int | None) -> LatentSpace:
        if memory_budget is None:
            return self.latent
        return LatentSpace(self.spec, self.networks["autoencoder"], memory_budget)

    def _check_input(self, image: MetaTensor | None, label: MetaTensor | None) -> MetaTensor:
        """The one that gives the grid, once both are what the model encodes."""
        spec = self.spec
        for name, given, wanted in (("image", image, spec.makes_image), ("label", label, spec.makes_label)):
            if (given is not None) != wanted:
                raise MedgenError(
                    f"{spec.name}: {name} must be given exactly where the model encodes one. Got "
                    f"{'none' if given is None else 'one'}. {f'Give it (--{name})' if wanted else 'Leave it out'}."
                )
        counts = {"image": spec.image_channels, "label": 1}
        for name, volume in (("image", image), ("label", label)):
            if volume is not None and (
                volume.shape[0] != counts[name] or volume.ndim - 1 not in {spec.spatial_dims, 3}
            ):
                raise MedgenError(
                    f"{spec.name}: {name} must have {counts[name]} channels and "
                    f"{' or '.join(map(str, sorted({spec.spatial_dims, 3})))} axes. Got {tuple(volume.shape)}. Give "
                    f"{', '.join(spec.channels) or spec.modality if name == 'image' else 'one label map'}."
                )
            if volume is not None and spec.spatial_dims == 3 and 1 in volume.shape[1:]:
                raise MedgenError(
                    f"{spec.name}: {name} is one slice, and the model works on volumes. Got {tuple(volume.shape)}. "
                    "Give a volume."
                )
        if (
            image is not None
            and label is not None
            and (image.shape[1:] != label.shape[1:] or not same_grid(image, label))
        ):
            raise MedgenError(
                f"{spec.name}: label must lie on the image's grid. Got {tuple(label.shape[1:])} against "
                f"{tuple(image.shape[1:])}, or another affine. Resample the label to the image first."
            )
        like = image if image is not None else label
        assert like is not None  # a model encodes one at least
        return like

    def _grid(self, like: MetaTensor, across: int | None) -> ModelGrid | None:
        """The model's spacing over the whole scan, of slices the scan's own across; None for one slice as it is."""
        if like.ndim == 3:
            return None
        spacing = list(self.spec.grid.spacing)
        if across is not None:
            own = spacing_of(like.affine)[np.abs(np.asarray(like.affine)[across, :3]).argmax()]
            spacing.insert(across, float(own))
        return ModelGrid.around(like.affine, like.shape[1:], spacing, multiple=1)

    @staticmethod
    def _back(values: Tensor, grid: ModelGrid | None, like: MetaTensor, meta: dict[str, Any], mode: Any) -> MetaTensor:
        if grid is not None:
            values = grid.from_model(values, mode).as_tensor()
        return MetaTensor(values, affine=like.affine, meta=dict(meta))
