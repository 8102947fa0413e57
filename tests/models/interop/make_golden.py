"""Outputs of GenerativeModels' own networks, kept as the truth that converted weights are tested against.

That repository's package brings a top-level folder ``tests`` along, so it goes beside the environment, not into it:
``pip install --no-deps --target DIR monai-generative==0.2.3``, then
``PYTHONPATH=.:DIR python tests/models/interop/make_golden.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medgen.diffusion.randomness import derive_seed

GOLDEN = Path(__file__).parent / "golden"
SEED = 20

_LEVELS = {"num_res_blocks": 1, "attention_levels": [False, True], "norm_num_groups": 4}
_IMAGE = {"in_channels": 1, "out_channels": 1}
_UNET = {**_LEVELS, **_IMAGE, "num_channels": [8, 8], "num_head_channels": 4}
_CROSS = {"with_conditioning": True, "cross_attention_dim": 6, "transformer_num_layers": 1}
_CONTROL = {k: v for k, v in _UNET.items() if k != "out_channels"} | {"conditioning_embedding_num_channels": [4, 4]}
_VQ = {
    **_IMAGE, "num_channels": [8, 8], "num_res_layers": 1, "num_res_channels": [8, 8], "num_embeddings": 8,
    "embedding_dim": 4, "downsample_parameters": [[2, 4, 1, 1]] * 2, "upsample_parameters": [[2, 4, 1, 1, 0]] * 2,
}  # fmt: skip
_KL = {**_LEVELS, **_IMAGE, "num_channels": [8, 8], "latent_channels": 2}
_TEXT = {"num_tokens": 9, "max_seq_len": 8, "attn_layers_dim": 8, "attn_layers_depth": 2, "attn_layers_heads": 2}

# name: (class, arguments under that repository's names)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder_kl_2d": ("AutoencoderKL", {"spatial_dims": 2, **_KL}),
    "autoencoder_kl_3d": ("AutoencoderKL", {"spatial_dims": 3, **_KL, "with_encoder_nonlocal_attn": False}),
    "vqvae_3d": ("VQVAE", {"spatial_dims": 3, **_VQ}),
    "unet_2d_classes": ("DiffusionModelUNet", {"spatial_dims": 2, **_UNET, "num_class_embeds": 3}),
    "unet_3d": ("DiffusionModelUNet", {"spatial_dims": 3, **_UNET}),
    "unet_2d_updown": ("DiffusionModelUNet", {"spatial_dims": 2, **_UNET, "resblock_updown": True}),
    "unet_2d_cross": ("DiffusionModelUNet", {"spatial_dims": 2, **_UNET, **_CROSS}),
    "controlnet_2d": ("ControlNet", {"spatial_dims": 2, **_CONTROL}),
    "controlnet_3d_cross": ("ControlNet", {"spatial_dims": 3, **_CONTROL, **_CROSS}),
    "spade_unet_2d": ("SPADEDiffusionModelUNet", {"spatial_dims": 2, **_UNET, "label_nc": 3}),
    "spade_autoencoder_2d": ("SPADEAutoencoderKL", {"spatial_dims": 2, **_KL, "label_nc": 3}),
    "discriminator_2d": (
        "PatchDiscriminator", {"spatial_dims": 2, "num_channels": 8, "in_channels": 1, "num_layers_d": 2}
    ),
    "transformer": ("DecoderOnlyTransformer", _TEXT),
    "transformer_cross": ("DecoderOnlyTransformer", {**_TEXT, "with_cross_attention": True}),
}  # fmt: skip


def draw(name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Normal numbers that are a function of ``name`` alone."""
    stream = torch.Generator().manual_seed(derive_seed(SEED, "golden", name))
    return torch.randn(shape, generator=stream) * scale


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a case by that repository's names; small enough that no activation runs away."""
    made = {}
    for name, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[1:])))
        made[name] = draw(f"{case} {name}", shape, 0.7 / fan_in**0.5)
        if name.endswith("running_var"):
            made[name] = made[name].abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(1)
    return made


@torch.no_grad()
def outputs(network: nn.Module, case: str, arguments: dict[str, Any]) -> list[Tensor]:
    """What a network of either generation makes of fixed inputs."""
    kind, dims = CASES[case][0], arguments.get("spatial_dims", 0)
    x = draw("image", (2, 1, *[8] * dims))
    time = torch.tensor([3.0, 700.0])
    label = torch.nn.functional.one_hot(torch.arange(2 * 8**dims).reshape(2, *[8] * dims) % 3, 3).float()
    label = label.movedim(-1, 1)
    context = draw("context", (2, 3, 6)) if arguments.get("with_conditioning") else None
    if kind == "AutoencoderKL":
        mean, std = network.encode(x)  # type: ignore[operator]
        return [mean, std, network.decode(mean)]  # type: ignore[operator]
    if kind == "SPADEAutoencoderKL":
        mean, std = network.encode(x)  # type: ignore[operator]
        return [mean, std, network.decode(mean, label)]  # type: ignore[operator]
    if kind == "VQVAE":
        return [network.encode(x), network(x)[0]]  # type: ignore[operator]
    if kind == "ControlNet":
        down, middle = network(x, time, draw("map", (2, 1, *[16] * dims)), 0.5, context)
        return [*down, middle]
    if kind == "SPADEDiffusionModelUNet":
        return [network(x, time, label, context)]
    if kind == "DiffusionModelUNet":
        classes = torch.tensor([0, 2]) if arguments.get("num_class_embeds") else None
        return [network(x, time, context, classes)]
    if kind == "PatchDiscriminator":
        found: list[Tensor] = network(draw("picture", (2, 1, 32, 32)))
        return found
    tokens = torch.arange(12).reshape(2, 6) % 9
    crossed = draw("context", (2, 3, 8)) if arguments.get("with_cross_attention") else None
    return [network(tokens, context=crossed)]


def main() -> None:
    """Write one file a case: names and shapes of the weights, and the outputs."""
    from generative.networks import nets

    GOLDEN.mkdir(exist_ok=True)
    names = {}
    for case, (kind, arguments) in CASES.items():
        network = getattr(nets, kind)(**arguments).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        network.load_state_dict(weights(case, shapes))
        made = outputs(network, case, arguments)
        np.savez_compressed(GOLDEN / f"{case}.npz", *[tensor.numpy() for tensor in made])
        names[case] = shapes
        print(case, len(shapes), [tuple(t.shape) for t in made], [round(float(t.std()), 3) for t in made][:3])
    (GOLDEN / "names.json").write_text(json.dumps(names, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
