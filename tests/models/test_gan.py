"""Adversarial models: what a specification may say, sampling and translation, equality after save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.models import load_model, save_model
from medgen.models.gan import GanModel
from medgen.models.gan_spec import GanSpec, completed
from medgen.models.specification import ModelSpec
from medgen.models.weights import joined_state
from medgen.networks import build_network

SIZES = {2: [8, 12], 3: [8, 6, 4]}
NETS: dict[str, dict[str, Any]] = {
    "style": {"_target_": "StyleGenerator", "channels": [4, 6], "latent_dim": 4, "style_dim": 4},
    "spade": {"_target_": "SpadeGenerator", "channels": [4, 6], "latent_dim": 3, "hidden_channels": 4},
    "pix2pix": {"_target_": "UNetGenerator", "channels": [4, 6]},
    "cyclegan": {"_target_": "ResNetGenerator", "channels": [4, 6], "num_res_blocks": 1},
}
TASKS = {"style": "joint", "spade": "label_to_image", "pix2pix": "translate", "cyclegan": "translate"}
SOURCES = {"pix2pix": ["T1w", "T2w"], "cyclegan": ["T1w"]}
CONTROL = {"name": "size", "kind": "class", "values": ["small", "large"], "shares": [0.5, 0.5]}


def content(kind: str, dims: int = 3, packing: int = 1, **changes: Any) -> dict[str, Any]:
    """The content of a valid ``medgen.json``."""
    labels = [["first", [1, 3]], ["second", [2]]] if kind in ("style", "spade") else []
    voxels = 1 + (2 if kind == "style" else 0)
    sources, factor = SOURCES.get(kind, []), 2 ** (packing * dims)
    told = factor * (len(labels) if kind == "spade" else len(sources))
    wiring: dict[str, Any] = {"spatial_dims": dims, "out_channels": voxels * factor}
    if kind == "style":
        wiring |= {"out_channels": voxels, "size": SIZES[dims], "context_dim": 0}
    if kind == "spade":
        size = [n // 2**packing for n in SIZES[dims]]
        wiring |= {"size": size, "context_dim": 0, "label_channels": told}
    if kind in SOURCES:
        wiring["in_channels"] = told + (len(sources) if kind == "pix2pix" else 0)
    found = {
        "family": "gan", "name": "tiny", "version": "1.0.0", "task": TASKS[kind], "kind": kind,
        "grid": {"spacing": [1.0] * dims, "size": SIZES[dims]}, "label_channels": labels,
        "label_encoding": "distance" if kind == "style" else "one_hot", "source_modalities": sources,
        "packing_levels": packing, "network": NETS[kind] | wiring,
        "channel_mean": [0.4] * voxels, "channel_std": [0.2] * voxels, "band_std": [0.5] * (voxels * factor),
        "source_mean": [0.3] * len(sources), "source_std": [0.1] * len(sources),
    }  # fmt: skip
    if kind == "cyclegan":
        found["back_network"] = NETS[kind] | {"spatial_dims": dims, "in_channels": factor, "out_channels": factor}
        found["source_band_std"] = [0.5] * factor
    return found | changes


def make(kind: str, dims: int = 3, packing: int = 1, **changes: Any) -> GanModel:
    spec = ModelSpec.from_dict(content(kind, dims, packing, **changes))
    assert isinstance(spec, GanSpec)
    torch.manual_seed(0)
    networks = {name: build_network(form).eval().requires_grad_(False) for name, form in spec.networks().items()}
    return GanModel(spec, networks, torch.device("cpu"), "0" * 64)


def label(dims: int = 3, seed: int = 0) -> MetaTensor:
    ids = torch.randint(0, 4, (1, *SIZES[dims]), generator=torch.Generator().manual_seed(seed)).to(torch.int16)
    return MetaTensor(ids, affine=torch.eye(4))


def sources(kind: str, dims: int) -> dict[str, torch.Tensor]:
    count = len(SOURCES[kind])
    images = torch.rand(count, *SIZES[dims], generator=torch.Generator().manual_seed(0))
    return {"source": images, "present": torch.ones(count)}


@pytest.mark.parametrize("packing", [0, 1])
@pytest.mark.parametrize("dims", [2, 3])
def test_style_samples_image_and_label_by_seed_alone(dims: int, packing: int) -> None:
    model = make("style", dims, packing)
    pair = model.sample(2, seed=5)
    again = model.sample(1, seed=6)[0]
    assert pair[0]["image"].shape == pair[0]["label"].shape == (1, *SIZES[dims])
    assert torch.equal(pair[1]["image"], again["image"])
    assert not torch.equal(pair[0]["image"], again["image"])
    assert pair[0]["image"].meta["provenance"]["truncation"] == 1.0
    with pytest.raises(MedgenError, match="told no label map"):
        model.sample(label=label(dims))


def test_truncation() -> None:
    model = make("style")
    full, mean = (model.sample(2, seed=0, truncation=t) for t in (None, 0.0))
    assert not torch.equal(full[0]["image"], mean[0]["image"])
    for wrong in (-1, "x"):
        with pytest.raises(MedgenError, match="truncation must be"):
            model.sample(truncation=wrong)
    with pytest.raises(MedgenError, match="has no 'num_inference_steps'"):
        model.sample(num_inference_steps=3)


def test_controls_matter_and_an_unknown_one_is_refused() -> None:
    encoder = {"_target_": "ControlEncoder", "context_dim": 4, "classes": [2]}
    form = content("style")
    net = form["network"] | {"context_dim": 4}
    model = make("style", network=net, controls=[CONTROL], control_encoder=encoder)
    small, large = (model.sample(seed=0, conditions={"size": size})[0]["image"] for size in ("small", "large"))
    assert not torch.equal(small, large)
    with pytest.raises(MedgenError, match="size"):
        model.sample(conditions={"size": "huge"})


@pytest.mark.parametrize("dims", [2, 3])
def test_spade_makes_an_image_for_a_label(dims: int) -> None:
    model = make("spade", dims)
    a, b = (model.sample(seed=s, label=label(dims))[0] for s in (0, 1))
    assert torch.equal(a["label"], label(dims))
    assert not torch.equal(a["image"], b["image"])
    with pytest.raises(MedgenError, match="needs a label map"):
        model.sample()


@pytest.mark.parametrize("dims", [2, 3])
def test_pix2pix_does_without_a_missing_source(dims: int) -> None:
    model, known = make("pix2pix", dims), sources("pix2pix", dims)
    image, made = model.produce(known, tuple(SIZES[dims]), 0, model.settings())
    assert image is not None
    assert image.shape == (1, *SIZES[dims])
    assert made is None
    missing = known | {"present": torch.tensor([1.0, 0.0])}
    without, _ = model.produce(missing, tuple(SIZES[dims]), 0, model.settings())
    blank = missing | {"source": torch.stack([known["source"][0], torch.full(SIZES[dims], 9.0)])}
    same, _ = model.produce(blank, tuple(SIZES[dims]), 0, model.settings())
    assert without is not None
    assert same is not None
    assert torch.equal(without, same), "what is not there is not looked at"
    assert not torch.equal(without, image)


@pytest.mark.parametrize("dims", [2, 3])
def test_cyclegan_goes_both_ways(dims: int) -> None:
    model, known = make("cyclegan", dims), sources("cyclegan", dims)
    size = tuple(SIZES[dims])
    forward, back = (model.produce(known, size, 0, model.settings(direction=d))[0] for d in ("forward", "back"))
    assert forward is not None
    assert back is not None
    assert forward.shape == back.shape == (1, *size)
    assert not torch.equal(forward, back)
    with pytest.raises(MedgenError, match="direction must be one of"):
        model.settings(direction="up")
    with pytest.raises(MedgenError, match="Use translate"):
        model.sample()


@pytest.mark.parametrize("kind", list(NETS))
def test_same_bytes_after_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    save_model(tmp_path / "model", model.spec, joined_state(model.networks))
    loaded = load_model(tmp_path / "model", device="cpu")
    assert isinstance(loaded, GanModel)
    assert loaded.spec == model.spec
    known = sources(kind, 3) if kind in SOURCES else {"label": label().as_tensor()} if kind == "spade" else {}
    for way in (model, loaded):
        way.settings()
    a, b = (m.produce(known, tuple(SIZES[3]), 7, m.settings())[0] for m in (model, loaded))
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)


def test_codec_there_and_back() -> None:
    codec = make("style").codec
    image, ids = torch.rand(2, 1, *SIZES[3]), torch.stack([label(), label(seed=1)]).as_tensor()
    stack = codec.decode_stack(codec.encode(image, ids))
    assert torch.allclose(stack[:, :1], image, atol=1e-5)
    assert torch.allclose(stack, codec.stack(image, ids), atol=1e-5)


@pytest.mark.parametrize(("dims", "packing"), [(2, 1), (3, 1), (2, 2), (2, 0)])
def test_low_bands_alone_make_a_smooth_image(dims: int, packing: int) -> None:
    codec = make("spade", dims, packing).codec
    factor = 2 ** (packing * dims)
    size = [n // 2**packing for n in SIZES[dims]]
    made = torch.zeros(1, factor, *size)
    ramp = torch.arange(size[1], dtype=torch.float32).reshape(-1, *[1] * (dims - 2)).expand(*size)
    made[:, 0] = ramp
    image = codec.unpack(codec.finished(made))[0, 0]
    inner = image[:, 2**packing : -(2**packing)] if packing else image
    steps = inner.diff(dim=1)
    assert torch.allclose(steps, steps.mean().expand_as(steps), atol=1e-5), "a ramp without blocks"
    assert steps.mean().item() == pytest.approx(0.5 / (2**packing * factor**0.5), rel=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_no_grid_of_blocks_shows(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, dims, [24, 32, 20][:dims])
    model = make("style", dims)
    with torch.no_grad():
        made = model.networks["generator"](torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
        voxels = model.codec.unpack(model.codec.finished(made))
    inner = voxels[(slice(None), slice(None), *[slice(4, -4)] * dims)]
    places = torch.meshgrid(*(torch.arange(n) for n in inner.shape[2:]), indexing="ij")
    variance = inner.flatten(2).var(2)
    for along in (places[0], sum(places[1:], places[0])):
        alternating = (inner * (1 - 2 * (along % 2))).flatten(2).mean(2).square()
        assert (alternating / variance).mean() < 0.01, "of all that varies, what changes its sign from voxel to voxel"


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("style", {"task": "label_to_image", "label_encoding": "one_hot"}, "task"),
        ("style", {"network": NETS["spade"]}, "network._target_"),
        ("style", {"band_std": [1.0]}, "band_std"),
        ("style", {"channel_mean": [0.0]}, "channel_mean"),
        ("style", {"packing_levels": 2}, "band_std"),
        ("cyclegan", {"back_network": None}, "back_network"),
        ("cyclegan", {"source_modalities": ["T1w", "T2w"]}, "source_modalities"),
        ("pix2pix", {"network": NETS["pix2pix"] | {"in_channels": 3}}, "network."),
    ],
)
def test_refusals(kind: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        ModelSpec.from_dict(content(kind, **changes))


def test_arguments_that_follow_are_filled_in_and_others_refused() -> None:
    assert completed({"a": 1}, {"size": (4, 4)}, "tiny", "net") == {"a": 1, "size": [4, 4]}
    with pytest.raises(MedgenError, match=r"net.size.*Leave it out"):
        completed({"size": [8, 8]}, {"size": (4, 4)}, "tiny", "net")
