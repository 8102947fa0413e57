"""MONAI's own U-Net, trained by a plain loop on the pairs that a restorer is trained on, for comparison.

    python -m tests.bench.restoration_unet CONFIG -o NETWORK.pt [--steps N] [KEY=VALUE ...]

``CONFIG`` and ``KEY=VALUE`` are those of the restorer: its items, seeds, batch size, steps and learning rate hold here
too. The network sees the degraded patch, and of a hole its mask. It is ``monai.networks.nets.UNet`` of three levels
with residual units on plain voxels, trained with Adam on the mean absolute error under a cosine schedule.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch import Tensor
from torch.nn import functional as F

from medgen.continuation import pulled
from medgen.diffusion.randomness import derive_seed
from medgen.intensity import bright_end
from medgen.trainers.config import load_config
from medgen.trainers.restorer_config import RestorerConfig
from medgen.trainers.scans import ScanSource
from tests.bench.restoration_methods import Array
from tests.bench.restoration_people import Flags, bounding_box

CHANNELS, STRIDES, UNITS = (24, 48, 96), (2, 2), 2
WINDOW = 96
REPORT = 100


def network(dims: int, channels: int) -> UNet:
    """The network: image, and of holes the mask, to image."""
    return UNet(dims, channels, 1, CHANNELS, STRIDES, num_res_units=UNITS)


def batch(source: ScanSource, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Input ``(B, 1 or 2, *patch)`` and clean ``(B, 1, *patch)`` of a step."""
    items = [source.item(derive_seed(seed, "item", step, k)) for k in range(size)]
    inputs = [torch.cat([item[key] for key in ("input", "inpaint_mask") if key in item]) for item in items]
    return torch.stack(inputs), torch.stack([item["image"] for item in items])


def trained(config: RestorerConfig, source: ScanSource, steps: int) -> UNet:
    """The network after so many steps.

    Args:
        config: of the restorer.
        source: of its items.
        steps: of Adam.
    """
    dims = len(config.grid.size)
    torch.manual_seed(config.seed)
    net = network(dims, 2 if config.restores == "inpaint" else 1)
    optimiser = torch.optim.Adam(net.parameters(), config.optimisation.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 0.5 + 0.5 * math.cos(math.pi * k / steps))
    for step in range(steps):
        given, clean = batch(source, step, config.batch_size, config.seed)
        optimiser.zero_grad()
        loss = F.l1_loss(net(given), clean)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % REPORT == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    return net.eval()


class Filler:
    """The trained network on a scan with a hole.

    Args:
        net: of two input channels.
    """

    def __init__(self, net: UNet) -> None:
        self.net = net.eval()

    @classmethod
    def load(cls, path: Path) -> Filler:
        """From the file that this script writes."""
        net = network(3, 2)
        net.load_state_dict(torch.load(path, weights_only=True))
        return cls(net)

    @torch.no_grad()
    def __call__(self, image: Array, hole: Flags) -> Array:
        """Image ``(X, Y, Z)`` with the hole filled, in the scan's unit."""
        shown = torch.from_numpy(np.where(hole, 0, image).astype(np.float32))[None]
        mask = torch.from_numpy(hole.astype(np.float32))[None]
        scale = bright_end(shown)
        box = (slice(None), *bounding_box(hole, WINDOW // 2))
        given = torch.cat([pulled(shown[box] / scale, mask[box]), mask[box]])[None]
        found = sliding_window_inference(given, (WINDOW,) * 3, 1, self.net, overlap=0.25, mode="gaussian")
        filled = shown.clone()
        filled[box] = found[0] * scale
        return np.where(hole, filled[0].numpy(), image)


def main() -> None:
    """Parse the command line, train, save."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("changes", nargs="*", help="KEY=VALUE over the configuration")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="those of the configuration by default")
    given = parser.parse_args()
    config = load_config(given.config, given.changes)
    if not isinstance(config, RestorerConfig):
        parser.error(f"{given.config} is not the configuration of a restorer")
    net = trained(config, ScanSource.training(config), given.steps or config.steps)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), given.output)


if __name__ == "__main__":
    main()
