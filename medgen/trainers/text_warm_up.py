"""What embeds prompts learns what they say before anything is generated from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed

__all__ = ["warm_up"]

BATCH = 32
RATE = 1.5e-3
KEPT = 0.7  # of the channels of an embedding in each step: no single one is relied on


def warm_up(encoder: nn.Module, prompts: Tensor, answers: Mapping[str, Tensor], steps: int, seed: int) -> float:
    """Train a control encoder so that linear layers on its tokens tell what prompts say; the layers are thrown away.

    A caption says little of an image, and the loss of a denoiser little of the caption: most of it is noise. What
    every text-to-image model has from a contrastively trained encoder (Radford et al. 2021, arXiv:2103.00020), a small
    one gets from the values that its prompts were made of.

    Args:
        encoder: a :class:`~medgen.networks.control_encoder.ControlEncoder` whose only control is text; changed.
        prompts: token embeddings ``(N, L, E)``.
        answers: of each attribute the number of its value, ``(N,)``, -1 = not said.
        steps: of Adam.
        seed: of batches and layers.

    Returns:
        Share of right answers in the last tenth of the steps.

    Raises:
        MedgenError: prompts that use no words, or controls beside the text.
    """
    controls: Any = encoder
    if not answers or controls.sizes or len(controls.numbers):
        raise MedgenError(
            "field 'text_warm_up' needs a text control whose prompts use 'words', and no other control. Set it to 0."
        )
    said = torch.stack(list(answers.values())).amax(0) >= 0
    if not bool(said.any()):
        raise MedgenError("field 'text_warm_up': no prompt says anything by 'words'. Set it to 0.")
    prompts, answers = prompts[said], {name: numbers[said] for name, numbers in answers.items()}
    stream = torch.Generator().manual_seed(derive_seed(seed, "warm-up"))
    device = next(encoder.parameters()).device
    heads = _heads(controls.context_dim, answers, derive_seed(seed, "heads"), device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=RATE)
    encoder.train()
    right: list[float] = []
    for _ in range(steps):
        chosen = torch.randint(len(prompts), (BATCH,), generator=stream)
        kept = torch.rand(BATCH, 1, prompts.shape[2], generator=stream) < KEPT
        tokens = encoder(text=(prompts[chosen] * kept / KEPT).to(device))
        pooled = torch.cat([tokens[:, :1], _mean(tokens)], dim=1)
        loss = torch.zeros((), device=device)
        for name, numbers in answers.items():
            wanted = numbers[chosen].to(device)
            for place in range(2):
                found = heads[f"{name}-{place}"](pooled[:, place])
                if bool((wanted >= 0).any()):
                    loss = loss + F.cross_entropy(found, wanted, ignore_index=-1)
            said = wanted >= 0
            right += (found.argmax(1) == wanted)[said].float().tolist()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    last = right[-max(1, len(right) // 10) :]
    return sum(last) / len(last)


def _heads(channels: int, answers: Mapping[str, Tensor], seed: int, device: torch.device) -> nn.ModuleDict:
    """A linear layer for each attribute on the summary token, and one on the mean of all tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = {
            f"{name}-{place}": nn.Linear(channels, int(numbers.max()) + 1)
            for name, numbers in answers.items()
            for place in range(2)
        }
    return nn.ModuleDict(made).to(device)


def _mean(tokens: Tensor) -> Tensor:
    """``(B, 1, D)``: of the tokens that are no padding."""
    there = (tokens != 0).any(dim=2, keepdim=True)
    return (tokens * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
