"""What an autoencoder is: the content of ``medgen.json`` of family ``autoencoder``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.fields import checked, choice, integer, network_form, number, refuse, sequence
from medgen.models.specification import ModelSpec, network_integer

AUTOENCODERS = {"AutoencoderKL": "kl", "AutoencoderKlMaisi": "kl", "DiffusersAutoencoderKL": "kl", "VQVAE": "vq"}
AUTOENCODER_TASKS = ("image", "joint", "segment")
# what MONAI's constructors take where a form leaves an argument out
_LEVELS = {
    "AutoencoderKL": ("channels", 4),
    "AutoencoderKlMaisi": ("num_channels", 0),
    "DiffusersAutoencoderKL": ("channels", 0),
}
_LATENT = dict.fromkeys(_LEVELS, ("latent_channels", 3))
_DOWN = (2, 4, 1, 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec(ModelSpec):
    """An autoencoder of voxel channels (image, and for task ``joint`` the label's behind it).

    Args:
        network: ``{"_target_": "AutoencoderKL" or "VQVAE", **constructor arguments}``; its channels in and out are the
            voxel channels after packing.
        packing_levels: how often blocks of voxels become channels (orthonormal Haar) before the network sees them.
        channel_mean: mean of each packed voxel channel over the training data, taken off first; empty: 0.
        channel_std: standard deviation of each, by which the rest is divided; empty: 1.
        latent_mean: mean of each latent channel over the training data, measured after training.
        latent_std: standard deviation of each.

    The rest: :class:`~medgen.models.specification.ModelSpec`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(choice(lambda: ("autoencoder",)), default="autoencoder")
    network: dict[str, Any] = checked(network_form)
    packing_levels: int = checked(integer(0, 4), default=0)
    channel_mean: tuple[float, ...] = checked(sequence(number(-1e6, 1e6), 0, 4096), default=())
    channel_std: tuple[float, ...] = checked(sequence(number(0, 1e6, above=True), 0, 4096), default=())
    latent_mean: tuple[float, ...] = checked(sequence(number(-1e6, 1e6), 1, 4096))
    latent_std: tuple[float, ...] = checked(sequence(number(0, 1e6, above=True), 1, 4096))

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.network["_target_"]
        if name not in AUTOENCODERS:
            raise refuse("ModelSpec", "network._target_", f"one of {', '.join(AUTOENCODERS)}", name)
        if self.task not in AUTOENCODER_TASKS:
            raise refuse("ModelSpec", "task", f"one of {', '.join(AUTOENCODER_TASKS)} for an autoencoder", self.task)
        _check_channels(self)
        if any(n < self.downsampling for n in self.grid.size):
            raise refuse("ModelSpec", "grid.size", f"at least {self.downsampling} voxels per axis", self.grid.size)

    @property
    def kind(self) -> str:
        """``kl`` (a Gaussian posterior) or ``vq`` (a code book)."""
        return AUTOENCODERS[self.network["_target_"]]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return latent_channels(self.network)

    @property
    def num_embeddings(self) -> int:
        """Entries of the code book (``vq``)."""
        return network_integer(self.network, "num_embeddings", 32)

    @property
    def packed_channels(self) -> int:
        """Channels that the network takes and gives."""
        return int(self.voxel_channels * 2 ** (self.packing_levels * self.spatial_dims))

    @property
    def downsampling(self) -> int:
        """Voxels per latent voxel, along each axis."""
        return int(2**self.packing_levels) * network_reduction(self.network)

    @property
    def compression(self) -> float:
        """Voxels of the image over numbers of its latent."""
        return float(self.image_channels * self.downsampling**self.spatial_dims / self.latent_channels)

    @property
    def multiple(self) -> int:
        """1: volumes of any size are padded for the network, and cropped back."""
        return 1

    def latent_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the latent of a volume of ``size`` voxels."""
        return tuple(-(-n // self.downsampling) for n in size)

    def networks(self) -> dict[str, dict[str, Any]]:
        return {"autoencoder": self.network}


def network_reduction(form: dict[str, Any]) -> int:
    """Inputs per latent voxel of a network, along each axis.

    Raises:
        MedgenError: strides of a VQVAE that are not integers.
    """
    name = form["_target_"]
    if name in _LEVELS:
        key, default = _LEVELS[name]
        channels = form.get(key)
        return int(2 ** max((len(channels) if isinstance(channels, list | tuple) else default) - 1, 0))
    channels = form.get("channels")
    levels = len(channels) if isinstance(channels, list | tuple) else 3
    rows = form.get("downsample_parameters", _DOWN)
    if not isinstance(rows, list | tuple) or not rows:
        raise refuse("ModelSpec", "network.downsample_parameters", "lists of four integers", rows)
    rows = rows if isinstance(rows[0], list | tuple) else [rows] * levels
    strides = [row[0] for row in rows if isinstance(row, list | tuple) and row]
    if not all(isinstance(stride, int) and stride > 0 for stride in strides):
        raise refuse("ModelSpec", "network.downsample_parameters", "lists of four integers", rows)
    return math.prod(strides)


def latent_channels(form: dict[str, Any]) -> int:
    """Channels of the latent of a network."""
    key, default = _LATENT.get(form["_target_"], ("embedding_dim", 64))
    return network_integer(form, key, default)


def _check_channels(spec: AutoencoderSpec) -> None:
    """The network takes and gives the packed voxel channels, has the grid's axes, and the figures its latent's."""
    wanted = {"in_channels": spec.packed_channels, "out_channels": spec.packed_channels}
    for key, count in wanted.items():
        given = network_integer(spec.network, key, 1)
        if given != count:
            raise MedgenError(
                f"ModelSpec: field 'network.{key}' must be {count} ({spec.voxel_channels} voxel channels after "
                f"packing). Got {given}."
            )
    dims = network_integer(spec.network, "spatial_dims", spec.spatial_dims)
    if dims != spec.spatial_dims:
        raise MedgenError(f"ModelSpec: field 'network.spatial_dims' must be {spec.spatial_dims}, as grid. Got {dims}.")
    counts = {"latent_mean": spec.latent_channels, "latent_std": spec.latent_channels}
    counts |= {name: spec.packed_channels for name in ("channel_mean", "channel_std") if getattr(spec, name)}
    for name, count in counts.items():
        if len(getattr(spec, name)) != count:
            raise MedgenError(
                f"ModelSpec: field '{name}' must have {count} entries, one per channel. Got {len(getattr(spec, name))}."
            )
