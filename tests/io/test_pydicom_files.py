"""Every file that comes with pydicom and pydicom-data: loaded or refused by code, equal to pydicom where loaded."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor
from pydicom.pixels import apply_modality_lut

from medgen.io.dicom import read_plain, survey_dicom
from medgen.io.findings import CODES, Refused, VolumeSource

ROOTS = (Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent)
FILES = [
    path for root in ROOTS for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")
]
LONGEST = 20.0
"""Seconds for one file; a hang, on however busy a machine."""


def pydicom_values(path: Path) -> np.ndarray | None:
    """What pydicom makes of a file; None where it makes nothing of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds = pydicom.dcmread(path, force=True)
            return np.asarray(apply_modality_lut(ds.pixel_array, ds))
        except Exception:  # whatever pydicom raises: it does not read the file
            return None


def load(volume: VolumeSource) -> MetaTensor | None:
    """The voxels; None where loading refused, by a known code."""
    try:
        return volume.load()
    except Refused as error:
        _check(error)
        return None


def plain(path: Path) -> tuple[np.ndarray | None, str]:
    """The plain array and ``""``, or None and the code of the refusal."""
    try:
        return read_plain(path), ""
    except Refused as error:
        _check(error)
        return None, error.code


def _check(error: Refused) -> None:
    if error.code not in CODES:
        raise LookupError(f"{error.code} is no known code")


def test_there_are_files() -> None:
    assert len(FILES) > 200


@pytest.mark.parametrize("root", ROOTS, ids=["pydicom", "pydicom-data"])
def test_loaded_or_refused(root: Path) -> None:
    """One file at a time: an end with a code, in good time, and geometry only where there is some."""
    for path in (path for path in FILES if path.is_relative_to(root)):
        start = time.perf_counter()
        found = survey_dicom([path])
        (record,) = found.files
        assert record.status == "used" or record.code in CODES, path
        for volume in found.volumes:
            loaded = load(volume)
            assert loaded is None or tuple(loaded.shape) == (1, *volume.shape)
            assert np.isfinite(volume.affine).all()
        assert time.perf_counter() - start < LONGEST, path


def test_all_together() -> None:
    """All files at once are accounted for once, and no volume mixes what one file alone would not give."""
    found = survey_dicom(FILES)
    assert [record.path for record in found.files] == sorted(FILES)
    for volume in found.volumes:
        load(volume)


def test_values_equal_pydicom() -> None:
    """The plain array of every grey file is what pydicom's modality look-up gives, bit for bit."""
    compared = 0
    for path in FILES:
        values, _ = plain(path)
        expected = pydicom_values(path) if values is not None else None
        if expected is not None:
            np.testing.assert_array_equal(values, expected, err_msg=str(path))
            compared += 1
    assert compared >= 90


def test_grey_files_that_pydicom_reads_are_read() -> None:
    """What is refused as a plain array is colour, a mask, or something that pydicom does not read either."""
    for path in FILES:
        _, code = plain(path)
        if code and code not in ("NOT_DICOM", "NOT_AN_IMAGE", "UNSUPPORTED_TYPE"):
            assert pydicom_values(path) is None, f"{path}: {code}"


def test_without_geometry_nothing_is_guessed() -> None:
    """Files of which a volume was made state position, orientation and spacing."""
    for path in FILES:
        for volume in survey_dicom([path]).volumes:
            text = str(volume.header)
            assert "Image Position (Patient)" in text
            assert "Pixel Spacing" in text
