from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.cohort.contact_sheet import _canonical, _slice, contact_sheet, inpaint_sheet


def subject(affine: np.ndarray | None = None) -> dict[str, MetaTensor]:
    affine = np.diag([2.0, 2, 2, 1]) if affine is None else affine
    label = torch.zeros(1, 12, 14, 10, dtype=torch.int32)
    label[:, 3:9, 4:10, 2:8] = 41
    image = label.float() * 10 + torch.rand(label.shape, generator=torch.Generator().manual_seed(0)) * 50
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def test_same_volumes_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        contact_sheet([subject(), {"image": subject()["image"]}], tmp_path / name, names=["sub-0001", "sub-0002"])
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in content
    assert b"tIME" not in content


def test_outlines_are_drawn_where_the_label_is(tmp_path: Path) -> None:
    contact_sheet([subject()], tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")[..., :3]
    coloured = (picture.max(-1) - picture.min(-1)) > 0.2
    half = picture.shape[1] // 2
    assert not coloured[:, :half].any()
    assert coloured[:, half:].sum() > 100


def test_planes_are_upright_and_left_is_left() -> None:
    """The same head stored as LPS is shown as the RAS one: patient's left on the left, anterior on top."""
    values = torch.zeros(1, 4, 5, 6)
    values[0, 0, 4, 5] = 1  # left, anterior, superior in RAS+
    ras = MetaTensor(values, affine=np.eye(4))
    lps = MetaTensor(values.flip(1, 2), affine=np.diag([-1.0, -1, 1, 1]))
    for volume in (ras, lps):
        array, _ = _canonical(volume)
        assert _slice(array, 0, (0, 0, 5))[0, 0] == 1  # axial: top left
        assert _slice(array, 1, (0, 4, 0))[0, 0] == 1  # coronal: top left
        assert _slice(array, 2, (0, 0, 0))[0, -1] == 1  # sagittal: top, anterior to the right


def test_inpaint_sheet(tmp_path: Path) -> None:
    image, mask = subject()["image"], subject()["label"] > 0
    inpaint_sheet(image, mask, image * 0.5, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").std() > 0.05
    with pytest.raises(MedgenError, match="empty"):
        inpaint_sheet(image, mask & False, image, tmp_path / "b.png")


def test_no_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="at least one"):
        contact_sheet([], tmp_path / "a.png")
