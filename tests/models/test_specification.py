"""Every field of a specification is typed and bounded; whatever cannot be meant is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgen.anatomy.population import Population
from medgen.checks import MedgenError
from medgen.diffusion.schedules import SCHEDULES
from medgen.models import Grid, ModelSpec, Sampling
from medgen.models.codec import Codec

MANY = 10**400  # an integer that no float can hold


def put(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of ``content`` with ``value`` at a dotted path."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return content


def test_round_trip(content: dict[str, Any]) -> None:
    spec = ModelSpec.from_dict(content)
    assert ModelSpec.from_dict(json.loads(spec.to_json())) == spec
    assert ModelSpec.from_dict(spec.to_dict()).to_json() == spec.to_json()
    assert list(json.loads(spec.to_json())) == sorted(spec.to_dict())
    for key, value in content.items():
        if key != "sampling":  # gains its defaults
            assert spec.to_dict()[key] == value
    assert spec.grid == Grid((2, 2, 2), (8, 8, 8))
    assert spec.sampling.sampler_options == {}


def test_fields_may_be_typed_objects(content: dict[str, Any]) -> None:
    spec = ModelSpec.from_dict(content)
    same = dataclasses.replace(spec, grid=Grid((2.0, 2.0, 2.0), (8, 8, 8)), sampling=spec.sampling)
    assert same == spec


def test_what_was_given_is_copied(content: dict[str, Any]) -> None:
    spec = ModelSpec.from_dict(content)
    content["network"]["channels"].append(1)
    content["training"]["data"] = "changed"
    assert spec.network["channels"] == [8, 16]
    assert spec.training["data"] == "none"


@pytest.mark.parametrize(
    "path",
    [
        *("name", "version", "network", "prediction_type", "task", "grid", "sampling", "channel_mean"),
        *("grid.size", "sampling.sampler"),
    ],
)
def test_missing_field(content: dict[str, Any], path: str) -> None:
    inner = content["grid"] if path == "grid.size" else content["sampling"] if "." in path else content
    del inner[path.split(".")[-1]]
    with pytest.raises(MedgenError, match=f"f.json: field '{path}' is missing"):
        ModelSpec.from_dict(content, "f.json")


BAD: list[tuple[str, Any]] = [
    ("format", 2),
    ("format", True),
    ("format", "1"),
    ("name", ""),
    ("name", "../up"),
    ("name", "Tiny"),
    ("name", "a" * 65),
    ("name", None),
    ("version", "1.0"),
    ("version", 1.0),
    ("network", "DiffusionModelUNet"),
    ("network._target_", "torch.load"),
    ("network.channels", [10**7]),
    ("network.in_channels", "3"),
    ("network.in_channels", 0),
    ("network.out_channels", 2),
    ("network.spatial_dims", 2),
    ("prediction_type", "epsilom"),
    ("sigma_data", 0),
    ("sigma_data", float("nan")),
    ("sigma_data", MANY),
    ("packing", "wavelet"),
    ("task", "joint!"),
    ("image_channels", 0),
    ("image_channels", 1.0),
    ("image_channels", 10**6),
    ("label_channels", []),
    ("label_channels", [["csf"]]),
    ("label_channels", [["csf", []]]),
    ("label_channels", [["csf", [0]]]),
    ("label_channels", [["csf", [1.5]]]),
    ("label_channels", [["csf", [70000]]]),
    ("label_channels", [["csf", [1]], ["csf", [2]]]),
    ("label_channels", [["csf", [1]], ["cortex", [1]]]),
    ("label_channels", [["$csf", [1]]]),
    ("channel_mean", [0.1, 0.2]),
    ("channel_mean", [float("inf")]),
    ("channel_mean", 0.1),
    ("channel_std", [0]),
    ("channel_std", [-1]),
    ("label_dropout", 1.1),
    ("label_dropout", True),
    ("grid", None),
    ("grid.spacing", [2, 2]),
    ("grid.spacing", [2, 2, 0]),
    ("grid.spacing", [2, 2, 1e9]),
    ("grid.size", [8, 8, 8.0]),
    ("grid.size", [8, 8, 7]),
    ("grid.size", [4096, 4096, 4096]),
    ("grid.size", [10**9, 8, 8]),
    ("grid.sizes", [8, 8, 8]),
    ("intensity", 1000),
    ("intensity.scale", 0),
    ("intensity.unit", "a\nb"),
    ("label_source", {}),
    ("label_source", "population"),
    ("label_source", {"population": None}),
    ("label_source", {"population": {}, "model": "x"}),
    ("label_source", {"model": "joint"}),
    ("label_source", {"file": "x"}),
    ("label_source.population.spacing", [1.0, 1.0, 1.0]),
    ("label_source.population.size", [10**5] * 3),
    ("label_source.population.atlas", "../../etc"),
    ("label_source.population.flip", 2),
    ("label_source.population.flips", 1),
    ("network", {"_target_": "UNet", "spatial_dims": 3, "in_channels": 4, "out_channels": 1}),
    ("sampling.sampler", "dpmpp_2n"),
    ("sampling.num_inference_steps", 0),
    ("sampling.num_inference_steps", 10**9),
    ("sampling.num_inference_steps", 2.5),
    ("sampling.schedule", "karas"),
    ("sampling.sigma_min", 0),
    ("sampling.sigma_min", 90.0),
    ("sampling.sigma_max", float("inf")),
    ("sampling.guidance_scale", -1),
    ("sampling.guidance_interval", [2, 1]),
    ("sampling.guidance_interval", [1]),
    ("sampling.sampler_options", {"eta": "$1"}),
    ("sampling.sampler_options", {"eta": 1.0}),
    ("sampling.sampler_options", {"order": [1]}),
    ("sampling.schedule_options", {"rho": "seven"}),
    ("sampling.schedule_options", {"rho": 1e9}),
    ("sampling.schedule_options", {"shift": 2.0}),
    ("sampling.schedule_options", {str(i): i for i in range(20)}),
    ("sampling.steps", 3),
    ("training", []),
    ("training", {"note": "a" * 300_000}),
    ("training", {"loss": float("-inf")}),
    ("training", {"data": "@data"}),
    ("sampling.mean_weight", 0.5),
    ("reference", "label_means"),
    ("reference", "continuation"),
    ("label_intensities", [[0.1, 0.2]]),
    ("modality", "T1 w"),
    ("licence", "Apache 2\n"),
    ("description", "x" * 3000),
    ("description", "see ${HOME}"),
    ("description", "\ud800"),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}-{str(value)[:20]}" for path, value in BAD])
def test_bad_field(content: dict[str, Any], path: str, value: Any) -> None:
    with pytest.raises(MedgenError) as caught:
        ModelSpec.from_dict(put(content, path, value), "f.json")
    message = str(caught.value)
    assert message.startswith("f.json: ")
    assert path.split(".")[-1] in message
    assert len(message) < 600
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, [], "text", 1])
def test_not_an_object(content: Any) -> None:
    with pytest.raises(MedgenError, match="object"):
        ModelSpec.from_dict(content)


def test_unknown_field_names_the_nearest(content: dict[str, Any]) -> None:
    with pytest.raises(MedgenError, match=r"'label_chanels' is unknown\. Did you mean 'label_channels'\?"):
        ModelSpec.from_dict(content | {"label_chanels": []})


def test_construction_checks_too() -> None:
    with pytest.raises(MedgenError, match="num_inference_steps"):
        Sampling("euler", 0, "karras", 0.01, 1.0)


def test_packed_joint_model(content: dict[str, Any]) -> None:
    joint = content | {"task": "joint", "packing": "haar", "channel_mean": [0.0] * 24, "channel_std": [1.0] * 24}
    joint["network"] = content["network"] | {"in_channels": 41, "out_channels": 24}
    spec = ModelSpec.from_dict(joint)
    assert (spec.spatial_dims, spec.packing_factor, spec.multiple) == (3, 8, 4)
    assert (spec.diffused_channels, spec.condition_channels) == (24, 17)


def test_inpainting_needs_no_labels(content: dict[str, Any]) -> None:
    changes = {"task": "inpaint", "label_channels": [], "label_source": None, "label_dropout": 0.0}
    changes["network"] = content["network"] | {"in_channels": 3}
    spec = ModelSpec.from_dict(content | changes)
    assert (spec.diffused_channels, spec.condition_channels) == (1, 2)


@pytest.mark.parametrize("task", ["label_to_image", "joint", "inpaint"])
@pytest.mark.parametrize("packing", ["none", "haar"])
def test_channels_agree_with_the_codec(content: dict[str, Any], task: str, packing: str) -> None:
    """The specification knows how many channels the network gets without making any."""
    factor, diffused = 8 if packing == "haar" else 1, 3 if task == "joint" else 1
    dropout = 0.0 if task == "inpaint" else 0.2
    condition = 2 * factor + (dropout > 0)
    network = {"_target_": "ConditionalUNet", "spatial_dims": 3, "out_channels": diffused * factor, "channels": [8, 8]}
    network |= {"in_channels": diffused * factor, "condition_channels": condition}
    statistics = {"channel_mean": [0.0] * diffused * factor, "channel_std": [1.0] * diffused * factor}
    content |= {"task": task, "packing": packing, "network": network, "label_dropout": dropout}
    spec = ModelSpec.from_dict(content | statistics)
    codec = Codec(spec)
    assert spec.condition_channels == condition
    image, label = torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8).long()
    given = codec.given_hole(image, label) if task == "inpaint" else codec.given_label(label)
    assert given.condition.shape[1] == condition
    assert codec.encode(image, given, label).shape[1] == spec.diffused_channels


def test_population_fields_are_those_of_the_class(content: dict[str, Any]) -> None:
    """What a specification may say of a population is what the class takes (but for objects)."""
    source = ModelSpec.from_dict(content).label_source
    assert source is not None
    parameters = inspect.signature(Population).parameters
    assert set(source["population"]) == set(parameters) - {"warp"}
    assert all(parameters[key].default == source["population"][key] for key in ("atlas", "brain_extracted", "flip"))
    assert Population(**source["population"]).size == (8, 8, 8)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_sigmas_of_every_schedule(content: dict[str, Any], schedule: str) -> None:
    spec = ModelSpec.from_dict(put(content, "sampling.schedule", schedule))
    sigmas = spec.sampling.sigmas()
    assert len(sigmas) == 3
    assert len(spec.sampling.sigmas(5)) == 6
    if "beta" not in schedule:
        assert sigmas[0].item() == pytest.approx(80.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(MANY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATHS = [item.name for item in dataclasses.fields(ModelSpec)]
PATHS += [f"grid.{item.name}" for item in dataclasses.fields(Grid)]
PATHS += [f"sampling.{item.name}" for item in dataclasses.fields(Sampling)]
PATHS += ["network._target_", "network.channels", "network.in_channels", "network.spatial_dims", "intensity.scale"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=JSON)
def test_any_json_is_read_or_refused(content: dict[str, Any], path: str, value: Any) -> None:
    """Nothing but a MedgenError comes out, and what is accepted survives the round trip."""
    try:
        spec = ModelSpec.from_dict(put(content, path, value))
    except MedgenError:
        return
    assert ModelSpec.from_dict(json.loads(spec.to_json())) == spec
