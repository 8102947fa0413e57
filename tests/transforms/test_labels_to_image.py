"""What is particular to RandLabelsToImage; the rest is in the conformance tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, RandRotated, Spacingd

from medgen.anatomy.contrast import ContrastRanges, synthesize_contrast
from medgen.checks import MedgenError
from medgen.transforms import RandLabelsToImage, RandLabelsToImaged


def label() -> MetaTensor:
    values = torch.zeros(1, 12, 14, 10, dtype=torch.int16)
    values[:, 3:9, 3:9, 3:8] = 2
    return MetaTensor(values, affine=torch.diag(torch.tensor([-2.0, 2.0, 3.0, 1.0], dtype=torch.float64)))


def test_the_image_is_the_one_of_the_seed_in_its_provenance() -> None:
    image = RandLabelsToImage().set_random_state(seed=4)(label())
    again = synthesize_contrast(label(), image.meta["provenance"]["seed"])
    assert torch.equal(image.as_tensor(), again.as_tensor())
    assert image.meta["synthetic"] is True
    assert image.meta["provenance"]["transform"] == "RandLabelsToImage"


def test_randomize_false_repeats() -> None:
    transform = RandLabelsToImage().set_random_state(seed=4)
    first = transform(label())
    assert torch.equal(first, transform(label(), randomize=False))
    assert not torch.equal(first, transform(label()))


def test_prob_leaves_the_image_alone() -> None:
    image = torch.rand(1, 12, 14, 10)
    data = RandLabelsToImaged(prob=0.0)({"label": label(), "image": image})
    assert data["image"] is image
    kept = [RandLabelsToImage(prob=0.5).set_random_state(seed=s)(label(), image) is image for s in range(40)]
    assert 8 < sum(kept) < 32


def test_prob_without_an_image_is_refused() -> None:
    with pytest.raises(MedgenError, match=r"RandLabelsToImaged: key 'image' is missing and prob=0 leaves some items"):
        RandLabelsToImaged(prob=0.0)({"label": label()})
    with pytest.raises(MedgenError, match="image must be given with prob=0"):
        RandLabelsToImage(prob=0.0)(label())
    with pytest.raises(MedgenError, match=r"prob must lie in 0..1; got 1.5"):
        RandLabelsToImage(prob=1.5)


def test_other_keys_and_ranges() -> None:
    ranges = ContrastRanges(contrasts={"t1": 1.0})
    data = RandLabelsToImaged("seg", "t1", ranges)({"seg": label().numpy(), "name": "x"})
    assert set(data) == {"seg", "t1", "name"}
    assert float(data["t1"][data["seg"] == 2].mean()) > float(data["t1"][data["seg"] == 0].mean())


def test_one_hot_labels_are_refused() -> None:
    with pytest.raises(MedgenError, match="Turn one-hot channels into ids"):
        RandLabelsToImage()(torch.zeros(3, 8, 8, 8))
    with pytest.raises(MedgenError, match=r"label must be an array. Got str. Add LoadImaged"):
        RandLabelsToImage()("label.nii.gz")
    with pytest.raises(MedgenError, match="Add EnsureChannelFirstd"):
        RandLabelsToImage()(np.zeros((8, 8)))


def test_among_monai_transforms_and_inverted_with_the_label() -> None:
    keys = ["label", "image"]
    compose = Compose(
        [
            Orientationd(keys="label", axcodes="RAS", labels=None),
            RandLabelsToImaged(),
            Spacingd(keys=keys, pixdim=(1.5, 1.5, 1.5), mode=("nearest", "bilinear")),
            RandRotated(keys=keys, range_x=0.2, prob=1.0, mode=("nearest", "bilinear")),
        ]
    )
    data = compose({"label": label()})
    assert data["image"].shape == data["label"].shape
    assert torch.allclose(data["image"].affine, data["label"].affine)
    back = compose.inverse(data)
    assert torch.allclose(back["label"].affine, label().affine)
    oriented = Orientationd(keys="label", axcodes="RAS", labels=None)({"label": label()})["label"]
    assert back["image"].shape == oriented.shape
    assert torch.allclose(back["image"].affine, oriented.affine)  # the image never had another orientation
