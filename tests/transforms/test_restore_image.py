"""A restorer as a transform: in Compose, in worker processes, with its expected error."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.models import save_model
from medgen.models.weights import joined_state
from medgen.restoration.restore import restore
from medgen.transforms import RestoreImage, RestoreImaged
from tests.models.test_restorer import small_restorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, path = small_restorer(), tmp_path_factory.mktemp("restorer") / "small-restorer"
    save_model(path, model.spec, joined_state(model.networks))
    return str(path)


def scan(seed: int = 0) -> MetaTensor:
    stream = torch.Generator().manual_seed(seed)
    return MetaTensor(
        torch.rand(1, 18, 17, 16, generator=stream) * 300, affine=torch.diag(torch.tensor([2.0, 1, 1, 1]))
    )


def test_the_array_transform_is_restore(folder: str) -> None:
    image = scan()
    before = image.clone()
    made = RestoreImage(model=folder, noise_level=0.05, device="cpu")(image)
    assert torch.equal(made, restore(image, "denoise", folder, noise_level=0.05, device="cpu").image)
    assert torch.equal(image, before)
    assert torch.equal(made.affine, image.affine.double())


def test_the_dictionary_transform(folder: str) -> None:
    transform = RestoreImaged(("image", "other"), "denoise", folder, noise_level=0.05, std_postfix="std", device="cpu")
    made = Compose([transform])({"image": scan(), "other": scan(1), "id": 7})
    assert set(made) == {"image", "image_std", "other", "other_std", "id"}
    assert made["image_std"].shape == made["image"].shape
    with pytest.raises(MedgenError, match="key 'other' is missing"):
        transform({"image": scan()})
    partial = RestoreImaged(("image", "other"), "denoise", folder, 0.05, allow_missing_keys=True, device="cpu")
    assert set(partial({"image": scan()})) == {"image"}


def _collated(items: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(item["image"].as_tensor()) for item in items])


class _Scans(torch.utils.data.Dataset[Any]):
    def __init__(self, transform: RestoreImaged) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.transform({"image": scan(index)})


def test_in_worker_processes(folder: str) -> None:
    transform = pickle.loads(pickle.dumps(RestoreImaged("image", model=folder, noise_level=0.05, device="cpu")))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        here, there = (
            torch.cat(list(DataLoader(_Scans(transform), batch_size=1, num_workers=n, collate_fn=_collated)))
            for n in (0, 1)
        )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(here, there)


def test_a_model_of_another_family(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="unknown model"):
        RestoreImage(model=tmp_path / "nowhere")(scan())
