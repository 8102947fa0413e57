"""Why a scan is not restored is told by one stable code each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.io.findings import CODES, Refused
from medgen.models.folder import save_model
from medgen.models.weights import joined_state
from medgen.restoration.batch import restore_batch
from medgen.restoration.classical import restore_classical
from medgen.restoration.restore import restore
from medgen.restoration.settings import RestoreSettings, default_model
from tests.models.test_restorer import small_restorer
from tests.restoration.mixed_inputs import image, save

THICK = {"restores": "superres", "given": [{"through_plane": {}}]}
DOMAIN = {"limits": [{"figure": "spacing_most", "high": 2.0, "severity": "refuse", "sentence": "Thick slices."}]}


def scan(step: float = 3.0) -> MetaTensor:
    values = torch.from_numpy(image(1).astype(np.float32))[None]
    return MetaTensor(values, affine=torch.diag(torch.tensor([1.0, 1.0, step, 1.0], dtype=torch.float64)))


def hole(value: float = 1.0, shape: tuple[int, ...] = (20, 22, 8)) -> MetaTensor:
    mask = torch.zeros(1, *shape)
    mask[:, 4:8, 4:8, 2:4] = value
    return MetaTensor(mask, affine=scan().affine)


@pytest.mark.parametrize(
    ("code", "model", "options"),
    [
        ("WRONG_OPTION", {}, {"target_spacing": 1.0}),
        ("WRONG_OPTION", {}, {"noise_level": 1.5}),
        ("EXCLUDED", {"domain": DOMAIN}, {}),
        ("NO_MASK", {"restores": "inpaint"}, {}),
        ("BAD_MASK", {"restores": "inpaint"}, {"inpaint_mask": hole(0.0)}),
        ("BAD_MASK", {"restores": "inpaint"}, {"inpaint_mask": hole(2.0)}),
        ("GRIDS_DIFFER", {"restores": "inpaint"}, {"inpaint_mask": hole(shape=(20, 20, 8))}),
        ("NOTHING_TO_DO", THICK, {"target_spacing": 3.0}),
    ],
)
def test_each_refusal_of_a_model_has_its_code(code: str, model: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        restore(scan(), model.get("restores", "denoise"), small_restorer(**model), **options)
    assert refused.value.code == code
    assert code in CODES


def test_both_grids_are_named() -> None:
    moved = hole()
    moved.affine[0, 3] += 1
    with pytest.raises(Refused, match=r"Got 20x22x8 voxels, affine \[.*; the image has 20x22x8 voxels, affine \["):
        restore(scan(), "inpaint", small_restorer(restores="inpaint"), inpaint_mask=moved)


def test_modality_without_a_model() -> None:
    with pytest.raises(Refused, match=r"^NO_MODEL: "):
        default_model("superres", "CT")


def test_values_that_are_not_finite() -> None:
    broken = scan()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(Refused, match=r"^NON_FINITE: "):
        restore(broken, "denoise", small_restorer())


def test_classical_methods_have_the_same() -> None:
    for code, task, given in (("NO_MASK", "inpaint", scan()), ("NOTHING_TO_DO", "superres", scan(1.0))):
        with pytest.raises(Refused, match=f"^{code}: "):
            restore_classical(given, task)


def test_codes_stand_in_the_report_and_slices_that_are_thin_are_no_fault(tmp_path: Path) -> None:
    for name, fields, spacing, want in (
        ("excluded", {"domain": DOMAIN}, 3.0, ("refused", "EXCLUDED")),
        ("thin", THICK, 1.0, ("skipped", "NOTHING_TO_DO")),
    ):
        made = small_restorer(**fields)  # type: ignore[arg-type]
        save_model(tmp_path / name / "model", made.spec, joined_state(made.networks))
        save(tmp_path / name / "in" / "a.nii.gz", image(1), spacing=spacing)
        settings = RestoreSettings(made.spec.restores, model=str(tmp_path / name / "model"), device="cpu")
        (row,) = restore_batch(tmp_path / name / "in", tmp_path / name / "out", settings).report["cases"]
        assert (row["status"], row["code"]) == want
        assert want[1] not in row["reason"]
