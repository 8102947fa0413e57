"""Writing and reading of model folders: same bytes, nothing half-written, nothing trusted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import medgen.io.atomic
from medgen.checks import MedgenError
from medgen.models import ModelSpec, model_hash, open_model, read_model, read_spec, save_model
from medgen.models.folder import HASHES, PICKLED, REQUIRED_FILES, count_parameters, verify_folder


def rehash(folder: Path) -> None:
    """What an attacker does: change files and write fitting hashes."""
    names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f.name != HASHES]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / HASHES).write_text(json.dumps(hashes))


def edit(folder: Path, **fields: Any) -> Path:
    file = folder / "medgen.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    rehash(folder)
    return folder


def refused(action: Callable[[], Any], *words: str) -> str:
    """The one-line error that ``action`` raises; all words must be in it."""
    with pytest.raises(MedgenError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_round_trip(folder: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> None:
    read, weights = read_model(folder)
    assert read == spec
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_folder_is_complete_and_hashed(folder: Path) -> None:
    assert set(contents(folder)) == {*REQUIRED_FILES, PICKLED, HASHES}
    hashes = verify_folder(folder)
    assert set(hashes) == {*REQUIRED_FILES, PICKLED}
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    assert model_hash(folder) == hashlib.sha256(lines.encode()).hexdigest() == open_model(folder).hash
    assert count_parameters(folder) == sum(t.numel() for t in read_model(folder)[1].values())


@pytest.mark.parametrize("header", ["[]", '{"a": 1}', '{"a": {"shape": ["x"]}}', '{"a": {"shape": [-1]}}', "{"])
def test_a_header_without_shapes_is_named(folder: Path, header: str) -> None:
    weights = folder / "models" / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(MedgenError, match=r"model\.safetensors"):
        count_parameters(folder)


def test_saving_twice_gives_the_same_bytes(make: Callable[..., Path]) -> None:
    assert contents(make("one")) == contents(make("two/deeper"))


def test_tied_strided_and_half_weights(tmp_path: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> None:
    names = [name for name in state if state[name].ndim == 5]
    weights = dict(reversed(state.items()))  # another order
    weights[names[0]] = state[names[0]].transpose(3, 4).contiguous().transpose(3, 4)  # not contiguous
    weights[names[1]] = torch.nn.Parameter(state[names[1]].half())
    same = [name for name in names[2:] if state[name].shape == state[names[2]].shape]
    for name in same:
        weights[name] = state[names[2]]  # tied
    save_model(tmp_path / "m", spec, weights)
    read = read_model(tmp_path / "m")[1]
    assert torch.equal(read[names[0]], state[names[0]])
    assert torch.equal(read[names[1]], state[names[1]].half().float())
    assert all(torch.equal(read[name], state[names[2]]) for name in same)


def test_existing_folder_is_refused_and_kept(make: Callable[..., Path]) -> None:
    folder = make()
    before = contents(folder)
    refused(make, "exists")
    assert contents(folder) == before


def test_overwrite_replaces_a_model_only(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    (folder / "note.txt").write_text("old")
    make(overwrite=True)
    assert not (folder / "note.txt").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    refused(lambda: make("photos", overwrite=True), "not a model folder")
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_failure_while_writing_leaves_the_old_folder(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make()
    before = contents(folder)

    def full_disk(file: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(medgen.io.atomic, "_sync", full_disk)
    with pytest.raises(OSError, match="No space"):
        make(overwrite=True)
    assert contents(folder) == before
    assert [item.name for item in tmp_path.iterdir()] == ["tiny-t1"]


def test_unfit_weights_are_not_saved(tmp_path: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> None:
    first = next(iter(state))
    cases = {
        "lack": {name: t for name, t in state.items() if name != first},
        "lacks": state | {first + "x": state[first]},
        "shape": state | {first: torch.zeros(1)},
        "finite": state | {first: torch.full_like(state[first], torch.nan)},
        "float32": state | {first: state[first].int()},
    }
    for word, weights in cases.items():
        refused(lambda weights=weights: save_model(tmp_path / "m", spec, weights), word)
    assert not list(tmp_path.iterdir())


def test_card_must_agree(tmp_path: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> None:
    refused(lambda: save_model(tmp_path / "m", spec, state, card="# hello"), "front matter")
    other = (Path(__file__).parent / "other_card.md").read_text()
    refused(lambda: save_model(tmp_path / "m", spec, state, card=other), "name", "Make them agree")


@pytest.mark.parametrize("name", [*REQUIRED_FILES, PICKLED])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(lambda: open_model(folder), name, "missing", "again")


@pytest.mark.parametrize("name", [*REQUIRED_FILES, PICKLED])
def test_flipped_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    expected = json.loads((folder / HASHES).read_text())[name]
    (folder / name).write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    refused(lambda: open_model(folder), name, expected[:12], found[:12], "again")


def test_no_folder_and_no_hashes(tmp_path: Path, folder: Path) -> None:
    refused(lambda: open_model(tmp_path / "nothing"), "no such model folder")
    (folder / HASHES).unlink()
    refused(lambda: open_model(folder), HASHES, "missing")
    refused(lambda: model_hash(folder), HASHES)


@pytest.mark.parametrize(
    ("hashes", "word"),
    [
        ("[]", "object"),
        ("{", "JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": "0", "a": "1"}', "twice"),
        ("[" * 100_000, "JSON"),
        ('{"../outside": "' + "0" * 64 + '"}', "plain relative name"),
        ('{"/etc/passwd": "' + "0" * 64 + '"}', "plain relative name"),
        ('{"a/./b": "' + "0" * 64 + '"}', "plain relative name"),
        ('{"a\\\\b": "' + "0" * 64 + '"}', "plain relative name"),
        ('{"sha256.json": "' + "0" * 64 + '"}', "plain relative name"),
        ('{"LICENSE": "0"}', "hexadecimal"),
        ('{"LICENSE": "' + "0" * 64 + '"}', "not listed"),
    ],
)
def test_malformed_hashes(folder: Path, hashes: str, word: str) -> None:
    (folder / HASHES).write_text(hashes)
    refused(lambda: open_model(folder), word)


def test_hash_entry_removed_or_added(folder: Path) -> None:
    hashes = json.loads((folder / HASHES).read_text())
    (folder / HASHES).write_text(json.dumps({k: v for k, v in hashes.items() if k != "LICENSE"}))
    refused(lambda: open_model(folder), "LICENSE", "not listed")
    (folder / HASHES).write_text(json.dumps(hashes | {"extra.bin": "0" * 64}))
    refused(lambda: open_model(folder), "extra.bin", "missing")


@pytest.mark.parametrize("name", ["scripts/__init__.py", "models/extra.pt", "configs/logging.conf", "x.so", "noext"])
def test_unlisted_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("import os")
    refused(lambda: open_model(folder), name, "not listed")


def test_unlisted_harmless_files_are_left_alone(folder: Path) -> None:
    (folder / ".DS_Store").write_text("")
    (folder / "eval").mkdir()
    (folder / "eval" / "contact_sheet.png").write_text("")
    open_model(folder)


def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "LICENSE"
    shutil.move(folder / "LICENSE", outside)
    (folder / "LICENSE").symlink_to(outside)
    refused(lambda: open_model(folder), "LICENSE", "link out of the folder")
    (folder / "LICENSE").unlink()
    shutil.move(outside, folder / "licence.txt")
    (folder / "LICENSE").symlink_to("licence.txt")
    open_model(folder)  # a link inside is fine
    (folder / "loop").symlink_to(folder)
    refused(lambda: open_model(folder), "loop", "link to a folder")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_special_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    refused(lambda: open_model(folder), "pipe", "not a regular file")


@pytest.mark.parametrize("kind", ["truncated", "garbage", "huge header", "other names", "other shape", "nan", "padded"])
def test_bad_weights_with_fitting_hashes(folder: Path, state: dict[str, torch.Tensor], kind: str) -> None:
    from safetensors.torch import save

    file = folder / "models/model.safetensors"
    first = next(iter(state))
    good = file.read_bytes()
    content = {
        "truncated": good[:-8],
        "garbage": b"\x80\x04garbage",
        "huge header": b"\xff" * 8 + good[8:],
        "other names": save({"a": torch.zeros(1)}),
        "other shape": save(state | {first: torch.zeros(2)}),
        "nan": save(state | {first: torch.full_like(state[first], torch.inf)}),
        "padded": good + bytes(1 << 22),
    }[kind]
    file.write_bytes(content)
    rehash(folder)
    refused(lambda: open_model(folder), "model.safetensors")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": {"_target_": "os.system"}}, ["_target_", "os.system", "DiffusionModelUNet"]),
        ({"network": {"_target_": "DiffusionModelUnet"}}, ["Did you mean 'DiffusionModelUNet'?"]),
        ({"name": "$__import__('os').system('true')"}, ["name"]),
        ({"description": "costs $5"}, ["description", "expression"]),
        ({"training": {"data": ["@bundle_root"]}}, ["training.data[0]", "expression"]),
        ({"smapling": {}}, ["smapling", "Did you mean 'sampling'?"]),
    ],
)
def test_specification_with_fitting_hashes_is_still_checked(
    folder: Path, fields: dict[str, Any], words: list[str]
) -> None:
    refused(lambda: open_model(edit(folder, **fields)), "medgen.json", *words)


def test_unknown_argument_of_the_network(folder: Path, content: dict[str, Any]) -> None:
    network = content["network"] | {"norm_num_group": 4}
    refused(lambda: open_model(edit(folder, network=network)), "norm_num_group", "'norm_num_groups'")


def test_nothing_is_unpickled_or_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for MONAI may hold anything: they are hashed, never opened."""
    (folder / "models/model.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (folder / "configs/inference.json").write_text("{ not json")
    (folder / "configs/metadata.json").write_text('{"a": "$1/0"}')
    rehash(folder)

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr("pickle.Unpickler", forbidden)
    open_model(folder)


def test_read_spec_without_weights(folder: Path, spec: ModelSpec) -> None:
    assert read_spec(folder) == spec


def test_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    refused(lambda: open_model(folder), "cannot be read", "Input/output error")
