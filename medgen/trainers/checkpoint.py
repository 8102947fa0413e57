"""Checkpoints that are whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from medgen.checks import MedgenError
from medgen.io.atomic import atomic_path

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write ``folder/checkpoint.pt``: temporary file, fsync, rename.

    Raises:
        OSError: the disk is full; the checkpoint before stays.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(folder / CHECKPOINT) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read ``folder/checkpoint.pt`` (tensors and plain values only).

    Raises:
        MedgenError: there is none, or it is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise MedgenError(f"nothing to resume: '{folder}' holds no {CHECKPOINT}. Leave --resume out.")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise MedgenError(f"checkpoint '{path}' cannot be read ({type(error).__name__}). Train anew.") from error
    return content
