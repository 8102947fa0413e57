"""What restoration writes: a new image or label map on a scan's own grid, and a record of how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import spacing_of
from medgen.io.atomic import atomic_path, check_writable, write_json
from medgen.restoration.scans import Scan, is_picture, is_series, merged

__all__ = ["Files", "Kind", "finding_texts", "planned", "write_results"]

NIFTI = (".nii", ".nii.gz")
WRITABLE_PICTURES = (".png", ".tif", ".tiff")
Kind = Literal["edited", "translated", "harmonized", "segmented"]
_DERIVATIONS = {"edited": "generated", "translated": "generated", "harmonized": "processed", "segmented": "segmented"}


@dataclass(frozen=True)
class Files:
    """Where results go.

    Args:
        target: the image: a NIfTI file, a picture for a picture, or a folder for a DICOM series.
        record: the JSON file beside it.
        is_series: whether ``target`` is a folder.
        more: further files of the same kind (of a series: NIfTI) by what they hold.
    """

    target: Path
    record: Path
    is_series: bool
    more: Mapping[str, Path]


def planned(
    output: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    overwrite: bool,
    more: Mapping[str, str | os.PathLike[str] | None] | None = None,
    series: bool = True,
) -> Files:
    """Names of the result, its record and what else is written, all of which can be.

    Args:
        output: a ``.nii`` or ``.nii.gz`` file; a ``.png`` or ``.tif`` file where the first input is a picture (a NIfTI
            file of one slice is nothing that others read as a scan); or a folder, for which the first input must be a
            DICOM series.
        inputs: all files and folders that are read; the result lies on the first one's grid.
        overwrite: whether outputs may exist.
        more: further files by what they hold; None is left out.
        series: whether a folder may be written.

    Raises:
        MedgenError: an output that is an input, a wrong suffix, one that exists without ``overwrite``, one that cannot
            be written, a folder that holds an input or anything but a series, or a record of another make.
    """
    target = Path(output)
    allowed = WRITABLE_PICTURES if is_picture(inputs[0]) else NIFTI
    ending = next((end for end in allowed if target.name.lower().endswith(end)), "")
    of_series = series and is_series(inputs[0])
    folder = not ending and of_series and (target.is_dir() or not target.suffix)
    if not ending and not folder:
        hint = " (or be a folder, without a suffix)" if of_series else ""
        raise MedgenError(f"output '{output}' must end in {_listed(allowed)}{hint}. Rename it.")
    record = target.with_name(target.name[: len(target.name) - len(ending)] + ".json")
    others = {name: Path(path) for name, path in (more or {}).items() if path is not None}
    for name, path in others.items():
        if not path.name.lower().endswith(allowed):
            raise MedgenError(f"{name} '{path}' must end in {_listed(allowed)}. Rename it.")
    _check_outputs({"output": target, "record": record, **others}, inputs, overwrite)
    if folder:
        from medgen.io.convert import check_output
        from medgen.io.convert_dicom import check_own

        for given in inputs:
            check_output(Path(given), target, resume=False, overwrite=True)
        check_own(target)
    if record.exists() and not _is_record(record):
        raise MedgenError(f"record '{record}' would replace a file of another make. Name the output otherwise.")
    return Files(target, record, folder, others)


def write_results(
    files: Files,
    scan: Scan,
    values: torch.Tensor,
    provenance: Mapping[str, Any],
    kind: Kind,
    *,
    more: Mapping[str, torch.Tensor] | None = None,
    changed: torch.Tensor | None = None,
    overwrite: bool = False,
) -> int:
    """Writes an image on a scan's grid with its record, all or none.

    A NIfTI file keeps the scan's header and stored type where the image is the same scan edited (``edited``,
    ``harmonized``); an image of another modality or a label map keeps its geometry alone.

    Args:
        files: see :func:`planned`.
        scan: on whose grid the result lies.
        values: ``(1, X, Y, Z)``: in the scan's unit, or in the new modality's, or label ids.
        provenance: goes into the record, and into DICOM; ``synthetic`` says what the files are marked as.
        kind: how it was made.
        more: further volumes, by the keys of ``files.more``; each ``(1, X, Y, Z)``.
        changed: ``(1, X, Y, Z)``, where values are new; elsewhere stored numbers stay. None: everywhere.
        overwrite: replace a folder.

    Returns:
        How many values were clipped to the stored type.
    """
    from medgen.io import nifti

    synthetic = bool(provenance.get("synthetic")) or bool(scan.volume.meta.get("synthetic"))
    same = kind in ("edited", "harmonized")
    mask = torch.ones_like(values, dtype=torch.uint8) if changed is None else changed
    clipped = 0
    with ExitStack() as until_all_are_written:

        def path(final: Path) -> Path:
            return until_all_are_written.enter_context(atomic_path(final))

        write_json(path(files.record), dict(provenance))
        for name, volume in (more or {}).items():
            if name in files.more:
                _write_plain(path(files.more[name]), scan, plain(volume), provenance, synthetic)
        if files.is_series:
            clipped = _write_series(files.target, scan, values, mask, provenance, kind, overwrite)
        elif same and scan.stored is None and _is_nifti(scan.path):
            clipped = nifti.write_like(path(files.target), scan.path, plain(values), plain(mask), synthetic=synthetic)
        else:
            made, clipped = _merged(scan, values, mask) if same else (plain(values), 0)
            _write_plain(path(files.target), scan, made, provenance, synthetic)
    return clipped


def _write_plain(path: Path, scan: Scan, values: torch.Tensor, provenance: Mapping[str, Any], synthetic: bool) -> None:
    """A NIfTI file on the scan's grid, or a picture.

    Whole numbers go into a picture as they are; others over the range of their values (PNG), which is noted in the
    file, or as they are (TIFF).
    """
    from medgen.io import nifti
    from medgen.io.write_picture import write_picture

    if path.name.lower().endswith(NIFTI):
        nifti.write_nifti(path, MetaTensor(values, affine=scan.volume.affine), synthetic=synthetic)
        return
    low, high = float(values.min()), float(values.max())
    if not values.is_floating_point() and not 0 <= low <= high < 65536:  # no picture has such whole numbers
        values = values.float()
    window = low, high if high > low else low + 1
    notes = {**provenance, "window": list(window)} if path.suffix.lower() == ".png" else provenance
    write_picture(
        path, values[..., 0], window=window, spacing=_spacing(scan), synthetic=synthetic, provenance=notes
    )  # fmt: skip


def _spacing(scan: Scan) -> tuple[float, float]:
    x, y, _ = spacing_of(scan.volume.affine).tolist()
    return float(x), float(y)


def _listed(endings: Sequence[str]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def finding_texts(scans: Sequence[Scan]) -> tuple[str, ...]:
    """What reading found out, each text once."""
    texts = (f"{finding.code}: {finding.text}" for scan in scans for finding in scan.findings)
    return tuple(dict.fromkeys(texts))


def plain(values: torch.Tensor) -> torch.Tensor:
    """A tensor without what a ``MetaTensor`` carries along, on the CPU."""
    bare: torch.Tensor = values.as_tensor() if isinstance(values, MetaTensor) else values
    return bare.detach().cpu()


def _write_series(
    folder: Path,
    scan: Scan,
    values: torch.Tensor,
    mask: torch.Tensor,
    provenance: Mapping[str, Any],
    kind: Kind,
    overwrite: bool,
) -> int:
    """A derived series of the scan's study; whole numbers where the scan has them and stays what it is."""
    from medgen.io.write_dicom import write_series

    assert scan.series is not None  # planned() made sure
    same = kind in ("edited", "harmonized")
    made, clipped = _merged(scan, values, mask) if same else (plain(values), 0)
    write_series(
        folder,
        MetaTensor(made, affine=scan.volume.affine),
        reference=scan.series.files,
        description=f"{kind} by medgen",
        derivation=_DERIVATIONS[kind],
        provenance=provenance,
        synthetic="part" if provenance.get("synthetic") else "no",
        keep_rescale=same,
        overwrite=overwrite,
    )
    return clipped


def _merged(scan: Scan, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """See :func:`~medgen.restoration.scans.merged`."""
    old = scan.stored if scan.stored is not None else scan.volume.as_tensor().cpu().numpy()[0]
    made, clipped = merged(old, plain(values), plain(mask))
    return torch.from_numpy(made[None]), clipped


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI)


def _check_outputs(paths: Mapping[str, Path], inputs: Sequence[str | os.PathLike[str]], overwrite: bool) -> None:
    """No output is an input, or another output, or there already without ``overwrite``, or cannot be written."""
    taken = {os.path.realpath(path) for path in inputs}
    for role, path in paths.items():
        real = os.path.realpath(path)
        if real in taken:
            raise MedgenError(f"{role} '{path}' is an input or another output, which would be lost. Rename it.")
        taken.add(real)
        if path.exists() and not overwrite:
            raise MedgenError(f"{role} '{path}' exists. Add --overwrite to replace it, or give another name.")
        check_writable(path)


def _is_record(path: Path) -> bool:
    """Whether a JSON file is a record of something that medgen made."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "synthetic" in content and "versions" in content
