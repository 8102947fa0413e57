"""MedMNIST: one ``.npz`` with ``train_images``, ``train_labels`` and the same of ``val`` and ``test``.

Images are ``(N, 28, 28)``, in colours ``(N, 28, 28, 3)``, or volumes ``(N, 28, 28, 28)`` (MedMNIST+ up to 224); labels
``(N, 1)`` are the class, ``(N, K)`` findings that are there or not. A row is taken as a person; the data set's own
split is kept: ``val`` and ``test`` are never trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medgen.checks import MedgenError
from medgen.io.datasets.case import COLOURS, Attribute, Case, ImageFile

__all__ = ["is_medmnist", "read_medmnist"]

_SPLITS = ("train", "val", "test")


def is_medmnist(path: Path) -> bool:
    """Whether a path is an archive, or a folder with one."""
    return _archive(path) is not None


def _archive(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".npz" else None
    found = sorted(path.glob("*.npz"))
    return found[0] if len(found) == 1 else None


def read_medmnist(path: Path) -> list[Case]:
    """A case for each row: attributes ``split``, and ``class`` or ``finding_0``, ``finding_1``, ... (yes, no).

    Args:
        path: of the archive, or of a folder with one.

    Raises:
        MedgenError: no such archive, or arrays of other names or shapes.
    """
    archive = _archive(path)
    if archive is None:
        raise MedgenError(f"data '{path}' is no MedMNIST archive. Give the .npz file.")
    try:
        with np.load(archive, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files if name.endswith("_labels")}
            shapes = {
                split: _shape(archive, f"{split}_images") for split in _SPLITS if f"{split}_images" in content.files
            }
            found = list(content.files)
    except (OSError, ValueError) as error:
        raise MedgenError(f"data '{archive}' cannot be read ({error}). Get a whole copy.") from error
    if "train" not in shapes:
        raise MedgenError(f"data '{archive}' holds {', '.join(found) or 'nothing'}; 'train_images' is needed.")
    return [
        Case(
            f"{archive.stem}-{split}-{row:06d}",
            _images(archive, split, row, shape),
            None,
            {"split": split, **_classes(arrays.get(f"{split}_labels"), row, shape[0], archive)},
            row,
        )
        for split, shape in shapes.items()
        for row in range(shape[0])
    ]


def _shape(archive: Path, name: str) -> tuple[int, ...]:
    """Shape of an array, from its header alone.

    Raises:
        MedgenError: neither pictures nor volumes.
    """
    import zipfile

    with zipfile.ZipFile(archive) as content, content.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape = tuple(int(n) for n in read(file)[0])
    if len(shape) not in (3, 4):
        raise MedgenError(f"data '{archive}': '{name}' must be (N, H, W), (N, H, W, 3) or (N, D, H, W). Got {shape}.")
    return shape


def _images(archive: Path, split: str, row: int, shape: tuple[int, ...]) -> dict[str, ImageFile]:
    name = f"{split}_images"
    if len(shape) == 4 and shape[3] == 3:
        colours = {colour: ImageFile(archive, row, i, name) for i, colour in enumerate(COLOURS)}
        return {**colours, "grey": ImageFile(archive, row, -1, name)}
    return {"image": ImageFile(archive, row, None, name)}


def _classes(labels: np.ndarray | None, row: int, rows: int, archive: Path) -> dict[str, Attribute]:
    if labels is None:
        return {}
    if len(labels) != rows or labels.ndim > 2:
        raise MedgenError(
            f"data '{archive}': labels of shape {labels.shape} do not fit {rows} images. Get a whole copy."
        )
    values = np.atleast_1d(labels[row]).tolist()
    if len(values) == 1:
        return {"class": str(int(values[0]))}
    return {f"finding_{i}": "yes" if value else "no" for i, value in enumerate(values)}
