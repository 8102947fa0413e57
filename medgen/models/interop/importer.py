"""From a MONAI bundle, a diffusers folder or a weights file to a model folder of medgen.

A small YAML says what the source does not: name, grid, and what cannot be read out of it. Its keys:

- every field of the model's specification (``name``, ``version``, ``grid``, ``task``, ``sampling``, ``licence``, ...);
- ``networks``: for each of ``denoiser``, ``control`` and ``autoencoder`` an object with ``weights`` (file, relative to
  the source), ``key`` (of the bundle's configuration), ``arguments`` (constructor arguments in place of those read) or
  a whole registry form (``_target_`` and arguments);
- ``scheduler``: ``name`` and arguments of a MONAI scheduler, or a form of :mod:`medgen.diffusion.timesteps` with
  ``prediction_type``;
- ``scale_factor``: of the latents, where the source does not say; ``value_range``: of the images that the networks
  were trained on (of the autoencoder, in a latent model), -1 to 1 for diffusers and else 0 to 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, check_choice
from medgen.io.configs import read_yaml
from medgen.models.autoencoder_spec import AUTOENCODER_TASKS, latent_channels
from medgen.models.fields import refuse
from medgen.models.folder import save_model
from medgen.models.interop.diffusers import CONFIG, SCHEDULER, read_diffusers, read_diffusers_config
from medgen.models.interop.diffusers import timesteps_form as diffusers_timesteps
from medgen.models.interop.monai_bundle import (
    CONFIGS,
    bundle_networks,
    bundle_scheduler,
    bundle_value,
    network_form,
    read_bundle_config,
    scheduler_form,
    target_name,
)
from medgen.models.interop.weights import fit_weights, read_scale_factor, read_weights
from medgen.models.specification import ModelSpec
from medgen.networks.registry import TARGET, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_model"]

ROLES: dict[str, tuple[str, ...]] = {
    "denoiser": ("DiffusionModelUNet", "DiffusionModelUNetMaisi", "DiffusersUNet"),
    "control": ("ControlNet", "ControlNetMaisi"),
    "autoencoder": ("AutoencoderKL", "AutoencoderKlMaisi", "DiffusersAutoencoderKL", "VQVAE"),
}
# words in the name of a weights file, by role, the most telling first
STEMS: dict[str, tuple[str, ...]] = {
    "denoiser": ("diffusion", "unet", "model"),
    "control": ("control",),
    "autoencoder": ("autoencoder", "vae", "vqvae", "model"),
}
OWN_KEYS = ("networks", "scheduler", "scale_factor", "value_range")
# fields of a latent model that are its autoencoder's too
SHARED = ("name", "version", "grid", "image_channels", "channels", "label_channels", "modality")
DEFAULT_SCALE = 0.18215  # of diffusers where its file does not say
OUT = ("out.2.conv.weight", "out.2.conv.bias")
Part = tuple[dict[str, Any], "dict[str, Tensor]"]


@dataclass
class _Source:
    """What was found: parts by role, and what is known of the noise, the latents and the images.

    Latents are ``scale_factor (z - latent_mean) / latent_std``, mean and deviation by channel where they are given.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    timesteps: dict[str, Any] | None = None
    prediction_type: str | None = None
    scale_factor: float | None = None
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    value_range: tuple[float, float] = (0.0, 1.0)


def import_model(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    specification: Mapping[str, Any] | str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> str:
    """Write a medgen model folder from another program's files. Nothing in them runs.

    Args:
        source: folder of a MONAI bundle, of a diffusers network or pipeline, or a file of weights.
        output_dir: the folder to make.
        specification: see this module; a mapping or the path of a YAML file.
        overwrite: replace a model folder of that name.

    Returns:
        The hash of the model.

    Raises:
        MedgenError: a source of another kind, an expression or network that cannot be read, weights that do not fit,
            or something that neither the source nor the specification says.
    """
    said = _specification(specification)
    found = _read(Path(source), said)
    spec, parts = _compose(said, found)
    names = list(spec.networks())
    single = len(names) == 1
    state = {
        key if single else f"{name}.{key}": tensor
        for name in names
        for key, tensor in parts[name.split(".")[-1]].items()
    }
    return save_model(output_dir, spec, state, overwrite=overwrite)


def _specification(given: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    path = Path(given)
    if not path.is_file():
        raise MedgenError(f"import: there is no specification '{path}'. Write a YAML file with name, grid, ...")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise MedgenError(f"import: '{path}' is not valid YAML: {error}. Correct it.") from error
    if not isinstance(content, dict):
        raise MedgenError(f"import: '{path}' must hold a mapping (name: ..., grid: ...). Correct it.")
    return content


def _read(source: Path, said: Mapping[str, Any]) -> _Source:
    if source.is_dir() and any((source / name).is_file() for name in CONFIGS):
        found = _read_bundle(source, said)
    elif source.is_dir():
        found = _read_diffusers(source)
    else:
        found = _read_file(source, said)
    if not found.parts:
        raise MedgenError(
            f"import: no network was found in '{source}'. State it in the specification under 'networks'."
        )
    if "scheduler" in said:
        found.timesteps, found.prediction_type = _said_scheduler(said["scheduler"])
    if "scale_factor" in said:
        found.scale_factor = float(said["scale_factor"])
    if "value_range" in said:
        found.value_range = (float(said["value_range"][0]), float(said["value_range"][1]))
    low, high = found.value_range
    if low >= high:
        raise MedgenError(f"import: value_range must be [low, high] with low < high. Got {[low, high]}. Correct it.")
    if found.scale_factor is not None and not found.scale_factor > 0:
        raise MedgenError(f"import: scale_factor must be above 0. Got {found.scale_factor}. Correct it.")
    return found


def _said_scheduler(form: Any) -> tuple[dict[str, Any], str]:
    if not isinstance(form, Mapping):
        raise refuse("import", "scheduler", "an object with 'name' or 'schedule'", form)
    if "name" in form:
        return scheduler_form(form)
    plain = dict(form)
    kind = str(plain.pop("prediction_type", "flow" if plain.get("schedule", "flow") == "flow" else "epsilon"))
    return plain, kind


def _read_bundle(source: Path, said: Mapping[str, Any]) -> _Source:
    config = read_bundle_config(source)
    asked = _asked(said)
    for role, request in asked.items():  # arguments stated by hand stand in for those that are expressions
        key = request.get("key")
        if key is not None and isinstance(config.get(key), dict):
            config[key] = {**config[key], **request.get("arguments", {})}
        elif key is not None:
            raise MedgenError(f"import: the bundle has no '{key}' (networks.{role}.key). It has {', '.join(config)}.")
    forms = {key: network_form(config, key) for key in bundle_networks(config) if not _skipped(config, key, asked)}
    found, files = _Source(), {}
    for role, targets in ROLES.items():
        key = asked.get(role, {}).get("key") or _only([k for k, form in forms.items() if form[TARGET] in targets], role)
        form = _whole_form(asked.get(role, {})) or (forms.get(key) if key else None)
        if form is None:
            continue
        file = files[role] = _weights_file(source, role, asked.get(role, {}), len(forms))
        state = read_weights(file)
        found.parts[role] = form, fit_weights(state, parameter_shapes(form, key or role), str(file))
    scheduler = bundle_scheduler(config)
    if scheduler is not None:
        found.timesteps, found.prediction_type = scheduler
    if "denoiser" in files and "scale_factor" not in said:
        found.scale_factor = _scale_factor(config, files["denoiser"])
    return found


def _scale_factor(config: Mapping[str, Any], file: Path) -> float | None:
    """What the bundle says that latents are multiplied by: in the diffusion network's file, or as a plain value."""
    kept = read_scale_factor(file)
    if kept is not None or "scale_factor" not in config:
        return kept
    return float(bundle_value(config, config["scale_factor"], "scale_factor"))


def _skipped(config: Mapping[str, Any], key: str, asked: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a network need not be read: it has no role, or its role has a form or another key stated by hand."""
    name = target_name(config[key])
    role = next((role for role, targets in ROLES.items() if name in targets), None)
    if role is None:
        return True
    request = asked.get(role, {})
    return _whole_form(request) is not None or request.get("key", key) != key


def _asked(said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``networks`` of the specification, by role."""
    asked = said.get("networks", {})
    if not isinstance(asked, Mapping) or not all(isinstance(value, Mapping) for value in asked.values()):
        raise refuse("import", "networks", "an object for each of denoiser, control, autoencoder", asked)
    for role in asked:
        check_choice("import", "network", role, ROLES)
    return {role: dict(value) for role, value in asked.items()}


def _whole_form(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The registry form that a request states, if it does."""
    if TARGET not in request:
        return None
    return {key: value for key, value in request.items() if key not in ("weights", "key", "arguments")}


def _only(keys: list[str], role: str) -> str | None:
    if len(keys) > 1:
        raise MedgenError(
            f"import: the bundle describes several networks for '{role}': {', '.join(keys)}. Choose one in the "
            f"specification: networks: {{{role}: {{key: {keys[0]}}}}}."
        )
    return keys[0] if keys else None


def _weights_file(source: Path, role: str, request: Mapping[str, Any], networks: int) -> Path:
    """The weights of a role: the one stated, or the one whose name says so."""
    if "weights" in request:
        return source / str(request["weights"])
    files = sorted(p for p in (source / "models").glob("*") if p.suffix in (".pt", ".pth", ".safetensors"))
    for word in STEMS[role]:
        hits = [file for file in files if word in file.stem.lower()]
        if hits and (networks == 1 or word != "model" or role == "denoiser"):
            return next((file for file in hits if file.suffix == ".safetensors"), hits[0])
    raise MedgenError(
        f"import: which file of '{source / 'models'}' holds the weights of '{role}'? State it in the specification: "
        f"networks: {{{role}: {{weights: models/NAME.pt}}}}."
    )


def _read_diffusers(source: Path) -> _Source:
    """A pipeline (``unet``, ``vae``, ``scheduler`` in folders of these names) or one network."""
    found = _Source(value_range=(-1.0, 1.0))
    folders = [source] if (source / CONFIG).is_file() else [source / "unet", source / "vae"]
    for folder in folders:
        if not (folder / CONFIG).is_file():
            continue
        form, state = read_diffusers(folder)
        role = next(role for role, targets in ROLES.items() if form[TARGET] in targets)
        found.parts[role] = form, state
        if role == "autoencoder":
            _read_latent_figures(found, read_diffusers_config(folder / CONFIG))
    for file in (source / "scheduler" / SCHEDULER, source / SCHEDULER):
        if file.is_file():
            found.timesteps, found.prediction_type = diffusers_timesteps(read_diffusers_config(file), str(file))
            break
    return found


def _read_latent_figures(found: _Source, config: Mapping[str, Any]) -> None:
    """Scale, shift (one number) and mean and deviation (by channel) of the latents of a diffusers autoencoder."""
    found.scale_factor = float(config.get("scaling_factor", DEFAULT_SCALE))
    count = int(config.get("latent_channels", 4))
    shift = config.get("shift_factor")
    found.latent_mean = tuple(config.get("latents_mean") or ([float(shift)] * count if shift else []))
    found.latent_std = tuple(config.get("latents_std") or [])


def _read_file(source: Path, said: Mapping[str, Any]) -> _Source:
    """One or several files of weights, with the networks stated by hand."""
    found = _Source()
    for role, request in _asked(said).items():
        form = _whole_form(request)
        if form is None:
            raise MedgenError(
                f"import: '{source}' holds weights alone. State the network in the specification: networks: "
                f"{{{role}: {{_target_: {ROLES[role][0]}, ...}}}}."
            )
        file = source.parent / str(request["weights"]) if "weights" in request else source
        shapes = parameter_shapes(form, f"networks.{role}")
        found.parts[role] = form, fit_weights(read_weights(file), shapes, str(file))
    return found


def _compose(said: Mapping[str, Any], found: _Source) -> tuple[ModelSpec, dict[str, dict[str, Tensor]]]:
    """The specification of the model, and the weights of its networks by role."""
    fields = {key: value for key, value in said.items() if key not in OWN_KEYS}
    fields = {"version": "1.0.0", "task": "image", "training": {"data": "imported"}} | fields
    states = {role: dict(state) for role, (_, state) in found.parts.items()}
    if "denoiser" not in found.parts:
        return ModelSpec.from_dict(_autoencoder_fields(fields, found), "import"), states
    form = found.parts["denoiser"][0]
    kind = found.prediction_type
    if kind is None or found.timesteps is None:
        raise MedgenError(
            "import: the source does not say how noise was added in training. State it in the specification, for "
            "example scheduler: {name: DDPMScheduler, schedule: scaled_linear_beta, beta_start: 0.0015, "
            "beta_end: 0.0195}."
        )
    if kind == "negative_flow":
        kind = "flow"
        for name in OUT:  # the network predicts x0 - n, medgen's flow is n - x0
            states["denoiser"][name] = -states["denoiser"][name]
    fields |= {"family": "diffusion", "network": form, "prediction_type": kind, "timesteps": found.timesteps}
    if "control" in found.parts:
        fields["control_network"] = found.parts["control"][0]
    channels = int(form["out_channels"])
    figures = _image_figures(found, channels)
    if "autoencoder" in found.parts:
        inner = {key: fields[key] for key in SHARED if key in fields}
        inner["task"] = fields["task"] if fields["task"] in AUTOENCODER_TASKS else "image"
        fields["autoencoder"] = _autoencoder_fields(inner, found)
        figures = {"channel_mean": [0.0] * channels, "channel_std": [1.0] * channels}
    return ModelSpec.from_dict({**figures, "sampling": _sampling(found.timesteps), **fields}, "import"), states


def _image_figures(found: _Source, channels: int) -> dict[str, list[float]]:
    """What brings images in 0..1 to the networks' range: ``low + (high - low) image = (image - mean) / std``."""
    low, high = found.value_range
    return {"channel_mean": [-low / (high - low)] * channels, "channel_std": [1 / (high - low)] * channels}


def _autoencoder_fields(fields: Mapping[str, Any], found: _Source) -> dict[str, Any]:
    """The specification of the autoencoder."""
    form = found.parts["autoencoder"][0]
    count = latent_channels(form)
    scale = found.scale_factor or 1.0
    figures = _image_figures(found, int(form.get("in_channels", 1)))
    figures["latent_mean"] = list(found.latent_mean or [0.0] * count)
    figures["latent_std"] = [std / scale for std in found.latent_std or [1.0] * count]
    return {**figures, **fields, "family": "autoencoder", "network": form}


def _sampling(timesteps: Mapping[str, Any]) -> dict[str, Any]:
    """How an imported model is sampled by default: second order, steps even in log sigma, over its chain's levels."""
    from medgen.diffusion.timesteps import make_timesteps

    levels = make_timesteps(timesteps).sigmas(2)
    highest = min(float(levels[0]), 200.0)
    return {
        "sampler": "dpmpp_2m",
        "num_inference_steps": 30,
        "schedule": "logsnr",
        "sigma_min": 0.02,
        "sigma_max": highest,
    }
