"""Checkpoints that are whole or not there."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any, TypedDict, cast

import torch

from medgen.checks import MedgenError
from medgen.io.atomic import atomic_path

CHECKPOINT = "checkpoint.pt"
# the temporary names of medgen.io.atomic
_FILE_LEFTOVER = re.compile(r"\.[0-9a-f]{12}\.(checkpoint\.pt|config\.yaml|run\.json|step_\d+\.png)")
_MODEL_LEFTOVER = re.compile(r"\.model\.[0-9a-f]{12}(\.old)?")


class TrainerState(TypedDict):
    """What changes from step to step; :class:`~medgen.trainers.base.RunTrainer` gives and takes it.

    ``networks``, ``ema`` and ``optimizers`` hold state dictionaries by name.
    """

    step: int
    networks: dict[str, dict[str, Any]]
    ema: dict[str, dict[str, Any]]
    optimizers: dict[str, dict[str, Any]]
    gradient_scaler: dict[str, Any]
    extra: dict[str, Any]


class Checkpoint(TrainerState):
    """All that a checkpoint holds.

    ``spec`` is the specification as plain JSON, with the figures measured before the first step; ``threads`` are those
    of torch, on which the last bits depend; ``seconds`` were spent on the steps so far.
    """

    config: dict[str, Any]
    spec: dict[str, Any]
    threads: int
    seconds: float


def save_checkpoint(folder: Path, content: Checkpoint) -> None:
    """Write ``folder/checkpoint.pt``: temporary file, fsync, rename.

    Raises:
        OSError: the disk is full; the checkpoint before stays.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(folder / CHECKPOINT) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read ``folder/checkpoint.pt`` (tensors and plain values only).

    Raises:
        MedgenError: there is none, it is damaged, or it is something else.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise MedgenError(f"nothing to resume: '{folder}' holds no {CHECKPOINT}. Leave --resume out.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise MedgenError(f"checkpoint '{path}' cannot be read ({type(error).__name__}). Train anew.") from error
    missing = Checkpoint.__required_keys__ - (content.keys() if isinstance(content, dict) else frozenset())
    if missing:
        raise MedgenError(
            f"checkpoint '{path}' is none of a training run of this medgen: it lacks {', '.join(sorted(missing))}. "
            "Train anew into another folder."
        )
    return cast(Checkpoint, content)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing in ``folder``: hidden temporary files and model folders."""
    for path in [*folder.glob(".*.*"), *folder.glob("pictures/.*.png")]:
        if path.is_dir() and _MODEL_LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and _FILE_LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
