"""Synthetic and restored medical volumes with diffusion models: generate, inpaint, train, augment.

Importing this package starts nothing: no network, no device, no random state. What is heavy is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.checks import MedgenError
    from medgen.models.bundled import load_model

__version__ = "0.1.0"
__all__ = ["MedgenError", "__version__", "load_model"]

_LAZY = {"load_model": "medgen.models.bundled", "MedgenError": "medgen.checks"}


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'medgen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
