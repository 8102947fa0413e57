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
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medgen.intensity import bright_end
from medgen.models.restorer_spec import RestorerSpec
from medgen.restoration.restorer_tasks import RESTORER_TASKS, Scan
from medgen.trainers.config import load_config
from medgen.trainers.data import BatchesFrom, Items
from medgen.trainers.restorer_config import RestorerConfig
from medgen.trainers.scans import ScanSource
from tests.bench.restoration_methods import Array
from tests.bench.restoration_people import Flags

CHANNELS, STRIDES, UNITS = (24, 48, 96), (2, 2), 2
REPORT = 100


def network(dims: int, channels: int) -> UNet:
    """The network: image, and of holes the mask, to image."""
    return UNet(dims, channels, 1, CHANNELS, STRIDES, num_res_units=UNITS)


def trained(config: RestorerConfig, source: ScanSource, steps: int, device: torch.device) -> UNet:
    """The network after so many steps.

    Args:
        config: of the restorer.
        source: of its items.
        steps: of Adam.
        device: where to train.
    """
    dims = len(config.grid.size)
    torch.manual_seed(config.seed)
    net = network(dims, 2 if config.restores == "inpaint" else 1).to(device)
    optimiser = torch.optim.Adam(net.parameters(), config.optimisation.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 0.5 + 0.5 * math.cos(math.pi * k / steps))
    loader: DataLoader[Any] = DataLoader(
        Items(source, config), batch_sampler=BatchesFrom(0, steps, config.batch_size), num_workers=config.num_workers
    )
    for step, items in enumerate(loader):
        given = torch.cat([items[key] for key in ("input", "inpaint_mask") if key in items], dim=1).to(device)
        optimiser.zero_grad()
        loss = F.l1_loss(net(given), items["image"].to(device))
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % REPORT == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    return net.cpu().eval()


class Filler:
    """The trained network on a scan with a hole, in the place of the restorer.

    Args:
        net: of two input channels.
        spec: of the restorer whose pairs it was trained on.
    """

    def __init__(self, net: UNet, spec: RestorerSpec) -> None:
        self.net = net.eval()
        self.spec, self.multiple = spec, math.prod(STRIDES)

    @classmethod
    def load(cls, path: Path, spec: RestorerSpec) -> Filler:
        """From the file that this script writes."""
        net = network(3, 2)
        net.load_state_dict(torch.load(path, weights_only=True))
        return cls(net, spec)

    @torch.no_grad()
    def restored(self, image: Tensor, strength: float, hole: Tensor, callback: Any = None) -> tuple[Tensor, None]:
        """As :meth:`medgen.models.restorer.RestorerModel.restored`, without an expected error."""
        made = self.net(torch.cat([image, hole])[None].float())
        return made[0], None

    def __call__(self, image: Array, affine: Array, hole: Flags) -> Array:
        """Image ``(X, Y, Z)`` with the hole filled, in the scan's unit."""
        shown = torch.from_numpy(np.where(hole, 0, image).astype(np.float32))[None]
        scale = bright_end(shown)
        scan = Scan(shown / scale, affine, scale, 0.0)
        made: Any = RESTORER_TASKS["inpaint"](self, scan, torch.from_numpy(hole)[None], {"interval": False}, None)
        return np.where(hole, made.mean[0].numpy() * scale, image)


def main() -> None:
    """Parse the command line, train, save."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("changes", nargs="*", help="KEY=VALUE over the configuration")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="those of the configuration by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    given = parser.parse_args()
    config = load_config(given.config, given.changes)
    if not isinstance(config, RestorerConfig):
        parser.error(f"{given.config} is not the configuration of a restorer")
    source = ScanSource.training(config)
    net = trained(config, source, given.steps or config.steps, torch.device(given.device))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), given.output)


if __name__ == "__main__":
    main()
