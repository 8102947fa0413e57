"""Which cases of a data set a configuration can be trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from medgen.checks import MedgenError
from medgen.io.datasets import Case, ImageFile, find_cases
from medgen.io.datasets.case import stem
from medgen.trainers.config import TrainConfig
from medgen.trainers.subjects import image_names, image_of, needs_label, unpaired


def training_cases(config: TrainConfig) -> list[Case]:
    """All cases at ``config.data`` that can be trained on, held-out people included."""
    if config.slices is not None and len(config.grid.size) != 2:
        raise MedgenError(f"slices: grid.size must have 2 axes. Got {list(config.grid.size)}. Leave slices out.")
    cases = find_cases(Path(config.data), config.layout)
    usable = [case for case in cases if _usable(config, case)]
    if not usable or not any(_has_images(config, case) for case in usable):
        found = sorted({name for case in cases for name in case.images})
        wanted = [*image_names(config), *config.source_modalities]
        raise MedgenError(
            f"data '{config.data}': no case has the images {', '.join(dict.fromkeys(wanted))}. "
            f"Found {', '.join(found)}. Set modality, channels or source_modalities."
        )
    if len(usable) < len(cases):
        text = f"data '{config.data}': {len(cases) - len(usable)} of {len(cases)} cases lack an image and are left out."
        warnings.warn(text, stacklevel=4)
    if needs_label(config):
        missing = next((case for case in usable if case.label is None), None)
        if missing is not None:
            name = next(iter(missing.images.values())).path.name
            raise MedgenError(
                f"data '{config.data}': no label found for '{name}'. Task '{config.task}' needs one."
                if config.label_channels
                else f"data '{config.data}': no label found for '{name}'. What is measured needs one."
            )
    return usable


def _usable(config: TrainConfig, case: Case) -> bool:
    """Whether a case has the images of the model, and, where images are given, one of those."""
    has = _has_images(config, case)
    given = [image_of(config, case, name) is not None for name in config.source_modalities]
    if unpaired(config):
        return has or all(given)
    return has and (any(given) or not given)


def _has_images(config: TrainConfig, case: Case) -> bool:
    return all(image_of(config, case, name) is not None for name in image_names(config))


def as_case(image: Path, label: Path | None) -> Case:
    return Case(stem(image), {"image": ImageFile(image)}, None if label is None else ImageFile(label))


def is_held_out(image: Path, endings: Sequence[int]) -> bool:
    """Whether the subject number in a file name ends in one of ``endings`` (held out by person).

    Example:
        >>> is_held_out(Path("hippocampus_011.nii.gz"), (1, 6)), is_held_out(Path("hippocampus_014.nii.gz"), (1, 6))
        (True, False)
        >>> is_held_out(Path("sub-0016_ses-02_T1w.nii.gz"), (1, 6)), is_held_out(Path("case16_0000.nii.gz"), (1, 6))
        (True, True)

    Raises:
        MedgenError: people are to be held out and the name has no number.
    """
    return Case(image.name, {}).held_out(endings)


def find_pairs(path: Path, modality: str = "T1w") -> list[tuple[Path, Path | None]]:
    """Image and label files at ``path`` in sorted order, of whatever layout; see :func:`medgen.io.datasets.find_cases`.

    Args:
        path: of the data.
        modality: of the images, where they have names.

    Raises:
        MedgenError: no known layout.
    """
    found = [(case.image(modality), case.label) for case in find_cases(path)]
    return [(image.path, None if label is None else label.path) for image, label in found if image is not None]
