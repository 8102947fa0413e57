"""Autoencoders as models: specification, latents of any size, reconstruction on a scan's own grid, save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner

from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti, write_nifti
from medgen.models import ModelSpec, load_model, save_model
from medgen.models.autoencoder import AutoencoderModel, LatentSpace
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.networks import build_network

KL = {
    "_target_": "AutoencoderKL", "channels": [4, 8], "num_res_blocks": 1, "attention_levels": [False, False],
    "norm_num_groups": 4, "latent_channels": 3,
}  # fmt: skip
VQ = {
    "_target_": "VQVAE", "channels": [8], "num_res_layers": 1, "num_res_channels": [8], "num_embeddings": 6,
    "embedding_dim": 3, "downsample_parameters": [[2, 4, 1, 1]], "upsample_parameters": [[2, 4, 1, 1, 0]],
}  # fmt: skip


def content(net: dict[str, Any], dims: int = 3, levels: int = 1, **changes: Any) -> dict[str, Any]:
    """A ``medgen.json``: image and one label, ``levels`` of packing."""
    packed = 2 * 2 ** (levels * dims)
    return {
        "family": "autoencoder",
        "name": "tiny-coder",
        "version": "1.0.0",
        "task": "joint",
        "grid": {"spacing": [1.0] * dims, "size": [16] * dims},
        "label_channels": [["ball", [3]]],
        "label_encoding": "distance",
        "network": {**net, "spatial_dims": dims, "in_channels": packed, "out_channels": packed},
        "packing_levels": levels,
        "channel_mean": [0.1] * packed,
        "channel_std": [0.5] * packed,
        "latent_mean": [0.1, -0.2, 0.0],
        "latent_std": [0.5, 1.0, 2.0],
        **changes,
    }


def model(net: dict[str, Any], dims: int = 3, **changes: Any) -> AutoencoderModel:
    spec = AutoencoderSpec.from_dict(content(net, dims, **changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(spec.network).eval()
    return AutoencoderModel(spec, {"autoencoder": network}, torch.device("cpu"))


def scan(size: tuple[int, ...], seed: int = 0) -> tuple[MetaTensor, MetaTensor]:
    """A noisy image and a label of id 3, with a skewed place in space."""
    noise = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed))
    label = torch.zeros(1, *size, dtype=torch.int16)
    label[(0, *(slice(n // 4, n // 2) for n in size))] = 3
    affine = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([5.0, -3.0, 2.0])
    return MetaTensor(100 + 50 * noise, affine=affine), MetaTensor(label, affine=affine)


def test_figures_of_the_specification() -> None:
    kl, vq = model(KL).spec, model(VQ, 2).spec
    assert (kl.kind, kl.downsampling, kl.latent_channels, kl.voxel_channels, kl.packed_channels) == ("kl", 4, 3, 2, 16)
    assert (vq.kind, vq.downsampling, vq.num_embeddings, vq.packed_channels) == ("vq", 4, 6, 8)
    assert kl.latent_size((17, 16, 5)) == (5, 4, 2)
    assert kl.compression == pytest.approx(64 / 3)
    assert ModelSpec.from_dict(kl.to_dict()) == kl


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"network": {"_target_": "UNet"}}, r"network._target_' must be one of AutoencoderKL"),
        ({"task": "inpaint", "label_encoding": "one_hot"}, r"'task' must be one of image, joint, segment"),
        ({"latent_mean": [0.0]}, r"'latent_mean' must have 3 entries"),
        ({"channel_std": [1.0]}, r"'channel_std' must have 16 entries"),
        ({"packing_levels": 0}, r"'network.in_channels' must be 2 .*Got 16"),
        ({"family": "gan"}, r"family"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(MedgenError, match=text):
        AutoencoderSpec.from_dict(content(KL) | change)


@pytest.mark.parametrize("net", [KL, VQ], ids=["kl", "vq"])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (9, 16, 11)], ids=str)
def test_any_size(net: dict[str, Any], size: tuple[int, ...]) -> None:
    coder = model(net, len(size))
    x = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(1))
    z = coder.latent.encode(x)
    assert z.shape == (2, 3, *coder.spec.latent_size(size))
    assert coder.latent.decode(z, size).shape == x.shape
    assert not z.requires_grad
    torch.testing.assert_close(coder.latent.unpadded(coder.latent.padded(x), size), x)
    with pytest.raises(MedgenError, match="cannot become"):
        coder.latent.decode(z, tuple(n + 4 for n in size))


def test_padding_continues_the_outermost_voxels() -> None:
    space = LatentSpace(model(KL, 2, levels=0).spec, torch.nn.Identity())
    seen = space.padded(torch.arange(6.0).reshape(1, 1, 2, 3).expand(1, 2, 2, 3))
    assert (seen * 0.5 + 0.1)[0, 0].tolist() == [[0.0, 1.0, 2.0, 2.0], [3.0, 4.0, 5.0, 5.0]]


def test_latents_are_standardised() -> None:
    coder = model(KL)
    x = torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    raw, z = coder.latent.raw(x), coder.latent.encode(x)
    shape = (1, 3, 1, 1, 1)
    expected = (raw - torch.tensor([0.1, -0.2, 0.0]).reshape(shape)) / torch.tensor([0.5, 1.0, 2.0]).reshape(shape)
    torch.testing.assert_close(z, expected)


def test_tokens_of_a_code_book() -> None:
    coder = model(VQ)
    x = torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = coder.latent.tokens(x)
    assert tokens.shape == (1, 4, 4, 4)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 6
    by_latent = coder.latent.decode(coder.latent.encode(x), (16, 16, 16))
    torch.testing.assert_close(coder.latent.decode_tokens(tokens, (16, 16, 16)), by_latent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [KL, VQ], ids=["kl", "vq"])
def test_a_memory_bound_changes_nothing(net: dict[str, Any]) -> None:
    coder, (image, label) = model(net), scan((16, 13, 14))
    whole = coder.reconstruct(image, label)
    tiled = coder.reconstruct(image, label, memory_budget=3e6)
    for key in ("image", "latent"):
        spread = whole[key].max() - whole[key].min()
        assert (tiled[key] - whole[key]).abs().max() <= 1e-4 * spread
    with pytest.raises(MedgenError, match="memory_budget must be at least"):
        coder.reconstruct(image, label, memory_budget=10)
    with pytest.raises(MedgenError, match="memory_budget must be a number above 0"):
        coder.reconstruct(image, label, memory_budget=0)


def test_reconstruction_lies_on_the_scans_grid() -> None:
    coder, (image, label) = model(KL), scan((16, 13, 14))
    made = coder.reconstruct(image, label)
    for key in ("image", "label"):
        assert made[key].shape == image.shape
        assert torch.equal(made[key].affine, image.affine)
        assert made[key].meta["synthetic"] is True
    assert made["label"].dtype == torch.int16
    assert set(torch.unique(made["label"]).tolist()) <= {0, 3}
    assert made["image"].meta["provenance"]["model"] == "tiny-coder"
    with pytest.raises(MedgenError, match="label must be given"):
        coder.reconstruct(image)
    with pytest.raises(MedgenError, match=r"must have 1 channels and 3 axes"):
        coder.reconstruct(image[:, 0], label)


def test_nothing_to_sample() -> None:
    with pytest.raises(MedgenError, match="reconstructs scans and has nothing to sample"):
        model(KL).sample()


@pytest.mark.parametrize("net", [KL, VQ], ids=["kl", "vq"])
def test_equal_after_save_and_load(net: dict[str, Any], tmp_path: Path) -> None:
    coder, (image, label) = model(net), scan((16, 13, 14))
    save_model(tmp_path / "coder", coder.spec, coder.networks["autoencoder"].state_dict())
    loaded = load_model(tmp_path / "coder", device="cpu")
    assert isinstance(loaded, AutoencoderModel)
    before, after = coder.reconstruct(image, label), loaded.reconstruct(image, label)
    for key in ("image", "label", "latent"):
        assert torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key]))


def test_reconstruct_command(tmp_path: Path) -> None:
    import typer

    from medgen.cli.reconstruct import reconstruct as command

    app = typer.Typer()
    app.command()(command)
    coder, (image, label) = model(KL), scan((16, 13, 14))
    save_model(tmp_path / "coder", coder.spec, coder.networks["autoencoder"].state_dict())
    write_nifti(tmp_path / "scan.nii.gz", image)
    write_nifti(tmp_path / "label.nii.gz", label)
    arguments = [
        str(tmp_path / "scan.nii.gz"), "-m", str(tmp_path / "coder"), "--label", str(tmp_path / "label.nii.gz"),
        "-o", str(tmp_path / "out.nii.gz"), "--latent", str(tmp_path / "latent.npy"), "--device", "cpu",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--memory-budget", "0.1"])
    assert result.exit_code == 0, result.output
    assert "latent of 3 x 4 x 4 x 4" in result.output
    expected = coder.reconstruct(read_nifti(tmp_path / "scan.nii.gz", role="image"), label)
    made = read_nifti(tmp_path / "out.nii.gz", role="image")
    assert (made - expected["image"]).abs().max() < 0.01 * (expected["image"].max() - expected["image"].min())
    np.testing.assert_allclose(np.load(tmp_path / "latent.npy"), expected["latent"].numpy(), atol=1e-3)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists. Add --overwrite" in again.output
