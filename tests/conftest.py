"""Shared by all tests: one thread (the same bytes everywhere), and the data that only slow tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


# The same examples in every run: a red suite then means a change, not a draw.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real scans named by ``MEDGEN_DATA``; its tests are skipped where it is missing."""
    folder = Path(os.environ.get("MEDGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the real scans: set MEDGEN_DATA to their folder")
    return folder
