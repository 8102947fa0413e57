"""A code book and a transformer over its entries: samples written token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medgen.checks import MedgenError, check_positive
from medgen.models.autoencoder import LatentSpace
from medgen.models.autoregressive_spec import AutoregressiveSpec
from medgen.models.base import CONTROL_KEYS, Model, refuse_options
from medgen.models.codec import VoxelCodec
from medgen.models.controls import null_conditions
from medgen.models.specification import nested_networks
from medgen.networks.cached_transformer import CachedTransformer
from medgen.networks.threads import at_most_threads

OPTIONS = ("temperature", "top_k", "guidance_scale")


class AutoregressiveModel(Model[AutoregressiveSpec]):
    """Draws a sequence of code book entries, which the decoder turns into an image (and label).

    References:
        van den Oord et al. 2017 (arXiv:1711.00937); Tudosiu et al. 2022 (arXiv:2209.03177).
    """

    def __init__(
        self, spec: AutoregressiveSpec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = ""
    ) -> None:
        super().__init__(spec, networks, device, hash)
        self._codec = VoxelCodec(spec)
        (name,) = nested_networks("autoencoder", spec.autoencoder)
        self.latent = LatentSpace(spec.autoencoder, self.networks[name])

    @property
    def codec(self) -> VoxelCodec:
        return self._codec

    def settings(self, **options: Any) -> dict[str, Any]:
        """The sampling settings of a run, defaults filled in and checked.

        Args:
            options: ``temperature``, ``top_k`` and ``guidance_scale``, see
                :class:`~medgen.models.autoregressive_spec.AutoregressiveSpec`. None is the model's default.

        Raises:
            MedgenError: another option, or a bad value.
        """
        refuse_options(self.spec, options, OPTIONS)
        given = {name: options.get(name) for name in OPTIONS}
        chosen = {name: getattr(self.spec, name) if value is None else value for name, value in given.items()}
        check_positive("sample", "temperature", chosen["temperature"])
        if not 0 <= chosen["top_k"] <= self.spec.autoencoder.num_embeddings:
            raise MedgenError(
                f"{self.spec.name}: top_k must lie in 0..{self.spec.autoencoder.num_embeddings}. Got {chosen['top_k']}."
            )
        if chosen["guidance_scale"] != 1.0 and not self.spec.control_dropout:
            raise MedgenError(
                f"{self.spec.name}: guidance_scale must be 1, the model was trained without control dropout. "
                f"Got {chosen['guidance_scale']}."
            )
        return {
            "temperature": float(chosen["temperature"]),
            "top_k": int(chosen["top_k"]),
            "guidance_scale": float(chosen["guidance_scale"]),
        }

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse a volume of another size than the grid's: the transformer knows the places of that one.

        Raises:
            MedgenError: another size.
        """
        if tuple(size) != tuple(self.spec.grid.size):
            raise MedgenError(
                f"{self.spec.name}: an autoregressive model makes volumes of {self.spec.grid.size} voxels only. "
                f"Got {tuple(size)}."
            )

    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        controls = {key: known[key][None] for key in CONTROL_KEYS if key in known}
        with torch.no_grad(), at_most_threads(1, self.device):
            tokens = self.draw(seed, settings, controls, callback)
            image, label = self.codec.unstack(self.latent.decode_tokens(tokens, size))
        return (None if image is None else image[0]), (None if label is None else label[0])

    def draw(
        self,
        seed: int,
        settings: Mapping[str, Any],
        controls: Mapping[str, Tensor] | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Tokens ``(1, *token_size)`` of one sample.

        With guidance the logits are ``n + s (c - n)``, ``c`` with the controls and ``n`` without (Ho and Salimans
        2022, arXiv:2207.12598, on logits).

        Args:
            seed: of the sample's only random stream.
            settings: see :meth:`settings`.
            controls: ``classes``, ``numbers`` and ``text``, batched; left out, nothing is asked for.
            callback: called with each finished token.
        """
        scale = settings["guidance_scale"] if self.spec.controls else 1.0
        context = self.context(controls, null_too=scale != 1.0)
        rows = 1 if scale == 1.0 else 2
        cached = CachedTransformer(self.networks["transformer"], context, rows)
        stream = torch.Generator().manual_seed(seed)
        entries = self.spec.autoencoder.num_embeddings
        token, drawn = torch.full((rows,), entries, device=self.device), []
        for place in range(self.spec.tokens):
            logits = cached.step(token)[:, :entries].float().cpu()
            guided = logits[0] if rows == 1 else logits[1] + scale * (logits[0] - logits[1])
            share = probabilities(guided, settings["temperature"], settings["top_k"])
            drawn.append(int(torch.multinomial(share, 1, generator=stream)))
            token = torch.full((rows,), drawn[-1], device=self.device)
            if callback is not None:
                callback(place)
        return torch.tensor(drawn, device=self.device).reshape(1, *self.spec.token_size)

    def context(self, controls: Mapping[str, Tensor] | None, null_too: bool = False) -> Tensor | None:
        """Context tokens ``(B, T, D)`` of controls; with ``null_too`` those of "nothing asked" behind them."""
        return control_context(self.spec, self.networks, controls, self.device, null_too)


def control_context(
    spec: AutoregressiveSpec,
    networks: Mapping[str, nn.Module],
    controls: Mapping[str, Tensor] | None,
    device: torch.device,
    null_too: bool = False,
) -> Tensor | None:
    """What the transformer reads of the controls; None for a model without them.

    Args:
        spec: of the model.
        networks: of the model, with ``controls``.
        controls: ``classes``, ``numbers`` and ``text``, batched; what is left out is not asked for.
        device: where the networks are.
        null_too: add rows of "nothing asked".
    """
    if not spec.controls:
        return None
    batch = len(next(iter(controls.values()))) if controls else 1
    null = null_conditions(spec.controls, batch)
    asked = null | dict(controls or {})
    rows = {key: torch.cat([asked[key], null[key].to(asked[key])]) if null_too else asked[key] for key in null}
    context: Tensor = networks["controls"](**{key: value.to(device) for key, value in rows.items()})
    return context


def probabilities(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Chances of each entry ``(V,)`` float64: ``softmax(logits / temperature)`` over the ``top_k`` likeliest (0: all).

    Example:
        >>> probabilities(torch.tensor([0.0, 1.0, 2.0]), 1.0, 1).tolist()
        [0.0, 0.0, 1.0]
    """
    scaled = logits.double() / temperature
    if top_k:
        lowest = scaled.topk(min(top_k, len(scaled))).values[-1]
        scaled = scaled.masked_fill(scaled < lowest, -torch.inf)
    return scaled.softmax(-1)
