"""Posterior samples in holes of 20 to 40 mm: error, sharpness, coverage, beside the smooth continuation.

    python -m tests.bench.restoration_samples --data SHARED_DATA -o OUT.json [--model PRIOR] [--start RESTORER]
        [--limit 10] [--samples 8] [--steps 40] [--adapt 0]

``PRIOR`` is a restorer for denoise_hole or denoise, the bundled one by default; samples begin from the fill of
``RESTORER``, of the bundled one by default. ``--adapt 0``: the prior is not made used to the scan. ``over`` is the mean
absolute error in the hole over that of 3D biharmonic inpainting, ``sharpness`` the gradient energy over that of the
real scan, ``coverage`` that of the 90% interval. Seeds of a hole are its number times 100 and on. On the symmetric
template the mirror image of the hole is blanked too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from medgen.checks import MedgenError
from medgen.restoration import sampled_tasks
from medgen.restoration.restore import restore
from medgen.restoration.restored import Restored
from tests.bench.restoration_figures import Row, arguments, finish, sheet, table
from tests.bench.restoration_inpaint import judged
from tests.bench.restoration_methods import Array, array_of, biharmonic
from tests.bench.restoration_people import MAIN, Box, Flags, Scan, as_meta, bounding_box, holes, scans

FORMS = {"mae": ".3f", "over": ".3f", "sharpness": ".3f", "coverage": ".3f", "width": ".3f"}
SURROUNDINGS = 40  # voxels around the holes


def drawn(scan: Scan, hole: Flags, start: Any, prior: Any, **how: Any) -> Restored:
    """Samples in a hole, the rest of the scan left to the bit.

    Raises:
        MedgenError: a voxel outside of the hole has changed.
    """
    made = restore(
        as_meta(scan.image, scan.affine), "inpaint", start, inpaint_mask=as_meta(hole, scan.affine), prior=prior,
        guard="off", **how,
    )  # fmt: skip
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
        low, high = (array_of(end)[within] for end in (made.lower, made.upper))
        truth = scan.image[within]
        rows[-1]["coverage"] = float(((low <= truth) & (truth <= high)).mean())
        rows[-1]["width"] = float((high - low).mean()) / scan.top
    for row in rows:
        row["over"] = row["mae"] / rows[0]["mae"]
    return rows


def cut(made: Restored, box: Box) -> Restored:
    """Images and maps in a box."""
    names = ("image", "samples", "lower", "upper", "std")
    found = {name: getattr(made, name) for name in names}
    return replace(made, **{name: part[(slice(None), *box)] for name, part in found.items() if part is not None})


def run(
    scan: Scan, count: int, start: Any, prior: Any, samples: int, adapt: bool
) -> tuple[list[Row], list[tuple[str, dict[str, NDArray], float]]]:
    """Rows of one scan, and slices of its first two holes."""
    rows, panels = [], []
    for site, hole in enumerate(holes(scan, count)):
        blank = hole | np.flip(hole, 0) if scan.symmetric else hole
        box = bounding_box(blank, SURROUNDINGS)
        part, whole = scan.cut(box), scan.with_image(np.where(blank, 0, scan.image))
        blanked = whole.cut(box)
        base = biharmonic(blanked.image, blank[box])
        made = cut(drawn(whole, blank, start, prior, samples=samples, seed=100 * site, adapt=adapt), box)
        found = [{"scan": scan.name, "site": site, **row} for row in rows_of(made, base, part, hole[box])]
        rows += found
        print("\n".join(table(found, ("scan", "site", "method"), FORMS)), flush=True)
        if site < 2 and made.samples is not None:
            middle = int(np.argwhere(hole[box])[:, 2].mean())
            shown = {"real": part.image, "hole": blanked.image, "biharmonic": base, "mean": array_of(made.image)}
            shown |= {f"sample {k + 1}": one for k, one in enumerate(made.samples.numpy()[:3])}
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
    given = arguments(
        __doc__, start=("", "restorer for holes that samples begin from"), samples=(8, "of each hole"),
        steps=(sampled_tasks.HOLE_STEPS, "of the sampler"), adapt=(1, "whether the prior is made used to the scan"),
    )  # fmt: skip
    rows, panels = [], []
    with mock.patch.object(sampled_tasks, "HOLE_STEPS", given.steps):
        for scan in scans(given.data, given.scans or MAIN):
            found, shown = run(scan, given.limit, given.start or None, given.model, given.samples, bool(given.adapt))
            rows += found
            panels += shown
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, [*table(rows, ("scan", "method"), FORMS), *medians(rows)])


if __name__ == "__main__":
    main()
