"""FLAIR from T1 and T2 of a person that the model was not trained on, beside maps of intensities.

    python -m tests.bench.translation MODEL -o OUT --data SHARED_DATA --train patient19 --test patient07 [--samples 4]

Scans: the two open_ms cross-sectional patients. Every method is given the same images, each in its own scan's intensity
window (0 to the 99.5th percentile of what is above 0, no figure of another person). FLAIR has no unit of its own: every
image that is made is brought to the real one's mean and deviation within the brain before it is judged (``psnr``,
``ssim``, ``kept``); ``plain`` is the PSNR without that, in the window of the real FLAIR.

Baselines are fitted on the training person: linear regression on the intensities, and the mean FLAIR of the nearest
intensities (joint histogram of ``BINS`` bins an image). PSNR and SSIM count voxels of the brain; intervals are
bootstrapped over axial slices, those of lesions over lesions. Contrast of a lesion is its mean less that of the normal
tissue within 3 mm; kept is the sum over lesions of what the translation shows over the sum of what is real, for lesions
that the real FLAIR shows brighter than ``BRIGHT`` of its window.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from medgen.intensity import IntensityWindow
from medgen.io.nifti import read_nifti
from medgen.metrics.frechet import bootstrap_interval
from medgen.models import load_model
from medgen.models.base import Model
from medgen.restoration.translate import translate

Array = NDArray[np.float64]
FILES = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
INPUTS = (("T1w", "T2w"), ("T1w",), ("T2w",))
SIZES = (3, 10, 30, 100, 10**9)
BINS, BRIGHT = 48, 0.08


@dataclass(frozen=True)
class Person:
    """One patient, images in their windows.

    Attributes:
        scans: as read, by modality.
        images: ``(X, Y, Z)`` in 0..1.
        brain: where all images are above 0, filled.
        lesions: of the experts.
    """

    scans: dict[str, MetaTensor]
    images: dict[str, Array]
    brain: NDArray[np.bool_]
    lesions: NDArray[np.bool_]


def person(folder: Path) -> Person:
    """Read a patient."""
    scans = {name: read_nifti(folder / f"{file}.nii.gz") for name, file in FILES.items()}
    images = {
        name: IntensityWindow.of(scan.as_tensor()).forward(scan.as_tensor())[0].double().numpy()
        for name, scan in scans.items()
    }
    inside = np.all([scan.numpy()[0] > 0 for scan in scans.values()], axis=0)
    lesions = read_nifti(folder / "lesions.nii.gz", role="label").numpy()[0] > 0
    return Person(scans, images, ndimage.binary_fill_holes(inside), lesions)


def linear(train: Person, test: Person, inputs: Sequence[str]) -> Array:
    """Least squares on the intensities of the training person's brain."""
    rows = np.stack([train.images[name][train.brain] for name in inputs] + [np.ones(train.brain.sum())], axis=1)
    weights = np.linalg.lstsq(rows, train.images["FLAIR"][train.brain], rcond=None)[0]
    made = weights[-1] + sum(w * test.images[name] for w, name in zip(weights, inputs, strict=False))
    return np.where(test.brain, made, 0)


def lookup(train: Person, test: Person, inputs: Sequence[str]) -> Array:
    """Mean FLAIR of the training person at the same intensities, an empty bin taking the nearest one's."""

    def bins(who: Person, where: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
        return tuple(np.minimum(who.images[n][where] * BINS, 1.5 * BINS).astype(np.int64) for n in inputs)

    shape = [int(1.5 * BINS) + 1] * len(inputs)
    total, count = np.zeros(shape), np.zeros(shape)
    place = bins(train, train.brain)
    np.add.at(total, place, train.images["FLAIR"][train.brain])
    np.add.at(count, place, 1)
    nearest = ndimage.distance_transform_edt(count == 0, return_distances=False, return_indices=True)
    table = (total / np.maximum(count, 1))[tuple(nearest)]
    made = np.zeros(test.brain.shape)
    made[test.brain] = table[bins(test, test.brain)]
    return made


def by_model(
    model: Model, test: Person, inputs: Sequence[str], samples: int, plane: str, mirror: bool
) -> dict[str, Array]:
    """The expected image, one sample, and the mean of several, in the FLAIR's window."""
    given = {name: test.scans[name] for name in inputs}
    scale = model.spec.intensity.scale
    made = {"model, mean": translate(given, model, plane=plane, mirror=mirror)["image"].numpy()[0] / scale}
    if samples:
        drawn = [
            translate(given, model, "sample", seed=i, plane=plane, mirror=mirror)["image"].numpy()[0] / scale
            for i in range(samples)
        ]
        made["model, one sample"] = drawn[0]
        if samples > 1:
            made[f"model, mean of {samples}"] = np.mean(drawn, axis=0)
    return made


def figures(made: Array, test: Person) -> dict[str, object]:
    """PSNR, SSIM and lesion contrast of one image, with 95 % intervals."""
    real, brain = test.images["FLAIR"], test.brain
    plain = -10 * np.log10(np.mean((made - real)[brain] ** 2))
    made = real[brain].mean() + (made - made[brain].mean()) * (real[brain].std() / made[brain].std())
    error = ((made - real) ** 2) * brain
    kept = brain.sum((0, 1)) >= 100
    square, voxels = error.sum((0, 1))[kept], brain.sum((0, 1))[kept]
    box = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in ndimage.find_objects(brain.astype(int))[0])
    similarity = np.zeros(brain.shape)
    pair = (made * brain)[box], (real * brain)[box]
    similarity[box] = structural_similarity(*pair, data_range=1.0, full=True)[1]
    similar = (similarity * brain).sum((0, 1))[kept]
    rows = np.stack([square, voxels, similar], axis=1)

    def psnr(x: Array) -> float:
        return float(-10 * np.log10(x[:, 0].sum() / x[:, 1].sum()))

    def ssim(x: Array) -> float:
        return float(x[:, 2].sum() / x[:, 1].sum())

    lesions = contrasts(made, test)
    found: dict[str, object] = {
        "plain": float(plain),
        "psnr": [psnr(rows), *_interval(psnr, rows)],
        "ssim": [ssim(rows), *_interval(ssim, rows)],
        "kept": [_kept(lesions), *_interval(_kept, lesions)],
    }
    for low, high in pairwise(SIZES):
        some = lesions[(lesions[:, 0] >= low) & (lesions[:, 0] < high)]
        found[f"kept {low}+"] = [_kept(some) if len(some) else None, len(some)]
    return found


def contrasts(made: Array, test: Person) -> Array:
    """Size in voxels, real and shown contrast of each bright lesion, ``(lesions, 3)``."""
    parts, _ = ndimage.label(test.lesions, np.ones((3, 3, 3)))
    near = ndimage.binary_dilation(test.lesions)
    rows = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        wide = tuple(slice(max(0, axis.start - 5), axis.stop + 5) for axis in box)
        lesion = parts[wide] == number
        around = ndimage.binary_dilation(lesion, iterations=3) & ~near[wide] & test.brain[wide]
        if lesion.sum() < SIZES[0] or around.sum() < 10:
            continue
        pair = [image[wide][lesion].mean() - image[wide][around].mean() for image in (test.images["FLAIR"], made)]
        if pair[0] > BRIGHT:
            rows.append([lesion.sum(), *pair])
    return np.array(rows).reshape(-1, 3)


def _kept(lesions: Array) -> float:
    return float(lesions[:, 2].sum() / lesions[:, 1].sum())


def _interval(statistic: object, rows: Array) -> tuple[float, float]:
    found = bootstrap_interval(statistic, rows)  # type: ignore[arg-type]
    return found.low, found.high


def run(
    model_name: str | None, train: Person, test: Person, samples: int, plane: str, mirror: bool = False
) -> tuple[dict[str, dict[str, object]], dict]:
    """Figures by input and method, and the images that were made."""
    model = load_model(model_name) if model_name else None
    rows, images = {}, {}
    for inputs in INPUTS:
        made = {"linear": linear(train, test, inputs), "lookup": lookup(train, test, inputs)}
        if model is not None and set(inputs) <= set(model.spec.source_modalities):
            made |= by_model(model, test, inputs, samples, plane, mirror)
        for method, image in made.items():
            key = f"{' + '.join(inputs)}: {method}"
            rows[key], images[key] = figures(image, test), image
            print(line(key, rows[key]), flush=True)
    return rows, images


def line(key: str, row: Mapping[str, object]) -> str:
    """One row of the table."""
    values = {name: row[name] for name in ("psnr", "ssim", "kept")}
    text = "  ".join(f"{name} {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for name, v in values.items())  # type: ignore[index]
    sizes = ", ".join(
        f"{name[5:]}: {v[0]:.2f} (n={v[1]})"  # type: ignore[index]
        for name, v in row.items() if name.startswith("kept ") and v[0] is not None  # type: ignore[index]
    )  # fmt: skip
    return f"{key:36s} {text}  plain psnr {row['plain']:.2f}  by voxels of the lesion: {sizes}"


def picture(images: Mapping[str, Array], test: Person, path: Path) -> None:
    """Axial slices with most lesions: given, real, and what each method made of both images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts = test.lesions.sum((0, 1))
    planes = [int(counts.argmax()), int(np.argwhere(test.brain)[:, 2].mean())]
    panels = {name: test.images[name] for name in FILES} | dict(images)
    figure, axes = plt.subplots(len(planes), len(panels), figsize=(2.2 * len(panels), 2.8 * len(planes)))
    for row, z in zip(axes, planes, strict=True):
        for axis, (title, image) in zip(row, panels.items(), strict=True):
            axis.imshow(image[:, :, z].T, origin="lower", cmap="gray", vmin=0, vmax=1.1)
            axis.set_title(title.replace(": ", "\n"), fontsize=7)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", help="model folder; left out: only the baselines")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", default="patient19", help="whose intensities the baselines are fitted to")
    parser.add_argument("--test", default="patient07")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--plane", default="all", help="slices of a 2D model")
    parser.add_argument("--mirror", action="store_true", help="average with the mirror image")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    folder = given.data / "open_ms" / "cross_sectional"
    train, test = person(folder / given.train), person(folder / given.test)
    rows, images = run(given.model, train, test, given.samples, given.plane, given.mirror)
    (given.output / f"translation-{given.test}.json").write_text(json.dumps(rows, indent=1))
    picture(images, test, given.output / f"translation-{given.test}.png")


if __name__ == "__main__":
    main()
