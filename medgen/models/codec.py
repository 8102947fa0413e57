"""From images and label maps to what a network sees, and back; all of it a function of the specification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.continuation import kriged
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.models.diffusion_spec import DEPTHS, DiffusionSpec
from medgen.models.specification import ModelSpec

if TYPE_CHECKING:
    from medgen.models.autoencoder import LatentSpace


@dataclass(frozen=True)
class Given:
    """What is known of an image before it is generated.

    The image is diffused as ``(image - center) / scale``: a model need not learn what its conditioning says already
    (regression first, diffusion of the rest: Mardani et al. 2023, arXiv:2309.15214, section 3), and noise and loss
    are of the same size in every tissue.

    Attributes:
        condition: packed conditioning ``(B, K, *packed)``; K may be 0.
        center: expected image ``(B, 1, *spatial)``.
        scale: expected deviation from it, same shape.
    """

    condition: Tensor
    center: Tensor
    scale: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels of the volume."""
        return tuple(self.center.shape[2:])


class VoxelCodec:
    """Images and label maps as one stack of channels, and back.

    Args:
        spec: of the model. Images are in 0..1; label maps hold the ids of ``spec.label_channels``.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._channel_of = {i: k for k, (_, ids) in enumerate(spec.label_channels) for i in ids}

    def one_hot(self, label: Tensor) -> Tensor:
        """Label map ``(B, 1, *spatial)`` of ids to channels ``(B, K, *spatial)`` float32, background left out.

        Raises:
            MedgenError: see :meth:`kind`.
        """
        return self._one_hot(self.kind(label))

    def _one_hot(self, kind: Tensor) -> Tensor:
        kinds = 1 + torch.arange(len(self.spec.label_channels), device=kind.device)
        return (kind == kinds.reshape(1, -1, *[1] * (kind.ndim - 2))).float()

    def kind(self, label: Tensor) -> Tensor:
        """Label map ``(B, 1, *spatial)`` of ids to 0 for the background and 1 + channel for the rest.

        Raises:
            MedgenError: an id that the model does not know.
        """
        present = torch.unique(label).tolist()
        unknown = sorted(int(i) for i in present if i != 0 and int(i) not in self._channel_of)
        if unknown:
            raise MedgenError(
                f"{self.spec.name}: label map holds ids {unknown[:8]} that the model does not know. It knows 0 and "
                f"{sorted(self._channel_of)}. Map yours to these (label_map=...)."
            )
        table = torch.zeros(max([0, *self._channel_of]) + 1, dtype=torch.long)
        for i, k in self._channel_of.items():
            table[i] = 1 + k
        return table.to(label.device)[label.long()]

    def stack(self, image: Tensor | None, label: Tensor | None = None) -> Tensor:
        """The channels of a sample: image, label, or the one behind the other, as the task has it.

        Args:
            image: ``(B, C, *spatial)``; not looked at where the task makes none.
            label: ids ``(B, 1, *spatial)``; likewise.

        Returns:
            ``(B, voxel_channels, *spatial)``; label channels are one-hot or signed distances, 0..1.

        Raises:
            MedgenError: the task makes what is not given.
        """
        parts = []
        if self.spec.makes_image:
            parts.append(self._given(image, "image"))
        if self.spec.makes_label:
            channels = self.one_hot(self._given(label, "label"))
            if self.spec.label_encoding == "distance":
                channels = signed_distance(channels, self.spec.grid.spacing, self.spec.label_distance_mm)
            parts.append(channels)
        return torch.cat(parts, dim=1)

    def _given(self, part: Tensor | None, name: str) -> Tensor:
        if part is None:
            raise MedgenError(f"{self.spec.name}: task '{self.spec.task}' needs {name} to encode. Pass {name}=...")
        return part

    def unstack(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Inverse of :meth:`stack`.

        Returns:
            Image ``(B, C, *spatial)`` or None, and label map ``(B, 1, *spatial)`` int16 or None: the channel above one
            half, else background (with several ids in a channel, the first).
        """
        count = self.spec.image_channels if self.spec.makes_image else 0
        image = x[:, :count] if count else None
        if not self.spec.makes_label:
            return image, None
        share, winner = x[:, count:].max(dim=1, keepdim=True)
        first = torch.tensor([ids[0] for _, ids in self.spec.label_channels], dtype=torch.int16, device=x.device)
        return image, torch.where(share > 0.5, first[winner], 0).to(torch.int16)


class Codec(VoxelCodec):
    """Packs or encodes, standardises and conditions as a :class:`DiffusionSpec` says.

    Args:
        spec: of the model.
        latent: autoencoder of a latent model.

    Raises:
        MedgenError: a latent model without its autoencoder.
    """

    spec: DiffusionSpec

    def __init__(self, spec: DiffusionSpec, latent: LatentSpace | None = None) -> None:
        super().__init__(spec)
        if spec.autoencoder is not None and latent is None:
            raise MedgenError(f"{spec.name}: Codec needs the autoencoder of a latent model. Pass latent=...")
        self.latent = latent
        self._mean = torch.tensor(spec.channel_mean, dtype=torch.float32)
        self._std = torch.tensor(spec.channel_std, dtype=torch.float32)

    def pack(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the diffused resolution, each block of voxels becoming channels."""
        for _ in range((self.spec.reduction - 1).bit_length()):
            x = haar_pack(x)
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`pack`."""
        for _ in range((self.spec.reduction - 1).bit_length()):
            x = haar_unpack(x)
        return x

    def raw(self, image: Tensor | None, given: Given, label: Tensor | None = None) -> Tensor:
        """What is diffused, packed or encoded (on the autoencoder's device) but not standardised."""
        stack = self.stack(None if image is None else (image - given.center) / given.scale, label)
        if self.latent is None:
            return self.pack(stack)
        return self.latent.encode(stack.to(next(self.latent.network.parameters()).device))

    def encode(self, image: Tensor | None, given: Given, label: Tensor | None = None) -> Tensor:
        """Image ``(B, C, *spatial)`` in 0..1 (and label) to the standardised sample that noise is added to."""
        raw = self.raw(image, given, label)
        return (raw - column(self._mean, raw)) / column(self._std, raw)

    def decode_stack(self, z: Tensor, given: Given) -> Tensor:
        """The sample's channels ``(B, voxel_channels, *spatial)``: what :meth:`decode` reads image and label from."""
        raw = z * column(self._std, z) + column(self._mean, z)
        x = self.unpack(raw) if self.latent is None else self.latent.decode(raw, given.size)
        if not self.spec.makes_image:
            return x
        count = self.spec.image_channels
        image = given.center.to(z) + given.scale.to(z) * x[:, :count]
        return torch.cat([image, x[:, count:]], dim=1)

    def decode(self, z: Tensor, given: Given) -> tuple[Tensor | None, Tensor | None]:
        """Inverse of :meth:`encode`; see :meth:`unstack`."""
        return self.unstack(self.decode_stack(z, given))

    def given(self, known: Mapping[str, Tensor], size: Sequence[int], keep: Tensor | None = None) -> Given:
        """What the task's conditioning says.

        Args:
            known: a batch with what the task is given: ``label``; ``image`` and ``inpaint_mask``; ``source`` and
                ``present``; ``low_resolution``. A label that ``joint`` may do without is dropped where it is missing.
            size: voxels of the volume.
            keep: ``(B,)`` bool, False drops the label of that sample.
        """
        task = self.spec.task
        if task == "inpaint":
            return self.given_hole(known["image"], known["inpaint_mask"])
        if self.spec.source_modalities:
            return self.given_source(known["source"], known.get("present"))
        if task == "super_resolve":
            return self.given_low(known["low_resolution"], size)
        if self.spec.told_label and "label" in known:
            return self.given_label(known["label"], keep)
        batch = next((len(value) for value in known.values()), 1)
        return self.given_nothing(size, batch)

    def given_label(self, label: Tensor, keep: Tensor | None = None) -> Given:
        """What a label map ``(B, 1, *spatial)`` says; its one-hot channels are the conditioning.

        With ``spec.label_dropout`` one more channel says whether the label is given.

        Args:
            label: ids.
            keep: ``(B,)`` bool, False drops the label of that sample; None keeps all.
        """
        kind = self.kind(label)
        condition = self.pack(self._one_hot(kind))
        if self.spec.label_dropout:
            kept = torch.ones(len(label)) if keep is None else keep.float()
            flag = kept.to(condition).reshape(-1, *[1] * (condition.ndim - 1)).expand(-1, 1, *condition.shape[2:])
            condition = torch.cat([condition * flag, flag], dim=1)
        if self.spec.reference == "none":
            return self._plain(condition, label)
        intensities = torch.tensor(self.spec.label_intensities, dtype=torch.float32, device=label.device)
        row = kind * DEPTHS + depth(kind) - 1
        center, scale = (smoothed(values[row]) for values in intensities.reshape(-1, 2).T)
        return Given(condition, center, scale)

    def given_nothing(self, size: Sequence[int], batch: int = 1) -> Given:
        """No label, for a volume of ``size`` voxels."""
        if self.spec.told_label:
            return self.given_label(torch.zeros(batch, 1, *size), torch.zeros(batch, dtype=torch.bool))
        packed = [n // self.spec.reduction for n in size]
        return self._plain(torch.zeros(batch, 0, *packed), torch.zeros(batch, 1, *size))

    def given_hole(self, image: Tensor, inpaint_mask: Tensor) -> Given:
        """What the surroundings of a hole say: the image with the hole filled by the reference, and the mask.

        Args:
            image: ``(B, C, *spatial)`` in 0..1; what lies in the hole is not looked at.
            inpaint_mask: ``(B, 1, *spatial)``, 1 = regenerate.
        """
        hole = inpaint_mask > 0.5
        if self.spec.reference == "none":
            known = torch.where(hole, 0.0, image)
            return self._plain(self.pack(torch.cat([known, hole.to(image)], dim=1)), image)
        settings = self.spec.grid.spacing, self.spec.correlation_mm
        known = torch.stack([_continued(x, h, *settings) for x, h in zip(image, hole, strict=True)])
        condition = torch.cat([self.pack(known) / column(self._std, image), self.pack(hole.to(image))], dim=1)
        return Given(condition, known, torch.ones_like(known))

    def given_source(self, source: Tensor, present: Tensor | None = None) -> Given:
        """What images of other modalities say: they, 0 where one is missing, and a flag for each.

        Args:
            source: ``(B, S, *spatial)`` in 0..1.
            present: ``(B, S)``, 1 where the image is there; None: all are.
        """
        there = torch.ones(source.shape[:2]) if present is None else (present > 0.5).float()
        flags = there.to(source).reshape(*source.shape[:2], *[1] * (source.ndim - 2))
        packed = self.pack(source * flags)
        return self._plain(torch.cat([packed, flags.expand(-1, -1, *packed.shape[2:])], dim=1), source)

    def given_low(self, low_resolution: Tensor, size: Sequence[int]) -> Given:
        """What a low-resolution sample says (Ho et al. 2021, arXiv:2106.15282): it, interpolated to ``size`` voxels.

        Args:
            low_resolution: channels ``(B, voxel_channels, *coarse)`` of the base model.
            size: voxels of the volume.
        """
        mode = "bilinear" if len(size) == 2 else "trilinear"
        fine = F.interpolate(low_resolution, list(size), mode=mode, align_corners=False)
        return self._plain(self.pack(fine), fine)

    def _plain(self, condition: Tensor, like: Tensor) -> Given:
        """Conditioning alone: the image is diffused as it is."""
        center = torch.zeros(len(like), 1, *like.shape[2:], device=like.device)
        return Given(condition, center, torch.ones_like(center))


def lowered(codec: VoxelCodec, image: Tensor, label: Tensor | None, size: Sequence[int]) -> Tensor:
    """What the base model of a cascade would draw of a subject: its channels at low resolution.

    Args:
        codec: of the base model.
        image: ``(B, C, *spatial)``.
        label: ids ``(B, 1, *spatial)``, or None.
        size: voxels of the base model's grid.

    Returns:
        ``(B, voxel_channels, *size)``: means over blocks of voxels; of a label, what fills most of the block.
    """
    small = F.interpolate(image, list(size), mode="area")
    if not codec.spec.makes_label or label is None:
        return small
    kind = codec.kind(label)
    kinds = torch.arange(1 + len(codec.spec.label_channels), device=kind.device)
    each = (kind == kinds.reshape(1, -1, *[1] * (kind.ndim - 2))).float()
    ids = torch.tensor([0, *(group[0] for _, group in codec.spec.label_channels)], device=kind.device)
    return codec.stack(small, ids[F.interpolate(each, list(size), mode="area").argmax(1, keepdim=True)])


def depth(kind: Tensor, deepest: int = DEPTHS) -> Tensor:
    """How deep each voxel lies within its label, in steps from face to face; beyond the volume all goes on as it is.

    Args:
        kind: ``(B, 1, *spatial)``, see :meth:`Codec.kind`.
        deepest: largest value of the result.

    Returns:
        Same shape, int64: 1 where a neighbour is of another kind, 2 next to those, and so on.
    """
    inner = torch.ones_like(kind, dtype=torch.bool)
    for axis in range(2, kind.ndim):
        n = kind.shape[axis]
        same = kind.narrow(axis, 1, n - 1) == kind.narrow(axis, 0, n - 1)
        inner.narrow(axis, 1, n - 1).logical_and_(same)
        inner.narrow(axis, 0, n - 1).logical_and_(same)
    found = torch.ones_like(kind)
    for _ in range(deepest - 1):
        found += inner
        inner = _eroded(inner)
    return found


def _eroded(mask: Tensor) -> Tensor:
    """Voxels of ``(B, 1, *spatial)`` whose neighbours face to face are all in the mask."""
    kept = mask.clone()
    for axis in range(2, mask.ndim):
        n = mask.shape[axis]
        kept.narrow(axis, 1, n - 1).logical_and_(mask.narrow(axis, 0, n - 1))
        kept.narrow(axis, 0, n - 1).logical_and_(mask.narrow(axis, 1, n - 1))
    return kept


def smoothed(x: Tensor) -> Tensor:
    """``(B, C, *spatial)`` after a (1, 2, 1) / 4 filter along each axis: the partial volume of a label's edge."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], dim=axis)
        after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], dim=axis)
        x = (before + 2 * x + after) / 4
    return x


def signed_distance(mask: Tensor, spacing: Sequence[float], reach_mm: float) -> Tensor:
    """Distance from the surface of each mask: 0.5 on it, rising inwards to 1 and falling outwards to 0 at ``reach_mm``.

    Args:
        mask: ``(B, K, *spatial)``, 0 or 1.
        spacing: mm per axis.
        reach_mm: where the field ends.
    """
    fields = torch.zeros_like(mask)
    half = min(spacing) / 2  # the surface lies between voxel centres
    margin = [math.ceil((reach_mm + half) / step) + 1 for step in spacing]
    for b, k in np.ndindex(*mask.shape[:2]):
        whole = mask[b, k].cpu().numpy() > 0.5
        if whole.all():
            fields[b, k] = 1
        elif whole.any():
            box = _box(whole, margin)  # beyond it the field is 0
            inside = whole[box]
            depth = ndimage.distance_transform_edt(inside, spacing)
            height = ndimage.distance_transform_edt(~inside, spacing)
            signed = np.where(inside, depth - half, half - height)
            fields[b, k][box] = torch.from_numpy(np.clip(0.5 + signed / (2 * reach_mm), 0, 1)).to(mask)
    return fields


def _box(inside: NDArray[np.bool_], margin: Sequence[int]) -> tuple[slice, ...]:
    """The bounding box of a mask, larger by ``margin`` voxels on each side, within the array."""
    found = []
    for axis, more in enumerate(margin):
        there = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        found.append(slice(max(0, int(there[0]) - more), int(there[-1]) + 1 + more))
    return tuple(found)


def _continued(image: Tensor, hole: Tensor, spacing: Sequence[float], correlation_mm: float) -> Tensor:
    """Image ``(1, *spatial)`` with its hole filled by what its surroundings let expect."""
    if not bool(hole.any()):
        return image
    values = kriged(image[0].cpu().double().numpy(), hole[0].cpu().numpy(), spacing, correlation_mm)
    return torch.where(hole, torch.from_numpy(values).to(image)[None], image)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel, ready to be combined with ``(B, C, *spatial)``."""
    return values.to(like.device).reshape(1, -1, *[1] * (like.ndim - 2))
