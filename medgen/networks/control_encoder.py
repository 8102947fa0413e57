"""What is asked of a subject (classes, numbers, text) as context tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medgen.checks import MedgenError


class FourierFeatures(nn.Module):
    """``[v, cos(2 pi f v), sin(2 pi f v)]`` of numbers, frequencies at equal ratios.

    Args:
        count: of frequencies.
        lowest: cycles per unit of ``v``.
        highest: cycles per unit of ``v``.

    References:
        Tancik et al. 2020 (arXiv:2006.10739), section 5, "positional encoding".
    """

    frequencies: Tensor

    def __init__(self, count: int = 16, lowest: float = 1 / 16, highest: float = 1.0) -> None:
        super().__init__()
        ratio = torch.linspace(0, 1, count)
        self.register_buffer("frequencies", lowest * (highest / lowest) ** ratio, persistent=False)

    @property
    def channels(self) -> int:
        """Of the result."""
        return 1 + 2 * self.frequencies.numel()

    def forward(self, v: Tensor) -> Tensor:
        """``(...)`` to ``(..., channels)``."""
        phase = 2 * math.pi * v[..., None] * self.frequencies
        return torch.cat([v[..., None], phase.cos(), phase.sin()], dim=-1)


class ControlEncoder(nn.Module):
    """Classes, numbers and text to context tokens ``(B, T, context_dim)``, a learnt token where one is not given.

    One token for each class control and each number. Text gives the mean of its token embeddings, then each of them;
    the rows of padding stay zero, and who reads the context leaves zero rows out.

    Args:
        context_dim: channels of a token.
        classes: number of classes of each class control.
        numbers: how many numbers.
        text_dim: channels of a token embedding, 0 for no text.
        frequencies: of the Fourier features of a number.
    """

    def __init__(
        self, context_dim: int, classes: Sequence[int] = (), numbers: int = 0, text_dim: int = 0, frequencies: int = 16
    ) -> None:
        super().__init__()
        if not (classes or numbers or text_dim):
            raise MedgenError("ControlEncoder: classes, numbers and text_dim are all empty. Give at least one control.")
        self.context_dim = context_dim
        self.sizes = tuple(classes)
        self.classes = nn.ModuleList(nn.Embedding(count + 1, context_dim) for count in classes)
        self.features = FourierFeatures(frequencies)
        self.numbers = nn.ModuleList(_perceptron(self.features.channels, context_dim) for _ in range(numbers))
        if numbers:
            self.no_number = nn.Parameter(torch.randn(numbers, context_dim))
        self.text_dim = text_dim
        if text_dim:
            self.summary = _perceptron(text_dim, context_dim)
            self.words = nn.Linear(text_dim, context_dim)
            self.no_text = nn.Parameter(torch.randn(context_dim))

    def forward(
        self, classes: Tensor | None = None, numbers: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Tokens ``(B, T, context_dim)`` of one batch.

        Args:
            classes: ``(B, Kc)`` int64, -1 = not given.
            numbers: ``(B, Kn)`` standardised, NaN = not given.
            text: token embeddings ``(B, L, E)``; a zero row = padding, all zero = not given.

        Raises:
            MedgenError: an input of another shape than the encoder was built for, or a class that does not exist.
        """
        self._check(classes, numbers, text)
        tokens = []
        if classes is not None:
            tokens.append(self._classes(classes))
        if numbers is not None:
            tokens.append(self._numbers(numbers))
        if text is not None and self.text_dim:
            tokens.append(self._text(text))
        return torch.cat(tokens, dim=1)

    def _classes(self, classes: Tensor) -> Tensor:
        columns = zip(self.classes, self.sizes, classes.unbind(1), strict=True)
        return torch.stack([embed(column.where(column >= 0, size)) for embed, size, column in columns], dim=1)

    def _numbers(self, numbers: Tensor) -> Tensor:
        given = numbers.isfinite()
        features = self.features(numbers.where(given, 0))
        found = torch.stack([net(row) for net, row in zip(self.numbers, features.unbind(1), strict=True)], dim=1)
        return found.where(given[..., None], self.no_number)

    def _text(self, text: Tensor) -> Tensor:
        word = (text != 0).any(dim=2, keepdim=True)
        given = word.any(dim=1, keepdim=True)
        scaled = _unit(text)
        mean = _unit((text * word).sum(dim=1, keepdim=True))
        summary = self.summary(mean).where(given, self.no_text)
        return torch.cat([summary, self.words(scaled) * word], dim=1)

    def _check(self, classes: Tensor | None, numbers: Tensor | None, text: Tensor | None) -> None:
        for name, given, count in (("classes", classes, len(self.sizes)), ("numbers", numbers, len(self.numbers))):
            found = 0 if given is None else given.shape[1]
            if found != count:
                raise MedgenError(f"ControlEncoder: {name} must have {count} columns. Got {found}. Give all of them.")
        found = 0 if text is None else text.shape[2]
        if found != self.text_dim:
            raise MedgenError(
                f"ControlEncoder: text must have {self.text_dim} channels. Got {found}. Use that of the training."
            )
        if classes is not None and bool((classes >= torch.tensor(self.sizes, device=classes.device)).any()):
            raise MedgenError(
                f"ControlEncoder: classes must be below {self.sizes}. Got {classes.tolist()}. Correct it."
            )


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def _unit(x: Tensor) -> Tensor:
    """Rows of root mean square 1; zero rows stay zero."""
    return x / x.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
