from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgen.checks import MedgenError
from medgen.io.configs import shipped_configs
from medgen.trainers.config import FREE_TO_CHANGE, changed_keys, load_config

Write = Callable[..., Path]


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
        ("net#chanels=[8]", ""),
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
    free = load_config(write_config(data="elsewhere", checkpoint_every=7, validate_every=9, num_workers=1))
    assert base.sha256() == free.sha256()
    assert set(changed_keys(base.to_dict(), free.to_dict())) == set(FREE_TO_CHANGE)
    assert base.sha256() != load_config(write_config(seed=4)).sha256()


@pytest.mark.parametrize("path", shipped_configs().values(), ids=lambda path: path.stem)
def test_every_shipped_configuration_builds_its_network(path: Path) -> None:
    import torch

    from medgen.trainers.run import _check_settings

    _check_settings(load_config(path), torch.device("cpu"))
