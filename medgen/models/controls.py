"""Controls: what a user may ask of a generated subject, as classes, numbers and text.

A model declares each :class:`Control` with the distribution of its values over the training people. A request such as
``{"size": "large", "volume_ml": 3.1, "prompt": "a small hippocampus"}`` becomes the tensors that a
:class:`medgen.networks.control_encoder.ControlEncoder` takes: ``classes`` ``(B, Kc)`` int64, -1 = not given;
``numbers`` ``(B, Kn)`` float32 standardised, NaN = not given; ``text`` ``(B, L, E)`` float32 token embeddings, a zero
row = padding, all zero = not given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medgen.checks import MedgenError, check_choice
from medgen.diffusion.randomness import derive_seed
from medgen.models.fields import Checked, checked, choice, integer, number, refuse, sequence, text

__all__ = [
    "PROMPT", "Condition", "Control", "Encode", "check_conditions", "class_control",
    "condition_tensors", "control_arguments", "draw_conditions", "null_conditions", "number_control", "text_control",
]  # fmt: skip

KINDS = ("class", "number", "text")
PROMPT = "prompt"
QUANTILES = 33
MAX_PROMPTS = 256

Condition = str | float
Encode = Callable[[Sequence[str]], Tensor]
"""Texts to token embeddings ``(N, L, E)`` float32, padding zero: :meth:`medgen.models.text.TextEncoder.encode`."""

_name = text(r"[A-Za-z][A-Za-z0-9_]*", "a name of letters, digits and _", 64)
_value = text(r"[^\x00-\x1f\x7f]+", "a name on one line", 100)
_encoder = text(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, '.', '_' and '-'", 100)


@dataclass(frozen=True)
class Control(Checked):
    """One thing that may be asked for, and how it was distributed over the training people.

    Args:
        name: what a request calls it; a text control is called ``prompt``.
        kind: ``class``, ``number`` or ``text``.
        values: names of the classes (``class``).
        shares: share of each class (``class``).
        mean: of the numbers (``number``).
        std: standard deviation of the numbers (``number``).
        quantiles: of the numbers at equal steps from the least to the greatest (``number``).
        unit: of the numbers.
        prompts: texts seen in training, each as probable as the others (``text``).
        encoder: name of the text encoder (``text``).
        encoder_sha256: of its weights.
        tokens: longest text, in tokens (``text``).
        text_dim: channels of a token embedding (``text``).

    Raises:
        MedgenError: a field fails its check or does not fit the kind.
    """

    name: str = checked(_name)
    kind: str = checked(choice(lambda: KINDS))
    values: tuple[str, ...] = checked(sequence(_value, 0, 256), default=())
    shares: tuple[float, ...] = checked(sequence(number(0, 1), 0, 256), default=())
    mean: float = checked(number(-1e9, 1e9), default=0.0)
    std: float = checked(number(0, 1e9, above=True), default=1.0)
    quantiles: tuple[float, ...] = checked(sequence(number(-1e9, 1e9), 0, 1001), default=())
    unit: str = checked(text(longest=32), default="")
    prompts: tuple[str, ...] = checked(sequence(text(longest=500), 0, MAX_PROMPTS), default=())
    encoder: str = checked(_encoder, default="none")
    encoder_sha256: str = checked(text(r"[0-9a-f]{64}|", "a SHA-256 in hexadecimal", 64), default="")
    tokens: int = checked(integer(1, 512), default=32)
    text_dim: int = checked(integer(1, 4096), default=384)

    def __post_init__(self) -> None:
        super().__post_init__()
        {"class": _check_class, "number": _check_number, "text": _check_text}[self.kind](self)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest number."""
        return self.quantiles[0], self.quantiles[-1]


def _check_class(control: Control) -> None:
    if len(control.values) < 2 or len(set(control.values)) != len(control.values):
        raise refuse(f"control '{control.name}'", "values", "at least two different classes", control.values)
    if len(control.shares) != len(control.values) or not math.isclose(sum(control.shares), 1, abs_tol=1e-3):
        raise refuse(f"control '{control.name}'", "shares", "one share of each class, together 1", control.shares)


def _check_number(control: Control) -> None:
    if len(control.quantiles) < 2 or list(control.quantiles) != sorted(control.quantiles):
        raise refuse(f"control '{control.name}'", "quantiles", "two or more rising numbers", control.quantiles)


def _check_text(control: Control) -> None:
    if control.name != PROMPT:
        raise refuse(f"control '{control.name}'", "name", f"'{PROMPT}', as every text control is", control.name)
    if not control.prompts or control.encoder == "none":
        raise refuse("control 'prompt'", "prompts", "at least one text, with its encoder", control.prompts)


def class_control(name: str, values: Sequence[str], order: Sequence[str] | None = None) -> Control:
    """The control that classes of people make.

    Args:
        name: of the control.
        values: class of each training person.
        order: all classes; by default those found, sorted.
    """
    names = tuple(order or sorted(set(values)))
    count = Counter(values)
    for value in count:
        check_choice(f"control '{name}'", "value", value, names)
    return Control(name, "class", values=names, shares=tuple(count[value] / len(values) for value in names))


def number_control(name: str, values: Sequence[float], unit: str = "") -> Control:
    """The control that numbers of people make.

    Args:
        name: of the control.
        values: number of each training person, in ``unit``.
        unit: such as ``ml``.

    Raises:
        MedgenError: fewer than two different finite numbers.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2 or not np.isfinite(array).all() or array.std() == 0:
        raise MedgenError(f"control '{name}': numbers of the people must be finite and differ. Got {array[:5]}.")
    quantiles = np.quantile(array, np.linspace(0, 1, QUANTILES))
    return Control(
        name, "number", mean=float(array.mean()), std=float(array.std()), unit=unit,
        quantiles=tuple(float(f"{value:.6g}") for value in quantiles),
    )  # fmt: skip


def text_control(prompts: Sequence[str], encoder: str, encoder_sha256: str, tokens: int, text_dim: int) -> Control:
    """The control that texts about people make.

    Args:
        prompts: of the training people; equally spaced ones of the sorted texts where there are too many to keep.
        encoder: name of the encoder.
        encoder_sha256: of its weights.
        tokens: longest text, in tokens.
        text_dim: channels of a token embedding.
    """
    ordered = sorted(prompts)
    step = max(1.0, len(ordered) / MAX_PROMPTS)
    kept = tuple(ordered[int(i * step)] for i in range(min(len(ordered), MAX_PROMPTS)))
    return Control(
        PROMPT, "text", prompts=kept, encoder=encoder, encoder_sha256=encoder_sha256, tokens=tokens, text_dim=text_dim
    )


def check_conditions(
    controls: Sequence[Control], conditions: Mapping[str, Any] | None, who: str = "sample"
) -> dict[str, Condition]:
    """A request with every value in its final type.

    Args:
        controls: of the model.
        conditions: value by control; numbers may be text (``"3.1"``).
        who: the caller, for errors.

    Returns:
        The same in the order of ``controls``; what was not asked is left out.

    Raises:
        MedgenError: an unknown control, an unknown class, a number beyond those seen in training, an empty prompt.

    Example:
        >>> size = class_control("size", ["small", "large"])
        >>> check_conditions([size], {"size": "larg"})
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: sample: condition 'size' must be one of large, small; got 'larg'. \
Did you mean 'large'?
    """
    asked = dict(conditions or {})
    known = {control.name: control for control in controls}
    for name in asked:
        if name not in known:
            if not known:
                raise MedgenError(f"{who}: condition '{name}' cannot be asked for; the model has no controls.")
            check_choice(who, "condition", name, known)
    return {name: _checked_value(control, asked[name], who) for name, control in known.items() if name in asked}


def _checked_value(control: Control, value: Any, who: str) -> Condition:
    where = f"condition '{control.name}'"
    if control.kind == "class":
        check_choice(who, where, value, control.values)
        return str(value)
    if control.kind == "text":
        if not isinstance(value, str) or not value.strip():
            raise MedgenError(f"{who}: {where} must be a text. Got {value!r}. Write what is wanted.")
        return value.strip()
    low, high = control.range
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found <= high:
        unit = f" {control.unit}" if control.unit else ""
        raise MedgenError(
            f"{who}: {where} must lie in {low:g}..{high:g}{unit}, as seen in training; got {value!r}. "
            "Give a number in this range."
        )
    return found


def draw_conditions(
    controls: Sequence[Control], seed: int, stated: Mapping[str, Condition] | None = None
) -> dict[str, Condition]:
    """A full request: what is not stated is drawn from the distribution of the training people.

    Each control is drawn on its own, from a stream of ``seed`` and its name: what is stated of one leaves the others
    as they are.

    Args:
        controls: of the model.
        seed: of the subject.
        stated: what :func:`check_conditions` gave.
    """
    stated = stated or {}
    return {c.name: stated[c.name] if c.name in stated else _drawn(c, seed) for c in controls}


def _drawn(control: Control, seed: int) -> Condition:
    stream = torch.Generator().manual_seed(derive_seed(seed, "condition", control.name))
    share = float(torch.rand((), generator=stream, dtype=torch.float64))
    if control.kind == "class":
        place = int(np.searchsorted(np.cumsum(control.shares), share, side="right"))
        return control.values[min(place, len(control.values) - 1)]
    if control.kind == "text":
        return control.prompts[int(share * len(control.prompts))]
    steps = np.linspace(0, 1, len(control.quantiles))
    return float(f"{np.interp(share, steps, control.quantiles):.6g}")


def condition_tensors(
    controls: Sequence[Control], conditions: Mapping[str, Condition], encode: Encode | None = None
) -> dict[str, Tensor]:
    """One request as tensors; what it leaves out is "not given".

    Args:
        controls: of the model or the training.
        conditions: value by control.
        encode: texts to token embeddings; needed where there is a prompt.

    Returns:
        ``classes`` ``(1, Kc)``, ``numbers`` ``(1, Kn)``, ``text`` ``(1, tokens, text_dim)``; keys without a control of
        that kind are left out.

    Raises:
        MedgenError: a prompt without ``encode``, or embeddings of another shape than the control says.
    """
    tensors = null_conditions(controls)
    row = {"class": 0, "number": 0}
    for control in controls:
        value = conditions.get(control.name)
        if control.kind == "text":
            if value is not None:
                tensors["text"] = _embedded(control, str(value), encode)
            continue
        column = row[control.kind]
        row[control.kind] += 1
        if value is None:
            continue
        if control.kind == "class":
            tensors["classes"][0, column] = control.values.index(str(value))
        else:
            tensors["numbers"][0, column] = (float(value) - control.mean) / control.std
    return tensors


def _embedded(control: Control, prompt: str, encode: Encode | None) -> Tensor:
    if encode is None:
        raise MedgenError(f"condition 'prompt' needs the text encoder '{control.encoder}'. Install medgen[text].")
    found = encode([prompt])
    if found.ndim != 3 or found.shape[1] > control.tokens or found.shape[2] != control.text_dim:
        raise MedgenError(
            f"condition 'prompt': the encoder must give up to {control.tokens} tokens of {control.text_dim} channels. "
            f"Got {tuple(found.shape)}. Use '{control.encoder}'."
        )
    padded = torch.zeros(1, control.tokens, control.text_dim)
    padded[:, : found.shape[1]] = found
    return padded


def null_conditions(controls: Sequence[Control], batch: int = 1) -> dict[str, Tensor]:
    """What stands for "nothing asked", for guidance: see the head of this module.

    Args:
        controls: of the model.
        batch: rows.
    """
    count = Counter(control.kind for control in controls)
    tensors: dict[str, Tensor] = {}
    if count["class"]:
        tensors["classes"] = torch.full((batch, count["class"]), -1, dtype=torch.int64)
    if count["number"]:
        tensors["numbers"] = torch.full((batch, count["number"]), math.nan)
    for control in controls:
        if control.kind == "text":
            tensors["text"] = torch.zeros(batch, control.tokens, control.text_dim)
    return tensors


def control_arguments(controls: Sequence[Control]) -> dict[str, Any]:
    """Arguments of :class:`medgen.networks.control_encoder.ControlEncoder` (but ``context_dim``)."""
    texts = [control.text_dim for control in controls if control.kind == "text"]
    return {
        "classes": [len(control.values) for control in controls if control.kind == "class"],
        "numbers": sum(control.kind == "number" for control in controls),
        "text_dim": texts[0] if texts else 0,
    }
