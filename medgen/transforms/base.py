"""What medgen's random transforms share: one seed per call, and volumes in and out."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform

from medgen.checks import MedgenError, check_range

__all__ = ["SeededMapTransform", "SeededTransform", "aligned", "as_volume"]

_LARGEST_SEED = 2**63 - 1


class SeededTransform(RandomizableTransform):
    """A random array transform whose only draw is whether to act and one 63-bit seed.

    Args:
        prob: how often it acts.
    """

    def __init__(self, prob: float = 1.0) -> None:
        check_range(type(self).__name__, "prob", prob, 0, 1)
        super().__init__(prob)
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether to act and the seed of what is made, from ``self.R``."""
        super().randomize(None)
        self._seed = int(self.R.randint(_LARGEST_SEED, dtype=np.int64))

    def kept(self, name: str, value: Any) -> Any:
        """What is returned when the draw says not to act.

        Raises:
            MedgenError: ``value`` is None.
        """
        if value is None:
            raise MedgenError(
                f"{type(self).__name__}: {name} must be given with prob={self.prob:g}: it is returned when nothing is "
                "made. Pass it, or use prob=1."
            )
        return value


class SeededMapTransform(RandomizableTransform, MapTransform):
    """The dictionary twin of a :class:`SeededTransform`, with MONAI's rules for keys.

    Args:
        transform: the array transform, with ``prob=1``.
        keys: of the volumes it takes, in its order; the result is written to ``output_key``.
        output_key: of the result.
        prob: how often it acts.
        allow_missing_keys: leave items without the keys as they are.
        remedy: the end of the error for a missing key.
    """

    def __init__(
        self,
        transform: SeededTransform,
        keys: tuple[Hashable, ...],
        output_key: Hashable,
        prob: float,
        allow_missing_keys: bool,
        remedy: str,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        check_range(type(self).__name__, "prob", prob, 0, 1)
        RandomizableTransform.__init__(self, prob)
        self.transform, self.output_key, self.remedy = transform, output_key, remedy

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> SeededMapTransform:
        """Sets the random state of both this transform and the array transform inside."""
        super().set_random_state(seed=seed, state=state)
        self.transform.set_random_state(seed=seed, state=state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of ``data`` in which the value of the output key is new."""
        result = dict(data)
        self.randomize(None)
        missing = [key for key in self.keys if key not in result]
        if missing and not self.allow_missing_keys:
            raise MedgenError(
                f"{type(self).__name__}: key {missing[0]!r} is missing; found {tuple(result)}. {self.remedy}"
            )
        if missing:
            return result
        if self._do_transform:
            result[self.output_key] = self.transform(*(result[key] for key in self.keys))
        elif self.output_key not in result:
            raise MedgenError(
                f"{type(self).__name__}: key {self.output_key!r} is missing and prob={self.prob:g} leaves some items "
                f"without one; found {tuple(result)}. Load the image too, or use prob=1."
            )
        return result


def as_volume(caller: str, name: str, volume: Any, spatial_dims: tuple[int, ...] = (3,)) -> MetaTensor:
    """A channel-first MetaTensor of one volume; arrays and plain tensors get 1 mm voxels.

    Args:
        caller: the transform's name, for errors.
        name: of the argument.
        volume: shape ``(C, *spatial)``.
        spatial_dims: the numbers of axes that are allowed.

    Raises:
        MedgenError: not an array, another number of axes, or empty.
    """
    if not isinstance(volume, np.ndarray | torch.Tensor):
        raise MedgenError(f"{caller}: {name} must be an array. Got {type(volume).__name__}. Add LoadImaged before it.")
    if volume.ndim - 1 not in spatial_dims or 0 in volume.shape:
        axes = " or ".join(str(dims + 1) for dims in spatial_dims)
        raise MedgenError(
            f"{caller}: {name} must have {axes} axes, channel first. Got shape {tuple(volume.shape)}. "
            "Add EnsureChannelFirstd before it."
        )
    if isinstance(volume, MetaTensor):
        return volume
    plain = torch.as_tensor(volume)
    return MetaTensor(plain, affine=torch.eye(4, dtype=torch.float64))


def aligned(image: torch.Tensor, grid: MetaTensor, provenance: Mapping[str, Any]) -> MetaTensor:
    """``image`` with the affine, the meta and the history of operations of the volume it lies on.

    Args:
        image: shape ``(C, *spatial)``.
        grid: the label map or scan whose grid it shares.
        provenance: how it was made; goes to ``meta["provenance"]``.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    meta = {**copy.deepcopy(grid.meta), "synthetic": True, "provenance": dict(provenance)}
    result = MetaTensor(plain.to(grid.device, torch.float32), meta=meta)
    result.affine = grid.affine.clone()
    result.applied_operations = copy.deepcopy(grid.applied_operations)
    return result
