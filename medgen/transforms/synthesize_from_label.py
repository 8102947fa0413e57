"""A new image for the label map at hand, by a trained model."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.geometry import ModelGrid
from medgen.transforms.base import SeededMapTransform, SeededTransform, aligned, as_volume
from medgen.transforms.models import map_label_ids, process_model

__all__ = ["RandSynthesizeFromLabel", "RandSynthesizeFromLabeld"]


class RandSynthesizeFromLabel(SeededTransform):
    """Makes a new image for a label map with a label-conditioned model.

    The label map may be a crop, of any spacing and orientation: it goes to the model's spacing and axes, and the image
    comes back on the label's exact grid. Its intensities are in 0..1 as the model has them: put your own normalisation
    after it. The model is loaded at the first call, once per process; the transform pickles without it.

    Args:
        model: name of a bundled model, or a model folder; its task must be ``label_to_image`` or ``joint``.
        label_map: your id -> a label name or id of the model; an id that is missing is refused. None if the ids are
            the model's (FreeSurfer's for ``brain-t1``).
        prob: how often a new image is made; otherwise ``image`` is returned.
        num_inference_steps: network evaluations; the model's by default.
        sampler: name of a sampler; the model's by default.
        guidance_scale: the model's by default.
        device: ``auto``, ``cpu``, ``cuda`` ...; ``auto`` is the CPU inside a forked DataLoader worker.

    Raises:
        MedgenError: an unmapped id, a model of another task, or CUDA in a forked worker.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        label_map: Mapping[int, int | str] | None = None,
        prob: float = 1.0,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(prob)
        self.model, self.device = os.fspath(model), device
        self.label_map = None if label_map is None else dict(label_map)
        self.sampling = {
            "num_inference_steps": num_inference_steps, "sampler": sampler, "guidance_scale": guidance_scale
        }  # fmt: skip

    def __call__(self, label: Any, image: Any = None, randomize: bool = True) -> MetaTensor | Any:
        """The new image.

        Args:
            label: whole ids, shape ``(1, X, Y, Z)``.
            image: returned when the draw says not to act; needed with ``prob < 1``.
            randomize: draw anew; False repeats the last draw.

        Returns:
            float32 ``(C, X, Y, Z)`` on the grid and device of ``label``.
        """
        if randomize:
            self.randomize()
        volume = as_volume(type(self).__name__, "label", label)
        if not self._do_transform:
            return self.kept("image", image)
        return self._synthesize(volume)

    def _synthesize(self, label: MetaTensor) -> MetaTensor:
        name = type(self).__name__
        if label.shape[0] != 1:
            raise MedgenError(
                f"{name}: label must have one channel. Got {label.shape[0]}. Add AsDiscreted(argmax=True) before it."
            )
        model = process_model(self.model, self.device, name)
        if model.spec.task not in ("label_to_image", "joint"):
            raise MedgenError(
                f"{name}: model '{model.spec.name}' has task '{model.spec.task}', which takes no label map. "
                "Use one of task 'label_to_image' or 'joint'."
            )
        if model.spec.spatial_dims != 3:
            raise MedgenError(f"{name}: model '{model.spec.name}' is 2D. Use a 3D model.")
        ids = map_label_ids(label, self.label_map, model.spec, name)
        grid = ModelGrid.around(ids.affine, ids.shape[1:], model.spec.grid.spacing, multiple=model.multiple)
        (sample,) = model.sample(n=1, seed=self._seed, label=grid.to_model(ids, mode="label"), **self._settings())
        image = grid.from_model(sample["image"])
        made = sample["image"].meta.get("provenance", {})
        return aligned(image, label, {**made, "transform": name, "seed": self._seed})

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.sampling.items() if value is not None}


class RandSynthesizeFromLabeld(SeededMapTransform):
    """Dictionary twin of :class:`RandSynthesizeFromLabel`.

    Args:
        model: see :class:`RandSynthesizeFromLabel`, as are ``label_map`` and the keywords ``num_inference_steps``,
            ``sampler``, ``guidance_scale``, ``device``.
        label_key: of the label map.
        image_key: where the image is written; with ``prob < 1`` it must hold one already.
        label_map: your id -> a label name or id of the model.
        prob: how often the image is replaced.
        allow_missing_keys: leave items without a label as they are.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        label_key: Hashable = "label",
        image_key: Hashable = "image",
        label_map: Mapping[int, int | str] | None = None,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(
            RandSynthesizeFromLabel(
                model,
                label_map,
                num_inference_steps=num_inference_steps,
                sampler=sampler,
                guidance_scale=guidance_scale,
                device=device,
            ),
            (label_key,),
            image_key,
            prob,
            allow_missing_keys,
            "Add LoadImaged for the label before it.",
        )
