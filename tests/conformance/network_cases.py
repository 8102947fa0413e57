"""For every registered network the fewest arguments that build it, what it is called with, and what it answers.

A network without an entry here fails ``test_networks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Size = tuple[int, ...]
Shapes = list[tuple[int, ...]]
ANY, REFUSED, MULTIPLE, FIXED = "any", "refused", "multiple", "fixed"


@dataclass(frozen=True)
class Case:
    """How one network is tried.

    Args:
        arguments: ``(dims, channels, size)`` to constructor arguments.
        inputs: ``(network, channels, size, batch)`` to what it is called with.
        outputs: ``(channels, size, batch)`` to the shapes of all tensors it answers; -1 = whatever.
        odd: what sizes that cannot be halved do: ``any`` (right output), ``refused`` (a MedgenError that names the
            multiple), ``multiple`` (the network of another package answers wrongly or fails in its own words; what uses
            it in medgen keeps to the multiple), ``fixed`` (no spatial axes).
        multiple: of every axis.
        dims: spatial axes it can have; 0 = none.
        least: size of an axis.
        call: how it is called, without the global generator.
        idle: part of the names of parameters that it has and, built so, never uses.
        needs: package that must be there.
    """

    arguments: Callable[[int, int, Size], dict[str, Any]]
    inputs: Callable[[Any, int, Size, int], dict[str, Any]]
    outputs: Callable[[int, Size, int], Shapes]
    odd: str = ANY
    multiple: int = 1
    dims: tuple[int, ...] = (2, 3)
    least: int = 8
    call: Callable[..., Any] = lambda network, **inputs: network(**inputs)
    needs: str = ""
    idle: str = ""

    def answer(self, network: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        """All tensors of the answer, in order."""
        return [leaf for leaf in tree_leaves(self.call(network, **inputs)) if isinstance(leaf, Tensor)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(batch: int, *shape: int, seed: int = 0) -> Tensor:
    """Noise whose row i does not depend on the number of rows."""
    return torch.stack([noise(*shape, seed=seed + i) for i in range(batch)])


def same(channels: int, size: Size, batch: int) -> Shapes:
    return [(batch, channels, *size)]


def half(size: Size) -> Size:
    return tuple(n // 2 for n in size)


def image(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    return {"x": rows(batch, channels, *size)}


def timed(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    return {**image(network, channels, size, batch), "timesteps": torch.tensor([300.0, 700.0])[:batch]}


def controlled(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    return {**timed(network, channels, size, batch), "controlnet_cond": rows(batch, 2, *size, seed=50)}


def monai_unet(dims: int, channels: int, size: Size, widths: str = "channels", **more: Any) -> dict[str, Any]:
    return {
        "spatial_dims": dims, "in_channels": channels, "num_res_blocks": 1, widths: [8, 16], "num_head_channels": 8,
        "attention_levels": [False, True], "norm_num_groups": 4,
    } | more  # fmt: skip


def monai_autoencoder(dims: int, channels: int, size: Size, widths: str = "channels", **more: Any) -> dict[str, Any]:
    return {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "num_res_blocks": [1, 1],
        widths: [8, 16], "attention_levels": [False, False], "latent_channels": 2, "norm_num_groups": 4,
    } | more  # fmt: skip


def encoded(channels: int, size: Size, batch: int) -> Shapes:
    """Reconstruction, mean and deviation of the latent."""
    return [(batch, channels, *size), *[(batch, 2, *half(size))] * 2]


def reconstruct(network: Any, x: Tensor, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The mean's reconstruction: ``forward`` draws from the global generator."""
    mean, deviation = network.encode(x)
    return network.decode(mean + 0.1 * deviation, **more), mean, deviation


def medgen_unet(dims: int, channels: int, size: Size) -> dict[str, Any]:
    return {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "channels": [8, 16],
    } | ({"context_dim": 6, "condition_channels": 2, "num_class_embeds": 3} if channels > 1 else {})  # fmt: skip


def medgen_unet_inputs(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    found = timed(network, channels, size, batch)
    if channels == 1:
        return found
    found["x"] = torch.cat([found["x"], rows(batch, 2, *size, seed=30)], 1)
    return found | {"context": rows(batch, 4, 6, seed=70), "class_labels": torch.tensor([0, 2])[:batch]}


def style_network(dims: int, channels: int, size: Size, name: str) -> dict[str, Any]:
    return {
        "spatial_dims": dims,
        name: channels,
        "size": list(size),
        "channels": [4, 8],
        "context_dim": _told(channels),
    }


def _told(channels: int) -> int:
    """Networks of several channels are tried with conditioning, those of one without."""
    return 6 if channels > 1 else 0


def context(channels: int, batch: int) -> dict[str, Any]:
    return {"context": rows(batch, 3, 6, seed=70)} if _told(channels) else {}


def style_inputs(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    made = [rows(batch, *shape, seed=200 + i) for i, shape in enumerate(network.noise_shapes)]
    return {"z": rows(batch, network.latent_dim), "noise": made, **context(channels, batch)}


def spade_inputs(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    made = [rows(batch, *shape, seed=200 + i) for i, shape in enumerate(network.noise_shapes(size))]
    label = rows(batch, 2, *size, seed=20)
    return {"label": label, "z": rows(batch, network.latent_dim), "noise": made, **context(channels, batch)}


def vqvae(dims: int, channels: int, size: Size) -> dict[str, Any]:
    return {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "channels": [8, 16],
        "num_res_layers": 1, "num_res_channels": [8, 16], "num_embeddings": 8, "embedding_dim": 4,
        "downsample_parameters": [[2, 4, 1, 1]] * 2, "upsample_parameters": [[2, 4, 1, 1, 0]] * 2,
    }  # fmt: skip


def control_encoder(dims: int, channels: int, size: Size) -> dict[str, Any]:
    several = {"classes": [3, 2], "numbers": 2, "text_dim": 5}
    return {"context_dim": 6, **(several if channels > 1 else {"classes": [3]})}


def control_inputs(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    """The first row is given in full, of the second nothing is given."""
    classes = torch.tensor([[1, 0], [-1, -1]])[:batch, : len(network.sizes)]
    if channels == 1:
        return {"classes": classes}
    numbers = torch.tensor([[0.5, -1.0], [float("nan")] * 2])[:batch]
    text = torch.cat([noise(1, 4, 5), torch.zeros(1, 4, 5)])[:batch]
    return {"classes": classes, "numbers": numbers, "text": text}


def transformer(dims: int, channels: int, size: Size) -> dict[str, Any]:
    return {
        "num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 8, "attn_layers_depth": 2, "attn_layers_heads": 2,
        "with_cross_attention": channels > 1,
    }  # fmt: skip


def tokens(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    told = {"context": rows(batch, 3, 8, seed=70)} if channels > 1 else {}
    return {"x": torch.arange(2 * 9).reshape(2, 9)[:batch] % 7, **told}


def diffusers_config(kind: str, channels: int, **more: Any) -> dict[str, Any]:
    return {
        "_class_name": kind, "in_channels": channels, "out_channels": channels, "layers_per_block": 1,
        "block_out_channels": [8, 16], "norm_num_groups": 4,
    } | more  # fmt: skip


def diffusers_unet(dims: int, channels: int, size: Size) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "attention_head_dim": 8}
    return {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "channels": [8, 16],
        "config": diffusers_config("UNet2DModel", channels, **blocks),
    }  # fmt: skip


def diffusers_autoencoder(dims: int, channels: int, size: Size) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    config = diffusers_config("AutoencoderKL", channels, latent_channels=2, **blocks)
    return {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "channels": [8, 16],
        "latent_channels": 2, "config": config,
    }  # fmt: skip


def with_output(arguments: Callable[..., dict[str, Any]], **more: Any) -> Callable[[int, int, Size], dict[str, Any]]:
    """The same arguments and ``out_channels`` equal to the input's."""
    return lambda dims, channels, size: arguments(dims, channels, size, **more) | {"out_channels": channels}


def plain(**more: Any) -> Callable[[int, int, Size], dict[str, Any]]:
    """Channels in and out and what is said."""
    return lambda dims, channels, size: {
        "spatial_dims": dims, "in_channels": channels, "out_channels": channels,
    } | more  # fmt: skip


def labelled(inputs: Callable[..., dict[str, Any]]) -> Callable[[Any, int, Size, int], dict[str, Any]]:
    """The same inputs and a label map of two channels."""
    return lambda network, channels, size, batch: {
        **inputs(network, channels, size, batch),
        "seg": rows(batch, 2, *size, seed=20),
    }


def monai_residuals(channels: int, size: Size, batch: int) -> Shapes:
    """Of the entry and each block on the way down, then of the middle."""
    widths: Sequence[tuple[int, Size]] = [(8, size), (8, size), (8, half(size)), (16, half(size)), (16, half(size))]
    return [(batch, width, *at) for width, at in widths]


def control_unet_inputs(network: Any, channels: int, size: Size, batch: int) -> dict[str, Any]:
    return {**medgen_unet_inputs(network, channels, size, batch), "controlnet_cond": rows(batch, 2, *size, seed=50)}


MAISI: dict[str, Any] = {"widths": "num_channels"}
CONTROL: dict[str, Any] = {"conditioning_embedding_in_channels": 2, "conditioning_embedding_num_channels": [8]}
HALVES: dict[str, Any] = {"odd": MULTIPLE, "multiple": 2}
CASES: dict[str, Case] = {
    "ConditionalUNet": Case(medgen_unet, medgen_unet_inputs, same, odd=REFUSED, multiple=2),
    "ControlUNet": Case(
        lambda dims, channels, size: {
            **{key: value for key, value in medgen_unet(dims, channels, size).items() if key != "out_channels"},
            "control_channels": 2,
        },
        control_unet_inputs,
        lambda channels, size, batch: [(batch, 8, *size), (batch, 16, *half(size))],
        odd=REFUSED,
        multiple=2,
    ),
    "ControlEncoder": Case(
        control_encoder,
        control_inputs,
        lambda channels, size, batch: [(batch, 9 if channels > 1 else 1, 6)],
        odd=FIXED,
        dims=(0,),
    ),
    "DecoderOnlyTransformer": Case(
        transformer,
        tokens,
        lambda channels, size, batch: [(batch, 9, 7)],
        odd=FIXED,
        dims=(0,),
        idle="norm_cross_attn",
    ),
    "StyleGenerator": Case(
        lambda dims, channels, size: style_network(dims, channels, size, "out_channels"), style_inputs, same
    ),
    "StyleDiscriminator": Case(
        lambda dims, channels, size: style_network(dims, channels, size, "in_channels") | {"group_size": 1},
        lambda network, channels, size, batch: {**image(network, channels, size, batch), **context(channels, batch)},
        lambda channels, size, batch: [(batch,)],
    ),
    "PatchDiscriminator": Case(
        lambda dims, channels, size: {
            "spatial_dims": dims,
            "in_channels": channels,
            "channels": 4,
            "num_layers_d": 1,
        },
        image,
        lambda channels, size, batch: [(batch, width, *[-1] * len(size)) for width in (4, 8, 1)],
    ),
    "SpadeGenerator": Case(
        lambda dims, channels, size: (
            style_network(dims, channels, size, "out_channels")
            | {"label_channels": 2, "hidden_channels": 4, "latent_dim": 5}
        ),
        spade_inputs,
        same,
    ),
    "ResNetGenerator": Case(plain(channels=[4, 8], num_res_blocks=1), image, same),
    "UNetGenerator": Case(plain(channels=[4, 8]), image, same),
    "UNet": Case(plain(channels=[4, 8], strides=[2], num_res_units=1), image, same, **HALVES),
    "BasicUNet": Case(plain(features=[4] * 6), image, same, least=32),
    "RestorationUNet": Case(plain(channels=[4, 8], num_res_blocks=1), image, same, odd=REFUSED, multiple=2),
    "SwinUNETR": Case(
        plain(feature_size=12, depths=[1] * 4),
        lambda *shape: {"x_in": image(*shape)["x"]},
        same,
        odd=MULTIPLE,
        multiple=32,
        least=32,
    ),
    "Restormer": Case(
        plain(dim=4, num_blocks=[1, 1], heads=[1, 1], num_refinement_blocks=1),
        image,
        same,
        **HALVES,
    ),
    "DiffusionModelUNet": Case(with_output(monai_unet), timed, same, **HALVES),
    "SPADEDiffusionModelUNet": Case(
        with_output(monai_unet, label_nc=2, spade_intermediate_channels=4), labelled(timed), same, **HALVES
    ),
    "DiffusionModelUNetMaisi": Case(with_output(monai_unet, **MAISI), timed, same, **HALVES),
    "ControlNet": Case(lambda *shape: monai_unet(*shape, **CONTROL), controlled, monai_residuals, **HALVES),
    "ControlNetMaisi": Case(
        lambda *shape: monai_unet(*shape, **MAISI, **CONTROL, use_checkpointing=False),
        controlled,
        monai_residuals,
        **HALVES,
    ),
    "AutoencoderKL": Case(monai_autoencoder, image, encoded, call=reconstruct, **HALVES),
    "SPADEAutoencoderKL": Case(
        lambda *shape: monai_autoencoder(*shape, label_nc=2, spade_intermediate_channels=4),
        labelled(image),
        encoded,
        call=reconstruct,
        **HALVES,
    ),
    "AutoencoderKlMaisi": Case(
        lambda *shape: monai_autoencoder(*shape, **MAISI, num_splits=1),
        image,
        encoded,
        call=reconstruct,
        dims=(3,),
        **HALVES,
    ),
    "VQVAE": Case(
        vqvae,
        lambda *shape: {"images": image(*shape)["x"]},
        lambda channels, size, batch: [(batch, channels, *size), ()],
        odd=MULTIPLE,
        multiple=4,
    ),
    "DiffusersUNet": Case(diffusers_unet, timed, same, dims=(2,), needs="diffusers", **HALVES),
    "DiffusersAutoencoderKL": Case(
        diffusers_autoencoder, image, encoded, call=reconstruct, dims=(2,), needs="diffusers", **HALVES
    ),
}
