"""Models of other programs: MONAI bundles and schedulers, GenerativeModels-era weights, diffusers folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.models.interop.importer import import_model
    from medgen.models.interop.schedulers import adapt_scheduler, denoiser_from_scheduler
    from medgen.models.interop.weights import core_names, fit_weights, read_weights

__all__ = ["adapt_scheduler", "core_names", "denoiser_from_scheduler", "fit_weights", "import_model", "read_weights"]

_MODULES = {
    "import_model": "importer",
    "adapt_scheduler": "schedulers",
    "denoiser_from_scheduler": "schedulers",
    "core_names": "weights",
    "fit_weights": "weights",
    "read_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"medgen.models.interop.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'medgen.models.interop' has no attribute {name!r}")
