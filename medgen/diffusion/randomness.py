"""One random stream per sample, so that a sample's bytes never depend on its neighbours in the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed; the same seed gives the same stream on every device.

    Args:
        seeds: one integer per sample.
    """
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def randn(
    shape: Sequence[int],
    streams: Sequence[torch.Generator],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise, row ``i`` drawn from stream ``i`` on the CPU and then moved.

    Args:
        shape: shape of one sample, ``(C, *spatial)``.
        streams: one generator per sample.
        dtype: floating type of the draw.
        device: where the result goes.

    Returns:
        ``(len(streams), *shape)``.
    """
    rows = [torch.randn(tuple(shape), generator=stream, dtype=dtype) for stream in streams]
    return torch.stack(rows).to(device)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a fixed function of its parts (seed, step, item, purpose).

    Example:
        >>> derive_seed(1, "noise", 7) == derive_seed(1, "noise", 7)
        True
        >>> derive_seed(1, "noise", 7) == derive_seed(1, "noise", 8)
        False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
