"""Under-sampled k-space of a scan nobody trained on, by a prior that was never told about k-space.

    python -m tests.bench.kspace MODEL -o OUT.json [--masks 10] [--samples 2] [--steps 20] [--slices 8]

``MODEL`` is a restorer that denoises and takes the noise level as an input. A slab of axial slices of the MNI152
template (nilearn) gets a smooth random phase; whole lines of k-space are measured, a quarter of them, 8% in the middle,
with noise of 0.5% of the 99.9th percentile in either part, another mask, phase and noise each time. Every method but
the zero-filled image knows the phase as it can be estimated from the middle of k-space. The weight of total variation
is the best of five on the first case, by the truth itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.diffusion.randomness import derive_seed, generators
from medgen.intensity import IntensityWindow, bright_end
from medgen.metrics.frechet import bootstrap_interval
from medgen.models.bundled import load_model
from medgen.models.restorer import RestorerModel
from medgen.operators import CartesianKSpace, Chain, GaussianNoise, Phase, cartesian_mask
from medgen.operators.fourier import ifft
from medgen.restoration.denoiser_prior import restorer_prior
from medgen.restoration.sampled import restore_samples

NOISE, ACCELERATION, CENTER = 0.005, 4.0, 0.08
WEIGHTS = (0.001, 0.002, 0.004, 0.008, 0.016)
METHODS = ("zero-filled", "total variation", "mean of samples", "one sample")
MIDDLE = 95
SIGMA_MAX = 0.1  # above, a denoiser knows less of the image than the zero-filled one shows


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        operator: with the estimated phase.
        y: ``(1, *size)``, complex.
    """

    operator: Chain
    y: Tensor


def slab(slices: int) -> Tensor:
    """Axial slices ``(1, 1, X, Y, slices)`` of the template, its 99.9th percentile 1."""
    from nilearn.datasets import load_mni152_template

    values = np.asarray(load_mni152_template(resolution=1).dataobj, np.float32)[..., MIDDLE : MIDDLE + slices]
    image = torch.from_numpy(np.ascontiguousarray(values)).clamp(min=0)[None, None]
    return image / bright_end(image)


def smooth_phase(size: tuple[int, ...], seed: int) -> Tensor:
    """Radians ``(*size)``: a few coarse numbers, interpolated, about a turn from end to end."""
    coarse = torch.randn(1, 1, 3, 3, 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="trilinear", align_corners=True)[0, 0]


def estimated_phase(y: Tensor, mask: Tensor) -> Tensor:
    """Of the image that the middle of k-space alone makes, ``(*size)``."""
    window = torch.ones(())
    for axis, n in enumerate(mask.shape):
        width = max(1.0, CENTER * n)
        place = (torch.arange(n) - n // 2).abs() / width
        taper = torch.where(place < 1, (torch.pi * place / 2).cos().square(), 0.0) if axis < 2 else torch.ones(n)
        window = window[..., None] * taper
    return ifft(y[None] * window)[0, 0].angle()


def measured(image: Tensor, seed: int) -> Case:
    """A measurement with a mask, a phase and noise of its own."""
    size = tuple(image.shape[2:])
    stream = torch.Generator().manual_seed(derive_seed("k-space", seed))
    mask = cartesian_mask(size, ACCELERATION, stream, axes=(0,), center_fraction=CENTER)
    kspace = CartesianKSpace(mask)
    true = Chain([Phase(smooth_phase(size, seed)), kspace], GaussianNoise(NOISE))
    y = true.sample(image, generators([derive_seed("noise", seed)]))[0]
    return Case(Chain([Phase(estimated_phase(y, mask)), kspace]), y)


def total_variation(case: Case, weight: float, iterations: int = 120) -> Tensor:
    """``argmin |A x - y|^2 / 2 + weight |grad x|`` (isotropic), ``(1, 1, *size)``.

    Chambolle and Pock 2011, J. Math. Imaging Vis. 40, algorithm 1, with the data term in the dual too.
    """
    operator, y = case.operator, case.y[None]
    step = 13**-0.5  # |gradient|^2 <= 12, |A| <= 1
    x = operator.adjoint(y)
    ahead, p, q = x, torch.zeros(3, *x.shape), torch.zeros_like(y)
    for _ in range(iterations):
        p = p + step * _gradient(ahead)
        p = p / (p.square().sum(0).sqrt() / weight).clamp(min=1)
        q = (q + step * (operator.forward(ahead) - y)) / (1 + step)
        new = x - step * (operator.adjoint(q) - _divergence(p))
        ahead, x = 2 * new - x, new
    return x


def _gradient(x: Tensor) -> Tensor:
    """Forward differences ``(3, *x.shape)``, 0 at the far ends."""
    parts = [F.pad(x.diff(dim=axis), [0, 0] * (x.ndim - 1 - axis) + [0, 1]) for axis in (2, 3, 4)]
    return torch.stack(parts)


def _divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of :func:`_gradient`."""
    total = torch.zeros_like(p[0])
    for part, axis in zip(p, (2, 3, 4), strict=True):
        n = part.shape[axis]
        inner = part.narrow(axis, 0, n - 1)
        back = [0, 0] * (part.ndim - 1 - axis)
        total = total + F.pad(inner, [*back, 0, 1]) - F.pad(inner, [*back, 1, 0])
    return total


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((image.reshape(truth.shape) - truth).square().mean()))


def run(
    model: RestorerModel, masks: int, samples: int, steps: int, slices: int, say: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """PSNR in dB by method, one for each mask."""
    truth = slab(slices)
    first = measured(truth, 0)
    weight = max(WEIGHTS, key=lambda w: psnr(total_variation(first, w).abs(), truth))
    say(f"weight of total variation {weight}")
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(masks):
        case, began = measured(truth, seed), time.monotonic()
        zero = ifft(case.y[None]).abs()
        start = case.operator.adjoint(case.y[None])
        prior = restorer_prior(model, start, sigma_max=SIGMA_MAX, num_inference_steps=steps)
        made = restore_samples(
            case.y, case.operator, prior, noise_std=NOISE, method="diffpir", samples=samples, seed=100 * seed,
            window=IntensityWindow(0.0, 1.0),
        )  # fmt: skip
        variation = total_variation(case, weight).abs()
        images = [zero, variation, made.mean.as_tensor(), made.samples[:1]]
        for name, image in zip(METHODS, images, strict=True):
            found[name].append(psnr(image.clamp(min=0), truth))
        shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in found.items())
        say(f"mask {seed}: {shown} dB; residual over noise {made.checks[0].ratio:.2f}; "
            f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return found


def table(found: dict[str, list[float]]) -> str:
    """Means with 95% intervals over masks, and the differences to the baselines."""
    rows = ["| | PSNR dB | over zero-filled | over total variation |", "|---|---|---|---|"]
    for name, values in found.items():
        cells = [np.array(values)] + [np.array(values) - np.array(found[base]) for base in METHODS[:2]]
        shown = [bootstrap_interval(lambda x: float(np.mean(x)), cell) for cell in cells]
        rows.append(f"| {name} | " + " | ".join(f"{i.value:.2f} ({i.low:.2f} to {i.high:.2f})" for i in shown) + " |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, default in (("masks", 10), ("samples", 2), ("steps", 20), ("slices", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = load_model(args.model, "cpu")
    if not isinstance(model, RestorerModel):
        raise SystemExit("tests.bench.kspace: MODEL must be a restorer.")
    found = run(model, args.masks, args.samples, args.steps, args.slices)
    args.output.write_text(json.dumps(found, indent=2))
    print(table(found))


if __name__ == "__main__":
    main()
