"""What a restoration from the command line is asked to do, checked before any scan is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from medgen.checks import MedgenError, check_choice, check_positive
from medgen.io.findings import Refused
from medgen.models.device import resolve_device
from medgen.models.restorer_spec import RESTORED

__all__ = [
    "CLASSICAL", "GUARDS", "METHODS", "SAMPLED", "TASK_OF_OPTION", "RestoreSettings", "check_model", "default_model",
]  # fmt: skip

METHODS = ("model", "classical")
GUARDS = ("refuse", "warn", "off")
CLASSICAL = ("denoise", "superres", "inpaint", "bias")
"""Tasks that there is a method without a model for."""
SAMPLED = ("denoise", "superres", "inpaint")
"""Tasks that samples are drawn for."""
TASK_OF_OPTION = {
    "noise_level": "denoise", "target_spacing": "superres", "slice_profile": "superres", "prior": "superres"
}  # fmt: skip


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
        samples: how many are drawn, for ``denoise``, ``superres`` and ``inpaint``; the image is their mean. 0: one
            expected image.
        seed: of the first sample.
        prior: name or folder of the denoising restorer that samples of ``superres`` are drawn with; None: the bundled
            one.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        nifti: write NIfTI files, not DICOM, where the input is DICOM.
        guard: what is done about scans that the model was not made for, see
            :func:`~medgen.restoration.restore.restore`.

    Raises:
        MedgenError: an unknown word, a number out of range, an option that the task or method does not heed, a device
            or model that is not there, or a model for another task.
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
    samples: int = 0
    seed: int = 0
    prior: str | None = None

    def __post_init__(self) -> None:
        check_choice("restore", "task", self.task, RESTORED)
        check_choice("restore", "method", self.method, METHODS)
        for name, task in {"mask": "inpaint", **TASK_OF_OPTION}.items():
            if getattr(self, name) is not None and self.task != task:
                raise MedgenError(f"restore: {_option(name)} is for task '{task}', not '{self.task}'. Leave it out.")
        if self.method == "classical":
            self._check_classical()
        if self.task == "inpaint" and self.mask is None:
            raise MedgenError("restore: task 'inpaint' needs --mask FILE, which says what is to be filled.")
        if self.mask is not None and not Path(self.mask).exists():
            raise MedgenError(f"restore: --mask '{self.mask}' does not exist. Check the path.")
        check_choice("restore", "guard", self.guard, GUARDS)
        if self.target_spacing is not None:
            check_positive("restore", "target_spacing", self.target_spacing)
        if self.noise_level is not None and not 0 < self.noise_level < 1:
            raise MedgenError(
                f"restore: --noise-level must be above 0 and below 1. Got {self.noise_level}. 0.05 is 5%."
            )
        if self.slice_profile is not None:
            from medgen.operators.slice_profiles import SLICE_PROFILES

            check_choice("restore", "slice_profile", self.slice_profile, SLICE_PROFILES)
        resolve_device(self.device, "restore")
        self._check_samples()
        if self.method == "model" and not self._of_the_scan:
            check_model(self.model, self.task)

    @property
    def _of_the_scan(self) -> bool:
        """Whether the rest of the scan is all that is needed."""
        return self.samples > 0 and self.task == "inpaint"

    @property
    def made_by(self) -> str:
        """``model``, ``classical``, or ``scan``: samples of holes are made of the rest of the scan."""
        return "scan" if self._of_the_scan else self.method

    def _check_samples(self) -> None:
        if self.samples < 0 or self.seed < 0:
            raise MedgenError(
                f"restore: --samples and --seed must be 0 or above. Got {self.samples} and {self.seed}. Correct them."
            )
        if not self.samples and (self.prior is not None or self.seed):
            given = "--prior goes" if self.prior is not None else "--seed goes"
            raise MedgenError(f"restore: {given} with --samples of 1 or more. Leave it out.")
        if not self.samples:
            return
        if self.task not in SAMPLED:
            raise MedgenError(
                f"restore: --samples is for {', '.join(SAMPLED)}, not for '{self.task}', whose degradation is not "
                "known exactly. Leave it out: the restorer gives the expected image, --uncertainty its error."
            )
        if self._of_the_scan and self.model is not None:
            raise MedgenError(
                "restore: --samples of task 'inpaint' are made of the rest of the scan, by no model. Leave --model out."
            )
        if self.method == "model" and self.task == "superres":
            check_model(self.prior, "denoise", option="--prior")

    def _check_classical(self) -> None:
        if self.task not in CLASSICAL:
            raise MedgenError(
                f"restore: there is no classical method for task '{self.task}', but for {', '.join(CLASSICAL)}. Give "
                "--model FOLDER instead."
            )
        if self.samples and self.task == "inpaint":
            raise MedgenError(
                "restore: --samples of task 'inpaint' are made of the rest of the scan. Leave --method classical out."
            )
        for name in ("model", "slice_profile", "samples"):
            if getattr(self, name):
                raise MedgenError(f"restore: {_option(name)} goes with --method model. Leave it out.")

    def with_model(self, modality: str) -> RestoreSettings:
        """The same with models named: the bundled ones for a DICOM modality, where none are and some are needed.

        Raises:
            Refused: ``NO_MODEL``: no bundled model does the task for it.
        """
        if self.method == "classical" or self._of_the_scan:
            return self
        model, prior = self.model or default_model(self.task, modality), self.prior
        if prior is None and self.samples and self.task == "superres":
            prior = default_model("denoise", modality)
        return replace(self, model=model, prior=prior)

    def fingerprint(self) -> str:
        """What tells whether the same scan would come out the same again: options, mask and weights."""
        from medgen.io.journal import file_state

        texts = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.name != "mask"]
        if self.mask is not None:
            texts.append(file_state(self.mask))
        texts += [_hash(name) for name in (self.model, self.prior) if name is not None]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def default_model(task: str, modality: str = "") -> str:
    """The bundled restorer for a task.

    Args:
        task: see :class:`RestoreSettings`.
        modality: of the scan by DICOM; ``CT`` for one that takes HU. A scan whose modality is not known is no CT.

    Raises:
        Refused: ``NO_MODEL``: there is none.
    """
    for name, of_ct in _bundled(task).items():
        if of_ct == (modality == "CT"):
            return name
    raise Refused("NO_MODEL", _no_model(f"'{task}' of {modality}" if modality else f"'{task}'", task))


def check_model(model: str | None, task: str, option: str = "--model") -> None:
    """Refuses a model that does not do a task; nothing of it but its specification is read.

    Args:
        model: name of a bundled one, or a folder; None: that there is a bundled one for some modality.
        task: see :class:`RestoreSettings`.
        option: that gives another one.

    Raises:
        MedgenError: with what is needed.
    """
    from medgen.models.bundled import find_model
    from medgen.models.folder import read_spec

    if model is None:
        if not _bundled(task):
            raise MedgenError(_no_model(f"'{task}'", task))
        return
    restores = getattr(read_spec(find_model(model)), "restores", None)
    if restores != task:
        does = f"is for task '{restores}'" if restores else "is no restorer"
        raise MedgenError(f"restore: model '{model}' {does}; one for '{task}' is needed. Give another {option}.")


def _bundled(task: str) -> dict[str, bool]:
    """Names of the bundled restorers for a task, and whether each takes HU."""
    from medgen.models.bundled import bundled_models
    from medgen.models.folder import read_spec

    specs = {name: read_spec(folder) for name, folder in bundled_models().items()}
    return {
        name: getattr(spec, "scaling", "") == "hounsfield"
        for name, spec in specs.items()
        if getattr(spec, "restores", None) == task
    }


def _no_model(what: str, task: str) -> str:
    other = ", or --method classical" if task in CLASSICAL else f" (medgen train restore_{task}_tiny makes one)"
    return f"restore: no bundled model does {what}. Give --model FOLDER{other}."


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@lru_cache(maxsize=8)
def _hash(model: str) -> str:
    from medgen.models.bundled import find_model
    from medgen.models.folder import model_hash

    return model_hash(find_model(model))
