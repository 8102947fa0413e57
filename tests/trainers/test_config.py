from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgen.checks import MedgenError
from medgen.io.configs import shipped_configs
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.trainers.config import FREE_TO_CHANGE, changed_keys, load_config

Write = Callable[..., Path]
INPAINT: dict[str, Any] = {"task": "inpaint", "label_dropout": 0.0, "hole_diameter_mm": [4.0, 8.0]}
COLIN: dict[str, Any] = {"data": "colin27", "augmentation": {}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stepz": 3}, "'stepz' is unknown. Did you mean 'steps'?"),
        ({"optimisation": {"learning_rat": 1e-3}}, "'optimisation.learning_rat' is unknown. Did you mean"),
        ({"net": {"_target_": "ConditionalUnet", "channels": [8]}}, "ConditionalUNet"),
        ({"net": {"_target_": "os.system", "channels": [8]}}, "os.system"),
        ({"net": {"_target_": "ConditionalUNet", "channels": "$[8]"}}, "net"),
        ({"task": "joined"}, "joint"),
        ({"weighting": "emd"}, "edm"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"patch_size": [16, 16]}, "must have 3 entries"),
        ({"noise_levels": {"at_maximum": 0.5}}, "conditional tasks"),
        ({"sampling": {"sampler": "eulr"}}, "sampling"),
        ({"patch_size": [16, 32, 16]}, "'patch_size' must be at most [16, 16, 16]"),
        ({**INPAINT, "hole_diameter_mm": [8.0, 4.0]}, "must be [smallest, largest]"),
        ({**INPAINT, "hole_diameter_mm": [4.0, 14.0]}, "below 13.91 mm"),
        ({**INPAINT, "patch_size": [16, 8, 16]}, "below 6.957 mm"),
        ({**COLIN, "population": {"flipp": 0.5}}, "'population.flipp' is unknown. Did you mean 'flip'?"),
        ({**COLIN, "population": {"flip": 2}}, "'population.flip' must be"),
        ({**COLIN, "population": {"spacing": [2.0, 1.0, 1.0]}}, "'population.spacing' must be that of the grid"),
        ({**COLIN, "population": {"size": [12, 16, 16]}}, "'grid.size' must be at most [12, 16, 16]"),
        ({**COLIN, "augmentation": {"gamma": 0.1}}, "leave out gamma for task 'joint'"),
        ({**COLIN, **INPAINT, "augmentation": {"gamma": 0.1, "flip": 0.5}}, "leave out flip for task 'inpaint'"),
        ({"label_channels": [["ball_left", [1]]], "augmentation": {"flip": 0.5}}, "does not exchange sides"),
        ({"correlation_mm": 0}, "correlation_mm"),
        ({"label_distance_mm": -1.0}, "label_distance_mm"),
        ({"label_balance_by": "piece"}, "no effect with label_balance 0"),
    ],
)
def test_a_bad_entry_is_named_with_the_nearest_valid_one(
    write_config: Write, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(MedgenError) as caught:
        load_config(write_config(**changes))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_go_into_objects_and_lists(write_config: Write) -> None:
    path = write_config()
    config = load_config(path, ["net#channels=[16,32]", "steps=9", "optimisation#learning_rate=0.01", "grid#size#0=32"])
    assert config.net["channels"] == [16, 32]
    assert config.steps == 9
    assert config.optimisation.learning_rate == 0.01
    assert config.grid.size == (32, 16, 16)
    assert config.optimisation.warmup_steps == 2, "the rest of the object stays"


def test_an_override_makes_an_object_that_was_not_there(write_config: Write) -> None:
    assert load_config(write_config(), ["noise_levels#mean=-0.5"]).noise_levels.mean == -0.5


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("steps", "must read key=value"),
        ("=3", "must read key=value"),
        ("stepz=3", "Did you mean 'steps'?"),
        ("net#chanels=[8]", "chanels"),
        ("grid#size#7=3", "no entry '7'"),
        ("name#x=3", "holds no keys"),
        ("steps=[", "no valid YAML"),
    ],
)
def test_a_bad_override_is_refused(write_config: Write, override: str, text: str) -> None:
    from medgen.trainers import train

    with pytest.raises(MedgenError) as caught:
        train(write_config(data="nowhere"), "never", [override])
    assert text in str(caught.value)
    assert not Path("never").exists()


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(MedgenError, match=r"bad\.yaml"):
        load_config(path)
    with pytest.raises(MedgenError, match="no configuration at"):
        load_config(tmp_path / "none.yaml")


def test_the_hash_ignores_only_what_cannot_change_the_weights(write_config: Write) -> None:
    base = load_config(write_config())
    free = load_config(
        write_config(data="elsewhere", checkpoint_every=7, validate_every=9, num_workers=1, first_stage_model="there")
    )
    assert base.sha256() == free.sha256()
    assert set(changed_keys(base.to_dict(), free.to_dict())) == set(FREE_TO_CHANGE)
    assert base.sha256() != load_config(write_config(seed=4)).sha256()


@pytest.mark.parametrize(
    "changes",
    [
        {**COLIN, **INPAINT, "augmentation": {"gamma": 0.1, "blur_mm": 1.0}},
        {**COLIN, "population": {"size": [32, 32, 32]}, "patch_size": [32, 16, 16]},
        {"label_channels": [["lefty", [1]]], "augmentation": {"flip": 0.5}},
        {"hole_diameter_mm": [50.0, 60.0]},  # no holes in this task
    ],
)
def test_what_goes_together_is_accepted(write_config: Write, changes: dict[str, Any]) -> None:
    load_config(write_config(**changes))


def test_lengths_of_the_encoding_reach_the_model(write_config: Write) -> None:
    from medgen.trainers.run import planned_spec

    config = load_config(write_config(correlation_mm=9.0, label_distance_mm=2.5))
    spec = planned_spec(config)
    assert (spec.correlation_mm, spec.label_distance_mm) == (9.0, 2.5)
    plain = planned_spec(load_config(write_config()))
    assert plain.to_dict() | {"training": None} == spec.to_dict() | {
        "training": None,
        "correlation_mm": DiffusionSpec.correlation_mm,
        "label_distance_mm": DiffusionSpec.label_distance_mm,
    }, "the defaults are those of the specification"


@pytest.mark.parametrize("path", shipped_configs().values(), ids=lambda path: path.stem)
def test_every_shipped_configuration_builds_its_network(path: Path) -> None:
    import torch

    from medgen.trainers.run import _check_settings

    _check_settings(load_config(path), torch.device("cpu"), path)
