"""Denoisers that have seen noisy scans alone, beside one that was shown the truth and non-local means.

    python -m tests.bench.restoration_self --data SHARED_DATA -o OUT.json [--limit 10] [--steps 500] [--noise rician]

Noise of 10% of the clean scan's 99.9th percentile. What is learnt from: the lower half of the brain of one person, T1
and FLAIR, with noise, by ``configs/restore_self_denoise_tiny.yaml``. Judged on blocks of the upper half of the same
person (``patient07``), of another one (``patient19``) and of MNI152, with noise of their own. ``--model``, by default
``brain-mri-denoise``, was trained on clean scans, those of ``patient07`` among them: there it is no fair comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from medgen.io.configs import find_config
from medgen.models import load_model
from medgen.operators import GaussianNoise, RicianNoise
from medgen.trainers import train
from tests.bench.restoration_figures import Row, arguments, finish, sheet, similarity, table
from tests.bench.restoration_methods import array_of, by_model, non_local_means, unbiased
from tests.bench.restoration_people import Array, Scan, blocks, bounding_box, patient, scans

LEVEL = 0.10
BLOCK = 32
LEARNT_FROM = "patient07"
CONTRASTS = ("T1", "FLAIR")
OTHERS = ("patient19-T1", "patient19-FLAIR", "mni152-T1")
METHODS = ("noise2void", "sure")
FORMS = {"psnr": ".2f", "ssim": ".4f"}


def with_noise(scan: Scan, noise: str, seed: int) -> Array:
    """The image with noise of ``LEVEL``."""
    cls = RicianNoise if noise == "rician" else GaussianNoise
    values = torch.from_numpy(np.ascontiguousarray(scan.image))[None]
    return cls(LEVEL * scan.top).sample(values, [torch.Generator().manual_seed(seed)])[0].numpy()


def half(scan: Scan, upper: bool) -> Scan:
    """Half of the brain's surroundings along the body."""
    box = list(bounding_box(scan.brain, margin=4))
    middle = (box[2].start + box[2].stop) // 2
    box[2] = slice(middle, box[2].stop) if upper else slice(box[2].start, middle)
    return scan.cut(tuple(box))


def learn(data: Path, noise: str, method: str, changes: list[str], folder: Path) -> Any:
    """A denoiser from the noisy lower halves.

    Args:
        data: the data folder.
        noise: ``rician`` or ``gaussian``.
        method: ``learns_from``.
        changes: to the configuration.
        folder: of the run and its data.
    """
    import nibabel as nib

    (folder / "scans" / "images").mkdir(parents=True, exist_ok=True)
    for number, contrast in enumerate(CONTRASTS):
        part = half(patient(data, LEARNT_FROM, contrast), upper=False)
        image = nib.Nifti1Image(with_noise(part, noise, number), part.affine)
        nib.save(image, folder / "scans" / "images" / f"{contrast}.nii.gz")
    fixed = [f"data={folder / 'scans'}", f"learns_from={method}", f"noise={noise}", "held_out_endings=[]"]
    train(find_config("restore_self_denoise_tiny"), folder / method, [*fixed, *changes], progress=False, device="cpu")
    return load_model(folder / method / "model", device="cpu")


def judged(data: Path) -> Iterator[Scan]:
    """The upper halves, and whole scans of others."""
    for contrast in CONTRASTS:
        scan = half(patient(data, LEARNT_FROM, contrast), upper=True)
        yield replace(scan, name=f"{scan.name}, other half")
    yield from scans(data, OTHERS)


def site_images(part: Scan, noise: str, seed: int, models: dict[str, Any]) -> dict[str, Array]:
    """What each method makes of a block with noise."""
    noisy = with_noise(part, noise, seed)
    made = {"noisy": noisy, "nlm": non_local_means(noisy)}
    if noise == "rician":
        made["nlm, unbiased"] = unbiased(made["nlm"], LEVEL * part.top)
    for name, model in models.items():
        made[name] = array_of(by_model(part.with_image(noisy), model).image)
    return made


def run(scan: Scan, count: int, noise: str, models: dict[str, Any]) -> tuple[list[Row], tuple[str, dict, float]]:
    """Rows of one scan, and of its first site the slices to show."""
    rows: list[Row] = []
    shown: dict[str, Array] = {}
    for site, (box, inner) in enumerate(blocks(scan.brain, count, BLOCK)):
        part = scan.cut(box)
        made = site_images(part, noise, 100 + site, models)
        for method, image in made.items():
            found = similarity(image[inner], part.image[inner], scan.top)
            rows.append({"scan": scan.name, "noise": noise, "site": site, "method": method, **found})
        shown = shown or {key: value[:, :, value.shape[2] // 2] for key, value in {"clean": part.image, **made}.items()}
    return rows, (scan.name, shown, scan.top)


def main() -> None:
    """Parse the command line, train, run, print the table."""
    given = arguments(__doc__, steps=(500, "of each training"), noise=("rician", "or gaussian"))
    with TemporaryDirectory() as folder:
        changes = [f"steps={given.steps}"]
        models = {name: learn(given.data, given.noise, name, changes, Path(folder)) for name in METHODS}
    models["supervised"] = load_model(given.model or "brain-mri-denoise", device="cpu")
    rows: list[Row] = []
    panels = []
    for scan in judged(given.data):
        found, panel = run(scan, given.limit, given.noise, models)
        rows += found
        panels.append(panel)
        print("\n".join(table(found, ("scan", "method"), FORMS)), flush=True)
    sheet(panels, given.output.with_suffix(".png"))
    finish(rows, given.output, ["all" + "-" * 60, *table(rows, ("scan", "method"), FORMS)])


if __name__ == "__main__":
    main()
