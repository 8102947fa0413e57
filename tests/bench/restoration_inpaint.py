"""Spheres of 20 to 40 mm filled in scans that nothing was trained on, beside biharmonic inpainting and others.

    python -m tests.bench.restoration_inpaint --model FOLDER --data SHARED_DATA -o OUT.json [--sampler brain-t1-inpaint]

On the symmetric template the mirror image of the hole is blanked too. Errors are of the voxels of the hole in the
brain, in percent of the scan's 99.9th percentile. ``sharpness`` is the gradient energy in the hole over that of the
real scan. ``--unet`` is a network of :mod:`tests.bench.restoration_unet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.checks import MedgenError
from medgen.models import load_model
from medgen.restoration.inpaint import inpaint
from tests.bench.restoration_figures import MODEL, Row, arguments, earlier, finish, gradient_energy, psnr, sheet, table
from tests.bench.restoration_methods import Array, array_of, biharmonic, by_model, surrounding_mean
from tests.bench.restoration_people import MAIN, Flags, Scan, as_meta, bounding_box, holes, scans

FORMS = {"mae": ".3f", "psnr": ".2f", "sharpness": ".3f"}
SURROUNDINGS = 48  # voxels around the holes that the methods are given
SAMPLES = 8


def ours(scan: Scan, hole: Flags, model: Any) -> dict[str, Array]:
    """The restorer's fill.

    Raises:
        MedgenError: a voxel outside of the hole has changed.
    """
    filled = array_of(by_model(scan, model, inpaint_mask=as_meta(hole, scan.affine)).image)
    if not np.array_equal(filled[~hole], scan.image[~hole]):
        raise MedgenError(f"bench: {scan.name} must be the same outside of the hole. Got other values.")
    return {MODEL: filled}


def sampled(scan: Scan, hole: Flags, model: Any) -> dict[str, Array]:
    """One sample of a diffusion model, the mean of several, and its regression output."""
    volume, mask = as_meta(scan.image, scan.affine), as_meta(hole, scan.affine)
    drawn = [array_of(inpaint(volume, mask, model, "sample", seed=seed)) for seed in range(SAMPLES)]
    return {
        "sampler, one sample": drawn[0],
        f"sampler, mean of {SAMPLES}": np.mean(drawn, axis=0),
        "sampler, mean": array_of(inpaint(volume, mask, model, "mean")),
    }


def fills(scan: Scan, hole: Flags, model: Any, sampler: Any, unet: Any, classical: bool) -> dict[str, Array]:
    """What each method puts into a hole of a scan.

    Args:
        scan: 0 in the hole.
        hole: to fill, the mirror image included.
        model: restorer; None: none.
        sampler: diffusion model of task ``inpaint``; None: none.
        unet: see :class:`tests.bench.restoration_unet.Filler`; None: none.
        classical: whether to run the methods without a network.
    """
    made = {}
    if classical:
        made = {"mean": surrounding_mean(scan.image, hole, scan.brain), "biharmonic": biharmonic(scan.image, hole)}
    if unet is not None:
        made["monai unet"] = unet(scan.image, scan.affine, hole)
    if sampler is not None:
        made |= sampled(scan, hole, sampler)
    if model is not None:
        made |= ours(scan, hole, model)
    return made


def judged(made: Array, scan: Scan, hole: Flags) -> dict[str, float]:
    """Error and sharpness in the hole as far as it lies in the brain."""
    within = hole & scan.brain
    inside = ndimage.binary_erosion(within)
    error = np.abs(made - scan.image)[within].mean()
    sharp = gradient_energy(made, inside) / gradient_energy(scan.image, inside)
    return {
        "mae": 100 * float(error) / scan.top,
        "psnr": psnr(made[within], scan.image[within], scan.top),
        "sharpness": sharp,
    }


def run(scan: Scan, count: int, **methods: Any) -> tuple[list[Row], list[tuple[str, dict[str, NDArray], float]]]:
    """Rows of one scan, and slices of its first two holes."""
    rows, panels = [], []
    for site, hole in enumerate(holes(scan, count)):
        blank = hole | np.flip(hole, 0) if scan.symmetric else hole
        box = bounding_box(blank, SURROUNDINGS)
        part = scan.cut(box)
        blanked = part.with_image(np.where(blank[box], 0, part.image))
        made = fills(blanked, blank[box], **methods)
        for method, image in made.items():
            rows.append({"scan": scan.name, "site": site, "method": method, **judged(image, part, hole[box])})
        print("\n".join(table(rows[-len(made) :], ("scan", "site", "method"), FORMS)) if made else "", flush=True)
        if site < 2:
            middle = int(np.argwhere(hole[box])[:, 2].mean())
            shown = {"real": part.image, "hole": blanked.image, **made}
            panels.append((f"{scan.name} {site}", {k: v[:, :, middle] for k, v in shown.items()}, scan.top))
    return rows, panels


def unet_of(path: str, model: Any) -> Any:
    """A network trained by the other script on the pairs of ``model``; None without a path."""
    if not path:
        return None
    from tests.bench.restoration_unet import Filler

    return Filler.load(Path(path), model.spec)


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(
        __doc__, sampler=("", "diffusion model of task inpaint, T1 alone"), unet=("", "MONAI's U-Net on the same pairs")
    )
    model, sampler = (load_model(name) if name else None for name in (given.model, given.sampler))
    rows, panels = earlier(given.baselines), []
    for scan in scans(given.data, given.scans or MAIN):
        drawn = sampler if scan.name.endswith("T1") else None
        methods = {"model": model, "sampler": drawn, "unet": unet_of(given.unet, model)}
        found, shown = run(scan, given.limit, **methods, classical=given.baselines is None)
        rows += found
        panels += shown
    rows.sort(key=lambda row: row["scan"])
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, [*table(rows, ("scan", "method"), FORMS), *ratios(rows)])


def ratios(rows: list[Row]) -> list[str]:
    """Mean absolute error of each method over that of biharmonic inpainting: of the means, and of each hole."""
    by_site = {(r["scan"], r["site"], r["method"]): r["mae"] for r in rows}
    over: list[Row] = [
        {"scan": scan, "method": f"{method} over biharmonic", "ratio": value / by_site[scan, site, "biharmonic"]}
        for (scan, site, method), value in by_site.items()
        if method != "biharmonic" and (scan, site, "biharmonic") in by_site
    ]
    return table(over, ("scan", "method"), {"ratio": ".3f"})


if __name__ == "__main__":
    main()
