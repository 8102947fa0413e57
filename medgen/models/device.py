"""Which device a model runs on, by the words of the command line: auto, cpu, cuda, cuda:N, mps."""

from __future__ import annotations

import multiprocessing
import re
from typing import TYPE_CHECKING

from medgen.checks import MedgenError, nearest

if TYPE_CHECKING:
    import torch

NAMES = ("auto", "cpu", "cuda", "cuda:0", "mps")


def resolve_device(device: str | torch.device = "auto", caller: str = "device") -> torch.device:
    """The torch device that a name means on this machine.

    Args:
        device: ``auto`` (CUDA where there is one, else Apple's MPS, else the CPU; always the CPU inside a forked
            DataLoader worker), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        caller: who asks, for errors.

    Returns:
        The device, with its index for CUDA.

    Raises:
        MedgenError: no such word, the device is not there, or CUDA in a forked process.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    import torch

    name = str(device)
    if name == "auto":
        return _automatic()
    match = re.fullmatch(r"(cpu|mps|cuda)(?::(\d{1,3}))?", name)
    if match is None or (match[1] != "cuda" and match[2] not in {None, "0"}):
        hint = nearest(name, NAMES) or " Choose auto, cpu, cuda, cuda:N or mps."
        raise MedgenError(f"{caller}: device must be one of auto, cpu, cuda, cuda:N, mps. Got {name!r}.{hint}")
    if match[1] == "cuda":
        return _cuda(int(match[2] or 0), caller)
    if match[1] == "mps" and not torch.backends.mps.is_available():
        raise MedgenError(f"{caller}: device 'mps' is not available on this machine. Use device 'auto' or 'cpu'.")
    return torch.device(match[1])


def _automatic() -> torch.device:
    import torch

    if in_forked_process():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _cuda(index: int, caller: str) -> torch.device:
    import torch

    check_not_forked("cuda", caller)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        built = "" if torch.version.cuda else " (this torch is built without CUDA)"
        raise MedgenError(
            f"{caller}: device 'cuda' is not available on this machine{built}. Use device 'auto' or 'cpu'."
        )
    if index >= count:
        raise MedgenError(
            f"{caller}: device 'cuda:{index}' does not exist, there are {count}. Use cuda:0..{count - 1}."
        )
    return torch.device("cuda", index)


def in_forked_process() -> bool:
    """Whether this process was forked (not spawned) by ``multiprocessing``, as DataLoader workers are by default."""
    if multiprocessing.parent_process() is None:
        return False
    kind = type(multiprocessing.current_process()).__name__
    if kind == "Process":  # made by the default context
        return multiprocessing.get_start_method() == "fork"
    return kind == "ForkProcess"


def check_not_forked(device: str | torch.device, caller: str) -> None:
    """Refuse CUDA in a forked process, where it hangs or crashes.

    Args:
        device: where the model lives.
        caller: who asks, for the error.

    Raises:
        MedgenError: ``device`` is CUDA and this process is a forked worker.
    """
    if str(device).startswith("cuda") and in_forked_process():
        raise MedgenError(
            f"{caller}: a model on '{device}' cannot be used in a forked DataLoader worker. Give the DataLoader "
            "multiprocessing_context='spawn', use device 'cpu', or apply the transform in the main process "
            "(num_workers=0)."
        )
