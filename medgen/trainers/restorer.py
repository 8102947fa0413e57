"""Training of a regression restorer on simulated pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.models.base import Model
from medgen.models.restorer import predicted
from medgen.models.restorer_spec import RestorerSpec, implied_arguments
from medgen.models.specification import ModelSpec
from medgen.trainers.base import RunTrainer, Statistics, adamw, initial_network, shared_fields
from medgen.trainers.data import Items, Source
from medgen.trainers.ema import Ema
from medgen.trainers.restorer_config import RestorerConfig
from medgen.trainers.self_supervised import Measured, masked_error, sure_error

__all__ = ["RestorerTrainer"]

STRENGTH_ITEMS = 32
CALIBRATION_ITEMS = 24
COVERAGE = 0.9
SMALLEST_ERROR = 1e-8
CAUCHY_OVER_STD = 0.43  # scale ``c`` of the loss of holes over the deviation, of Laplace errors
SPREAD_WEIGHT = 0.1
LEAST_BEFORE = 5e-3  # of a hole's continuation: what is better already, as in air, counts less


class RestorerTrainer(RunTrainer[RestorerConfig, RestorerSpec]):
    """Least squares of the image, and the likelihood of its error; of holes, least absolute errors.

    With ``variance`` the loss of an item is ``mean(w (r^2 / (2 s^2) + log s)) / mean(w)`` with the error ``r``, the
    expected one ``s`` and ``w = s^2`` without gradient (Seitzer et al. 2022, arXiv:2203.09168, equation 5 with beta =
    1): the mean is fitted by least squares, and items count alike, however strongly they are degraded. Without, it is
    ``log(mean(r^2)) / 2``, the negative PSNR but for a factor. A denoiser that learns from noisy scans alone has the
    losses of :mod:`medgen.trainers.self_supervised`.
    """

    origin_fields: ClassVar[tuple[str, ...]] = ("task", "network", "restores", "packing", "variance", "scaling")
    measured_fields: ClassVar[tuple[str, ...]] = ("strength",)

    def __init__(
        self,
        config: RestorerConfig,
        spec: RestorerSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        self.network = self.networks["restorer"]
        self.optimizers["restorer"] = adamw(config, self.network.parameters())
        self.ema["restorer"] = Ema(self.network, config.optimisation.ema_decay)

    @classmethod
    def measure(cls, config: RestorerConfig, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        items = Items(source, config, "statistics")
        drawn = [float(items[i]["strength"]) for i in range(STRENGTH_ITEMS)]
        return {"strength": (min(drawn), max(drawn))}

    @classmethod
    def make_spec(
        cls, config: RestorerConfig, people: int, statistics: Statistics | None = None, first: ModelSpec | None = None
    ) -> RestorerSpec:
        implied = implied_arguments(config.net, len(config.grid.size), config.packing, config.restores, config.variance)
        for key, value in implied.items():
            if config.net.get(key, value) != value:
                raise MedgenError(f"field 'net.{key}' must be {value} here. Got {config.net[key]}. Leave it out.")
        spec = RestorerSpec(
            **shared_fields(config, people, statistics),
            network={**config.net, **implied},
            restores=config.restores,
            degradations=config.degradations,
            learns_from=config.learns_from,
            packing=config.packing,
            variance=config.variance,
            scaling=config.scaling,
            domain=config.domain,
            strength=tuple((statistics or {}).get("strength", (0.0, 0.0))),
        )
        initial_network(spec.network, 0, config.name)  # wrong arguments are refused here, before anything is trained
        return spec

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        self.network.train()
        loss, error = self._loss(batch) if self.config.learns_from == "pairs" else self._loss_without_truth(batch)
        norm = self.optimise("restorer", loss, self.network.parameters(), step)
        self.ema["restorer"].update(self.network, step)
        rate = self.learning_rate(step)
        return {"loss": loss.item(), "error": error.item(), "gradient_norm": norm.item(), "learning_rate": rate}

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with self.autocast():
            mean, log_std = self._predicted(self.network, batch)
        clean = batch["image"].to(self.device)
        if "inpaint_mask" not in batch:
            return restoration_loss(mean, log_std, clean)
        return filling_loss(mean, log_std, clean, batch["input"].to(self.device), batch["inpaint_mask"].to(self.device))

    def _loss_without_truth(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean of the items' estimated square errors over the squares of their noise levels; and its root.

        In float32: the divergence of ``sure`` is a small difference.
        """
        measured = Measured(batch["image"].to(self.device), batch["strength"].to(self.device), self.config.noise)
        if self.config.learns_from == "sure":

            def denoise(noisy: Tensor) -> Tensor:
                return self._predicted(self.network, {**batch, "input": noisy})[0]

            errors = sure_error(measured, denoise, batch["probe"].to(self.device))
        else:
            signal, _ = self._predicted(self.network, batch)
            errors = masked_error(measured, signal, batch["blind"].to(self.device))
        return (errors / measured.level.square()).mean(), errors.mean().clamp(min=0).sqrt()

    def final_spec(self) -> RestorerSpec:
        """With the width of the 90% interval, measured on items of people who are not trained on."""
        if not self.spec.variance:
            return self.spec
        return dataclasses.replace(self.spec, interval_factor=self._interval_factor())

    @torch.no_grad()
    def _interval_factor(self) -> float | None:
        """Quantile ``COVERAGE`` of ``|r| / s`` over what is shown (split conformal, Lei et al. 2018, JASA 113).

        On the people held out; with the population alone on subjects that were not trained on; None without any.
        """
        from medgen.trainers.scans import SHOWN, ScanSource

        source = ScanSource.validation(self.config)
        if source.scans is None and not self.config.variety.population:
            return None
        real = dataclasses.replace(self.config.variety, population=float(source.scans is None))
        config = dataclasses.replace(self.config, variety=real)
        items = Items(ScanSource(config, source.scans, "validation"), config, "validation")
        network, scores = self.ema["restorer"].network, []
        for i in range(CALIBRATION_ITEMS):
            item = {key: value[None] for key, value in items[i].items()}
            mean, log_std = self._predicted(network, item)
            clean = item["image"].to(mean)
            shown = clean > SHOWN if "inpaint_mask" not in item else item["inpaint_mask"].to(mean) > 0.5
            if log_std is not None:
                scores.append(((mean - clean).abs() / log_std.exp())[shown].cpu())
        found = torch.cat(scores).double()
        if not len(found):
            return 1.6449  # of a normal distribution: nothing was shown
        return float(found.kthvalue(max(1, round(COVERAGE * len(found)))).values.clamp(1e-3, 1e3))

    def _predicted(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        hole = batch.get("inpaint_mask")
        return predicted(
            network, self.spec, batch["input"].to(self.device), batch["strength"].to(self.device),
            None if hole is None else hole.to(self.device),
        )  # fmt: skip


def restoration_loss(mean: Tensor, log_std: Tensor | None, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the root mean square error of the batch; see :class:`RestorerTrainer`.

    Args:
        mean: ``(B, 1, *spatial)``.
        log_std: same shape, or None.
        clean: same shape.
    """
    square = (mean.float() - clean).square()
    error = square.flatten(1).mean(1)
    if log_std is None:
        return 0.5 * (error + SMALLEST_ERROR).log().mean(), error.mean().sqrt()
    variance = (2 * log_std).exp()
    weight = variance.detach()
    terms = weight * (square / (2 * variance) + log_std)
    return (terms.flatten(1).mean(1) / weight.flatten(1).mean(1)).mean(), error.mean().sqrt()


def filling_loss(
    mean: Tensor, log_std: Tensor | None, clean: Tensor, start: Tensor, hole: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of filled holes, and the root mean square error in them.

    ``mean(|r|) / mean(|r0|) + SPREAD_WEIGHT mean(log c + 2 log(1 + |r'| / c))`` with the error ``r0`` of the
    continuation that the network begins with, ``r'`` the error without gradient and ``c`` its scale,
    ``E[|r'| / (|r'| + c)] = 1/2``. Least squares would leave nearly all of the gradient to holes that are easily
    continued, and a likelihood nearly all of it to the expected error.

    Args:
        mean: ``(B, 1, *spatial)``.
        log_std: same shape, or None.
        clean: same shape.
        start: same shape, the continuation that the network began with.
        hole: same shape, 1 = filled.
    """
    share = hole / hole.flatten(1).sum(1).clamp(min=1).reshape(-1, *[1] * (mean.ndim - 1))
    off = (mean.float() - clean).abs()
    before = (share * (start - clean).abs()).flatten(1).sum(1).clamp(min=LEAST_BEFORE)
    loss = (share * off).flatten(1).sum(1) / before
    if log_std is not None:
        spread = log_std.exp() * CAUCHY_OVER_STD
        terms = spread.log() + 2 * torch.log1p(off.detach() / spread)
        loss = loss + SPREAD_WEIGHT * (share * terms).flatten(1).sum(1)
    return loss.mean(), (share * off.square()).flatten(1).sum(1).mean().sqrt()
