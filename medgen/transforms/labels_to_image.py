"""A random image for a label map, by drawn contrast and acquisition; no network."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from monai.data import MetaTensor

from medgen.anatomy.contrast import ContrastRanges, synthesize_contrast
from medgen.transforms.base import SeededMapTransform, SeededTransform, aligned, as_volume

__all__ = ["RandLabelsToImage", "RandLabelsToImaged"]


class RandLabelsToImage(SeededTransform):
    """Makes an image of random contrast, resolution, bias field and noise for a label map (2D or 3D).

    Args:
        ranges: what is drawn from; by default a free contrast or one near T1, T2 or FLAIR.
        prob: how often a new image is made; otherwise ``image`` is returned.

    Raises:
        MedgenError: a label that is not ``(1, *spatial)`` or not whole.

    Example:
        >>> import torch
        >>> label = torch.zeros(1, 16, 16, dtype=torch.int16)
        >>> label[:, 4:12, 4:12] = 2
        >>> image = RandLabelsToImage().set_random_state(seed=0)(label)
        >>> image.shape, image.dtype, image.meta["synthetic"]
        (torch.Size([1, 16, 16]), torch.float32, True)

    References:
        Billot et al., SynthSeg (2023); see :mod:`medgen.anatomy.contrast`.
    """

    def __init__(self, ranges: ContrastRanges = ContrastRanges(), prob: float = 1.0) -> None:
        super().__init__(prob)
        self.ranges = ranges

    def __call__(self, label: Any, image: Any = None, randomize: bool = True) -> MetaTensor | Any:
        """The new image.

        Args:
            label: whole ids, shape ``(1, *spatial)``; the spacing is taken from its affine (1 mm without one).
            image: returned when the draw says not to act; needed with ``prob < 1``.
            randomize: draw anew; False repeats the last draw.

        Returns:
            float32 in 0..1, on the grid and device of ``label``.
        """
        if randomize:
            self.randomize()
        volume = as_volume(type(self).__name__, "label", label, (2, 3))
        if not self._do_transform:
            return self.kept("image", image)
        made = synthesize_contrast(volume, self._seed, ranges=self.ranges)
        return aligned(made, volume, {"transform": "RandLabelsToImage", "seed": self._seed})


class RandLabelsToImaged(SeededMapTransform):
    """Dictionary twin of :class:`RandLabelsToImage`.

    Args:
        label_key: of the label map.
        image_key: where the image is written; with ``prob < 1`` it must hold one already.
        ranges: see :class:`RandLabelsToImage`.
        prob: how often the image is replaced.
        allow_missing_keys: leave items without a label as they are.
    """

    def __init__(
        self,
        label_key: Hashable = "label",
        image_key: Hashable = "image",
        ranges: ContrastRanges = ContrastRanges(),
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            RandLabelsToImage(ranges),
            (label_key,),
            image_key,
            prob,
            allow_missing_keys,
            "Add LoadImaged for the label before it.",
        )
