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
from medgen.trainers.config import POPULATION
from medgen.trainers.data import Items, Source
from medgen.trainers.ema import Ema
from medgen.trainers.restorer_config import RestorerConfig

__all__ = ["RestorerTrainer"]

STRENGTH_ITEMS = 32
CALIBRATION_ITEMS = 24
COVERAGE = 0.9
SMALLEST_ERROR = 1e-8


class RestorerTrainer(RunTrainer[RestorerConfig, RestorerSpec]):
    """Least squares of the image, and the likelihood of its error.

    With ``variance`` the loss of an item is ``mean(w (r^2 / (2 s^2) + log s)) / mean(w)`` with the error ``r``, the
    expected one ``s`` and ``w = s^2`` without gradient (Seitzer et al. 2022, arXiv:2203.09168, equation 5 with beta =
    1): the mean is fitted by least squares, and items count alike, however strongly they are degraded. Without, it is
    ``log(mean(r^2)) / 2``, the negative PSNR but for a factor.
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
        with self.autocast():
            mean, log_std = self._predicted(self.network, batch)
        clean, hole = batch["image"].to(self.device), batch.get("inpaint_mask")
        counted = torch.ones_like(clean) if hole is None else hole.to(self.device)
        loss, error = restoration_loss(mean, log_std, clean, counted)
        norm = self.optimise("restorer", loss, self.network.parameters(), step)
        self.ema["restorer"].update(self.network, step)
        rate = self.learning_rate(step)
        return {"loss": loss.item(), "error": error.item(), "gradient_norm": norm.item(), "learning_rate": rate}

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
        if source.scans is None and self.config.data != POPULATION:
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


def restoration_loss(mean: Tensor, log_std: Tensor | None, clean: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the root mean square error of the batch; see :class:`RestorerTrainer`.

    Args:
        mean: ``(B, 1, *spatial)``.
        log_std: same shape, or None.
        clean: same shape.
        counted: same shape, weight of each voxel.
    """
    share = counted / counted.flatten(1).sum(1).clamp(min=1).reshape(-1, *[1] * (mean.ndim - 1))
    square = (mean.float() - clean).square()
    error = (share * square).flatten(1).sum(1)
    if log_std is None:
        return 0.5 * (error + SMALLEST_ERROR).log().mean(), error.mean().sqrt()
    variance = (2 * log_std).exp()
    weight = variance.detach()
    terms = weight * (square / (2 * variance) + log_std)
    scale = (share * weight).flatten(1).sum(1)
    return ((share * terms).flatten(1).sum(1) / scale).mean(), error.mean().sqrt()
