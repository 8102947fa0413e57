"""Images of one person on the command line: ``T1w=FILE T2w=FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medgen.checks import MedgenError

__all__ = ["images_by_modality"]


def images_by_modality(arguments: Sequence[str], modalities: Sequence[str]) -> dict[str, Path]:
    """File or folder by modality.

    Args:
        arguments: ``NAME=PATH``; of a model that takes one modality, ``PATH`` alone.
        modalities: what the model takes.

    Raises:
        MedgenError: nothing given, an unknown or repeated modality, or a path without a name.

    Example:
        >>> images_by_modality(["T1w=a.nii.gz"], ["T1w", "T2w"])
        {'T1w': PosixPath('a.nii.gz')}
    """
    found: dict[str, Path] = {}
    known = ", ".join(modalities)
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or name not in modalities:
            if len(modalities) != 1 or (sign and not Path(argument).exists()):
                raise MedgenError(f"image '{argument}' must read MODALITY=PATH, the modality one of {known}. Name it.")
            name, path = modalities[0], argument
        if name in found:
            raise MedgenError(f"modality '{name}' is given twice. Give one image of each.")
        found[name] = Path(path)
    if not found:
        raise MedgenError(f"no image is given. Give at least one of {known} as MODALITY=PATH.")
    return found
