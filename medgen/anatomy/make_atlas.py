"""Make the bundled Colin27 atlas (T1, label map and brain mask, 1 mm) from a folder with the original files.

Run ``python -m medgen.anatomy.make_atlas FOLDER OUTPUT``. FOLDER holds ``t1_head_1mm.nii.gz``,
``t1_brain_1mm.nii.gz`` and ``aal_labels_1mm.nii.gz`` (181 x 217 x 181, 1 mm, RAS+, MNI space). The T1 is stored
unaltered. The label map is made from its intensities, with the AAL regions as a guide to the structures.

The thresholds and seed points below are those of this one head: intensities in stored units (CSF about 37, grey
matter 84, white matter 112, bone below 30), positions in MNI mm.

References:
    Holmes et al., "Enhancement of MR images using registration for signal averaging", JCAT 22 (1998).
    Tzourio-Mazoyer et al., "Automated anatomical labeling of activations in SPM", NeuroImage 15 (2002).
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.io.atomic import atomic_path

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

ORIGIN = (-90.0, -125.0, -71.0)
SHAPE = (181, 217, 181)
# AAL region numbers (position in its table), odd = left, even = right
AAL_STRUCTURES = {10: (77, 78), 11: (71, 72), 12: (73, 74), 13: (75, 76), 17: (37, 38), 18: (41, 42)}
TISSUE_MEANS = (40.0, 84.0, 112.0)  # modes of the flattened histogram: CSF, grey, white
RIGHT_OF = {2: 41, 3: 42, 4: 43, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54}
AAL_CEREBELLUM = range(91, 117)
AAL_VERMIS = range(109, 117)


def millimetres() -> tuple[Array, Array, Array]:
    """Open grids of the x, y, z coordinate (RAS+, mm) of every voxel."""
    x, y, z = (np.arange(n, dtype=np.float32) + o for n, o in zip(SHAPE, ORIGIN, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Mask:
    """The voxels within the given ranges in mm."""
    gx, gy, gz = millimetres()
    inside = (gx >= x[0]) & (gx <= x[1]) & (gy >= y[0]) & (gy <= y[1]) & (gz >= z[0]) & (gz <= z[1])
    return np.asarray(inside)


def dilate(mask: Mask, radius: float) -> Mask:
    """Dilation by a ball of the given radius in voxels."""
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)


def erode(mask: Mask, radius: float) -> Mask:
    """Erosion by a ball of the given radius in voxels; outside of the grid counts as inside."""
    return np.asarray(ndimage.distance_transform_edt(mask) > radius)


def close(mask: Mask, radius: float) -> Mask:
    """Closing by a ball, the grid padded."""
    width = int(radius) + 2
    closed = erode(dilate(np.pad(mask, width), radius), radius)
    return closed[width:-width, width:-width, width:-width]


def largest(mask: Mask) -> Mask:
    """The largest connected component (6 neighbours)."""
    components, _ = ndimage.label(mask)
    return np.asarray(components == 1 + np.argmax(np.bincount(components.ravel())[1:]))


def smooth_majority(
    classes: NDArray[np.int8], mask: Mask, weight: NDArray[np.float32], rounds: int
) -> NDArray[np.int8]:
    """Iterated conditional modes of a Potts field.

    Args:
        classes: initial class of each voxel (X, Y, Z), 0..K-1.
        mask: where to estimate.
        weight: log likelihood of each class, (K, X, Y, Z).
        rounds: number of sweeps.
    """
    stencil = ndimage.generate_binary_structure(3, 1).astype(np.float32)
    stencil[1, 1, 1] = 0
    for _ in range(rounds):
        members = [((classes == k) & mask).astype(np.float32) for k in range(len(weight))]
        votes = np.stack([ndimage.convolve(member, stencil) for member in members])
        classes = np.where(mask, np.argmax(weight + 0.35 * votes, axis=0), classes).astype(np.int8)
    return classes


def flatten(image: Array, mask: Mask, passes: int = 2) -> Array:
    """Divide out a smooth bias estimated from the ratio of the image to its white-matter level."""
    flat = image.copy()
    for _ in range(passes):
        white = mask & (flat > 103) & (flat < 125)
        white = erode(white, 1.0)
        weight = ndimage.gaussian_filter(white.astype(np.float32), 12)
        level = ndimage.gaussian_filter(np.where(white, flat, 0), 12) / np.maximum(weight, 1e-4)
        gain = np.where(weight > 1e-2, 112.0 / np.maximum(level, 1.0), 1.0)
        flat = flat * ndimage.gaussian_filter(gain, 6)
    return np.asarray(flat, np.float32)


def brain_and_hull(brain_image: Array) -> tuple[Mask, Mask]:
    """Brain mask without the ragged streaks of the extracted copy, and its closed hull (the sulci filled)."""
    brain = largest(ndimage.binary_opening(brain_image > 0, iterations=1))
    brain |= (brain_image > 60) & dilate(brain, 1.0)
    hull = ndimage.binary_fill_holes(close(brain, 12) | brain)
    return np.asarray(brain), np.asarray(hull)


def tissue_classes(image: Array, region: Mask) -> NDArray[np.int8]:
    """0 CSF, 1 grey, 2 white within the region."""
    weight = np.stack([-0.5 * ((image - mean) / 9.0) ** 2 for mean in TISSUE_MEANS])
    weight[0][image < TISSUE_MEANS[0]] = 0.0
    weight[2][image > TISSUE_MEANS[2]] = 0.0
    return smooth_majority(np.argmax(weight, 0).astype(np.int8), region, weight.astype(np.float32), 3)


def head_mask(head: Array) -> Mask:
    """The head with its inner air: threshold, closing, holes filled in every plane."""
    mask = largest(head > 18)
    mask = close(mask, 4)
    for axis in range(3):
        planes = np.moveaxis(mask, axis, 0)
        filled = np.stack([ndimage.binary_fill_holes(plane) for plane in planes])
        mask = np.moveaxis(filled, 0, axis)
    return largest(ndimage.binary_opening(mask, iterations=2))


def skull_mask(head: Array, inside: Mask, brain: Mask) -> Mask:
    """Bone: dark, or bright but cut off from the scalp by the dark outer table (marrow), near the braincase."""
    depth = ndimage.distance_transform_edt(inside)
    distance = ndimage.distance_transform_edt(~brain)
    x, y, z = millimetres()
    dark = inside & ~brain & (head < 42)
    walls = close(dark, 2.0) & ~brain
    bright = inside & ~brain & ~walls
    outer = (depth <= 4) & (head > 42)
    reached, _ = ndimage.label(bright | (outer & ~brain))
    touching = np.unique(reached[outer & inside])
    marrow = bright & ~np.isin(reached, touching)
    mastoid = np.broadcast_to((z < -12) & (np.abs(x) > 25) & (y < 5) & (y > -75), SHAPE)
    bone = (walls | marrow) & (distance <= np.where(mastoid, 24, 16)) & (depth > 3)
    return np.asarray(largest(ndimage.binary_opening(bone | brain, iterations=1)) & ~brain)


def airways(head: Array, inside: Mask, brain: Mask) -> Mask:
    """Air in the sinuses and the nose: very dark, thick, in the front of the head."""
    air = inside & (ndimage.gaussian_filter(head, 0.7) < 22)
    thick = dilate(erode(air, 2.5), 3.0) & air
    _, y, z = millimetres()
    face = np.broadcast_to((z < 12) & (y > 12) & ((z < -14) | (y > 60)), SHAPE)
    return np.asarray(thick & face & ~dilate(brain, 3.0))


def nearest_value(seeds: NDArray[np.int16], within: Mask) -> NDArray[np.int16]:
    """Each voxel's value of the nearest non-zero seed."""
    index = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    return np.where(within, seeds[tuple(index)], 0).astype(np.int16)


def ventricles(csf: Mask, aal: NDArray[np.int16]) -> NDArray[np.int16]:
    """Lateral (4 left, 43 right), third (14) and fourth (15) ventricle as parts of the CSF.

    Flooding from seed regions over the thickness of the CSF; the outer spaces have seeds of their own.
    """
    from skimage.segmentation import watershed

    deep = np.isin(aal, [37, 38, *range(71, 79)])
    lateral = box((-40, 40), (-52, 36), (4, 34)) & ~box((-12, 12), (-70, -22), (-40, 12))
    third = box((-3, 3), (-28, 8), (-12, 10))
    fourth = box((-9, 9), (-52, -32), (-46, -14))
    x, _, _ = millimetres()
    right = np.broadcast_to(x > 0, SHAPE)
    thickness = ndimage.distance_transform_edt(csf)
    seeds = np.zeros(SHAPE, np.int32)
    core = csf & (thickness >= 2)
    blobs, _ = ndimage.label(core & lateral)
    sizes = np.bincount(blobs.ravel())
    big = np.isin(blobs, np.flatnonzero(sizes > 150)[1:])
    near = ndimage.distance_transform_edt(~deep) < 14
    seeds[big & near & ~right] = 4
    seeds[big & near & right] = 43
    seeds[csf & (thickness >= 1.4) & third] = 14
    seeds[core & fourth] = 15
    outside = csf & (seeds == 0) & (ndimage.distance_transform_edt(~np.isin(aal, deep_and_cortex())) < 2) & ~near
    seeds[outside | (csf & cisterns())] = 24
    flooded = watershed(-thickness, seeds, mask=csf)
    flooded[(flooded == 14) & ~box((-6, 6), (-30, 7), (-15, 13))] = 0
    flooded[(flooded == 15) & ~box((-16, 16), (-60, -26), (-54, -10))] = 0
    flooded[np.isin(flooded, (4, 43)) & ~box((-48, 48), (-78, 52), (-28, 38))] = 0
    return np.where(flooded == 24, 0, flooded).astype(np.int16)


def cisterns() -> Mask:
    """Regions of midline CSF that is not ventricle: behind the third ventricle, and above the sella."""
    return (
        box((-13, 13), (-66, -29), (-20, 8))
        | box((-8, 8), (-40, -26), (-8, 14))
        | box((-16, 16), (-10, 30), (-40, -14))
        | box((-5, 5), (7, 40), (-20, -4))
    )


def deep_and_cortex() -> list[int]:
    """AAL numbers of the cortical regions."""
    return [n for n in range(1, 91) if n not in (37, 38, 41, 42, *range(71, 79))]


def make_label(head: Array, brain_image: Array, aal: NDArray[np.int16]) -> NDArray[np.int16]:
    """The label map (ids of `medgen.anatomy.labels`) of the Colin27 head."""
    brain, hull = brain_and_hull(brain_image)
    flat = flatten(brain_image, brain)
    classes = tissue_classes(flat, brain)
    csf, grey, white = (brain & (classes == k) for k in range(3))
    x, _, _ = millimetres()

    side = nearest_value(np.where((aal > 0) & (aal < 109), 1 + (aal + 1) % 2, 0).astype(np.int16), hull)
    right = (side == 2) | ((side == 0) & (x > 0))
    label = np.zeros(SHAPE, np.int16)
    label[grey], label[white] = 3, 2

    cerebellum = cerebellum_mask(aal, brain)
    label[cerebellum & grey], label[cerebellum & white] = 8, 7
    stem = brain_stem_mask(brain & ~csf, cerebellum, aal)
    label[stem] = 16
    label = deep_structures(label, flat, aal, csf)
    label[right] = swap_right(label[right])

    label = drop_scraps(label, aal)
    label[csf | (hull & ~brain)] = 24
    chambers = ventricles(csf, aal)
    label[chambers > 0] = chambers[chambers > 0]
    label = mend_deep_grey(label, aal)
    return surround(label, head, hull)


def drop_scraps(label: NDArray[np.int16], aal: NDArray[np.int16]) -> NDArray[np.int16]:
    """Vessels, nerves and meninges that the brain extraction left below the brain become CSF."""
    cerebrum = np.isin(label, (2, 3, 41, 42))
    away = ndimage.distance_transform_edt(aal == 0) > 2.5
    below = box((-22, 22), (-14, 45), (-60, -13))
    return np.where(cerebrum & away & below, 24, label).astype(np.int16)


def mend_deep_grey(label: NDArray[np.int16], aal: NDArray[np.int16]) -> NDArray[np.int16]:
    """Mend "cortex" deep in the brain: choroid plexus is ventricle, rims and diencephalon are white matter."""
    result = label.copy()
    cortical = np.isin(aal, deep_and_cortex())
    for cortex, white, ventricle in ((3, 2, 4), (42, 41, 43)):
        grey = (label == cortex) & ~erode(cortical, 1.0)
        chamber = label == ventricle
        rim = grey & dilate(chamber | (label == 14), 2.6)
        plexus = rim & close(chamber, 2.5)
        deep = grey & (ndimage.distance_transform_edt(~cortical) > 3)
        result[rim | deep] = white
        result[plexus] = ventricle
    return result


def swap_right(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Left ids to right ids."""
    table = np.arange(260, dtype=np.int16)
    for left, other in RIGHT_OF.items():
        table[left] = other
    return table[values]


def cerebellum_mask(aal: NDArray[np.int16], brain: Mask) -> Mask:
    """AAL's cerebellum closed over its white matter and grown to the brain mask."""
    seeds = np.zeros(SHAPE, np.int16)
    known = np.isin(aal, AAL_CEREBELLUM)
    seeds[(aal > 0) & ~known] = 1
    body = close(known, 7)
    _, y, z = millimetres()
    body &= ~np.broadcast_to(y > -36 + 0.25 * (z + 35), SHAPE) | known
    seeds[body & (seeds == 0)] = 2
    stem_core = box((-12, 12), (-36, -10), (-70, -6))
    seeds[stem_core & (seeds == 0)] = 3
    return np.asarray((nearest_value(seeds, brain) == 2) & brain)


def brain_stem_mask(tissue: Mask, cerebellum: Mask, aal: NDArray[np.int16]) -> Mask:
    """Midbrain, pons and medulla: what is left below the thalamus, in front of the cerebellum."""
    x, y, z = millimetres()
    limit = 16 + 0.8 * np.clip(-10 - z, 0, 11)  # narrow at the midbrain, wide at the pons
    zone = (np.abs(x) <= limit) & (y < np.where(z < -16, -2, -9)) & (y > -48) & (z < -0.5 - 0.35 * (y + 22))
    zone = np.broadcast_to(zone, SHAPE)
    other = (aal > 0) & ~np.isin(aal, AAL_CEREBELLUM)
    return largest(ndimage.binary_opening(tissue & zone & ~cerebellum & ~dilate(other, 1.5), iterations=1))


def deep_structures(label: NDArray[np.int16], flat: Array, aal: NDArray[np.int16], csf: Mask) -> NDArray[np.int16]:
    """Thalamus, caudate, putamen, pallidum, hippocampus, amygdala from AAL grown by a voxel or two, by intensity."""
    smooth = ndimage.gaussian_filter(flat, 0.6)
    growth = {
        10: (1.0, 108.5),
        11: (2.0, 104.5),
        12: (2.0, 104.5),
        13: (0.0, 200.0),
        17: (1.0, 100.0),
        18: (0.5, 104.0),
    }
    label = label.copy()
    for structure in (17, 18, 11, 12, 10, 13):
        radius, high = growth[structure]
        known = np.isin(aal, AAL_STRUCTURES[structure])
        taken = dilate(known, radius) & (smooth < high) & ~csf
        taken &= (aal == 0) | known | np.isin(aal, deep_and_cortex())
        taken |= known & ~csf if structure == 10 else False
        taken = close(ndimage.binary_opening(taken, iterations=1), 1.5) & ~csf & dilate(known, radius)
        label[taken] = structure
    return label


def surround(label: NDArray[np.int16], head: Array, hull: Mask) -> NDArray[np.int16]:
    """Write CSF shell, skull, scalp and soft tissue around the brain."""
    inside = head_mask(head) | hull
    shell = dilate(hull, 2.0) & ((head < 75) | dilate(hull, 1.0)) & inside
    casing = shell | hull
    skull = skull_mask(head, inside, casing)
    air = airways(head, inside, casing)
    depth = ndimage.distance_transform_edt(inside)
    outer = inside & ~casing & ~skull
    result = label.copy()
    result[outer] = 258
    result[scalp_mask(head, outer, depth)] = 259
    result[skull] = 165
    result[casing & (label == 0)] = 24
    result[air] = 0
    return base_of_skull(result, head, label > 0)


def scalp_mask(head: Array, outer: Mask, depth: Array) -> Mask:
    """Skin and the fat below it: the outer layer, deeper where it is bright, all of it on the top of the head."""
    _, _, z = millimetres()
    bright = ndimage.median_filter(head, 3) > 98
    top = np.broadcast_to(z > 34, SHAPE)
    scalp = outer & ((depth <= 4) | (bright & (depth <= 13)) | top)
    return np.asarray(outer & (ndimage.gaussian_filter(scalp.astype(np.float32), 1.0) > 0.5) | (outer & (depth <= 3)))


def base_of_skull(label: NDArray[np.int16], head: Array, brain: Mask) -> NDArray[np.int16]:
    """Inside the closed hull but far from the brain: bone is darker than CSF; fat, sinuses and dura are brighter."""
    distance = ndimage.distance_transform_edt(~(brain & (label != 24)))
    smooth = ndimage.gaussian_filter(head, 0.8)
    spare = (label == 24) & ~brain
    result = label.copy()
    result[spare & (smooth < 25) & (distance > 2.5)] = 165
    bright = ndimage.binary_opening(spare & (smooth > 68) & (distance > 1.5), iterations=1)
    result[bright] = 258
    return result


def brain_extraction(label: NDArray[np.int16]) -> Mask:
    """The brain with the CSF between its gyri: the tissue closed by 4 mm."""
    tissue = (label > 0) & (label < 100) & (label != 24)
    closed = ndimage.binary_fill_holes(close(largest(tissue), 4) | tissue)
    return np.asarray(largest(ndimage.binary_opening(closed, iterations=1) & (label > 0) & (label < 100)))


def save(path: Path, data: NDArray[np.generic], description: str) -> None:
    """Write a NIfTI file whose bytes depend on the data alone."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = ORIGIN
    image = nib.Nifti1Image(data, affine)
    image.header["descrip"] = description.encode()
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(gzip.compress(image.to_bytes(), 9, mtime=0))


def main() -> None:
    """Command line: the folder with the originals, the folder for the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    stored = {name: nib.load(options.folder / f"{name}_1mm.nii.gz") for name in ("t1_head", "t1_brain", "aal_labels")}
    head, brain, aal = (np.asanyarray(image.dataobj) for image in stored.values())
    label = make_label(head.astype(np.float32), brain.astype(np.float32), aal.astype(np.int16))
    save(options.output / "colin27_t1.nii.gz", head.astype(np.uint8), "Colin27 T1, (c) McConnell BIC, MNI, McGill")
    save(options.output / "colin27_label.nii.gz", label, "Colin27 label map, medgen")
    brain_mask = brain_extraction(label).astype(np.uint8)
    save(options.output / "colin27_brain.nii.gz", brain_mask, "Colin27 brain with its CSF, medgen")
    for key, count in zip(*np.unique(label, return_counts=True), strict=True):
        print(key, count / 1000, "ml")


if __name__ == "__main__":
    main()
