"""A denoiser of holes made used to one scan: trained a little more on what is known of that scan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medgen.diffusion.randomness import derive_seed
from medgen.geometry import spacing_of
from medgen.models.restorer import predicted, restoration_loss
from medgen.networks.threads import at_most_threads
from medgen.operators.degradations import draw_degradation
from medgen.operators.noise import GaussianNoise
from medgen.patches import foreground_window, random_holes
from medgen.restoration.restorer_tasks import shown

if TYPE_CHECKING:
    from medgen.models.restorer import RestorerModel
    from medgen.models.restorer_spec import RestorerSpec

__all__ = ["STEPS", "adapted"]

STEPS, BATCH = 150, 4
LEARNING_RATE, WARM_UP = 3e-4, 10
DIAMETERS = (0.25, 0.65)  # of holes, over a patch's least side
HOLES = 2
TISSUE = 0.05  # of the bright end: below it is air
LEAST_TISSUE = 0.1  # of the box around what is not 0


def adapted(
    model: RestorerModel,
    values: Tensor,
    hole: Tensor,
    affine: np.ndarray,
    callback: Callable[[int], None] | None = None,
) -> RestorerModel | None:
    """The model after ``STEPS`` steps on patches of one scan, with holes elsewhere.

    Contrast and sharpness of a scan are better known from the rest of it than from other people: samples of a person
    not trained on become sharper (figures: medgen/decisions/0011-restorers.md). Patches are mirrored from left to
    right at random; the hole itself has no loss.

    Args:
        model: for task ``denoise_hole``; it stays as it is.
        values: ``(1, X, Y, Z)`` in the model's unit; what is in the hole is shown, and not learnt.
        hole: the same shape, True = not known.
        affine: RAS+ mm, 4x4.
        callback: called with the steps done.

    Returns:
        None where too little is known: hardly any tissue outside of the hole, or less than a patch of the network.

    References:
        Shocher et al. 2018, "Zero-shot super-resolution using deep internal learning" (arXiv:1712.06087); Sun et al.
        2020, "Test-time training" (arXiv:1909.13231).
    """
    spec, box = model.spec, shown(values)
    known = _Known(values[box], hole[box], affine, spec)
    if min(known.size) == 0 or float(known.tissue.float().mean()) < LEAST_TISSUE:
        return None
    stream = torch.Generator().manual_seed(derive_seed(0, "adapt"))
    with torch.inference_mode(False), torch.enable_grad(), at_most_threads(2, model.device):
        network = copy.deepcopy(model.networks["restorer"]).float().eval().requires_grad_(True)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(STEPS):
            items = zip(*(known.item(stream) for _ in range(BATCH)), strict=True)
            clean, noisy, marked, counts, level = (torch.stack(part).to(model.device) for part in items)
            mean, log_std = predicted(network, spec, noisy, level, marked)
            loss, _ = restoration_loss(mean, log_std, clean, counts)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / STEPS)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if callback is not None:
                callback(step + 1)
    return type(model)(spec, {"restorer": network.requires_grad_(False)}, model.device, model.hash)


class _Known:
    """What is known of a scan.

    Args:
        values: see :func:`adapted`.
        hole: see :func:`adapted`.
        affine: see :func:`adapted`.
        spec: of the model.

    Attributes:
        tissue: outside of the hole.
        size: of patches.
    """

    def __init__(self, values: Tensor, hole: Tensor, affine: np.ndarray, spec: RestorerSpec) -> None:
        self.values, self.hole = values, hole
        self.tissue = (values > TISSUE) & ~hole
        self.degradations = spec.degradations
        multiple = spec.multiple
        self.size = tuple(
            min(n, most) // multiple * multiple for n, most in zip(values.shape[1:], spec.grid.size, strict=True)
        )
        self.spacing = spacing_of(affine).tolist()
        least = min(n * step for n, step in zip(self.size, self.spacing, strict=True))
        self.diameters = [share * least for share in DIAMETERS]
        self.across = 1 + int(np.argmax(np.abs(affine[0, :3])))

    def item(self, stream: torch.Generator) -> tuple[Tensor, ...]:
        """A patch, the same with noise in holes, the holes, where they are known, and the level."""
        window = foreground_window(self.tissue, self.size, stream)
        seed = int(torch.randint(2**31, (), generator=stream))
        drawn = random_holes(self.size, self.spacing, self.diameters, HOLES, seed) > 0.5
        unknown, clean = self.hole[window], self.values[window].clone()
        chosen = self.degradations[int(torch.randint(len(self.degradations), (), generator=stream))]
        noise = draw_degradation("gaussian", self.size, self.spacing, 1.0, stream, chosen["gaussian"])
        noisy = noise(clean[None], [torch.Generator().manual_seed(derive_seed(seed, "noise"))])[0]
        marked = drawn | unknown
        made = [clean, torch.where(marked, noisy, clean), marked.float(), (drawn & ~unknown).float()]
        if int(torch.randint(2, (), generator=stream)):
            made = [part.flip(self.across) for part in made]
        told = noise.chain.noise
        return (*made, torch.tensor(told.std if isinstance(told, GaussianNoise) else 0.0))
