"""The closed registry: only registered classes, only plain arguments that the real constructor takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from medgen.checks import MedgenError
from medgen.networks import NETWORKS, build_network, check_network, check_network_form, check_plain, register
from medgen.networks.registry import MAX_PARAMETERS, parameter_shapes

UNET: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 2,
    "out_channels": 1,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, False],
    "norm_num_groups": 4,
}
# every registered network enrols itself here: a new one without an example fails
CODER = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "num_res_blocks": [1, 1], "norm_num_groups": 4,
    "attention_levels": [False, False],
}  # fmt: skip
MAISI = {key: value for key, value in UNET.items() if key not in ("channels", "out_channels")} | {
    "num_channels": UNET["channels"]
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "DiffusionModelUNet": UNET,
    "ConditionalUNet": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8, 16],
        "condition_channels": 3,
        "condition_embedding": 2,
    },
    "UNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [8, 16], "strides": [2]},
    "BasicUNet": {"spatial_dims": 3, "out_channels": 1, "features": [8, 8, 16, 16, 16, 8]},
    "ControlEncoder": {"context_dim": 8, "classes": [2, 3], "numbers": 1, "text_dim": 6},
    "ControlUNet": {"spatial_dims": 2, "in_channels": 1, "control_channels": 3, "channels": [8, 16]},
    "ControlNet": {
        **{key: value for key, value in UNET.items() if key != "out_channels"},
        "conditioning_embedding_num_channels": [8],
    },
    "StyleGenerator": {"spatial_dims": 3, "out_channels": 2, "size": [5, 6, 7], "channels": [4, 8]},
    "StyleDiscriminator": {"spatial_dims": 3, "in_channels": 2, "size": [5, 6, 7], "channels": [4, 8]},
    "PatchDiscriminator": {"spatial_dims": 2, "in_channels": 1, "channels": 8, "num_layers_d": 2},
    "SpadeGenerator": {"spatial_dims": 2, "label_channels": 2, "out_channels": 1, "size": [9, 8], "channels": [4, 8]},
    "ResNetGenerator": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8]},
    "UNetGenerator": {"spatial_dims": 3, "in_channels": 2, "out_channels": 1, "channels": [4, 8]},
    "AutoencoderKL": CODER | {"channels": [8, 16]},
    "VQVAE": {"spatial_dims": 3, "in_channels": 1, "out_channels": 1},
    "DecoderOnlyTransformer": {
        "num_tokens": 7,
        "max_seq_len": 9,
        "attn_layers_dim": 8,
        "attn_layers_depth": 1,
        "attn_layers_heads": 2,
    },
    "SPADEDiffusionModelUNet": UNET | {"label_nc": 3},
    "SPADEAutoencoderKL": CODER | {"channels": [8, 16], "label_nc": 3},
    "AutoencoderKlMaisi": CODER | {"num_channels": [8, 16]},
    "DiffusionModelUNetMaisi": MAISI | {"out_channels": 1},
    "ControlNetMaisi": MAISI | {"conditioning_embedding_num_channels": [8]},
    "RestorationUNet": {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "channels": [4, 8]},
    "SwinUNETR": {"in_channels": 1, "out_channels": 1, "feature_size": 12, "depths": [1, 1, 1, 1]},
    "Restormer": {
        "in_channels": 1,
        "out_channels": 1,
        "dim": 4,
        "num_blocks": [1, 1],
        "heads": [1, 1],
        "num_refinement_blocks": 1,
    },
    "DiffusersUNet": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8, 16],
        "config": {"norm_num_groups": 4, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
    },
    "DiffusersAutoencoderKL": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [8],
        "latent_channels": 2,
        "config": {"norm_num_groups": 4},
    },
}


def refused(spec: Any, *words: str) -> None:
    with pytest.raises(MedgenError) as caught:
        build_network(spec, "x/medgen.json")
    message = str(caught.value)
    assert message.startswith("x/medgen.json: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_builds(name: str) -> None:
    spec = {"_target_": name, **EXAMPLES[name]}
    state = build_network(spec).state_dict()
    shapes = parameter_shapes(spec)
    assert {key: (t.shape, t.dtype) for key, t in state.items()} == {k: (t.shape, t.dtype) for k, t in shapes.items()}
    assert all(t.device.type == ("meta" if NETWORKS[name].on_meta else "cpu") for t in shapes.values())
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_registering_twice_is_refused() -> None:
    before = dict(NETWORKS)
    for name, word in (("UNet", "registered already"), ("os.system", "identifier")):
        with pytest.raises(MedgenError, match=word):
            register(name)(lambda: torch.nn.Identity)
    assert before == NETWORKS


def test_the_form_is_checked_without_importing_monai() -> None:
    code = (
        "import sys; from medgen.networks import check_network_form; "
        "check_network_form({'_target_': 'UNet', 'spatial_dims': 3}); assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, ["'network'", "object"]),
        ({}, ["_target_", "DiffusionModelUNet"]),
        ({"_target_": "os.system", "command": "true"}, ["os.system", "one of"]),
        ({"_target_": "monai.networks.nets.UNet"}, ["one of"]),
        ({"_target_": ["UNet"]}, ["one of"]),
        ({"_target_": "Unet"}, ["Did you mean 'UNet'?"]),
        ({"_target_": "$__import__('os')"}, ["expression"]),
        ({"_target_": "UNet", "norm": "$print()"}, ["network.norm", "expression"]),
        ({"_target_": "UNet", "norm": ["group", {"num_groups": "@x"}]}, ["network.norm[1].num_groups", "expression"]),
        ({"_target_": "UNet", "$norm": 1}, ["expression"]),
        ({"_target_": "UNet", "norm": "%file.json"}, ["network.norm"]),
        ({"_target_": "UNet", 3: 1}, ["text as keys"]),
        ({"_target_": "UNet", "dropout": float("nan")}, ["network.dropout", "finite"]),
        ({"_target_": "UNet", "dropout": torch.nn.ReLU}, ["network.dropout", "plain JSON"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "channels": [10**9, 10**9]}, ["network.channels", "at most 4096"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "num_res_blocks": 10**6}, ["network.num_res_blocks", "at most 16"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "channels": [8] * 99}, ["network.channels", "16 entries"]),
        ({"_target_": "UNet", "norm": "x" * 999}, ["network.norm", "characters"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "channels": [4096] * 8}, ["network", "refuses its arguments"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "channel": [8]}, ["network.channel", "'channels'"]),
        ({"_target_": "ConditionalUNet", "channel": [8]}, ["network.channel", "'channels'"]),
        ({"_target_": "ConditionalUNet", "norm_num_groups": 4}, ["network.norm_num_groups", "It takes spatial_dims"]),
        ({"_target_": "DiffusionModelUNet", "spatial_dims": 3}, ["network.in_channels", "missing"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "channels": "8,16"}, ["network.channels", "Sequence[int]"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "in_channels": 2.5}, ["network.in_channels", "int"]),
        ({"_target_": "DiffusionModelUNet", **UNET, "include_fc": 1}, ["network.include_fc", "bool"]),
        (
            {"_target_": "DiffusionModelUNet", **UNET, "norm_num_groups": 5},
            ["refuses its arguments", "norm_num_groups"],
        ),
        ({"_target_": "DiffusionModelUNet", **UNET, "channels": []}, ["refuses its arguments"]),
    ],
)
def test_bad_specifications(spec: Any, words: list[str]) -> None:
    refused(spec, *words)


def test_too_many_parameters_are_refused_without_taking_memory() -> None:
    wide = {**UNET, "channels": [4096] * 4, "attention_levels": [False] * 4}
    refused({"_target_": "DiffusionModelUNet", **wide}, "parameters", f"{MAX_PARAMETERS:,}")


def test_nesting_is_bounded() -> None:
    value: Any = 1
    for _ in range(2000):
        value = [value]
    with pytest.raises(MedgenError, match="deeper"):
        check_plain(value, "training", "x")


def test_what_was_given_is_not_changed() -> None:
    spec = {"_target_": "DiffusionModelUNet", **UNET}
    before = repr(spec)
    check_network_form(spec)
    check_network(spec)
    build_network(spec)
    assert repr(spec) == before
