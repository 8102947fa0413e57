"""Pairs of a degraded and a clean patch, for restorers: from whole scans of any contrast, and from labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medgen.checks import MedgenError
from medgen.continuation import CONTINUATION_MM, kriged
from medgen.diffusion.randomness import derive_seed
from medgen.geometry import ModelGrid
from medgen.intensity import bright_end, restorer_unit
from medgen.io.datasets import Case, find_cases
from medgen.operators.blur import Blur
from medgen.operators.chain import Chain
from medgen.operators.degradations import draw_degradation
from medgen.operators.noise import GaussianNoise, RicianNoise
from medgen.operators.through_plane import ThroughPlane
from medgen.trainers.augmentation import random_holes, random_window
from medgen.trainers.config import POPULATION
from medgen.trainers.gridding import fitted
from medgen.trainers.lesions import planted
from medgen.trainers.restorer_config import RestorerConfig, Variety
from medgen.trainers.warping import warped_patch

__all__ = ["ScanSource", "Scans", "strength_of", "to_model_unit"]

Item = dict[str, Tensor]
SHOWN = 0.05  # of the bright end: below it is air
LEAST_SHOWN = 0.25
TRIES = 8
KNOTS = 5
HEAD_MM = (170.0, 208.0, 180.0)
CLEAN: dict[str, Any] = {
    "isotropic_probability": 1.0, "noise_std": (0.0, 0.002), "masked_probability": 0.5, "bias_std": (0.0, 0.0)
}  # fmt: skip


def to_model_unit(values: Tensor, scaling: str) -> Tensor:
    """A scan in its own unit as a restorer sees it; see :class:`~medgen.models.restorer_spec.RestorerSpec`.

    Args:
        values: any shape, finite.
        scaling: ``percentile`` or ``hounsfield``.
    """
    scale, low = restorer_unit(values, scaling)
    return (values.float() - low) / scale


@dataclass(frozen=True)
class Scans:
    """Clean scans at the spacing of training.

    Args:
        volumes: each ``(1, *size)`` float16, see :func:`to_model_unit`.
        persons: whose they are.
    """

    volumes: list[Tensor]
    persons: frozenset[str]

    @classmethod
    def read(cls, config: RestorerConfig, cases: Sequence[Case]) -> Scans:
        """All images of all cases, whatever their modality; of those that are bent, only what half fills a patch.

        Args:
            config: of the run.
            cases: people to take.
        """
        found = [(case.person, _read(config, file.load())) for case in cases for file in case.images.values()]
        if config.variety.bend_mm:
            found = _filling(found, config.grid.size)
        return cls([volume for _, volume in found], frozenset(person for person, _ in found))


def _filling(found: Sequence[tuple[str, Tensor]], patch: Sequence[int]) -> list[tuple[str, Tensor]]:
    """What half fills a patch; the rest is left out, with a warning."""
    kept = [(person, volume) for person, volume in found if _fills(volume, patch)]
    if kept and len(kept) < len(found):
        warnings.warn(
            f"train: {len(found) - len(kept)} of {len(found)} scans are left out, smaller than half a patch of "
            f"{list(patch)} voxels. A smaller grid#size takes them in.",
            stacklevel=2,
        )
    return kept


def _fills(volume: Tensor, patch: Sequence[int]) -> bool:
    """Whether a volume is at least half as long as a patch along every axis."""
    return all(2 * n >= want for n, want in zip(volume.shape[1:], patch, strict=True))


def _read(config: RestorerConfig, image: MetaTensor) -> Tensor:
    """An image at the grid's spacing, in the model's unit."""
    if image.ndim == 4:
        steps = (*config.grid.spacing, config.grid.spacing[0])[:3]
        grid = ModelGrid.around(np.asarray(image.affine), tuple(image.shape[1:]), steps, multiple=1)
        values = grid.to_model(image, "area").as_tensor()
    else:
        values = image.as_tensor()
    return to_model_unit(values, config.scaling).to(torch.float16)


class ScanSource:
    """Items of a restorer: a random patch of a random scan, varied, degraded.

    Args:
        config: of the run.
        scans: clean ones; None: the population alone.
        purpose: keeps the population's subjects of training and of validation apart.

    Attributes:
        people: how many persons the items are of, the population's atlas included.
    """

    def __init__(self, config: RestorerConfig, scans: Scans | None, purpose: str = "subject") -> None:
        self.config = config
        self.scans = scans
        self.purpose = purpose
        self.outer = tuple(n + 2 * config.margin for n in config.grid.size)
        persons = scans.persons if scans else frozenset[str]()
        self.people = len(persons | {POPULATION} if config.variety.population else persons)
        self._weights = torch.tensor([float(v.numel()) for v in scans.volumes]) if scans else torch.zeros(0)
        self._kept: dict[int, Tensor] = {}
        self._pairs: dict[int, Item] = {}

    @classmethod
    def training(cls, config: RestorerConfig, limit: int | None = None) -> ScanSource:
        """Everybody who is not held out; with worker processes, what is kept in memory is made by them, once."""
        source = cls(config, _people(config, held_out=False, limit=limit))
        if config.num_workers and config.steps * config.batch_size > max(config.pairs, config.subjects):
            source.prepare()
        return source

    @classmethod
    def validation(cls, config: RestorerConfig) -> ScanSource:
        """Everybody who is held out, and subjects of the population that are not trained on."""
        scans = _people(config, held_out=True)
        return cls(config, scans, "validation")

    def prepare(self) -> None:
        """Make all subjects and pairs now, in ``num_workers`` processes; else each is made when it is first drawn."""
        if self.config.variety.population:
            self._kept.update(_made_apart(self._new_subject, self.config.subjects, self.config, "draw subjects"))
        if self.config.pairs:
            self._pairs.update(_made_apart(self._new_pair, self.config.pairs, self.config, "simulate pairs"))

    def item(self, seed: int) -> Item:
        """``image`` (clean), ``input`` (degraded) ``(1, *patch)``, ``strength`` ``()``, and ``inpaint_mask``."""
        if not self.config.pairs:
            return self._simulated(seed)
        stream = torch.Generator().manual_seed(seed)
        index = int(torch.randint(self.config.pairs, (), generator=stream))
        if index not in self._pairs:
            self._pairs[index] = self._new_pair(index)
        axes = [1 + a for a in range(len(self.outer)) if int(torch.randint(2, (), generator=stream))]
        return {key: value.float().flip(axes) if value.ndim else value for key, value in self._pairs[index].items()}

    def _new_pair(self, index: int) -> Item:
        made = self._simulated(derive_seed(self.config.seed, self.purpose, "pair", index))
        return {key: value.half() if value.ndim else value for key, value in made.items()}

    def _simulated(self, seed: int) -> Item:
        stream = torch.Generator().manual_seed(seed)
        clean = self._varied(self._patch(stream), stream)
        if self.config.restores == "inpaint":
            return self._with_hole(clean, seed)
        made, strength = degraded(clean, self.config, seed, stream)
        inner = (slice(None), *(slice(self.config.margin, self.config.margin + n) for n in self.config.grid.size))
        return {"image": clean[inner], "input": made[inner], "strength": torch.tensor(strength)}

    def _with_hole(self, clean: Tensor, seed: int) -> Item:
        inner = (slice(None), *(slice(self.config.margin, self.config.margin + n) for n in self.config.grid.size))
        clean, config = clean[inner], self.config
        hole = random_holes(
            config.grid.size, config.grid.spacing, config.hole_diameter_mm, config.holes, derive_seed(seed, "hole")
        )
        start = kriged(clean[0].numpy(), hole[0].numpy() > 0.5, config.grid.spacing, CONTINUATION_MM)
        return {
            "image": clean,
            "input": torch.from_numpy(start)[None].float(),
            "strength": torch.tensor(0.0),
            "inpaint_mask": hole,
        }

    def _patch(self, stream: torch.Generator) -> Tensor:
        """``(1, *outer)`` of a scan, with something to see in it."""
        share = float(torch.rand((), generator=stream))
        if self.scans is None or share < self.config.variety.population:
            volume = self._drawn_subject(stream)
        else:
            volume = self.scans.volumes[int(torch.multinomial(self._weights, 1, generator=stream))]
        for _ in range(TRIES):
            if self.config.variety.bend_mm:
                bend = self.config.variety.bend_mm
                patch = warped_patch(volume, self.outer, self.config.grid.spacing, bend, stream)
                if float((patch > SHOWN).float().mean()) >= LEAST_SHOWN:
                    break
                continue
            image = volume if volume.ndim == len(self.outer) + 1 else random_slice(volume, stream)
            if any(n < want for n, want in zip(image.shape[1:], self.outer, strict=True)):
                larger = [max(n, want) for n, want in zip(image.shape[1:], self.outer, strict=True)]
                image = fitted(image.float(), larger, "area")
            patch = image[random_window(image.shape[1:], self.outer, stream)]
            if float((patch > SHOWN).float().mean()) >= LEAST_SHOWN:
                break
        return patch.float()

    def _drawn_subject(self, stream: torch.Generator) -> Tensor:
        """A subject of the population, kept in memory."""
        index = int(torch.randint(self.config.subjects, (), generator=stream))
        if index not in self._kept:
            self._kept[index] = self._new_subject(index)
        return self._kept[index]

    def _new_subject(self, index: int) -> Tensor:
        return _subject(self.config, self.outer, derive_seed(self.config.seed, self.purpose, index), index % 2 == 1)

    def _varied(self, patch: Tensor, stream: torch.Generator) -> Tensor:
        """Axes exchanged and mirrored, intensities through a curve, lesions planted."""
        variety = self.config.variety
        patch = reoriented(patch, variety, stream)
        if float(torch.rand((), generator=stream)) < variety.contrast and self.config.scaling == "percentile":
            patch = _recoloured(patch, stream)
        if variety.lesions and float(torch.rand((), generator=stream)) < variety.lesions:
            patch = planted(patch, self.config.grid.spacing, SHOWN, stream)
        if variety.smooth and float(torch.rand((), generator=stream)) < variety.smooth:
            width = variety.smooth_mm * float(torch.rand((), generator=stream))
            patch = Blur(patch.shape[1:], max(width, 1e-3), self.config.grid.spacing).forward(patch[None])[0]
        if self.config.scaling == "percentile":
            patch = patch * math.exp(variety.gain * (2 * float(torch.rand((), generator=stream)) - 1))
        return patch


class _Each(Dataset[Any]):
    """``make(0)``, ``make(1)``, ..."""

    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self.make = make
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def _made_apart(make: Callable[[int], Any], count: int, config: RestorerConfig, what: str) -> dict[int, Any]:
    """``{index: make(index)}``, made by worker processes, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    loader: DataLoader[Any] = DataLoader(
        _Each(make, count), batch_size=None, num_workers=config.num_workers, generator=torch.Generator()
    )
    made = enumerate(track(loader, what, count, console=console, disable=not console.is_terminal))
    return {index: _copied(value) for index, value in made}


def _copied(value: Any) -> Any:
    """Out of the memory that is shared with the process that made it, which counts as an open file each."""
    return value.clone() if isinstance(value, Tensor) else {key: part.clone() for key, part in value.items()}


def _people(config: RestorerConfig, held_out: bool, limit: int | None = None) -> Scans | None:
    if config.data == POPULATION:
        return None
    cases = find_cases(Path(config.data), config.layout)
    taken = [case for case in cases if case.held_out(config.held_out_endings) == held_out]
    if not taken and not held_out:
        raise MedgenError(f"data '{config.data}': nobody is left after holding out {list(config.held_out_endings)}.")
    scans = Scans.read(config, taken[:limit]) if taken else None
    if scans is None or scans.volumes:
        return scans
    if held_out:
        return None
    raise MedgenError(
        f"data '{config.data}': every scan is smaller than half a patch of {list(config.grid.size)} voxels of "
        f"{config.grid.spacing[0]:g} mm. Set a smaller grid#size, or variety#bend_mm=0."
    )


def _subject(config: RestorerConfig, outer: Sequence[int], seed: int, from_label: bool) -> Tensor:
    """``(1, X, Y, Z)`` float16 of the population: its T1, or an image of random contrast of its labels."""
    from medgen.anatomy.attenuation import attenuation
    from medgen.anatomy.contrast import ContrastRanges, synthesize_contrast
    from medgen.anatomy.population import Population

    step = config.grid.spacing[0]
    size = [max(round(extent / step), n) for extent, n in zip(HEAD_MM, [*outer, outer[-1]], strict=False)]
    population = Population(**{"spacing": (step,) * 3, "size": size} | config.population)
    made = population.subject(seed)
    image: Tensor = made.image
    if config.scaling == "hounsfield":
        return to_model_unit(attenuation(made, derive_seed(seed, "attenuation")), "hounsfield").to(torch.float16)
    if from_label:
        ranges = ContrastRanges(**CLEAN, isotropic_mm=(step, step))
        image = synthesize_contrast(made.label, derive_seed(seed, "contrast"), ranges=ranges)
    image = torch.as_tensor(image.numpy())
    return to_model_unit(image, "percentile").to(torch.float16)


def random_slice(volume: Tensor, stream: torch.Generator) -> Tensor:
    """A random slice ``(1, ...)`` of a volume, across any axis."""
    axis = 1 + int(torch.randint(3, (), generator=stream))
    return volume.select(axis, int(torch.randint(volume.shape[axis], (), generator=stream)))


def reoriented(patch: Tensor, variety: Variety, stream: torch.Generator) -> Tensor:
    """With ``turn`` mirrored along random axes, and axes of equal length exchanged; else as ``mirror`` says."""
    if not variety.turn:
        return patch.flip(1) if variety.mirror and int(torch.randint(2, (), generator=stream)) else patch
    dims = patch.ndim - 1
    flips = [1 + a for a in range(dims) if int(torch.randint(2, (), generator=stream))]
    order = (1 + torch.randperm(dims, generator=stream)).tolist()
    patch = patch.flip(flips) if flips else patch
    return patch.permute(0, *order) if len(set(patch.shape[1:])) == 1 else patch


def _recoloured(patch: Tensor, stream: torch.Generator) -> Tensor:
    """Intensities through a random curve of straight pieces that leaves air at 0; another contrast."""
    heights = torch.rand(KNOTS, generator=stream)
    heights = torch.cat([torch.zeros(1), heights / heights.max()])
    place = patch.clamp(0, 1.5) * (KNOTS / 1.25)
    low = place.floor().clamp(max=KNOTS - 1).long()
    return torch.lerp(heights[low], heights[low + 1], (place - low).clamp(max=1.0))


def degraded(clean: Tensor, config: RestorerConfig, seed: int, stream: torch.Generator) -> tuple[Tensor, float]:
    """One of the alternatives of a configuration, on a patch ``(1, *size)``; and its strength.

    Args:
        clean: in the model's unit.
        config: of the run.
        seed: of the noise.
        stream: of the parameters.
    """
    chosen = config.degradations[int(torch.randint(len(config.degradations), (), generator=stream))]
    in_hu = config.scaling == "hounsfield"  # degradations of CT work in HU, those of MR in the model's unit
    scale, low = restorer_unit(clean, config.scaling) if in_hu else (1.0, 0.0)
    image, strength = clean[None] * scale + low, 0.0
    for number, (name, ranges) in enumerate(chosen.items()):
        top = bright_end(image) if in_hu else 1.0
        drawn = draw_degradation(name, clean.shape[1:], config.grid.spacing, top, stream, ranges)
        before, image = image, drawn(image, [torch.Generator().manual_seed(derive_seed(seed, "noise", number))])
        own = float((image - before).std()) if drawn.noise_only else strength_of(drawn.chain)
        strength = own or strength
    return ((image - low) / scale)[0].float(), strength / scale


def strength_of(chain: Chain) -> float:
    """What a restorer is told of a degradation: noise over the bright end, or slice spacing in voxels; else 0."""
    for operator in chain.operators:
        if isinstance(operator, ThroughPlane):
            return operator.slice_spacing_mm / operator.spacing_mm
    noise = chain.noise
    return noise.std if isinstance(noise, GaussianNoise | RicianNoise) else 0.0
