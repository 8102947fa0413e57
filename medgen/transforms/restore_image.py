"""The scan at hand, restored by a bundled or trained restorer."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from medgen.checks import MedgenError, check_choice
from medgen.transforms.base import as_volume
from medgen.transforms.models import process_model

__all__ = ["RestoreImage", "RestoreImaged"]

TASKS = ("denoise", "superres", "motion", "bias")


class RestoreImage(Transform):
    """Denoises, thins the slices of, or corrects a scan by a restorer; nothing is random.

    Args:
        task: ``denoise``, ``superres``, ``motion`` or ``bias`` (for holes: :class:`InpaintRegion`).
        model: name or folder of a restorer; the bundled one for the task by default.
        noise_level: see :func:`medgen.restoration.restore.restore`, as are ``target_spacing`` and ``slice_profile``.
        target_spacing: see there; the result lies on a finer grid.
        slice_profile: see there.
        device: ``auto``, ``cpu``, ``cuda`` ...; ``auto`` is the CPU inside a forked DataLoader worker.
    """

    def __init__(
        self,
        task: str = "denoise",
        model: str | os.PathLike[str] | None = None,
        noise_level: float | None = None,
        target_spacing: float | None = None,
        slice_profile: str | None = None,
        device: str = "auto",
    ) -> None:
        check_choice(type(self).__name__, "task", task, TASKS)
        self.task, self.device = task, device
        self.model = None if model is None else os.fspath(model)
        self.noise_level, self.target_spacing, self.slice_profile = noise_level, target_spacing, slice_profile

    def __call__(self, image: Any) -> MetaTensor:
        """The restored scan.

        Args:
            image: ``(1, X, Y, Z)``, any grid, intensity unit and device.

        Returns:
            float32 in the unit of ``image`` on its device, on its grid or, super-resolved, on a finer one.

        Raises:
            MedgenError: see :func:`medgen.restoration.restore.restore`.
        """
        return self.restored(image)[0]

    def restored(self, image: Any) -> tuple[MetaTensor, MetaTensor | None]:
        """The restored scan and the expected error of each voxel, None where the model does not say it."""
        from medgen.restoration.restore import restore
        from medgen.restoration.settings import default_model

        name = type(self).__name__
        model = process_model(self.model or default_model(self.task), self.device, name)
        made = restore(
            as_volume(name, "image", image), self.task, model,
            noise_level=self.noise_level, target_spacing=self.target_spacing, slice_profile=self.slice_profile,
            interval=False,
        )  # fmt: skip
        return made.image, made.std


class RestoreImaged(MapTransform):
    """Dictionary twin of :class:`RestoreImage`.

    Args:
        keys: of the scans, each replaced.
        task: see :class:`RestoreImage`.
        model: see :class:`RestoreImage`.
        noise_level: see :class:`RestoreImage`.
        target_spacing: see :class:`RestoreImage`.
        slice_profile: see :class:`RestoreImage`.
        std_postfix: the expected error goes to the key with this ending (``image_std``); None leaves it out.
        allow_missing_keys: leave items without a key as they are.
        device: see :class:`RestoreImage`.

    Raises:
        MedgenError: a key that is missing, an expected error that the model does not say.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable] = "image",
        task: str = "denoise",
        model: str | os.PathLike[str] | None = None,
        noise_level: float | None = None,
        target_spacing: float | None = None,
        slice_profile: str | None = None,
        std_postfix: str | None = None,
        allow_missing_keys: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.std_postfix = std_postfix
        self.transform = RestoreImage(task, model, noise_level, target_spacing, slice_profile, device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of ``data`` with the scans restored."""
        result = dict(data)
        for key in self.keys:
            if key not in result:
                if self.allow_missing_keys:
                    continue
                raise MedgenError(
                    f"RestoreImaged: key {key!r} is missing; found {tuple(result)}. Add LoadImaged before it."
                )
            result[key], std = self.transform.restored(result[key])
            if self.std_postfix is None:
                continue
            if std is None:
                raise MedgenError(
                    f"RestoreImaged: the model for '{self.transform.task}' says no error. Leave std_postfix out."
                )
            result[f"{key}_{self.std_postfix}"] = std
        return result
