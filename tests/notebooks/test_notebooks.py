"""Every notebook runs from top to bottom on what ships; no machine path is stored in one.

Quick ones are stored without outputs. Those of ``EXECUTED`` take minutes: they are stored as they ran, so that they can
be read without running them, and ``make test-slow`` runs them again. After a change of one, or of a bundled model:

    OMP_NUM_THREADS=1 python -m tests.notebooks.run notebooks/NAME.ipynb
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import medgen
from medgen.models import find_model
from tests.notebooks.run import executed

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = {"restore_a_scan"}
RUN = "run it again: python -m tests.notebooks.run notebooks/{}"
LARGEST = 1_000_000  # bytes of one with outputs
MACHINE_PATH = re.compile(r"/(home|root|work|tmp|Users)/|[A-Z]:\\")
MADE_BY = re.compile(r"([\w-]+) [\d.]+, \w+, weights ([0-9a-f]{12})\b")

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
minutes = pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem in EXECUTED], ids=lambda path: path.stem)


def test_there_is_one() -> None:
    assert NOTEBOOKS


@every
def test_stored(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not MACHINE_PATH.search(cell.source)
        if path.stem not in EXECUTED:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


@minutes
def test_stored_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), RUN.format(path.name)
    assert path.stat().st_size < LARGEST
    assert not [output for output in _outputs(notebook) if output.get("name") == "stderr"]
    assert not MACHINE_PATH.search(_text(notebook))
    _check_ran_well(notebook)


@minutes
def test_outputs_are_of_the_bundled_weights(path: Path) -> None:
    found = MADE_BY.findall(_text(nbformat.read(path, as_version=4)))
    assert found
    for name, start in found:
        now = json.loads((find_model(name) / "sha256.json").read_text())["models/model.safetensors"]
        assert now.startswith(start), f"{name} has changed; {RUN.format(path.name)}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of the kernel, at its end
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem in EXECUTED else []) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(medgen.__path__[0]).parent))  # as of the other tests, installed or not
    _check_ran_well(executed(path))


def _check_ran_well(notebook: Any) -> None:
    assert _pictures(notebook) >= 1
    assert "identical True" in _text(notebook)
    assert "identical False" not in _text(notebook)


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in _outputs(notebook))


def _text(notebook: Any) -> str:
    return "".join(output.text for output in _outputs(notebook) if output.output_type == "stream")
