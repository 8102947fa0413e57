"""Training of autoencoders: what a run leaves, exact continuation, code books in use, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.models.autoencoder import AutoencoderModel
from medgen.networks.perceptual import MultiscalePerceptual, blurred, monai_perceptual
from medgen.trainers import autoencoder as module
from medgen.trainers import train
from medgen.trainers.autoencoder import AutoencoderConfig, AutoencoderTrainer, Perceptual
from medgen.trainers.checkpoint import load_checkpoint
from medgen.trainers.config import load_config
from medgen.trainers.data import BatchesFrom, Items, make_source
from tests.trainers.conftest import CONTENT

KEPT = ("name", "task", "data", "grid", "label_channels", "augmentation", "batch_size", "seed", "held_out_endings")
BASE = {key: CONTENT[key] for key in KEPT} | {
    "family": "autoencoder",
    "label_encoding": "distance",
    "packing_levels": 2,
    "steps": 4,
    "optimisation": {"learning_rate": 4e-3, "warmup_steps": 2, "ema_decay": 0.9},
    "adversarial": {"start_step": 2, "channels": 4, "layers": 1},
}
KL = {
    "_target_": "AutoencoderKL", "channels": [16], "num_res_blocks": 1, "attention_levels": [False],
    "norm_num_groups": 4, "latent_channels": 4, "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}  # fmt: skip
VQ = {
    "_target_": "VQVAE", "channels": [16], "num_res_layers": 1, "num_res_channels": [16], "num_embeddings": 16,
    "embedding_dim": 4, "downsample_parameters": [[1, 3, 1, 1]], "upsample_parameters": [[1, 3, 1, 1, 0]],
}  # fmt: skip
NETS = {"kl": KL, "vq": VQ}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, people: Path) -> Write:
    def written(net: dict[str, Any], **changes: Any) -> Path:
        path = tmp_path / "autoencoder.yaml"
        path.write_text(yaml.safe_dump({**BASE, "data": str(people), "net": net, **changes}))
        return path

    return written


def trainer_of(path: Path) -> AutoencoderTrainer:
    config = load_config(path)
    assert isinstance(config, AutoencoderConfig)
    source = make_source(config)
    spec = AutoencoderTrainer.plan(config, source)
    batches = BatchesFrom(0, config.steps, config.batch_size)
    loader = torch.utils.data.DataLoader(Items(source, config), batch_sampler=batches, generator=torch.Generator())
    return AutoencoderTrainer(config, spec, AutoencoderTrainer.build(config, spec), loader, torch.device("cpu"))


@pytest.mark.parametrize("kind", NETS)
def test_a_run_leaves_a_model_and_continues_exactly(kind: str, write: Write, tmp_path: Path) -> None:
    path = write(NETS[kind])
    train(path, tmp_path / "whole", progress=False, device="cpu")
    model = load_model(tmp_path / "whole" / "model", device="cpu")
    assert isinstance(model, AutoencoderModel)
    assert model.spec.kind == kind
    assert model.spec.latent_std != (1.0,) * 4, "measured after training"
    assert model.spec.channel_std != (), "measured before training"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderTrainer, "train_step", _stopping(AutoencoderTrainer.train_step, 3))
        with pytest.raises(RuntimeError, match="stopped"):
            train(path, tmp_path / "cut", ["checkpoint_every=1"], progress=False, device="cpu")
    assert load_checkpoint(tmp_path / "cut")["step"] == 3
    train(path, tmp_path / "cut", progress=False, device="cpu", resume=True)
    weights = [folder / "model" / "models" / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def _stopping(step: Callable[..., Any], at: int) -> Callable[..., Any]:
    def stopped(self: Any, batch: Any, number: int) -> Any:
        if number == at:
            raise RuntimeError("stopped")
        return step(self, batch, number)

    return stopped


def test_two_dimensions_and_image_only(write: Write, tmp_path: Path) -> None:
    flat = {"grid": {"spacing": [1.0, 1.0], "size": [16, 16]}, "slices": {"plane": "axial"}}
    path = write(KL, task="image", label_channels=[], label_encoding="one_hot", **flat)
    train(path, tmp_path / "run", ["steps=1"], progress=False, device="cpu")
    model = load_model(tmp_path / "run" / "model", device="cpu")
    assert model.spec.networks()["autoencoder"]["in_channels"] == 16


@pytest.mark.parametrize("kind", NETS)
def test_it_learns(kind: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_start_principal", lambda *_: False)  # from random weights
    trainer = trainer_of(write(NETS[kind], steps=40, adversarial={"weight": 0.0}, kl_weight=1e-6))
    figures = [trainer.train_step(batch, step) for step, batch in enumerate(trainer.data_loader)]
    first, last = (sum(f["reconstruction"] for f in part) / 5 for part in (figures[:5], figures[-5:]))
    assert last < 0.8 * first
    if kind == "vq":
        used = trainer.space.tokens(_some(trainer)).unique()
        assert len(used) >= 8, "most of the sixteen entries are in use"


def _some(trainer: AutoencoderTrainer) -> torch.Tensor:
    trainer.coder.eval()
    batch = next(iter(trainer.data_loader))
    return trainer.codec.stack(batch["image"], batch["label"])


@pytest.mark.parametrize("kind", NETS)
def test_it_begins_as_principal_components(kind: str, write: Write) -> None:
    wide = {"channels": [32]} | ({"num_res_channels": [32]} if kind == "vq" else {})
    trainer = trainer_of(write({**NETS[kind], **wide}, packing_levels=1))
    trainer.coder.eval()
    seen = trainer.space.padded(_some(trainer))
    with torch.no_grad():
        code = trainer.coder.encode(seen)
        made = trainer.coder.decode(code[0] if kind == "kl" else code)
    deviation = torch.tensor(trainer.spec.channel_std).reshape(1, -1, 1, 1, 1)
    values = (seen * deviation).movedim(1, -1).flatten(0, -2)
    error = ((made - seen) * deviation).square().sum(1).mean()
    axes = torch.linalg.svd(values.T @ values)[0][:, :4]
    best = (values - values @ axes @ axes.T).square().sum(1).mean()
    assert error < 2.0 * best, "nearly the best that a linear code can do"


def test_standardised_latents_have_mean_zero_and_deviation_one(write: Write) -> None:
    from medgen.models.autoencoder import LatentSpace

    trainer = trainer_of(write(KL))
    spec = trainer.final_spec()
    items = Items(trainer.source, trainer.config, "statistics")
    space = LatentSpace(spec, trainer.ema["autoencoder"].network)
    batch = [trainer.codec.stack(items[i]["image"][None], items[i]["label"][None]) for i in range(24)]
    z = torch.cat([space.encode(x) for x in batch]).movedim(1, 0).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(4), atol=1e-3, rtol=0)


def test_the_discriminator_starts_late_and_gets_no_gradient_of_the_generator(write: Write) -> None:
    trainer = trainer_of(write(KL))
    batches = iter(trainer.data_loader)
    before = {k: v.clone() for k, v in trainer.networks["discriminator"].state_dict().items()}
    assert "adversarial" not in trainer.train_step(next(batches), 0)
    after = trainer.networks["discriminator"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {"adversarial", "discriminator"} <= trainer.train_step(next(batches), 2).keys()
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_a_lost_code_book_is_found_again(write: Write) -> None:
    trainer = trainer_of(write(VQ, restart_every=1))
    book = trainer.coder.quantizer.quantizer
    trainer.train_step(next(iter(trainer.data_loader)), 0)
    book.embedding.weight.fill_(1e3)
    book.ema_w.fill_(1e3)
    book.ema_cluster_size.fill_(1e-6)
    book.ema_cluster_size[0] = 1.0
    trainer.train_step(next(iter(trainer.data_loader)), 1)
    assert (book.embedding.weight.abs().amax(1) < 100).sum() >= 15


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"net": {"_target_": "UNet"}}, "net._target_' must be one of AutoencoderKL"),
        ({"net": {**KL, "in_channels": 5}}, r"net.in_channels' must be 128 .*Got 5"),
        ({"net": {**KL, "norm_num_groups": 5}}, "refuses its arguments"),
        ({"perceptual": {"kind": "eye"}}, "perceptual.kind"),
        ({"task": "label_to_image", "label_encoding": "one_hot"}, "must be one of image, joint, segment"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], text: str, write: Write) -> None:
    with pytest.raises(MedgenError, match=text):
        trainer_of(write(**{"net": KL, **changes}))


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (12, 9, 16), (3, 8, 8)], ids=str)
def test_perceptual_distance(size: tuple[int, ...]) -> None:
    stream = torch.Generator().manual_seed(0)
    x = blurred(torch.rand(2, 3, *size, generator=stream))
    distance = MultiscalePerceptual()
    assert float(distance(x, x)) == 0
    noisy = x + 0.1 * torch.randn(x.shape, generator=stream)
    assert float(distance(noisy, x)) > float(distance(x + 0.1, x)), "a constant offset hides no structure"
    noisy.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(noisy, x), noisy)
    assert torch.isfinite(gradient).all()
    still = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(still, x), still)
    assert torch.isfinite(gradient).all(), "also where both are equal"


def test_perceptual_networks_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import monai.losses.perceptual as module

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(module, "PerceptualLoss", offline)
    with pytest.raises(MedgenError, match=r"'medicalnet_resnet10_23datasets' cannot be had: no connection"):
        monai_perceptual(3, "medicalnet_resnet10_23datasets")
    with pytest.raises(MedgenError, match="network_type"):
        monai_perceptual(3, "eye")
    assert Perceptual(weight=0.0).build(3) is None
