"""All cases of the corpus: importing this module registers them."""

from tests.io.dicom import (
    cases_broken,
    cases_encoding,
    cases_folder,
    cases_geometry,
    cases_grouping,
    cases_multiframe,
    cases_values,
)
from tests.io.dicom.registry import CASES

__all__ = ["CASES", "MODULES"]

MODULES = (
    cases_geometry,
    cases_grouping,
    cases_folder,
    cases_values,
    cases_encoding,
    cases_broken,
    cases_multiframe,
)
