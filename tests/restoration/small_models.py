"""Small diffusion models with random weights, of any task, in two and three dimensions."""

from __future__ import annotations

from typing import Any

import torch

from medgen.models.diffusion_model import DiffusionModel
from medgen.models.specification import ModelSpec
from medgen.networks import build_network


def small_model(task: str, dims: int = 3, spacing: float = 4.0, **fields: Any) -> DiffusionModel:
    """A model that answers something, the same at each call.

    Args:
        task: of the model.
        dims: 2 or 3.
        spacing: mm.
        fields: further ones of the specification.
    """
    factor = 2**dims
    given = {"source_modalities": ["T1w", "T2w"]} if task in ("translate", "segment") else {}
    labels = (
        {"label_channels": [["front", [1]], ["back", [2, 3]]]} if task in ("segment", "joint", "label_to_image") else {}
    )
    dropout = {"label_dropout": 0.5} if task == "joint" else {}
    channels = {"segment": 2, "joint": 3}.get(task, 1) * factor
    condition = {"translate": 2 * (factor + 1), "segment": 2 * (factor + 1), "joint": 2 * factor + 1}
    condition["label_to_image"] = 2 * factor
    controls: dict[str, Any] = {}
    context = {}
    if fields.pop("sized", False):
        control = {"name": "size", "kind": "class", "values": ["small", "large"], "shares": [0.5, 0.5]}
        encoder = {"_target_": "ControlEncoder", "context_dim": 8, "classes": [2], "numbers": 0, "text_dim": 0}
        controls = {"controls": [control], "control_encoder": encoder, "control_dropout": 0.2}
        context = {"context_dim": 8}
    spec = ModelSpec.from_dict(
        {
            "name": f"small-{task.replace('_', '-')}",
            "version": "1.0.0",
            "network": {
                "_target_": "ConditionalUNet",
                "channels": [8, 16],
                "condition_embedding": 4,
                "spatial_dims": dims,
                "in_channels": channels,
                "out_channels": channels,
                "condition_channels": condition.get(task, 0),
                **context,
            },
            "prediction_type": "edm",
            "packing": "haar",
            "task": task,
            "channel_mean": [0.4] + [0.0] * (channels - 1),
            "channel_std": [0.2] * channels,
            "grid": {"spacing": [spacing] * dims, "size": [16] * dims},
            "sampling": {
                "sampler": "dpmpp_2m",
                "num_inference_steps": 3,
                "schedule": "logsnr",
                "sigma_min": 0.1,
                "sigma_max": 10.0,
            },
            "modality": "FLAIR",
            "intensity": {"scale": 500.0, "unit": "FLAIR units"},
            **given, **labels, **dropout, **controls, **fields,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    networks = {name: build_network(form) for name, form in spec.networks().items()}
    for network in networks.values():
        for parameter in network.parameters():
            if not parameter.any():  # layers that start at zero
                torch.nn.init.normal_(parameter, std=0.05)
        network.eval().requires_grad_(False)
    return DiffusionModel(spec, networks, torch.device("cpu"), "0" * 64)
