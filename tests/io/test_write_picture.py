from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medgen.checks import MedgenError
from medgen.io.findings import Refused
from medgen.io.read_picture import picture_shape, read_picture
from medgen.io.write_picture import write_picture

CASES = [
    ("a.png", "uint8", 1), ("a.png", "uint16", 1), ("a.png", "uint8", 3), ("a.tif", "uint8", 1),
    ("a.tiff", "uint16", 3),
    ("a.tif", "float32", 1), ("a.tif", "float32", 3), ("a.tif", "float32", 2), ("a.tif", "uint8", 3),
    ("a.tif", "uint8", 4), ("a.tif", "uint16", 5),
]  # fmt: skip
TOPS = {"uint8": 255, "uint16": 65535, "float32": 1}


@pytest.mark.parametrize(("name", "dtype", "channels"), CASES)
@pytest.mark.parametrize("size", [(5, 7), (3, 3), (1, 4)])
def test_what_is_written_comes_back(
    tmp_path: Path, name: str, dtype: str, channels: int, size: tuple[int, int]
) -> None:
    picture = torch.rand(channels, *size, generator=torch.Generator().manual_seed(0))
    path = tmp_path / name
    write_picture(path, picture, dtype, spacing=(0.75, 0.5), synthetic=True, provenance={"seed": 3})
    assert picture_shape(path) == (channels, *size)
    back = read_picture(path)
    assert back.shape == picture.shape
    assert float((back.as_tensor() / TOPS[dtype] - picture).abs().max()) <= 0.5001 / TOPS[dtype] * (dtype != "float32")
    assert back.meta["synthetic"] is True
    assert back.meta["spacing"] == [0.75, 0.5]
    assert back.meta["provenance"] == {"seed": 3}
    assert torch.diag(back.affine).tolist() == [0.75, 0.5, 1, 1]
    before = path.read_bytes()
    write_picture(path, picture, dtype, spacing=(0.75, 0.5), synthetic=True, provenance={"seed": 3})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_first_row_of_the_file_is_at_the_top(tmp_path: Path) -> None:
    picture = torch.zeros(1, 4, 6)
    picture[0, 1, 5] = 1.0
    write_picture(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.array(image)
    assert pixels.shape == (6, 4)
    assert pixels[0, 1] == 255


@pytest.mark.parametrize(("name", "highest"), [("l.png", 4), ("l.png", 4000), ("l.tif", 300)])
def test_labels_keep_their_ids(tmp_path: Path, name: str, highest: int) -> None:
    label = torch.arange(12, dtype=torch.int16).reshape(1, 3, 4) * (highest // 11)
    write_picture(tmp_path / name, label)
    assert torch.equal(read_picture(tmp_path / name, role="label").as_tensor(), label.int())


def test_meta_data_travel_along(tmp_path: Path) -> None:
    made = MetaTensor(
        torch.rand(1, 4, 4),
        affine=torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0])),
        meta={"synthetic": True, "provenance": {"seed": 1}},
    )
    write_picture(tmp_path / "a.png", made)
    back = read_picture(tmp_path / "a.png")
    assert (back.meta["synthetic"], back.meta["provenance"], back.meta["spacing"]) == (True, {"seed": 1}, [0.5, 0.5])
    write_picture(tmp_path / "b.tif", back)
    assert read_picture(tmp_path / "b.tif").meta["synthetic"] is True, "what is made of it is synthetic too"


def test_a_window_and_values_beyond_it(tmp_path: Path) -> None:
    picture = torch.tensor([[[-5.0, 0.0, 50.0, 100.0, 500.0]]])
    write_picture(tmp_path / "a.png", picture, window=(0.0, 100.0))
    assert read_picture(tmp_path / "a.png").flatten().tolist() == [0, 0, 128, 255, 255]
    write_picture(tmp_path / "a.tif", picture)
    assert torch.equal(read_picture(tmp_path / "a.tif").as_tensor(), picture)


@pytest.mark.parametrize(
    ("name", "picture", "options", "text"),
    [
        ("a.jpg", torch.rand(1, 3, 3), {}, "must end in"),
        ("a.png", torch.rand(1, 3, 3, 3), {}, r"\(C, X, Y\)"),
        ("a.png", torch.rand(2, 3, 3), {}, r"Write a \.tif"),
        ("a.png", torch.rand(3, 3, 3), {"dtype": "uint16"}, r"Write a \.tif"),
        ("a.png", torch.rand(1, 3, 3), {"dtype": "float32"}, "dtype must be one of"),
        ("a.png", torch.full((1, 3, 3), torch.nan), {}, "not finite"),
        ("a.png", torch.rand(1, 3, 3), {"window": (1.0, 1.0)}, "window"),
        ("a.png", torch.full((1, 3, 3), -1), {}, "do not fit"),
        ("a.png", torch.full((1, 3, 3), 300), {"dtype": "uint8"}, "do not fit"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, picture: torch.Tensor, options: dict[str, object], text: str
) -> None:
    with pytest.raises(MedgenError, match=text):
        write_picture(tmp_path / name, picture, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_pictures_of_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgba.png")
    assert torch.equal(
        read_picture(tmp_path / "rgba.png").as_tensor(),
        torch.from_numpy(np.ascontiguousarray(colours[::-1, :, :3].transpose(2, 1, 0))).float(),
    )
    Image.fromarray(colours[..., :3]).save(tmp_path / "rgb.jpg")
    assert read_picture(tmp_path / "rgb.jpg").shape == (3, 4, 6)
    Image.fromarray(colours[..., 0] > 99).save(tmp_path / "bits.png")
    assert read_picture(tmp_path / "bits.png", role="label").unique().tolist() == [0, 1]
    with pytest.raises(MedgenError, match="colours"):
        read_picture(tmp_path / "rgb.jpg", role="label")
    (tmp_path / "broken.png").write_bytes((tmp_path / "rgba.png").read_bytes()[:60])
    with pytest.raises(Refused):
        read_picture(tmp_path / "broken.png")
    with pytest.raises(MedgenError, match="does not exist"):
        read_picture(tmp_path / "gone.png")
    Image.fromarray(colours[..., 0]).save(
        tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(colours[..., 1])]
    )
    with pytest.raises(Refused, match="2 pages"):
        read_picture(tmp_path / "pages.tif")
