"""A restored scan to files: a NIfTI file or a derived DICOM series, maps of what is not certain, and a record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.geometry import same_grid
from medgen.io.atomic import atomic_path, write_json
from medgen.io.nifti_survey import NiftiSource
from medgen.restoration.restored import Restored
from medgen.restoration.scans import Scan, merged
from medgen.restoration.written import NIFTI, Files, plain

__all__ = ["MAPS", "further_files", "maps_of", "write_restored"]

MAPS = ("std", "lower", "upper")
_DERIVATIONS = {"denoise": "denoised", "superres": "restored", "inpaint": "inpainted"}
_OF_THE_SCAN = {"inpaint": "patched"}
_CLASSICAL = {"denoise": "smoothed", "superres": "resampled", "inpaint": "processed", "bias": "processed"}
_ROUNDING = 0.01  # of the values' deviation: what rounding to the stored type may cost


def further_files(uncertainty: bool, samples: int) -> tuple[str, ...]:
    """What is written beside an image, by the key of ``Files.more``.

    Args:
        uncertainty: whether maps are asked for.
        samples: how many are drawn.

    Example:
        >>> further_files(False, 2)
        ('sample-1', 'sample-2')
    """
    return (*(MAPS if uncertainty else ()), *(_sample(k) for k in range(samples)))


def _sample(k: int) -> str:
    return f"sample-{k + 1}"


def _samples_of(restored: Restored) -> dict[str, MetaTensor]:
    """Each sample ``(1, *spatial)`` by its key."""
    if restored.samples is None:
        return {}
    values, affine = restored.samples.as_tensor(), restored.samples.affine
    return {_sample(k): MetaTensor(one[None], affine=affine) for k, one in enumerate(values)}


def maps_of(restored: Restored) -> dict[str, MetaTensor]:
    """The maps that there are, by name: expected error, ends of the 90% interval."""
    found = {name: getattr(restored, name) for name in MAPS}
    return {name: volume for name, volume in found.items() if volume is not None}


def write_restored(
    files: Files,
    scan: Scan,
    source: NiftiSource | Any,
    restored: Restored,
    record: Mapping[str, Any],
    hole: torch.Tensor | None,
    description: str,
) -> tuple[int, tuple[str, ...]]:
    """Writes a restored scan, its maps and its record: all, or what was there stays.

    A NIfTI file on the scan's grid keeps header and stored type, and voxels outside a hole their stored numbers. Where
    rounding to the stored type would cost more than 1 % of the values' standard deviation, float32 is stored.

    Args:
        files: where; of ``files.more`` the maps and samples that there are are written. Samples are NIfTI files
            whatever the scan was, in the type and with the untouched voxels of the image.
        scan: as it was.
        source: the volume of the scan, as a survey found it.
        restored: what is written.
        record: of the JSON file, and of DICOM: provenance; ``synthetic`` says what the files are marked as.
        hole: ``(1, X, Y, Z)``, where values are new; None: everywhere.
        description: of a series, at most 64 characters.

    Returns:
        How many values were clipped to the stored type, and what is to be known.
    """
    from medgen.io.nifti import write_nifti

    synthetic = bool(record["synthetic"])
    image = _bare(restored.image, source)
    same = image.shape == scan.volume.shape and same_grid(image, scan.volume)
    mask = torch.ones_like(plain(image), dtype=torch.uint8) if hole is None else plain(hole)
    with ExitStack() as until_all_are_written:

        def path(name: Any) -> Any:
            return until_all_are_written.enter_context(atomic_path(name))

        write_json(path(files.record), dict(record))
        for name, volume in maps_of(restored).items():
            if name in files.more:
                write_nifti(path(files.more[name]), _bare(volume, source).float(), synthetic=synthetic, processed=True)

        def nifti(final: Any, volume: MetaTensor) -> tuple[int, tuple[str, ...]]:
            if same and scan.stored is None and scan.path.name.lower().endswith(NIFTI):
                return _write_like(path(final), scan, source, volume, mask, synthetic)
            return _write_nifti(path(final), scan, source, volume, mask, synthetic, same)

        said = [nifti(files.more[name], _bare(one, source)) for name, one in _samples_of(restored).items()]
        if files.is_series:
            said.append(_write_series(files, scan, image, mask, record, same, description))
        else:
            said.append(nifti(files.target, image))
    remarks = dict.fromkeys(remark for _, some in said for remark in some)
    return sum(clipped for clipped, _ in said), tuple(remarks)


def _bare(volume: MetaTensor, source: Any) -> MetaTensor:
    """A volume on the CPU with its affine, of which is known what it refers to if the source says it."""
    meta = {"form_codes": source.header.form_codes} if isinstance(source, NiftiSource) else {}
    return MetaTensor(plain(volume), affine=volume.affine.cpu(), meta=meta)


def _write_like(
    path: Any, scan: Scan, source: NiftiSource, image: MetaTensor, mask: torch.Tensor, synthetic: bool
) -> tuple[int, tuple[str, ...]]:
    """A NIfTI file with the scan's header."""
    from medgen.io.nifti import write_like, write_nifti

    stored = source.header.stored
    if stored.dtype.kind in "iu" and bool(mask.all()) and _too_coarse(abs(stored.slope), image):
        write_nifti(path, image, dtype=np.float32, synthetic=synthetic, processed=True)
        return 0, (_changed(stored.name),)
    return write_like(path, scan.path, plain(image), mask, synthetic=synthetic, processed=True), ()


def _write_nifti(
    path: Any, scan: Scan, source: Any, image: MetaTensor, mask: torch.Tensor, synthetic: bool, same: bool
) -> tuple[int, tuple[str, ...]]:
    """A NIfTI file of a scan that was none, or on another grid: the scan's type where that holds the values."""
    from medgen.io.nifti import write_nifti

    meta: dict[str, Any] = {"form_codes": image.meta["form_codes"]} if "form_codes" in image.meta else {}
    clipped, remarks = 0, tuple[str, ...]()
    if isinstance(source, NiftiSource):
        stored = source.header.stored
        meta |= {"stored_dtype": stored.name, "scl_slope": stored.slope, "scl_inter": stored.inter}
        values = plain(image)
    else:
        values, clipped, remarks = _typed(scan, image, mask, same)
    found = write_nifti(path, MetaTensor(values, affine=image.affine, meta=meta), synthetic=synthetic, processed=True)
    return clipped, (*remarks, *(f"{finding.code}: {finding.text}" for finding in found))


def _write_series(
    files: Files,
    scan: Scan,
    image: MetaTensor,
    mask: torch.Tensor,
    record: Mapping[str, Any],
    same: bool,
    description: str,
) -> tuple[int, tuple[str, ...]]:
    """A derived series of the scan's study."""
    from medgen.io.write_dicom import write_series

    values, clipped, remarks = _typed(scan, image, mask, same)
    task = str(record["restores"])
    derivations = _DERIVATIONS if record.get("model") else _OF_THE_SCAN if record.get("samples") else _CLASSICAL
    write_series(
        files.target,
        MetaTensor(values, affine=image.affine),
        reference=scan.series.files if scan.series is not None else None,
        description=description,
        derivation=derivations.get(task, "restored"),
        provenance=record,
        synthetic="part" if record["synthetic"] else "no",
        keep_rescale=True,
        overwrite=True,
    )
    return clipped, remarks


def _typed(scan: Scan, image: MetaTensor, mask: torch.Tensor, same: bool) -> tuple[torch.Tensor, int, tuple[str, ...]]:
    """New values in the type of the old ones, whole where those are, but where too much would be lost."""
    old = scan.stored if scan.stored is not None else scan.volume.numpy()[0]
    if old.dtype.kind in "iu" and bool(mask.all()) and _too_coarse(1.0, image):
        return plain(image).float(), 0, (_changed(old.dtype.name),)
    like = old if same else np.zeros(image.shape[1:], old.dtype)
    values, clipped = merged(like, plain(image), mask)
    return torch.from_numpy(values[None]), clipped, ()


def _too_coarse(step: float, image: MetaTensor) -> bool:
    """Whether rounding to steps (root mean square ``step / sqrt(12)``) costs more than 1 % of the deviation."""
    return step / math.sqrt(12) > _ROUNDING * float(plain(image).double().std())


def _changed(name: str) -> str:
    return f"TYPE_CHANGED: whole numbers of {name} are too coarse for the restored values; float32 was stored."
