"""The training configurations that come with medgen, by name, and how YAML is read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from medgen.checks import MedgenError, nearest

__all__ = ["find_config", "read_yaml", "shipped_configs"]

_INSTALLED = Path(__file__).parents[1] / "configs"
_CHECKOUT = Path(__file__).parents[2] / "configs"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML alone reads ``1e-4`` (no point) as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text; ``1e-4`` is a number.

    Example:
        >>> read_yaml("learning_rate: 1e-4")
        {'learning_rate': 0.0001}
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: no objects


def shipped_configs() -> dict[str, Path]:
    """Path of each configuration that comes with medgen, by name (``hippocampus`` for ``hippocampus.yaml``)."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a training configuration.

    Args:
        name_or_path: a path, or the name of a shipped configuration. A file of that path comes first; where there is
            none, ``configs/hippocampus.yaml`` means the shipped ``hippocampus``; ``brain-t1`` is ``brain_t1``.

    Raises:
        MedgenError: neither exists; the text has the nearest name and the list of them.

    Example:
        >>> find_config("brain-t2000")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: no config 'brain-t2000': ...
    """
    path, configs = Path(name_or_path), shipped_configs()
    if path.is_file():
        return path
    name = path.stem.replace("-", "_")
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml") and name in configs:
        return configs[name]
    hint = nearest(name, configs) or " Give a path that exists, or one of these names."
    raise MedgenError(f"no config '{name_or_path}': not a file. Shipped: {', '.join(configs) or '(none)'}.{hint}")
