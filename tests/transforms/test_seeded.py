"""Items depend on seed, epoch and index: not on workers, start method, order or earlier reads."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.transforms import (
    Compose,
    EnsureTyped,
    OneOf,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandSpatialCropd,
)
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, get_worker_info

from medgen.checks import MedgenError
from medgen.transforms import RandLabelsToImaged, SeededDataset


def pipeline() -> Compose:
    return Compose(
        [
            EnsureTyped(keys="label"),
            RandLabelsToImaged("label", "image"),
            RandSpatialCropd(keys=["label", "image"], roi_size=(6, 6, 6), random_size=False),
            RandGaussianNoised(keys="image", prob=0.5),
            OneOf([RandScaleIntensityd("image", factors=0.5, prob=1.0), RandGaussianNoised("image", prob=1.0)]),
        ]
    )


def items(n: int = 6) -> list[dict[str, Any]]:
    label = np.zeros((1, 8, 8, 8), dtype=np.int16)
    label[:, 2:6, 2:6, 2:6] = 2
    return [{"label": np.roll(label, i, 1)} for i in range(n)]


def cached(seed: int = 3) -> SeededDataset:
    return SeededDataset(CacheDataset(items(), pipeline(), progress=False), seed=seed)


def epoch_bytes(loader: Any, key: str = "image") -> list[bytes]:
    return [batch[key].numpy().tobytes() for batch in loader]


@pytest.fixture(scope="module")
def expected() -> list[bytes]:
    return epoch_bytes(DataLoader(cached(), batch_size=None))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("loader", [DataLoader, MonaiLoader])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_change_nothing(loader: Any, workers: int, expected: list[bytes]) -> None:
    assert epoch_bytes(loader(cached(), batch_size=1, num_workers=workers)) == expected


def test_spawned_workers_change_nothing(expected: list[bytes]) -> None:
    loader = DataLoader(cached(), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert epoch_bytes(loader) == expected


def test_order_and_earlier_reads_change_nothing(expected: list[bytes]) -> None:
    data = cached()
    order = [4, 4, 0, -1, 2]
    assert [data[i]["image"].numpy().tobytes() for i in order] == [expected[i] for i in order]


def test_without_a_cache_and_with_the_transform_outside(expected: list[bytes]) -> None:
    outside = SeededDataset(items(), pipeline(), seed=3)
    inside = SeededDataset(MonaiDataset(items(), pipeline()), seed=3)
    assert [outside[i]["image"].numpy().tobytes() for i in range(6)] == expected
    assert [inside[i]["image"].numpy().tobytes() for i in range(6)] == expected


def test_items_seeds_and_epochs_differ(expected: list[bytes]) -> None:
    assert len(set(expected)) == len(expected)
    assert not set(expected) & set(epoch_bytes(DataLoader(cached(seed=4), batch_size=None)))
    data = cached()
    data.set_epoch(1)
    assert not set(expected) & set(epoch_bytes(DataLoader(data, batch_size=None)))
    data.set_epoch(0)
    assert epoch_bytes(DataLoader(data, batch_size=None)) == expected


def test_persistent_workers_see_the_epoch() -> None:
    def three(workers: int) -> list[list[bytes]]:
        data = cached()
        loader = DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
        result = []
        for epoch in range(3):
            data.set_epoch(epoch)
            result.append(epoch_bytes(loader))
        return result

    assert three(0) == three(2)


class Identified(SeededDataset):
    """Adds the epoch that each item was drawn for, and the worker."""

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        return {**super().__getitem__(index), "epoch": self.epoch, "worker": -1 if worker is None else worker.id}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_attached_to_an_engine_and_resumed(workers: int) -> None:
    from ignite.engine import Engine

    seen: list[int] = []
    engine = Engine(lambda _, batch: seen.append(batch["epoch"]))
    data = Identified(items(4), pipeline())
    data.attach(engine)
    loader = DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    engine.run(loader, max_epochs=2)
    assert seen == [0] * 4 + [1] * 4
    engine.load_state_dict({"epoch": 5, "max_epochs": 7, "epoch_length": 4})
    seen.clear()
    engine.run(loader, max_epochs=7)
    assert seen == [5] * 4 + [6] * 4


def test_wrapped_data_sets_are_seeded() -> None:
    parts = [MonaiDataset(items(2), pipeline()), Subset(MonaiDataset(items(4), pipeline()), [1, 3])]
    first, again = (SeededDataset(ConcatDataset(copy.deepcopy(parts)), seed=1) for _ in range(2))
    for index in range(4):
        assert torch.equal(first[index]["image"], again[index]["image"])


def test_copies_and_pickles_keep_the_draws(expected: list[bytes]) -> None:
    for data in (pickle.loads(pickle.dumps(cached())), copy.deepcopy(cached())):
        assert data[2]["image"].numpy().tobytes() == expected[2]


def test_a_second_pass_without_an_epoch_warns_once() -> None:
    data = cached()
    epoch_bytes(DataLoader(data, batch_size=None))
    with pytest.warns(UserWarning, match=r"Call set_epoch\(epoch\) before each epoch"):
        _ = data[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = data[0]
        still = SeededDataset(MonaiDataset(items(), Compose([EnsureTyped("label")])))
        _ = [still[i % 6] for i in range(20)]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_errors() -> None:
    with pytest.raises(MedgenError, match=r"data must have a length and items by index. Got Endless"):
        SeededDataset(Endless())
    with pytest.raises(IndexError, match=r"index 6 is outside of 0..5"):
        cached()[6]
