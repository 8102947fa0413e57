"""MONAI's ``LoadImage`` and ``SaveImage`` with medgen's checks: ``reader=MedgenReader``, ``writer=MedgenWriter``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader, MetaTensor, NibabelWriter
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys, convert_data_type

from medgen.checks import MedgenError
from medgen.io.findings import DEFAULT_MEMORY_BUDGET, Refused
from medgen.io.nifti import write_nifti
from medgen.io.survey import ReadOptions, read_volume
from medgen.io.write_nifti import cast_to, check_name, write_pieces

__all__ = ["MedgenReader", "MedgenWriter"]

_OF_OTHERS = (".npy", ".npz", ".png", ".jpg", ".jpeg", ".bmp")
PathLike = str | os.PathLike[str]


@dataclass
class _Loaded:
    """What ``read`` found: volumes, or the reason why there are none."""

    volumes: list[MetaTensor]
    error: Exception | None = None


class MedgenReader(ImageReader):
    """Reads what medgen reads, and refuses what it refuses, for ``LoadImage(d)(reader=MedgenReader)``.

    A path is a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series (any junk beside it); several paths are
    the DICOM files of one series, or volume files of one grid that become channels. Nothing is reoriented.

    ``LoadImage`` tries its other readers when one fails while it reads, and some of them read in silence what is
    refused here. A refusal is therefore raised a step later, where it ends the loading. Arrays (``.npy``) and plain
    pictures are left to the others.

    Args:
        mask_non_finite: NaN and infinite values become 0, with a finding; they are refused otherwise.
        memory_budget: bytes that one volume may take.

    The metadata has, besides what MONAI needs, ``findings``: the codes of :data:`medgen.io.findings.CODES` that
    apply, joined by commas, so that the default collation of a ``DataLoader`` takes it, and ``synthetic``.

    Example:
        >>> MedgenReader().verify_suffix("no-such-file.nii.gz")
        False
    """

    def __init__(self, *, mask_non_finite: bool = False, memory_budget: int = DEFAULT_MEMORY_BUDGET) -> None:
        super().__init__()
        self.options = ReadOptions(mask_non_finite=mask_non_finite, memory_budget=memory_budget)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether this reader is to be asked: whenever all of it exists, because content decides, not the suffix."""
        return all(os.path.exists(path) for path in _paths(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> _Loaded:
        """Reads files or a folder; what goes wrong is kept for :meth:`get_data`.

        Args:
            data: see the class.
            kwargs: none are known.
        """
        paths = _paths(data)
        if any(path.name.lower().endswith(_OF_OTHERS) for path in paths):
            raise MedgenError("MedgenReader: arrays and pictures are read by MONAI's other readers.")
        try:
            if kwargs:
                raise MedgenError(f"MedgenReader: unknown options {', '.join(sorted(kwargs))}. Leave them out.")
            if len(paths) == 1 or not all(_holds_a_volume(path) for path in paths):
                return _Loaded([read_volume(paths if len(paths) > 1 else paths[0], self.options)])
            return _Loaded([read_volume(path, self.options) for path in paths])
        except (MedgenError, OSError, MemoryError) as error:
            return _Loaded([], error)

    def get_data(self, img: _Loaded) -> tuple[np.ndarray, dict[str, Any]]:
        """Array and metadata.

        Returns:
            Shape ``(X, Y, Z)``, or ``(C, X, Y, Z)`` for several files or channels; affine RAS+ mm.

        Raises:
            Refused: the volume, or the set of files, cannot be used; the text begins with the code.
            MedgenError: volumes of several grids.
        """
        if img.error is not None:
            raise img.error
        first, array = img.volumes[0], _stacked(img.volumes)
        affine = np.asarray(first.affine, dtype=np.float64)
        codes = dict.fromkeys(code for volume in img.volumes for code in volume.meta["findings"].split(",") if code)
        return array, {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(first.shape[1:]),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if array.ndim == 4 else float("nan"),
            "findings": ",".join(codes),
            "synthetic": any(volume.meta["synthetic"] for volume in img.volumes),
        }


class MedgenWriter(NibabelWriter):
    """Writes ``.nii`` and ``.nii.gz`` whole or not at all, for ``SaveImage(d)(writer=MedgenWriter)``.

    Where MONAI's own writer wraps a number that its type cannot hold, this one refuses; so it does with values that
    are not finite. Several channels become the fourth axis, as MONAI's own writer has it.

    Args:
        output_dtype: stored numpy type; None: that of the data.
        kwargs: as MONAI's ``ImageWriter`` takes them; ``scale`` is not supported.
    """

    output_dtype: Any
    synthetic: bool = False

    def __init__(self, output_dtype: Any = np.float32, **kwargs: Any) -> None:
        if kwargs.get("scale") is not None:
            raise MedgenError(f"MedgenWriter: scale must be None; got {kwargs['scale']!r}. Scale the values before.")
        super().__init__(output_dtype=output_dtype, **kwargs)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Writes what ``set_data_array`` and ``set_metadata`` were given.

        Args:
            filename: ends in ``.nii`` or ``.nii.gz``.
            verbose: log the name.
            obj_kwargs: none are known.

        Raises:
            MedgenError: another suffix, values that do not fit the type or are not finite, or no affine.
            OSError: the disk is full, or the like; no file of that name is left behind.
        """
        if obj_kwargs:
            raise MedgenError(f"MedgenWriter: unknown options {', '.join(sorted(obj_kwargs))}. Leave them out.")
        if self.affine is None:
            raise MedgenError("MedgenWriter: there is no affine. Save a MetaTensor, or give its meta data.")
        array = convert_data_type(self.data_obj, np.ndarray)[0]
        affine = to_affine_nd(r=3, affine=convert_data_type(self.affine, np.ndarray)[0]).astype(np.float64)
        super(NibabelWriter, self).write(filename, verbose=verbose)
        if array.ndim == 4:
            _write_channels(Path(filename), array, self.output_dtype, affine)
        else:
            array = array[..., None] if array.ndim == 2 else array
            write_nifti(Path(filename), array, self.output_dtype, affine, synthetic=self.synthetic)

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Takes the affine, and resamples to the original grid where ``resample`` says so; without, no value changes.

        Args:
            meta_dict: ``affine``, and for resampling ``original_affine`` and ``spatial_shape``.
            resample: to the original grid.
            options: as MONAI's ``NibabelWriter`` takes them.
        """
        self.synthetic = bool((meta_dict or {}).get("synthetic"))
        if resample:
            super().set_metadata(meta_dict, resample=True, **options)
            return
        if self.output_dtype is None:
            self.output_dtype = convert_data_type(self.data_obj, np.ndarray)[0].dtype
        self.affine = self.get_meta_info(meta_dict)[1]


def _paths(data: Sequence[PathLike] | PathLike) -> list[Path]:
    return [Path(data)] if isinstance(data, str | os.PathLike) else [Path(path) for path in data]


def _holds_a_volume(path: Path) -> bool:
    """Whether a path of several is a volume by itself: a folder, or a file that is no DICOM."""
    from medgen.io.dicom import looks_like_dicom

    return path.is_dir() or path.name.lower().endswith((".nii", ".nii.gz")) or not looks_like_dicom(path)


def _stacked(volumes: Sequence[MetaTensor]) -> np.ndarray:
    """One volume as ``(X, Y, Z)``, several (or channels) as ``(C, X, Y, Z)``."""
    from medgen.geometry import same_grid

    if len(volumes) == 1:
        array = volumes[0].numpy()
        return array[0] if array.shape[0] == 1 else array
    for volume in volumes[1:]:
        if not same_grid(volumes[0], volume):
            raise Refused("GRIDS_DIFFER", "the files to stack as channels lie on several grids. Resample them first.")
    return np.concatenate([volume.numpy() for volume in volumes])


def _write_channels(path: Path, array: np.ndarray, dtype: Any, affine: np.ndarray) -> None:
    """Writes ``(X, Y, Z, C)`` as MONAI's own writer lays it out: the channels are the fourth axis."""
    check_name(path)
    image = nib.Nifti1Image(cast_to(array, np.dtype(dtype), f"'{path.name}'"), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    write_pieces(path, [image.to_bytes()])
