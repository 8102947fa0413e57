"""What an adversarial model is: the content of ``medgen.json`` of family ``gan``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.fields import checked, choice, integer, network_form, number, optional, refuse, sequence
from medgen.models.specification import ModelSpec

GENERATORS = {
    "style": ("StyleGenerator",),
    "spade": ("SpadeGenerator",),
    "pix2pix": ("ResNetGenerator", "UNetGenerator"),
    "cyclegan": ("ResNetGenerator", "UNetGenerator"),
}
GAN_TASKS = {
    "style": ("image", "joint"),
    "spade": ("label_to_image",),
    "pix2pix": ("translate", "segment"),
    "cyclegan": ("translate",),
}
_figures = sequence(number(-1e6, 1e6), 0, 4096)
_spreads = sequence(number(0, 1e6, above=True), 0, 4096)


@dataclass(frozen=True)
class GanShape:
    """Channels and sizes, from which arguments of the networks follow.

    Args:
        kind: see :class:`GanSpec`.
        size: of a packed sample, voxels per axis.
        voxel_channels: channels of a sample before it is packed.
        labels: channels of a label map.
        sources: source modalities.
        factor: channels that one channel of voxels becomes.
        context_dim: width of the embedded controls; 0 without.
    """

    kind: str
    size: tuple[int, ...]
    voxel_channels: int
    labels: int
    sources: int
    factor: int
    context_dim: int

    @property
    def sample(self) -> int:
        """Channels of a packed sample."""
        return self.voxel_channels * self.factor

    @property
    def reduction(self) -> int:
        """Voxels per packed voxel, along each axis."""
        return round(self.factor ** (1 / len(self.size)))

    @property
    def told(self) -> int:
        """Channels of the packed label map or source images that a sample is made for."""
        return self.factor * {"style": 0, "spade": self.labels}.get(self.kind, self.sources)

    @property
    def returned(self) -> int:
        """Channels of a packed source that is made from an image (``cyclegan``)."""
        return self.told if self.kind == "cyclegan" else 0

    def generator(self, back: bool = False) -> dict[str, Any]:
        """Arguments of the generator, or of the one from image to source, that follow from the rest."""
        given: dict[str, Any] = {"spatial_dims": len(self.size), "out_channels": self.sample}
        if self.kind == "style":
            voxels = [n * self.reduction for n in self.size]
            return given | {"out_channels": self.voxel_channels, "size": voxels, "context_dim": self.context_dim}
        if self.kind == "spade":
            return given | {"label_channels": self.told, "size": list(self.size), "context_dim": self.context_dim}
        if self.kind == "pix2pix":
            return given | {"in_channels": self.told + self.sources}
        if back:
            return given | {"in_channels": self.sample, "out_channels": self.told}
        return given | {"in_channels": self.told}

    def discriminator(self, target: str, patch: Sequence[int], back: bool = False) -> dict[str, Any]:
        """Arguments of a discriminator that follow from the rest.

        Args:
            target: name of the network.
            patch: size of a packed training patch.
            back: of the one that judges sources.
        """
        seen = self.told if back else self.sample + (0 if self.kind == "cyclegan" else self.told)
        given: dict[str, Any] = {"spatial_dims": len(self.size), "in_channels": seen}
        if target == "StyleDiscriminator":
            given |= {"size": list(patch), "context_dim": self.context_dim}
        return given


@dataclass(frozen=True, kw_only=True)
class GanSpec(ModelSpec):
    """A generator that makes a sample in one pass.

    Args:
        kind: ``style`` (latent to sample), ``spade`` (label map and latent to image), ``pix2pix`` (source images to
            image, trained on pairs) or ``cyclegan`` (source image to image and back, trained without pairs).
        network: the generator's registry form.
        back_network: the generator from image to source (``cyclegan``); None otherwise.
        packing_levels: how often blocks of voxels become channels (orthonormal Haar) before the networks see them; the
            generator of kind ``style`` makes voxels all the same, only its discriminator sees packed ones.
        channel_mean: mean of each voxel channel over the training data (image in 0..1).
        channel_std: standard deviation of each.
        source_mean: mean of each source modality.
        source_std: standard deviation of each.
        band_std: standard deviation of each channel of a standardised, packed sample; see
            :meth:`medgen.models.gan.GanCodec.finished`.
        source_band_std: likewise of the packed source, for the way back (``cyclegan``).
        truncation: of the styles by default (``style``): 1 = none, below 1 more typical and less varied samples.

    The rest: :class:`~medgen.models.specification.ModelSpec`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    kind: str = checked(choice(lambda: GENERATORS))
    network: dict[str, Any] = checked(network_form)
    back_network: dict[str, Any] | None = checked(optional(network_form), default=None)
    packing_levels: int = checked(integer(0, 4), default=0)
    channel_mean: tuple[float, ...] = checked(_figures)
    channel_std: tuple[float, ...] = checked(_spreads)
    source_mean: tuple[float, ...] = checked(_figures, default=())
    source_std: tuple[float, ...] = checked(_spreads, default=())
    band_std: tuple[float, ...] = checked(_spreads)
    source_band_std: tuple[float, ...] = checked(_spreads, default=())
    truncation: float = checked(number(0, 2), default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kind(self)
        _check_figures(self)
        _check_networks(self)
        if any(n % self.reduction for n in self.grid.size):
            raise refuse("ModelSpec", "grid.size", f"multiples of {self.reduction} (packing)", list(self.grid.size))

    @property
    def reduction(self) -> int:
        """Voxels per packed voxel, along each axis."""
        return int(2**self.packing_levels)

    @property
    def packing_factor(self) -> int:
        """Channels that one channel of voxels becomes."""
        return int(self.reduction**self.spatial_dims)

    @property
    def makes_blocks(self) -> bool:
        """Whether generators make packed samples; one of kind ``style`` makes voxels, and only its judge packs."""
        return self.packing_levels > 0 and self.kind != "style"

    @property
    def context_dim(self) -> int:
        """Width of the embedded controls; 0 without."""
        return int(self.control_encoder["context_dim"]) if self.control_encoder is not None else 0

    @property
    def multiple(self) -> int:
        """What each axis must be a multiple of: the packing; the networks take any size."""
        return self.reduction

    def networks(self) -> dict[str, dict[str, Any]]:
        found = {"generator": self.network}
        if self.back_network is not None:
            found["back"] = self.back_network
        if self.control_encoder is not None:
            found["controls"] = self.control_encoder
        return found

    @property
    def shape(self) -> GanShape:
        """Channels and sizes of the networks."""
        size = tuple(n // self.reduction for n in self.grid.size)
        labels, sources = len(self.label_channels), len(self.source_modalities)
        return GanShape(self.kind, size, self.voxel_channels, labels, sources, self.packing_factor, self.context_dim)


def _check_kind(spec: GanSpec) -> None:
    """Kind, task, controls and the way back agree."""
    if spec.task not in GAN_TASKS[spec.kind]:
        raise refuse("ModelSpec", "task", f"one of {', '.join(GAN_TASKS[spec.kind])} for kind '{spec.kind}'", spec.task)
    if (spec.back_network is not None) != (spec.kind == "cyclegan"):
        wanted = "a network for kind 'cyclegan', null otherwise"
        raise refuse("ModelSpec", "back_network", wanted, spec.back_network)
    if spec.controls and spec.kind not in ("style", "spade"):
        raise refuse("ModelSpec", "controls", f"empty for kind '{spec.kind}'", [c.name for c in spec.controls])
    if spec.kind == "cyclegan" and len(spec.source_modalities) != 1:
        raise refuse("ModelSpec", "source_modalities", "one name for kind 'cyclegan'", list(spec.source_modalities))


def _check_figures(spec: GanSpec) -> None:
    """A mean and a deviation for every voxel channel and every source, and a deviation for every packed channel."""
    counts = {"channel": spec.voxel_channels, "source": len(spec.source_modalities)}
    for name, count in counts.items():
        for what in ("mean", "std"):
            found = len(getattr(spec, f"{name}_{what}"))
            if found != count:
                raise MedgenError(f"ModelSpec: field '{name}_{what}' must have {count} entries. Got {found}.")
    for name, count in (("band_std", spec.shape.sample), ("source_band_std", spec.shape.returned)):
        if len(getattr(spec, name)) != count:
            found = len(getattr(spec, name))
            raise MedgenError(f"ModelSpec: field '{name}' must have {count} entries, after packing. Got {found}.")


def _check_networks(spec: GanSpec) -> None:
    """The generators take and give the channels that task and packing imply."""
    forms = {"network": spec.network} | ({"back_network": spec.back_network} if spec.back_network else {})
    for where, form in forms.items():
        if form["_target_"] not in GENERATORS[spec.kind]:
            known = ", ".join(GENERATORS[spec.kind])
            raise refuse("ModelSpec", f"{where}._target_", f"one of {known} for kind '{spec.kind}'", form["_target_"])
        for key, wanted in spec.shape.generator(back=where == "back_network").items():
            given = form.get(key, 0)
            if plain(given) != plain(wanted):
                raise refuse("ModelSpec", f"{where}.{key}", f"{wanted} (from task, packing, grid and controls)", given)


def plain(value: Any) -> Any:
    """Tuples as lists."""
    return list(value) if isinstance(value, list | tuple) else value


def completed(form: Mapping[str, Any], wiring: Mapping[str, Any], who: str, where: str) -> dict[str, Any]:
    """A network's form with the arguments that follow from the rest filled in.

    Args:
        form: as a configuration has it.
        wiring: the arguments and their values.
        who: name of the configuration, for errors.
        where: name of the field, for errors.

    Raises:
        MedgenError: an argument is there with another value.
    """
    for key, wanted in wiring.items():
        if key in form and plain(form[key]) != plain(wanted):
            raise refuse(who, f"{where}.{key}", f"{wanted} (from task, packing and grid)", form[key], " Leave it out.")
    return dict(form) | {key: plain(value) for key, value in wiring.items()}
