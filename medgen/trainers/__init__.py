"""Training: configurations, data, and trainers on MONAI's engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.trainers.run import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from medgen.trainers.run import train

        return train
    raise AttributeError(f"module 'medgen.trainers' has no attribute {name!r}")
