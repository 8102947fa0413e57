"""The list of cases: each makes a folder with one fault (or none) and says what a reader must make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.io.dicom.phantom import Truth

Kind = Literal["readable", "faulty", "either"]


@dataclass(frozen=True)
class Expected:
    """What a builder promises.

    Args:
        alternatives: sets of volumes, any one of which is right; an empty tuple: nothing may be read.
        aside: names of files that must be skipped or refused, with the codes that will do (none: any).
    """

    alternatives: Sequence[Sequence[Truth]] = ()
    aside: Mapping[str, frozenset[str]] = field(default_factory=dict)


Builder = Callable[[Path], Expected | Sequence[Truth] | Truth | None]


@dataclass(frozen=True)
class Case:
    """One folder.

    Args:
        name: unique.
        kind: ``readable``: must be read right; ``faulty``: must be refused, or used right with a finding;
            ``either``: must be read right or refused.
        codes: readable: findings of which one is due (none: nothing is due). Otherwise: codes of which one is due in
            a refusal or a finding.
        build: fills a folder and says what is right.
        undecidable: nothing in the file tells what is right; a flag alone will do.
    """

    name: str
    kind: Kind
    codes: frozenset[str]
    build: Builder
    undecidable: bool = False

    def make(self, folder: Path) -> Expected:
        """Fills ``folder`` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        made = self.build(folder)
        if isinstance(made, Expected):
            return made
        if made is None:
            return Expected()
        return Expected([[made]] if isinstance(made, Truth) else [list(made)])


CASES: dict[str, Case] = {}


def add(kind: Kind, codes: Sequence[str], name: str, build: Builder, undecidable: bool = False) -> None:
    """Registers a case; a name that is taken raises."""
    if name in CASES:
        raise ValueError(f"two cases are called '{name}'")
    CASES[name] = Case(name, kind, frozenset(codes), build, undecidable)


def readable(*findings: str) -> Callable[[Builder], Builder]:
    """A case that must be read right, with one of ``findings`` if any are given."""
    return _decorator("readable", findings)


def faulty(*codes: str) -> Callable[[Builder], Builder]:
    """A case that must be refused with one of ``codes``, or used right with one as a finding."""
    return _decorator("faulty", codes)


def either(*codes: str) -> Callable[[Builder], Builder]:
    """A case that must be read right, or refused with one of ``codes``."""
    return _decorator("either", codes)


def aside(names: Sequence[str] | str, *codes: str) -> dict[str, frozenset[str]]:
    """Files to be set aside, all with the same codes."""
    return dict.fromkeys([names] if isinstance(names, str) else names, frozenset(codes))


def _decorator(kind: Kind, codes: Sequence[str]) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        add(kind, codes, build.__name__, build)
        return build

    return register
