"""Denoising of scans that nothing was trained on, beside non-local means and BM4D.

    python -m tests.bench.restoration_denoise --model FOLDER --data SHARED_DATA -o OUT.json [--limit 10]

Rician noise of 5% and 10% of the clean scan's 99.9th percentile. A site is a random block of the brain's bounding box
with noise of its own; every method sees the same block with a margin. Non-local means takes its own noise estimate,
the model too; BM4D is told the noise.
"""

from __future__ import annotations

from typing import Any

from medgen.models import load_model
from tests.bench.restoration_figures import MODEL, Row, arguments, earlier, finish, sheet, similarity, table
from tests.bench.restoration_methods import array_of, by_model, denoisers, rician
from tests.bench.restoration_people import MAIN, Scan, blocks, scans

LEVELS = (0.05, 0.10)
BLOCK = 32


def site_images(scan: Scan, level: float, seed: int, model: Any, classical: bool) -> dict[str, Any]:
    """What each method makes of a block with noise.

    Args:
        scan: the block, clean.
        level: of the noise, over the scan's ``top``.
        seed: of the noise.
        model: restorer; None: none.
        classical: whether to run the other methods.
    """
    noisy = rician(scan.image, level * scan.top, seed)
    made = denoisers(noisy, level * scan.top) if classical else {}
    if model is not None:
        made[MODEL] = array_of(by_model(scan.with_image(noisy), model).image)
    return made


def run(scan: Scan, count: int, model: Any, classical: bool) -> tuple[list[Row], list[tuple[str, dict, float]]]:
    """Rows of one scan, and of the first site the slices to show."""
    rows, panels = [], []
    for level in LEVELS:
        for seed, (box, inner) in enumerate(blocks(scan.brain, count, BLOCK)):
            part = scan.cut(box)
            made = site_images(part, level, seed, model, classical)
            for method, image in made.items():
                found = similarity(image[inner], part.image[inner], scan.top)
                rows.append({"scan": scan.name, "level": level, "site": seed, "method": method, **found})
            if seed == 0:
                middle = part.image.shape[2] // 2
                shown = {"clean": part.image, **made}
                name = f"{scan.name} {level:.0%}"
                panels.append((name, {k: v[:, :, middle] for k, v in shown.items()}, scan.top))
    return rows, panels


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__)
    model = load_model(given.model) if given.model else None
    rows, panels = earlier(given.baselines), []
    for scan in scans(given.data, given.scans or MAIN):
        found, shown = run(scan, given.limit, model, classical=given.baselines is None)
        rows += found
        panels += shown
        print("\n".join(table(found, ("scan", "level", "method"), FORMS)), flush=True)
    rows.sort(key=lambda row: (row["scan"], row["level"]))
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, [*table(rows, ("scan", "level", "method"), FORMS), *gains(rows)])


FORMS = {"psnr": ".2f", "ssim": ".4f"}


def gains(rows: list[Row]) -> list[str]:
    """PSNR and SSIM of the model over those of each other method at the same site."""
    by_site = {(r["scan"], r["level"], r["site"], r["method"]): r for r in rows}
    over: list[Row] = []
    for (scan, level, site, method), row in by_site.items():
        own = by_site.get((scan, level, site, MODEL))
        if own is not None and method != MODEL:
            gain = {key: own[key] - row[key] for key in FORMS}
            over.append({"scan": scan, "level": level, "method": f"{MODEL} over {method}", **gain})
    return table(over, ("scan", "level", "method"), {"psnr": "+.2f", "ssim": "+.4f"})


if __name__ == "__main__":
    main()
