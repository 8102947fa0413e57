"""Models: folders that are MONAI bundles, read without running anything they hold.

Names are imported on first use, so that ``import medgen.models`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.models.base import Model
    from medgen.models.bundled import ModelSummary, bundled_models, describe_models, find_model, load_model
    from medgen.models.card import draft_card, validate_card, write_card
    from medgen.models.device import check_not_forked, resolve_device
    from medgen.models.diffusion_model import DiffusionModel
    from medgen.models.diffusion_spec import DiffusionSpec
    from medgen.models.folder import model_hash, open_model, read_model, read_spec, save_model
    from medgen.models.sampling import Sampling
    from medgen.models.specification import Grid, Intensity, ModelSpec

_HOMES = {
    "bundled": ("ModelSummary", "bundled_models", "describe_models", "find_model", "load_model"),
    "card": ("draft_card", "validate_card", "write_card"),
    "device": ("check_not_forked", "resolve_device"),
    "folder": ("model_hash", "open_model", "read_model", "read_spec", "save_model"),
    "base": ("Model",),
    "diffusion_model": ("DiffusionModel",),
    "diffusion_spec": ("DiffusionSpec",),
    "sampling": ("Sampling",),
    "specification": ("Grid", "Intensity", "ModelSpec"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DiffusionModel",
    "DiffusionSpec",
    "Grid",
    "Intensity",
    "Model",
    "ModelSpec",
    "ModelSummary",
    "Sampling",
    "bundled_models",
    "check_not_forked",
    "describe_models",
    "draft_card",
    "find_model",
    "load_model",
    "model_hash",
    "open_model",
    "read_model",
    "read_spec",
    "resolve_device",
    "save_model",
    "validate_card",
    "write_card",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'medgen.models' has no attribute {name!r}")
    return getattr(import_module(f"medgen.models.{_HOME_OF[name]}"), name)
