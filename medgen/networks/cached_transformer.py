"""One token at a time through MONAI's ``DecoderOnlyTransformer``: keys and values of earlier tokens are kept."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class CachedTransformer:
    """Equal to the network's own forward pass, at a cost per token that does not grow with the square of the length.

    Args:
        network: MONAI's ``DecoderOnlyTransformer``, in evaluation mode.
        context: ``(B, T, D)`` that cross-attention reads, or None.
        batch: rows.

    Example:
        >>> from monai.networks.nets import DecoderOnlyTransformer
        >>> network = DecoderOnlyTransformer(5, 4, 8, 1, 2).eval()
        >>> tokens = torch.tensor([[4, 0, 1]])
        >>> cached = CachedTransformer(network)
        >>> step_by_step = torch.stack([cached.step(tokens[:, i]) for i in range(3)], dim=1)
        >>> bool(torch.allclose(step_by_step, network(tokens), atol=1e-5))
        True
    """

    def __init__(self, network: nn.Module, context: Tensor | None = None, batch: int = 1) -> None:
        own = self.network = cast(Any, network)
        self.context = context
        self.position = 0
        weight: Tensor = own.to_logits.weight
        shape = (batch, own.attn_layers_heads, own.max_seq_len, own.attn_layers_dim // own.attn_layers_heads)
        self._keys = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in own.blocks]
        self._values = [torch.zeros_like(keys) for keys in self._keys]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, vocabulary)`` of what follows ``tokens`` ``(B,)`` at the current position."""
        place = torch.tensor(self.position, device=tokens.device)
        x = self.network.token_embeddings(tokens) + self.network.position_embeddings.embedding(place)
        x = x[:, None]
        for layer, block in enumerate(self.network.blocks):
            x = x + self._attended(layer, block.attn, block.norm1(x))
            if block.with_cross_attention:
                x = x + block.cross_attn(block.norm_cross_attn(x), context=self.context)
            x = x + block.mlp(block.norm2(x))
        self.position += 1
        logits: Tensor = self.network.to_logits(x)[:, 0]
        return logits

    def _attended(self, layer: int, attention: Any, x: Tensor) -> Tensor:
        """Self-attention of the newest token to itself and all before it."""
        if attention.use_combined_linear:
            queries, new_keys, new_values = attention.input_rearrange(attention.qkv(x))
        else:
            parts = (attention.to_q, attention.to_k, attention.to_v)
            queries, new_keys, new_values = (attention.input_rearrange(part(x)) for part in parts)
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self.position], values[:, :, self.position] = new_keys[:, :, 0], new_values[:, :, 0]
        known = slice(self.position + 1)
        weights = (queries @ keys[:, :, known].transpose(-1, -2) * attention.scale).softmax(dim=-1)
        mixed: Tensor = attention.out_proj(attention.out_rearrange(weights @ values[:, :, known]))
        return mixed
