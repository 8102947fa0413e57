"""Motion, bias fields and CT noise, simulated and corrected, beside what is had without a model.

    python -m tests.bench.restoration_corrections --task motion --model FOLDER --data SHARED_DATA -o OUT [--limit 10]

- ``motion``: eight axial slices at a random height, moved alike, as by ``configs/restore_motion.yaml``; and the same
  slices as they are. ``smoothed`` is the Gaussian of ``WIDTHS`` that comes nearest to the truth, which nobody knows.
  Judged in the brain; ``placed`` is the PSNR after the rigid motion in the slices that brings an image nearest to the
  truth: of a head that moved, no image tells where it was at the middle of k-space. ``covered`` is the share of the
  truth within the 90% interval.
- ``bias``: the whole scan at 2 mm under a random field, and without one; N4 beside. ``left`` is the coefficient of
  variation in the brain of what the method made over the scan without a field, ``own`` that of what it made with over
  what it made without a field (not held against it: what it finds in the scan itself), ``white`` that of white matter.
- ``ct``: eight axial slices of subjects of the population that nothing was trained on (the same atlas: no other
  person), ``drawn``, and a ``real`` slice at 0.86 mm, with noise as by ``configs/restore_ct.yaml``; beside the best of
  some strengths of non-local means, which nobody knows. Errors in HU; ``grey-white`` and ``lesion`` are the shares kept
  of the contrast of grey to white matter and of balls of 8 mm that are 20 HU denser than what is around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import minimize
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means, estimate_sigma

from medgen.anatomy.attenuation import attenuation
from medgen.anatomy.labels import BRAIN_IDS, ids_of
from medgen.anatomy.population import Population
from medgen.checks import check_choice
from medgen.diffusion.randomness import derive_seed
from medgen.models import load_model
from medgen.operators.degradations import draw_degradation
from medgen.restoration.classical import restore_classical
from tests.bench.restoration_figures import MODEL, Row, arguments, finish, psnr, sheet, table
from tests.bench.restoration_methods import NLM_DISTANCE, NLM_PATCH, array_of, by_model
from tests.bench.restoration_people import MAIN, Array, Flags, Scan, as_meta, bounding_box, scans, sphere

Panel = tuple[str, dict[str, Array], float]
Part = tuple[list[Row], Panel]
DEGRADED: dict[str, dict[str, Any]] = {
    "rigid_motion": {"events": (1, 4), "translation_mm": (0.3, 3.0), "rotation_deg": (0.3, 3.0)},
    "bias_field": {"strength": (0.1, 0.4), "order": (1, 3)},
    "transmission": {"photons": (3e4, 6e5), "electronic": (0.0, 10.0), "views": 180},
}
SLICES = 8
WIDTHS = (0.4, 0.5, 0.6, 0.8, 1.0, 1.3)  # voxels
DARK = 0.05  # of the bright end
HEAD = (170, 208, 180)
HEIGHTS = (70, 135)  # slices of it that show much of the brain
LESIONS, LESION_MM, LESION_HU = 4, 4.0, 20.0
NLM_STRENGTHS = (0.4, 0.6)
WINDOW_HU = 80.0
DENSE_HU, BONE_HU = -500.0, 300.0
REAL = "J2K_pixelrep_mismatch.dcm"  # of pydicom-data: 0.43 mm, 5 mm thick, 120 kV
STILL = f"still, {MODEL}"


def slab(scan: Scan, seed: int) -> Scan:
    """Some axial slices at a random height, where the brain is at least half as wide as at its widest."""
    area = scan.brain.sum((0, 1))
    heights = np.flatnonzero(area >= area.max() / 2)[: -SLICES + 1]
    start = int(np.random.default_rng(seed).choice(heights))
    return scan.cut((*(slice(0, n) for n in scan.image.shape[:2]), slice(start, start + SLICES)))


def sliced(name: str, image: Array, seed: int) -> Array:
    """The axial slices of a volume of 1 mm, all degraded alike but for their noise."""
    values = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0)))[:, None]
    stream = torch.Generator().manual_seed(derive_seed(seed, name))
    drawn = draw_degradation(name, image.shape[:2], (1.0, 1.0), float(image.max()), stream, DEGRADED[name])
    made = drawn(values, [torch.Generator().manual_seed(derive_seed(seed, k)) for k in range(len(values))])
    return np.moveaxis(made[:, 0].numpy(), 0, 2)


def smoothed(moved: Array, clean: Array) -> Array:
    """What a Gaussian in the slices can do at best."""
    made = [ndimage.gaussian_filter(moved, (width, width, 0)) for width in WIDTHS]
    return min(made, key=lambda image: float(np.square(image - clean).mean()))


def placed(image: Array, clean: Array) -> Array:
    """Turned and shifted in the slices towards the truth, by cubic splines; as it is, where that is no nearer."""
    middle = (np.array(image.shape[:2]) - 1) / 2
    thin = slice(SLICES // 2, SLICES // 2 + 1)

    def moved(values: Array, pose: NDArray[np.float64], order: int) -> Array:
        turn = np.deg2rad(pose[0])
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        offset = middle - matrix @ middle + pose[1:]
        one = [ndimage.affine_transform(values[..., k], matrix, offset, order=order) for k in range(values.shape[2])]
        return np.stack(one, axis=2)

    def error(pose: NDArray[np.float64], part: slice = thin, order: int = 1) -> float:
        return float(np.square(moved(image[..., part], pose, order) - clean[..., part]).mean())

    start = np.vstack([np.zeros(3), np.diag([1.0, 1.0, 1.0])])
    found = minimize(error, start[0], method="Nelder-Mead", options={"initial_simplex": start, "xatol": 0.01})
    best = moved(image, found.x, 3)
    return min(image, best, key=lambda one: float(np.square(one - clean).mean()))


def in_brain(image: Array, scan: Scan) -> dict[str, float]:
    """PSNR, and the mean of SSIM's map; the air around would count ghosts alone."""
    _, local = structural_similarity(image, scan.image, data_range=scan.top, full=True)
    inside = scan.brain
    return {"psnr": psnr(image[inside], scan.image[inside], scan.top), "ssim": float(local[inside].mean())}


def motion_site(scan: Scan, seed: int, model: Any) -> tuple[list[Row], dict[str, Array]]:
    """Rows of a slab: moved, and still."""
    part = slab(scan, seed)
    moved = sliced("rigid_motion", part.image, seed)
    rows: list[Row] = []
    sure: dict[str, float] = {}
    made = {"moved": moved, "smoothed": smoothed(moved, part.image)}
    if model is not None:
        for name, image in ((MODEL, moved), (STILL, part.image)):
            done = by_model(part.with_image(image), model)
            made[name] = array_of(done.image)
            if done.lower is not None and done.upper is not None:
                within = (array_of(done.lower) <= part.image) & (part.image <= array_of(done.upper))
                sure[name] = float(within[part.brain].mean())
    for method, image in made.items():
        row: Row = {"scan": scan.name, "site": seed, "method": method, **in_brain(image, part)}
        row["covered"] = sure.get(method)
        if method != STILL:
            row |= {"placed": in_brain(placed(image, part.image), part)["psnr"]}
            first = (rows or [row])[0]
            row |= {f"{key} gain": row[key] - first[key] for key in ("psnr", "placed", "ssim")}
        rows.append(row)
    return rows, {"clean": part.image, **made}


def motion(data: Any, names: Sequence[str], count: int, model: Any) -> Iterator[Part]:
    """Scan by scan."""
    for scan in scans(data, names):
        sites = [motion_site(scan, seed, model) for seed in range(count)]
        shown = {key: image[:, :, SLICES // 2] for key, image in sites[0][1].items()}
        yield [row for rows, _ in sites for row in rows], (scan.name, shown, scan.top)


def halved(scan: Scan) -> Scan:
    """At twice the voxel size: means; brain and tissue where all eight voxels agree."""
    even = scan.cut(tuple(slice(0, n // 2 * 2) for n in scan.image.shape))

    def eighths(values: np.ndarray) -> np.ndarray:
        x, y, z = (n // 2 for n in values.shape)
        return values.reshape(x, 2, y, 2, z, 2).transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, 8)

    tissues = eighths(even.tissues)
    alike = (tissues == tissues[..., :1]).all(-1)
    affine = even.affine @ np.diag([2.0, 2, 2, 1])
    affine[:3, 3] += even.affine[:3, :3] @ [0.5, 0.5, 0.5]
    return Scan(
        scan.name, eighths(even.image).mean(-1), affine, eighths(even.brain).all(-1), scan.top,
        np.where(alike, tissues[..., 0], 0), eighths(even.lesions).any(-1),
    )  # fmt: skip


def variation(values: Array) -> float:
    """Standard deviation over mean."""
    return float(values.std() / values.mean())


def unbiased(scan: Scan, model: Any) -> dict[str, Array]:
    """What each method makes of a scan with a field."""
    made = {"uncorrected": scan.image}
    made["n4"] = array_of(restore_classical(as_meta(scan.image, scan.affine), "bias").image)
    if model is not None:
        made[MODEL] = array_of(by_model(scan, model).image)
    return made


def field_rows(scan: Scan, made: dict[str, Array], plain: dict[str, Array]) -> list[Row]:
    """What is left of a field.

    Args:
        scan: without it.
        made: of the scan with it, by method.
        plain: of the scan without it.
    """
    inside = scan.brain & (scan.image > DARK * scan.top)
    white = scan.tissues == 3
    return [
        {
            "method": method,
            "left": variation(image[inside] / scan.image[inside]),
            "own": variation(image[inside] / plain[method][inside]),
            "white": variation(image[white]),
        }
        for method, image in made.items()
    ]


def bias(data: Any, names: Sequence[str], count: int, model: Any) -> Iterator[Part]:
    """Scan by scan."""
    for scan in (halved(one) for one in scans(data, names)):
        plain, rows, shown = unbiased(scan, model), [], {}
        for row in field_rows(scan, plain, plain):
            rows.append({"scan": scan.name, "field": "none", **row, "own": None})
        for seed in range(count):
            stream = torch.Generator().manual_seed(derive_seed(seed, "bias"))
            drawn = draw_degradation("bias_field", scan.image.shape, (2.0,) * 3, 1.0, stream, DEGRADED["bias_field"])
            values = torch.from_numpy(np.ascontiguousarray(scan.image))[None, None]
            made = unbiased(scan.with_image(drawn(values, [stream])[0, 0].numpy()), model)
            about = {"scan": scan.name, "field": "drawn", "site": seed}
            rows += [about | row for row in field_rows(scan, made, plain)]
            alike = {key: one * (scan.image.mean() / one.mean()) for key, one in made.items()}
            shown = shown or {"clean": scan.image, **alike}
        yield rows, (scan.name, {k: v[:, :, v.shape[2] // 2] for k, v in shown.items()}, scan.top)


def head(seed: int) -> tuple[Array, NDArray[np.int64], Flags]:
    """HU with lesions, ids of axial slices of a subject of the population, and where the lesions are."""
    rng = np.random.default_rng(seed)
    population = Population(spacing=(1.0,) * 3, size=HEAD, brain_extracted=0.0)
    patch = (0, 0, int(rng.integers(*HEIGHTS)) - SLICES // 2), (*HEAD[:2], 2 * SLICES)
    subject = population.subject(derive_seed(seed, "bench"), patch)
    middle = (..., slice(SLICES // 2, SLICES // 2 + SLICES))
    ids = subject.label.numpy()[0][middle].astype(np.int64)
    lesions = balls(np.isin(ids, BRAIN_IDS), rng)
    image = attenuation(subject, derive_seed(seed, "bench", "hu"))[0].numpy()[middle]
    return (image + LESION_HU * lesions).astype(np.float32), ids, lesions


def balls(brain: Flags, rng: np.random.Generator) -> Flags:
    """Balls about the middle slices, all of each in the brain."""
    deep = ndimage.binary_erosion(brain[:, :, SLICES // 2], iterations=int(LESION_MM) + 2)
    found = np.zeros(brain.shape, bool)
    for x, y in rng.permutation(np.argwhere(deep))[:LESIONS]:
        found |= sphere(brain.shape, (x, y, SLICES / 2 - 0.5), LESION_MM, (1.0,) * 3)
    return found


def real_slice(seed: int) -> tuple[Array, NDArray[np.int64], Flags]:
    """As :func:`head`: copies of a real slice, with its own noise; brain and bone by their HU."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    found = dcmread(str(get_testdata_file(REAL, download=False)))
    values = found.pixel_array.astype(np.float32) * float(found.RescaleSlope) + float(found.RescaleIntercept)
    rows, columns = (n // 2 for n in values.shape)
    flat = values.clip(min=-1000).reshape(rows, 2, columns, 2).mean((1, 3)).T[:, ::-1]
    smooth = ndimage.gaussian_filter(flat, 2)
    ids = np.where(smooth > BONE_HU, ids_of("skull")[0], np.where(smooth > -200, ids_of("soft_tissue")[0], 0))
    brain = ndimage.binary_opening((smooth > 5) & (smooth < 60), iterations=4)
    ids[brain] = ids_of("thalamus")[0]
    ids, image = (np.repeat(one[..., None], SLICES, axis=2) for one in (ids, flat))
    lesions = balls(np.isin(ids, BRAIN_IDS), np.random.default_rng(seed))
    return (image + LESION_HU * lesions).astype(np.float32), ids, lesions


HEADS: dict[str, Callable[[int], tuple[Array, NDArray[np.int64], Flags]]] = {"drawn": head, "real": real_slice}


def best_non_local_means(noisy: Array, clean: Array) -> Array:
    """By the truth, of some strengths over its own noise estimate."""
    sigma = float(estimate_sigma(noisy))
    filtered = [
        denoise_nl_means(noisy, NLM_PATCH, NLM_DISTANCE, strength * sigma, fast_mode=True, sigma=sigma)
        for strength in NLM_STRENGTHS
    ]
    return min(filtered, key=lambda one: float(np.square(one - clean).mean()))


def without_noise(noisy: Array, clean: Array, model: Any, copies: bool) -> dict[str, Array]:
    """What each method makes of HU with noise; non-local means of the head alone, as it takes long.

    Args:
        noisy: slices.
        clean: the same.
        model: restorer; None: none.
        copies: slices show the same, and are no help for each other: non-local means takes each alone.
    """
    box, filtered = bounding_box(clean > DENSE_HU), noisy.copy()
    parts = [(*box[:2], k) for k in range(SLICES)] if copies else [box]
    for part in parts:
        filtered[part] = best_non_local_means(noisy[part], clean[part])
    made = {"noisy": noisy, "nlm, best": filtered}
    if model is not None:
        scan = Scan("head", noisy, np.eye(4), noisy > 0, 1.0, noisy, noisy > 0)
        made[MODEL] = array_of(by_model(scan, model).image)
    return made


def ct_rows(clean: Array, ids: NDArray[np.int64], lesions: Flags, made: dict[str, Array]) -> list[Row]:
    """Errors in HU in brain and bone, and contrasts over the true ones."""
    brain, bone = np.isin(ids, BRAIN_IDS), np.isin(ids, ids_of("skull"))
    beside = ndimage.binary_dilation(lesions, iterations=3) & ~ndimage.binary_dilation(lesions) & brain
    grey, white = (np.isin(ids, ids_of(tissue)) & ~lesions for tissue in ("cortex", "white_matter"))

    def kept(image: Array, one: Flags, other: Flags) -> float | None:
        if not one.any() or not other.any():
            return None
        return float((image[one].mean() - image[other].mean()) / (clean[one].mean() - clean[other].mean()))

    rows = []
    for method, image in made.items():
        row: Row = {"method": method, "psnr": psnr(image[ids > 0], clean[ids > 0], 2000.0)}
        for name, inside in {"brain": brain, "bone": bone}.items():
            error = (image - clean)[inside]
            row |= {f"{name} rms": float(np.sqrt(np.square(error).mean())), f"{name} bias": float(error.mean())}
        rows.append({**row, "grey-white": kept(image, grey, white), "lesion": kept(image, lesions, beside)})
    return rows


def ct(data: Any, names: Sequence[str], count: int, model: Any) -> Iterator[Part]:
    """Subject by subject, and the real slice with other noise and lesions each time."""
    for name in names:
        check_choice("bench", "scans", name, HEADS)
        for seed in range(count):
            clean, ids, lesions = HEADS[name](seed)
            made = without_noise(sliced("transmission", clean, seed), clean, model, copies=name == "real")
            rows = [{"scan": name, "site": seed, **row} for row in ct_rows(clean, ids, lesions, made)]
            shown = {"clean": clean, **made}
            shown = {key: image[:, :, SLICES // 2].clip(0, WINDOW_HU) for key, image in shown.items()}
            yield rows, (f"{name} {seed}", shown, WINDOW_HU)


TASKS: dict[str, tuple[Callable[..., Iterator[Part]], Sequence[str], tuple[str, ...], dict[str, str]]] = {
    "motion": (motion, MAIN, ("scan", "method"), {
        "psnr": ".2f", "psnr gain": "+.2f", "ssim": ".4f", "ssim gain": "+.4f", "placed gain": "+.2f",
        "covered": ".3f",
    }),
    "bias": (bias, MAIN, ("scan", "field", "method"), {"left": ".4f", "own": ".4f", "white": ".4f"}),
    "ct": (ct, tuple(HEADS), ("scan", "method"), {
        "psnr": ".2f", "brain rms": ".2f", "brain bias": "+.2f", "bone rms": ".1f", "bone bias": "+.1f",
        "grey-white": ".3f", "lesion": ".3f",
    }),
}  # fmt: skip
"""Function, scans, keys of the table and its values."""


def main() -> None:
    """Parse the command line, run, print the table."""
    given = arguments(__doc__, task=("motion", ", ".join(TASKS)))
    check_choice("bench", "task", given.task, TASKS)
    work, names, keys, forms = TASKS[given.task]
    model = load_model(given.model, device="cpu") if given.model else None
    rows: list[Row] = []
    panels: list[Panel] = []
    for found, panel in work(given.data, given.scans or names, given.limit, model):
        rows += found
        panels.append(panel)
        print("\n".join(table(found, keys, forms)), flush=True)
    sheet(panels, given.output.with_suffix(".png"))
    finish(rows, given.output, ["all" + "-" * 60, *table(rows, keys, forms)])


if __name__ == "__main__":
    main()
