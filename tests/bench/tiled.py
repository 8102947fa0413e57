"""Exact tiled encoding and decoding next to MONAI's sliding window: ``python -m tests.bench.tiled [--size 64 80 64]``.

For an ``AutoencoderKL`` of random weights: computing time over that of the whole-volume pass (fastest of alternating
runs, one thread), multiply-adds over its, largest difference over the range of its result, and peak memory beyond the
start (each in its own process). The sliding window decodes tiles of 16 latent voxels an axis, Gaussian weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers.inferer import SlidingWindowInferer
from monai.networks.nets import AutoencoderKL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from medgen.networks.tiled import TiledAutoencoder

RUNS = 2
Action = Callable[[], Tensor]


def network_and_volume(size: Sequence[int]) -> tuple[Any, Tensor]:
    """An autoencoder of 16, 32 and 32 channels, and noise."""
    torch.manual_seed(0)
    network = AutoencoderKL(
        3, 1, 1, channels=(16, 32, 32), num_res_blocks=1, attention_levels=(False, False, False), norm_num_groups=8,
        latent_channels=4, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    ).eval()  # fmt: skip
    return network, torch.randn(1, 1, *size)


def multiply_adds() -> FlopCounterMode:
    """Counts multiply-adds, those of oneDNN called by name too."""

    def convolution(x: Sequence[int], w: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return conv_flop_count(list(x), list(w), list(out_shape))

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_convolution: convolution})


def actions(size: Sequence[int], budget: int) -> dict[str, Action]:
    """What is measured."""
    network, x = network_and_volume(size)
    coder = TiledAutoencoder(network, budget)
    with torch.no_grad():
        latent = coder.encode(x)[0]
    found: dict[str, Action] = {
        "encode, whole": lambda: network.encode(x)[0],
        "encode, tiled": lambda: coder.encode(x)[0],
        "decode, whole": lambda: network.decode(latent),
        "decode, tiled": lambda: coder.decode(latent),
    }
    for overlap in (0.25, 0.5):
        window = SlidingWindowInferer(roi_size=(16,) * 3, overlap=overlap, mode="gaussian", sw_batch_size=1)
        found[f"decode, sliding window, overlap {overlap}"] = lambda window=window: window(latent, network.decode)
    return found


@torch.no_grad()
def compared(size: Sequence[int], budget: int) -> list[tuple[str, float, float, float]]:
    """Name, time, multiply-adds and difference relative to the whole-volume pass."""
    todo = actions(size, budget)
    best, flops, made = dict.fromkeys(todo, float("inf")), {}, {}
    for run in range(RUNS + 1):
        for name, action in todo.items():
            if run == 0:
                with multiply_adds() as counter:
                    made[name] = action()
                flops[name] = counter.get_total_flops()
                continue
            start = time.process_time()
            action()
            best[name] = min(best[name], time.process_time() - start)
    rows = []
    for name in todo:
        whole = f"{name.split(',')[0]}, whole"
        spread = made[whole].max() - made[whole].min()
        difference = float((made[name] - made[whole]).abs().max() / spread)
        rows.append((name, best[name] / best[whole], flops[name] / flops[whole], difference))
    return rows


def _peak(name: str, size: Sequence[int], budget: int, queue: Any) -> None:
    torch.set_num_threads(1)
    todo = actions(size, budget)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _kilobytes("VmRSS")
    with torch.no_grad():
        todo[name]()
    queue.put((_kilobytes("VmHWM") - before) * 1024)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak(name: str, size: Sequence[int], budget: int) -> float:
    """Bytes beyond what lay in memory before; Linux."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(name, size, budget, queue))
    process.start()
    found: float = queue.get(timeout=3600)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 80, 64])
    parser.add_argument("--budget-mb", type=float, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, budget = tuple(arguments.size), int(arguments.budget_mb * 1e6)
    print(f"volume of {size}, memory budget {arguments.budget_mb:g} MB; relative to the whole-volume pass\n")
    print("| | time | multiply-adds | largest difference / range | peak memory, MB |\n|---|---|---|---|---|")
    for name, seconds, flops, difference in compared(size, budget):
        memory = peak(name, size, budget) / 1e6
        print(f"| {name} | {seconds:.2f} | {flops:.3f} | {difference:.1e} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
