"""Weight files of other programs: read without running anything, renamed to what MONAI's networks are called today.

MONAI took its generative networks over from the GenerativeModels repository and renamed some of their parts. The
arithmetic stayed, so that the same numbers under the new names give the same output (tested against that repository's
own classes).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError, nearest
from medgen.networks.registry import short

__all__ = ["core_names", "fit_weights", "read_scale_factor", "read_weights"]

WRAPPERS = (
    "state_dict", "model_state_dict", "unet_state_dict", "autoencoder_state_dict", "controlnet_state_dict",
    "network", "model", "net", "ema", "params",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.")
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
MAX_DEPTH = 4

# (today's name, name in GenerativeModels), applied in every combination
RENAMED: tuple[tuple[str, str], ...] = (
    (r"\.attn\.(to_[qkv])\.", r".\1."),
    (r"\.(attn[12]?|cross_attn)\.out_proj\.", r".\1.to_out.0."),
    (r"\.postconv\.", r".conv."),
    (r"\.param_free_norm\.", r".param_free_norm.N."),
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors`` file, a torch file, or a sharded one's ``.index.json``.

    A torch file is read with ``weights_only=True``: it can hold tensors and plain values, and nothing in it runs. The
    state dictionary may lie under a key (``state_dict``, ``unet_state_dict``, ...) and its names may have a prefix that
    a wrapper gave them (``module.``).

    Args:
        path: the file.

    Returns:
        Tensors on the CPU.

    Raises:
        MedgenError: no such file, another kind of file, a damaged one, or one that holds no tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise MedgenError(f"read_weights: there is no file '{file}'. Give a .safetensors, .pt, .pth or .bin file.")
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix not in PICKLED:
        raise MedgenError(
            f"read_weights: '{file}' must end in .safetensors, {', '.join(PICKLED)}. Got '{file.suffix}'. Convert it."
        )
    state = _state_within(_read_torch(file))
    if not state:
        raise MedgenError(f"read_weights: '{file}' holds no state dictionary. Give the file of the network's weights.")
    return _without_prefix(state)


def read_scale_factor(path: str | os.PathLike[str]) -> float | None:
    """The ``scale_factor`` that a torch file holds beside the weights of a latent diffusion network, if it does."""
    file = Path(path)
    content = _read_torch(file) if file.suffix in PICKLED else None
    value = content.get("scale_factor") if isinstance(content, Mapping) else None
    return (
        float(value) if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1) else None
    )


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or refused archive
        raise MedgenError(
            f"read_weights: '{file}' cannot be read as weights alone ({type(error).__name__}). It is damaged or holds "
            "more than tensors; save its state dictionary with the program that made it."
        ) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _without_prefix(load_file(file))
    except (SafetensorError, ValueError, KeyError) as error:
        raise MedgenError(f"read_weights: '{file}' is no valid safetensors file: {error}. Copy it again.") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of the files that an index names; the names must be plain files beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MedgenError(f"read_weights: '{index}' is no index of weight files. Copy it again.") from error
    state: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name.endswith(".index.json"):
            raise MedgenError(f"read_weights: '{index}' names {short(name)}, no file beside it. Do not use it.")
        state |= read_weights(index.parent / name)
    return state


def _state_within(content: Any, depth: int = 0) -> dict[str, Tensor]:
    """The tensors of a state dictionary, at the top or under one of ``WRAPPERS``; empty if there is none."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    inner = [_state_within(content[key], depth + 1) for key in WRAPPERS if key in content]
    best: dict[str, Tensor] = max([tensors, *inner], key=len)
    return best


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what ``DataParallel``, ``torch.compile`` or a wrapper put before all of them."""
    plain = dict(state)
    while plain:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in plain)), None)
        if prefix is None:
            break
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def core_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a GenerativeModels-era network under the names that MONAI's has now.

    Attention blocks (``to_q`` -> ``attn.to_q``, ``to_out.0`` -> ``out_proj``), upsampling (``conv`` -> ``postconv``),
    the transformer's norms, and query, key and value joined into one ``qkv``. ``proj_attn`` is dropped: the former
    attention block had it and never called it. A network with ``include_fc`` gets the identity there; MONAI's own
    ``load_old_state_dict`` puts ``proj_attn`` in its place, which changes the output.

    Args:
        state: weights under either generation's names; today's pass through.
        expected: today's names.

    Returns:
        What could be named; a name that nothing fits is left out, weights that fit no name keep theirs, so that
        :func:`fit_weights` reports both.
    """
    left = _transformer_norms(state)
    names = list(expected)
    found = {name: left.pop(name) for name in names if name in left}
    for name in (name for name in names if name not in found):
        source = next((old for old in _former_names(name) if old in left), None)
        if source is not None:
            found[name] = left.pop(source)
        elif ".qkv." in name:
            parts = [_former_names(name.replace(".qkv.", f".to_{part}.")) for part in "qkv"]
            sources = [old for former in parts for old in former if old in left]
            if len(sources) == len(parts):
                found[name] = torch.cat([left.pop(old) for old in sources])
    unused = {name for name in left if ".proj_attn." in name}
    found |= {name: tensor for name in names if name not in found and (tensor := _unused(name, state)) is not None}
    return found | {name: tensor for name, tensor in left.items() if name not in unused}


def _unused(name: str, state: Mapping[str, Tensor]) -> Tensor | None:
    """Weights that change nothing, for a layer that today's network has and the former one did not use."""
    if ".attn.out_proj." in name:
        like = state.get(name.replace(".attn.out_proj.", ".proj_attn."))
        return None if like is None else torch.eye(len(like)) if like.ndim == 2 else torch.zeros(len(like))
    if ".norm_cross_attn." in name:
        like = state.get(name.replace(".norm_cross_attn.", ".norm1."))
        return None if like is None else torch.ones(len(like)) if name.endswith("weight") else torch.zeros(len(like))
    return None


def _transformer_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's three norms under today's names: the second became ``norm_cross_attn``, the third ``norm2``."""
    former = any(name.startswith("blocks.") and ".norm3." in name for name in state)
    if not former:
        return dict(state)
    moved = (("norm2", "norm_cross_attn"), ("norm3", "norm2"))
    renamed = {}
    for name, tensor in state.items():
        new = next((name.replace(f".{a}.", f".{b}.") for a, b in moved if f".{a}." in name), name)
        renamed[new] = tensor
    return renamed


def _former_names(name: str) -> list[str]:
    """Names that today's ``name`` may have had, itself first."""
    names = [name]
    for now, before in RENAMED:
        names += [re.sub(now, before, known) for known in list(names) if re.search(now, known)]
    return names


def fit_weights(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    source: str,
    convert: Callable[[Mapping[str, Tensor], Iterable[str]], dict[str, Tensor]] = core_names,
) -> dict[str, Tensor]:
    """Weights that have exactly the names and shapes of a network, renamed where they have to be.

    Args:
        state: as :func:`read_weights` gives it.
        expected: names and shapes, as :func:`medgen.networks.registry.parameter_shapes` gives them.
        source: name of the file, for errors.
        convert: the renaming.

    Returns:
        Contiguous tensors in the network's types.

    Raises:
        MedgenError: a weight is missing, left over, or has another shape.
    """
    found = convert(state, expected)
    missing = [name for name in expected if name not in found]
    if missing:
        raise MedgenError(
            f"{source}: the weights lack '{missing[0]}' ({len(missing)} such). They are of another network: compare "
            "channels, num_res_blocks, attention_levels and include_fc with the ones it was trained with."
        )
    extra = [name for name in found if name not in expected]
    if extra:
        raise MedgenError(
            f"{source}: the weights have '{extra[0]}' ({len(extra)} such), which the network lacks."
            f"{nearest(extra[0], expected) or ' They are of another network.'}"
        )
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise MedgenError(
                f"{source}: '{name}' must have shape {tuple(wanted.shape)}. Got {tuple(found[name].shape)}. Compare "
                "channels, norm_num_groups and num_head_channels with those of the training."
            )
    return {name: found[name].to(wanted.dtype).contiguous() for name, wanted in expected.items()}
