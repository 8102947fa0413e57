"""What a restoration from the command line is asked to do, checked before any scan is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from medgen.checks import MedgenError, check_choice, check_positive

__all__ = ["METHODS", "TASKS", "RestoreSettings", "default_model"]

TASKS = ("denoise", "superres", "inpaint", "motion", "bias")
METHODS = ("model", "classical")
GUARDS = ("refuse", "warn", "off")
_BELONGS = {"mask": "inpaint", "noise_level": "denoise", "target_spacing": "superres", "slice_profile": "superres"}


@dataclass(frozen=True)
class RestoreSettings:
    """How scans are restored.

    Args:
        task: ``denoise``, ``superres``, ``inpaint``, ``motion`` or ``bias``.
        method: ``model``, or ``classical``: see :mod:`medgen.restoration.classical`.
        model: name of a bundled restorer, or a model folder; None: the bundled one for the task.
        uncertainty: write the expected error, and the interval's ends, of each voxel too.
        mask: file of the hole, for ``inpaint``, and needed there.
        noise_level: deviation of the noise over the scan's 99.9th percentile, for ``denoise``; None: estimated.
        target_spacing: of the slices, mm, for ``superres``; None: that of the voxels in the slices.
        slice_profile: what the slices were measured with, for ``superres``; None: ``gaussian``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        nifti: write NIfTI files, not DICOM, where the input is DICOM.
        guard: what is done about scans that the model was not made for, see
            :func:`~medgen.restoration.restore.restore`.

    Raises:
        MedgenError: an unknown word, a number out of range, or an option that the task or method does not heed.
    """

    task: str
    method: str = "model"
    model: str | None = None
    uncertainty: bool = False
    mask: Path | None = None
    noise_level: float | None = None
    target_spacing: float | None = None
    slice_profile: str | None = None
    device: str = "auto"
    nifti: bool = False
    guard: str = "refuse"

    def __post_init__(self) -> None:
        check_choice("restore", "task", self.task, TASKS)
        check_choice("restore", "method", self.method, METHODS)
        for name, task in _BELONGS.items():
            if getattr(self, name) is not None and self.task != task:
                raise MedgenError(f"restore: {_option(name)} is for task '{task}', not '{self.task}'. Leave it out.")
        if self.method == "classical":
            self._check_classical()
        if self.task == "inpaint" and self.mask is None:
            raise MedgenError("restore: task 'inpaint' needs --mask FILE, which says what is to be filled.")
        if self.mask is not None and not Path(self.mask).exists():
            raise MedgenError(f"restore: --mask '{self.mask}' does not exist. Check the path.")
        check_choice("restore", "guard", self.guard, GUARDS)
        for name in ("noise_level", "target_spacing"):
            if getattr(self, name) is not None:
                check_positive("restore", name, getattr(self, name))
        if self.slice_profile is not None:
            from medgen.operators.slice_profiles import SLICE_PROFILES

            check_choice("restore", "slice_profile", self.slice_profile, SLICE_PROFILES)

    def _check_classical(self) -> None:
        from medgen.restoration.classical import CLASSICAL

        if self.task not in CLASSICAL:
            raise MedgenError(
                f"restore: there is no classical method for task '{self.task}', but for {', '.join(CLASSICAL)}. Give "
                "--model FOLDER instead."
            )
        for name in ("model", "slice_profile"):
            if getattr(self, name) is not None:
                raise MedgenError(f"restore: {_option(name)} goes with --method model. Leave it out.")

    def with_model(self, modality: str) -> RestoreSettings:
        """The same with a model named: the bundled one for a DICOM modality, where none is and one is needed.

        Raises:
            MedgenError: no bundled model does the task.
        """
        if self.method == "classical" or self.model is not None:
            return self
        return replace(self, model=default_model(self.task, modality))

    def fingerprint(self) -> str:
        """What tells whether the same scan would come out the same again: options, mask and weights.

        Raises:
            MedgenError: the model is not there, or is for another task.
        """
        from medgen.io.journal import file_state

        texts = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.name != "mask"]
        if self.mask is not None:
            texts.append(file_state(self.mask))
        if self.model is not None:
            texts.append(_checked_hash(self.model, self.task))
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def default_model(task: str, modality: str = "") -> str:
    """The bundled restorer for a task.

    Args:
        task: see :class:`RestoreSettings`.
        modality: of the scan by DICOM; ``CT`` for one that takes HU. A scan whose modality is not known is no CT.

    Raises:
        MedgenError: there is none.
    """
    from medgen.models.bundled import bundled_models
    from medgen.models.folder import read_spec

    for name, folder in bundled_models().items():
        spec = read_spec(folder)
        of_ct = getattr(spec, "scaling", "") == "hounsfield"
        if getattr(spec, "restores", None) == task and of_ct == (modality == "CT"):
            return name
    what = f"'{task}' of {modality}" if modality else f"'{task}'"
    from medgen.restoration.classical import CLASSICAL

    other = ", or --method classical" if task in CLASSICAL else f" (medgen train restore_{task}_tiny makes one)"
    raise MedgenError(f"restore: no bundled model does {what}. Give --model FOLDER{other}.")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@lru_cache(maxsize=8)
def _checked_hash(model: str, task: str) -> str:
    """The hash of a model that does a task."""
    from medgen.models.bundled import find_model
    from medgen.models.folder import model_hash, read_spec

    folder = find_model(model)
    restores = getattr(read_spec(folder), "restores", None)
    if restores != task:
        does = f"is for task '{restores}'" if restores else "is no restorer"
        raise MedgenError(f"restore: model '{model}' {does}; one for '{task}' is needed. Give another --model.")
    return model_hash(folder)
