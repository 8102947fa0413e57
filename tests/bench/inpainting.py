"""Holes in real scans that no model was trained on: medgen beside biharmonic inpainting and the local mean.

    python -m tests.bench.inpainting MODEL -o OUT --data SHARED_DATA [--holes 10] [--samples 8]

Scans: T1 of the two open_ms cross-sectional patients, and the MNI152 template (nilearn) with the hole's mirror image
blanked too, since the template is symmetric. Every method sees the same holes. Baselines do not depend on the model
and are kept in OUT; ``continuation`` is what the model starts from. Errors are in percent of the scan's 0.5th-99.5th
percentile range inside the brain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medgen.continuation import kriged
from medgen.geometry import spacing_of
from medgen.metrics.frechet import bootstrap_interval
from medgen.models import load_model
from medgen.restoration.inpaint import inpaint

Array = NDArray[np.float64]
METHODS = ("local mean", "biharmonic", "continuation", "regression", "mean of samples", "one sample")


@dataclass(frozen=True)
class Case:
    """One hole in one scan."""

    name: str
    scan: Array
    affine: Array
    hole: NDArray[np.bool_]
    """Where the error is measured."""
    blank: NDArray[np.bool_]
    """What is hidden: the hole, and on a symmetric template its mirror image."""
    scale: float


def scans(data: Path) -> dict[str, tuple[Array, Array, bool]]:
    """Name -> (array, affine, symmetric)."""
    from nilearn.datasets import load_mni152_template

    found = {}
    for patient in ("patient07", "patient19"):
        image = nib.load(data / "open_ms" / "cross_sectional" / patient / "T1.nii.gz")
        found[patient] = (np.asarray(image.dataobj, dtype=np.float64), image.affine, False)
    template = load_mni152_template(resolution=1)
    found["mni152"] = (np.asarray(template.dataobj, dtype=np.float64), template.affine, True)
    return found


def cases(data: Path, holes: int) -> list[Case]:
    """The same holes at every call: spheres of 20 to 40 mm, at least 90 percent of each in the brain."""
    made = []
    for number, (name, (scan, affine, symmetric)) in enumerate(scans(data).items()):
        rng = np.random.default_rng(1000 + number)
        bright = scan > 0.1 * np.percentile(scan[scan > 0], 99)
        brain = ndimage.binary_fill_holes(ndimage.binary_closing(bright, iterations=3))
        low, high = np.percentile(scan[brain], [0.5, 99.5])
        places = np.argwhere(brain)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        index = np.stack(np.indices(scan.shape), axis=-1)
        while sum(case.name.startswith(name) for case in made) < holes:
            center, radius = places[rng.integers(len(places))], rng.uniform(10, 20)
            hole = (((index - center) * spacing) ** 2).sum(-1) <= radius**2
            if brain[hole].mean() < 0.9:
                continue
            mirror = np.flip(hole, 0) if symmetric else hole
            count = sum(case.name.startswith(name) for case in made)
            made.append(Case(f"{name}-{count:02d}", scan, affine, hole & brain, hole | mirror, high - low))
    return made


def local_mean(case: Case) -> Array:
    """Mean of the known brain voxels within 5 mm of the hole."""
    shell = ndimage.binary_dilation(case.hole, iterations=5) & ~case.blank & (case.scan > 0)
    return np.full(case.scan.shape, case.scan[shell].mean())


def biharmonic(case: Case) -> Array:
    """``skimage.restoration.inpaint_biharmonic`` in 3D on a crop around the hole."""
    from skimage.restoration import inpaint_biharmonic

    box = tuple(slice(max(0, a.start - 6), a.stop + 6) for a in ndimage.find_objects(case.hole.astype(int))[0])
    blank = case.blank[box]
    low, high = case.scan.min(), case.scan.max()
    known = np.where(blank, 0, (case.scan[box] - low) / (high - low))
    filled = np.full(case.scan.shape, np.nan)
    filled[box] = inpaint_biharmonic(known, blank) * (high - low) + low
    return filled


def errors(case: Case, filled: Array) -> tuple[float, float]:
    """Mean absolute error in percent of the range, and PSNR in dB, in the hole."""
    difference = (filled - case.scan)[case.hole] / case.scale
    return 100 * float(np.abs(difference).mean()), float(-10 * np.log10((difference**2).mean()))


def kept(path: Path, case: Case, make: Callable[[Case], Array]) -> Array:
    """A baseline's values, made once."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make(case)[case.hole])
    filled = case.scan.copy()
    filled[case.hole] = np.load(path)
    return filled


def run(model_name: str | None, out: Path, data: Path, holes: int, samples: int) -> dict[str, dict[str, list[float]]]:
    """Errors of each method on each hole; with no model only the baselines are prepared."""
    model = load_model(model_name) if model_name else None
    rows: dict[str, dict[str, list[float]]] = {}
    for case in cases(data, holes):
        row = {
            "local mean": errors(case, local_mean(case)),
            "biharmonic": errors(case, kept(out / "biharmonic" / f"{case.name}.npy", case, biharmonic)),
        }
        if model is not None:
            spacing = spacing_of(case.affine).tolist()
            row["continuation"] = errors(case, kriged(case.scan, case.blank, spacing, model.spec.correlation_mm))
            affine = torch.from_numpy(case.affine)
            volume = MetaTensor(torch.from_numpy(case.scan[None]).float(), affine=affine)
            blank = MetaTensor(torch.from_numpy(case.blank[None].astype(np.float32)), affine=affine)
            drawn = [inpaint(volume, blank, model, "sample", seed=i)[0].double().numpy() for i in range(samples)]
            regression = inpaint(volume, blank, model, "mean")[0].double().numpy()
            row["regression"] = errors(case, regression)
            row["one sample"] = errors(case, drawn[0])
            if samples > 1:
                row["mean of samples"] = errors(case, np.mean(drawn, axis=0))
            picture(case, drawn[0], regression, out)
        rows[case.name] = {method: list(values) for method, values in row.items()}
        print(case.name, {method: f"{mae:.2f} % {psnr:.2f} dB" for method, (mae, psnr) in row.items()}, flush=True)
    (out / "inpainting.json").write_text(json.dumps(rows, indent=1))
    return rows


def picture(case: Case, sample: Array, regression: Array, out: Path) -> None:
    """Truth, hole, regression, sample and biharmonic in the plane through the hole's middle."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    z = int(np.argwhere(case.hole)[:, 2].mean())
    filled = kept(out / "biharmonic" / f"{case.name}.npy", case, biharmonic)
    panels = {
        "real": case.scan,
        "hole": np.where(case.blank, 0, case.scan),
        "regression": regression,
        "one sample": sample,
        "biharmonic": filled,
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.6))
    for axis, (title, array) in zip(axes, panels.items(), strict=True):
        axis.imshow(array[:, :, z].T, origin="lower", cmap="gray", vmin=0, vmax=np.percentile(case.scan, 99.8))
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out / f"{case.name}.png", dpi=70)
    plt.close(figure)


def table(rows: dict[str, dict[str, list[float]]]) -> None:
    """Mean and 95 % bootstrap interval over holes, for each scan and method."""
    for scan in sorted({name.rsplit("-", 1)[0] for name in rows}):
        for method in METHODS:
            values = np.array([r[method] for name, r in rows.items() if name.startswith(scan) and method in r])
            if len(values):
                (a, b), (c, d) = (_interval(values[:, k]) for k in (0, 1))
                print(
                    f"{scan:10s} {method:16s} n={len(values):2d}  MAE {values[:, 0].mean():5.2f} % [{a:.2f}, {b:.2f}]"
                    f"  PSNR {values[:, 1].mean():5.2f} dB [{c:.2f}, {d:.2f}]"
                )


def _interval(values: Array) -> tuple[float, float]:
    found = bootstrap_interval(np.mean, values)
    return found.low, found.high


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", help="bundled name or folder; left out: only the baselines")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--holes", type=int, default=10)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    table(run(given.model, given.output, given.data, given.holes, given.samples))


if __name__ == "__main__":
    main()
