"""What can be had without the model: label means, partial volume with matched noise, a smooth regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgen.anatomy.deformation import warp
from medgen.anatomy.labels import TISSUES
from medgen.anatomy.population import Population, _code_table, _source
from medgen.diffusion.randomness import derive_seed, generators
from medgen.metrics import band_powers, label_means, soft_window
from medgen.models.codec import Codec
from medgen.models.diffusion_model import DiffusionModel
from medgen.models.specification import ModelSpec
from medgen.networks.registry import build_network
from medgen.trainers.data import random_window
from tests.bench.cases import Array, Case, tissue_table

_SLAB = 8
_QUANTILES = np.linspace(0, 1, 401)
_BANDS = np.linspace(0, 0.5, 21)


def partial_volume(population: Population, seed: int, means: Array) -> Array:
    """Label means averaged over the 1 mm sub-points of each voxel: fractions of the warped label, no network.

    Args:
        population: of the subject.
        seed: of the subject.
        means: intensity of each of ``TISSUES``.

    Returns:
        Image ``(X, Y, Z)``.
    """
    mapping, parameters = population.draw(seed)
    ids = _code_table(parameters["flip"], parameters["brain_extracted"]).numpy()
    values = torch.from_numpy(means[tissue_table()[ids]])
    n = population._subdivision()
    parts = []
    for first in range(0, population.size[0], _SLAB):
        last = min(first + _SLAB, population.size[0])
        low, high = (first * n[0], 0, 0), (last * n[0], population.size[1] * n[1], population.size[2] * n[2])
        codes = warp(_source(population.atlas).codes, mapping.points(low, high), "nearest").long()
        x, y, z = (size // d for size, d in zip(codes.shape, n, strict=True))
        parts.append(values[codes].reshape(x, n[0], y, n[1], z, n[2]).mean((1, 3, 5)))
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class NetworkFree:
    """Partial-volume label means and smoothed noise, matched to training subjects in spectrum and histograms.

    Where the partial-volume image has more power than the real one it is filtered down, where it has less the noise
    makes up for it; then the intensities of each tissue are mapped onto the real ones by rank.

    Attributes:
        population: of the subjects.
        means: intensity of each tissue.
        frequencies: middle of each band, cycles per voxel.
        gain: of the partial-volume image in each band, at most 1.
        power: of the noise in each band, up to a factor.
        spread: standard deviation of the noise in each tissue.
        quantiles: for brain-extracted subjects or not and each tissue, the real intensities at 401 even ranks.
    """

    population: Population
    means: Array
    frequencies: Array
    gain: Array
    power: Array
    spread: Array
    quantiles: dict[tuple[bool, int], Array]

    @classmethod
    def fit(cls, population: Population, cases: Sequence[Case]) -> NetworkFree:
        """Measure training subjects."""
        groups = [case.groups for case in cases]
        means = label_means([case.image for case in cases], groups, len(TISSUES))
        drawn = [partial_volume(population, case.seed, means) for case in cases]
        residuals = [case.image - image for case, image in zip(cases, drawn, strict=True)]
        windows = [soft_window(case.brain) for case in cases]

        def power(images: Sequence[Array]) -> Array:
            powers: Array = np.mean([band_powers(x, _BANDS, w) for x, w in zip(images, windows, strict=True)], axis=0)
            return powers

        real, plain, residual = power([case.image for case in cases]), power(drawn), power(residuals)
        noise = np.maximum(real - plain, 0.05 * real)
        share = np.sqrt(noise.mean() / residual.mean())
        spread = share * np.sqrt(label_means([r**2 for r in residuals], groups, len(TISSUES)))
        gain = np.sqrt(np.minimum(1, np.maximum(real - noise, 0) / plain))
        return cls(population, means, (_BANDS[1:] + _BANDS[:-1]) / 2, gain, noise, spread, _quantiles(cases))

    def image(self, case: Case, seed: int) -> Array:
        """The image of one whole subject."""
        white = np.random.default_rng(seed).normal(size=case.groups.shape)
        noise = filtered(white, self.frequencies, np.sqrt(self.power))
        plain = filtered(partial_volume(self.population, case.seed, self.means), self.frequencies, self.gain)
        image = plain + noise / noise.std() * self.spread[case.groups]
        for k in np.unique(case.groups):
            inside = case.groups == k
            key = (case.extracted, int(k))
            if key in self.quantiles:
                ranks = image[inside].argsort().argsort() / max(1, inside.sum() - 1)
                image[inside] = np.interp(ranks, _QUANTILES, self.quantiles[key])
        return image


def _quantiles(cases: Sequence[Case]) -> dict[tuple[bool, int], Array]:
    found: dict[tuple[bool, int], list[Array]] = {}
    for case in cases:
        for k in np.unique(case.groups):
            values = np.quantile(case.image[case.groups == k], _QUANTILES)
            for kind in (True, False):
                # where no subject of a kind was drawn, the other kind stands in
                if kind == case.extracted or not any(c.extracted == kind for c in cases):
                    found.setdefault((kind, int(k)), []).append(values)
    return {key: np.mean(values, 0) for key, values in found.items()}


def filtered(volume: Array, frequencies: Array, gain: Array) -> Array:
    """A volume with its Fourier coefficients multiplied by a radial gain, given at some frequencies."""
    shape = volume.shape
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    result: Array = np.fft.irfftn(
        np.fft.rfftn(volume) * np.interp(radius, frequencies, gain), s=shape, axes=range(len(shape))
    )
    return result


class Regression:
    """A network of the model's own kind, trained on the same pairs to predict the image by least squares.

    Args:
        spec: of the model it stands beside; codec and network family are its.
        network: trained.
    """

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        self.spec = spec
        self.codec = Codec(spec)
        self.network = network.eval()

    @torch.no_grad()
    def image(self, case: Case) -> Array:
        """Prediction for a label map, ``(X, Y, Z)``."""
        given = self.codec.given_label(case.label.as_tensor()[None])
        z = _predict(self.network, self.spec, given.condition)
        image: Array = self.codec.decode(z, given)[0][0, 0].clamp(min=0).double().numpy()
        return image


def train_regression(
    spec: ModelSpec,
    cases: Sequence[Case],
    folder: Path,
    steps: int = 400,
    batch_size: int = 2,
    patch: int = 48,
    report: Callable[[str], None] = print,
) -> Regression:
    """Train on random patches of the cases, or read ``folder/regression.pt`` of an earlier run of as many steps."""
    network = build_network(_smaller(spec.network), "regression")
    path = folder / f"regression_{steps}.pt"
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
        return Regression(spec, network)
    codec = Codec(spec)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        image, label = _patches(cases, range(step * batch_size, (step + 1) * batch_size), patch)
        given = codec.given_label(label)
        loss = (_predict(network, spec, given.condition) - codec.encode(image, given)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            report(f"regression: step {step + 1} of {steps}, loss {loss.item():.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return Regression(spec, network)


def _smaller(network: dict[str, object]) -> dict[str, object]:
    """The model's network at 16, 32, 64 channels: a few hundred steps are enough and cheap."""
    return {**network, "channels": [16, 32, 64]} if network["_target_"] == "ConditionalUNet" else network


def _predict(network: nn.Module, spec: ModelSpec, condition: Tensor) -> Tensor:
    blank = torch.zeros(condition.shape[0], spec.diffused_channels, *condition.shape[2:])
    output: Tensor = network(torch.cat([blank, condition], 1), timesteps=torch.zeros(condition.shape[0]))
    return output


def _patches(cases: Sequence[Case], indices: range, size: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for index, stream in zip(indices, generators([derive_seed("regression", i) for i in indices]), strict=True):
        case = cases[index % len(cases)]
        window = random_window(case.groups.shape, [size] * 3, stream)
        images.append(torch.from_numpy(case.image)[None][window].float())
        labels.append(case.label.as_tensor()[window])
    return torch.stack(images), torch.stack(labels)


def sample_image(model: DiffusionModel, case: Case, seed: int, **settings: object) -> Array:
    """The model's image for the label map of a case, ``(X, Y, Z)``."""
    made = model.sample(label=case.label, seed=seed, **settings)  # type: ignore[arg-type]
    image: NDArray[np.float64] = made[0]["image"].as_tensor()[0].double().numpy()
    return image
