"""What embeds prompts can be taught what they say."""

from __future__ import annotations

import pytest
import torch

from medgen.checks import MedgenError
from medgen.networks.control_encoder import ControlEncoder
from medgen.trainers.text_warm_up import warm_up


def prompts(count: int = 40) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Token embeddings in which one channel says the class; a quarter say nothing."""
    stream = torch.Generator().manual_seed(0)
    text = torch.randn(count, 5, 12, generator=stream)
    kind = torch.arange(count) % 4
    text[:, :, 3] = (kind.float() - 1)[:, None] * 3
    return text, {"size": torch.where(kind == 3, -1, kind)}


def encoder() -> ControlEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ControlEncoder(16, text_dim=12)


def test_it_learns_what_is_said() -> None:
    text, answers = prompts()
    before = torch.random.get_rng_state()
    assert warm_up(encoder(), text, answers, 300, seed=1) > 0.75
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator stays as it is"
    shuffled = {"size": answers["size"][torch.randperm(len(text), generator=torch.Generator().manual_seed(5))]}
    assert warm_up(encoder(), text, shuffled, 60, seed=1) < 0.7


def test_same_seed_same_weights() -> None:
    first, second = encoder(), encoder()
    text, answers = prompts()
    warm_up(first, text, answers, 5, seed=1)
    warm_up(second, text, answers, 5, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_what_cannot_be_learnt_is_refused() -> None:
    text, answers = prompts()
    with pytest.raises(MedgenError, match="whose prompts use 'words'"):
        warm_up(encoder(), text, {}, 5, seed=1)
    with pytest.raises(MedgenError, match="no prompt says anything"):
        warm_up(encoder(), text, {"size": torch.full((len(text),), -1)}, 5, seed=1)
    with pytest.raises(MedgenError, match="no other control"):
        warm_up(ControlEncoder(16, numbers=1, text_dim=12), text, answers, 5, seed=1)
