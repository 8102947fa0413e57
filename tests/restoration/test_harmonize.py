"""Styles of scanners: known changes of contrast and texture are undone, anatomy and geometry stay."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti
from medgen.restoration.harmonize import METHODS, Style, check_is_scan, foreground, harmonize, harmonize_file

HIPPOCAMPUS = Path(__file__).parents[1] / "data" / "hippocampus"
AFFINE = np.array([[-1.5, 0, 0, 20], [0, 0, 2.0, -5], [0, 1.5, 0, 3], [0, 0, 0, 1.0]])


def person(seed: int, size: int = 40) -> np.ndarray:
    """A body of three tissues with texture, in air that is exactly 0."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    radius = np.sqrt((place**2).sum(0)) + 0.1 * ndimage.gaussian_filter(rng.normal(size=[size] * 3), 4) / 0.02
    tissue = np.select([radius < 0.35, radius < 0.6, radius < 0.85], [300.0, 200.0, 100.0], 0.0)
    texture = ndimage.gaussian_filter(rng.normal(size=[size] * 3), 0.5) * 20
    return np.where(tissue > 0, np.clip(ndimage.gaussian_filter(tissue, 0.7) + texture, 1, None), 0)


def volume(values: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values[None].copy()).float(), affine=torch.from_numpy(AFFINE))


def other_scanner(values: np.ndarray) -> np.ndarray:
    """Another contrast and unit; the air stays 0."""
    return np.where(values > 0, 900 * (values / 400) ** 0.6 + 40, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_known_change_of_contrast_is_undone(method: str) -> None:
    real = person(1)
    changed = volume(other_scanner(real))
    references = [volume(person(seed)) for seed in (2, 3, 4)]
    before = changed.as_tensor().clone()
    made = harmonize(changed, references, method)
    body = real > 0
    error = np.abs(made.numpy()[0] - real)[body].mean()
    assert error < 0.1 * np.abs(changed.numpy()[0] - real)[body].mean()
    assert (made.numpy()[0][~body] == 0).all()
    assert torch.equal(changed.as_tensor(), before)
    assert torch.equal(made.affine, changed.affine)


def test_texture_brings_the_references_strength_of_detail() -> None:
    sharp = person(1)
    blurred = np.where(sharp > 0, ndimage.gaussian_filter(sharp, 0.6), 0)
    style = Style.of([volume(person(2))])
    gap = {}
    for method in ("histogram", "texture"):
        found = Style.of([harmonize(volume(blurred), style, method)])
        gap[method] = np.abs(np.log(found.textures / style.textures)).mean()
    assert gap["texture"] < 0.5 * gap["histogram"]


def test_strength_goes_part_of_the_way() -> None:
    changed, style = volume(other_scanner(person(1))), Style.of([volume(person(2))])
    half, whole = (harmonize(changed, style, strength=s).as_tensor() for s in (0.5, 1.0))
    none = harmonize(changed, style, strength=0.0).as_tensor()
    inside = whole > 0
    torch.testing.assert_close(half[inside], ((whole + none) / 2)[inside], atol=30, rtol=0)
    with pytest.raises(MedgenError, match="strength"):
        harmonize(changed, style, strength=2.0)


def test_foreground_of_a_noisy_scan_and_of_one_that_was_cut_out() -> None:
    real = person(1)
    noisy = np.abs(real + np.random.default_rng(0).normal(0, 8, real.shape))
    for values in (real, noisy):
        found = foreground(volume(values))
        assert (found == (real > 0)).mean() > 0.97
    with pytest.raises(MedgenError, match="constant"):
        foreground(volume(np.ones((4, 4, 4))))


@pytest.mark.parametrize("file", sorted((HIPPOCAMPUS / "images").iterdir()), ids=lambda file: file.name[12:15])
def test_label_maps_are_told_from_scans(file: Path) -> None:
    check_is_scan("harmonize", read_nifti(file), file.name)
    label = read_nifti(HIPPOCAMPUS / "labels" / file.name)
    for values in (label, label > 0):
        with pytest.raises(MedgenError, match=r"looks like a label map or mask: [23] whole numbers"):
            check_is_scan("harmonize", MetaTensor(values.as_tensor().float(), affine=label.affine), file.name)


def test_a_label_map_for_a_reference_is_refused(tmp_path: Path) -> None:
    image, label = (HIPPOCAMPUS / folder / "hippocampus_003.nii.gz" for folder in ("images", "labels"))
    for given, reference in ((image, label), (label, image)):
        with pytest.raises(MedgenError, match=r"labels/hippocampus_003\.nii\.gz' looks like a label map"):
            harmonize_file(given, [reference], tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MedgenError, match="method"):
        harmonize(volume(person(1)), volume(person(2)), "histogramm")
    with pytest.raises(MedgenError, match="at least one"):
        harmonize(volume(person(1)), [])


def test_files_keep_header_and_type_and_say_what_was_done(tmp_path: Path) -> None:
    for name, values in (("scan", other_scanner(person(1))), ("ref", person(2))):
        image = nib.Nifti1Image(values.astype(np.int16), AFFINE)
        image.header["descrip"] = b"scanner text"
        nib.save(image, tmp_path / f"{name}.nii.gz")
    report = harmonize_file(tmp_path / "scan.nii.gz", [tmp_path / "ref.nii.gz"], tmp_path / "out.nii.gz")
    made = nib.load(tmp_path / "out.nii.gz")
    assert made.get_data_dtype() == np.int16
    assert made.header["descrip"].item() == b"scanner text"
    np.testing.assert_allclose(made.affine, AFFINE)
    assert report.after < 0.05 * report.before
    record = json.loads(report.record.read_text())
    assert record["harmonized"] == "histogram"
    assert record["synthetic"] is False  # a real scan, its intensities mapped
    assert str(tmp_path) not in report.record.read_text()
    with pytest.raises(MedgenError, match="exists"):
        harmonize_file(tmp_path / "scan.nii.gz", [tmp_path / "ref.nii.gz"], tmp_path / "out.nii.gz")
    with pytest.raises(MedgenError, match="input"):
        harmonize_file(tmp_path / "scan.nii.gz", [tmp_path / "ref.nii.gz"], tmp_path / "ref.nii.gz", overwrite=True)
