"""RandSynthesizeFromLabel: the user's ids and grids, and what a process holds; the rest is in the conformance tests."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.transforms import RandSynthesizeFromLabel, RandSynthesizeFromLabeld, models

CHANNELS = (("csf", (24,)), ("white_matter", (2, 41)), ("cortex", (3, 42)))


class FakeModel:
    """Returns the label map itself as the image (in tens), and remembers what it was asked."""

    multiple = 4

    def __init__(self, task: str = "label_to_image") -> None:
        self.asked: list[dict[str, Any]] = []
        self.spec = SimpleNamespace(
            name="fake",
            task=task,
            spatial_dims=3,
            label_channels=CHANNELS,
            grid=SimpleNamespace(spacing=(2.0, 2.0, 2.0)),
        )

    def sample(self, n: int, seed: int, label: MetaTensor, **options: Any) -> list[dict[str, MetaTensor]]:
        self.asked.append({"seed": seed, "label": label, **options})
        image = MetaTensor(label.as_tensor().float() / 10, affine=label.affine, meta={"provenance": {"model": "fake"}})
        return [{"image": image}]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    model = FakeModel()
    monkeypatch.setattr(models, "_load", lambda name, device: model)
    return model


def boxes(shape: tuple[int, int, int], affine: Any, ids: tuple[int, ...] = (0, 2, 3)) -> MetaTensor:
    values = torch.full((1, *shape), ids[0], dtype=torch.int16)
    values[:, shape[0] // 4 : -shape[0] // 4, 1:-1, 1:-1] = ids[1]
    values[:, shape[0] // 2 : -shape[0] // 4, 1:-1, 1:-1] = ids[2]
    return MetaTensor(values, affine=torch.as_tensor(np.asarray(affine, dtype=np.float64)))


OBLIQUE = [[0, -1.7, 0.4, 30], [-2.1, 0, 0, 12], [0, 0.4, 2.9, -5], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "affine"),
    [((16, 20, 12), np.diag([2, 2, 2, 1])), ((33, 17, 9), np.diag([-1, 1, 3.3, 1])), ((13, 22, 15), OBLIQUE)],
)
def test_comes_back_on_the_exact_grid(fake: FakeModel, shape: tuple[int, int, int], affine: Any) -> None:
    label = boxes(shape, affine)
    image = RandSynthesizeFromLabel("fake", num_inference_steps=3)(label)
    assert image.shape == label.shape
    assert torch.allclose(image.affine, label.affine)
    (asked,) = fake.asked
    assert all(n % 4 == 0 for n in asked["label"].shape[1:])
    assert np.allclose(asked["label"].affine[:3, :3], np.diag([2, 2, 2]))
    assert asked["num_inference_steps"] == 3
    assert image.meta["provenance"] == {"model": "fake", "transform": "RandSynthesizeFromLabel", "seed": asked["seed"]}
    inside = torch.nn.functional.max_pool3d((label != 2).float().as_tensor(), 5, 1, 2) == 0
    assert torch.allclose(image.as_tensor()[inside], torch.tensor(0.2), atol=1e-3)


def test_equal_spacing_moves_nothing(fake: FakeModel) -> None:
    label = boxes((16, 20, 12), np.diag([2, 2, 2, 1]))
    image = RandSynthesizeFromLabel("fake")(label)
    assert torch.allclose(image.as_tensor(), label.as_tensor() / 10, atol=1e-6)


def test_label_map_by_id_channel_and_structure_name(fake: FakeModel) -> None:
    label = boxes((8, 8, 8), np.diag([2, 2, 2, 1]), ids=(7, 100, 5))
    label[:, 0, 0, 0] = 0
    transform = RandSynthesizeFromLabel(
        "fake", {7: "background", 100: "Right-Cerebral-Cortex", 5: "white_matter", 9: 24}
    )
    transform(label)
    assert fake.asked[0]["label"].unique().tolist() == [0, 2, 42]


def test_unmapped_ids_are_refused_by_name(fake: FakeModel) -> None:
    label = boxes((8, 8, 8), np.diag([2, 2, 2, 1]), ids=(0, 10, 999))
    with pytest.raises(
        MedgenError,
        match=r"label ids 10 \(Left-Thalamus\), 999 are unknown to model 'fake'. Add label_map=\{10: name\} with a "
        "name of background, csf, white_matter, cortex",
    ):
        RandSynthesizeFromLabel("fake")(label)
    with pytest.raises(MedgenError, match=r"RandSynthesizeFromLabel: label ids 999 are not in label_map"):
        RandSynthesizeFromLabel("fake", {10: "csf"})(label)
    with pytest.raises(
        MedgenError, match=r"label_map\[10\] = 'cortx' is unknown to model 'fake'. Did you mean 'cortex'"
    ):
        RandSynthesizeFromLabel("fake", {10: "cortx", 999: 0})(label)
    with pytest.raises(MedgenError, match=r"label_map\[10\] = 17 is unknown"):
        RandSynthesizeFromLabel("fake", {10: 17, 999: 0})(label)


def test_refused_labels_and_models(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = RandSynthesizeFromLabel("fake")
    with pytest.raises(MedgenError, match=r"must have one channel. Got 3. Add AsDiscreted"):
        transform(torch.zeros(3, 8, 8, 8))
    with pytest.raises(MedgenError, match=r"must have 4 axes, channel first. Got shape \(1, 8, 8\)"):
        transform(torch.zeros(1, 8, 8))
    with pytest.raises(MedgenError, match="Got fractions"):
        transform(torch.full((1, 8, 8, 8), 0.5))
    monkeypatch.setattr(models, "_load", lambda name, device: FakeModel("inpaint"))
    with pytest.raises(MedgenError, match="has task 'inpaint', which takes no label map"):
        transform(torch.zeros(1, 8, 8, 8))


def test_dictionary_twin_keeps_or_replaces(fake: FakeModel) -> None:
    label = boxes((8, 8, 8), np.diag([2, 2, 2, 1]))
    image = torch.rand(1, 8, 8, 8)
    kept = RandSynthesizeFromLabeld("fake", prob=0.0)({"label": label, "image": image})
    assert kept["image"] is image
    made = RandSynthesizeFromLabeld("fake", "label", "new")({"label": label, "image": image})
    assert made["image"] is image
    assert made["new"].shape == (1, 8, 8, 8)


def _in_child(queue: Any) -> None:
    try:
        RandSynthesizeFromLabel("fake", device="cuda")(torch.zeros(1, 8, 8, 8))
    except MedgenError as error:
        queue.put(str(error))


def test_cuda_in_a_forked_worker_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_load", lambda name, device: pytest.fail("the model was loaded"))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    message = queue.get(timeout=20)
    child.join()
    assert message.startswith("RandSynthesizeFromLabel: a model on 'cuda")
    assert "multiprocessing_context='spawn'" in message
    assert "\n" not in message


def test_a_model_is_loaded_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    model = FakeModel()

    def load(name: str, device: str) -> FakeModel:
        loads.append(name)
        return model

    monkeypatch.setattr("medgen.models.bundled.load_model", load)
    models._load.cache_clear()
    try:
        for _ in range(2):
            RandSynthesizeFromLabel("some-model", device="cpu")(torch.zeros(1, 8, 8, 8))
    finally:
        models._load.cache_clear()
    assert loads == ["some-model"]
