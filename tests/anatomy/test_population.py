"""Random subjects: reproducible to the byte, orientation kept, sides and brain extraction right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from medgen.anatomy.deformation import jacobian_determinant
from medgen.anatomy.labels import BRAIN_IDS, LABELS, swap_sides
from medgen.anatomy.population import Population
from medgen.checks import MedgenError

SMALL = {"spacing": (4.0, 4.0, 4.0), "size": (48, 56, 48)}


def centroid_x(label: np.ndarray, ids: tuple[int, ...]) -> float:
    return float(np.argwhere(np.isin(label, ids))[:, 0].mean())


def test_default_grid_and_ranges() -> None:
    subject = Population().subject(1)
    assert tuple(subject.image.shape) == tuple(subject.label.shape) == (1, 96, 112, 96)
    assert subject.image.dtype == torch.float32
    assert subject.label.dtype == torch.int16
    assert 0 <= float(subject.image.min()) <= float(subject.image.max()) <= 1
    assert set(torch.unique(subject.label).tolist()) <= set(LABELS)
    assert subject.image.meta["synthetic"] is True
    assert np.allclose(subject.image.affine, subject.affine)


def test_same_seed_same_bytes_on_one_and_two_threads() -> None:
    threads = torch.get_num_threads()
    population, results = Population(**SMALL), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(population.subject(7))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0].image, results[1].image)
    assert torch.equal(results[0].label, results[1].label)
    assert not torch.equal(results[0].label, population.subject(8).label)


class Subjects(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images and labels of seeds 0, 1, ..."""

    def __init__(self, population: Population) -> None:
        self.population = population

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        subject = self.population.subject(index)
        return subject.image.as_tensor(), subject.label.as_tensor()


def test_workers_give_the_same_bytes() -> None:
    dataset = Subjects(Population(**SMALL))
    for workers in (0, 2):
        for index, (image, label) in enumerate(DataLoader(dataset, batch_size=None, num_workers=workers)):
            assert torch.equal(image, dataset[index][0])
            assert torch.equal(label, dataset[index][1])


def test_patch_and_label_equal_the_whole() -> None:
    population = Population(**SMALL)
    whole, part = population.subject(5), population.subject(5, ((3, 10, 7), (24, 20, 31)))
    where = (slice(None), slice(3, 27), slice(10, 30), slice(7, 38))
    assert torch.equal(part.image.as_tensor(), whole.image.as_tensor()[where])
    assert torch.equal(part.label.as_tensor(), whole.label.as_tensor()[where])
    assert torch.equal(population.label(5).as_tensor(), whole.label.as_tensor())
    corner = whole.affine @ [3, 10, 7, 1]
    assert np.allclose(part.affine[:3, 3], corner[:3])
    random = population.random_patch(5, (24, 24, 24))
    assert tuple(random.label.shape) == (1, 24, 24, 24)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_map_keeps_orientation_and_left_is_left(flip: float) -> None:
    population = Population(flip=flip, brain_extracted=0)
    for seed in range(20, 22):
        mapping, parameters = population.draw(seed)
        points = mapping.points((0, 0, 0), mapping.shape)[:, ::2, ::2, ::2]
        determinant = jacobian_determinant(points, (2.0, 2.0, 2.0)) * (-1 if parameters["flip"] else 1)
        assert determinant.min() > 0
    label = Population(**SMALL, flip=flip, brain_extracted=0).label(20).numpy()[0]
    assert centroid_x(label, (2, 3, 17)) < centroid_x(label, (41, 42, 53))


def test_brain_extracted_subject_is_zero_outside_the_brain() -> None:
    subject = Population(**SMALL, brain_extracted=1).subject(2)
    assert set(torch.unique(subject.label).tolist()) <= {0, *BRAIN_IDS}
    assert float(subject.image[subject.label == 0].abs().max()) == 0
    whole = Population(**SMALL, brain_extracted=0).subject(2)
    kept = subject.label > 0
    assert torch.equal(subject.image[kept].as_tensor(), whole.image[kept].as_tensor())
    assert 1000 < float(kept.sum()) * 0.064 < 2600


def test_head_lies_within_the_grid() -> None:
    population = Population(**SMALL, brain_extracted=0)
    for seed in range(6):
        label = population.label(seed).numpy()[0]
        brain = np.argwhere(np.isin(label, (2, 3, 41, 42, 7, 8, 46, 47)))
        assert (brain.min(0) > 0).all()
        assert (brain.max(0) < np.array(label.shape) - 1).all()


def test_swap_sides_is_its_own_inverse() -> None:
    ids = np.array(sorted(LABELS), np.int16)
    assert (swap_sides(swap_sides(ids)) == ids).all()
    assert swap_sides(np.array([3, 16, 259], np.int16)).tolist() == [42, 16, 259]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(MedgenError, match="flip"):
        Population(flip=2)
    with pytest.raises(MedgenError, match="Did you mean"):
        Population(atlas="colin")
    with pytest.raises(MedgenError, match="three values"):
        Population(size=(3, 3))  # type: ignore[arg-type]
    with pytest.raises(MedgenError, match="patch must lie"):
        Population(**SMALL).subject(0, ((40, 0, 0), (20, 20, 20)))
