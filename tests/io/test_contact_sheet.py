from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.contact_sheet import _canonical, _slice, comparison_sheet, contact_sheet, inpaint_sheet


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


def plane(value: float = 50.0) -> dict[str, MetaTensor]:
    label = torch.zeros(1, 16, 12, dtype=torch.int32)
    label[:, 4:9, 3:8] = 1
    image = label.float() * value
    return {"image": MetaTensor(image, affine=np.eye(4)), "label": MetaTensor(label, affine=np.eye(4))}


def test_slices_stand_side_by_side(tmp_path: Path) -> None:
    for count, rows in ((3, 1), (4, 2)):
        contact_sheet([plane()] * count, tmp_path / "a.png")
        height, width = imread(tmp_path / "a.png").shape[:2]
        assert width == pytest.approx(6 * 276, abs=2)
        assert height == pytest.approx(rows * 276 + 42, abs=2)
    inpaint_sheet(plane()["image"], plane()["label"], plane()["image"], tmp_path / "b.png")
    assert imread(tmp_path / "b.png").shape[1] == pytest.approx(2 * 276, abs=2)


def test_a_slice_of_several_channels_shows_the_first(tmp_path: Path) -> None:
    one = plane()
    two = {**one, "image": MetaTensor(torch.cat([one["image"].as_tensor(), torch.ones(1, 16, 12)]), affine=np.eye(4))}
    for name, volume in (("a", one), ("b", two)):
        contact_sheet([volume], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_slice_is_upright() -> None:
    values = torch.zeros(1, 4, 5)
    values[0, 0, 4] = 1
    array, _ = _canonical(MetaTensor(values, affine=np.eye(4)))
    assert _slice(array, 0, (0, 0, 0))[0, 0] == 1


def test_comparison_keeps_the_reference_window(tmp_path: Path) -> None:
    """A set half as bright is drawn half as bright; two rows of planes a volume set, one a slice set."""
    comparison_sheet({"real": [plane()] * 2, "dark": [plane(25.0)] * 2}, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")[42:, :, :3].mean(-1)
    upper, lower = picture[:276].max(), picture[276:].max()
    assert upper > 0.9
    inside = picture[276 + 100 : 276 + 160, 120:140]
    assert 0.3 < float(np.median(inside)) < 0.7
    assert lower <= upper
    comparison_sheet({"real": [subject()], "made": [subject()] * 3}, tmp_path / "b.png")
    height, width = imread(tmp_path / "b.png").shape[:2]
    assert (height, width) == (pytest.approx(4 * 276 + 42, abs=2), pytest.approx(3 * 276, abs=2))
    with pytest.raises(MedgenError, match="each set needs"):
        comparison_sheet({"real": []}, tmp_path / "c.png")


def test_no_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="at least one"):
        contact_sheet([], tmp_path / "a.png")
