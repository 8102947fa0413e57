"""The control encoder: null tokens, padding, and that every input counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from medgen.checks import MedgenError
from medgen.networks.control_encoder import ControlEncoder, FourierFeatures

NAN = math.nan


def encoder() -> ControlEncoder:
    torch.manual_seed(0)
    return ControlEncoder(8, classes=[2, 3], numbers=2, text_dim=6)


def request(**changes: Any) -> dict[str, torch.Tensor]:
    text = torch.zeros(1, 4, 6)
    text[0, :2] = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    given = {"classes": torch.tensor([[0, 2]]), "numbers": torch.tensor([[0.5, -1.0]]), "text": text}
    return given | changes


def test_shape_and_padding() -> None:
    tokens = encoder()(**request())
    assert tokens.shape == (1, 2 + 2 + 1 + 4, 8)
    assert tokens[0, :7].any(dim=1).all()
    assert not tokens[0, 7:].any()


def test_more_padding_changes_nothing() -> None:
    given = request()
    longer = request(text=torch.cat([given["text"], torch.zeros(1, 3, 6)], dim=1))
    assert torch.allclose(encoder()(**longer)[:, :9], encoder()(**given))


def test_every_value_counts_and_is_told_from_not_given() -> None:
    net, zero = encoder(), torch.zeros(1, 4, 6)
    asked = [
        request(),
        request(classes=torch.tensor([[1, 2]])),
        request(classes=torch.tensor([[-1, 2]])),
        request(numbers=torch.tensor([[0.6, -1.0]])),
        request(numbers=torch.tensor([[NAN, -1.0]])),
        request(numbers=torch.tensor([[0.0, -1.0]])),
        request(text=-request()["text"]),
        request(text=zero),
    ]
    made = [net(**one).detach() for one in asked]
    for i, first in enumerate(made):
        assert first.isfinite().all()
        for second in made[i + 1 :]:
            assert not torch.allclose(first, second)


def test_rows_stand_alone() -> None:
    net = encoder()
    one, other = request(), request(numbers=torch.tensor([[NAN, 2.0]]), text=torch.zeros(1, 4, 6))
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    assert torch.allclose(net(**both), torch.cat([net(**one), net(**other)]), atol=1e-6)


def test_gradients_are_finite_without_any_control() -> None:
    net = encoder()
    nothing = {
        "classes": torch.full((2, 2), -1), "numbers": torch.full((2, 2), NAN), "text": torch.zeros(2, 4, 6)
    }  # fmt: skip
    net(**nothing).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert net.no_text.grad is not None


def test_fourier_features() -> None:
    features = FourierFeatures(3, 0.25, 1.0)
    found = features(torch.tensor([1.0]))
    phase = 2 * math.pi * torch.tensor([0.25, 0.5, 1.0])
    assert torch.allclose(found, torch.cat([torch.ones(1), phase.cos(), phase.sin()])[None], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"classes": None}, "classes must have 2 columns. Got 0"),
        ({"numbers": torch.zeros(1, 3)}, "numbers must have 2 columns. Got 3"),
        ({"text": torch.zeros(1, 4, 5)}, "text must have 6 channels. Got 5"),
        ({"classes": torch.tensor([[2, 0]])}, "classes must be below"),
    ],
)
def test_refusals(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        encoder()(**request(**changes))


def test_no_control() -> None:
    with pytest.raises(MedgenError, match="at least one control"):
        ControlEncoder(8)
