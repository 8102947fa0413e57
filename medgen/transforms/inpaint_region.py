"""A region of the scan at hand, made anew by an inpainting model."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import same_grid
from medgen.transforms.base import SeededMapTransform, SeededTransform, aligned, as_volume
from medgen.transforms.models import process_model

__all__ = ["InpaintRegion", "InpaintRegiond"]


class InpaintRegion(SeededTransform):
    """Fills the region of an ``inpaint_mask`` anew; voxels outside it stay bit-identical.

    Args:
        model: name of a bundled model, or a model folder, of task ``inpaint``.
        mode: ``sample`` draws one of the possible contents, ``mean`` is the expected one (smooth); see
            :func:`medgen.restoration.inpaint.inpaint`.
        samples: with ``sample``, the mean of so many draws; with ``mean``, 1.
        prob: how often it acts.
        device: ``auto``, ``cpu``, ``cuda`` ...; ``auto`` is the CPU inside a forked DataLoader worker.

    Raises:
        MedgenError: image and mask on other grids, an empty mask, or CUDA in a forked worker.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "brain-t1-inpaint",
        mode: str = "sample",
        samples: int = 1,
        prob: float = 1.0,
        device: str = "auto",
    ) -> None:
        super().__init__(prob)
        self.model, self.mode, self.samples, self.device = os.fspath(model), mode, samples, device

    def __call__(self, image: Any, inpaint_mask: Any, randomize: bool = True) -> MetaTensor | Any:
        """The image with the region filled.

        Args:
            image: shape ``(1, X, Y, Z)``, any spacing, orientation, intensity unit and device.
            inpaint_mask: the same grid, any device; 1 = regenerate, 0 = keep.
            randomize: draw anew; False repeats the last draw.

        Returns:
            float32 on the grid and device of ``image``.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return image
        return self._inpaint(as_volume(type(self).__name__, "image", image), inpaint_mask)

    def _inpaint(self, image: MetaTensor, inpaint_mask: Any) -> MetaTensor:
        from medgen.restoration.inpaint import inpaint

        name = type(self).__name__
        mask = as_volume(name, "inpaint_mask", inpaint_mask)
        if not isinstance(inpaint_mask, MetaTensor):
            mask.affine = image.affine.clone()
        if not same_grid(image, mask):
            raise MedgenError(
                f"{name}: inpaint_mask must lie on the image's grid. Got shapes {tuple(mask.shape)} and "
                f"{tuple(image.shape)}. Add ResampleToMatchd(mode='nearest') before it."
            )
        model = process_model(self.model, self.device, name)
        filled = inpaint(image, mask, model, mode=self.mode, samples=self.samples, seed=self._seed)
        made = filled.meta.get("provenance", {}) if isinstance(filled, MetaTensor) else {}
        return aligned(torch.as_tensor(filled), image, {**made, "transform": name, "seed": self._seed})


class InpaintRegiond(SeededMapTransform):
    """Dictionary twin of :class:`InpaintRegion`.

    Args:
        image_key: of the scan, replaced.
        inpaint_mask_key: of the mask, kept.
        model: see :class:`InpaintRegion`, as are ``mode``, ``samples`` and ``device``.
        mode: see :class:`InpaintRegion`.
        samples: see :class:`InpaintRegion`.
        prob: how often it acts.
        allow_missing_keys: leave items without both keys as they are.
        device: see :class:`InpaintRegion`.
    """

    def __init__(
        self,
        image_key: Hashable = "image",
        inpaint_mask_key: Hashable = "inpaint_mask",
        model: str | os.PathLike[str] = "brain-t1-inpaint",
        mode: str = "sample",
        samples: int = 1,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(
            InpaintRegion(model, mode, samples, device=device),
            (image_key, inpaint_mask_key),
            image_key,
            prob,
            allow_missing_keys,
            "Add LoadImaged, and RandCoarseDropoutd or your own mask, before it.",
        )
