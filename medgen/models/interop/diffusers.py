"""Folders of diffusers (``config.json`` with weights beside it) as registered networks.

``UNet2DModel`` was the pattern for MONAI's ``DiffusionModelUNet``: with the settings checked in :data:`EXACT` both
compute the same, and the weights are renamed. ``UNet2DConditionModel`` normalises its transformers with another
epsilon than its residual blocks, and ``AutoencoderKL`` mixes mean and variance in one convolution; MONAI's classes can
express neither, so that these stay what they are behind :class:`~medgen.networks.diffusers_unet.DiffusersUNet` and
:class:`~medgen.networks.diffusers_unet.DiffusersAutoencoderKL`, which need the package diffusers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medgen.checks import MedgenError, check_choice
from medgen.models.interop.schedulers import CHAIN_PREDICTIONS, NOT_ADAPTED
from medgen.models.interop.weights import fit_weights, read_weights
from medgen.networks.diffusers_unet import changed_settings
from medgen.networks.registry import check_plain, parameter_shapes, short

__all__ = ["diffusers_form", "find_weights", "read_diffusers", "read_diffusers_config", "timesteps_form"]

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
MAX_BYTES = 1 << 20
WEIGHTS = tuple(
    f"{stem}.{end}"
    for stem, ends in (
        ("diffusion_pytorch_model", ("safetensors", "safetensors.index.json", "bin", "bin.index.json")),
        ("model", ("safetensors",)),
    )
    for end in ends
)
PLAIN_DOWN, PLAIN_UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
# setting of UNet2DModel: the only value with which MONAI's network computes the same
EXACT: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "freq_shift": (0,),
    "flip_sin_to_cos": (True,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_padding": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "dropout": (0, 0.0),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_train_timesteps": (None,),
}
# MONAI's name, diffusers' name; applied in turn
NAMES: tuple[tuple[str, str], ...] = (
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.conv\.", "conv_out."),
    (r"^conv_in\.conv\.", "conv_in."),
    (r"\.skip_connection\.conv\.", ".conv_shortcut."),
    (r"\.(conv[12])\.conv\.", r".\1."),
    (r"\.downsampler\.op\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsampler\.postconv\.conv\.", ".upsamplers.0.conv."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"\.attn\.(to_[qkv])\.", r".\1."),
    (r"\.attn\.out_proj\.", ".to_out.0."),
)
DEFAULT_CHANNELS: dict[Any, tuple[int, ...]] = {
    "UNet2DModel": (224, 448, 672, 896),
    "UNet2DConditionModel": (320, 640, 1280, 1280),
    "AutoencoderKL": (64,),
}
STATED = (
    "in_channels", "out_channels", "block_out_channels", "latent_channels", "scaling_factor", "shift_factor",
    "latents_mean", "latents_std",
)  # fmt: skip
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def read_diffusers_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain values of a diffusers configuration file.

    Args:
        path: the JSON file.

    Raises:
        MedgenError: no such file, no JSON object, or a value that is an expression.
    """
    file = Path(path)
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise MedgenError(f"'{file}' is missing or too large to be a configuration of diffusers. Give its folder.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MedgenError(f"'{file}' is not valid JSON: {short(str(error), 100)}. Copy it again.") from error
    if not isinstance(content, dict):
        raise MedgenError(f"'{file}' must hold an object. Got {short(content)}. Copy it again.")
    check_plain(content, "(whole file)", str(file))
    return content


def diffusers_form(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], bool]:
    """The registered network that a diffusers configuration describes.

    Args:
        config: of ``UNet2DModel``, ``UNet2DConditionModel`` or ``AutoencoderKL``.
        source: name of the file, for errors.

    Returns:
        Its registry form, and whether it is MONAI's own network (the weights are renamed) rather than diffusers'.

    Raises:
        MedgenError: another class.
    """
    name = str(config.get("_class_name"))
    if name == "UNet2DModel" and not inexact(config):
        return _monai_unet(config), True
    count = 4 if name == "UNet2DConditionModel" else 3
    form: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": int(config.get("in_channels", count)),
        "out_channels": int(config.get("out_channels", count)),
    }
    if name in DEFAULT_CHANNELS:
        form["channels"] = list(config.get("block_out_channels", DEFAULT_CHANNELS[name]))
        others = changed_settings(name, config, STATED)
        if name == "AutoencoderKL":
            form["latent_channels"] = int(config.get("latent_channels", 4))
            return {"_target_": "DiffusersAutoencoderKL", **form, "config": others}, False
        return {"_target_": "DiffusersUNet", **form, "config": {"_class_name": name, **others}}, False
    raise MedgenError(
        f"{source}: field '_class_name' must be UNet2DModel, UNet2DConditionModel or AutoencoderKL. Got {short(name)}. "
        "Other classes of diffusers are not imported."
    )


def inexact(config: Mapping[str, Any]) -> list[str]:
    """Settings of a ``UNet2DModel`` with which MONAI's network would compute something else; empty if it is exact."""
    found = [key for key, values in EXACT.items() if key in config and config[key] not in values]
    down = list(config.get("down_block_types", ()))
    up = list(config.get("up_block_types", ()))
    mirrored = [PLAIN_UP[PLAIN_DOWN.index(kind)] for kind in reversed(down) if kind in PLAIN_DOWN]
    if not down or set(down) - set(PLAIN_DOWN) or up != mirrored:
        found.append("down_block_types and up_block_types")
    channels, head = list(config.get("block_out_channels", ())), config.get("attention_head_dim", 8)
    if not channels or (head is not None and any(n % head for n in channels)):
        found.append("block_out_channels and attention_head_dim")
    return found


def _monai_unet(config: Mapping[str, Any]) -> dict[str, Any]:
    channels, head = list(config["block_out_channels"]), config.get("attention_head_dim", 8)
    form = {
        "_target_": "DiffusionModelUNet",
        "spatial_dims": 2,
        "in_channels": int(config.get("in_channels", 3)),
        "out_channels": int(config.get("out_channels", 3)),
        "channels": channels,
        "num_res_blocks": int(config.get("layers_per_block", 2)),
        "attention_levels": [kind.startswith("Attn") for kind in config["down_block_types"]],
        "num_head_channels": channels if head is None else [int(head)] * len(channels),
        "norm_num_groups": int(config.get("norm_num_groups", 32)),
        "norm_eps": float(config.get("norm_eps", 1e-5)),
    }
    classes = config.get("num_class_embeds")
    return form | ({"num_class_embeds": int(classes)} if classes is not None else {})


def monai_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a ``UNet2DModel`` under the names of MONAI's ``DiffusionModelUNet``.

    Args:
        state: diffusers' names, of any age (attention was once called query, key, value and proj_attn).
        expected: MONAI's names.
    """
    left, found = dict(state), {}
    for name in expected:
        theirs = name
        for ours, other in NAMES:
            theirs = re.sub(ours, other, theirs)
        former = theirs
        for now, before in FORMER.items():
            former = former.replace(f".{now}.", f".{before}.")
        source = theirs if theirs in left else former
        if source in left:
            found[name] = left.pop(source)
    return found | left


def find_weights(folder: str | os.PathLike[str]) -> Path:
    """The weights beside a ``config.json``, safetensors first.

    Raises:
        MedgenError: there are none.
    """
    found = [Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()]
    if not found:
        raise MedgenError(f"'{folder}' holds no weights. It must hold {' or '.join(WEIGHTS[:3])}.")
    return found[0]


def read_diffusers(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One network of diffusers from its folder; nothing in it runs.

    Args:
        folder: holds ``config.json`` and the weights.

    Returns:
        Registry form and weights that fit it.

    Raises:
        MedgenError: a file is missing or damaged, another class, weights that do not fit, or a network that needs the
            package diffusers where it is not installed.
    """
    source = str(Path(folder) / CONFIG)
    form, exact = diffusers_form(read_diffusers_config(source), source)
    file = find_weights(folder)
    state = read_weights(file)
    if not exact:
        state = {f"network.{name}": tensor for name, tensor in state.items()}
    convert = monai_names if exact else (lambda weights, _: dict(weights))
    return form, fit_weights(state, parameter_shapes(form, source), str(file), convert)


def timesteps_form(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], str]:
    """What a ``scheduler_config.json`` says of the network: its timesteps and prediction type, as plain values.

    Args:
        config: of the scheduler.
        source: name of the file, for errors.

    Returns:
        The form that :func:`medgen.diffusion.timesteps.make_timesteps` takes, and the prediction type.

    Raises:
        MedgenError: a schedule that has no such form, or that :func:`~medgen.models.interop.schedulers.adapt_scheduler`
            refuses.
    """
    name = str(config.get("_class_name", ""))
    count = int(config.get("num_train_timesteps", 1000))
    if name.startswith("FlowMatch"):
        shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))
        return {"schedule": "flow", "num_train_timesteps": count, "shift": shift}, "flow"
    if config.get("timestep_type", "discrete") != "discrete":
        raise MedgenError(
            f"{source}: {name} with timestep_type 'continuous' feeds log sigma to its network, which is not adapted. "
            "Write denoise(x, sigma, conditioning) for it yourself."
        )
    schedule = config.get("beta_schedule", "linear")
    plain = not config.get("rescale_betas_zero_snr") and config.get("trained_betas") is None
    if schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2") or not plain or name in NOT_ADAPTED:
        raise MedgenError(
            f"{source}: only linear, scaled_linear and squaredcos_cap_v2 betas can be kept in a model folder. Got "
            f"{name} with {short(schedule)}. Adapt the scheduler object: denoiser_from_scheduler."
        )
    kind = str(config.get("prediction_type", "epsilon"))
    check_choice(source, "prediction_type", kind, CHAIN_PREDICTIONS)
    if schedule == "squaredcos_cap_v2":
        return {"schedule": "cosine", "num_train_timesteps": count}, kind
    ends = {"beta_start": float(config.get("beta_start", 1e-4)), "beta_end": float(config.get("beta_end", 0.02))}
    return {"schedule": f"{schedule}_beta", "num_train_timesteps": count, **ends}, kind
