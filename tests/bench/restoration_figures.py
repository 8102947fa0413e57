"""Figures, tables and pictures that the benchmarks of restoration share."""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from medgen.metrics import bootstrap_interval

Row = dict[str, Any]
MODEL = "model"


def psnr(made: NDArray, real: NDArray, top: float) -> float:
    """Peak signal to noise in dB, infinite for equal images; ``top`` is the peak."""
    error = float(np.mean((made.astype(np.float64) - real) ** 2))
    return 10 * math.log10(top**2 / error) if error else math.inf


def ssim(made: NDArray, real: NDArray, top: float) -> float:
    """Structural similarity of two volumes, each axis 7 voxels or longer; ``top`` is the data range."""
    return float(structural_similarity(made.astype(np.float64), real.astype(np.float64), data_range=top))


def similarity(made: NDArray, real: NDArray, top: float) -> dict[str, float]:
    """PSNR, and SSIM."""
    return {"psnr": psnr(made, real, top), "ssim": ssim(made, real, top)}


def gradient_energy(image: NDArray, where: NDArray[np.bool_]) -> float:
    """Mean square of the gradient, per voxel."""
    squares = sum(g**2 for g in np.gradient(image.astype(np.float64)))
    return float(np.asarray(squares)[where].mean())


def table(rows: Sequence[Row], keys: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Mean and 95% bootstrap interval over the rows of each group.

    Args:
        rows: one for each scan, site and method.
        keys: what makes a group.
        values: what is averaged, with its format; rows without it are left out.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    lines = []
    for group, members in groups.items():
        parts = [f"{name:>{width}s}" for name, width in zip(group, _widths(groups, len(keys)), strict=True)]
        counts = []
        for value, form in values.items():
            found = [float(m[value]) for m in members if m.get(value) is not None]
            if found:
                low, high = interval(np.mean, np.array(found))
                parts.append(f"{value} {np.mean(found):{form}} [{low:{form}}, {high:{form}}]")
                counts.append(len(found))
        lines.append("  ".join([*parts, f"n={max(counts, default=0)}"]))
    return lines


def _widths(groups: Iterable[tuple[str, ...]], count: int) -> list[int]:
    return [max(len(group[k]) for group in groups) for k in range(count)]


def interval(statistic: Callable[..., Any], values: NDArray) -> tuple[float, float]:
    """95% bootstrap interval over the first axis."""
    found = bootstrap_interval(statistic, values)
    return found.low, found.high


def arguments(about: str | None, **options: tuple[Any, str]) -> Namespace:
    """The command line of a benchmark.

    Args:
        about: its docstring.
        **options: more options: default, help.
    """
    parser = ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a restorer; left out: the other methods alone")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON of all rows; a PNG of the same name")
    parser.add_argument("--limit", type=int, default=10, help="sites or seeds of each scan")
    parser.add_argument("--scans", nargs="+", help="some of the scans")
    parser.add_argument("--baselines", type=Path, help="JSON of an earlier run, whose other methods are taken over")
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    return given


def earlier(path: Path | None) -> list[Row]:
    """Rows of the methods beside the model in an earlier run."""
    return [] if path is None else [row for row in json.loads(path.read_text()) if row["method"] != MODEL]


def finish(rows: Sequence[Row], path: Path, lines: Iterable[str]) -> None:
    """Write the rows, print the table."""
    path.write_text(json.dumps(list(rows), indent=1))
    print("\n".join(lines), flush=True)


def sheet(panels: Sequence[tuple[str, Mapping[str, NDArray], float]], path: Path) -> None:
    """One row of slices for each scan.

    Args:
        panels: for each row its name, the 2D images by title, and the intensity shown white.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    width = max(len(images) for _, images, _ in panels)
    figure, axes = plt.subplots(len(panels), width, figsize=(2.4 * width, 2.6 * len(panels)), squeeze=False)
    for line, (name, images, white) in zip(axes, panels, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (title, image) in zip(line, images.items(), strict=False):
            axis.imshow(np.asarray(image).T, origin="lower", cmap="gray", vmin=0, vmax=white)
            axis.set_title(f"{name}\n{title}", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
