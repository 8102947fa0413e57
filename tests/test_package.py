"""The package as a whole: what it carries, what it promises in its documents."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import medgen
from medgen.anatomy.labels import LABELS
from medgen.checks import MedgenError, check_choice, check_positive, check_range, nearest
from medgen.io.configs import find_config, shipped_configs

ROOT = Path(__file__).parents[1]
MODULES = [info.name for info in pkgutil.walk_packages(medgen.__path__, "medgen.") if info.name != "medgen.__main__"]


def test_public_names_are_lazy() -> None:
    code = "import sys, medgen; medgen.__version__; print('torch' in sys.modules, callable(medgen.load_model))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]
    assert {"load_model", "MedgenError", "__version__"} <= set(dir(medgen))
    with pytest.raises(AttributeError, match="no attribute 'lod_model'"):
        medgen.lod_model  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_checks() -> None:
    check_choice("f", "a", 1, [1, 2])
    check_positive("f", "a", 0.5)
    check_range("f", "a", 0, 0, 1)
    for value in (float("nan"), float("inf"), "x", None, True):
        with pytest.raises(MedgenError, match="a must be"):
            check_positive("f", "a", value)
        with pytest.raises(MedgenError, match="a must lie"):
            check_range("f", "a", value, -10, 10)
    with pytest.raises(MedgenError, match=r"none exist"):
        check_choice("f", "a", 1, [])
    assert nearest("Brain-T2", ["brain-t1"]) == " Did you mean 'brain-t1'?"
    assert str(MedgenError("one\n two")) == "one two"


def test_configs_are_found_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = shipped_configs()
    assert configs, "no configuration ships"
    name, path = next(iter(configs.items()))
    mine = tmp_path / "mine.yaml"
    mine.write_text("a: 1\n")
    assert find_config(mine) == mine
    assert find_config(name) == path
    monkeypatch.chdir(tmp_path)
    assert find_config(f"configs/{name}.yaml") == path
    with pytest.raises(MedgenError, match=f"Did you mean '{name}'"):
        find_config(name[:-1])
    with pytest.raises(MedgenError, match="not a file"):
        find_config(tmp_path / f"{name}.yaml")


def test_installed_copy_carries_data() -> None:
    """A plain install has the atlas, the weights and the configurations (an editable one has the checkout)."""
    try:
        files = {str(file) for file in metadata.files("medgen") or []}
    except metadata.PackageNotFoundError:
        pytest.skip("medgen is not installed")
    if not any(file.startswith("medgen/") for file in files):
        pytest.skip("medgen is installed in editable mode")
    kept = (".nii.gz", ".json", ".safetensors", ".pt", ".txt", ".md", "LICENSE", "py.typed")
    wanted = [path for path in (ROOT / "medgen").rglob("*") if path.is_file() and path.name.endswith(kept)]
    wanted = [path for path in wanted if "decisions" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= files
    assert {f"medgen/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= files


def test_constraints_pin_every_requirement() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [
        re.match(r"[A-Za-z0-9-]+", line) for line in [*project["dependencies"], *extras["test"], *extras["bench"]]
    ]
    names = {match[0].lower() for match in required if match}
    assert len(names) > 20
    assert names <= pinned
    assert "torchvision" not in pinned | names


def test_readme_has_the_label_table_and_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (\d+) \| ([^|]+?) \|", text, re.MULTILINE))
    assert table == {str(number): info.name for number, info in LABELS.items()}
    setup = text.split("## Set-up")[1].split("##")[0]
    assert re.findall(r"^make \w+", setup, re.MULTILINE) == ["make quickstart", "make test"]
