"""Under-sampled k-space of a scan nobody trained on, by a prior that was never told about k-space.

    python -m tests.bench.kspace MODEL -o OUT.json [--masks 10] [--slices 16] [--scan mni152-T1] [--data DATA]
        [--picture OUT.png]

``MODEL`` is a restorer that denoises and takes the noise level as an input. Axial slices of a scan (MNI152 by nilearn,
or one of ``tests.bench.restoration_people``), 160 x 192 around the brain, get a smooth random phase; whole lines of
k-space are measured, a quarter of them, 8% in the middle, with noise of 0.5% of the 99.9th percentile in either part,
another mask, phase and noise each time. Every method but the zero-filled image knows the phase as it can be estimated
from the middle of k-space; two of them correct it as they go. The weight of total variation is the best of three for
each mask, by the truth itself (of 0.0005 to 0.008 on the first mask the best are 0.002 and 0.001); the denoiser has the
same settings everywhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from medgen.diffusion.randomness import derive_seed, generators
from medgen.metrics.frechet import bootstrap_interval
from medgen.models.bundled import load_model
from medgen.models.restorer import RestorerModel
from medgen.operators import CartesianKSpace, Chain, GaussianNoise, Phase, cartesian_mask
from medgen.operators.fourier import ifft
from medgen.restoration.plug_and_play import plug_and_play, refined_phase
from medgen.restoration.posterior import Measurement
from medgen.restoration.total_variation import VariationFit, total_variation
from tests.bench.restoration_people import NAMES, scans

NOISE, ACCELERATION, CENTER = 0.005, 4.0, 0.08
WEIGHTS = (0.001, 0.002, 0.004)
BASELINES = ("zero-filled", "total variation", "total variation, phase corrected")
METHODS = (*BASELINES, "denoiser", "denoiser, phase corrected")
EDGES, HEIGHT = (160, 192), 0.6  # of the crop; of the slab's middle in the brain, from below
PHASE_WIDTH, ROUNDS = 3.0, 8
Found = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        operator: with the estimated phase.
        y: ``(1, *size)``, complex.
    """

    operator: Chain
    y: Tensor

    @property
    def known(self) -> Measurement:
        return Measurement(self.operator, self.y[None], NOISE)


def slab(data: Path, name: str, slices: int) -> Tensor:
    """Axial slices ``(1, 1, 160, 192, slices)`` of a scan, its 99.9th percentile 1."""
    scan = next(scans(data, (name,)))
    around = [np.flatnonzero(scan.brain.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    middle = [(int(there[0]) + int(there[-1]) + 1) // 2 for there in around[:2]]
    height = int(around[2][0] + HEIGHT * (around[2][-1] - around[2][0]))
    edges = (*EDGES, slices)
    starts = [centre - edge // 2 for centre, edge in zip((*middle, height), edges, strict=True)]
    cut = tuple(slice(max(0, start), start + edge) for start, edge in zip(starts, edges, strict=True))
    return torch.from_numpy(np.ascontiguousarray(scan.image[cut] / scan.top))[None, None]


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


def corrected_variation(known: Measurement, weight: float) -> Tensor:
    """Total variation that corrects the phase after every so many iterations, as the denoiser's method does."""
    fit = VariationFit(known.operator, known.y)
    made = fit(weight, 80)
    for _ in range(ROUNDS):
        known = replace(known, operator=refined_phase(known, made, PHASE_WIDTH))
        fit.turn(known.operator)
        made = fit(weight, 40)
    return made


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((image.reshape(truth.shape) - truth).square().mean()))


def ssim(image: Tensor, truth: Tensor) -> float:
    return float(structural_similarity(image.reshape(truth.shape)[0, 0].numpy(), truth[0, 0].numpy(), data_range=1.0))


def images(model: RestorerModel, case: Case, truth: Tensor) -> dict[str, Tensor]:
    """What each method makes."""

    def best(method: Callable[[Measurement, float], Tensor]) -> Tensor:
        made = {weight: method(case.known, weight) for weight in WEIGHTS}
        weight = max(WEIGHTS, key=lambda weight: psnr(made[weight], truth))
        print(f"{method.__name__}: weight {weight}", flush=True)
        return made[weight]

    made = [ifft(case.y[None]).abs(), best(total_variation), best(corrected_variation)]
    for width in (None, PHASE_WIDTH):
        made.append(plug_and_play(model.denoise, case.known, phase_width=width)[0])
    return {name: image.clamp(min=0) for name, image in zip(METHODS, made, strict=True)}


def run(
    model: RestorerModel, truth: Tensor, masks: int, picture: Path | None, say: Callable[[str], None] = print
) -> Found:
    """PSNR in dB and SSIM by method, one for each mask."""
    found: Found = {name: {"psnr": [], "ssim": []} for name in METHODS}
    for seed in range(masks):
        began = time.monotonic()
        made = images(model, measured(truth, seed), truth)
        for name, image in made.items():
            found[name]["psnr"].append(psnr(image, truth))
            found[name]["ssim"].append(ssim(image, truth))
        shown = ", ".join(f"{name} {row['psnr'][-1]:.2f}" for name, row in found.items())
        say(f"mask {seed}: {shown} dB; {time.monotonic() - began:.0f} s")
        if picture is not None and not seed:
            draw(picture, {**made, "truth": truth})
    return found


def draw(path: Path, made: dict[str, Tensor]) -> None:
    """The middle slice of each, and five times its error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(made), 7), layout="tight")
    axes = figure.subplots(2, len(made))
    for column, (name, image) in enumerate(made.items()):
        middle, error = (x[0, 0, ..., x.shape[-1] // 2].T for x in (image, 5 * (image - made["truth"]).abs()))
        axes[0, column].set_title(name, fontsize=8)
        for row, values in enumerate((middle, error)):
            axes[row, column].imshow(values, cmap="gray", vmin=0, vmax=1, origin="lower")
            axes[row, column].axis("off")
    figure.savefig(path, dpi=80)


def table(found: Found) -> str:
    """Means with 95% intervals over masks, and the differences to the baselines."""
    rows = ["| | PSNR dB | " + " | ".join(f"over {name}" for name in BASELINES) + " | SSIM |", "|---" * 6 + "|"]
    for name, values in found.items():
        cells = [np.array(values["psnr"]), *(np.subtract(values["psnr"], found[b]["psnr"]) for b in BASELINES)]
        shown = [bootstrap_interval(lambda x: float(np.mean(x)), cell) for cell in cells]
        parts = [f"{i.value:.2f} ({i.low:.2f} to {i.high:.2f})" for i in shown]
        rows.append(f"| {name} | " + " | ".join([*parts, f"{np.mean(values['ssim']):.4f}"]) + " |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, default in (("masks", 10), ("slices", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scan", choices=NAMES, default=NAMES[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    model = load_model(args.model, "cpu")
    if not isinstance(model, RestorerModel):
        raise SystemExit("tests.bench.kspace: MODEL must be a restorer.")
    found = run(model, slab(args.data, args.scan, args.slices), args.masks, args.picture)
    args.output.write_text(json.dumps(found, indent=2))
    print(table(found))


if __name__ == "__main__":
    main()
