"""How many threads of the CPU work, so that the bytes of a result do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def at_most_threads(count: int, device: torch.device) -> Iterator[None]:
    """At most ``count`` CPU threads inside, the caller's number again outside; no effect on another device.

    It never raises the number: DataLoader workers have one, and a forked worker that asked for more would hang in
    OpenMP. The registered networks give equal bytes on one and two threads (tested); on more, matrix products are
    split otherwise.

    Args:
        count: of threads.
        device: where the work inside is done.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before <= count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
