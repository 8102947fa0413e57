"""medgen's autoencoder next to MONAI's own loop, on people not trained on.

``python -m tests.bench.autoencoders --data FOLDER [--steps 300] [--out TABLE.md]``: both see the same people, items,
steps and batch, have (within a few percent) the same number of parameters, and turn a volume into as many numbers.
MONAI's side is its ``AutoencoderKL`` on plain voxels with its tutorial's loop: L1 + 1e-6 KL + 0.01 patch-adversarial
after a warm-up, Adam at 1e-4; the perceptual term of the tutorial needs a download and is left out. Floors: the mean
training image, and half resolution (a mean over 2 x 2 x 2 voxels, linear back), which is as many numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.adversarial_loss import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medgen.models.autoencoder import LatentSpace
from medgen.trainers.autoencoder import AutoencoderConfig, AutoencoderTrainer
from medgen.trainers.cases import training_cases
from medgen.trainers.config import load_config
from medgen.trainers.data import BatchesFrom, Items, make_source
from medgen.trainers.subjects import read_case

HELD_OUT = (1, 6)
CONFIG = "configs/autoencoder_kl_tiny.yaml"
IMAGE_ONLY = ("task=image", "label_channels=[]", "label_encoding=one_hot")
BASELINE = {
    "channels": (16, 32, 64), "num_res_blocks": 1, "attention_levels": (False, False, False), "norm_num_groups": 16,
    "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
}  # fmt: skip
Coder = Callable[[Tensor], Tensor]


def batches(config: AutoencoderConfig) -> DataLoader[Any]:
    """The items of a run, as its trainer sees them."""
    source = make_source(config)
    return DataLoader(
        Items(source, config),
        batch_sampler=BatchesFrom(0, config.steps, config.batch_size),
        generator=torch.Generator(),
    )


def ours(config: AutoencoderConfig, report: Callable[[str], None]) -> tuple[Coder, int, float]:
    """Coder, parameters, and seconds of computing."""
    loader = batches(config)
    spec = AutoencoderTrainer.plan(config, loader.dataset.source)  # type: ignore[attr-defined]
    trainer = AutoencoderTrainer(config, spec, AutoencoderTrainer.build(config, spec), loader, torch.device("cpu"))
    start = time.process_time()
    for step, batch in enumerate(loader):
        figures = trainer.train_step(batch, step)
        if step % 50 == 49:
            report(f"ours, step {step + 1}: L1 {figures['reconstruction']:.4f}")
    seconds = time.process_time() - start
    space = LatentSpace(trainer.final_spec(), trainer.kept()["autoencoder"])
    return lambda x: space.decode(space.encode(x), x.shape[2:]), _count(trainer.coder), seconds


def monais(config: AutoencoderConfig, latent_channels: int, report: Callable[[str], None]) -> tuple[Coder, int, float]:
    """The loop of MONAI's tutorial on its own network; coder, parameters, and seconds of computing."""
    torch.manual_seed(config.seed)
    network = AutoencoderKL(3, 1, 1, latent_channels=latent_channels, **BASELINE)  # type: ignore[arg-type]
    judge = PatchDiscriminator(3, 16, 1, num_layers_d=3, norm="INSTANCE")
    adversarial = PatchAdversarialLoss(criterion="least_squares")
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-4) for part in (network, judge)]
    start = time.process_time()
    for step, batch in enumerate(batches(config)):
        x, warm = batch["image"], step >= config.adversarial.start_step
        made, mean, deviation = network(x)
        divergence = 0.5 * (mean**2 + deviation**2 - torch.log(deviation**2) - 1).flatten(1).sum(1).mean()
        loss = F.l1_loss(made, x) + 1e-6 * divergence
        if warm:
            loss = loss + 0.01 * adversarial(judge(made)[-1], target_is_real=True, for_discriminator=False)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        if warm:
            optimizers[1].zero_grad()
            fake = adversarial(judge(made.detach())[-1], target_is_real=False, for_discriminator=True)
            real = adversarial(judge(x)[-1], target_is_real=True, for_discriminator=True)
            (0.5 * (fake + real)).backward()
            optimizers[1].step()
        if step % 50 == 49:
            report(f"MONAI, step {step + 1}: L1 {F.l1_loss(made, x).item():.4f}")
    seconds = time.process_time() - start
    network.eval()

    @torch.no_grad()
    def coder(x: Tensor) -> Tensor:
        return network.reconstruct(x)

    return coder, _count(network), seconds


def half_resolution(x: Tensor) -> Tensor:
    """Mean over 2 x 2 x 2 voxels, linear back."""
    return F.interpolate(F.avg_pool3d(x, 2), size=x.shape[2:], mode="trilinear")


def quality(coder: Coder, images: Sequence[Tensor]) -> np.ndarray:
    """PSNR (dB, range 1) and SSIM (Gaussian window of 1.5 voxels) of each image ``(1, *size)`` in 0..1."""
    rows = []
    for image in images:
        truth, made = image[0].clamp(0, 1).numpy(), coder(image[None])[0, 0].clamp(0, 1).numpy()
        error = float(np.mean((truth - made) ** 2))
        similarity = structural_similarity(
            truth, made, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        rows.append((10 * np.log10(1 / error), similarity))
    return np.array(rows)


def interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean, and the 95% bootstrap interval over people."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def images_of(config: AutoencoderConfig, held_out: bool) -> list[Tensor]:
    """Images ``(1, *size)`` of the people that nothing was trained on, or of the others."""
    cases = [case for case in training_cases(config) if case.held_out(HELD_OUT) == held_out]
    return [read_case(config, case).image for case in cases]


def table(results: Mapping[str, tuple[np.ndarray, int, float]]) -> str:
    """Markdown: a row per method, then ours minus MONAI's over the same people."""
    lines = ["| | parameters | CPU minutes | PSNR, dB | SSIM |", "|---|---|---|---|---|"]
    for name, (values, parameters, seconds) in results.items():
        figures = ["{:.4g} ({:.4g} to {:.4g})".format(*interval(values[:, k])) for k in range(2)]
        lines.append(f"| {name} | {parameters:,} | {seconds / 60:.1f} | {figures[0]} | {figures[1]} |")
    if {"medgen", "MONAI"} <= set(results):
        difference = results["medgen"][0] - results["MONAI"][0]
        figures = ["{:+.3g} ({:+.3g} to {:+.3g})".format(*interval(difference[:, k])) for k in range(2)]
        lines.append(f"| medgen - MONAI, paired | | | {figures[0]} | {figures[1]} |")
    return "\n".join(lines)


def _count(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("medgen", "MONAI"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    steps = arguments.steps
    config = load_config(
        CONFIG,
        [*IMAGE_ONLY, f"data={arguments.data}", f"steps={steps}", f"batch_size={arguments.batch}",
         f"adversarial#start_step={steps // 2}", *arguments.overrides],
    )  # fmt: skip
    assert isinstance(config, AutoencoderConfig)
    images, mean = images_of(config, True), torch.stack(images_of(config, False)).mean(0)
    results: dict[str, tuple[np.ndarray, int, float]] = {
        "mean image": (quality(lambda x: mean[None], images), 0, 0.0),
        "half resolution": (quality(half_resolution, images), 0, 0.0),
    }
    report = lambda line: print(line, flush=True)  # noqa: E731
    if arguments.only != "MONAI":
        coder, parameters, seconds = ours(config, report)
        results["medgen"] = (quality(coder, images), parameters, seconds)
        print(table(results), flush=True)
    if arguments.only != "medgen":
        coder, parameters, seconds = monais(config, config.net["latent_channels"], report)
        results["MONAI"] = (quality(coder, images), parameters, seconds)
    text = f"{len(images)} people, {steps} steps of {config.batch_size}, seed {config.seed}\n\n{table(results)}\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
