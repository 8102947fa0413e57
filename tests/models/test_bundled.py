"""Models by name and by folder, and the list of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import medgen.models.bundled as bundled
from medgen.checks import MedgenError
from medgen.models import bundled_models, describe_models, find_model, load_model, model_hash


@pytest.fixture
def shelf(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two bundled models, one of them damaged, and a folder that is none."""
    make("shelf/tiny-t1")
    (make("shelf/worn-t1") / "LICENSE").write_text("changed")
    shelf = make("elsewhere").parent / "shelf"
    (shelf / "notes").mkdir()
    monkeypatch.setattr(bundled, "BUNDLED", shelf)
    return shelf


def test_every_bundled_model_is_sound() -> None:
    for summary in describe_models():
        assert summary.problem is None
        assert summary.licence not in {"", "NOASSERTION"}
        assert find_model(summary.name) == summary.path


def test_names_come_before_folders(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(bundled_models()) == ["tiny-t1", "worn-t1"]
    assert find_model("tiny-t1") == shelf / "tiny-t1"
    monkeypatch.chdir(tmp_path)
    assert find_model("./elsewhere") == Path("elsewhere")
    assert find_model(tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_unknown_names(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match=r"unknown model 'tiny-t2'.*tiny-t1, worn-t1.*Did you mean 'tiny-t1'\?"):
        find_model("tiny-t2")
    with pytest.raises(MedgenError, match="unknown model '/no/such/folder'"):
        load_model("/no/such/folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(MedgenError, match="is a file"):
        find_model(tmp_path / "file")


def test_summaries(shelf: Path) -> None:
    good, bad = describe_models()
    assert (good.name, good.version, good.task, good.size, good.licence) == (
        "tiny-t1",
        "1.0.0",
        "label_to_image",
        (8, 8, 8),
        "Apache-2.0",
    )
    assert good.hash == model_hash(shelf / "tiny-t1")
    assert good.parameters > 100_000
    assert good.bytes > 4 * good.parameters
    assert bad.name == "worn-t1"
    assert bad.problem is not None
    assert "LICENSE" in bad.problem
    assert describe_models(shelf / "tiny-t1") == [good]
    assert describe_models(shelf) == [good, bad]


def test_nothing_to_summarise(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="not a folder"):
        describe_models(tmp_path / "nothing")
    with pytest.raises(MedgenError, match="holds no model"):
        describe_models(shelf / "notes")


def test_load_model(folder: Path, state: dict[str, torch.Tensor]) -> None:
    model = load_model(folder, device="cpu")
    assert model.hash == model_hash(folder)
    network = model.denoiser.network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_device_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="load_model: device"):
        load_model(tmp_path / "nothing", device="gpu")


def test_importing_models_is_light() -> None:
    code = "import sys, medgen.models; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
