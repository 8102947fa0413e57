"""From images and label maps to what a network sees, and back; all of it a function of the specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.models.specification import ModelSpec


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
            MedgenError: an id that the model does not know.
        """
        present = torch.unique(label).tolist()
        unknown = sorted(int(i) for i in present if i != 0 and int(i) not in self._channel_of)
        if unknown:
            raise MedgenError(
                f"{self.spec.name}: label map holds ids {unknown[:8]} that the model does not know. It knows 0 and "
                f"{sorted(self._channel_of)}. Map yours to these (label_map=...)."
            )
        table = torch.full((max([0, *self._channel_of]) + 1,), -1, dtype=torch.long)
        for i, k in self._channel_of.items():
            table[i] = k
        channel = table.to(label.device)[label[:, 0].long()]
        kinds = torch.arange(len(self.spec.label_channels), device=label.device)
        return (channel[:, None] == kinds.reshape(1, -1, *[1] * (label.ndim - 2))).float()

    def pack(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the network's resolution and channels."""
        return haar_pack(x) if self.spec.packing == "haar" else x

    def unpack(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`pack`."""
        return haar_unpack(x) if self.spec.packing == "haar" else x

    def raw(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """What is diffused, packed but not standardised: image, and for ``joint`` the one-hot label behind it."""
        if self.spec.task != "joint":
            return self.pack(image)
        if label is None:
            raise MedgenError(f"{self.spec.name}: task 'joint' needs a label map to encode. Pass label=...")
        return self.pack(torch.cat([image, self.one_hot(label)], dim=1))

    def encode(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Image ``(B, C, *spatial)`` in 0..1 (and label) to the standardised sample that noise is added to."""
        return (self.raw(image, label) - _column(self._mean, image)) / _column(self._std, image)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inverse of :meth:`encode`.

        Returns:
            Image ``(B, C, *spatial)``, and for ``joint`` the label map ``(B, 1, *spatial)`` int16: the channel above
            one half, else background (with several ids in a channel, the first).
        """
        x = self.unpack(z * _column(self._std, z) + _column(self._mean, z))
        count = self.spec.image_channels
        if self.spec.task != "joint":
            return x[:, :count], None
        share, winner = x[:, count:].max(dim=1, keepdim=True)
        first = torch.tensor([ids[0] for _, ids in self.spec.label_channels], dtype=torch.int16, device=z.device)
        return x[:, :count], torch.where(share > 0.5, first[winner], 0).to(torch.int16)

    def label_condition(self, label: Tensor, keep: Tensor | None = None) -> Tensor:
        """Conditioning channels of a label map ``(B, 1, *spatial)``.

        With ``spec.label_dropout`` one more channel says whether the label is given.

        Args:
            label: ids.
            keep: ``(B,)`` bool, False drops the label of that sample; None keeps all.
        """
        packed = self.pack(self.one_hot(label))
        if not self.spec.label_dropout:
            return packed
        kept = torch.ones(len(label)) if keep is None else keep.float()
        flag = kept.to(packed).reshape(-1, *[1] * (packed.ndim - 1)).expand(-1, 1, *packed.shape[2:])
        return torch.cat([packed * flag, flag], dim=1)

    def null_condition(self, size: Sequence[int], batch: int = 1) -> Tensor:
        """Conditioning of "no label given", for a volume of ``size`` voxels."""
        return self.label_condition(torch.zeros(batch, 1, *size), torch.zeros(batch, dtype=torch.bool))

    def hole_condition(self, image: Tensor, inpaint_mask: Tensor) -> Tensor:
        """Conditioning for ``inpaint``: the standardised image with zeros in the hole, and the mask.

        Args:
            image: ``(B, C, *spatial)`` in 0..1; what lies in the hole is not looked at.
            inpaint_mask: ``(B, 1, *spatial)``, 1 = regenerate.
        """
        known = torch.where(inpaint_mask > 0.5, 0.0, image)
        return self.pack(torch.cat([known, inpaint_mask.to(image)], dim=1))

    @property
    def condition_channels(self) -> int:
        """Channels of the conditioning that this specification implies."""
        count = self.spec.image_channels + 1 if self.spec.task == "inpaint" else len(self.spec.label_channels)
        return count * self.spec.packing_factor + bool(self.spec.label_dropout)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).reshape(1, -1, *[1] * (like.ndim - 2))
