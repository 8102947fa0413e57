"""MONAI bundles read as data: networks, scheduler and scale factor of ``configs/inference.json``.

A bundle's configuration is a program: ``$`` starts an expression, ``_target_`` names anything that can be imported.
Here ``@references`` to plain values are followed, targets are looked up in medgen's registry by their last word, and
everything else is refused with the name of the value to state by hand.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.checks import MedgenError, check_choice
from medgen.io.configs import read_yaml
from medgen.networks.registry import NETWORKS, TARGET, check_network, short

__all__ = [
    "bundle_networks", "bundle_scheduler", "bundle_value", "network_form", "read_bundle_config", "scheduler_form",
    "target_name",
]  # fmt: skip

CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml", "configs/train.json")
MAX_BYTES = 1 << 20
MAX_DEPTH = 16
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "RFlowScheduler")
# arguments that have another name today; those of MAISI's networks kept theirs
FORMER_ARGUMENTS = {"num_channels": "channels", "use_checkpointing": "use_checkpoint", "ff_dropout": "dropout"}
BETA_ARGUMENTS = ("beta_start", "beta_end", "sig_range", "s")
_REFERENCE = re.compile(r"\$?@([A-Za-z_][\w.]*(?:(?:#|::)\w+)*)")


def read_bundle_config(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a bundle, as plain values with its expressions still in it as text.

    Args:
        bundle: folder of the bundle, or the JSON or YAML file itself.

    Raises:
        MedgenError: no configuration, or one that is no mapping.
    """
    path = Path(bundle)
    files = [path] if path.is_file() else [path / name for name in CONFIGS if (path / name).is_file()]
    if not files:
        raise MedgenError(f"'{bundle}' is no MONAI bundle: it holds none of {', '.join(CONFIGS)}. Give its folder.")
    file = files[0]
    if file.stat().st_size > MAX_BYTES:
        raise MedgenError(f"'{file}' has more than {MAX_BYTES:,} bytes. This is no configuration of a bundle.")
    text = file.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if file.suffix == ".json" else read_yaml(text)
    except Exception as error:
        raise MedgenError(f"'{file}' cannot be read: {short(str(error), 120)}. Copy the bundle again.") from error
    if not isinstance(content, dict):
        raise MedgenError(f"'{file}' must hold a mapping. Got {short(content)}. Copy the bundle again.")
    return content


def bundle_value(config: Mapping[str, Any], value: Any, where: str, depth: int = 0) -> Any:
    """A value of a bundle's configuration with its references followed.

    Args:
        config: the whole configuration.
        value: plain values, in which a text may be one reference (``@spatial_dims``, ``@a#b``, ``$@a``).
        where: its name, for errors.
        depth: how many references have been followed.

    Raises:
        MedgenError: an expression, a macro, a reference to nothing, or one that leads back to itself.

    Example:
        >>> bundle_value({"dims": 3, "net": {"size": "@dims"}}, "@net#size", "network_def.size")
        3
        >>> bundle_value({}, "$print(1)", "network_def.channels")
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: field 'network_def.channels' of the bundle must be a plain value or a reference to \
one. Got the expression '$print(1)', which is not evaluated. State its value in the specification.
    """
    if depth > MAX_DEPTH:
        raise MedgenError(f"field '{where}' of the bundle refers to itself. State its value in the specification.")
    if isinstance(value, Mapping):
        return {key: bundle_value(config, item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bundle_value(config, item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    reference = _REFERENCE.fullmatch(value.strip())
    if reference:
        return bundle_value(config, _found(config, reference[1], where), where, depth + 1)
    if value[:1] in {"$", "%", "@"}:
        raise MedgenError(
            f"field '{where}' of the bundle must be a plain value or a reference to one. Got the expression "
            f"{short(value)}, which is not evaluated. State its value in the specification."
        )
    return value


def _found(config: Mapping[str, Any], reference: str, where: str) -> Any:
    """What ``a#b#0`` (or ``a::b::0``) leads to."""
    value: Any = config
    for step in re.split("#|::", reference):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise MedgenError(
                f"field '{where}' of the bundle refers to '@{reference}', which is not there. State its value in the "
                "specification."
            ) from error
    return value


def target_name(value: Any) -> str:
    """The last word of a target: ``monai.networks.nets.VQVAE`` -> ``VQVAE``; empty where there is none."""
    target = value.get(TARGET) if isinstance(value, Mapping) else None
    return target.rsplit(".", 1)[-1] if isinstance(target, str) else ""


def bundle_networks(config: Mapping[str, Any]) -> list[str]:
    """The keys of a bundle's configuration that describe a registered network."""
    return [key for key, value in config.items() if target_name(value) in NETWORKS]


def network_form(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Registry form of the network at one key; former names of arguments are replaced.

    Args:
        config: of :func:`read_bundle_config`.
        key: one of :func:`bundle_networks`.

    Raises:
        MedgenError: an argument that is an expression, or that the network does not take.
    """
    name = target_name(config.get(key))
    check_choice("import", f"field '{key}.{TARGET}' of the bundle", name, NETWORKS)
    given = {k: bundle_value(config, v, f"{key}.{k}") for k, v in config[key].items() if not k.startswith("_")}
    takes = inspect.signature(NETWORKS[name].load()).parameters
    form: dict[str, Any] = {TARGET: name}
    for argument, value in given.items():
        now = argument if argument in takes else FORMER_ARGUMENTS.get(argument, argument)
        form[now] = value
    check_network(form, "bundle", key)
    return form


def bundle_scheduler(config: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """Timesteps and prediction type of the first scheduler that a bundle's configuration describes.

    Args:
        config: of :func:`read_bundle_config`.

    Returns:
        The form that :func:`medgen.diffusion.timesteps.make_timesteps` takes and the prediction type
        (``negative_flow`` for MONAI's rectified flow, which points from noise to data); None without a scheduler.

    Raises:
        MedgenError: an argument that is an expression.
    """
    for key, value in config.items():
        name = target_name(value)
        if name not in SCHEDULERS:
            continue
        given = {k: bundle_value(config, v, f"{key}.{k}") for k, v in value.items() if not k.startswith("_")}
        return scheduler_form({**given, "name": name})
    return None


def scheduler_form(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The same for the plain arguments of a MONAI scheduler.

    Args:
        given: ``name``, one of ``SCHEDULERS``, and its arguments.

    Raises:
        MedgenError: another scheduler.
    """
    check_choice("import", "scheduler", given.get("name"), SCHEDULERS)
    count = int(given.get("num_train_timesteps", 1000))
    if given["name"] == "RFlowScheduler":
        return {"schedule": "flow", "num_train_timesteps": count}, "negative_flow"
    schedule = str(given.get("schedule", given.get("beta_schedule", "linear_beta")))
    schedule = schedule if schedule == "cosine" or schedule.endswith("_beta") else f"{schedule}_beta"
    form = {"schedule": schedule, "num_train_timesteps": count}
    return form | {k: float(given[k]) for k in BETA_ARGUMENTS if k in given}, str(
        given.get("prediction_type", "epsilon")
    )
