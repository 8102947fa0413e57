"""Public data sets as they lie on disk: who is in them, and which files show whom.

:func:`find_cases` recognises the layouts of :data:`LAYOUTS`; each reader names cases, and reads no voxel.
"""

from medgen.io.datasets.case import Case, ImageFile, modality_name
from medgen.io.datasets.find import LAYOUTS, detect_layout, find_cases

__all__ = ["LAYOUTS", "Case", "ImageFile", "detect_layout", "find_cases", "modality_name"]
