"""A transformer over code book entries: training, exact continuation, sampling with controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import DecoderOnlyTransformer

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.models.autoregressive import AutoregressiveModel, probabilities
from medgen.networks.cached_transformer import CachedTransformer
from medgen.trainers import train
from medgen.trainers.autoregressive import AutoregressiveTrainer
from medgen.trainers.checkpoint import load_checkpoint
from tests.trainers.test_autoencoder import BASE, KL, VQ, _stopping

NET = {"_target_": "DecoderOnlyTransformer", "attn_layers_dim": 16, "attn_layers_depth": 2, "attn_layers_heads": 2}
SHARED = ("name", "task", "data", "grid", "label_channels", "label_encoding", "batch_size", "seed", "held_out_endings")
CONTENT = {key: BASE[key] for key in SHARED} | {
    "family": "autoregressive",
    "first_stage": "coder.yaml",
    "net": NET,
    "steps": 4,
    "optimisation": {"learning_rate": 1e-3, "warmup_steps": 2},
}
CONTROLS = {
    "measured": {"volume": {"label_volume": [1]}, "size": {"bins": {"of": "volume", "names": ["small", "large"]}}},
    "controls": [{"name": "size", "kind": "class"}, {"name": "volume", "kind": "number"}],
    "control_dropout": 0.2,
    "context_dim": 16,
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, people: Path) -> Write:
    """Writes both stages' configurations; the second one's path."""

    def written(coder: dict[str, Any] = VQ, **changes: Any) -> Path:
        first = {**BASE, "data": str(people), "net": coder, "steps": 2, "adversarial": {"weight": 0.0}}
        (tmp_path / "coder.yaml").write_text(yaml.safe_dump(first))
        path = tmp_path / "transformer.yaml"
        path.write_text(yaml.safe_dump({**CONTENT, "data": str(people), **changes}))
        return path

    return written


def test_a_run_trains_its_first_stage_and_continues_exactly(write: Write, tmp_path: Path) -> None:
    path = write()
    train(path, tmp_path / "whole", progress=False, device="cpu")
    model = load_model(tmp_path / "whole" / "model", device="cpu")
    assert isinstance(model, AutoregressiveModel)
    assert model.spec.tokens == 64
    subject, again = (model.sample(seed=5)[0] for _ in range(2))
    assert subject["image"].shape == subject["label"].shape == (1, 16, 16, 16)
    assert torch.equal(subject["image"].as_tensor(), again["image"].as_tensor())
    assert subject["image"].meta["provenance"]["temperature"] == 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoregressiveTrainer, "train_step", _stopping(AutoregressiveTrainer.train_step, 3))
        with pytest.raises(RuntimeError, match="stopped"):
            train(path, tmp_path / "cut", ["checkpoint_every=1"], progress=False, device="cpu")
    assert load_checkpoint(tmp_path / "cut")["step"] == 3
    train(path, tmp_path / "cut", progress=False, device="cpu", resume=True)
    weights = [folder / "model" / "models" / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_controls_and_guidance(write: Write, tmp_path: Path) -> None:
    train(write(**CONTROLS), tmp_path / "run", progress=False, device="cpu")
    model = load_model(tmp_path / "run" / "model", device="cpu")
    settings = model.settings(temperature=0.5, top_k=4, guidance_scale=2.0)
    asked = {"size": "large", "volume": model.spec.controls[1].mean}
    subject = model.sample(seed=1, conditions=asked, guidance_scale=2.0)[0]
    assert subject["image"].meta["provenance"]["conditions"] == asked
    drawn = model.draw(0, settings, {key: value[None] for key, value in model.control_tensors(asked).items()})
    assert drawn.shape == (1, 4, 4, 4)
    with pytest.raises(MedgenError, match=r"top_k must lie in 0..16"):
        model.settings(top_k=17)
    with pytest.raises(MedgenError, match="temperature"):
        model.settings(temperature=0.0)
    with pytest.raises(MedgenError, match="has no 'sampler'"):
        model.settings(sampler="ddpm")
    with pytest.raises(MedgenError, match=r"makes volumes of \(16, 16, 16\) voxels only"):
        model.check_size((16, 16, 20))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_cached_steps_equal_the_whole_sequence(cross: bool, joined: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DecoderOnlyTransformer(7, 12, 16, 2, 4, with_cross_attention=cross, use_combined_linear=joined).eval()
        context = torch.randn(2, 3, 16) if cross else None
        tokens = torch.randint(7, (2, 12))
    cached = CachedTransformer(network, context, batch=2)
    steps = torch.stack([cached.step(tokens[:, i]) for i in range(12)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(steps, network(tokens, context=context), atol=1e-5, rtol=1e-4)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0])
    torch.testing.assert_close(probabilities(logits, 1.0, 0), logits.double().softmax(0))
    assert probabilities(logits, 1.0, 2)[:2].sum() == 0
    assert probabilities(logits, 1e-2, 0)[2] > 0.999


@pytest.mark.parametrize(
    ("coder", "changes", "text"),
    [
        (KL, {}, "needs an autoencoder with a code book"),
        (VQ, {"first_stage": ""}, "needs an autoencoder with a code book as first stage. Got none"),
        (VQ, {"net": {**NET, "num_tokens": 5}}, "net.num_tokens' must be 17"),
        (VQ, {"net": {"_target_": "UNet"}}, "must be DecoderOnlyTransformer"),
        (VQ, {**CONTROLS, "context_dim": 8}, "context_dim"),
        (VQ, {"task": "image", "label_encoding": "one_hot"}, "for 1 channels"),
    ],
)
def test_bad_configurations_are_refused(
    coder: dict[str, Any], changes: dict[str, Any], text: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(MedgenError, match=text):
        train(write(coder, **changes), tmp_path / "run", progress=False, device="cpu")
