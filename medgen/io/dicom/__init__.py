"""DICOM in: series to volumes, checked; every file accounted for.

:func:`survey_dicom` finds the volumes in a list of files, :func:`read_series` reads the one volume of a folder,
:func:`read_plain` one file without geometry, :func:`resample_upright` undoes gantry tilt.
"""

from medgen.io.dicom.header import looks_like_dicom
from medgen.io.dicom.reader import read_plain, read_series
from medgen.io.dicom.survey import survey_dicom
from medgen.io.dicom.upright import resample_upright
from medgen.io.dicom.volume import DicomVolume

__all__ = ["DicomVolume", "looks_like_dicom", "read_plain", "read_series", "resample_upright", "survey_dicom"]
