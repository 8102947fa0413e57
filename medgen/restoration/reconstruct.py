"""A scan through an autoencoder and back, from file to file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.atomic import atomic_path, check_writable
from medgen.models.autoencoder import AutoencoderModel
from medgen.restoration.scans import read_scan
from medgen.restoration.written import Kind, planned, write_results

__all__ = ["reconstruct_file"]

GIGABYTE = 1e9


def reconstruct_file(
    image: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | AutoencoderModel,
    label: str | os.PathLike[str] | None = None,
    latent: str | os.PathLike[str] | None = None,
    plane: str = "axial",
    memory_budget_gb: float | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> tuple[int, ...]:
    """Encode and decode a scan; the result lies on the scan's grid, in its unit, with a record beside it.

    Args:
        image: NIfTI file, picture, or a folder with one DICOM series; for a model of label maps alone, the label map.
        output: ``.nii`` or ``.nii.gz``, ``.png`` or ``.tif`` for a picture, or a folder for a DICOM series.
        model: of family ``autoencoder``: name, folder, or a loaded one.
        label: label map on the scan's grid, where the model encodes one.
        latent: also write the standardised latent, a ``.npy`` file ``(Z, *small)`` float32.
        plane: of the slices that a model with two axes takes a volume in.
        memory_budget_gb: bound of the memory for feature maps; the whole volume at once if None.
        overwrite: replace outputs that exist.
        device: where a model given by name runs.

    Returns:
        Shape of the latent.

    Raises:
        MedgenError: a model of another family, a missing label, a file that cannot be read or written.
    """
    inputs = [path for path in (image, label) if path is not None]
    files = planned(output, inputs, overwrite)
    if latent is not None:
        _check_latent(Path(latent), overwrite)
    chosen = _loaded(model, device)
    scan = read_scan(image, pictures=True)
    budget = None if memory_budget_gb is None else memory_budget_gb * GIGABYTE
    if chosen.spec.makes_image:
        made = chosen.reconstruct(
            scan.volume, None if label is None else _label(label), plane=plane, memory_budget=budget
        )
    else:
        if label is not None:
            raise MedgenError(
                f"{chosen.spec.name} encodes a label map alone. Give it in place of the scan, no --label."
            )
        made = chosen.reconstruct(None, _whole(scan.volume, image), plane=plane, memory_budget=budget)
    result, code = made["image" if chosen.spec.makes_image else "label"], made["latent"]
    assert isinstance(result, MetaTensor)  # as told by the lines above
    kind: Kind = "edited" if chosen.spec.makes_image else "segmented"
    with ExitStack() as until_all_are_written:
        if latent is not None:
            temporary = until_all_are_written.enter_context(atomic_path(latent))
            with open(temporary, "wb") as stream:
                np.save(stream, code.numpy().astype(np.float32))
        write_results(files, scan, result, result.meta["provenance"], kind, overwrite=overwrite)
    return tuple(code.shape)


def _loaded(model: str | os.PathLike[str] | AutoencoderModel, device: str) -> AutoencoderModel:
    from medgen.models.bundled import load_model

    chosen = model if isinstance(model, AutoencoderModel) else load_model(model, device=device)
    if not isinstance(chosen, AutoencoderModel):
        raise MedgenError(
            f"{chosen.spec.name}: a model of family '{chosen.spec.family}' does not reconstruct. Give an autoencoder."
        )
    return chosen


def _label(path: str | os.PathLike[str]) -> MetaTensor:
    return _whole(read_scan(path, pictures=True).volume, path)


def _whole(volume: MetaTensor, path: str | os.PathLike[str]) -> MetaTensor:
    """Label ids int16.

    Raises:
        MedgenError: values that are not whole numbers.
    """
    ids = volume.as_tensor().to(torch.int16)
    if not torch.equal(ids.float(), volume.as_tensor().float()):
        raise MedgenError(f"label '{path}' holds values that are not whole numbers of 16 bit. Give a label map.")
    return MetaTensor(ids, affine=volume.affine)


def _check_latent(path: Path, overwrite: bool) -> None:
    if path.suffix != ".npy":
        raise MedgenError(f"latent '{path}' must end in .npy. Rename it.")
    if path.exists() and not overwrite:
        raise MedgenError(f"latent '{path}' exists. Add --overwrite to replace it, or give another name.")
    check_writable(path)
