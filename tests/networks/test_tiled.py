"""Tiled encoding and decoding equals that of the whole volume, with the same arithmetic, within a memory bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import VQVAE, AutoencoderKL

from medgen.checks import MedgenError
from medgen.networks import tiled
from medgen.networks.feature_map import FeatureMap
from medgen.networks.tiled import TiledAutoencoder
from tests.bench.tiled import multiply_adds

KL = {"channels": (8, 16), "num_res_blocks": 1, "norm_num_groups": 4}
VQ = {"channels": (8, 16), "num_res_layers": 1, "num_res_channels": (8, 16), "num_embeddings": 8, "embedding_dim": 4}
PLAIN = {"attention_levels": (False, False), "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
HALVED = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
UNEVEN = {
    "downsample_parameters": ((2, 3, 1, 1), (3, 2, 2, 2)),
    "upsample_parameters": ((3, 2, 2, 2, 2), (2, 3, 1, 1, 1)),
}
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "kl 2D, attention": (AutoencoderKL, {**KL, "attention_levels": (False, True)}, (21, 14)),
    "kl 2D, transposed, joined attention": (
        AutoencoderKL,
        {**KL, "attention_levels": (False, False), "use_convtranspose": True, "use_combined_linear": True},
        (20, 14),
    ),
    "kl 3D": (AutoencoderKL, {**KL, **PLAIN, "num_res_blocks": (1, 2)}, (14, 25, 18)),
    "kl 3D, transposed, attention": (
        AutoencoderKL, {**KL, "attention_levels": (False, False), "use_convtranspose": True}, (12, 10, 17)
    ),
    "vq 2D": (VQVAE, {**VQ, **HALVED}, (40, 21)),
    "vq 3D": (VQVAE, {**VQ, **HALVED}, (20, 26, 17)),
    "vq 3D, uneven strides, tanh": (VQVAE, {**VQ, **UNEVEN, "output_act": "tanh"}, (20, 26, 17)),
    "maisi": (
        AutoencoderKlMaisi,
        {"num_channels": (8, 16), "num_res_blocks": (1, 1), "norm_num_groups": 4, "num_splits": 1,
         "attention_levels": (False, False)},
        (16, 12, 20),
    ),
    "maisi, transposed": (
        AutoencoderKlMaisi,
        {"num_channels": (8, 16), "num_res_blocks": (1, 1), "norm_num_groups": 4, "num_splits": 1,
         "attention_levels": (False, False), "use_convtranspose": True},
        (16, 12, 20),
    ),
}  # fmt: skip


def built(name: str) -> tuple[Any, torch.Tensor]:
    """A network of random weights and a volume for it."""
    make, arguments, size = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(len(size), 1, 1, **arguments).eval()
        return network, torch.randn(2 if name == "vq 2D" else 1, 1, *size)


def least_budget(network: Any, x: torch.Tensor) -> int:
    """What the error of a budget of one byte asks for, until it asks no more."""
    budget = 1
    for _ in range(50):
        try:
            coder = TiledAutoencoder(network, budget)
            made = coder.encode(x)
            coder.decode(made[0] if isinstance(made, tuple) else made)
            return budget
        except MedgenError as error:
            budget = int(str(error).split("at least ")[1].split()[0].replace(",", ""))
    raise AssertionError("no budget is enough")


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_whole_volume(name: str) -> None:
    network, x = built(name)
    coder = TiledAutoencoder(network, least_budget(network, x))
    with torch.no_grad(), multiply_adds() as whole:
        wanted = network.encode(x)
        latent = wanted[0] if isinstance(wanted, tuple) else wanted
        image = network.decode(latent)
    with multiply_adds() as tiles:
        made = coder.encode(x)
        made_image = coder.decode(latent)
    pairs = [*zip(wanted, made, strict=True)] if isinstance(wanted, tuple) else [(wanted, made)]
    for a, b in [*pairs, (image, made_image)]:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * (a.max() - a.min())
    assert tiles.get_total_flops() <= 1.001 * whole.get_total_flops()


def test_least_budget_is_far_below_the_whole() -> None:
    network = AutoencoderKL(3, 1, 1, **KL, **PLAIN).eval()
    x = torch.zeros(1, 1, 64, 12, 12)
    one_map = 8 * x.numel() * 4
    assert least_budget(network, x) < one_map


def test_maps_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = built("kl 3D")
    used: list[int] = []
    whole = tiled._Pass._portions

    def watched(self: Any, length: int, each: int, fixed: int) -> Any:
        portions = whole(self, length, each, fixed)
        used.append(self._used() + fixed + each * max(high - low for low, high in portions))
        return portions

    monkeypatch.setattr(tiled._Pass, "_portions", watched)
    for budget in (least_budget(network, x), 10**6, 10**9):
        used.clear()
        TiledAutoencoder(network, budget).encode(x)
        assert max(used) <= budget


def test_statistics_of_a_map_with_a_large_mean() -> None:
    x = torch.randn(8, 6, 5, generator=torch.Generator().manual_seed(0)) * 1e-2 + 100
    made = FeatureMap.empty(8, (6, 5), 0, x.dtype, x.device, inside=True)
    for low in (0, 2, 4):
        made.write(low, x[:, low : low + 2])
    mean, variance = made.group_statistics(2)
    groups = x.double().reshape(2, -1)
    torch.testing.assert_close(mean[::4], groups.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance[::4], groups.var(1, correction=0), rtol=1e-3, atol=0)


def test_refused_networks() -> None:
    network, x = built("kl 3D")
    with pytest.raises(MedgenError, match=r"must be an AutoencoderKL, .*Got Linear"):
        TiledAutoencoder(torch.nn.Linear(1, 1), 10**9)
    with pytest.raises(MedgenError, match="evaluation mode"):
        TiledAutoencoder(network.train(), 10**9)
    with pytest.raises(MedgenError, match=r"memory_budget must be at least [\d,]+ bytes .*Got 10"):
        TiledAutoencoder(network.eval(), 10).encode(x)


def test_a_layer_of_unknown_kind_is_refused() -> None:
    network, x = built("kl 3D")
    network.encoder.blocks[1] = torch.nn.InstanceNorm3d(8)
    with pytest.raises(MedgenError, match="InstanceNorm3d is of an unknown kind"):
        TiledAutoencoder(network, 10**9).encode(x)
