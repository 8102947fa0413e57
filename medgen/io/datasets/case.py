"""One subject at one time: images by modality, label, attributes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError

__all__ = ["Attribute", "Case", "ImageFile", "attribute", "is_image", "listed", "modality_name", "stem"]

Attribute = str | float
NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
UNNAMED = ("image", "grey")
COLOURS = ("red", "green", "blue")
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "held_out"}
_MISSING = {"", "n/a", "na", "nan", "none", "null"}
_ALIASES = {
    "T1w": ("t1", "t1w", "t1n", "t1wi", "mprage"),
    "T1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1wks", "t1ks", "t1wce"),
    "T2w": ("t2", "t2w", "t2wi"),
    "FLAIR": ("flair", "t2f", "t2flair"),
    "PDw": ("pd", "pdw"),
    "MRA": ("mra", "angio"),
    "ADC": ("adc",),
    "CT": ("ct",),
    "PET": ("pet",),
}  # fmt: skip
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def modality_name(text: str) -> str:
    """One name for what data sets call a modality: the BIDS suffix where there is one.

    Example:
        >>> [modality_name(name) for name in ("t1n", "T1", "t1ce", "T1Gd", "t2f", "FLAIR", "bravo")]
        ['T1w', 'T1w', 'T1ce', 'T1ce', 'FLAIR', 'FLAIR', 'bravo']
    """
    return _NAMES.get(re.sub(r"[^a-z0-9]", "", text.lower()), text)


@dataclass(frozen=True)
class ImageFile:
    """A volume or picture in a file.

    Args:
        path: NIfTI, PNG, TIFF, JPEG or BMP file, or NumPy archive (``.npz``).
        frame: which volume of a file that holds several, or row of an array; None: there is one.
        channel: which colour of a picture; None: the file has one channel.
        array: name of the array in an archive.
    """

    path: Path
    frame: int | None = None
    channel: int | None = None
    array: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture file: two axes, no orientation."""
        return self.path.name.lower().endswith(PICTURES)

    def load(self, role: Literal["image", "label"] = "image") -> MetaTensor:
        """Values: ``(1, X, Y, Z)`` with an affine in RAS+ mm, or ``(1, X, Y)`` of a picture.

        Args:
            role: ``image``: float32; ``label``: whole numbers, int32.

        Returns:
            ``meta["stored"]``: the stored type of a picture or array (``uint8``). Arrays without a geometry have
            spacing 1; a picture's second axis runs upwards, see :func:`medgen.io.read_picture.read_picture`.

        Raises:
            MedgenError: the file is missing or cannot be read, or its values do not suit the role.
        """
        if self.array:
            return self._from_archive(role)
        if self.is_picture:
            from medgen.io.read_picture import read_picture

            return _channel(read_picture(self.path, role=role), self.channel)
        if self.frame is None:
            from medgen.io.nifti import read_nifti

            return read_nifti(self.path, role=role)
        return self._from_frames()

    def _from_frames(self) -> MetaTensor:
        from medgen.io.findings import ReadOptions, Refused
        from medgen.io.nifti_survey import nifti_volumes

        if not self.path.is_file():
            raise MedgenError(f"image '{self.path}' does not exist. Check the path.")
        try:
            volumes = nifti_volumes(self.path, ReadOptions(each_frame=True))
            if self.frame is None or self.frame >= len(volumes):
                raise MedgenError(f"image '{self.path}' holds {len(volumes)} volumes; number {self.frame} is needed.")
            return volumes[self.frame].load(as_float=True)
        except Refused as refused:
            raise Refused(refused.code, f"image '{self.path}' cannot be read: {refused.reason}") from refused

    def _from_archive(self, role: str) -> MetaTensor:
        row = _array(self.path, self.array)[self.frame or 0]
        colours = row.ndim in (3, 4) and row.shape[-1] == 3 and self.channel is not None
        axes = row if colours else row[..., None]
        values = np.moveaxis(axes, -1, 0)
        if values.ndim == 3:  # rows and columns to columns and rows upwards
            values = values[:, ::-1].transpose(0, 2, 1)
        kept = torch.from_numpy(values.astype(np.float32 if role == "image" else np.int32))
        meta = {"source": str(self.path), "stored": str(row.dtype)}
        return _channel(MetaTensor(kept, affine=torch.eye(4, dtype=torch.float64), meta=meta), self.channel)


@lru_cache(maxsize=2)
def _array(path: Path, name: str) -> np.ndarray:
    """An array of an archive; the last two stay in memory."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])
    except (OSError, ValueError, KeyError) as error:
        raise MedgenError(f"archive '{path}' cannot be read ({error}). Get a whole copy.") from error


def _channel(picture: MetaTensor, channel: int | None) -> MetaTensor:
    """One channel ``(1, ...)`` of a picture ``(C, ...)``; -1 or none of several: their luminance (ITU-R BT.601)."""
    if picture.shape[0] == 1:
        return picture
    if channel is not None and channel >= 0:
        return picture[channel : channel + 1]
    weight = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32).reshape(3, *[1] * (picture.ndim - 1))
    grey = (picture[:3].float() * weight).sum(0, keepdim=True)
    meta = {key: value for key, value in picture.meta.items() if key != "affine"}
    return MetaTensor(grey.as_tensor(), affine=picture.affine, meta=meta)


@dataclass(frozen=True)
class Case:
    """One person at one time.

    Args:
        person: name of the person; the same at every time.
        images: file by modality (:func:`modality_name`); ``image`` where the data set has one without a name.
        label: integer label map on the images' grid.
        attributes: what else is known: age, sex, site, session, ...; numbers as floats.
        number: of the person, where it is not the number in the name; people are held out by its last digit.
    """

    person: str
    images: Mapping[str, ImageFile]
    label: ImageFile | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    number: int | None = None

    def image(self, name: str, *, named: bool = False) -> ImageFile | None:
        """The image of a modality, whatever the data set calls it; None where there is none.

        Args:
            name: of the modality.
            named: an image without a name does not do; else an only one serves as any modality.
        """
        wanted = modality_name(name)
        for known, file in self.images.items():
            if name == known or wanted == modality_name(known):
                return file
        unnamed = [] if named else [file for known, file in self.images.items() if known in UNNAMED]
        return unnamed[0] if len(unnamed) == 1 else None

    def with_attributes(self, more: Mapping[str, Attribute]) -> Case:
        """The same case with more attributes."""
        return replace(self, attributes={**self.attributes, **more})

    def held_out(self, endings: Iterable[int]) -> bool:
        """Whether the person is kept from training: by the data set's own split, or by the last digit of the number.

        Args:
            endings: last digits.

        Raises:
            MedgenError: people are to be held out by number and this one has none.
        """
        if str(self.attributes.get("split", "")).lower() in _HELD_OUT:
            return True
        digits = list(endings)
        if not digits:
            return False
        number = self.number
        if number is None:
            found = re.match(r"sub-[A-Za-z]*(\d+)", self.person)
            found = found or re.search(r"(\d+)(?:_0000)?\D*$", self.person.split(".")[0])
            if found is None:
                raise MedgenError(
                    f"image '{self.person}' has no subject number in its name, but held_out_endings is {digits}. "
                    "Name the files by number, or set held_out_endings=[] to train on all."
                )
            number = int(found[1])
        return number % 10 in digits


def attribute(value: object) -> Attribute | None:
    """A table's entry as a number or a text; None where it is missing.

    Example:
        >>> [attribute(value) for value in ("63.5", "F", " n/a ", "", 3)]
        [63.5, 'F', None, None, 3.0]
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return float(value) if np.isfinite(value) else None
    text = str(value).strip()
    if text.lower() in _MISSING:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return number if np.isfinite(number) else text


def is_image(path: Path) -> bool:
    """Whether a name is that of a volume or picture that can be read."""
    return path.name.lower().endswith((*NIFTI, *PICTURES)) and not path.name.startswith(".")


def listed(folder: Path) -> list[Path]:
    """Images in a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []


def stem(path: Path) -> str:
    """A file's name without its ending.

    Example:
        >>> stem(Path("a/sub-1_T1w.nii.gz")), stem(Path("scan.v2.png"))
        ('sub-1_T1w', 'scan.v2')
    """
    name = path.name
    for ending in sorted((*NIFTI, *PICTURES), key=len, reverse=True):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
