"""Random subjects: an atlas, moved by a random affine and diffeomorphic map and resampled once onto a target grid.

Every voxel of the target grid is the mean of sub-points about 1 mm apart (2 x 2 x 2 of them in a 2 mm voxel): the
image by their trilinear values, the label by their majority. One map serves both.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medgen.anatomy.atlas import load_atlas
from medgen.anatomy.deformation import (
    AffineLimits,
    LatticeMap,
    lattice_shape,
    random_affine,
    sample_displacement,
    warp,
)
from medgen.anatomy.labels import BRAIN_IDS, LABELS, opposite
from medgen.checks import MedgenError, check_positive, check_range

_NODE_MM = 6.0
_SLAB = 12
_OUTER_CSF = 32  # internal code: CSF beyond the brain's hull, dropped with the skull in brain-extracted subjects
_CODES = (*sorted(LABELS),)

Patch = tuple[Sequence[int], Sequence[int]]
"""(start, size) in voxels of the target grid."""


@dataclass(frozen=True)
class Warp:
    """How strongly subjects differ from the atlas.

    Attributes:
        affine: ranges of the affine map.
        smoothness_mm: distance between control points of each scale of the velocity field.
        magnitude_mm: (least, most) standard deviation of the velocity at each scale; drawn per subject.
    """

    affine: AffineLimits = field(default_factory=AffineLimits)
    smoothness_mm: tuple[float, ...] = (48.0, 28.0, 16.0)
    magnitude_mm: tuple[tuple[float, float], ...] = ((1.5, 4.0), (0.6, 1.9), (0.3, 1.0))


@dataclass(frozen=True)
class Subject:
    """One random subject (or a patch of one).

    Attributes:
        image: T1, ``(1, X, Y, Z)`` float32 in 0..1.
        label: ids of `medgen.anatomy.labels.LABELS`, ``(1, X, Y, Z)`` int16.
        affine: voxel index to RAS+ mm of both, 4 x 4 float64.
        seed: the seed it was drawn from.
        parameters: what was drawn: affine, magnitudes, flip, brain extraction.
        field: the map from sub-points of the whole target grid to atlas voxels.
    """

    image: MetaTensor
    label: MetaTensor
    affine: NDArray[np.float64]
    seed: int
    parameters: dict[str, Any]
    field: LatticeMap


@dataclass(frozen=True)
class _Source:
    """The atlas as tensors, and its two tables of label codes (plain, sides swapped)."""

    image: Tensor
    codes: Tensor
    inverse: NDArray[np.float64]
    centre: NDArray[np.float64]


@functools.cache
def _source(name: str) -> _Source:
    atlas = load_atlas(name)
    table = np.zeros(max(LABELS) + 1, np.float32)
    table[list(_CODES)] = np.arange(len(_CODES), dtype=np.float32)
    codes = table[atlas.label]
    codes[(atlas.label == 24) & ~atlas.brain] = _OUTER_CSF
    occupied = np.argwhere(atlas.label > 0)
    middle = (occupied.min(0) + occupied.max(0)) / 2
    centre = np.asarray(atlas.affine[:3, :3] @ middle + atlas.affine[:3, 3], np.float64)
    inverse = np.asarray(np.linalg.inv(atlas.affine), np.float64)
    return _Source(torch.from_numpy(atlas.image.copy()), torch.from_numpy(codes), inverse, centre)


def _code_table(flip: bool, extracted: bool) -> Tensor:
    """Label id of each internal code, sides swapped or the outer parts dropped if asked for."""
    table = torch.zeros(_OUTER_CSF + 1, dtype=torch.int16)
    for code, label in enumerate(_CODES):
        value = opposite(label) if flip else label
        table[code] = 0 if extracted and label not in BRAIN_IDS else value
    table[_OUTER_CSF] = 0 if extracted else 24
    return table


def _majority(votes: Sequence[Tensor]) -> Tensor:
    """The most frequent code among equally shaped uint8 tensors; of equally frequent ones the smallest code."""
    best = torch.zeros_like(votes[0], dtype=torch.int16)
    for vote in votes:
        count = torch.zeros_like(vote)
        for other in votes:
            count += vote == other
        best = torch.maximum(best, count.to(torch.int16) * 64 + (63 - vote.to(torch.int16)))
    return 63 - best % 64


class Population:
    """Random subjects from one labelled head; a subject is a function of its seed alone.

    Args:
        atlas: name of a bundled atlas.
        spacing: voxel size of the target grid in mm.
        size: voxels of the target grid; its axes run right, anterior, superior.
        brain_extracted: share of subjects with everything outside the brain set to 0 in image and label.
        flip: share of subjects mirrored left to right, label sides exchanged.
        warp: how strongly the subjects differ.

    Raises:
        MedgenError: unknown atlas, a size or spacing that is not positive, a share outside 0..1.

    Example:
        >>> subject = Population(spacing=(8, 8, 8), size=(24, 28, 24)).subject(1)
        >>> tuple(subject.image.shape), subject.label.dtype
        ((1, 24, 28, 24), torch.int16)
    """

    def __init__(
        self,
        atlas: str = "colin27",
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        size: Sequence[int] = (96, 112, 96),
        brain_extracted: float = 0.25,
        flip: float = 0.5,
        warp: Warp | None = None,
    ) -> None:
        for name, values in (("spacing", spacing), ("size", size)):
            if len(tuple(values)) != 3:
                raise MedgenError(f"Population: {name} must have three values. Got {tuple(values)} instead.")
            for value in values:
                check_positive("Population", name, value)
        check_range("Population", "brain_extracted", brain_extracted, 0, 1)
        check_range("Population", "flip", flip, 0, 1)
        load_atlas(atlas)
        self.atlas = atlas
        self.spacing = tuple(float(value) for value in spacing)
        self.size = tuple(int(value) for value in size)
        self.brain_extracted = float(brain_extracted)
        self.flip = float(flip)
        self.warp = warp or Warp()

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index of the target grid to RAS+ mm (the head's middle in the middle of the grid)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = -(np.array(self.size) - 1) / 2 * np.array(self.spacing)
        return affine

    def subject(self, seed: int, patch: Patch | None = None) -> Subject:
        """Draw one subject.

        Args:
            seed: any integer; the same seed gives the same bytes.
            patch: (start, size) in voxels to evaluate only a part, equal to that part of the whole.

        Returns:
            The subject, image and label on the target grid (or the patch of it).

        Raises:
            MedgenError: a patch that leaves the grid.
        """
        start, size = self._patch(patch)
        mapping, parameters = self.draw(seed)
        image, label = self._evaluate(mapping, parameters, start, size, with_image=True)
        affine = self.affine
        affine[:3, 3] += affine[:3, :3] @ np.array(start)
        meta = {"synthetic": True, "provenance": {"population": self.describe(), "seed": int(seed)}}
        tensors = [MetaTensor(data[None], affine=torch.from_numpy(affine), meta=dict(meta)) for data in (image, label)]
        return Subject(tensors[0], tensors[1], affine, int(seed), parameters, mapping)

    def label(self, seed: int) -> MetaTensor:
        """The label of ``subject(seed)`` without its image, ``(1, X, Y, Z)`` int16."""
        start, size = self._patch(None)
        mapping, parameters = self.draw(seed)
        _, label = self._evaluate(mapping, parameters, start, size, with_image=False)
        meta = {"synthetic": True, "provenance": {"population": self.describe(), "seed": int(seed)}}
        return MetaTensor(label[None], affine=torch.from_numpy(self.affine), meta=meta)

    def random_patch(self, seed: int, size: Sequence[int]) -> Subject:
        """A patch of ``subject(seed)`` at a place drawn from the seed, for training.

        Args:
            seed: any integer.
            size: voxels of the patch.
        """
        generator = torch.Generator().manual_seed(int(seed) ^ 0x5EED)
        room = [whole - part + 1 for whole, part in zip(self.size, size, strict=True)]
        if min(room) < 1:
            raise MedgenError(f"Population.random_patch: size must fit in {self.size}. Got {tuple(size)} instead.")
        start = [int(torch.randint(extent, (1,), generator=generator)) for extent in room]
        return self.subject(seed, (start, size))

    def describe(self) -> dict[str, Any]:
        """The arguments that define this population, as plain values."""
        return {
            "atlas": self.atlas,
            "spacing": list(self.spacing),
            "size": list(self.size),
            "brain_extracted": self.brain_extracted,
            "flip": self.flip,
            "warp": asdict(self.warp),
        }

    def draw(self, seed: int) -> tuple[LatticeMap, dict[str, Any]]:
        """The map and the parameters of a subject.

        Returns:
            The map from the target's sub-points to atlas voxels, and the parameters drawn.
        """
        generator = torch.Generator().manual_seed(int(seed))
        chances = torch.rand(2, generator=generator, dtype=torch.float64)
        matrix, affine_parameters = random_affine(generator, self.warp.affine)
        draws = torch.rand(len(self.warp.magnitude_mm), generator=generator, dtype=torch.float64)
        ranges = zip(self.warp.magnitude_mm, draws.tolist(), strict=True)
        magnitudes = [low + (high - low) * share for (low, high), share in ranges]
        flip, extracted = bool(chances[0] < self.flip), bool(chances[1] < self.brain_extracted)
        mapping = self._lattice(generator, matrix, magnitudes, flip)
        parameters: dict[str, Any] = {
            **affine_parameters,
            "magnitude_mm": [round(value, 6) for value in magnitudes],
            "flip": flip,
            "brain_extracted": extracted,
        }
        return mapping, parameters

    def _subdivision(self) -> tuple[int, int, int]:
        """Sub-points in a voxel along each axis: about one per mm."""
        x, y, z = (max(1, round(step)) for step in self.spacing)
        return x, y, z

    def _lattice(
        self, generator: torch.Generator, matrix: Tensor, magnitudes: Sequence[float], flip: bool
    ) -> LatticeMap:
        """Positions in atlas voxels at the lattice nodes: target mm, displaced, affine, mirrored, to voxels."""
        source = _source(self.atlas)
        divisions = self._subdivision()
        factor = max(1, round(_NODE_MM * min(n / s for n, s in zip(divisions, self.spacing, strict=True))))
        points = [n * d for n, d in zip(self.size, divisions, strict=True)]
        step = [s / d for s, d in zip(self.spacing, divisions, strict=True)]
        nodes = lattice_shape(points, factor)
        node_mm = [s * factor for s in step]
        displacement = sample_displacement(generator, nodes, node_mm, magnitudes, self.warp.smoothness_mm)
        axes = [
            (torch.arange(n, dtype=torch.float64) - 1) * s * factor - (p - 1) / 2 * s
            for n, s, p in zip(nodes, step, points, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
        mirror = torch.diag(torch.tensor([-1.0 if flip else 1.0, 1.0, 1.0], dtype=torch.float64))
        linear = mirror @ matrix[:3, :3]
        shift = mirror @ matrix[:3, 3] + torch.from_numpy(source.centre) * torch.diag(mirror)
        inverse = torch.from_numpy(source.inverse)
        linear, shift = inverse[:3, :3] @ linear, inverse[:3, :3] @ shift + inverse[:3, 3]
        position = [
            linear[i, 0] * grid[0] + linear[i, 1] * grid[1] + linear[i, 2] * grid[2] + shift[i] for i in range(3)
        ]
        shape = (points[0], points[1], points[2])
        return LatticeMap(torch.stack(position).float(), factor, shape)

    def _patch(self, patch: Patch | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if patch is None:
            return (0, 0, 0), self.size
        start, size = (tuple(int(value) for value in part) for part in patch)
        inside = all(a >= 0 and n > 0 and a + n <= whole for a, n, whole in zip(start, size, self.size, strict=True))
        if not inside:
            raise MedgenError(f"Population: patch must lie within {self.size}. Got start {start}, size {size} instead.")
        return start, size

    def _evaluate(
        self,
        mapping: LatticeMap,
        parameters: dict[str, Any],
        start: Sequence[int],
        size: Sequence[int],
        with_image: bool,
    ) -> tuple[Tensor, Tensor]:
        """Image and label of a patch, in slabs along the first axis that fit the processor's cache."""
        table = _code_table(parameters["flip"], parameters["brain_extracted"])
        slabs = []
        for first in range(start[0], start[0] + size[0], _SLAB):
            last = min(first + _SLAB, start[0] + size[0])
            slabs.append(self._slab(mapping, (first, *start[1:]), (last - first, *size[1:]), with_image))
        label = table[torch.cat([codes for _, codes in slabs]).long()]
        image = torch.cat([values for values, _ in slabs]) if with_image else torch.empty(0)
        if with_image and parameters["brain_extracted"]:
            image = torch.where(label > 0, image, torch.zeros(()))
        return image, label

    def _slab(
        self, mapping: LatticeMap, start: Sequence[int], size: Sequence[int], with_image: bool
    ) -> tuple[Tensor, Tensor]:
        """Mean of the sub-points' image values and majority of their label codes in a block of target voxels."""
        source, divisions = _source(self.atlas), self._subdivision()
        low = [a * d for a, d in zip(start, divisions, strict=True)]
        high = [(a + n) * d for a, n, d in zip(start, size, divisions, strict=True)]
        points = mapping.points(low, high)
        x, y, z = divisions
        offsets = itertools.product(range(x), range(y), range(z))
        parts = [(slice(i, None, x), slice(j, None, y), slice(k, None, z)) for i, j, k in offsets]
        codes = warp(source.codes, points, "nearest").to(torch.uint8)
        label = _majority([codes[part].contiguous() for part in parts])
        if not with_image:
            return torch.empty(0), label
        values = warp(source.image, points, "bilinear")
        total = values[parts[0]].clone()
        for part in parts[1:]:
            total += values[part]
        return total / len(parts), label


def stronger(warp: Warp, factor: float) -> Warp:
    """The same ranges with every deformation magnitude multiplied.

    Args:
        warp: ranges to start from.
        factor: multiplier of the velocity magnitudes.
    """
    return replace(warp, magnitude_mm=tuple((low * factor, high * factor) for low, high in warp.magnitude_mm))
