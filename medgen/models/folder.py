"""A model as a folder: written whole or not at all, and read without running anything it holds.

```
medgen.json                 the specification (data only)
models/model.safetensors    the weights that medgen reads
models/model.pt             the same weights for MONAI; hashed, never opened by medgen; not in models of the package
configs/metadata.json       MONAI's description; hashed only
configs/inference.json      MONAI's runner, with expressions; hashed only, never parsed by medgen
docs/README.md              card
LICENSE
sha256.json                 hash of every other file
```
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest
from medgen.io.atomic import atomic_directory
from medgen.models.bundle import bundle_inference, bundle_metadata, licence_text
from medgen.models.card import check_card, draft_card
from medgen.models.specification import ModelSpec
from medgen.models.weights import expected_state
from medgen.networks.registry import short

if TYPE_CHECKING:
    import torch

SPECIFICATION = "medgen.json"
WEIGHTS = "models/model.safetensors"
CARD = "docs/README.md"
HASHES = "sha256.json"
PICKLED = "models/model.pt"
REQUIRED_FILES = (
    SPECIFICATION,
    WEIGHTS,
    "configs/metadata.json",
    "configs/inference.json",
    CARD,
    "LICENSE",
)
MAX_JSON_BYTES = 1 << 20
MAX_FILES = 1000
# files that may lie in the folder without being listed: nothing here is ever opened, by medgen or by MONAI
HARMLESS_SUFFIXES = {".csv", ".gz", ".jpg", ".log", ".md", ".nii", ".png", ".txt"}
HARMLESS_NAMES = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitignore", ".gitattributes"}


@dataclass(frozen=True)
class ModelFiles:
    """What a verified model folder holds.

    Args:
        spec: its specification.
        state: its weights by name, on the CPU, in the types that the network has.
        hash: see :func:`model_hash`.
    """

    spec: ModelSpec
    state: dict[str, torch.Tensor]
    hash: str


def save_model(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    state_dict: Mapping[str, torch.Tensor],
    card: str | None = None,
    overwrite: bool = False,
    pickled: bool = True,
) -> str:
    """Write a model folder, atomically; the same model gives the same bytes in every file.

    Args:
        path: the folder to make.
        spec: the specification.
        state_dict: the weights, see :func:`medgen.models.weights.joined_state`. Half precision is kept.
        card: Markdown with front matter, see :mod:`medgen.models.card`; drafted from ``spec`` by default.
        overwrite: replace a model folder of that name, once the new one is complete.
        pickled: write ``models/model.pt``, too, for MONAI's own loaders.

    Returns:
        The model's hash.

    Raises:
        MedgenError: the folder exists, weights do not fit the network or are not finite, the card is not valid.
    """
    path = Path(path)
    _check_target(path, overwrite)
    state = _plain_state(state_dict)
    expected = expected_state(spec, f"save_model: {spec.name}")
    _check_state(state, expected, f"save_model: {spec.name}")
    files = _contents(spec, state, _checked_card(card, spec), pickled)
    with atomic_directory(path, overwrite) as temporary:
        for name, content in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return _hash_of(_hashes(files))


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse an existing folder; with ``overwrite``, one that holds something other than a model."""
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise MedgenError(f"save_model: '{path}' exists already. Choose another folder, or overwrite it.")
    if not path.is_dir() or path.is_symlink():
        raise MedgenError(f"save_model: '{path}' is not a folder. Choose another one.")
    if any(path.iterdir()) and not (path / SPECIFICATION).is_file():
        raise MedgenError(f"save_model: '{path}' is not a model folder, it is not overwritten. Choose another one.")


def _checked_card(card: str | None, spec: ModelSpec) -> str:
    if card is None:
        return draft_card(spec)
    front = check_card(card, "save_model: card", kind="model")
    for key in ("name", "version", "licence"):
        if str(front[key]) != getattr(spec, key):
            raise MedgenError(
                f"save_model: the card's key {key!r} is {front[key]!r}, the specification says "
                f"{getattr(spec, key)!r}. Make them agree."
            )
    return card if card.endswith("\n") else card + "\n"


def _plain_state(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies on the CPU that share no memory, sorted by name."""
    import torch

    return {
        name: state_dict[name].detach().as_subclass(torch.Tensor).cpu().contiguous().clone()
        for name in sorted(state_dict)
    }


def _contents(spec: ModelSpec, state: dict[str, torch.Tensor], card: str, pickled: bool) -> dict[str, bytes]:
    """Every file of the folder by its relative name."""
    from safetensors.torch import save

    # one key only: safetensors writes several in an order that changes from run to run
    note = json.dumps({"format": spec.format, "name": spec.name, "version": spec.version}, sort_keys=True)
    files = {
        SPECIFICATION: spec.to_json().encode(),
        WEIGHTS: save(state, metadata={"medgen": note}),
        **({PICKLED: _pickled(state)} if pickled else {}),
        "configs/metadata.json": _json(bundle_metadata(spec)),
        "configs/inference.json": _json(bundle_inference(spec)),
        CARD: card.encode(),
        "LICENSE": licence_text(spec).encode(),
    }
    return files | {HASHES: _json(_hashes(files))}


def _pickled(state: dict[str, torch.Tensor]) -> bytes:
    import torch

    buffer = io.BytesIO()  # a buffer, not a file: torch writes the file's name into the archive
    torch.save(state, buffer)
    return buffer.getvalue()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items()) if name != HASHES}


def _hash_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the sorted lines ``<hash>  <name>``."""
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()).hexdigest()


def read_model(path: str | os.PathLike[str]) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """Specification and weights of a model folder, verified; see :func:`open_model`."""
    files = open_model(path)
    return files.spec, files.state


def open_model(path: str | os.PathLike[str]) -> ModelFiles:
    """Read and verify a model folder. Nothing in it is executed, evaluated, imported or unpickled.

    Args:
        path: the folder.

    Returns:
        Specification, weights and hash.

    Raises:
        MedgenError: no model folder; a file that is missing, changed, not listed, or a link out of the folder; a bad
            specification; weights that do not fit the network or are not finite.
    """
    path = Path(path)
    hashes = verify_folder(path)
    spec = _read_spec(path, hashes)
    expected = expected_state(spec, str(path / SPECIFICATION))
    state = _read_weights(_read_verified(path, WEIGHTS, hashes, _room_for(expected)), str(path / WEIGHTS))
    _check_state(state, expected, str(path / WEIGHTS))
    return ModelFiles(spec, {name: state[name].to(expected[name].dtype) for name in expected}, _hash_of(hashes))


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The specification of a model folder whose files are all verified, without its weights.

    Raises:
        MedgenError: see :func:`open_model`.
    """
    return _read_spec(Path(path), verify_folder(path))


def model_hash(path: str | os.PathLike[str]) -> str:
    """One hash for the whole folder, as written into the provenance of what the model generates.

    Args:
        path: model folder.

    Returns:
        SHA-256 over the sorted lines ``<hash>  <name>`` of ``sha256.json``, in hexadecimal.

    Raises:
        MedgenError: ``sha256.json`` is missing or malformed.
    """
    return _hash_of(_read_hashes(Path(path)))


def verify_folder(path: str | os.PathLike[str]) -> dict[str, str]:
    """Check that a folder holds exactly the files of its ``sha256.json``, unchanged.

    Args:
        path: model folder.

    Returns:
        Hash by relative file name.

    Raises:
        MedgenError: naming the file, what was expected and what was found, and the remedy.
    """
    path = Path(path)
    hashes = _read_hashes(path)
    _check_entries(path, hashes)
    for name, expected in hashes.items():
        with _readable(path / name), open(path / name, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        _compare(path, name, expected, found)
    return hashes


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns the system's refusal to read into one line."""
    try:
        yield
    except OSError as error:
        raise MedgenError(f"{file}: cannot be read: {error.strerror}. Check the permissions and the disk.") from error


def _compare(path: Path, name: str, expected: str, found: str) -> None:
    if found != expected:
        raise MedgenError(
            f"{path}: file '{name}' has changed: SHA-256 expected {expected[:12]}..., found {found[:12]}.... "
            "Copy or download the model again."
        )


def _read_hashes(path: Path) -> dict[str, str]:
    """The content of ``sha256.json``, with plain relative names only."""
    if not path.is_dir():
        raise MedgenError(f"{path}: no such model folder. Give the path of a folder that holds {SPECIFICATION}.")
    if not (path / HASHES).is_file() or (path / HASHES).is_symlink():
        inner = path / "model"
        hint = f"Give '{inner}'." if (inner / HASHES).is_file() else "Copy or download the model again."
        raise MedgenError(f"{path}: not a model folder: file '{HASHES}' is missing. {hint}")
    hashes = _parse_json(_read_bytes(path / HASHES), str(path / HASHES))
    if not isinstance(hashes, dict) or not 0 < len(hashes) <= MAX_FILES:
        raise MedgenError(f"{path / HASHES}: must be an object 'file name: SHA-256'. Download the model again.")
    for name, value in hashes.items():
        parts = PurePosixPath(name).parts
        plain = name == "/".join(parts) and not {"", ".", "..", "/"} & set(parts) and not re.search(r"[\\:\x00]", name)
        if not plain or name == HASHES:
            raise MedgenError(f"{path / HASHES}: {short(name)} is not a plain relative name. Do not use this model.")
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise MedgenError(f"{path / HASHES}: the hash of '{name}' is not 64 hexadecimal digits: {short(value)}.")
    for name in REQUIRED_FILES:
        if name not in hashes:
            raise MedgenError(f"{path / HASHES}: file '{name}' is not listed. Download the model again.")
    return hashes


def _check_entries(path: Path, hashes: Mapping[str, str]) -> None:
    """Every listed file is there, every other one is harmless, and no link leads out of the folder."""
    present = _walk(path)
    for name in hashes:
        if name not in present:
            raise MedgenError(f"{path}: file '{name}' is missing. Copy or download the model again.")
    for name in sorted(present - set(hashes) - {HASHES}):
        last = PurePosixPath(name)
        if last.name not in HARMLESS_NAMES and last.suffix.lower() not in HARMLESS_SUFFIXES:
            raise MedgenError(
                f"{path}: file '{name}' is not listed in {HASHES}: it came from elsewhere. Remove it and look where "
                "it came from."
            )


def _walk(path: Path) -> set[str]:
    """Relative names of all files below ``path``; links out of the folder and special files are refused."""
    root = path.resolve()
    found: set[str] = set()
    for folder, folders, names in os.walk(path):
        for entry in (Path(folder) / name for name in [*folders, *names]):
            name = entry.relative_to(path).as_posix()
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise MedgenError(f"{path}: '{name}' is a link out of the folder. Replace it by the file itself.")
            if entry.is_symlink() and entry.is_dir():
                raise MedgenError(f"{path}: '{name}' is a link to a folder. Replace it by the folder itself.")
            if entry.is_file():
                found.add(name)
            elif not entry.is_dir():
                raise MedgenError(f"{path}: '{name}' is not a regular file. Remove it.")
        if len(found) > MAX_FILES:
            raise MedgenError(f"{path}: more than {MAX_FILES} files. This is not a model folder; give another.")
    return found


def _read_bytes(file: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    with _readable(file):
        size = file.stat().st_size
        if size > limit:
            raise MedgenError(f"{file}: {size:,} bytes, more than {limit:,}. This is not a model of medgen.")
        return file.read_bytes()


def _read_verified(path: Path, name: str, hashes: Mapping[str, str], limit: int) -> bytes:
    """The bytes of a file whose hash is checked on these very bytes."""
    content = _read_bytes(path / name, limit)
    _compare(path, name, hashes[name], hashlib.sha256(content).hexdigest())
    return content


def _parse_json(content: bytes, source: str) -> Any:
    """Strict JSON: no NaN, no key twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            keys = [key for key, _ in items]
            raise MedgenError(f"{source}: key {short(max(keys, key=keys.count))} stands there twice. Remove one.")
        return dict(items)

    def constant(word: str) -> Any:
        raise MedgenError(f"{source}: {word} is not a finite number. Write a finite one.")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except MedgenError:
        raise
    except (ValueError, RecursionError) as error:
        raise MedgenError(f"{source}: not valid JSON: {short(str(error), 120)}. Copy the model again.") from error


def _read_spec(path: Path, hashes: Mapping[str, str]) -> ModelSpec:
    source = str(path / SPECIFICATION)
    return ModelSpec.from_dict(_parse_json(_read_verified(path, SPECIFICATION, hashes, MAX_JSON_BYTES), source), source)


def _room_for(expected: Mapping[str, torch.Tensor]) -> int:
    """Most bytes that a weights file of this network can have: tensors and a header."""
    return sum(t.numel() * t.element_size() for t in expected.values()) + 512 * len(expected) + MAX_JSON_BYTES


def _read_weights(content: bytes, source: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state: dict[str, torch.Tensor] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise MedgenError(f"{source}: not a valid safetensors file: {error}. Copy the model again.") from error
    return state


def _check_state(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str) -> None:
    """Names, shapes, types and finiteness of weights against the network they are for."""
    import torch

    halves = {torch.float16, torch.bfloat16, torch.float32}
    for name in expected:
        if name not in state:
            raise MedgenError(
                f"{source}: the weights lack '{name}', which the network has. They are of another network."
            )
    for name, tensor in state.items():
        if name not in expected:
            hint = nearest(name, expected) or " They are of another network."
            raise MedgenError(f"{source}: the weights have '{name}', which the network lacks.{hint}")
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise MedgenError(
                f"{source}: '{name}' must have shape {tuple(wanted.shape)}. Got {tuple(tensor.shape)}. "
                "Weights and specification belong to different networks."
            )
        if tensor.dtype != wanted.dtype and not {tensor.dtype, wanted.dtype} <= halves:
            raise MedgenError(f"{source}: '{name}' must be {wanted.dtype}. Got {tensor.dtype}. Convert it.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MedgenError(f"{source}: '{name}' holds values that are not finite. Take an earlier checkpoint.")


def count_parameters(path: str | os.PathLike[str]) -> int:
    """Number of weights in a model folder, read from the header of its safetensors file (no torch needed).

    Raises:
        MedgenError: the header is malformed.
    """
    file = Path(path) / WEIGHTS
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if not 0 < length <= 16 * MAX_JSON_BYTES:
            raise MedgenError(f"{file}: not a valid safetensors file: header of {length} bytes. Copy the model again.")
        header = _parse_json(stream.read(length), str(file))
    total = 0
    for name, entry in header.items() if isinstance(header, dict) else [("", None)]:
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise MedgenError(f"{file}: not a valid safetensors file: a weight without a shape. Copy the model again.")
        total += math.prod(shape)
    return total
