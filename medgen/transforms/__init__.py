"""MONAI transforms: random images for the label map at hand, regions filled anew, images degraded and restored.

Array and dictionary pairs for ``Compose``, ``CacheDataset`` and ``DataLoader``. Wrap the data set in
:class:`~medgen.transforms.seeded.SeededDataset`, and every item depends only on seed, epoch and index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medgen.transforms.degrade import RandDegrade, RandDegraded
from medgen.transforms.inpaint_region import InpaintRegion, InpaintRegiond
from medgen.transforms.labels_to_image import RandLabelsToImage, RandLabelsToImaged
from medgen.transforms.restore_image import RestoreImage, RestoreImaged
from medgen.transforms.seeded import SeededDataset
from medgen.transforms.synthesize_from_label import RandSynthesizeFromLabel, RandSynthesizeFromLabeld

__all__ = [
    "TRANSFORMS",
    "InpaintRegion",
    "InpaintRegiond",
    "RandDegrade",
    "RandDegraded",
    "RandLabelsToImage",
    "RandLabelsToImaged",
    "RandSynthesizeFromLabel",
    "RandSynthesizeFromLabeld",
    "RestoreImage",
    "RestoreImaged",
    "SeededDataset",
    "TransformPair",
]


@dataclass(frozen=True)
class TransformPair:
    """What the conformance tests need to know about one transform.

    Attributes:
        array: takes the volumes named by ``inputs``.
        dictionary: takes a dictionary with these keys and writes ``output``.
        inputs: roles of the volumes: image, label, inpaint_mask.
        output: key that is written.
        spatial_dims: number of axes it works on.
        task: of the model it needs (see ``ModelSpec``), None without a model.
    """

    array: type[Any]
    dictionary: type[Any]
    inputs: tuple[str, ...]
    output: str = "image"
    spatial_dims: tuple[int, ...] = (3,)
    task: str | None = None


TRANSFORMS: dict[str, TransformPair] = {
    "RandLabelsToImage": TransformPair(RandLabelsToImage, RandLabelsToImaged, ("label",), spatial_dims=(2, 3)),
    "RandSynthesizeFromLabel": TransformPair(
        RandSynthesizeFromLabel, RandSynthesizeFromLabeld, ("label",), task="label_to_image"
    ),
    "RandDegrade": TransformPair(RandDegrade, RandDegraded, ("image",), spatial_dims=(2, 3)),
    "InpaintRegion": TransformPair(InpaintRegion, InpaintRegiond, ("image", "inpaint_mask"), task="inpaint"),
}
"""Name -> pair; a transform added here is tested by ``tests/conformance/test_transforms.py``."""
