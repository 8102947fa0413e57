"""Random degradations of images: blur, thick slices, motion, under-sampling, noise, ... in any order."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.geometry import spacing_of
from medgen.intensity import bright_end
from medgen.transforms.base import SeededMapTransform, SeededTransform, aligned, as_volume

__all__ = ["RandDegrade", "RandDegraded"]

Degradations = Mapping[str, Mapping[str, Any]] | Sequence[str]

_DEFAULT: dict[str, dict[str, Any]] = {"blur": {}, "bias_field": {}, "rician": {}}


class RandDegrade(SeededTransform, InvertibleTransform):
    """Degrades an image by operators with random parameters, one after the other (2D or 3D).

    Each measures the image (blurred, in thick slices, in k-space, projected, ...) with its noise and brings the
    measurement back to the image's grid as a scanner without a prior would: interpolated slices, zero-filled k-space,
    filtered back-projection. Geometry and unit stay. What was drawn is an entry of ``applied_operations`` (under
    ``extra_info``) and, as JSON, of ``meta["provenance"]``. ``inverse`` takes the entry off and leaves the image
    degraded, so that the inverse of a whole ``Compose`` works.

    Args:
        degradations: names in :data:`medgen.operators.degradations.DEGRADATIONS`, or name -> ranges, each ``(low,
            high)`` or one number; applied in this order. Lengths are in mm, noise levels relative to the image's 99.9th
            percentile; ``transmission`` takes an image in HU, k-space, motion, ``rician`` and ``poisson`` one that is
            nowhere negative. What a step before ``poisson`` makes negative counts as 0 there.
        prob: how often it acts.

    Raises:
        MedgenError: an unknown degradation or range, or a range beyond its limits.

    Example:
        >>> image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> degrade = RandDegrade({"through_plane": {"slice_spacing_mm": (2, 4)}, "rician": {"level": 0.05}})
        >>> worse = degrade.set_random_state(seed=0)(image)
        >>> worse.shape, [step["name"] for step in worse.applied_operations[-1]["extra_info"]["degradations"]]
        (torch.Size([1, 16, 16]), ['through_plane', 'rician'])

    References:
        See each operator in :mod:`medgen.operators`.
    """

    def __init__(self, degradations: Degradations = _DEFAULT, prob: float = 1.0) -> None:
        super().__init__(prob)
        self.degradations = _named(type(self).__name__, degradations)

    def __call__(self, image: Any, randomize: bool = True) -> MetaTensor | Any:
        """The degraded image.

        Args:
            image: real, ``(C, *spatial)``; the spacing is taken from its affine (1 mm without one).
            randomize: draw anew; False repeats the last draw.

        Returns:
            float32 on the grid and device of ``image``.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return image
        volume = as_volume(type(self).__name__, "image", image, (2, 3))
        made, steps = self._degraded(volume)
        provenance = {"transform": "RandDegrade", "seed": self._seed, "degradations": json.dumps(steps)}
        result = aligned(made, volume, provenance)
        self.push_transform(result, extra_info={"degradations": steps})
        return result

    def inverse(self, data: Any) -> Any:
        """The image as it is, without this transform's entry in ``applied_operations``."""
        operations = data.applied_operations if isinstance(data, MetaTensor) else []
        if operations and operations[-1].get("class") == "RandDegrade":
            self.pop_transform(data, check=False)
        return data

    def _degraded(self, volume: MetaTensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        from medgen.operators.degradations import UNSIGNED, draw_degradation

        image = volume.as_tensor().float()[None]
        name = type(self).__name__
        if not bool(torch.isfinite(image).all()):
            raise MedgenError(f"{name}: image must be finite. Got infinite or missing values. Clean it.")
        unsigned = [part for part in self.degradations if part in UNSIGNED]
        if unsigned and bool((image < 0).any()):
            raise MedgenError(
                f"{name}: image must be at least 0 for '{unsigned[0]}', {UNSIGNED[unsigned[0]]}. Got "
                f"{float(image.min()):g}. Put normalisation to mean 0 after it."
            )
        spacing = spacing_of(volume.affine.cpu().numpy())[: volume.ndim - 1].tolist()
        steps = []
        for number, (name, ranges) in enumerate(self.degradations.items()):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, number, name))
            drawn = draw_degradation(name, volume.shape[1:], spacing, bright_end(image), generator, ranges)
            noise = torch.Generator().manual_seed(derive_seed(self._seed, number, name, "noise"))
            image = drawn.to(image.device)(image, [noise])
            steps.append({**drawn.chain.parameters(), "name": name})
        return image[0], steps


class RandDegraded(SeededMapTransform, InvertibleTransform):
    """Dictionary twin of :class:`RandDegrade`.

    Args:
        image_key: of the image.
        output_key: where the degraded image is written, the image's own key by default; with another one the clean
            image stays beside it, as a training pair.
        degradations: see :class:`RandDegrade`.
        prob: how often it acts; otherwise the output is the image.
        allow_missing_keys: leave items without an image as they are.
    """

    def __init__(
        self,
        image_key: Hashable = "image",
        output_key: Hashable | None = None,
        degradations: Degradations = _DEFAULT,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            RandDegrade(_named(type(self).__name__, degradations)),
            (image_key,),
            image_key if output_key is None else output_key,
            prob,
            allow_missing_keys,
            "Add LoadImaged before it.",
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of ``data`` in which the value of the output key is new."""
        (image_key,) = self.keys
        return super().__call__({**data, self.output_key: data[image_key]} if image_key in data else data)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of ``data`` whose degraded image has lost this transform's entry in ``applied_operations``."""
        result = dict(data)
        if self.output_key in result:
            result[self.output_key] = self.transform.inverse(result[self.output_key])
        return result


def _named(caller: str, degradations: Degradations) -> dict[str, dict[str, Any]]:
    """Name -> ranges, checked."""
    from medgen.operators.degradations import check_degradations

    if isinstance(degradations, str):
        degradations = (degradations,)
    if isinstance(degradations, Mapping):
        named = {name: dict(ranges) for name, ranges in degradations.items()}
    else:
        named = {name: {} for name in degradations}
    if not named:
        raise MedgenError(f"{caller}: degradations must name at least one. Got none. Add 'blur', for example.")
    check_degradations(caller, named)
    return named
