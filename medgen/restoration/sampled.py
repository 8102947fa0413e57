"""K samples of what an image may have been, given a measurement: their mean, spread, intervals and doubts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medgen.checks import MedgenError, check_choice, check_count, check_range
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS
from medgen.intensity import IntensityWindow
from medgen.networks.threads import at_most_threads
from medgen.operators import Operator
from medgen.restoration.latent import LatentMeasurement
from medgen.restoration.posterior import METHODS, Measurement, make_consistent, posterior_denoiser
from medgen.restoration.prior import Prior, model_prior
from medgen.restoration.residual import ResidualCheck, check_residual

if TYPE_CHECKING:
    from medgen.models.diffusion_model import DiffusionModel

__all__ = ["PosteriorSamples", "checked_measurement", "predictive_factor", "restore_samples"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PosteriorSamples:
    """What an image may have been, in the unit of the measurement.

    Attributes:
        samples: ``(K, *spatial)`` float32.
        affine: RAS+ mm, 4x4.
        coverage: of the interval.
        checks: what the residual of each sample says, before it was made consistent; empty without noise.
        synthetic: whether parts were made from nothing.
        provenance: what made them.
        interval_factor: half the interval's width over the deviation, where it was calibrated; by default
            :func:`predictive_factor`.
    """

    samples: Tensor
    affine: Tensor
    coverage: float = 0.9
    checks: tuple[ResidualCheck, ...] = ()
    synthetic: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)
    interval_factor: float | None = None

    @property
    def mean(self) -> MetaTensor:
        """``(1, *spatial)``."""
        return self._placed(self.samples.mean(0))

    @property
    def std(self) -> MetaTensor:
        """Deviation of the samples ``(1, *spatial)``; 0 with a single one."""
        return self._placed(self.samples.std(0, correction=1 if len(self.samples) > 1 else 0))

    @property
    def lower(self) -> MetaTensor:
        """Lower end of the interval of each voxel ``(1, *spatial)``."""
        return self._end(-1)

    @property
    def upper(self) -> MetaTensor:
        """Its upper end."""
        return self._end(1)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Doubts, one sentence each."""
        flagged = [check for check in self.checks if check.flagged]
        if not flagged:
            return ()
        worst = max(flagged, key=lambda check: float(check.z.abs().max()) / check.bound)
        return (f"{len(flagged)} of {len(self.checks)} samples: {worst.sentence()}",)

    def calibrated(self, factor: float, coverage: float | None = None) -> PosteriorSamples:
        """The same with the interval ``mean +- factor * std``.

        Args:
            factor: of :func:`medgen.metrics.conformal_factor`, measured on people not trained on.
            coverage: that it was measured for; unchanged by default.
        """
        return replace(self, interval_factor=factor, coverage=coverage or self.coverage)

    def _end(self, side: int) -> MetaTensor:
        factor = self.interval_factor
        factor = predictive_factor(len(self.samples), self.coverage) if factor is None else factor
        return self._placed((self.mean.as_tensor() + side * factor * self.std.as_tensor())[0])

    def _placed(self, x: Tensor) -> MetaTensor:
        meta = {"synthetic": self.synthetic, "provenance": dict(self.provenance)}
        return MetaTensor(x[None], affine=self.affine, meta=meta)


def restore_samples(
    measured: Tensor,
    operator: Operator,
    model: DiffusionModel | Prior,
    *,
    noise_std: float,
    method: str = "pigdm",
    samples: int = 8,
    seed: int = 0,
    affine: Tensor | np.ndarray | None = None,
    window: IntensityWindow | None = None,
    coverage: float = 0.9,
    consistent: bool = True,
    weight: float = 1.0,
    steps: int = 1,
    callback: Progress | None = None,
    **options: Any,
) -> PosteriorSamples:
    """Draw images that agree with a measurement and with what a model knows.

    Args:
        measured: ``measurement_shape(1)``, in any unit; a scan is one where the operator measures on its grid.
        operator: linear, of the size of the image.
        model: diffusion model of task ``image`` or ``joint``, of pixels or latents; or a :class:`Prior`.
        noise_std: deviation of the noise, in the unit of ``measured``; 0: exact.
        method: ``dps``, ``pigdm`` or ``diffpir``, see :mod:`medgen.restoration.posterior`.
        samples: how many; sample ``k`` is a function of ``seed + k`` alone.
        seed: of the first.
        affine: of the image, RAS+ mm; by default that of ``measured`` where it lies on the image's grid.
        window: from intensities to the model's 0..1; by default from a plain image of what was measured.
        coverage: of the interval.
        consistent: move each sample as far as the measurement wants, see
            :func:`~medgen.restoration.posterior.make_consistent`; what a mask keeps is kept to the bit then.
        weight: of the likelihood.
        steps: of Gauss-Newton where samples are decoded by a network, see
            :class:`~medgen.restoration.latent.LatentMeasurement`.
        callback: called with (steps done, steps of all samples).
        options: of :func:`~medgen.restoration.prior.model_prior`: ``sampler``, ``num_inference_steps``, ``patch``,
            ``overlap``, ``conditions``.

    Returns:
        Samples with their mean, deviation and interval maps.

    Raises:
        MedgenError: a measurement of another shape or that is not finite, a model or an option that does not suit.
    """
    check_count("restore_samples", "samples", samples)
    check_range("restore_samples", "coverage", coverage, 0, 0.9999)
    check_choice("restore_samples", "method", method, [name for name in METHODS if name != "ddnm"])
    y, placed = checked_measurement(measured, operator, affine)
    prior = _prior(model, operator, placed, options)
    y, operator = y.to(prior.device), operator.to(prior.device)
    chosen = window or _window(y, operator)
    scale = chosen.high - chosen.low
    ones = torch.full((1, 1, *operator.size), chosen.low, device=prior.device)
    native = Measurement(operator, y, noise_std)
    unit = Measurement(operator, (y - operator.forward(ones)) / scale, noise_std / scale)
    known = LatentMeasurement(unit, prior.decode, prior.prior_std, steps, prior.iterations)
    denoise = posterior_denoiser(prior.denoise, known, method, weight=weight)
    total = samples * (len(prior.sigmas) - 1)
    images, checks = [], []
    for k in range(samples):
        report = None if callback is None else _counted(callback, k * (len(prior.sigmas) - 1), total)
        with torch.no_grad(), at_most_threads(2, prior.device):
            image = chosen.inverse(prior.decode(_drawn(prior, denoise, seed + k, report))).float()
            if noise_std > 0:
                checks.append(check_residual(native, image))
            images.append((make_consistent(image, native) if consistent else image)[0, 0].cpu())
    record = {"restored": method, "operator": operator.parameters(), "noise_std": noise_std, "samples": samples}
    provenance = dict(prior.provenance) | record | {"seed": seed, "weight": weight, "consistent": consistent}
    return PosteriorSamples(
        torch.stack(images), _affine(model, placed), coverage, tuple(checks), True, provenance
    )  # fmt: skip


def predictive_factor(samples: int, coverage: float = 0.9) -> float:
    """Half the width of the interval that a further Gaussian sample falls into, over the deviation of those drawn.

    ``t sqrt(1 + 1 / K)`` with Student's ``t`` of ``K - 1`` degrees of freedom: the truth is a further draw of the
    posterior, and the samples' own quantiles are too narrow while they are few.

    Args:
        samples: ``K``; a single one has no deviation, and the factor is 0.
        coverage: of the interval.

    Example:
        >>> round(predictive_factor(8), 2), round(predictive_factor(1000), 2)
        (2.01, 1.65)

    References:
        Geisser 1993, "Predictive inference: an introduction".
    """
    from scipy.stats import t

    if samples == 1:
        return 0.0
    return float(t.ppf((1 + coverage) / 2, samples - 1)) * (1 + 1 / samples) ** 0.5


def _drawn(prior: Prior, denoise: Any, seed: int, report: Callable[..., None] | None) -> Tensor:
    """One sample ``(1, *shape)`` of the posterior, where the prior's live."""
    streams = generators([derive_seed(seed, "restore")])
    z = randn(prior.shape, streams, device=prior.device) * float(prior.sigmas[0])
    z = z if prior.start is None else z + prior.start
    return SAMPLERS[prior.sampler](
        denoise, z, prior.sigmas, generators=streams, callback=report, **prior.options
    )  # fmt: skip


def _counted(callback: Progress, before: int, total: int) -> Callable[..., None]:
    return lambda step, *_: callback(before + step + 1, total)


def _prior(
    model: DiffusionModel | Prior, operator: Operator, affine: Tensor | None, options: dict[str, Any]
) -> Prior:  # fmt: skip
    if isinstance(model, Prior):
        if options:
            raise MedgenError(
                f"restore_samples: {next(iter(options))} is an option of a model, a Prior has its own. Leave it out."
            )
        return model
    place = None if affine is None else np.asarray(affine, dtype=np.float64)
    return model_prior(model, operator.size, place, **options)


def checked_measurement(
    measured: Tensor, operator: Operator, affine: Tensor | np.ndarray | None
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The measurement with its batch axis, and where the image lies, if that is known."""
    y = measured.as_tensor() if isinstance(measured, MetaTensor) else torch.as_tensor(measured)
    wanted = operator.measurement_shape(1)
    if tuple(y.shape) != wanted:
        raise MedgenError(
            f"restore_samples: measured must have shape {wanted}, which {operator.caller} measures. Got "
            f"{tuple(y.shape)}. Make the operator for this measurement."
        )
    if not bool(torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()):
        raise MedgenError("restore_samples: measured holds NaN or infinity. Replace them first.")
    if affine is None and isinstance(measured, MetaTensor) and tuple(measured.shape[1:]) == tuple(operator.size):
        affine = measured.affine
    y = y.to(torch.complex64 if y.is_complex() else torch.float32)[None]
    return y, None if affine is None else torch.as_tensor(np.asarray(affine, dtype=np.float64))


def _affine(model: DiffusionModel | Prior, affine: Tensor | None) -> Tensor:
    """Where the image lies; unknown: at the origin, with the model's voxels."""
    if affine is not None:
        return affine
    spacing: Sequence[float] = (1.0, 1.0, 1.0) if isinstance(model, Prior) else model.spec.grid.spacing
    return torch.diag(torch.tensor([*spacing, *[1.0] * (4 - len(spacing))], dtype=torch.float64))


def _window(y: Tensor, operator: Operator) -> IntensityWindow:
    """Of a plain image of what was measured, where it was."""
    image = operator.to_image(y)
    image = image.abs() if image.is_complex() else image
    seen = operator.observed
    known = seen is not None and not y.is_complex() and tuple(seen.shape[-len(operator.size) :]) == operator.size
    values = image[seen.expand(image.shape)] if known and seen is not None else image
    return IntensityWindow.of(values)
