"""The DICOM corpus through medgen and the readers that people use today: who is right, who is wrong without a word.

Run ``python -m tests.bench.readers_table [-o OUT.json] [CASE ...]``. Every reader gets what suits it best: folder by
folder, series by series where it can tell them apart, four-dimensional results taken apart, and any warning, log line
or error counts as a flag. Tilted slices may come back resampled upright. A reader that is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from monai.data import PydicomReader
from rich.console import Console
from rich.table import Table

from tests.io.dicom.corpus import CASES
from tests.io.dicom.judge import Reading, Verdict, Volume, judge
from tests.io.dicom.test_corpus import read as read_medgen

_SECONDS = 60
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NOT_FOR_USERS = (AttributeError, TypeError, IndexError, KeyError, UnboundLocalError, ZeroDivisionError, AssertionError)
"""Errors of a program, not words to its user."""


@dataclass
class Score:
    """What one reader made of the corpus: cases by outcome."""

    cases: dict[str, Verdict] = field(default_factory=dict)

    def names(self, outcome: str, kind: str | None = None) -> list[str]:
        """The cases of an outcome."""
        return [
            name
            for name, verdict in self.cases.items()
            if verdict.outcome == outcome and kind in (None, CASES[name].kind)
        ]


def read_monai(folder: Path) -> Reading:
    """MONAI's PydicomReader, folder by folder."""
    reading = Reading()
    for each in _folders(folder):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reader = PydicomReader()
            array, meta = reader.get_data(reader.read(str(each)))
        reading.warned += " ".join(str(warning.message) for warning in caught)
        reading.volumes.append(Volume(np.asarray(array), np.asarray(meta["affine"])))
    return reading


def read_simpleitk(folder: Path) -> Reading:
    """SimpleITK's ImageSeriesReader, series by series; ReadImage where a series is one file."""
    reading = Reading()
    with _standard_error() as log:
        for each in _folders(folder):
            for series in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(each)):
                names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(each), series)
                image = SimpleITK.ReadImage(names if len(names) > 1 else names[0])
                reading.volumes.append(_of_itk(image))
    reading.warned = " ".join(log)
    if not reading.volumes:
        reading.refusal = "no series found"
    return reading


def read_dcm2niix(folder: Path) -> Reading:
    """dcm2niix over the whole tree; each frame of a 4D file is a volume."""
    reading = Reading()
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-z", "n", "-b", "n", "-d", "9", "-f", "%s_%p_%t_%e", "-o", out, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        if done.returncode < 0:
            reading.crash = f"signal {-done.returncode}"
        log = done.stdout + done.stderr
        reading.warned = " ".join(line for line in log.splitlines() if _is_flag(line))
        for path in sorted(Path(out).glob("*.nii")):
            reading.volumes += _of_nifti(path)
    if not reading.volumes:
        reading.refusal = log.strip()[-200:] or "nothing converted"
    return reading


READERS: dict[str, Callable[[Path], Reading]] = {
    "medgen": read_medgen,
    "MONAI PydicomReader": read_monai,
    "SimpleITK": read_simpleitk,
    "dcm2niix": read_dcm2niix,
}


def readers_table(names: Sequence[str] | None = None, readers: Sequence[str] | None = None) -> dict[str, Score]:
    """Every reader over every case.

    Args:
        names: cases; all if None.
        readers: keys of :data:`READERS`; those that are installed if None.
    """
    names = list(names or CASES)
    readers = list(readers or (name for name in READERS if name != "dcm2niix" or shutil.which("dcm2niix")))
    scores = {}
    for reader in readers:
        scores[reader] = Score()
        with tempfile.TemporaryDirectory() as folder, _Worker() as worker:
            for name in names:
                scores[reader].cases[name] = worker.verdict(reader, name, Path(folder) / name / "case")
    return scores


def verdict_of(reader: str, name: str, folder: Path) -> Verdict:
    """Makes one case and judges what one reader makes of it."""
    case = CASES[name]
    expected = case.make(folder)
    strict = reader == "medgen"
    try:
        reading = READERS[reader](folder)
    except _NOT_FOR_USERS as error:
        return Verdict("crashed", f"{type(error).__name__}: {error}")
    except Exception as error:
        reading = Reading(refusal=f"{type(error).__name__}: {error}")
    return judge(case, expected, reading, strict=strict)


def print_scores(scores: dict[str, Score], console: Console) -> None:
    """One row a reader, then the names of the cases that each gets silently wrong."""
    kinds = Counter(CASES[name].kind for name in next(iter(scores.values())).cases)
    table = Table(title=f"{sum(kinds.values())} DICOM folders")
    table.add_column("reader")
    for title in (
        f"readable: right\n(of {kinds['readable']})",
        f"faulty: refused\nor flagged (of {kinds['faulty']})",
        f"either: right\nor refused (of {kinds['either']})",
        "readable: not\nright, but said",
        "silently\nwrong",
        "crashed",
    ):
        table.add_column(title, justify="right")
    for reader, score in scores.items():
        good = [
            len(score.names("right", kind)) + len(score.names("flagged", kind))
            for kind in ("readable", "faulty", "either")
        ]
        good[0] = len(score.names("right", "readable"))
        refused = len(score.names("refused")) + len(score.names("flagged", "readable"))
        row = [*good, refused, len(score.names("silent")), len(score.names("crashed"))]
        table.add_row(reader, *map(str, row))
    console.print(table)
    for reader, score in scores.items():
        console.print(f"\n[bold]{reader}[/bold], silently wrong: {', '.join(score.names('silent')) or 'none'}")


class _Worker:
    """A process that judges, and is replaced when a reader takes it down or does not come back."""

    def __enter__(self) -> _Worker:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._end, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def verdict(self, reader: str, name: str, folder: Path) -> Verdict:
        self._end.send((reader, name, folder))
        try:
            if self._end.poll(_SECONDS):
                verdict: Verdict = self._end.recv()
                return verdict
            why = "never ended"
        except EOFError:
            why = "took the process down"
        self._process.kill()
        self._process.join()
        self._start()
        return Verdict("crashed", why)


def _serve(end: Connection) -> None:
    while True:
        end.send(verdict_of(*end.recv()))


def _folders(folder: Path) -> list[Path]:
    """A folder and those below it that hold files."""
    every = [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]
    return [path for path in every if any(not child.is_dir() for child in path.iterdir())]


def _of_itk(image: SimpleITK.Image) -> Volume:
    array = SimpleITK.GetArrayFromImage(image).T
    if image.GetDimension() != 3:
        return Volume(array, np.eye(4))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Volume(array, _LPS_TO_RAS @ affine)


def _is_flag(line: str) -> bool:
    """Whether a line of dcm2niix's log warns of something else than a series without a protocol's name."""
    line = line.lower()
    return ("warning" in line or "error" in line) and "protocol name" not in line


def _of_nifti(path: Path) -> list[Volume]:
    image = nib.load(path)
    if image.get_data_dtype().names is not None:  # colours
        return [Volume(np.zeros((*image.shape, 3)), image.affine)]
    array = np.asarray(image.dataobj)
    frames = array.reshape(*array.shape[:3], -1) if array.ndim > 3 else array[..., None]
    return [Volume(frames[..., index], image.affine) for index in range(frames.shape[-1])]


@contextmanager
def _standard_error() -> Iterator[list[str]]:
    """What C++ code writes to the standard error: one text, there when the block has ended."""
    texts: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            texts.append(file.read().decode(errors="replace").strip())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases; all if none")
    parser.add_argument("-r", "--reader", action="append", choices=list(READERS), help="only this reader")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for every verdict")
    arguments = parser.parse_args()
    scores = readers_table(arguments.cases, arguments.reader)
    print_scores(scores, Console(width=140))
    if arguments.output is not None:
        content = {
            reader: {name: [verdict.outcome, verdict.why] for name, verdict in score.cases.items()}
            for reader, score in scores.items()
        }
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
