"""Cards: what a reader must know of a model or a data set before using it.

A card is Markdown with YAML front matter between two lines of ``---``. The keys are fixed, so that a card can be
checked; the body is for people.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest
from medgen.models.bundle import FAMILY_WORDS, TASK_WORDS

if TYPE_CHECKING:
    from medgen.models.specification import ModelSpec

KINDS = ("model", "dataset")
MAX_BYTES = 262_144


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and bool(value) and all(_is_text(item) for item in value))


def _is_people(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_object_or_text(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, Mapping) and bool(value))


Rule = tuple[Callable[[Any], bool], str]
_TEXT: Rule = (_is_text, "text")
_TEXTS: Rule = (_is_texts, "text or a list of texts")
_OBJECT: Rule = (_is_object_or_text, "text or a mapping")

REQUIRED: dict[str, Rule] = {
    "name": _TEXT,
    "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "version": _TEXT,
    "licence": _TEXT,
    "source": _TEXTS,
    "people": (_is_people, "a count of people, or text"),
    "modality": _TEXT,
    "grid": _OBJECT,
    "intended_use": _TEXTS,
    "limits": _TEXTS,
}
REQUIRED_FOR_MODELS: dict[str, Rule] = {"training": _OBJECT, "figures": _OBJECT}
OPTIONAL: dict[str, Rule] = {
    "attribution": _TEXTS,
    "authors": _TEXTS,
    "citation": _TEXTS,
    "description": _TEXT,
    "files": _OBJECT,
    "labels": _OBJECT,
    "preparation": _TEXTS,
    "split": _OBJECT,
    "task": _TEXT,
}
_KEYS = {**REQUIRED, **REQUIRED_FOR_MODELS, **OPTIONAL}


def write_card(front: Mapping[str, Any], body: str) -> str:
    """The text of a card.

    Args:
        front: the front matter; see ``REQUIRED``, ``REQUIRED_FOR_MODELS`` and ``OPTIONAL``.
        body: Markdown.

    Returns:
        The whole card, ending in a line break.

    Raises:
        MedgenError: a key is missing, unknown or of the wrong kind, or the body is empty.
    """
    import yaml

    check_front(front, "write_card")
    _check_body(body, "write_card")
    ordered = {key: front[key] for key in _KEYS if key in front}
    head = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110)
    return f"---\n{head}---\n\n{body.strip()}\n"


def parse_card(text: str, source: str = "card") -> tuple[dict[str, Any], str]:
    """Split a card into front matter and body, unchecked.

    Args:
        text: the whole card.
        source: name of the file, for errors.

    Returns:
        Front matter and body.

    Raises:
        MedgenError: no front matter, or it is no YAML mapping.
    """
    import yaml

    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        raise MedgenError(f"{source}: a card must begin with YAML between two lines '---'. Add the front matter.")
    end = next(i for i, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        front = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, RecursionError) as error:
        raise MedgenError(f"{source}: the front matter is not valid YAML: {error}. Correct it.") from error
    if not isinstance(front, dict):
        raise MedgenError(f"{source}: the front matter must be 'key: value' lines. Got {type(front).__name__}.")
    return front, "\n".join(lines[end + 1 :]).strip()


def check_front(front: Mapping[str, Any], source: str = "card") -> None:
    """Check the front matter of a card.

    Raises:
        MedgenError: a key is missing, unknown or of the wrong kind; the text names key, constraint and value.
    """
    required = {**REQUIRED, **(REQUIRED_FOR_MODELS if front.get("kind") == "model" else {})}
    for key in required:
        if key not in front:
            raise MedgenError(f"{source}: the card lacks the key {key!r}. Add it to the front matter.")
    for key, value in front.items():
        if key not in _KEYS:
            hint = nearest(key, _KEYS) or f" Known keys: {', '.join(_KEYS)}."
            raise MedgenError(f"{source}: the card has an unknown key {key!r}.{hint}")
        valid, form = _KEYS[key]
        if not valid(value):
            raise MedgenError(f"{source}: the card's key {key!r} must be {form}. Got {value!r:.60}. Correct it.")


def _check_body(body: str, source: str) -> None:
    if len(body.split()) < 10:
        raise MedgenError(f"{source}: the card's body must say something, ten words or more. Got {len(body.split())}.")


def check_card(text: str, source: str = "card", kind: str | None = None) -> dict[str, Any]:
    """Check the text of a card.

    Args:
        text: the whole card.
        source: name of the file, for errors.
        kind: ``model`` or ``dataset`` where it must be one of them.

    Returns:
        The front matter.

    Raises:
        MedgenError: see :func:`parse_card` and :func:`check_front`; also an empty body or another kind.
    """
    front, body = parse_card(text, source)
    check_front(front, source)
    _check_body(body, source)
    if kind is not None and front["kind"] != kind:
        raise MedgenError(f"{source}: the card's key 'kind' must be {kind!r}. Got {front['kind']!r}. Correct it.")
    return front


def validate_card(path: str | os.PathLike[str], kind: str | None = None) -> dict[str, Any]:
    """Check a card file.

    Args:
        path: Markdown file.
        kind: ``model`` or ``dataset`` where it must be one of them.

    Returns:
        The front matter.

    Raises:
        MedgenError: the file is missing, too large, not UTF-8, or its content fails :func:`check_card`.
    """
    path = Path(path)
    if not path.is_file():
        raise MedgenError(f"{path}: no such card. Write one: YAML front matter between '---' lines, then text.")
    if path.stat().st_size > MAX_BYTES:
        raise MedgenError(f"{path}: a card must be at most {MAX_BYTES} bytes. Got {path.stat().st_size}. Shorten it.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MedgenError(f"{path}: a card must be UTF-8 text. Save it as UTF-8.") from error
    return check_card(text, str(path), kind)


def draft_card(
    spec: ModelSpec,
    *,
    source: str | list[str] | None = None,
    people: int | str | None = None,
    limits: str | list[str] = "Trained by its user; fidelity, diversity and memorisation have not been measured.",
    figures: Mapping[str, Any] | str = "not measured",
    body: str | None = None,
) -> str:
    """A true, minimal card made from a specification, for a model that was just trained.

    Args:
        spec: the model.
        source: where the training data come from; ``spec.training["data"]`` by default.
        people: how many people they show; ``spec.training["people"]`` by default.
        limits: what the model cannot do.
        figures: what was measured.
        body: Markdown; a short text about the task by default.

    Returns:
        The card, valid by :func:`check_card`.
    """
    front: dict[str, Any] = {
        "name": spec.name,
        "kind": "model",
        "version": spec.version,
        "licence": spec.licence,
        "source": _stated(spec.training.get("data"), _is_texts) if source is None else source,
        "people": _stated(spec.training.get("people"), _is_people) if people is None else people,
        "modality": spec.modality,
        "grid": {"spacing_mm": list(spec.grid.spacing), "size": list(spec.grid.size)},
        "intended_use": spec.intended_use,
        "limits": limits,
        "training": spec.training or "not stated",
        "figures": figures,
        "task": spec.task,
    }
    if spec.authors:
        front["authors"] = spec.authors
    return write_card(front, body or _draft_body(spec))


def _stated(value: Any, valid: Callable[[Any], bool]) -> Any:
    """``value`` where it is valid, so that a draft never fails for what a training noted."""
    return value if valid(value) else "not stated" if value in (None, "") else str(value)


def _draft_body(spec: ModelSpec) -> str:
    does = f"{TASK_WORDS[spec.task]} {FAMILY_WORDS[spec.family]}"
    return (
        f"# {spec.name}\n\n{spec.description or f'{does} ({spec.modality}).'}\n\n"
        f"Everything that it generates is synthetic and is marked so. {spec.intended_use}\n\n"
        f"Use it with `medgen.load_model` or as a MONAI bundle."
    )
