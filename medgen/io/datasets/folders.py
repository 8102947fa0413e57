"""Folders of images: ``images/`` and ``labels/`` of equal names, ``images/NAME/`` a modality, or images alone.

A table ``attributes.csv`` or ``.tsv`` beside them gives attributes: its first column holds the names of the files,
without their ending.
"""

from __future__ import annotations

from pathlib import Path

from medgen.io.datasets.case import COLOURS, Attribute, Case, ImageFile, listed, modality_name, stem
from medgen.io.datasets.tables import read_table, rows_by

__all__ = ["is_folders", "read_folders"]

TABLES = ("attributes.csv", "attributes.tsv")


def is_folders(path: Path) -> bool:
    """Whether a folder holds ``images``, or images."""
    return (path / "images").is_dir() or bool(listed(path))


def read_folders(path: Path) -> list[Case]:
    """A case for each name of a file.

    Args:
        path: of ``images`` and ``labels``, or of the images.
    """
    images = path / "images"
    kinds = (
        sorted(folder for folder in images.iterdir() if folder.is_dir() and listed(folder)) if images.is_dir() else []
    )
    attributes = _attributes(path)
    if kinds:
        by_kind = {modality_name(folder.name): {stem(file): file for file in listed(folder)} for folder in kinds}
        names = sorted({name for files in by_kind.values() for name in files})
        return [
            Case(
                name,
                {kind: ImageFile(files[name]) for kind, files in by_kind.items() if name in files},
                _label(path / "labels", next(files[name] for files in by_kind.values() if name in files)),
                attributes.get(name, {}),
            )
            for name in names
        ]
    files = listed(images if images.is_dir() else path)
    labels = path / "labels" if images.is_dir() else None
    return [
        Case(stem(file), colours(file), _label(labels, file), attributes.get(stem(file), {})) for file in files
    ]  # fmt: skip


def colours(file: Path) -> dict[str, ImageFile]:
    """The image of a file, or, of a picture in colours, its channels and their luminance."""
    image = ImageFile(file)
    if image.is_picture:
        from medgen.io.read_picture import picture_shape

        if picture_shape(file)[0] >= 3:
            return {
                **{name: ImageFile(file, channel=i) for i, name in enumerate(COLOURS)},
                "grey": ImageFile(file, channel=-1),
            }
    return {"image": image}


def _label(folder: Path | None, image: Path) -> ImageFile | None:
    """The label of an image: the same name, a channel's number (``_0000``) left out; of a picture any lossless kind."""
    if folder is None:
        return None
    names = [image.name, image.name.replace("_0000.", ".")]
    if ImageFile(image).is_picture:
        names += [f"{stem(image)}{ending}" for ending in (".png", ".tif", ".tiff", ".bmp")]
    return next((ImageFile(folder / name) for name in names if (folder / name).is_file()), None)


def _attributes(path: Path) -> dict[str, dict[str, Attribute]]:
    table = next((path / name for name in TABLES if (path / name).is_file()), None)
    if table is None:
        return {}
    rows = read_table(table)
    by_name = rows_by(table, next(iter(rows[0]))) if rows else {}
    return {stem(Path(name)): row for name, row in by_name.items()}
