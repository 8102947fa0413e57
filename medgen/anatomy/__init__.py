"""Bundled atlases and random subjects made from them."""

from __future__ import annotations

from medgen.anatomy.labels import CHANNELS, LABELS, LabelInfo

__all__ = ["CHANNELS", "LABELS", "LabelInfo"]
