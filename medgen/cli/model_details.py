"""What one model takes and can be asked for, as ``medgen models`` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.models.controls import Control
    from medgen.models.specification import ModelSpec

__all__ = ["details", "details_text"]

EXAMPLES = 3


def details(spec: ModelSpec) -> dict[str, Any]:
    """What a model takes and can be asked for, in plain JSON types.

    Args:
        spec: of the model.
    """
    return {
        "commands": list(_commands(spec)),
        "excluded": _excluded(spec),
        "source_modalities": list(spec.source_modalities),
        "label": "given" if spec.told_label else "made" if spec.makes_label else None,
        "labels": {name: list(ids) for name, ids in spec.label_channels},
        "conditions": [_condition(control) for control in spec.controls],
        "options": _options(spec),
    }


def details_text(spec: ModelSpec) -> Iterator[str]:
    """:func:`details` in lines."""
    from medgen.cohort.conditions import control_text

    found = details(spec)
    yield f"commands: {', '.join(f'medgen {name}' for name in found['commands'])}"
    if spec.source_modalities:
        missing = ", any may be missing" if len(spec.source_modalities) > 1 else ""
        yield f"takes images: {', '.join(f'{name}=PATH' for name in spec.source_modalities)}{missing}"
    if spec.label_channels:
        role = {"given": "takes a label map (--label)", "made": "makes a label map"}.get(found["label"], "labels")
        ids = "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in found["labels"].items())
        own = ", or draws its own" if spec.told_label and spec.label_source else ""
        yield f"{role}{own}: {ids}"
    for control in spec.controls:
        option = "--prompt" if control.kind == "text" else "--condition"
        yield f"condition ({control.kind}): {option} {control_text(control).removeprefix('prompt=')}"
    if not spec.controls:
        yield "conditions: none"
    for sentence in found["excluded"]:
        yield f"excluded: {sentence}"
    for name, value in found["options"].items():
        yield f"option: {name} (default {value})"


def _commands(spec: ModelSpec) -> Iterator[str]:
    if spec.family == "autoencoder":
        yield "reconstruct"
    elif spec.task == "restore":
        yield f"restore --task {getattr(spec, 'restores', '')}"
    elif spec.task in ("inpaint", "translate", "segment"):
        yield spec.task
        if spec.task == "translate" and len(spec.source_modalities) == 1:
            yield "harmonize"
    else:
        yield "generate"
        from medgen.restoration.edit import TASKS

        if spec.family == "diffusion" and spec.task in TASKS and spec.spatial_dims == 3 and spec.image_channels == 1:
            yield "edit"


def _excluded(spec: ModelSpec) -> list[str]:
    """What a restorer's card says of scans that it refuses, each sentence once."""
    domain = getattr(spec, "domain", None)
    if domain is None:
        return []
    sentences = [limit.sentence for limit in domain.limits if limit.severity == "refuse"]
    return list(dict.fromkeys([*([domain.modality_sentence] if domain.modalities else []), *sentences]))


def _condition(control: Control) -> dict[str, Any]:
    """Name, kind and what is allowed."""
    found: dict[str, Any] = {"name": control.name, "kind": control.kind}
    if control.kind == "class":
        return found | {"values": list(control.values)}
    if control.kind == "number":
        return found | {"range": list(control.range), "unit": control.unit}
    return found | {"examples": list(dict.fromkeys(control.prompts))[:EXAMPLES], "encoder": control.encoder}


def _options(spec: Any) -> dict[str, Any]:
    """Settings of the family, as the command line spells them, with the model's defaults."""
    if spec.family == "diffusion":
        found: dict[str, Any] = {"--num-inference-steps": spec.sampling.num_inference_steps}
        if spec.source_modalities or spec.task == "inpaint":
            return {} if spec.task == "inpaint" else found
        found["--sampler"] = spec.sampling.sampler
        guided = (spec.told_label and spec.label_dropout) or (spec.controls and spec.control_dropout)
        return found | ({"--guidance-scale": spec.sampling.guidance_scale} if guided else {})
    if spec.family == "autoregressive":
        found = {"--option temperature=": spec.temperature, "--option top_k=": spec.top_k}
        return found | ({"--guidance-scale": spec.guidance_scale} if spec.control_dropout else {})
    if spec.family == "gan" and spec.kind == "style":
        return {"--option truncation=": spec.truncation}
    return {}
