"""Training of a transformer over the code book entries of a trained autoencoder."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.models.autoencoder import LatentSpace
from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.autoregressive import control_context
from medgen.models.autoregressive_spec import TRANSFORMER, AutoregressiveSpec
from medgen.models.base import CONTROL_KEYS, Model
from medgen.models.codec import VoxelCodec
from medgen.models.fields import checked, choice, integer, network_form, number, refuse
from medgen.models.specification import ModelSpec, nested_networks
from medgen.trainers.base import RunTrainer, Statistics, adamw, initial_network, shared_fields
from medgen.trainers.config import TrainConfig
from medgen.trainers.ema import Ema


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(TrainConfig):
    """Training of a transformer over tokens; ``first_stage`` is an autoencoder with a code book (``VQVAE``).

    Args:
        net: ``DecoderOnlyTransformer``; vocabulary, length and cross-attention follow from the first stage and the
            controls.
        temperature, top_k, guidance_scale: see :class:`~medgen.models.autoregressive_spec.AutoregressiveSpec`.

    The rest: :class:`~medgen.trainers.config.TrainConfig`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(choice(lambda: ("autoregressive",)), default="autoregressive")
    net: dict[str, Any] = checked(network_form)
    temperature: float = checked(number(0, 100, above=True), default=1.0)
    top_k: int = checked(integer(0, 65536), default=0)
    guidance_scale: float = checked(number(0, 100), default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net["_target_"] != TRANSFORMER:
            raise refuse("TrainConfig", "net._target_", TRANSFORMER, self.net["_target_"])
        if self.controls and self.net.get("attn_layers_dim") != self.context_dim:
            raise refuse("TrainConfig", "context_dim", "net.attn_layers_dim with controls", self.context_dim)
        if self.patch_size is not None and tuple(self.patch_size) != tuple(self.grid.size):
            raise refuse("TrainConfig", "patch_size", "the whole grid for an autoregressive model", self.patch_size)


class AutoregressiveTrainer(RunTrainer[AutoregressiveConfig, AutoregressiveSpec]):
    """Maximum likelihood of each token given those before it (and the controls): mean cross-entropy, in nats."""

    origin_fields: ClassVar[tuple[str, ...]] = (*RunTrainer.origin_fields, "network", "autoencoder")

    def __init__(
        self,
        config: AutoregressiveConfig,
        spec: AutoregressiveSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        (coder,) = nested_networks("autoencoder", spec.autoencoder)
        self.networks[coder].eval().requires_grad_(False)
        self.trained = [name for name in self.networks if name != coder]
        self.parameters = [p for name in self.trained for p in self.networks[name].parameters()]
        self.codec = VoxelCodec(spec)
        self.space = LatentSpace(spec.autoencoder, self.networks[coder])
        self.optimizers["transformer"] = adamw(config, self.parameters)
        self.ema = {name: Ema(self.networks[name], config.optimisation.ema_decay) for name in self.trained}

    @classmethod
    def make_spec(
        cls,
        config: AutoregressiveConfig,
        people: int,
        statistics: Statistics | None = None,
        first: ModelSpec | None = None,
    ) -> AutoregressiveSpec:
        if not isinstance(first, AutoencoderSpec) or first.kind != "vq":
            found = "none" if first is None else f"'{first.name}' of family '{first.family}'"
            raise MedgenError(
                f"{config.name}: an autoregressive model needs an autoencoder with a code book as first stage. Got "
                f"{found}. Set first_stage=CONFIG or first_stage_model=PATH."
            )
        implied: dict[str, Any] = {
            "num_tokens": first.num_embeddings + 1,
            "max_seq_len": math.prod(first.latent_size(config.grid.size)),
            "with_cross_attention": bool(config.controls),
        }
        for key, value in implied.items():
            if config.net.get(key, value) != value:
                raise MedgenError(f"field 'net.{key}' must be {value} here. Got {config.net[key]}. Leave it out.")
        spec = AutoregressiveSpec(
            **shared_fields(config, people, statistics),
            network={**config.net, **implied},
            autoencoder=first,
            temperature=config.temperature,
            top_k=config.top_k,
            guidance_scale=config.guidance_scale,
        )
        initial_network(spec.network, 0, config.name)  # wrong arguments are refused here, before anything is trained
        return spec

    @classmethod
    def build(
        cls, config: AutoregressiveConfig, spec: AutoregressiveSpec, first: Model[Any] | None = None
    ) -> dict[str, nn.Module]:
        networks = super().build(config, spec, first)
        if first is not None:
            (coder,) = nested_networks("autoencoder", spec.autoencoder)
            (trained,) = first.networks.values()
            networks[coder].load_state_dict(trained.state_dict())
        return networks

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        x = self.codec.stack(batch["image"], batch.get("label")).to(self.device)
        tokens = self.space.tokens(x).flatten(1)
        first = torch.full_like(tokens[:, :1], self.spec.autoencoder.num_embeddings)
        for name in self.trained:
            self.networks[name].train()
        controls = {key: batch[key].to(self.device) for key in CONTROL_KEYS if key in batch}
        with self.autocast():
            context = control_context(self.spec, self.networks, controls, self.device)
            logits = self.networks["transformer"](torch.cat([first, tokens[:, :-1]], dim=1), context=context)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        norm = self.optimise("transformer", loss, self.parameters, step)
        for name, ema in self.ema.items():
            ema.update(self.networks[name], step)
        return {"loss": loss.item(), "gradient_norm": norm.item(), "learning_rate": self.learning_rate(step)}
