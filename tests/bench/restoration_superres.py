"""4x through-plane super-resolution of scans that nothing was trained on, beside splines.

    python -m tests.bench.restoration_superres --model FOLDER --data SHARED_DATA -o OUT.json [--limit 10] [--axis 2]
    python -m tests.bench.restoration_superres --model FOLDER --data SHARED_DATA -o OUT.json --raw true

Slices of Gaussian profile, 4 mm wide at half maximum and 4 mm apart, are made of the 1 mm scan around the brain.
Figures are of random blocks of the brain's bounding box. ``--raw true`` restores the thick scans of
``open_ms/longitudinal`` instead: there is no truth, so that the restored scan is measured with the same slices again
and compared with what was given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.checks import MedgenError
from medgen.io.nifti import read_nifti
from medgen.models import load_model
from medgen.operators import ThroughPlane
from medgen.restoration.restore import restore
from medgen.restoration.thick_slices import thick_axis
from tests.bench.restoration_figures import MODEL, Row, arguments, earlier, finish, sheet, similarity, table
from tests.bench.restoration_methods import array_of, interpolated, thick, whole_slices
from tests.bench.restoration_people import MAIN, Scan, blocks, scans

BLOCK = 48
FORMS = {"psnr": ".2f", "ssim": ".4f", "residual": ".5f"}
Panel = tuple[str, dict[str, Any], float]


def upsampled(scan: Scan, axis: int, model: Any, classical: bool = True) -> dict[str, Any]:
    """What each method makes of the thick slices of a scan whose axis holds a whole number of them.

    Args:
        scan: clean.
        axis: across the slices.
        model: restorer; None: none.
        classical: whether to run the other methods.

    Raises:
        MedgenError: the restorer's grid is not that of the scan.
    """
    measured, operator = thick(scan, axis)
    slices = array_of(measured)
    made = {name: interpolated(slices, operator, order) for name, order in (("linear", 1), ("cubic", 3)) if classical}
    if model is not None:
        restored = restore(measured, "superres", model, target_spacing=1.0, guard="off").image
        if restored.shape[1:] != scan.image.shape or not np.allclose(restored.affine, scan.affine, atol=1e-3):
            raise MedgenError(
                f"bench: the restored scan must lie on the scan's grid {scan.image.shape}. Got "
                f"{tuple(restored.shape[1:])}, affine {np.asarray(restored.affine).tolist()}."
            )
        made[MODEL] = array_of(restored)
    return made


def again(image: Any, operator: ThroughPlane) -> Any:
    """The slices of an image."""
    return operator.forward(torch.from_numpy(np.ascontiguousarray(image))[None, None])[0, 0].numpy()


def run(scan: Scan, count: int, axis: int, model: Any, classical: bool) -> tuple[list[Row], Panel]:
    """Rows of one scan, and the slice to show."""
    scan = whole_slices(scan, axis)
    made, (measured, operator) = upsampled(scan, axis, model, classical), thick(scan, axis)
    rows = []
    for method, image in made.items():
        residual = float(np.abs(again(image, operator) - array_of(measured)).max()) / scan.top
        for site, (box, inner) in enumerate(blocks(scan.brain, count, BLOCK, margin=0)):
            found = similarity(image[box][inner], scan.image[box][inner], scan.top)
            rows.append(
                {"scan": scan.name, "axis": axis, "site": site, "method": method, "residual": residual, **found}
            )
    across = 0 if axis != 0 else 1
    middle = scan.image.shape[across] // 2
    shown = {name: np.take(image, middle, across) for name, image in {"clean": scan.image, **made}.items()}
    return rows, (scan.name, shown, scan.top)


def raw(data: Path, model: Any, limit: int) -> tuple[list[Row], list[Panel]]:
    """The thick clinical scans: largest and mean deviation of their slices, over the range of the input."""
    rows, panels = [], []
    for path in sorted((data / "open_ms" / "longitudinal").glob("*/study*_*.nii.gz"))[:limit]:
        volume = read_nifti(path)
        axis = thick_axis(tuple(np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)))
        restored = restore(volume, "superres", model, guard="warn")
        given, image = array_of(volume), array_of(restored.image)
        apart, fine = (float(np.linalg.norm(np.asarray(v.affine)[:3, axis])) for v in (volume, restored.image))
        operator = ThroughPlane(
            image.shape, apart, spacing_mm=fine, axis=axis, profile="gaussian", slices=given.shape[axis]
        )
        error, span = np.abs(again(image, operator) - given), float(np.ptp(given))
        name = f"{path.parent.name}-{path.name.split('.')[0]}"
        figures = {"residual": float(error.max()) / span, "mean_residual": float(error.mean()) / span}
        rows.append({"scan": name, "axis": axis, "method": MODEL, **figures})
        middle = given.shape[0] // 2
        coarse = np.repeat(given, round(apart / fine), axis)
        shown = {"input": np.take(coarse, middle, 0), MODEL: np.take(image, middle, 0)}
        panels.append((name, shown, float(np.percentile(given, 99.5))))
        print(rows[-1], flush=True)
    return rows, panels


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, axis=(2, "across the slices"), raw=("false", "true: the thick clinical scans"))
    model = load_model(given.model) if given.model else None
    if given.raw == "true":
        if model is None:
            raise MedgenError("bench: --raw needs --model.")
        rows, panels = raw(given.data, model, given.limit)
        sheet(panels, given.output.with_suffix(".png"))
        finish(rows, given.output, table(rows, ("method",), {"residual": ".5f", "mean_residual": ".5f"}))
        return
    rows, panels = earlier(given.baselines), []
    for scan in scans(given.data, given.scans or MAIN):
        found, shown = run(scan, given.limit, given.axis, model, classical=given.baselines is None)
        rows += found
        panels.append(shown)
        print("\n".join(table(found, ("scan", "method"), FORMS)), flush=True)
    rows.sort(key=lambda row: row["scan"])
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, [*table(rows, ("scan", "method"), FORMS), *gains(rows)])


def gains(rows: list[Row]) -> list[str]:
    """PSNR of the model over that of each other method in the same block."""
    by_site = {(r["scan"], r["site"], r["method"]): r["psnr"] for r in rows}
    over: list[Row] = [
        {"scan": scan, "method": f"{MODEL} over {method}", "psnr": by_site[scan, site, MODEL] - value}
        for (scan, site, method), value in by_site.items()
        if method != MODEL and (scan, site, MODEL) in by_site
    ]
    return table(over, ("scan", "method"), {"psnr": "+.2f"})


if __name__ == "__main__":
    main()
