"""What the training of a regression restorer is."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.domain import Domain
from medgen.models.fields import Checked, checked, choice, integer, nested, network_form, number, optional, refuse
from medgen.models.restorer_spec import LEARNS_FROM, PACKINGS, RESTORED, SCALINGS, degradations_field, truth
from medgen.trainers.config import POPULATION, TrainConfig
from medgen.trainers.self_supervised import NOISE

__all__ = ["RestorerConfig", "Variety"]


@dataclass(frozen=True)
class Variety(Checked):
    """How training scans are varied before they are degraded; but for ``bend_mm`` nothing resamples: it teaches blur.

    Args:
        population: share of items that are drawn from labels (:class:`medgen.anatomy.Population`): half of them its
            T1 image, half of them an image of random contrast.
        contrast: share of scans whose intensities go through a random curve: other contrasts of the same anatomy.
        turn: whether axes are exchanged and mirrored at random, so that no direction of the scanner is learnt.
        mirror: whether, without ``turn``, left and right are exchanged at random.
        bend_mm: how much scans are turned, stretched and bent, see :mod:`medgen.trainers.warping`. They are
            interpolated then, which suits tasks that need no detail. 3D only.
        lesions: share of scans with small lesions planted, see :mod:`medgen.trainers.lesions`.
        smooth: share of scans that are blurred a little: averaged and interpolated images are smoother than scans.
        smooth_mm: largest full width at half maximum of that blur.
        gain: largest |ln| of a factor on the intensities, as the bright end of a noisy scan is not that of a clean one.
    """

    population: float = checked(number(0, 1), default=0.0)
    contrast: float = checked(number(0, 1), default=0.3)
    turn: bool = checked(truth, default=True)
    mirror: bool = checked(truth, default=False)
    bend_mm: float = checked(number(0, 20), default=0.0)
    lesions: float = checked(number(0, 1), default=0.0)
    smooth: float = checked(number(0, 1), default=0.0)
    smooth_mm: float = checked(number(0, 20), default=2.5)
    gain: float = checked(number(0, 3), default=0.15)


@dataclass(frozen=True, kw_only=True)
class RestorerConfig(TrainConfig):
    """Training of a regression restorer on simulated pairs.

    The data may be of any layout: every image of every case is a scan to train on, whatever its modality.

    Args:
        net: regression network; its axes and channels follow from the rest.
        restores: see :class:`~medgen.models.restorer_spec.RestorerSpec`, as are ``degradations``, ``packing``,
            ``variance`` and ``scaling``.
        degradations: a list of alternatives ``{name: ranges}``, drawn with equal chances, as
            :class:`medgen.transforms.RandDegrade` takes them; none for ``inpaint``, whose ``holes`` are drawn.
        learns_from: ``pairs`` of a clean scan and what was made of it, or, to denoise where there is nothing clean, the
            noisy scans alone, by ``noise2void`` or ``sure``; see :mod:`medgen.trainers.self_supervised`. Their noise
            must be independent from voxel to voxel, its level is estimated; nothing may be simulated or recoloured.
        noise: of noisy scans that are learnt from: ``rician`` (magnitudes) or ``gaussian``.
        pairs: how many pairs are simulated, once, and kept in memory, for degradations that take long; an item is then
            one of them, mirrored at random. 0: each item is simulated anew.
        margin: voxels around a patch that are degraded with it and then cut off.
        variety: see :class:`Variety`.
        domain: the scans that the model is for, see :class:`~medgen.models.domain.Domain`; others are refused.

    The rest: :class:`~medgen.trainers.config.TrainConfig`; ``grid.size`` is the patch.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(choice(lambda: ("restorer",)), default="restorer")
    task: str = checked(choice(lambda: ("restore",)), default="restore")
    net: dict[str, Any] = checked(network_form)
    restores: str = checked(choice(lambda: RESTORED))
    degradations: tuple[dict[str, dict[str, Any]], ...] = checked(degradations_field, default=())
    packing: str = checked(choice(lambda: PACKINGS), default="haar")
    variance: bool = checked(truth, default=True)
    scaling: str = checked(choice(lambda: SCALINGS), default="percentile")
    learns_from: str = checked(choice(lambda: LEARNS_FROM), default="pairs")
    noise: str = checked(choice(lambda: NOISE), default="rician")
    pairs: int = checked(integer(0, 10**6), default=0)
    margin: int = checked(integer(0, 256), default=8)
    variety: Variety = checked(nested(lambda: Variety), default_factory=Variety)
    domain: Domain | None = checked(optional(nested(lambda: Domain)), default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variety.bend_mm and len(self.grid.size) != 3:
            raise refuse("TrainConfig", "variety.bend_mm", "0 on a grid of two axes", self.variety.bend_mm)
        if self.learns_from != "pairs":
            self._check_noisy()
        elif (not self.degradations) != (self.restores == "inpaint"):
            wanted = "empty for inpaint, whose holes are drawn" if self.restores == "inpaint" else "not empty"
            raise refuse("TrainConfig", "degradations", wanted, list(self.degradations))
        if self.patch_size is not None or self.controls or self.label_channels:
            raise MedgenError(
                "TrainConfig: patch_size, controls and label_channels are not for restorers. Set grid.size to the "
                "patch, and leave the others out."
            )
        if self.data == POPULATION and not self.variety.population:
            raise refuse("TrainConfig", "variety.population", f"above 0 with data '{POPULATION}'", 0.0)

    def _check_noisy(self) -> None:
        """Nothing that would need clean scans, or make another noise of theirs."""
        changes = self.variety
        wanted = {
            "restores": (self.restores, "denoise"),
            "degradations": (list(self.degradations), []),
            "variance": (self.variance, False),
            "pairs": (self.pairs, 0),
            "margin": (self.margin, 0),
            "variety.population": (changes.population, 0),
            "variety.contrast": (changes.contrast, 0),
            "variety.lesions": (changes.lesions, 0),
            "variety.smooth": (changes.smooth, 0),
            "variety.bend_mm": (changes.bend_mm, 0),
            "noise": (self.noise, "gaussian" if self.scaling == "hounsfield" else self.noise),
        }
        for name, (found, only) in wanted.items():
            if found != only:
                raise refuse("TrainConfig", name, f"{only!r} with learns_from '{self.learns_from}'", found)
        if self.data == POPULATION:
            raise refuse("TrainConfig", "data", f"noisy scans with learns_from '{self.learns_from}'", self.data)
