"""What judges samples: a segmentation network of real people, its features, and texture features; floors beside.

The network is trained once a grid on training people and kept in a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path
from medgen.metrics import label_means, paint_labels, radiomic_features
from tests.bench.people import LABELS, People, Volume

Array = NDArray[np.float64]
WIDTHS = {2: (16, 16, 32, 64, 128, 16), 3: (12, 12, 24, 48, 96, 12)}
BATCH = {2: 16, 3: 4}
STEPS = {2: 500, 3: 250}
EVALUATED = 16
FORMAT = 1
FLOORS = ("label means and noise", "white noise")


class Judge:
    """The network and what it says of volumes.

    Args:
        network: a :class:`BasicUNet`, trained to segment.
        key: what it was trained on; results under another key cannot be compared.
    """

    def __init__(self, network: nn.Module, key: str) -> None:
        self.network = network.eval()
        self.key = key

    @torch.no_grad()
    def segment(self, volume: Volume) -> NDArray[np.int64]:
        """Label ids, shape of the volume."""
        found: NDArray[np.int64] = self.network(torch.from_numpy(volume.image)[None, None]).argmax(1)[0].numpy()
        return found

    @torch.no_grad()
    def features(self, volumes: Sequence[Volume]) -> Array:
        """Mean of each channel of the deepest level, a row a volume: what the anatomy looks like to a segmenter."""
        rows = []
        for start in range(0, len(volumes), EVALUATED):
            x: Any = torch.from_numpy(np.stack([v.image for v in volumes[start : start + EVALUATED]]))[:, None]
            for stage in ("conv_0", "down_1", "down_2", "down_3", "down_4"):
                x = getattr(self.network, stage)(x)
            rows.append(x.flatten(2).mean(2).double().numpy())
        return np.concatenate(rows)

    def dice(self, volumes: Sequence[Volume]) -> dict[str, float]:
        """Dice of what the network finds with the label each image has: mean of the parts, whole, least whole."""
        rows = []
        for volume in volumes:
            found, ids = self.segment(volume), volume.ids
            parts = [overlap(found == i, ids == i) for i in LABELS if (ids == i).any() or (found == i).any()]
            rows.append((np.mean(parts) if parts else 1.0, overlap(found > 0, ids > 0)))
        table = np.array(rows)
        return {
            "parts": float(table[:, 0].mean()),
            "whole": float(table[:, 1].mean()),
            "least": float(table[:, 1].min()),
        }


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def train_judge(people: People, cache: Path, steps: int | None = None) -> Judge:
    """Train on the gallery of training people, or read what an earlier call left in ``cache``."""
    dims = len(people.grid.size)
    steps = STEPS[dims] if steps is None else steps
    content = f"{FORMAT} {people.name} {people.grid} {len(people.gallery)} {steps}"
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BasicUNet(spatial_dims=dims, in_channels=1, out_channels=1 + len(LABELS), features=WIDTHS[dims])
    path = cache / f"judge-{key}.pt"
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
        return Judge(network, key)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(steps, 2))
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    for step in range(steps):
        image, label = _batch(people.gallery, step, BATCH[dims])
        loss = loss_of(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(network.state_dict(), temporary)
    return Judge(network, key)


def _batch(gallery: Sequence[Volume], step: int, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels ``(count, 1, *spatial)`` of random volumes, each moved and its contrast changed a little."""
    images, labels = [], []
    for item in range(count):
        stream = torch.Generator().manual_seed(derive_seed(7, "judge", count * step + item))
        volume = gallery[int(torch.randint(len(gallery), (), generator=stream))]
        image, label = torch.from_numpy(volume.image)[None, None], torch.from_numpy(volume.ids)[None, None].float()
        dims = image.ndim - 2
        draw = (torch.rand(dims * dims + dims + 1, generator=stream) * 2 - 1) * 0.1
        matrix = torch.eye(dims) + draw[: dims * dims].reshape(dims, dims)
        grid = F.affine_grid(torch.cat([matrix, draw[dims * dims : -1, None]], 1)[None], list(image.shape), False)
        moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        images.append(moved.clamp(min=0) ** torch.exp(draw[-1]))
        labels.append(F.grid_sample(label, grid, mode="nearest", align_corners=False))
    return torch.cat(images), torch.cat(labels)


def texture(volumes: Sequence[Volume]) -> Array:
    """Radiomics-like features of the image alone, a row a volume: what the grain looks like."""
    return np.stack([radiomic_features(volume.image) for volume in volumes])


def floors(training: Sequence[Volume], count: int, seed: int = 0) -> dict[str, list[Volume]]:
    """What needs no model: for real training labels each label's mean, blurred, under real scatter; and white noise.

    Where there are fewer training volumes than ``count`` they are used again.
    """
    rng = np.random.default_rng(seed)
    images, labels = np.stack([v.image for v in training]), np.stack([v.ids for v in training])
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    shape = images.shape[1:]
    means = label_means(list(images), list(labels), 3)
    spread = float((images - np.asarray(means)[labels]).std())
    chosen = [labels[i] for i in np.resize(rng.permutation(len(training)), count)]
    painted = [gaussian_filter(paint_labels(label, means), 0.7) + rng.normal(0, spread, shape) for label in chosen]
    noise = [rng.normal(images.mean(), images.std(), shape) for _ in range(count)]
    blank = [rng.choice(3, shape, p=shares).astype(np.int16) for _ in range(count)]
    found = zip(FLOORS, ((painted, chosen), (noise, blank)), strict=True)
    return {
        name: [Volume(x.clip(0, 1.5).astype(np.float32), label) for x, label in zip(*pair, strict=True)]
        for name, pair in found
    }
