"""Which layout lies at a path, and the cases it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from medgen.checks import MedgenError, check_choice, nearest
from medgen.io.datasets.bids import is_bids, read_bids
from medgen.io.datasets.brats import is_brats, read_brats
from medgen.io.datasets.case import Case
from medgen.io.datasets.datalist import read_datalist
from medgen.io.datasets.folders import is_folders, read_folders
from medgen.io.datasets.ixi import is_ixi, read_ixi
from medgen.io.datasets.medmnist import is_medmnist, read_medmnist
from medgen.io.datasets.msd import is_msd, read_msd
from medgen.io.datasets.open_ms import is_open_ms, read_open_ms

__all__ = ["LAYOUTS", "Layout", "detect_layout", "find_cases"]


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Args:
        read: a path to its cases.
        detect: whether a path is of this layout.
        looks: what it needs, for errors.
    """

    read: Callable[[Path], list[Case]]
    detect: Callable[[Path], bool]
    looks: str


LAYOUTS: dict[str, Layout] = {
    "datalist": Layout(read_datalist, lambda path: path.is_file() and path.suffix == ".json", "a datalist JSON"),
    "medmnist": Layout(read_medmnist, is_medmnist, "a MedMNIST .npz"),
    "msd": Layout(read_msd, is_msd, "imagesTr/ and labelsTr/"),
    "bids": Layout(read_bids, is_bids, "sub-*/ (BIDS)"),
    "open_ms": Layout(read_open_ms, is_open_ms, "patientNN/T1.nii.gz"),
    "brats": Layout(read_brats, is_brats, "CASE/CASE_t1.nii.gz (BraTS)"),
    "ixi": Layout(read_ixi, is_ixi, "IXI-T1/IXI002-...-T1.nii.gz"),
    "folders": Layout(read_folders, is_folders, "images/ and labels/, or images"),
}
"""Layouts by name, in the order in which they are looked for."""


def detect_layout(path: Path) -> str:
    """The name of the layout at a path.

    Args:
        path: a folder, a datalist or an archive.

    Raises:
        MedgenError: the path does not exist, or holds none of :data:`LAYOUTS`; the text says what was found.
    """
    if not path.exists():
        raise MedgenError(
            f"data '{path}' does not exist.{_nearest_path(path)} "
            "Set data=PATH: a datalist JSON, a BIDS tree or a folder of images."
        )
    if (path / "images").is_dir():
        return "folders"
    for name, layout in LAYOUTS.items():
        if layout.detect(path):
            return name
    if path.is_file():
        return "datalist"  # whose reader says what is wrong with it
    raise MedgenError(f"data '{path}' holds no NIfTI files of a known layout. {_holds(path)} {_wanted(LAYOUTS)}")


def find_cases(path: Path, layout: str = "auto") -> list[Case]:
    """Everybody in a data set, held-out people included, in a fixed order.

    Args:
        path: of the data.
        layout: a name in :data:`LAYOUTS`, or ``auto``: recognised.

    Raises:
        MedgenError: the path does not exist or is of another layout, or its reader refuses it.
    """
    if layout == "auto":
        layout = detect_layout(path)
    check_choice("find_cases", "layout", layout, LAYOUTS)
    if not path.exists():
        detect_layout(path)
    if layout not in ("datalist", "folders") and not LAYOUTS[layout].detect(path):
        raise MedgenError(f"data '{path}' is not of the layout '{layout}'. {_holds(path)} {_wanted([layout])}")
    cases = LAYOUTS[layout].read(path)
    if not cases:
        raise MedgenError(f"data '{path}' holds no case of the layout '{layout}'. {_holds(path)} {_wanted([layout])}")
    return cases


def _wanted(names: Iterable[str]) -> str:
    return f"Give {', or '.join(LAYOUTS[name].looks for name in names)}."


def _holds(path: Path) -> str:
    """What lies at a path, for errors."""
    if path.is_file():
        return "It is a file."
    found = sorted(path.iterdir())
    folders, files = [p.name for p in found if p.is_dir()], [p.name for p in found if p.is_file()]
    parts = [_counted(what, names) for what, names in (("folder", folders), ("file", files)) if names]
    return f"It holds {' and '.join(parts)}." if parts else "It is empty."


def _counted(what: str, names: list[str]) -> str:
    """
    Example:
        >>> _counted("file", ["a", "b", "c", "d"])
        '4 files (a, b, c, ...)'
    """
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def _nearest_path(path: Path) -> str:
    """The hint that ends an error about a missing path."""
    beside = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path, ["colin27", *beside])
