"""Weights of GenerativeModels give the same output under today's names; files are read as data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medgen.checks import MedgenError
from medgen.models.interop.monai_bundle import network_form
from medgen.models.interop.weights import core_names, fit_weights, read_weights
from medgen.networks.registry import build_network, parameter_shapes
from tests.models.interop.make_golden import CASES, GOLDEN, outputs, weights

NAMES: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "names.json").read_text(encoding="utf-8"))


def former_weights(case: str) -> dict[str, Tensor]:
    return weights(case, {name: tuple(shape) for name, shape in NAMES[case].items()})


def todays_form(case: str) -> dict[str, Any]:
    kind, arguments = CASES[case]
    return network_form({"network_def": {"_target_": f"generative.networks.nets.{kind}", **arguments}}, "network_def")


@pytest.mark.parametrize("case", CASES)
def test_former_weights_give_the_former_output(case: str) -> None:
    form = todays_form(case)
    network = build_network(form).eval()
    network.load_state_dict(fit_weights(former_weights(case), parameter_shapes(form), case))
    with np.load(GOLDEN / f"{case}.npz") as golden:
        for made, key in zip(outputs(network, case, CASES[case][1]), golden.files, strict=True):
            torch.testing.assert_close(made, torch.from_numpy(golden[key]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", ["unet_2d_cross", "autoencoder_kl_2d", "transformer_cross"])
def test_todays_weights_pass_unchanged(case: str) -> None:
    state = build_network(todays_form(case)).state_dict()
    assert core_names(state, state).keys() == state.keys()
    assert all(core_names(state, state)[name] is tensor for name, tensor in state.items())


def test_query_key_and_value_are_joined_where_the_network_wants_one() -> None:
    form = todays_form("unet_2d_classes") | {"use_combined_linear": True}
    apart = build_network(todays_form("unet_2d_classes")).eval()
    joined = build_network(form).eval()
    joined.load_state_dict(fit_weights(apart.state_dict(), parameter_shapes(form), "test"))
    arguments = CASES["unet_2d_classes"][1]
    for a, b in zip(
        outputs(apart, "unet_2d_classes", arguments), outputs(joined, "unet_2d_classes", arguments), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.pt", lambda s: s),
        ("wrapped.pth", lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}}),
        ("maisi.pt", lambda s: {"unet_state_dict": s, "scale_factor": torch.tensor(1.5)}),
        ("trainer.ckpt", lambda s: {"model": {"network": s}}),
    ],
)
def test_reads_torch_files(tmp_path: Path, name: str, wrap: Any) -> None:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
    torch.save(wrap(state), tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_reads_safetensors_and_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "all.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert set(read_weights(tmp_path / "all.safetensors.index.json")) == {"a", "b"}
    (tmp_path / "bad.index.json").write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}), encoding="utf-8")
    with pytest.raises(MedgenError, match=r"names '\.\./one.safetensors', no file beside it"):
        read_weights(tmp_path / "bad.index.json")


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": _Touch(victim)}))
    torch.save({"w": _Touch(victim)}, tmp_path / "evil.pth")
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(MedgenError, match="cannot be read as weights alone"):
            read_weights(tmp_path / name)
    assert not victim.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    (tmp_path / "a.onnx").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name, words in (
        ("a.safetensors", "no valid safetensors file"),
        ("a.onnx", "must end in .safetensors"),
        ("empty.pt", "holds no state dictionary"),
        ("none.pt", "there is no file"),
    ):
        with pytest.raises(MedgenError, match=words):
            read_weights(tmp_path / name)


def test_weights_of_another_network_are_refused() -> None:
    form = todays_form("unet_2d_classes")
    state, shapes = former_weights("unet_2d_classes"), parameter_shapes(form)
    with pytest.raises(MedgenError, match=r"the weights lack 'conv_in.conv.weight' \(1 such\)"):
        fit_weights({k: v for k, v in state.items() if k != "conv_in.conv.weight"}, shapes, "x.pt")
    with pytest.raises(MedgenError, match=r"have 'more' \(1 such\), which the network lacks"):
        fit_weights(state | {"more": torch.ones(1)}, shapes, "x.pt")
    with pytest.raises(MedgenError, match=r"'conv_in.conv.weight' must have shape \(8, 1, 3, 3\). Got \(1,\)"):
        fit_weights(state | {"conv_in.conv.weight": torch.ones(1)}, shapes, "x.pt")
