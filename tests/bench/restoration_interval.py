"""What the 90% interval of a restorer covers in each tissue, and its width beside the best constant one.

    python -m tests.bench.restoration_interval (--model FOLDER | --samples K) --data SHARED_DATA -o OUT.json

Coverage is the share of voxels whose clean value lies in the interval: its mean and bootstrap interval over sites.
``ratio`` is the mean width over that of the shortest interval about the estimate, the same in all voxels of the tissue
of all sites of the scan, that covers as many. Air is left out. Sites are blocks with 5% or 10% Rician noise, blocks of
a scan at 4 mm, or spheres, as the restorer is one of noise, slices or holes. With ``--samples`` sites are spheres, and
the interval is that of so many samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from medgen.checks import MedgenError
from medgen.metrics import compare_widths
from medgen.models import load_model
from medgen.models.restorer import RestorerModel
from medgen.restoration.restore import restore
from medgen.restoration.restored import Restored
from tests.bench.restoration_figures import Row, arguments, finish, sheet, table
from tests.bench.restoration_methods import Array, array_of, by_model, rician, thick, whole_slices
from tests.bench.restoration_people import (
    MAIN,
    TISSUES,
    Box,
    Flags,
    Scan,
    as_meta,
    blocks,
    bounding_box,
    holes,
    scans,
)

LEVELS, BLOCK, SURROUNDINGS = (0.05, 0.10), 32, 48
FORMS = {"coverage": ".3f", "width": ".4f", "ratio": ".2f"}


class Site(NamedTuple):
    """Clean and restored values of one place, and which voxels are of each tissue, all of one shape."""

    clean: Array
    mean: Array
    lower: Array
    upper: Array
    tissues: dict[str, Flags]


def site_of(done: Restored, scan: Scan, box: Box, hole: Flags | None = None) -> Site:
    """The part of a restored scan in a box.

    Args:
        done: on the grid of ``scan``.
        scan: clean.
        box: of the site.
        hole: what was filled; None: everything was restored.

    Raises:
        MedgenError: the restorer has no interval.
    """
    if done.lower is None or done.upper is None:
        raise MedgenError("bench: the model must give an interval. Got none. Train with variance: true.")
    known = np.ones(scan.image.shape, bool) if hole is None else hole
    tissues = {name: ((scan.tissues == number) & known)[box] for number, name in TISSUES.items()}
    if hole is not None:
        tissues["hole"] = (hole & scan.brain)[box]
    parts = [array_of(volume)[box] for volume in (done.image, done.lower, done.upper)]
    return Site(scan.image[box], *parts, tissues)


def noisy_sites(scan: Scan, level: float, count: int, model: RestorerModel) -> Iterator[Site]:
    """Blocks with noise of their own."""
    for seed, (box, inner) in enumerate(blocks(scan.brain, count, BLOCK)):
        part = scan.cut(box)
        done = by_model(part.with_image(rician(part.image, level * scan.top, seed)), model)
        yield site_of(done, part, inner)


def sliced_sites(scan: Scan, level: float, count: int, model: RestorerModel) -> Iterator[Site]:
    """Blocks of the scan at 4 mm."""
    scan = whole_slices(scan, 2)
    done = restore(thick(scan, 2)[0], "superres", model, target_spacing=1.0, guard="off")
    for box, _ in blocks(scan.brain, count, BLOCK, margin=0):
        yield site_of(done, scan, box)


def hole_sites(
    scan: Scan, level: float, count: int, model: RestorerModel | None, samples: int = 0
) -> Iterator[Site]:  # fmt: skip
    """Spheres, on a symmetric scan their mirror images hidden too."""
    for hole in holes(scan, count):
        blank = hole | np.flip(hole, 0) if scan.symmetric else hole
        box = bounding_box(blank, SURROUNDINGS)
        part, hidden = scan.cut(box), blank[box]
        given = part.with_image(np.where(hidden, 0, part.image))
        mask = as_meta(hidden, part.affine)
        done = restore(
            as_meta(given.image, given.affine), "inpaint", model, samples=samples, inpaint_mask=mask, guard="off"
        )
        yield site_of(done, part, bounding_box(hole[box]), hole[box])


SITES = {"denoise": noisy_sites, "superres": sliced_sites, "inpaint": hole_sites}


def rows_of(sites: list[Site], top: float, **head: object) -> list[Row]:
    """Coverage of each site and tissue; the ratio of widths, one for all sites of a tissue."""
    names = list(sites[0].tissues)

    def pooled(name: str, part: str) -> Array:
        return np.concatenate([getattr(site, part)[site.tissues[name]] for site in sites])

    rows: list[Row] = []
    for name in names:
        values = [pooled(name, part) for part in ("clean", "mean", "lower", "upper")]
        if not len(values[0]):
            continue
        found = compare_widths(*values, {name: np.ones(values[0].shape, bool)})[name]
        rows.append({**head, "tissue": name, "site": "all", "width": found.width / top, "ratio": found.ratio})
        for number, site in enumerate(sites):
            mask = site.tissues[name]
            if mask.sum() >= 50:
                inside = (site.clean >= site.lower) & (site.clean <= site.upper)
                rows.append({**head, "tissue": name, "site": number, "coverage": float(inside[mask].mean())})
    return rows


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, samples=(0, "of holes, in place of a model"))
    if (given.model is None) != bool(given.samples):
        raise MedgenError("bench: intervals are of --model or of --samples. Give one of them.")
    sites_of: Callable[..., Iterator[Site]]
    task, sites_of = "inpaint", partial(hole_sites, model=None, samples=given.samples)
    if given.model is not None:
        model = load_model(given.model)
        if not isinstance(model, RestorerModel) or model.spec.restores not in SITES:
            raise MedgenError(f"bench: intervals are of restorers of {', '.join(SITES)}. Got '{model.spec.name}'.")
        task, sites_of = model.spec.restores, partial(SITES[model.spec.restores], model=model)
    rows, panels = [], []
    for scan in scans(given.data, given.scans or MAIN):
        for level in LEVELS if task == "denoise" else (0.0,):
            sites = list(sites_of(scan, level, given.limit))
            found = rows_of(sites, scan.top, scan=scan.name, level=level, method="model")
            rows += found
            panels.append((f"{scan.name} {level:.0%}", _shown(sites[0]), scan.top))
            print("\n".join(table(found, ("scan", "level", "tissue"), FORMS)), flush=True)
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, table(rows, ("scan", "level", "tissue"), FORMS))


def _shown(site: Site) -> dict[str, Array]:
    """Slices of the first site: the error and the width have the scale of the scan."""
    z = site.clean.shape[2] // 2
    images = {"clean": site.clean, "model": site.mean, "|error|": np.abs(site.mean - site.clean)}
    images["width"] = site.upper - site.lower
    return {name: image[:, :, z] for name, image in images.items()}


if __name__ == "__main__":
    main()
