"""``medgen models``: where it looks, and what it says of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medgen.cli.app import app
from medgen.cli.model_details import details, details_text
from medgen.models.controls import class_control, number_control, text_control
from medgen.models.folder import save_model
from medgen.models.weights import joined_state
from tests.restoration.small_models import small_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the run of another one with a first stage, and a folder that is neither."""
    shelf = tmp_path_factory.mktemp("shelf")
    for place, model in (
        ("plain", small_model("image", sized=True)),
        ("run/model", small_model("translate", 2)),
        ("run/first_stage/model", small_model("image")),
    ):
        save_model(shelf / place, model.spec, joined_state(model.networks))
    (shelf / "notes").mkdir()
    return shelf


def names(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line.split()[0] for line in result.stdout.splitlines() if not line.startswith((" ", "conditions,"))]


def test_models_and_runs_are_found(shelf: Path) -> None:
    assert names(run(shelf)) == ["small-image", "small-translate"]
    for place in ("run", "run/model"):
        result = run(shelf / place)
        assert names(result) == ["small-translate"]
        assert f"folder: {shelf / 'run/model'}" in result.stdout
    assert names(run("brain-t1")) == ["brain-t1"]
    for place, word in (("notes", "holds no model"), ("none", "is not a folder, nor a bundled model")):
        wrong = run(shelf / place)
        assert wrong.exit_code == 1
        assert word in wrong.stderr
        assert wrong.stderr.count("\n") == 1


def test_a_single_model_is_told_of_in_full(shelf: Path) -> None:
    text = run(shelf / "plain").stdout
    for line in (
        "commands: medgen generate, medgen edit",
        "condition (class): --condition size=small|large",
        "option: --guidance-scale (default 1.0)",
    ):
        assert f"    {line}\n" in text
    both = run(shelf)
    assert "--condition" not in both.stdout
    assert "add --details" in both.stdout
    assert "takes images: T1w=PATH, T2w=PATH" in run(shelf, "--details").stdout


def test_json_holds_what_can_be_asked_for(shelf: Path, tmp_path: Path) -> None:
    result = run(shelf, "--json", "-o", tmp_path / "list.json")
    rows = json.loads(result.stdout)
    assert rows == json.loads((tmp_path / "list.json").read_text())
    assert rows[0]["conditions"] == [{"name": "size", "kind": "class", "values": ["small", "large"]}]
    assert (rows[1]["source_modalities"], rows[1]["commands"]) == (["T1w", "T2w"], ["translate"])
    assert rows[1]["options"] == {"--num-inference-steps": 3}


def test_a_damaged_one_ends_in_status_1(shelf: Path, tmp_path: Path) -> None:
    model = small_model("image")
    save_model(tmp_path / "bad", model.spec, joined_state(model.networks))
    (tmp_path / "bad" / "medgen.json").write_text("{}")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'bad'}: cannot be loaded: " in result.stdout


def test_every_kind_of_condition_and_label_is_said() -> None:
    spec = small_model("label_to_image").spec
    controls = (
        class_control("size", ["small", "large"]),
        number_control("volume_ml", [2.0, 3.0, 4.0], "ml"),
        text_control(["a small one", "a large one"], "encoder", "0" * 64, 8, 4),
    )
    spec.__dict__["controls"] = controls
    lines = list(details_text(spec))
    assert "takes a label map (--label): front 1; back 2, 3" in lines
    assert "condition (number): --condition volume_ml=2..4 ml" in lines
    assert "condition (text): --prompt TEXT such as 'a large one'" in lines
    found = details(spec)
    assert found["conditions"][1] == {"name": "volume_ml", "kind": "number", "range": [2, 4], "unit": "ml"}
    assert found["conditions"][2]["examples"] == ["a large one", "a small one"]
    assert found["labels"] == {"front": [1], "back": [2, 3]}
