"""Items of a denoiser that learns from noisy scans: patches as they were measured, with their noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError
from medgen.geometry import spacing_of
from medgen.io.datasets import Case, find_cases
from medgen.operators.noise_level import estimate_noise
from medgen.restoration.restorer_tasks import SLICED
from medgen.trainers.augmentation import random_window
from medgen.trainers.gridding import fitted
from medgen.trainers.restorer_config import RestorerConfig
from medgen.trainers.scans import SHOWN, random_slice, reoriented, to_model_unit
from medgen.trainers.self_supervised import blind_spots, probe

__all__ = ["NoisyScan", "NoisyScanSource", "read_noisy"]

Item = dict[str, Tensor]
LEAST_LEVEL = 1e-3  # of the bright end; below it there is nothing to learn
LEAST_SHOWN = 0.25
ABOVE_NOISE = 3.0
TRIES = 8
OTHER_SPACING = 1.25


@dataclass(frozen=True)
class NoisyScan:
    """A scan as it was measured.

    Attributes:
        values: ``(1, *size)`` float32, in the model's unit.
        level: of its noise, same unit.
        across: axis of ``values`` that its slices lie across, as :func:`~medgen.restoration.restore.restore` takes
            them; None: any.
    """

    values: Tensor
    level: float
    across: int | None = None


def read_noisy(config: RestorerConfig, image: MetaTensor, name: str) -> NoisyScan:
    """An image on its own voxels: resampling would tie the noise of neighbours together.

    Args:
        config: of the run.
        image: ``(1, *size)``, three axes, or two of a picture.
        name: for errors.

    Raises:
        MedgenError: voxels of another size than ``grid.spacing``, or no noise.
    """
    values, across = to_model_unit(image.as_tensor(), config.scaling), None
    if values.ndim == 4:
        steps = spacing_of(image.affine.numpy()).tolist()
        if len(config.grid.size) == 2 and max(steps) > SLICED * min(steps):
            across = 1 + steps.index(max(steps))
        _check_spacing(config, [step for axis, step in enumerate(steps, 1) if axis != across], name)
    level = estimate_noise(values)
    if level < LEAST_LEVEL:
        raise MedgenError(
            f"learns_from '{config.learns_from}': no noise was found in '{name}' ({level:.2g} of its bright end). "
            "Leave it out, or set learns_from: pairs."
        )
    return NoisyScan(values, level, across)


def _check_spacing(config: RestorerConfig, found: Sequence[float], name: str) -> None:
    """Voxels are those of the grid; all axes of voxels as long as wide are, whatever the grid's number of axes."""
    wanted = config.grid.spacing if len(found) == len(config.grid.spacing) else config.grid.spacing[:1] * len(found)
    if any(abs(math.log(a / b)) > math.log(OTHER_SPACING) for a, b in zip(found, wanted, strict=True)):
        raise MedgenError(
            f"learns_from '{config.learns_from}': scans are not resampled, so that the voxels of '{name}' must be "
            f"those of grid.spacing, {list(config.grid.spacing)} mm. Got {[round(step, 3) for step in found]}. Change "
            "grid.spacing, or train on scans of one kind."
        )


class NoisyScanSource:
    """Random patches of random scans, mirrored and turned.

    Args:
        config: of the run.
        scans: one or more.
        people: how many persons they are of.
        shows: whether items are to be looked at: nothing is hidden in them.
    """

    def __init__(self, config: RestorerConfig, scans: Sequence[NoisyScan], people: int, shows: bool = False) -> None:
        self.config = config
        self.scans = list(scans)
        self.people = people
        self.shows = shows
        self._weights = torch.tensor([float(scan.values.numel()) for scan in self.scans])

    @classmethod
    def training(cls, config: RestorerConfig, limit: int | None = None) -> NoisyScanSource:
        """Everybody who is not held out, at most ``limit`` cases."""
        cases = find_cases(Path(config.data), config.layout)
        taken = [case for case in cases if not case.held_out(config.held_out_endings)]
        if not taken:
            held_out = list(config.held_out_endings)
            raise MedgenError(f"data '{config.data}': nobody is left after holding out {held_out}.")
        return cls._read(config, taken[:limit])

    @classmethod
    def validation(cls, config: RestorerConfig) -> NoisyScanSource:
        """The first person who is held out, or, if nobody is, who is trained on; nothing is hidden."""
        cases = find_cases(Path(config.data), config.layout)
        held_out = [case for case in cases if case.held_out(config.held_out_endings)]
        return cls._read(config, (held_out or cases)[:1], shows=True)

    @classmethod
    def _read(cls, config: RestorerConfig, taken: Sequence[Case], shows: bool = False) -> NoisyScanSource:
        files = [file for case in taken for file in case.images.values()]
        scans = [read_noisy(config, file.load(), file.path.name) for file in files]
        return cls(config, scans, len({case.person for case in taken}), shows)

    def item(self, seed: int) -> Item:
        """``image`` (noisy), ``input`` ``(1, *patch)`` and ``strength`` ``()``.

        For ``noise2void`` the blind spots of ``input`` are 1 in ``blind``; for ``sure`` there is a ``probe``.
        """
        stream = torch.Generator().manual_seed(seed)
        scan = self.scans[int(torch.multinomial(self._weights, 1, generator=stream))]
        patch = self._patch(scan, stream)
        patch = reoriented(patch, self.config.variety, stream)
        gain = 1.0
        if self.config.scaling == "percentile":
            gain = math.exp(self.config.variety.gain * (2 * float(torch.rand((), generator=stream)) - 1))
        patch = patch * gain
        item = {"image": patch, "input": patch, "strength": torch.tensor(scan.level * gain)}
        if self.shows:
            return item
        if self.config.learns_from == "sure":
            return item | {"probe": probe(patch.shape, stream)}
        blind, mask = blind_spots(patch, stream)
        return item | {"input": blind, "blind": mask}

    def _patch(self, scan: NoisyScan, stream: torch.Generator) -> Tensor:
        """``(1, *patch)`` of a scan, with more to see in it than noise; what lies beyond a smaller scan is 0."""
        size, least = self.config.grid.size, max(SHOWN, ABOVE_NOISE * scan.level)
        for _ in range(TRIES):
            image = _slice(scan, stream) if scan.values.ndim > len(size) + 1 else scan.values
            larger = [max(n, want) for n, want in zip(image.shape[1:], size, strict=True)]
            image = fitted(image, larger, "nearest")
            patch = image[random_window(image.shape[1:], size, stream)]
            if float((patch > least).float().mean()) >= LEAST_SHOWN:
                break
        return patch.float()


def _slice(scan: NoisyScan, stream: torch.Generator) -> Tensor:
    """``(1, ...)``, one of those that lie in the scan, or where all axes are alike any."""
    if scan.across is None:
        return random_slice(scan.values, stream)
    return scan.values.select(scan.across, int(torch.randint(scan.values.shape[scan.across], (), generator=stream)))
