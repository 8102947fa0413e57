"""Samples in holes of 20 to 40 mm: error, sharpness, coverage, beside the smooth continuation.

    python -m tests.bench.restoration_samples --data SHARED_DATA -o OUT.json [--limit 10] [--samples 8]

``over`` is the mean absolute error in the hole over that of 3D biharmonic inpainting, ``sharpness`` the gradient energy
over that of the real scan, ``coverage`` that of the 90% interval (of each tissue: ``restoration_interval --samples``).
On the symmetric template the mirror image of the hole is blanked too. The picture has the first two holes of each scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.checks import MedgenError
from medgen.restoration.restore import restore
from medgen.restoration.restored import Restored
from tests.bench.restoration_figures import Row, arguments, finish, sheet, table
from tests.bench.restoration_inpaint import judged
from tests.bench.restoration_methods import Array, array_of, biharmonic
from tests.bench.restoration_people import MAIN, Flags, Scan, as_meta, bounding_box, holes, scans

FORMS = {"mae": ".3f", "over": ".3f", "sharpness": ".3f", "coverage": ".3f", "width": ".3f"}
SURROUNDINGS = 40  # voxels around the holes, that the continuation is given


def drawn(scan: Scan, hole: Flags, samples: int) -> Restored:
    """Samples in a hole, the rest of the scan left to the bit.

    Raises:
        MedgenError: a voxel outside of the hole has changed.
    """
    mask = as_meta(hole, scan.affine)
    made = restore(as_meta(scan.image, scan.affine), "inpaint", inpaint_mask=mask, samples=samples)
    if made.samples is None or not all(np.array_equal(one[~hole], scan.image[~hole]) for one in made.samples.numpy()):
        raise MedgenError(f"bench: {scan.name} must be the same outside of the hole. Got other values.")
    return made


def rows_of(made: Restored, base: Array, scan: Scan, hole: Flags) -> list[Row]:
    """Figures of the continuation, of each sample, and of their mean with its interval."""
    rows: list[Row] = [{"method": "biharmonic", **judged(base, scan, hole)}]
    if made.samples is not None:
        rows += [{"method": "one sample", **judged(one, scan, hole)} for one in made.samples.numpy()]
    rows.append({"method": "mean of samples", **judged(array_of(made.image), scan, hole)})
    if made.lower is not None and made.upper is not None:
        within = hole & scan.brain
        low, high, truth = (x[within] for x in (array_of(made.lower), array_of(made.upper), scan.image))
        rows[-1]["coverage"] = float(((low <= truth) & (truth <= high)).mean())
        rows[-1]["width"] = float((high - low).mean()) / scan.top
    for row in rows:
        row["over"] = row["mae"] / rows[0]["mae"]
    return rows


def run(scan: Scan, count: int, samples: int) -> tuple[list[Row], list[tuple[str, dict[str, NDArray], float]]]:
    """Rows of one scan, and slices of its first two holes."""
    rows: list[Row] = []
    panels = []
    for site, hole in enumerate(holes(scan, count)):
        blank = hole | np.flip(hole, 0) if scan.symmetric else hole
        box = bounding_box(blank, SURROUNDINGS)
        blanked = scan.with_image(np.where(blank, 0, scan.image))
        base = blanked.image.copy()
        base[box] = biharmonic(blanked.image[box], blank[box])
        made = drawn(blanked, blank, samples)
        found: list[Row] = [{"scan": scan.name, "site": site, **row} for row in rows_of(made, base, scan, hole)]
        rows += found
        print("\n".join(table(found, ("scan", "site", "method"), FORMS)), flush=True)
        if site < 2 and made.samples is not None:
            middle = int(np.argwhere(hole)[:, 2].mean())
            shown: dict[str, Any] = {"real": scan.image, "hole": blanked.image, "biharmonic": base}
            shown |= {f"sample {k + 1}": one for k, one in enumerate(made.samples.numpy()[:4])}
            panels.append((f"{scan.name} {site}", {k: v[:, :, middle] for k, v in shown.items()}, scan.top))
    return rows, panels


def medians(rows: list[Row]) -> list[str]:
    """Median gradient energy of one sample over the truth, of each scan."""
    lines = []
    for name in dict.fromkeys(row["scan"] for row in rows):
        values = [row["sharpness"] for row in rows if row["scan"] == name and row["method"] == "one sample"]
        lines.append(f"{name}  median sharpness of one sample {np.median(values):.3f}  n={len(values)}")
    return lines


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, samples=(8, "of each hole"))
    rows, panels = [], []
    for scan in scans(given.data, given.scans or MAIN):
        found, shown = run(scan, given.limit, given.samples)
        rows += found
        panels += shown
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, [*table(rows, ("scan", "method"), FORMS), *medians(rows)])


if __name__ == "__main__":
    main()
