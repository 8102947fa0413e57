"""The declared domain of a model: fields, checks and JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from medgen.checks import MedgenError
from medgen.models.domain import Domain, Limit
from medgen.models.fields import read_fields

DOMAIN = Domain(
    ("MR",),
    "It was trained on MR images alone.",
    (
        Limit("spacing_most", "Slices thicker than 1.5 mm are excluded.", high=1.5, severity="refuse"),
        Limit("noise", "Noise beyond 16% was not seen.", high=0.16),
    ),
)


def test_it_goes_through_json() -> None:
    assert read_fields(Domain, json.loads(json.dumps(dataclasses.asdict(DOMAIN))), "medgen.json") == DOMAIN


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"limits": [{"figure": "colour", "sentence": "x", "high": 1}]}, "limits.*figure"),
        ({"limits": [{"figure": "noise", "sentence": "", "high": 1}]}, "a sentence"),
        ({"limits": [{"figure": "noise", "sentence": "x"}]}, "low or high of 'noise' must be given"),
        ({"limits": [{"figure": "noise", "sentence": "x", "low": 2, "high": 1}]}, "must not exceed"),
        ({"limits": [{"figure": "noise", "sentence": "x", "high": 1, "severity": "shout"}]}, "one of warn, refuse"),
        ({"modalities": ["M R"], "modality_sentence": "x"}, "a code"),
        ({"modalities": ["MR"]}, "modality_sentence must say"),
        ({"limits": [], "spacing": 1}, "unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(MedgenError, match=words):
        read_fields(Domain, fields, "medgen.json")


def test_ends_are_allowed() -> None:
    limit = Limit("noise", "x", low=0.1, high=0.2)
    assert [limit.admits(value) for value in (0.05, 0.1, 0.2, 0.25)] == [False, True, True, False]
