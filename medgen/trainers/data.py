"""Training items: each one a function of its seed alone, whatever worker makes it and in whatever order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.intensity import IntensityWindow
from medgen.io.datasets import Case
from medgen.io.datasets.case import Attribute
from medgen.models.controls import Control
from medgen.trainers.augmentation import (
    DRAWS,
    SHADING,
    foreground_window,
    moved,
    random_holes,
    random_window,
    reshaded,
    shaded_channels,
    stretch,
)
from medgen.trainers.cases import as_case, find_pairs, is_held_out, training_cases
from medgen.trainers.conditions import Conditions, Encoder, dropped
from medgen.trainers.config import POPULATION, TrainConfig
from medgen.trainers.gridding import to_grid
from medgen.trainers.measured import Attributes, measure_label
from medgen.trainers.restorer_config import RestorerConfig
from medgen.trainers.subjects import SHOWN, SlicedSubject, Subject, read_case, unpaired, warn_mirrored

if TYPE_CHECKING:
    from medgen.trainers.noisy_scans import NoisyScanSource
    from medgen.trainers.scans import ScanSource

__all__ = [
    "BatchesFrom", "FileSource", "Item", "Items", "PopulationSource", "Source", "find_pairs", "is_held_out",
    "make_source", "make_validation_source", "measure_controls", "random_holes", "random_window", "reshaded", "to_grid",
]  # fmt: skip

Item = dict[str, Tensor]


class Source(Protocol):
    """Where training subjects come from."""

    people: int

    def item(self, seed: int) -> Item:
        """What a random subject and patch of it show.

        ``image`` ``(C, *patch)`` in 0..1 (not where it is only given: task ``segment`` without one) and ``label``
        ``(1, *patch)`` int16; where the configuration asks for them ``source`` ``(S, *patch)`` in 0..1, ``present``
        ``(S,)`` float 0 or 1, and ``classes`` ``(Kc,)`` int64, ``numbers`` ``(Kn,)`` and ``text`` ``(L, E)`` float32,
        all of them given that are known. For task ``inpaint`` the image is not shaded yet: :class:`Items` does it.
        """


class PopulationSource:
    """Patches of a fixed number of subjects of the bundled population, drawn once and kept in memory as 8 bit.

    Args:
        config: of the run.
        purpose: keeps the subjects of training and of validation apart.
    """

    def __init__(self, config: TrainConfig, purpose: str = "subject") -> None:
        from medgen.anatomy.population import Population

        self.config = config
        self.purpose = purpose
        self.population = Population(**{"spacing": config.grid.spacing, "size": config.grid.size} | config.population)
        self.patch = config.patch_size or config.grid.size
        self.people = 1
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def subject(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 and label int16 ``(1, *size)`` of one subject."""
        if index not in self._kept:
            made = self.population.subject(derive_seed(self.config.seed, self.purpose, index))
            image = (made.image.as_tensor() * 255).round().clamp(0, 255).to(torch.uint8)
            self._kept[index] = image, made.label.as_tensor()
        return self._kept[index]

    def item(self, seed: int) -> Item:
        stream = torch.Generator().manual_seed(seed)
        image, label = self.subject(int(torch.randint(self.config.subjects, (), generator=stream)))
        window = random_window(image.shape[1:], self.patch, stream)
        return {"image": image[window].float() / 255, "label": label[window]}


class FileSource:
    """Subjects from files, kept in memory; each item is moved anew.

    Args:
        config: of the run.
        members: on the model's grid.
        people: how many persons they are; one each by default.
        conditions: from attributes to controls; those of ``members`` by default.
        encoder: of texts; needed with a control of kind ``text`` where ``conditions`` are not given.
        others: attributes of people who are not read, for the names of classes.

    Attributes:
        controls: what a model of these subjects declares.
    """

    def __init__(
        self,
        config: TrainConfig,
        members: Sequence[Subject],
        people: int | None = None,
        conditions: Conditions | None = None,
        encoder: Encoder | None = None,
        others: Sequence[Mapping[str, Attribute]] = (),
    ) -> None:
        self.config = config
        self.patch = config.patch_size or config.grid.size
        self.people = len(members) if people is None else people
        self.members = members
        if conditions is None and config.controls:
            records = [record for member in members for record in member.records(config)]
            prepare = config.num_workers > 0
            conditions = Conditions(config.controls, config.measured, records, encoder, prepare, others)
        self.conditions = conditions
        self.controls: tuple[Control, ...] = conditions.controls if conditions is not None else ()

    @classmethod
    def read(
        cls,
        config: TrainConfig,
        cases: Sequence[Case | tuple[Path, Path | None]],
        conditions: Conditions | None = None,
        encoder: Encoder | None = None,
        others: Sequence[Mapping[str, Attribute]] = (),
    ) -> FileSource:
        """Read subjects and bring them to the model's grid.

        Args:
            config: of the run.
            cases: or (image, label or None) paths.
            conditions, encoder, others: see the class.

        Raises:
            MedgenError: a file that cannot be read, or see :func:`~medgen.trainers.subjects.check_pair`.
        """
        whole = [case if isinstance(case, Case) else as_case(*case) for case in cases]
        people = len({case.person for case in whole})
        members = _read_all(config, whole)
        warn_mirrored(config, members)
        return cls(config, members, people, conditions, encoder, others)

    def tell_as(self, controls: Sequence[Control]) -> None:
        """Say what items show in the terms of a model: its classes in its order, its mean and deviation of numbers.

        Args:
            controls: of the model that is trained, whose figures may come from another run or a first stage.

        Raises:
            MedgenError: the configuration has other controls.
        """
        own = [(control.name, control.kind, set(control.values)) for control in self.controls]
        wanted = [(control.name, control.kind, set(control.values)) for control in controls]
        if self.conditions is None and controls:
            raise MedgenError(
                f"field 'controls' is empty, but the model listens to {', '.join(c.name for c in controls)}. Add them."
            )
        if own != wanted:
            raise MedgenError(f"field 'controls' must be those of the model, {wanted}. Got {own}. Make them equal.")
        if self.conditions is not None:
            self.controls = self.conditions.controls = tuple(controls)

    @property
    def subjects(self) -> list[tuple[Tensor, Tensor]]:
        """Image ``(C, *grid.size)`` and label of each subject that has both on the grid."""
        return [(member.image, member.label) for member in self.members if member.image is not None]

    def item(self, seed: int) -> Item:
        if not unpaired(self.config):
            return self._item(seed, self.members)
        item = self._item(seed, [m for m in self.members if m.image is not None])
        other = self._item(derive_seed(seed, "unpaired"), [m for m in self.members if bool(m.present.all())])
        return {**item, "source": other["source"], "present": other["present"]}

    def _item(self, seed: int, members: Sequence[Subject]) -> Item:
        """The item of one of these subjects."""
        stream = torch.Generator().manual_seed(seed)
        member = members[int(torch.randint(len(members), (), generator=stream))]
        draws = (torch.rand(DRAWS, generator=stream, dtype=torch.float64) * 2 - 1).tolist()
        subject, limits, extra = member, self.config.augmentation, Attributes()
        if isinstance(member, SlicedSubject):
            subject, extra = member.slice(self.config, torch.Generator().manual_seed(derive_seed(seed, "slice")))
            if extra["plane"] == "sagittal":  # its first axis does not lead from left to right
                limits = dataclasses.replace(limits, flip=0.0)
        stack, label = moved(subject.stack, subject.label, self.config.grid.spacing, limits, draws)
        count = 0 if subject.image is None else len(subject.image)
        image, source = self._shaded(stack[:count], stack[count:], seed, stream, draws)
        window = self._window(stack, stream)
        item = {"label": label[window]}
        if count:
            item["image"] = image[window]
        if self.config.source_modalities:
            item |= {"source": source[window], "present": subject.present.clone()}
        if self.conditions is not None:
            record = {**subject.attributes, **extra, **self._measured(member, label, draws)}
            item |= self.conditions.tensors(record, seed)
        return item

    def _shaded(
        self, image: Tensor, source: Tensor, seed: int, stream: torch.Generator, draws: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Image and given images with new intensities: what is to be made from given images keeps its own."""
        config = self.config
        streams = [
            torch.Generator().manual_seed(derive_seed(seed, "shade", i)) for i in range(len(image) + len(source))
        ]
        if len(source):
            draw = (torch.rand(4, generator=streams[0], dtype=torch.float64) * 2 - 1).tolist()
            return image, shaded_channels(
                source, config.grid.spacing, config.augmentation, streams[0], draw, streams[1 : len(source)]
            )
        if config.task == "inpaint" or not len(image):
            return image, source
        settings = config.grid.spacing, config.augmentation
        done = [reshaded(image[:1], *settings, stream, draws[SHADING:])]
        if len(image) > 1:
            draw = (torch.rand(4, generator=streams[1], dtype=torch.float64) * 2 - 1).tolist()
            done.append(shaded_channels(image[1:], *settings, streams[1], draw, streams[2:]))
        return torch.cat(done), source

    def _window(self, stack: Tensor, stream: torch.Generator) -> tuple[slice, ...]:
        """A random patch; of slices, one that shows the subject."""
        if self.config.slices is not None and self.config.slices.foreground:
            return foreground_window(stack.amax(0, keepdim=True) > SHOWN, self.patch, stream)
        return random_window(stack.shape[1:], self.patch, stream)

    def _measured(self, member: Subject, label: Tensor, draws: Sequence[float]) -> Attributes:
        """What is measured on the moved label of the whole subject or slice."""
        volumes = None
        if isinstance(member, SlicedSubject):
            factor = stretch(self.config.augmentation, draws, label.ndim - 1)
            volumes = {name: volume * factor for name, volume in member.volumes.items()}
        return measure_label(label, self.config.grid.spacing, self.config.measured, volumes)


def _read_all(config: TrainConfig, cases: Sequence[Case]) -> list[Subject]:
    """Subjects in the order of their cases, read by ``num_workers`` threads."""
    if not config.num_workers:
        return [read_case(config, case) for case in cases]
    with ThreadPoolExecutor(config.num_workers) as pool:
        return list(pool.map(lambda case: read_case(config, case), cases))


class Items(Dataset[Item]):
    """Item ``i`` of a run: the subject, patch and hole that ``(seed, i)`` draws.

    In training, given images and controls are left out at random.

    Args:
        source: of subjects.
        config: of the run.
        purpose: keeps training and validation draws apart.
    """

    def __init__(self, source: Source, config: TrainConfig, purpose: str = "train") -> None:
        self.source = source
        self.config = config
        self.purpose = purpose

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, index: int) -> Item:
        seed = derive_seed(self.config.seed, self.purpose, index)
        item = self.source.item(seed)
        item["index"] = torch.tensor(index)
        if self.purpose == "train":
            self._leave_out(item, seed)
        if self.config.task == "inpaint":
            stream = torch.Generator().manual_seed(derive_seed(seed, "shade"))
            draws = (torch.rand(8, generator=stream, dtype=torch.float64) * 2 - 1).tolist()
            size, spacing = item["image"].shape[1:], self.config.grid.spacing
            item["image"] = reshaded(item["image"], spacing, self.config.augmentation, stream, draws)
            diameters, most = self.config.hole_diameter_mm, self.config.holes
            hole = random_holes(size, spacing, diameters, most, derive_seed(seed, "hole"))
            item["inpaint_mask"] = hole
            item["image"] = _known_window(item["image"], hole)
        return item

    def _leave_out(self, item: Item, seed: int) -> None:
        """Drop given images and controls of an item, changing it in place."""
        stream = torch.Generator().manual_seed(derive_seed(seed, "left out"))
        if "present" in item and self.config.source_dropout:
            leave_out_sources(item, self.config.source_dropout, stream)
        controls: tuple[Control, ...] = getattr(self.source, "controls", ())
        if controls and self.config.control_dropout:
            dropped(item, controls, self.config.control_dropout, stream)


def _known_window(image: Tensor, hole: Tensor) -> Tensor:
    """Each channel ``(C, *spatial)`` in the window of its intensities outside the hole."""
    known = (hole == 0)[0]
    return torch.stack([IntensityWindow.of(channel[known]).forward(channel) for channel in image])


def leave_out_sources(item: Item, share: float, stream: torch.Generator) -> None:
    """Blank each given image with probability ``share``; one that is there stays.

    Args:
        item: with ``source`` and ``present``; changed in place.
        share: probability.
        stream: of the draws.
    """
    present = item["present"]
    draws = torch.rand(len(present), generator=stream, dtype=torch.float64)
    kept = (present > 0) & (draws >= share)
    if not bool(kept.any()) and bool((present > 0).any()):
        kept[int(torch.where(present > 0, draws, -1.0).argmax())] = True
    item["present"] = kept.float()
    item["source"] = item["source"] * item["present"].reshape(-1, *[1] * (item["source"].ndim - 1))


@dataclass(frozen=True)
class BatchesFrom:
    """Batch sampler of a run that starts at step ``start``: batch ``k`` holds items ``k * size .. (k + 1) * size``."""

    start: int
    stop: int
    size: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            yield list(range(step * self.size, (step + 1) * self.size))

    def __len__(self) -> int:
        return self.stop - self.start


def make_source(config: TrainConfig, limit: int | None = None, encoder: Encoder | None = None) -> Source:
    """The source that ``config.data`` names.

    Args:
        config: of the run.
        limit: use only the first subjects (files only).
        encoder: of texts; by default the one that a control of kind ``text`` names.

    Raises:
        MedgenError: nothing of a known layout at that path, no label where the task needs one, or an attribute that a
            control needs and nobody has.
    """
    _check_measured(config)
    if isinstance(config, RestorerConfig):
        return _restorer_source(config).training(config, limit)
    if config.data == POPULATION:
        if config.controls or config.source_modalities or config.slices:
            raise MedgenError(
                f"data '{POPULATION}': controls, source_modalities and slices need data from files. Set data=PATH."
            )
        return PopulationSource(config)
    cases = [case for case in training_cases(config) if not case.held_out(config.held_out_endings)]
    if limit is not None:
        cases = sorted(cases, key=lambda case: _unknown(config, case))  # a stable sort
    if not cases:
        raise MedgenError(
            f"data '{config.data}': no image is left after holding out endings {config.held_out_endings}."
        )
    others = [case.attributes for case in cases]
    return FileSource.read(config, cases[:limit], encoder=encoder or _encoder(config), others=others)


def _restorer_source(config: RestorerConfig) -> type[ScanSource] | type[NoisyScanSource]:
    from medgen.trainers.noisy_scans import NoisyScanSource
    from medgen.trainers.scans import ScanSource

    return ScanSource if config.learns_from == "pairs" else NoisyScanSource


def make_validation_source(config: TrainConfig, training: Source) -> Source:
    """Subjects that are not trained on: others of the population, or the first person held out.

    Args:
        config: of the run.
        training: its source, which is the answer where nobody is held out.
    """
    if isinstance(config, RestorerConfig):
        return _restorer_source(config).validation(config)
    if config.data == POPULATION:
        return PopulationSource(dataclasses.replace(config, subjects=1), "validation")
    cases = [case for case in training_cases(config) if case.held_out(config.held_out_endings)]
    conditions = training.conditions if isinstance(training, FileSource) else None
    return FileSource.read(config, cases[:1], conditions) if cases else training


def measure_controls(config: TrainConfig, source: Source) -> tuple[Control, ...]:
    """The controls that a model declares, with the distribution of their values over the training subjects.

    Args:
        config: of the run.
        source: of training.
    """
    return source.controls if isinstance(source, FileSource) and config.controls else ()


def _unknown(config: TrainConfig, case: Case) -> int:
    """How many of the attributes that controls need are not known of a case from its data set."""
    needed = {control.attribute for control in config.controls if control.kind != "text"}
    return len(needed - set(config.measured) - set(case.attributes))


def _encoder(config: TrainConfig) -> Encoder | None:
    """The text encoder that the configuration names."""
    named = [control.encoder for control in config.controls if control.kind == "text"]
    if not named:
        return None
    from medgen.models.text import DEFAULT_ENCODER, TextEncoder

    return TextEncoder(named[0] or DEFAULT_ENCODER)


def _check_measured(config: TrainConfig) -> None:
    """Refuse what cannot be measured on the grid."""
    flat = len(config.grid.size) == 2
    for name, entry in config.measured.items():
        if entry.label_area is not None and not flat:
            raise MedgenError(f"measured '{name}': label_area is for grids of 2 axes. Use label_volume.")
        if entry.label_volume is not None and flat and config.slices is None:
            raise MedgenError(f"measured '{name}': label_volume needs volumes. Use label_area, or set slices.")
