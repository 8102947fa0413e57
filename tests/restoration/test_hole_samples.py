"""Samples in holes, made of the rest of the scan: what stays, seeds, any modality, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medgen.checks import MedgenError
from medgen.io.convert import OutputExists
from medgen.io.findings import Refused
from medgen.io.nifti import write_nifti
from medgen.restoration.batch import restore_batch
from medgen.restoration.restore import restore
from medgen.restoration.restore_file import restore_file
from medgen.restoration.sampled import predictive_factor
from medgen.restoration.scans import read_scan
from medgen.restoration.settings import RestoreSettings
from tests.models.test_restorer import small_restorer
from tests.restoration.mixed_inputs import save, series

SIZE = (40, 36, 30)
AFFINE = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))


def scan(low: float = 0.0, affine: torch.Tensor = AFFINE) -> MetaTensor:
    """Texture, and at the front air."""
    values = gaussian_filter(np.random.default_rng(0).normal(size=SIZE), 1.2)
    values = low + 400 + 150 * values / values.std()
    values[:, -4:] = low
    return MetaTensor(torch.from_numpy(np.maximum(values, low))[None].float(), affine=affine)


def hole(volume: MetaTensor) -> MetaTensor:
    marked = torch.zeros(volume.shape)
    marked[:, 8:14, 8:14, 10:16] = 1
    marked[:, 26:29, 20:23, 12:15] = 1
    return MetaTensor(marked, affine=volume.affine)


def test_samples_leave_the_rest_and_are_functions_of_their_seeds() -> None:
    volume, seen = scan(), []
    mask = hole(volume)
    made = restore(
        volume, "inpaint", samples=4, seed=3, inpaint_mask=mask, callback=lambda done, all_: seen.append((done, all_))
    )
    alone = restore(volume, "inpaint", samples=1, seed=4, inpaint_mask=mask)
    assert made.samples is not None
    assert alone.samples is not None
    assert torch.equal(made.samples[1], alone.samples[0])
    count = 5 * int(mask.as_tensor().sum())
    assert seen[-1] == (count, count)
    kept = mask.as_tensor()[0] == 0
    for one in (*made.samples.as_tensor(), made.image.as_tensor()[0]):
        assert torch.equal(one[kept], volume.as_tensor()[0][kept])
    assert made.std is not None
    assert float(made.std[0][kept].max()) == 0
    assert float((made.std[0][~kept] > 0).float().mean()) > 0.99
    torch.testing.assert_close((made.upper - made.image).as_tensor(), predictive_factor(4) * made.std.as_tensor())
    assert alone.std is None
    assert made.image.meta["synthetic"] is True
    assert {key: made.provenance[key] for key in ("method", "restores", "samples", "seed")} == {
        "method": "tissue from elsewhere in the scan", "restores": "inpaint", "samples": 4, "seed": 3
    }  # fmt: skip
    assert made.remarks == ()
    few = restore(volume, "inpaint", samples=2, inpaint_mask=mask)
    assert few.remarks[0].startswith("the interval of fewer than 4 samples")
    one = restore(volume, "inpaint", samples=1, inpaint_mask=mask)
    assert one.std is None
    assert one.remarks[0].startswith("one sample has no deviation and no interval")


def test_samples_are_as_sharp_as_the_scan() -> None:
    volume = scan()
    mask = hole(volume)
    made = restore(volume, "inpaint", samples=8, inpaint_mask=mask)
    assert made.samples is not None
    inside = mask.as_tensor()[0].numpy() > 0

    def energy(image: np.ndarray) -> float:
        return float(sum(np.square(part[inside]).mean() for part in np.gradient(image)))

    truth = energy(volume.numpy()[0])
    ratios = [energy(one) / truth for one in made.samples.numpy()]
    assert 0.7 < np.median(ratios) < 1.3
    assert energy(made.image.numpy()[0]) / truth < 0.7 * np.median(ratios), "their mean is smooth"


@pytest.mark.parametrize(
    ("low", "modality", "spacing"), [(-1000.0, "CT", (0.5, 0.5, 3.0)), (0.0, "MR", (2.0, 2.0, 2.0))]
)
def test_any_scan_will_do(low: float, modality: str, spacing: tuple[float, ...]) -> None:
    volume = scan(low, torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))
    made = restore(volume, "inpaint", samples=4, inpaint_mask=hole(volume), modality=modality)
    assert made.samples is not None
    assert float(made.samples.min()) >= low
    assert float(made.samples.max()) <= float(volume.max())
    assert float(made.samples.std(0).max()) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": small_restorer(restores="inpaint")}, "by no model. Leave model out"),
        ({"prior": "x"}, "prior is for task 'superres'"),
        ({"inpaint_mask": None}, "Give inpaint_mask"),
        ({"samples": 5000}, "Got samples 5000. Draw [0-9]+ at most, or leave samples out"),
    ],
)
def test_what_does_not_suit_is_refused(options: dict[str, Any], message: str) -> None:
    volume = scan()
    given = {"model": None, "samples": 2, "inpaint_mask": hole(volume)} | options
    with pytest.raises(Refused, match=message):
        restore(volume, "inpaint", **given)


def test_a_scan_that_is_too_small_is_refused() -> None:
    volume = MetaTensor(torch.rand(1, 3, 3, 3), affine=AFFINE)
    marked = torch.zeros(volume.shape)
    marked[:, 1, 1] = marked[:, 1, :, 1] = marked[:, :, 1, 1] = 1  # a cross, which fits nowhere else
    with pytest.raises(Refused, match=r"around voxel \[1, 1, 1\] there are 0 that are known") as caught:
        restore(volume, "inpaint", samples=2, inpaint_mask=MetaTensor(marked, affine=AFFINE))
    assert caught.value.code == "NO_PLACE"


def test_a_scan_of_which_too_little_is_left_is_refused() -> None:
    volume = scan()
    mask = MetaTensor((volume.as_tensor() > 0).float(), affine=AFFINE)
    with pytest.raises(Refused, match="marked voxels are brighter than air") as caught:
        restore(volume, "inpaint", samples=2, inpaint_mask=mask)
    assert caught.value.code == "NO_PLACE"


@pytest.mark.parametrize("flipped", [False, True])
def test_a_hole_larger_than_any_place_is_filled_in_parts(flipped: bool) -> None:
    """A rod that ends in a plate, either way round; parts join each other, samples do not know of others."""
    volume = scan()
    marked = torch.zeros(volume.shape)
    marked[:, 6:34, 17:20, 14:17] = 1
    marked[:, 34:37, 4:32, 4:28] = 1
    marked = marked.flip(1) if flipped else marked
    mask = MetaTensor(marked, affine=AFFINE)
    made = restore(volume, "inpaint", samples=4, inpaint_mask=mask)
    alone = restore(volume, "inpaint", samples=1, seed=3, inpaint_mask=mask)
    assert made.samples is not None
    assert alone.samples is not None
    assert torch.equal(made.samples[3], alone.samples[0])
    inside = marked[0].bool().numpy()
    steps = [np.abs(np.diff(one, axis=1))[inside[:, 1:] & inside[:, :-1]] for one in made.samples.numpy()]
    within = np.abs(np.diff(volume.numpy()[0], axis=1))
    assert max(np.quantile(step, 0.99) for step in steps) < 1.5 * np.quantile(within, 0.99), "no seams"
    assert min(np.median(step) for step in steps) > 0.5 * np.median(within), "no flat parts"


@pytest.mark.parametrize(
    ("shape", "spacing", "low", "sides", "parts"),
    [
        ((40, 36, 30), (1, 1, 1), (8, 8, 8), (24, 2, 2), 2),
        ((40, 36, 30), (1, 1, 1), (8, 8, 8), (12, 2, 2), 1),
        ((60, 56, 50), (1, 1, 1), (8, 8, 8), (14, 10, 10), 1),
        ((80, 36, 30), (0.5, 1, 1), (8, 8, 8), (24, 2, 2), 1),
        ((40, 36, 10), (1, 1, 3), (8, 8, 2), (2, 2, 6), 2),
        ((80, 72, 1), (1, 1, 1), (20, 20, 0), (20, 20, 1), 1),
        ((80, 72, 5), (1, 1, 1), (20, 20, 0), (20, 20, 5), 1),
        ((80, 72, 30), (1, 1, 1), (0, 20, 8), (7, 14, 14), 1),
    ],
)
def test_a_long_thin_hole_is_filled_in_parts(
    shape: tuple[int, ...], spacing: tuple[float, ...], low: tuple[int, ...], sides: tuple[int, ...], parts: int
) -> None:
    values, seen = 400 + 100 * np.random.default_rng(0).normal(size=shape), []
    affine, mask = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)), torch.zeros(1, *shape)
    mask[(0, *(slice(a, a + n) for a, n in zip(low, sides, strict=True)))] = 1
    made = restore(
        MetaTensor(torch.from_numpy(values)[None].float(), affine=affine),
        "inpaint",
        samples=1,
        inpaint_mask=MetaTensor(mask, affine=affine),
        callback=lambda *step: seen.append(step),
    )
    assert len(seen) == 2 * parts
    assert made.figures["cuts"] == parts - 1
    assert any("seams" in remark for remark in made.remarks) == (parts > 1)


def test_places_of_a_ct_are_found_by_its_soft_tissue() -> None:
    """Air is -1000, bone 1000, tissue 40 +- 15: a copy of the surroundings is the first place."""
    values = np.full((60, 90, 40), -1000.0)
    grain = gaussian_filter(np.random.default_rng(1).normal(size=(50, 80, 30)), 1.5)
    values[5:55, 5:85, 5:35] = 40 + 15 * grain / grain.std()
    values[5:10, 5:85, 5:35] = 1000
    values[20:45, 36:61, 8:32] = values[20:45, 10:35, 8:32]  # 26 mm away
    volume = MetaTensor(torch.from_numpy(values)[None].float(), affine=torch.eye(4, dtype=torch.float64))
    marked = torch.zeros(volume.shape)
    marked[:, 30:36, 20:26, 16:22] = 1
    made = restore(volume, "inpaint", samples=1, inpaint_mask=MetaTensor(marked, affine=volume.affine), modality="CT")
    error = (made.image.as_tensor() - volume.as_tensor())[marked > 0]
    assert float(error.abs().max()) < 0.5


def test_files_of_samples(tmp_path: Path) -> None:
    volume = scan()
    values = volume.numpy()[0].astype(np.int16)
    source = save(tmp_path / "a.nii.gz", values)
    marked = hole(volume).numpy()[0].astype(np.uint8)
    mask = save(tmp_path / "hole.nii.gz", marked)
    settings = RestoreSettings("inpaint", mask=mask, samples=4, seed=1, uncertainty=True, device="cpu")
    row = restore_file(source, tmp_path / "b.nii.gz", settings)
    kinds = ("", *(f"_sample-{k}" for k in range(1, 5)), "_std", "_lower", "_upper")
    assert set(row["outputs"]) == {f"b{kind}.nii.gz" for kind in kinds}
    given = nib.load(source)
    for kind in ("", "_sample-1", "_sample-2"):
        made = nib.load(tmp_path / f"b{kind}.nii.gz")
        new = np.asarray(made.dataobj)
        assert new.dtype == values.dtype
        np.testing.assert_array_equal(new[marked == 0], values[marked == 0])
        np.testing.assert_array_equal(made.affine, given.affine)
    record = json.loads((tmp_path / "b.json").read_text())
    assert (record["seed"], record["samples"], record["synthetic"]) == (1, 4, True)
    assert restore_file(source, tmp_path / "b.nii.gz", settings, resume=True)["kept"]
    other = RestoreSettings("inpaint", mask=mask, samples=1, seed=2, device="cpu")
    again = restore_file(source, tmp_path / "b.nii.gz", other, resume=True)
    assert not again["kept"], "another seed is another result"
    assert again["outdated"]
    assert not (tmp_path / "b_sample-2.nii.gz").exists()
    with pytest.raises(OutputExists):
        restore_file(source, tmp_path / "b.nii.gz", other)
    with pytest.raises(MedgenError, match="Leave --method classical out"):
        RestoreSettings("inpaint", "classical", mask=mask, samples=1)
    with pytest.raises(MedgenError, match="Leave --model out"):
        RestoreSettings("inpaint", mask=mask, samples=1, model="brain-mri-inpaint")


def test_a_series_is_derived_and_says_that_it_is_inpainted(tmp_path: Path) -> None:
    series(tmp_path / "in" / "s", 1)
    scan_of_series = read_scan(tmp_path / "in" / "s").volume
    marked = torch.zeros(scan_of_series.shape, dtype=torch.uint8)
    marked[:, 8:11, 8:11, 2:4] = 1
    write_nifti(tmp_path / "hole.nii.gz", MetaTensor(marked, affine=scan_of_series.affine))
    settings = RestoreSettings("inpaint", mask=tmp_path / "hole.nii.gz", samples=2, device="cpu")
    summary = restore_batch(tmp_path / "in", tmp_path / "out", settings)
    (row,) = summary.report["cases"]
    assert row["status"] == "restored", row
    assert f"samples/{row['name']}_sample-2.nii.gz" in row["outputs"]
    made = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")), stop_before_pixels=True)
    assert ": Inpainting with tissue from elsewhere in the scan" in made.DerivationDescription
