"""Sampling from a model: seeds, batches, threads, worker processes, codecs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from torch import Tensor

import medgen
from medgen.checks import MedgenError
from medgen.diffusion.samplers import SAMPLERS
from medgen.models import ModelSpec, save_model
from medgen.models.codec import Codec, depth, signed_distance
from medgen.models.diffusion_model import DiffusionModel
from medgen.networks import build_network

NETWORK = {"_target_": "ConditionalUNet", "channels": [8, 16], "condition_embedding": 4, "spatial_dims": 3}


def make(task: str, dropout: float = 0.0, seed: int = 0) -> DiffusionModel:
    """A small model with random weights (the last layer too, which starts at zero)."""
    diffused = {"label_to_image": 8, "joint": 24, "inpaint": 8}[task]
    condition = 16 + (1 if dropout else 0)
    spec = ModelSpec.from_dict(
        {
            "name": "tiny",
            "version": "1.0.0",
            "network": NETWORK | {"in_channels": diffused, "out_channels": diffused, "condition_channels": condition},
            "prediction_type": "edm",
            "packing": "haar",
            "task": task,
            "label_channels": [] if task == "inpaint" else [["first", [1, 3]], ["second", [2]]],
            "label_dropout": dropout,
            "channel_mean": [0.1] * diffused,
            "channel_std": [0.5] * diffused,
            "grid": {"spacing": [2.0, 2.0, 2.0], "size": [16, 12, 8]},
            "sampling": {
                "sampler": "dpmpp_2m",
                "num_inference_steps": 3,
                "schedule": "logsnr",
                "sigma_min": 0.1,
                "sigma_max": 10.0,
            },
        }
    )
    torch.manual_seed(seed)
    network = build_network(spec.network).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return DiffusionModel(spec, {"denoiser": network}, torch.device("cpu"), "0" * 64)


def label(seed: int = 0) -> MetaTensor:
    ids = torch.randint(0, 4, (1, 16, 12, 8), generator=torch.Generator().manual_seed(seed)).to(torch.int16)
    return MetaTensor(ids, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)))


@pytest.mark.parametrize("encoding", ["one_hot", "distance"])
def test_codec_is_exact_both_ways(encoding: str) -> None:
    codec = Codec(dataclasses.replace(make("joint", dropout=0.5).spec, label_encoding=encoding))
    image, ids = torch.rand(2, 1, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8))
    given = codec.given_label(ids)
    back, found = codec.decode(codec.encode(image, given, ids), given)
    torch.testing.assert_close(back, image, atol=1e-5, rtol=0)
    assert found is not None
    assert torch.equal(found.long(), ids)


def test_codec_names_unknown_ids() -> None:
    with pytest.raises(MedgenError, match=r"ids \[9\]"):
        make("label_to_image").codec.one_hot(torch.full((1, 1, 4, 4, 4), 9))


def test_dropped_label_leaves_only_the_flag() -> None:
    codec = Codec(make("joint", dropout=0.5).spec)
    ids = torch.ones(2, 1, 8, 8, 8, dtype=torch.long)
    both = codec.given_label(ids, torch.tensor([True, False])).condition
    assert both[0, -1].min() == 1
    assert both[1].abs().max() == 0
    assert torch.equal(both[1:], codec.given_nothing((8, 8, 8)).condition)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sample_is_a_function_of_its_seed(sampler: str) -> None:
    model = make("label_to_image")
    together = model.sample(3, seed=5, label=label(), sampler=sampler)
    alone = model.sample(1, seed=6, label=label(), sampler=sampler)[0]
    assert torch.equal(together[1]["image"].as_tensor(), alone["image"].as_tensor())
    assert not torch.equal(together[0]["image"].as_tensor(), together[1]["image"].as_tensor())
    assert alone["image"].meta["synthetic"] is True
    assert alone["image"].meta["provenance"]["sampler"] == sampler
    assert torch.equal(alone["image"].affine, label().affine)
    assert torch.equal(alone["label"].as_tensor(), label().as_tensor())


def test_one_and_two_threads_give_equal_bytes() -> None:
    model, before = make("label_to_image"), torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(model.sample(1, seed=1, label=label())[0]["image"].as_tensor())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


class Draws(torch.utils.data.Dataset[Any]):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return medgen.load_model(self.folder, device="cpu").sample(1, seed=index, label=label())[0]["image"].as_tensor()


def test_workers_give_the_bytes_of_the_main_process(tmp_path: Path) -> None:
    model = make("label_to_image")
    save_model(tmp_path / "tiny", model.spec, model.denoiser.network.state_dict())
    here = [Draws(tmp_path / "tiny")[i] for i in range(3)]
    there = list(DataLoader(Draws(tmp_path / "tiny"), batch_size=1, num_workers=2))
    assert all(torch.equal(a, b[0]) for a, b in zip(here, there, strict=True))


def test_joint_model_makes_image_and_label_and_obeys_guidance_rules() -> None:
    model = make("joint", dropout=0.5)
    made = model.sample(1, seed=1)[0]
    assert made["image"].shape == made["label"].shape == (1, 16, 12, 8)
    assert set(made["label"].unique().tolist()) <= {0, 1, 2}
    given = model.sample(1, seed=1, label=label(), guidance_scale=2.0)[0]
    assert torch.equal(given["label"].as_tensor(), label().as_tensor())
    with pytest.raises(MedgenError, match="without label dropout"):
        make("label_to_image").sample(1, label=label(), guidance_scale=2.0)


def test_refusals_name_the_remedy() -> None:
    model = make("label_to_image")
    with pytest.raises(MedgenError, match="Did you mean 'euler'"):
        model.sample(1, label=label(), sampler="eulr")
    with pytest.raises(MedgenError, match="needs a label map"):
        model.sample(1)
    with pytest.raises(MedgenError, match="multiple of 4"):
        model.sample(1, label=MetaTensor(torch.zeros(1, 10, 12, 8, dtype=torch.int16)))
    with pytest.raises(MedgenError, match="fills holes"):
        make("inpaint").sample(1)


def halves() -> Tensor:
    """Label map ``(1, 1, 8, 8, 8)``: background in the first four planes, label 1 in the rest."""
    kind = torch.zeros(1, 1, 8, 8, 8, dtype=torch.long)
    kind[..., 4:] = 1
    return kind


def test_depth_counts_steps_from_the_edge_of_a_label() -> None:
    kind = halves()
    assert depth(kind)[0, 0, 0, 0].tolist() == [4, 3, 2, 1, 1, 2, 3, 4]
    assert depth(kind, 2)[0, 0, 0, 0].tolist() == [2, 2, 2, 1, 1, 2, 2, 2]
    kind[0, 0, 4, 4, 6] = 2  # a single voxel within
    assert depth(kind)[0, 0, 4, 4].tolist() == [4, 3, 2, 1, 1, 1, 1, 1]
    assert depth(kind)[0, 0, 3, 4, 6] == 1
    assert depth(kind)[0, 0, 3, 3, 6] == 2, "a neighbour over the edge of a cube is no neighbour"
    assert depth(torch.zeros(1, 1, 3, 3, dtype=torch.long)).unique().tolist() == [4]


def test_an_image_is_diffused_relative_to_the_painted_means_of_its_labels() -> None:
    spec = make("label_to_image").spec
    flat = [((0.3 + 0.1 * k, 0.05),) * 4 for k in range(len(spec.label_channels))]
    deep = ((0.1, 0.08), (0.1, 0.06), (0.1, 0.04), (0.0, 0.02))
    codec = Codec(dataclasses.replace(spec, reference="label_means", label_intensities=(deep, *flat)))
    ids = halves() * spec.label_channels[0][1][0]
    given = codec.given_label(ids)
    torch.testing.assert_close(given.center[0, 0, 0, 0], torch.tensor([0.025, 0.075, 0.1, 0.15, 0.25, 0.3, 0.3, 0.3]))
    torch.testing.assert_close(
        given.scale[0, 0, 0, 0], torch.tensor([0.025, 0.04, 0.06, 0.0675, 0.0575, 0.05, 0.05, 0.05])
    )
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(codec.decode(codec.encode(image, given), given)[0], image)
    assert codec.raw(given.center, given).abs().max() == 0  # what the label says is nothing to learn


def test_a_hole_is_filled_by_its_surroundings_alone() -> None:
    codec = Codec(dataclasses.replace(make("inpaint").spec, reference="continuation"))
    ramp = torch.linspace(0.2, 0.9, 12).expand(1, 1, 12, 12, 12)
    mask = torch.zeros_like(ramp)
    mask[..., 4:8, 4:8, 4:8] = 1
    given = codec.given_hole(torch.where(mask > 0, 9.0, ramp), mask)
    torch.testing.assert_close(given.center, ramp, atol=1e-3, rtol=0)
    assert torch.equal(given.center[mask == 0], ramp[mask == 0])


def test_a_label_on_other_axes_is_refused() -> None:
    turned = MetaTensor(label().as_tensor(), affine=torch.diag(torch.tensor([-2.0, 2.0, 2.0, 1.0])))
    with pytest.raises(MedgenError, match=r"RAS\+ axes and spacing"):
        make("label_to_image").sample(1, label=turned)


@pytest.mark.parametrize(("argument", "value"), [("n", 1.5), ("n", 0), ("num_inference_steps", 2.7)])
def test_counts_are_whole_numbers(argument: str, value: float) -> None:
    with pytest.raises(MedgenError, match=f"{argument} must be an integer above 0; got {value}"):
        make("label_to_image").sample(**{"label": label(), argument: value})


def test_a_label_without_a_place_is_refused() -> None:
    with pytest.raises(MedgenError, match="must be a MetaTensor"):
        make("label_to_image").sample(1, label=label().as_tensor())


def test_a_label_that_fills_the_volume_is_inside_everywhere() -> None:
    field = signed_distance(torch.ones(1, 1, 6, 6, 6), (1.0, 1.0, 1.0), 4.0)
    assert field.min() == 1
    edge = torch.zeros(1, 1, 10, 1, 1)
    edge[:, :, 5:] = 1
    expected = [0.0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375, 1.0]
    assert signed_distance(edge, (1.0, 1.0, 1.0), 4.0).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mean_adds_a_share_of_what_was_learnt_to_the_reference(weight: float) -> None:
    model = make("inpaint")
    sampling = dataclasses.replace(model.spec.sampling, mean_weight=weight)
    ramp = torch.linspace(0.2, 0.9, 12).expand(1, 1, 12, 12, 12)
    mask = torch.zeros_like(ramp)
    mask[..., 4:8, 4:8, 4:8] = 1
    means = []
    for settings in (model.spec.sampling, sampling):
        chosen = dataclasses.replace(model.spec, sampling=settings, reference="continuation")
        trained = DiffusionModel(chosen, {"denoiser": model.denoiser.network}, torch.device("cpu"))
        given = trained.codec.given_hole(ramp, mask)
        means.append(trained.mean(given, [1, 2]) - given.center)
    torch.testing.assert_close(means[1], weight * means[0])
    assert means[0].abs().max() > 0.01
