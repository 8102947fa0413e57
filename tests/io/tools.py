"""Other people's programs that judge and read what medgen writes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REQUIRE = "MEDGEN_REQUIRE_TOOLS"
PACKAGES = {
    "dciodvfy": "dicom3tools",
    "dcentvfy": "dicom3tools",
    "dcm2niix": "dcm2niix",
    "storescu": "dcmtk",
    "storescp": "dcmtk",
}
# (0008,001C) Synthetic Data came after the 2022 build of dicom3tools.
_UNKNOWN_TO_2022 = re.compile(r"\(0x0008,0x001c\)|SyntheticData", re.IGNORECASE)


def tool(name: str) -> str:
    """The path of a program; the test is skipped where it is missing, and fails where tools are required."""
    path = shutil.which(name)
    if path is None:
        text = f"{name} is missing: install the package {PACKAGES[name]}"
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(text)
        pytest.skip(text)
    return path


def object_errors(files: Sequence[Path]) -> list[str]:
    """What dciodvfy calls an error, over all files."""
    program, errors = tool("dciodvfy"), []
    for file in files:
        run = subprocess.run([program, str(file)], capture_output=True, text=True, errors="replace", check=False)
        assert run.returncode >= 0, run  # it did not crash
        lines = (run.stderr + run.stdout).splitlines()
        errors += [f"{file.name}: {line}" for line in lines if line.startswith("Error") and not _known(line)]
    return errors


def entity_errors(files: Sequence[Path]) -> list[str]:
    """What dcentvfy calls an error, of all files together."""
    run = subprocess.run(
        [tool("dcentvfy"), *map(str, files)], capture_output=True, text=True, errors="replace", check=False
    )
    assert run.returncode >= 0, run  # it did not crash
    return [line for line in (run.stderr + run.stdout).splitlines() if line.startswith("Error")]


def by_dcm2niix(folder: Path, output: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Array and RAS+ affine of each volume that dcm2niix makes of a folder."""
    output.mkdir(parents=True, exist_ok=True)
    command = [tool("dcm2niix"), "-b", "n", "-z", "n", "-m", "n", "-f", "%s_%d", "-o", str(output), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    images = [nib.load(file) for file in sorted(output.glob("*.nii"))]
    return [(np.asarray(image.dataobj, dtype=np.float64), image.affine) for image in images]


def accepted_by_storescp(files: Sequence[Path], folder: Path) -> int:
    """How many files a local storage server accepts."""
    scp, scu = tool("storescp"), tool("storescu")
    folder.mkdir(parents=True, exist_ok=True)
    with _server([scp, "--output-directory", str(folder)]) as port:
        command = [scu, "--required", "localhost", str(port), *map(str, files)]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        assert run.returncode == 0, run.stdout + run.stderr
    return sum(1 for _ in folder.iterdir())


def _known(line: str) -> bool:
    return _UNKNOWN_TO_2022.search(line) is not None


@contextlib.contextmanager
def _server(command: list[str]) -> Iterator[int]:
    """Runs a storage server on a free port while the block runs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = int(free.getsockname()[1])
    server = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=10)
