"""Cards are checked: those in the repository, those of bundled models, and bad ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from medgen.checks import MedgenError
from medgen.models import ModelSpec, bundled_models, draft_card, validate_card, write_card
from medgen.models.card import check_card, parse_card

ROOT = Path(__file__).parents[2]
FRONT: dict[str, Any] = {
    "name": "heads",
    "kind": "dataset",
    "version": "1.0",
    "licence": "CC-BY-4.0",
    "source": "a paper",
    "people": 2,
    "modality": "T1w",
    "grid": {"spacing_mm": [1, 1, 1], "size": "about 40 x 50 x 40"},
    "intended_use": "tests",
    "limits": ["few people", "one scanner"],
}
BODY = "# Heads\n\nTwo heads that were never scanned, written down here for the tests alone."
CARDS = sorted((ROOT / "data_cards").glob("*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_cards_of_the_repository(path: Path) -> None:
    validate_card(path)


@pytest.mark.parametrize("name", list(bundled_models()))
def test_cards_of_bundled_models(name: str) -> None:
    folder = bundled_models()[name]
    card = folder / "docs" / "README.md"
    assert validate_card(card, kind="model")["name"] == name
    assert card.read_text(encoding="utf-8") == (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8")


def test_write_and_parse() -> None:
    text = write_card(FRONT, BODY)
    assert parse_card(text) == (FRONT, BODY)
    assert check_card(text, kind="dataset") == FRONT
    assert write_card(dict(reversed(FRONT.items())), BODY) == text


def test_draft_is_valid(spec: ModelSpec) -> None:
    front = check_card(draft_card(spec), kind="model")
    assert (front["name"], front["people"], front["source"]) == ("tiny-t1", 0, "none")  # from spec.training
    assert front["figures"] == "not measured"
    for training in ({}, {"data": {"a": 1}, "people": -1}, {"data": "", "people": None}):
        check_card(draft_card(dataclasses.replace(spec, training=training)))
    assert check_card(draft_card(spec, people=3, figures={"ssim": 0.9}))["people"] == 3


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": None}, "'name'"),
        ({"kind": "atlas"}, "model, dataset"),
        ({"kind": "model"}, "'training'"),
        ({"people": -1}, "'people'"),
        ({"people": True}, "'people'"),
        ({"grid": {}}, "'grid'"),
        ({"limits": []}, "'limits'"),
        ({"limits": [1]}, "'limits'"),
        ({"license": "MIT"}, "Did you mean 'licence'?"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_bad_front_matter(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(MedgenError) as caught:
        write_card(FRONT | changes, BODY)
    assert word in str(caught.value)


@pytest.mark.parametrize("key", list(FRONT))
def test_missing_key(key: str) -> None:
    with pytest.raises(MedgenError, match=f"lacks the key '{key}'"):
        write_card({name: value for name, value in FRONT.items() if name != key}, BODY)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "front matter"),
        ("# Title", "front matter"),
        ("---\nname: x\n", "front matter"),
        ("---\n- a\n---\nbody", "key: value"),
        ("---\na: [\n---\nbody", "not valid YAML"),
        ("---\na: !!python/object/apply:os.system ['true']\n---\nbody", "not valid YAML"),
        (write_card(FRONT, BODY).replace(BODY, "short"), "ten words"),
    ],
)
def test_bad_text(text: str, word: str) -> None:
    with pytest.raises(MedgenError, match=word) as caught:
        check_card(text, "x.md")
    assert str(caught.value).startswith("x.md: ")


def test_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "card.md"
    with pytest.raises(MedgenError, match="no such card"):
        validate_card(file)
    file.write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(MedgenError, match="UTF-8"):
        validate_card(file)
    file.write_bytes(b"-" * 300_000)
    with pytest.raises(MedgenError, match="at most"):
        validate_card(file)
    file.write_text(write_card(FRONT, BODY))
    with pytest.raises(MedgenError, match="must be 'model'"):
        validate_card(file, kind="model")
