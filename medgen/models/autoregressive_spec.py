"""What an autoregressive model is: the content of ``medgen.json`` of family ``autoregressive``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.fields import checked, choice, integer, nested, network_form, number, refuse
from medgen.models.specification import ModelSpec, nested_networks, network_integer

TRANSFORMER = "DecoderOnlyTransformer"


@dataclass(frozen=True, kw_only=True)
class AutoregressiveSpec(ModelSpec):
    """A transformer that writes the code book entries of a sample one after the other, in raster order.

    The vocabulary is the code book and one more token, with which every sequence begins.

    Args:
        network: ``DecoderOnlyTransformer`` in the registry's form; with controls it has cross-attention.
        autoencoder: specification of the autoencoder with the code book; its channels are the model's.
        temperature: default of sampling: the logits are divided by it.
        top_k: default of sampling: only the so many likeliest entries are drawn from; 0: all.
        guidance_scale: default of classifier-free guidance of the controls, 1 = off.

    The rest: :class:`~medgen.models.specification.ModelSpec`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(choice(lambda: ("autoregressive",)), default="autoregressive")
    network: dict[str, Any] = checked(network_form)
    autoencoder: AutoencoderSpec = checked(nested(lambda: AutoencoderSpec))
    temperature: float = checked(number(0, 100, above=True), default=1.0)
    top_k: int = checked(integer(0, 65536), default=0)
    guidance_scale: float = checked(number(0, 100), default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in ("image", "joint"):
            raise refuse("ModelSpec", "task", "image or joint for an autoregressive model", self.task)
        if self.autoencoder.kind != "vq":
            raise refuse("ModelSpec", "autoencoder", "one with a code book (VQVAE)", self.autoencoder.name)
        if self.autoencoder.voxel_channels != self.voxel_channels:
            raise refuse(
                "ModelSpec", "autoencoder", f"for {self.voxel_channels} channels", self.autoencoder.voxel_channels
            )
        if any(n % self.multiple for n in self.grid.size):
            raise refuse("ModelSpec", "grid.size", f"multiples of {self.multiple}", list(self.grid.size))
        _check_network(self)

    @property
    def token_size(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return self.autoencoder.latent_size(self.grid.size)

    @property
    def tokens(self) -> int:
        """Tokens of a sample."""
        return math.prod(self.token_size)

    @property
    def multiple(self) -> int:
        return self.autoencoder.downsampling

    def networks(self) -> dict[str, dict[str, Any]]:
        found = {"transformer": self.network}
        if self.control_encoder is not None:
            found["controls"] = self.control_encoder
        return found | nested_networks("autoencoder", self.autoencoder)


def _check_network(spec: AutoregressiveSpec) -> None:
    """The transformer has the vocabulary, the length and the conditioning."""
    name = spec.network["_target_"]
    if name != TRANSFORMER:
        raise refuse("ModelSpec", "network._target_", TRANSFORMER, name)
    wanted = {"num_tokens": spec.autoencoder.num_embeddings + 1, "max_seq_len": spec.tokens}
    if spec.control_encoder is not None:
        wanted["attn_layers_dim"] = network_integer(spec.control_encoder, "context_dim", 0)
    for key, value in wanted.items():
        if network_integer(spec.network, key, 0) != value:
            raise MedgenError(f"ModelSpec: field 'network.{key}' must be {value}. Got {spec.network.get(key)}.")
    if bool(spec.network.get("with_cross_attention")) != (spec.control_encoder is not None):
        raise refuse("ModelSpec", "network.with_cross_attention", "true with controls, false without", spec.network)
