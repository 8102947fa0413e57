"""What the models of all families share: seeds, grids, conditions and provenance around one array function."""

from __future__ import annotations

import functools
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

import medgen
from medgen.checks import MedgenError, check_count
from medgen.diffusion.randomness import derive_seed
from medgen.models.codec import VoxelCodec
from medgen.models.controls import check_conditions, condition_tensors, draw_conditions
from medgen.models.specification import TASKS, ModelSpec

Spec = TypeVar("Spec", bound=ModelSpec)
Step = Callable[[int, int], None]
CONTROL_KEYS = ("classes", "numbers", "text")


class Model(ABC, Generic[Spec]):
    """Specification, networks and everything between a seed and an image.

    Args:
        spec: what the model is.
        networks: the trained networks by the names of ``spec.networks()``, in evaluation mode, on ``device``.
        device: where they run.
        hash: identity of the model folder, written into every result.

    Raises:
        MedgenError: a network is missing.
    """

    def __init__(self, spec: Spec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = "") -> None:
        missing = [name for name in spec.networks() if name not in networks]
        if missing:
            raise MedgenError(
                f"{spec.name}: network '{missing[0]}' is missing. Pass all of {', '.join(spec.networks())}."
            )
        self.spec = spec
        self.networks = dict(networks)
        self.device = device
        self.hash = hash

    @property
    @abstractmethod
    def codec(self) -> VoxelCodec:
        """From images and label maps to channels, and back."""

    @property
    def multiple(self) -> int:
        """What every axis of a volume must be a multiple of."""
        return self.spec.multiple

    @abstractmethod
    def settings(self, **options: Any) -> dict[str, Any]:
        """The settings of a run, defaults filled in where an option is None, and checked.

        Raises:
            MedgenError: an option that this family does not have, or a bad value.
        """

    @abstractmethod
    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One sample, as arrays.

        Args:
            known: what the sample is made for, unbatched: as a training item has it, without the answer. ``label``
                ``(1, *size)``; ``source`` ``(S, *size)`` and ``present`` ``(S,)``; ``image`` and ``inpaint_mask``;
                ``classes``, ``numbers`` and ``text`` of the controls.
            size: voxels.
            seed: of the sample's only random stream.
            settings: of :meth:`settings`.
            callback: called with each finished step.

        Returns:
            Image ``(C, *size)`` in about 0..1 or None, and label map ``(1, *size)`` int16 or None, on the device.
        """

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        label: MetaTensor | None = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        callback: Step | None = None,
        **options: Any,
    ) -> list[dict[str, MetaTensor]]:
        """Generate subjects; subject ``i`` is a function of ``seed + i`` alone.

        Args:
            n: how many.
            seed: of the first.
            label: label map ``(1, *spatial)`` on a grid of the model's spacing, RAS+, each axis a multiple of
                :attr:`multiple`; used for all subjects. By default each gets one from the model's own source.
            conditions: value by control (``{"size": "large"}``); what is not stated is drawn from the distribution
                recorded in training.
            callback: called after each step with (subject, step).
            options: settings of the family, see :meth:`settings`: for diffusion ``sampler``, ``num_inference_steps``
                and ``guidance_scale``.

        Returns:
            For each subject ``{"image": (C, *spatial) float32, "label": (1, *spatial) int16}``, the image from 0 to
            about 1: MetaTensors with an RAS+ affine in mm and ``synthetic=True`` and ``provenance`` in their meta.

        Raises:
            MedgenError: a bad argument, or a model that needs an image to work on.
        """
        self._check_generates()
        check_count("sample", "n", n)
        settings = self.settings(**options)
        asked = check_conditions(self.spec.controls, conditions)
        return [
            self._subject(seed + i, label, asked, settings, functools.partial(callback, i) if callback else None)
            for i in range(n)
        ]

    def _check_generates(self) -> None:
        task = self.spec.task
        if task == "inpaint":
            raise MedgenError(f"{self.spec.name}: this model fills holes and has nothing to sample alone. Use inpaint.")
        if task == "restore":
            raise MedgenError(f"{self.spec.name}: this model restores scans and has nothing to sample. Use restore.")
        if TASKS[task].needs_source:
            command = "segment" if task == "segment" else "translate"
            sources = ", ".join(self.spec.source_modalities)
            raise MedgenError(
                f"{self.spec.name}: this model works on given images ({sources}) and has nothing to sample alone. "
                f"Use {command}."
            )

    def _subject(
        self,
        seed: int,
        label: MetaTensor | None,
        asked: Mapping[str, Any],
        settings: dict[str, Any],
        callback: Callable[[int], None] | None,
    ) -> dict[str, MetaTensor]:
        if label is not None and not self.spec.told_label:
            raise MedgenError(
                f"{self.spec.name}: this model is told no label map, it would not be heeded. Leave it out."
            )
        label = label if label is not None else self._own_label(seed)
        size = tuple(label.shape[1:]) if label is not None else self.spec.grid.size
        self.check_size(size)
        drawn = draw_conditions(self.spec.controls, seed, asked)
        known = self.control_tensors(drawn)
        if label is not None:
            self._check_affine(label)
            known["label"] = label.as_tensor()
        image, made = self.produce(known, size, derive_seed(seed, "sample"), settings, callback)
        affine = label.affine if label is not None else self.grid_affine()
        provenance = self.provenance(seed, settings) | ({"conditions": drawn} if drawn else {})
        meta = {"synthetic": True, "provenance": provenance}
        result = {}
        if image is not None:
            result["image"] = MetaTensor(image.cpu().float().clamp(min=0), affine=affine, meta=dict(meta))
        final = made if label is None or self.spec.task == "segment" else label.as_tensor().to(torch.int16)
        if final is not None:
            result["label"] = MetaTensor(final.cpu(), affine=affine, meta=dict(meta))
        return result

    def control_tensors(self, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """Conditions, each already checked, as unbatched tensors; what is left out is "not given".

        Raises:
            MedgenError: a prompt, and the model's text encoder is not there.
        """
        if not self.spec.controls:
            return {}
        encode = None
        texts = [control for control in self.spec.controls if control.kind == "text" and control.name in conditions]
        if texts:
            from medgen.models.text import load_text_encoder

            encode = load_text_encoder(texts[0]).encode
        return {key: value[0] for key, value in condition_tensors(self.spec.controls, conditions, encode).items()}

    def _own_label(self, seed: int) -> MetaTensor | None:
        source = self.spec.label_source
        if source is None:
            if self.spec.task != "label_to_image":
                return None
            raise MedgenError(f"{self.spec.name}: the model needs a label map. Pass label=... (--label FILE).")
        from medgen.anatomy.population import Population

        made: MetaTensor = Population(**source["population"]).label(derive_seed(seed, "anatomy"))
        return made

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse a volume whose axes the networks cannot take.

        Raises:
            MedgenError: another number of axes, or one that is no multiple of :attr:`multiple`.
        """
        if len(size) != self.spec.spatial_dims or any(n % self.multiple or n < self.multiple for n in size):
            raise MedgenError(
                f"{self.spec.name}: label must have {self.spec.spatial_dims} spatial axes, each a multiple of "
                f"{self.multiple}. Got {size}. Bring it there with medgen.geometry.ModelGrid."
            )

    def _check_affine(self, label: MetaTensor) -> None:
        if not isinstance(label, MetaTensor):
            raise MedgenError(
                f"{self.spec.name}: label must be a MetaTensor, which says where it lies. Got {type(label).__name__}. "
                "Read it with medgen.io or wrap it: MetaTensor(ids, affine=...)."
            )
        wanted, found = np.diag([*self.spec.grid.spacing]), np.asarray(label.affine, dtype=np.float64)[:3, :3]
        if self.spec.spatial_dims == 3 and not np.allclose(found, wanted, atol=1e-3):
            raise MedgenError(
                f"{self.spec.name}: label must have RAS+ axes and spacing {list(self.spec.grid.spacing)} mm. Got the "
                f"affine {found.round(3).tolist()}. Bring it there with medgen.geometry.ModelGrid."
            )

    def grid_affine(self) -> Tensor:
        """Affine ``(4, 4)`` float64 of the model's grid with its centre at the origin, RAS+ mm."""
        spacing = np.array([*self.spec.grid.spacing, *[1.0] * (3 - self.spec.spatial_dims)])
        size = np.array([*self.spec.grid.size, *[1] * (3 - self.spec.spatial_dims)])
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -spacing * (size - 1) / 2
        return torch.from_numpy(affine)

    def provenance(self, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What made a sample: enough to make it again, and nothing about when or where."""
        return {
            "synthetic": True,
            "model": self.spec.name,
            "model_version": self.spec.version,
            "model_sha256": self.hash,
            "seed": seed,
            **settings,
            "device": self.device.type,
            "versions": {"medgen": medgen.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def refuse_options(spec: ModelSpec, options: Mapping[str, Any], allowed: tuple[str, ...] = ()) -> None:
    """Refuse settings that a family does not have.

    Raises:
        MedgenError: an option that is not None and not in ``allowed``.
    """
    for name, value in options.items():
        if value is not None and name not in allowed:
            has = f"It has {', '.join(allowed)}." if allowed else "It has no such settings."
            raise MedgenError(f"{spec.name}: a model of family '{spec.family}' has no '{name}'. {has} Leave it out.")
