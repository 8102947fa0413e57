"""A trained regression restorer, ready for volumes of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.checks import MedgenError
from medgen.diffusion.haar import haar_pack, haar_unpack
from medgen.models.base import Model, refuse_options
from medgen.models.codec import VoxelCodec
from medgen.models.restorer_spec import RestorerSpec

__all__ = ["RestorerModel", "predicted"]

WINDOW = {2: 512, 3: 128}
OVERLAP = 0.125
LOG_STD = (-5.5, 2.0)


def predicted(
    network: nn.Module, spec: RestorerSpec, image: Tensor, strength: Tensor, hole: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The expected clean image, and the logarithm of its expected error.

    Args:
        network: of the restorer.
        spec: of the restorer.
        image: degraded, ``(B, 1, *spatial)`` in the model's 0..1; every axis a multiple of ``spec.multiple``.
        strength: of the degradation, ``(B,)``.
        hole: ``(B, 1, *spatial)``, 1 = to be filled (task ``inpaint``).

    Returns:
        ``(B, 1, *spatial)``, and the same shape with ``spec.variance``, else None.
    """
    dims = spec.spatial_dims
    pack = haar_pack if spec.packing == "haar" else _same
    unpack = haar_unpack if spec.packing == "haar" else _same
    parts = [pack(image)] if hole is None else [pack(image), pack(hole)]
    level = strength.to(image).reshape(-1, 1, *[1] * dims).expand(-1, 1, *parts[0].shape[2:])
    made = network(torch.cat([*parts, level], dim=1)).float()
    factor = parts[0].shape[1]
    mean = image + unpack(made[:, :factor])
    log_std = unpack(made[:, factor:]).clamp(*LOG_STD) if spec.variance else None
    return mean, log_std


def _same(x: Tensor) -> Tensor:
    return x


class RestorerModel(Model[RestorerSpec]):
    """A regression network, whole volumes in windows."""

    def __init__(
        self, spec: RestorerSpec, networks: Mapping[str, nn.Module], device: torch.device, hash: str = ""
    ) -> None:
        super().__init__(spec, networks, device, hash)
        self._codec = VoxelCodec(spec)

    @property
    def codec(self) -> VoxelCodec:
        return self._codec

    def settings(self, **options: Any) -> dict[str, Any]:
        refuse_options(self.spec, options)
        return {}

    def produce(
        self,
        known: Mapping[str, Tensor],
        size: tuple[int, ...],
        seed: int,
        settings: Mapping[str, Any],
        callback: Callable[[int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The restored image of a training item: ``input`` ``(1, *size)``, ``strength`` ``()``, ``inpaint_mask``."""
        mean, _ = self.restored(known["input"], float(known["strength"]), known.get("inpaint_mask"))
        return mean, None

    def restored(
        self,
        image: Tensor,
        strength: float,
        hole: Tensor | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """A whole image of any size, in windows that fade into each other.

        Args:
            image: degraded, ``(1, *spatial)`` in the model's 0..1.
            strength: of the degradation.
            hole: ``(1, *spatial)``, 1 = to be filled (task ``inpaint``).
            callback: called with (windows done, windows).

        Returns:
            Clean image and its expected error (None without ``spec.variance``), ``(1, *spatial)`` float32 on the CPU.
        """
        if (hole is None) == (self.spec.restores == "inpaint"):
            raise MedgenError(f"{self.spec.name}: inpaint_mask belongs to restorers of holes, and to them only.")
        with torch.no_grad():
            made = self._made(image if hole is None else torch.cat([image, hole]), strength, callback)
        return made[:1], made[1:].exp() if self.spec.variance else None

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The expected image behind Gaussian noise: the interface of a diffusion model.

        Where the network expects an error ``e`` of its answer that is larger than the noise, ``x`` is nearer to the
        truth than the answer: that has weight ``sigma^4 / (sigma^4 + e^4)``, and ``x`` the rest. Small errors at low
        levels would add up over the steps of a sampler. (On noisy crops of a person not trained on it is the best
        weight within 0.1 dB, at levels of 0.01 to 0.4.)

        Args:
            x: ``(B, 1, *spatial)`` in the model's 0..1; of one that requires gradients the answer has them, too.
            sigma: deviation of the noise of each row, ``(B,)``.

        Raises:
            MedgenError: a restorer of another task.
        """
        if self.spec.restores != "denoise":
            raise MedgenError(
                f"{self.spec.name}: a restorer for '{self.spec.restores}' is no denoiser. Give one for 'denoise'."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            rows = [self._answer(row, float(level)) for row, level in zip(x, sigma, strict=True)]
        return torch.stack(rows).to(x)

    def _answer(self, row: Tensor, level: float) -> Tensor:
        made, row = self._made(row, level), row.float().cpu()
        if not self.spec.variance:
            return made[:1]
        error = made[1:].detach().exp()
        return row + level**4 / (level**4 + error**4) * (made[:1] - row)

    def _made(self, whole: Tensor, strength: float, callback: Callable[[int, int], None] | None = None) -> Tensor:
        """Mean and log of the error ``(1 or 2, *spatial)`` on the CPU, window by window."""
        window = [min(WINDOW[self.spec.spatial_dims], n) for n in whole.shape[1:]]
        done, total = 0, _windows(whole.shape[1:], window)

        def one(piece: Tensor) -> Tensor:
            nonlocal done
            made = self._piece(piece.to(self.device), strength).cpu()
            done += 1
            if callback is not None:
                callback(min(done, total), total)
            return made

        made = sliding_window_inference(
            whole[None].float().cpu(), window, 1, one, overlap=OVERLAP, mode="gaussian", padding_mode="replicate"
        )
        if not isinstance(made, Tensor):
            raise MedgenError(f"{self.spec.name}: the network must give one tensor.")
        return made[0]

    def _piece(self, piece: Tensor, strength: float) -> Tensor:
        """Mean and log of the error ``(1, 1 or 2, *window)`` of one window, padded to a patch."""
        size = piece.shape[2:]
        wanted = [max(n + -n % self.multiple, least) for n, least in zip(size, self.spec.grid.size, strict=True)]
        pads = [p for n, want in reversed(list(zip(size, wanted, strict=True))) for p in (0, want - n)]
        padded = F.pad(piece, pads, mode="replicate") if any(pads) else piece
        level = torch.tensor([strength], device=piece.device)
        hole = padded[:, 1:] if padded.shape[1] > 1 else None
        mean, log_std = predicted(self.networks["restorer"], self.spec, padded[:, :1], level, hole)
        made = mean if log_std is None else torch.cat([mean, log_std], dim=1)
        return made[(slice(None), slice(None), *(slice(n) for n in size))]


def _windows(size: torch.Size, window: list[int]) -> int:
    """How many windows cover an image, as MONAI lays them."""
    count = 1
    for n, w in zip(size, window, strict=True):
        step = max(1, int(w * (1 - OVERLAP)))
        count *= 1 if n <= w else -(-(n - w) // step) + 1
    return count
