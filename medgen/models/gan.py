"""A trained adversarial model, ready to sample or to translate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.diffusion.randomness import generators, randn
from medgen.models.base import CONTROL_KEYS, Model, refuse_options
from medgen.models.codec import VoxelCodec
from medgen.models.controls import null_conditions
from medgen.models.gan_spec import GanSpec
from medgen.networks.threads import at_most_threads

DIRECTIONS = ("forward", "back")


class GanCodec(VoxelCodec):
    """Voxel channels, standardised and packed, as the networks of a :class:`GanSpec` see them.

    Args:
        spec: of the model.
    """

    spec: GanSpec

    def __init__(self, spec: GanSpec) -> None:
        super().__init__(spec)
        self._sample = _columns(spec.channel_mean, spec.channel_std, spec.spatial_dims)
        self._source = _columns(spec.source_mean, spec.source_std, spec.spatial_dims)
        self._bands = torch.tensor(spec.band_std), torch.tensor(spec.source_band_std)

    def pack(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the networks' resolution, blocks of voxels becoming channels."""
        for _ in range(self.spec.packing_levels):
            x = haar_pack(x)
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`pack`."""
        for _ in range(self.spec.packing_levels):
            x = haar_unpack(x)
        return x

    def encode(self, image: Tensor | None, label: Tensor | None = None) -> Tensor:
        """Image ``(B, C, *spatial)`` in 0..1 (and label) to a packed, standardised sample."""
        return self.standardised(self.stack(_present(image, label), label))

    def standardised(self, stack: Tensor) -> Tensor:
        """Voxel channels ``(B, voxel_channels, *spatial)`` to a packed, standardised sample."""
        return self.pack(self._standard(stack, self._sample))

    def decode_stack(self, z: Tensor) -> Tensor:
        """A packed sample to voxel channels ``(B, voxel_channels, *spatial)``."""
        return self._natural(self.unpack(z), self._sample)

    def encode_source(self, source: Tensor, present: Tensor | None = None) -> Tensor:
        """Source images ``(B, S, *spatial)`` in 0..1, standardised and packed; a missing one is 0.

        Args:
            source: images.
            present: ``(B, S)``, 1 where the image is there; None: all are.
        """
        x = self._standard(source, self._source)
        if present is not None:
            x = x * present.to(x).reshape(*present.shape, *[1] * (x.ndim - 2))
        return self.pack(x)

    def decode_source(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`encode_source`, all images there."""
        return self._natural(self.unpack(z), self._source)

    def finished(self, made: Tensor, back: bool = False) -> Tensor:
        """A generator's output as a packed, standardised sample (or ``back``: a source).

        One of kind ``style`` makes voxels, which are packed. Else the output is ``(B, C, *packed)``: its low band is
        interpolated to the voxels, the other bands are added as detail, so that an image is smooth before its detail
        is learnt, and shows no blocks. All bands are scaled by their deviation, which differs ten times.
        """
        if self.spec.kind == "style":
            return self.pack(made)
        made = made * self.bands(back).to(made)
        if not self.spec.packing_levels:
            return made
        low = made[:, :: self.spec.packing_factor] / self.spec.packing_factor**0.5
        mode = "bilinear" if made.ndim == 4 else "trilinear"
        smooth = F.interpolate(low, scale_factor=self.spec.reduction, mode=mode, align_corners=False)
        detail = torch.ones(made.shape[1], device=made.device)
        detail[:: self.spec.packing_factor] = 0.0
        return self.pack(smooth) + made * detail.reshape(-1, *[1] * (made.ndim - 2))

    def bands(self, back: bool = False) -> Tensor:
        """Deviation of each channel of a packed, standardised sample (or source), ``(C, 1, ...)``."""
        return self._bands[back].reshape(-1, *[1] * self.spec.spatial_dims)

    def flags(self, source: Tensor, present: Tensor | None = None) -> Tensor:
        """Which source images are there, as channels ``(B, S, *packed)``."""
        there = torch.ones(source.shape[:2]) if present is None else (present > 0.5).float()
        there = there.to(source).reshape(*source.shape[:2], *[1] * (source.ndim - 2))
        return there.expand(-1, -1, *(n // self.spec.reduction for n in source.shape[2:]))

    def told(self, known: Mapping[str, Tensor]) -> Tensor | None:
        """What a sample is made for, packed ``(B, told_channels, *packed)``: label map or source images; else None."""
        if self.spec.kind == "spade":
            return self.pack(self.one_hot(known["label"]))
        if self.spec.source_modalities:
            return self.encode_source(known["source"], known.get("present"))
        return None

    def _standard(self, x: Tensor, figures: tuple[Tensor, Tensor]) -> Tensor:
        return (x - figures[0].to(x)) / figures[1].to(x)

    def _natural(self, x: Tensor, figures: tuple[Tensor, Tensor]) -> Tensor:
        return x * figures[1].to(x) + figures[0].to(x)


def _columns(mean: Sequence[float], std: Sequence[float], dims: int) -> tuple[Tensor, Tensor]:
    ones = [1] * dims
    return torch.tensor(mean).reshape(1, -1, *ones), torch.tensor(std).reshape(1, -1, *ones)


def _present(image: Tensor | None, label: Tensor | None) -> Tensor:
    """The image, or where a task makes none a stand-in that the codec does not look at."""
    if image is not None:
        return image
    if label is None:
        raise MedgenError("GanCodec: image or label must be given. Got neither. Pass one.")
    return label.float()


class GanModel(Model[GanSpec]):
    """Generator, and what lies around it: packing, standardisation, controls."""

    def __init__(self, spec: GanSpec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = "") -> None:
        super().__init__(spec, networks, device, hash)
        self._codec = GanCodec(spec)

    @property
    def codec(self) -> GanCodec:
        return self._codec

    def settings(self, **options: Any) -> dict[str, Any]:
        """The settings of a run.

        Args:
            options: ``truncation`` (kind ``style``): 0 = the mean style, 1 = none; ``direction`` (kind ``cyclegan``):
                ``forward`` from source to image, or ``back``. None is the model's default.

        Raises:
            MedgenError: another option, or a bad value.
        """
        allowed = {"style": ("truncation",), "cyclegan": ("direction",)}.get(self.spec.kind, ())
        refuse_options(self.spec, options, allowed)
        if self.spec.kind == "style":
            truncation = options.get("truncation")
            truncation = self.spec.truncation if truncation is None else truncation
            if not isinstance(truncation, int | float) or not 0 <= truncation <= 2:
                raise MedgenError(f"sample: truncation must be a number from 0 to 2. Got {truncation!r}. Correct it.")
            return {"truncation": float(truncation)}
        if self.spec.kind == "cyclegan":
            direction = options.get("direction") or "forward"
            if direction not in DIRECTIONS:
                raise MedgenError(f"translate: direction must be one of {', '.join(DIRECTIONS)}. Got {direction!r}.")
            return {"direction": direction}
        return {}

    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        batch = {key: value[None] for key, value in known.items()}
        with torch.no_grad(), at_most_threads(2, self.device):
            if self.spec.kind == "style":
                z = self._style(batch, size, seed, settings["truncation"])
            elif self.spec.kind == "spade":
                z = self._spade(batch, seed)
            elif settings.get("direction") == "back":
                return self._back(batch)[0], None
            else:
                z = self._translate(batch)
            image, label = self.codec.unstack(self.codec.decode_stack(self.codec.finished(z.float())))
        if callback is not None:
            callback(0)
        return image if image is None else image[0], label if label is None else label[0]

    def _style(self, batch: Mapping[str, Tensor], size: tuple[int, ...], seed: int, truncation: float) -> Tensor:
        if "label" in batch or size != tuple(self.spec.grid.size):
            raise MedgenError(
                f"{self.spec.name}: this model draws image and label map together, on its own grid "
                f"{list(self.spec.grid.size)}; it cannot be given a label map. Leave label out."
            )
        streams = generators([seed])
        network: Any = self.networks["generator"]
        latent = randn((network.latent_dim,), streams, device=self.device)
        noise = [randn(shape, streams, device=self.device) for shape in network.noise_shapes]
        made: Tensor = network(latent, self.context(batch), noise=noise, truncation=truncation)
        return made

    def _spade(self, batch: Mapping[str, Tensor], seed: int) -> Tensor:
        streams = generators([seed])
        network: Any = self.networks["generator"]
        label = self.codec.pack(self.codec.one_hot(batch["label"])).to(self.device)
        latent = randn((network.latent_dim,), streams, device=self.device)
        noise = [randn(shape, streams, device=self.device) for shape in network.noise_shapes(label.shape[2:])]
        made: Tensor = network(label, latent, self.context(batch), noise=noise)
        return made

    def _translate(self, batch: Mapping[str, Tensor]) -> Tensor:
        source, present = batch["source"], batch.get("present")
        x = self.codec.encode_source(source, present)
        if self.spec.kind == "pix2pix":
            x = torch.cat([x, self.codec.flags(source, present)], dim=1)
        made: Tensor = self.networks["generator"](x.to(self.device))
        return made

    def _back(self, batch: Mapping[str, Tensor]) -> Tensor:
        """From image to source; the image is read from ``source``, or from ``image``."""
        image = batch["image"] if "image" in batch else batch["source"]
        made = self.networks["back"](self.codec.encode(image).to(self.device)).float()
        return self.codec.decode_source(self.codec.finished(made, back=True))

    def context(self, controls: Mapping[str, Tensor]) -> Tensor | None:
        """Context tokens of batched ``classes``, ``numbers`` and ``text``; what is left out is not asked for."""
        if not self.spec.controls:
            return None
        given = {key: controls[key] for key in CONTROL_KEYS if key in controls}
        return embedded(self.spec, self.networks["controls"], given, self.device)


def embedded(spec: GanSpec, encoder: nn.Module, controls: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Context tokens ``(B, T, context_dim)`` of controls, on the device.

    Args:
        spec: of the model.
        encoder: a ``ControlEncoder``.
        controls: ``classes``, ``numbers`` and ``text``, batched; what is left out is not asked for.
        device: where the encoder is.
    """
    batch = next((len(value) for value in controls.values()), 1)
    asked = null_conditions(spec.controls, batch) | dict(controls)
    tokens: Tensor = encoder(**{key: value.to(device) for key, value in asked.items()})
    return tokens
