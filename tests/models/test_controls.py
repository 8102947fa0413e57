"""Controls: what a request may say, what is drawn where it says nothing, and the tensors it becomes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from medgen.checks import MedgenError
from medgen.models.controls import (
    Control,
    check_conditions,
    class_control,
    condition_tensors,
    control_arguments,
    draw_conditions,
    null_conditions,
    number_control,
    text_control,
)
from medgen.models.fields import read_fields
from medgen.networks.control_encoder import ControlEncoder

SIZE = class_control("size", ["small"] * 3 + ["large"], order=["small", "large"])
VOLUME = number_control("volume_ml", [2.0, 2.5, 3.0, 3.5, 4.0], unit="ml")
TEXT = text_control(["a small one", "a large one"], "tiny-bert", "0" * 64, tokens=3, text_dim=5)
CONTROLS = (SIZE, VOLUME, TEXT)


def encode(texts: Any) -> torch.Tensor:
    return torch.stack([torch.full((2, 5), float(len(text))) for text in texts])


def test_controls_of_people() -> None:
    assert (SIZE.values, SIZE.shares) == (("small", "large"), (0.75, 0.25))
    assert (VOLUME.range, VOLUME.mean, VOLUME.unit) == ((2.0, 4.0), 3.0, "ml")
    assert VOLUME.std == pytest.approx(0.5**0.5)
    many = text_control([f"text {i:04d}" for i in range(1000)], "tiny-bert", "", 3, 5)
    assert len(set(many.prompts)) == 256


@pytest.mark.parametrize("control", CONTROLS)
def test_json_and_back(control: Control) -> None:
    plain = json.loads(json.dumps(dataclasses.asdict(control)))
    assert read_fields(Control, plain, "medgen.json") == control


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"siz": "small"}, "condition must be one of size, volume_ml, prompt; got 'siz'. Did you mean 'size'?"),
        ({"size": "huge"}, "condition 'size' must be one of small, large; got 'huge'"),
        ({"volume_ml": 9}, r"condition 'volume_ml' must lie in 2..4 ml, as seen in training; got 9"),
        ({"volume_ml": "much"}, "must lie in 2..4 ml"),
        ({"volume_ml": math.nan}, "must lie in 2..4 ml"),
        ({"prompt": " "}, "condition 'prompt' must be a text"),
        ({"prompt": 3}, "condition 'prompt' must be a text"),
    ],
)
def test_refused_requests(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word.replace("?", r"\?")):
        check_conditions(CONTROLS, asked)


def test_requests() -> None:
    assert check_conditions(CONTROLS, {"volume_ml": "3.1", "size": "large"}) == {"size": "large", "volume_ml": 3.1}
    assert check_conditions(CONTROLS, None) == {}
    with pytest.raises(MedgenError, match="the model has no controls"):
        check_conditions((), {"size": "large"})


def test_what_is_not_stated_follows_the_people() -> None:
    drawn = [draw_conditions(CONTROLS, seed) for seed in range(400)]
    sizes = Counter(row["size"] for row in drawn)
    assert 0.68 < sizes["small"] / 400 < 0.82
    volumes = np.array([row["volume_ml"] for row in drawn])
    assert volumes.min() >= 2
    assert volumes.max() <= 4
    assert np.quantile(volumes, [0.25, 0.5, 0.75]) == pytest.approx([2.5, 3, 3.5], abs=0.15)
    assert 0.4 < Counter(row["prompt"] for row in drawn)["a small one"] / 400 < 0.6


def test_what_is_stated_stays_and_leaves_the_rest_as_it_was() -> None:
    free = draw_conditions(CONTROLS, 7)
    told = draw_conditions(CONTROLS, 7, {"size": "large"})
    assert told == {**free, "size": "large"}
    assert draw_conditions(CONTROLS, 7) == free
    for name in free:
        assert len({draw_conditions(CONTROLS, seed)[name] for seed in range(20)}) > 1


def test_tensors() -> None:
    found = condition_tensors(CONTROLS, {"size": "large", "volume_ml": 3.5, "prompt": "abc"}, encode)
    assert found["classes"].tolist() == [[1]]
    assert found["numbers"].item() == pytest.approx(0.5**0.5)
    assert found["text"].shape == (1, 3, 5)
    assert found["text"][0, :, 0].tolist() == [3, 3, 0]
    assert found["classes"].dtype == torch.int64
    assert found["numbers"].dtype == torch.float32


def test_what_is_left_out_is_null() -> None:
    found, null = condition_tensors(CONTROLS, {}), null_conditions(CONTROLS)
    assert found.keys() == null.keys() == {"classes", "numbers", "text"}
    for key in null:
        assert torch.equal(found[key].nan_to_num(7), null[key].nan_to_num(7))
    assert null["classes"].tolist() == [[-1]]
    assert null["numbers"].isnan().all()
    assert not null["text"].any()
    assert null_conditions([SIZE], batch=3)["classes"].shape == (3, 1)
    assert null_conditions([SIZE]).keys() == {"classes"}


def test_a_prompt_needs_its_encoder() -> None:
    with pytest.raises(MedgenError, match=r"needs the text encoder 'tiny-bert'. Install medgen\[text\]"):
        condition_tensors(CONTROLS, {"prompt": "abc"})
    with pytest.raises(MedgenError, match="up to 3 tokens of 5 channels"):
        condition_tensors(CONTROLS, {"prompt": "abc"}, lambda texts: torch.ones(1, 4, 5))


def test_the_encoder_network_takes_them() -> None:
    arguments = control_arguments(CONTROLS)
    assert arguments == {"classes": [2], "numbers": 1, "text_dim": 5}
    net = ControlEncoder(8, **arguments)
    assert net(**condition_tensors(CONTROLS, {"size": "large", "prompt": "abc"}, encode)).shape == (1, 1 + 1 + 1 + 3, 8)
    assert net(**null_conditions(CONTROLS, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": "size", "kind": "class", "values": ["a"], "shares": [1.0]}, "at least two different classes"),
        ({"name": "size", "kind": "class", "values": ["a", "b"], "shares": [0.5, 0.2]}, "together 1"),
        ({"name": "age", "kind": "number", "quantiles": [3, 2]}, "rising numbers"),
        ({"name": "age", "kind": "number", "quantiles": [2, 3], "std": 0}, "above 0"),
        ({"name": "note", "kind": "text", "prompts": ["x"], "encoder": "e"}, "'prompt', as every text control"),
        ({"name": "prompt", "kind": "text"}, "at least one text"),
        ({"name": "a size", "kind": "class"}, "letters, digits"),
        ({"name": "size", "kind": "colour"}, "one of class, number, text"),
    ],
)
def test_refused_controls(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError, match=word):
        read_fields(Control, fields, "medgen.json")


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [1.0, math.inf]])
def test_numbers_that_do_not_differ(values: list[float]) -> None:
    with pytest.raises(MedgenError, match="finite and differ"):
        number_control("age", values)
