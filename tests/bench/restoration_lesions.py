"""Whether restorers erase lesions or invent them, on scans that nothing was trained on.

    python -m tests.bench.restoration_lesions --model FOLDER --data SHARED_DATA -o OUT.json [--limit 10]

Contrast of a lesion is its mean less that of the normal brain 2 to 4 voxels around it; ``kept`` is the sum over lesions
of the restored contrast over the sum of the real one, each with the sign of the real one. Real lesions are those
marked by experts whose contrast is above ``LEAST`` of the scan's 99.9th percentile; planted ones are smooth balls of
4, 6, 8 and 10 mm, 20% brighter or darker, in white matter. A restorer of noise is given 5% and 10% Rician noise, one of
thick slices the scan at 4 mm.

Blobs: where a difference of Gaussians of ``NARROW`` and ``WIDE`` mm, of deep white matter alone, reaches half of what
the smallest planted lesion gives, or ``DEVIATIONS`` of the clean scan where that is more. A clean region is a ball of
``REGION_MM`` radius there, away from marked lesions, where the clean scan has no blob; ``invented`` counts blobs of the
restored scan in them, ``found`` is the share of the planted lesions that are seen as blobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.checks import MedgenError
from medgen.models import load_model
from tests.bench.restoration_figures import MODEL, Row, arguments, finish, interval, sheet
from tests.bench.restoration_methods import Array, array_of, by_model, non_local_means, rician, unbiased, whole_slices
from tests.bench.restoration_people import MAIN, Flags, Scan, bounding_box, scans, sphere
from tests.bench.restoration_superres import upsampled

DIAMETERS, STRENGTH, LEAST = (4.0, 6.0, 8.0, 10.0), 0.2, 0.05
VOXELS = (5, 10, 30, 100, 10**9)
NARROW, WIDE, REGION_MM, REGIONS = 1.2, 2.4, 6.0, 20
NEAR, FAR = 2, 4
DEVIATIONS = 3.0
AXIS = 2


@dataclass(frozen=True)
class Lesion:
    """A lesion and what is normal around it, both as flags in a box of the scan."""

    kind: str
    box: tuple[slice, ...]
    inside: Flags
    around: Flags

    def contrast(self, image: Array) -> float:
        """In the unit of the image."""
        part = image[self.box]
        return float(part[self.inside].mean(dtype=np.float64) - part[self.around].mean(dtype=np.float64))


def lesion_of(kind: str, inside: Flags, normal: Flags) -> Lesion | None:
    """From flags on the whole scan; None where little normal brain is around."""
    box = bounding_box(inside, FAR + 1)
    part = inside[box]
    near, far = (ndimage.binary_dilation(part, iterations=n) for n in (NEAR - 1, FAR))
    around = far & ~near & normal[box]
    return Lesion(kind, box, part, around) if around.sum() >= 20 else None


def real_lesions(scan: Scan) -> list[Lesion]:
    """Marked lesions that the clean scan shows, by size."""
    parts, _ = ndimage.label(scan.lesions, np.ones((3, 3, 3)))
    normal = scan.brain & ~ndimage.binary_dilation(scan.lesions)
    sizes = np.bincount(parts.ravel())
    found = []
    for number in range(1, len(sizes)):
        for low, high in pairwise(VOXELS):
            if low <= sizes[number] < high:
                name = f"real {low}-{high - 1} voxels" if high < 10**9 else f"real {low} voxels and more"
                lesion = lesion_of(name, parts == number, normal)
                if lesion is not None and abs(lesion.contrast(scan.image)) > LEAST * scan.top:
                    found.append(lesion)
    return found


def ball(shape: tuple[int, ...], centre: NDArray, diameter: float) -> Array:
    """1 in a ball of voxels of 1 mm, 0 outside, smooth over 2 mm; half at the diameter."""
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)))
    return (0.5 - 0.5 * np.clip(distance - diameter / 2, -1, 1)).astype(np.float32)


def planted(scan: Scan, each: int, seed: int = 0) -> tuple[Scan, list[Lesion]]:
    """A scan with lesions of every size, brighter and darker, in its white matter.

    Args:
        scan: of 1 mm.
        each: lesions of each size, half of them brighter.
        seed: of the places.

    Raises:
        MedgenError: there is no place left.
    """
    rng = np.random.default_rng(seed)
    image, free = scan.image.copy(), (scan.tissues == 3) & ~ndimage.binary_dilation(scan.lesions, iterations=4)
    normal = scan.brain & ~ndimage.binary_dilation(scan.lesions)
    depth = ndimage.distance_transform_edt(free)
    marks = []
    for diameter in DIAMETERS[::-1]:
        for number in range(each):
            places = np.argwhere(depth >= min(diameter / 2 + 1, 4.0))
            if not len(places):
                raise MedgenError(f"bench: {scan.name} must have room for {each} lesions of {diameter} mm. Got less.")
            centre = places[rng.integers(len(places))]
            shape = ball(image.shape, centre, diameter)
            sign = 1 if number % 2 else -1
            level = float(scan.image[(shape > 0.5)].mean())
            image += sign * STRENGTH * level * shape
            depth[sphere(image.shape, centre, diameter / 2 + 9, (1, 1, 1))] = 0
            marks.append((f"planted {diameter:.0f} mm", shape > 0.5))
    normal &= ~np.any([mark for _, mark in marks], axis=0)
    found = [lesion_of(name, mark, normal) for name, mark in marks]
    return scan.with_image(np.maximum(image, 0)), [lesion for lesion in found if lesion is not None]


def deep_white(scan: Scan) -> Flags:
    """White matter away from other tissue and from marked lesions."""
    white = (scan.tissues == 3) & ~ndimage.binary_dilation(scan.lesions, iterations=4)
    return ndimage.binary_erosion(white)


def response(image: Array, within: Flags) -> Array:
    """Difference of two Gaussian means of what lies within; 0 outside."""
    weights = within.astype(np.float32)

    def mean(sigma: float) -> Array:
        total, share = (ndimage.gaussian_filter(x, sigma) for x in (image * weights, weights))
        return total / np.maximum(share, 1e-6)

    return np.where(within, mean(NARROW) - mean(WIDE), 0)


@cache
def smallest_response() -> float:
    """Peak for a lesion of the smallest size and a contrast of 1."""
    shape = ball((33, 33, 33), np.array([16, 16, 16]), DIAMETERS[0])
    return float(response(shape, np.ones(shape.shape, bool)).max())


def blobs(image: Array, scan: Scan) -> Flags:
    """Where an image shows something like a lesion; the scan says where white matter is and how bright.

    Args:
        image: on the grid of ``scan``.
        scan: clean, without planted lesions.
    """
    deep = deep_white(scan)
    lesion = smallest_response() * STRENGTH * float(np.median(scan.image[deep]))
    deviation = 1.4826 * float(np.median(np.abs(response(scan.image, deep)[deep])))
    return np.abs(response(image, deep)) > max(0.5 * lesion, DEVIATIONS * deviation)


def clean_regions(scan: Scan, count: int, seed: int = 0) -> list[Flags]:
    """Balls of deep white matter without a lesion or blob, apart from each other.

    Args:
        scan: clean.
        count: how many; fewer where there is no place left.
        seed: of the places.
    """
    rng = np.random.default_rng(seed)
    deep, blob = deep_white(scan), blobs(scan.image, scan)
    places = rng.permutation(np.argwhere(ndimage.binary_erosion(deep, iterations=2)))
    found: list[Flags] = []
    taken = np.zeros(scan.image.shape, bool)
    for centre in places[:3000]:
        if taken[tuple(centre)]:
            continue
        region = sphere(scan.image.shape, centre, REGION_MM, scan.spacing) & deep
        if (blob & region).any():
            continue
        found.append(region)
        taken |= sphere(scan.image.shape, centre, 2 * REGION_MM, scan.spacing)
        if len(found) == count:
            break
    return found


def restored(scan: Scan, task: str, level: float, seed: int, model: Any) -> dict[str, Array]:
    """The degraded scan restored by each method."""
    if task == "superres":
        return upsampled(scan, AXIS, model)
    noisy = rician(scan.image, level * scan.top, seed)
    made = {"noisy": noisy, "nlm, unbiased": unbiased(non_local_means(noisy), level * scan.top)}
    if model is not None:
        made[MODEL] = array_of(by_model(scan.with_image(noisy), model).image)
    return made


def run(scan: Scan, task: str, level: float, each: int, model: Any) -> tuple[list[Row], tuple[str, dict, float]]:
    """Rows of every lesion and region of one scan."""
    scan = whole_slices(scan, AXIS)
    sick, lesions = planted(scan, each)
    lesions = lesions + real_lesions(scan)
    regions = clean_regions(scan, REGIONS)
    head = {"scan": scan.name, "level": level}
    rows: list[Row] = []
    made = {"clean": sick.image} | restored(sick, task, level, 0, model)
    for method, image in made.items():
        seen = blobs(image, scan)
        for lesion in lesions:
            pair = {"before": lesion.contrast(sick.image), "after": lesion.contrast(image)}
            hit = bool(seen[lesion.box][lesion.inside].any()) if lesion.kind.startswith("planted") else None
            rows.append(head | {"method": method, "kind": lesion.kind, **pair, "found": hit})
    for method, image in restored(scan, task, level, 1, model).items():
        seen = blobs(image, scan)
        for region in regions:
            count = int(ndimage.label(seen & region)[1])
            rows.append(head | {"method": method, "kind": "region", "invented": count})
    middle = int(np.argwhere(lesions[0].inside)[:, 2].mean()) + lesions[0].box[2].start
    return rows, (f"{scan.name} {level:.0%}", {k: v[:, :, middle] for k, v in made.items()}, scan.top)


def kept(pairs: NDArray) -> float:
    """Restored over real contrast of lesions ``(n, 2)``: before, after."""
    signs = np.sign(pairs[:, 0])
    return float((signs * pairs[:, 1]).sum() / np.abs(pairs[:, 0]).sum())


def summary(rows: list[Row]) -> list[str]:
    """Contrast kept by kind of lesion, and blobs."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        head = (row["scan"], f"{row['level']:.0%}", row["method"])
        kinds = (row["kind"], "planted, all" if row["kind"].startswith("planted") else "real, all")
        for kind in kinds if row["kind"] != "region" else ("region",):
            groups.setdefault((*head, kind), []).append(row)
    lines = []
    for group, members in sorted(groups.items()):
        name = "  ".join(f"{part:>15s}" for part in group)
        if group[-1] == "region":
            bad = sum(row["invented"] > 0 for row in members)
            lines.append(f"{name}  invented {sum(r['invented'] for r in members)} in {bad} of {len(members)} regions")
            continue
        pairs = np.array([[row["before"], row["after"]] for row in members])
        low, high = interval(kept, pairs)
        hits = [row["found"] for row in members if row["found"] is not None]
        found = f"  found {np.mean(hits):.2f}" if hits else ""
        lines.append(f"{name}  kept {kept(pairs):.3f} [{low:.3f}, {high:.3f}]{found}  n={len(members)}")
    return lines


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, task=("denoise", "without a model: denoise or superres"))
    model = load_model(given.model) if given.model else None
    task = given.task if model is None else model.spec.restores
    rows, panels = [], []
    for scan in scans(given.data, given.scans or MAIN):
        for level in (0.05, 0.10) if task == "denoise" else (0.0,):
            found, shown = run(scan, task, level, given.limit, model)
            rows += found
            panels.append(shown)
            print("\n".join(summary(found)), flush=True)
    sheet(panels, given.output.with_suffix(".png"))
    print("all" + "-" * 60)
    finish(rows, given.output, summary(rows))


if __name__ == "__main__":
    main()
