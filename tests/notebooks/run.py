"""Runs a notebook and stores it as it ran: ``OMP_NUM_THREADS=1 python -m tests.notebooks.run notebooks/NAME.ipynb``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

__all__ = ["executed"]

SECONDS = 1800  # that a cell may take


def executed(path: Path) -> Any:
    """The notebook with its outputs, without when and where it ran.

    Args:
        path: of the notebook, which stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=SECONDS, resources=place, record_timing=False, coalesce_streams=True)
    client.execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
