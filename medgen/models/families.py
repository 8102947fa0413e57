"""The families of models: which specification and which class belong to the word ``family`` in a ``medgen.json``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.specification import ModelSpec


@dataclass(frozen=True)
class Family:
    """One family; its classes are imported when they are needed.

    Args:
        spec: ``module:class`` of the specification.
        model: ``module:class`` of the model.
    """

    spec: str
    model: str


FAMILIES: dict[str, Family] = {
    "diffusion": Family("medgen.models.diffusion_spec:DiffusionSpec", "medgen.models.diffusion_model:DiffusionModel"),
    "autoencoder": Family(
        "medgen.models.autoencoder_spec:AutoencoderSpec", "medgen.models.autoencoder:AutoencoderModel"
    ),
    "autoregressive": Family(
        "medgen.models.autoregressive_spec:AutoregressiveSpec", "medgen.models.autoregressive:AutoregressiveModel"
    ),
    "gan": Family("medgen.models.gan_spec:GanSpec", "medgen.models.gan:GanModel"),
    "restorer": Family("medgen.models.restorer_spec:RestorerSpec", "medgen.models.restorer:RestorerModel"),
}


def find_family(name: Any, source: str) -> Family:
    """The family of a name.

    Raises:
        MedgenError: there is none of that name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise MedgenError(
            f"{source}: field 'family' must be one of {', '.join(FAMILIES)}. Got {name!r:.60}.{nearest(name, FAMILIES)}"
        )
    return FAMILIES[name]


def spec_class(name: Any, source: str) -> type[ModelSpec]:
    """The specification's class of a family; see :func:`find_family`."""
    found: type[ModelSpec] = imported(find_family(name, source).spec)
    return found


def model_class(name: Any, source: str) -> type[Model]:
    """The model's class of a family; see :func:`find_family`."""
    found: type[Model] = imported(find_family(name, source).model)
    return found


def imported(place: str) -> Any:
    """The object at ``module:name``, both written in medgen's own code."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
