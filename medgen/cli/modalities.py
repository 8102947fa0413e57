"""Images of one person on the command line: ``T1w=FILE T2w=FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medgen.checks import MedgenError, nearest

__all__ = ["images_by_modality"]


def images_by_modality(arguments: Sequence[str], modalities: Sequence[str], model: str) -> dict[str, Path]:
    """File or folder by modality.

    Args:
        arguments: ``NAME=PATH``; of a model that takes one modality, ``PATH`` alone.
        modalities: what the model takes.
        model: its name, for errors.

    Raises:
        MedgenError: nothing given, an unknown or repeated modality, or a path without a name.

    Example:
        >>> images_by_modality(["T1w=a.nii.gz"], ["T1w", "T2w"], "flair")
        {'T1w': PosixPath('a.nii.gz')}
    """
    found: dict[str, Path] = {}
    takes = f"Model '{model}' takes {', '.join(f'{name}=PATH' for name in modalities)}."
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if name not in modalities and len(modalities) == 1 and (not sign or Path(argument).exists()):
            name, sign, path = modalities[0], "=", argument
        if not sign:
            raise MedgenError(f"image '{argument}' must read MODALITY=PATH. {takes}")
        if name not in modalities:
            raise MedgenError(f"modality '{name}' of '{argument}' is unknown.{nearest(name, modalities)} {takes}")
        if not path:
            raise MedgenError(f"image '{argument}' names no file. {takes}")
        if name in found:
            raise MedgenError(f"modality '{name}' is given twice. Give one image of each.")
        found[name] = Path(path)
    if not found:
        raise MedgenError(f"no image is given. {takes} Give at least one.")
    return found
