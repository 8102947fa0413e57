"""From images and label maps to what a network sees, and back; all of it a function of the specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medgen.checks import MedgenError
from medgen.continuation import kriged
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.models.specification import DEPTHS, ModelSpec


@dataclass(frozen=True)
class Given:
    """What is known of an image before it is generated.

    The image is diffused as ``(image - center) / scale``: a model need not learn what its conditioning says already
    (regression first, diffusion of the rest: Mardani et al. 2023, arXiv:2309.15214, section 3), and noise and loss
    are of the same size in every tissue.

    Attributes:
        condition: packed conditioning ``(B, K, *packed)``.
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


class Codec:
    """Packs, standardises and conditions as a :class:`ModelSpec` says.

    Args:
        spec: of the model. Images are in 0..1; label maps hold the ids of ``spec.label_channels``.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._channel_of = {i: k for k, (_, ids) in enumerate(spec.label_channels) for i in ids}
        self._mean = torch.tensor(spec.channel_mean, dtype=torch.float32)
        self._std = torch.tensor(spec.channel_std, dtype=torch.float32)

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

    def pack(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the network's resolution and channels."""
        return haar_pack(x) if self.spec.packing == "haar" else x

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`pack`."""
        return haar_unpack(x) if self.spec.packing == "haar" else x

    def raw(self, image: Tensor, given: Given, label: Tensor | None = None) -> Tensor:
        """What is diffused, packed but not standardised: image, and for ``joint`` the label's channels behind it."""
        image = (image - given.center) / given.scale
        if self.spec.task != "joint":
            return self.pack(image)
        if label is None:
            raise MedgenError(f"{self.spec.name}: task 'joint' needs a label map to encode. Pass label=...")
        channels = self.one_hot(label)
        if self.spec.label_encoding == "distance":
            channels = signed_distance(channels, self.spec.grid.spacing, self.spec.label_distance_mm)
        return self.pack(torch.cat([image, channels], dim=1))

    def encode(self, image: Tensor, given: Given, label: Tensor | None = None) -> Tensor:
        """Image ``(B, C, *spatial)`` in 0..1 (and label) to the standardised sample that noise is added to."""
        return (self.raw(image, given, label) - _column(self._mean, image)) / _column(self._std, image)

    def decode(self, z: Tensor, given: Given) -> tuple[Tensor, Tensor | None]:
        """Inverse of :meth:`encode`.

        Returns:
            Image ``(B, C, *spatial)``, and for ``joint`` the label map ``(B, 1, *spatial)`` int16: the channel above
            one half, else background (with several ids in a channel, the first).
        """
        x = self.unpack(z * _column(self._std, z) + _column(self._mean, z))
        count = self.spec.image_channels
        image = given.center.to(z) + given.scale.to(z) * x[:, :count]
        if self.spec.task != "joint":
            return image, None
        share, winner = x[:, count:].max(dim=1, keepdim=True)
        first = torch.tensor([ids[0] for _, ids in self.spec.label_channels], dtype=torch.int16, device=z.device)
        return image, torch.where(share > 0.5, first[winner], 0).to(torch.int16)

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
        return self.given_label(torch.zeros(batch, 1, *size), torch.zeros(batch, dtype=torch.bool))

    def given_hole(self, image: Tensor, inpaint_mask: Tensor) -> Given:
        """What the surroundings of a hole say: the image with the hole filled by the reference, and the mask.

        Args:
            image: ``(B, 1, *spatial)`` in 0..1; what lies in the hole is not looked at.
            inpaint_mask: same shape, 1 = regenerate.
        """
        hole = inpaint_mask > 0.5
        if self.spec.reference == "none":
            known = torch.where(hole, 0.0, image)
            return self._plain(self.pack(torch.cat([known, hole.to(image)], dim=1)), image)
        settings = self.spec.grid.spacing, self.spec.correlation_mm
        known = torch.stack([_continued(x, h, *settings) for x, h in zip(image, hole, strict=True)])
        condition = torch.cat([self.pack(known) / _column(self._std, image), self.pack(hole.to(image))], dim=1)
        return Given(condition, known, torch.ones_like(known))

    def _plain(self, condition: Tensor, like: Tensor) -> Given:
        """Conditioning alone: the image is diffused as it is."""
        center = torch.zeros(len(like), 1, *like.shape[2:], device=like.device)
        return Given(condition, center, torch.ones_like(center))


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
    for b, k in np.ndindex(*mask.shape[:2]):
        inside = mask[b, k].cpu().numpy() > 0.5
        if inside.all():
            fields[b, k] = 1
        elif inside.any():
            depth = ndimage.distance_transform_edt(inside, spacing)
            height = ndimage.distance_transform_edt(~inside, spacing)
            signed = np.where(inside, depth - half, half - height)
            fields[b, k] = torch.from_numpy(np.clip(0.5 + signed / (2 * reach_mm), 0, 1)).to(mask)
    return fields


def _continued(image: Tensor, hole: Tensor, spacing: Sequence[float], correlation_mm: float) -> Tensor:
    """Image ``(1, *spatial)`` with its hole filled by what its surroundings let expect."""
    if not bool(hole.any()):
        return image
    values = kriged(image[0].cpu().double().numpy(), hole[0].cpu().numpy(), spacing, correlation_mm)
    return torch.where(hole, torch.from_numpy(values).to(image)[None], image)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).reshape(1, -1, *[1] * (like.ndim - 2))
