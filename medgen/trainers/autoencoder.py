"""Training of autoencoders: reconstruction, perceptual, latent and patch-adversarial terms."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.models.autoencoder import LatentSpace
from medgen.models.autoencoder_spec import AUTOENCODERS, AutoencoderSpec, latent_channels
from medgen.models.base import Model
from medgen.models.codec import VoxelCodec
from medgen.models.fields import Checked, checked, choice, integer, nested, network_form, number
from medgen.models.specification import ModelSpec
from medgen.networks.perceptual import PERCEPTUAL_NETWORKS, MultiscalePerceptual, monai_perceptual
from medgen.trainers.base import RunTrainer, Statistics, adamw, initial_network, shared_fields
from medgen.trainers.config import TrainConfig
from medgen.trainers.data import Items, Source
from medgen.trainers.ema import Ema
from medgen.trainers.principal import can_start_principal, principal_start, quiet_branches, rows_of
from medgen.trainers.statistics import channel_moments

STATISTICS_ITEMS = 24
SMALLEST_DEVIATION = 1e-4
FIRST_LOG_VARIANCE = -6.0
KINDS = ("multiscale", *PERCEPTUAL_NETWORKS)


@dataclass(frozen=True)
class Perceptual(Checked):
    """The perceptual term.

    Args:
        kind: ``multiscale`` (no trained network, see :class:`~medgen.networks.perceptual.MultiscalePerceptual`), or a
            network of MONAI's ``PerceptualLoss``, which is downloaded where it is not there.
        weight: of the term; 0 leaves it out.
        scales, contrast, spectrum: of ``multiscale``.
    """

    kind: str = checked(choice(lambda: KINDS), default="multiscale")
    weight: float = checked(number(0, 1e3), default=0.02)
    scales: int = checked(integer(1, 8), default=3)
    contrast: float = checked(number(0, 1, above=True), default=0.05)
    spectrum: float = checked(number(0, 10), default=0.05)

    def build(self, spatial_dims: int) -> nn.Module | None:
        """The term, or None with weight 0."""
        if not self.weight:
            return None
        if self.kind == "multiscale":
            return MultiscalePerceptual(self.scales, self.contrast, self.spectrum)
        return monai_perceptual(spatial_dims, self.kind)


@dataclass(frozen=True)
class Adversarial(Checked):
    """The patch-adversarial term (least squares), on voxels.

    Args:
        weight: of the term; 0 leaves it out.
        start_step: first step with it: the reconstruction comes first.
        channels: of the discriminator's first layer.
        layers: of the discriminator; each halves the resolution.
        learning_rate: of the discriminator over that of the autoencoder.
    """

    weight: float = checked(number(0, 1e3), default=0.005)
    start_step: int = checked(integer(0, 10**8), default=500)
    channels: int = checked(integer(1, 1024), default=16)
    layers: int = checked(integer(1, 8), default=2)
    learning_rate: float = checked(number(0, 100, above=True), default=0.5)

    def build(self, spatial_dims: int, in_channels: int) -> nn.Module:
        """The discriminator."""
        return PatchDiscriminator(
            spatial_dims, self.channels, in_channels, num_layers_d=self.layers, norm="INSTANCE", bias=True
        )


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(TrainConfig):
    """Training of an autoencoder.

    Args:
        net: ``AutoencoderKL`` or ``VQVAE``; spatial_dims and channels in and out follow from task and packing.
        packing_levels: see :class:`~medgen.models.autoencoder_spec.AutoencoderSpec`.
        kl_weight: of the divergence of the posterior from the normal distribution, summed over a sample's latent
            (``AutoencoderKL``); the commitment of a ``VQVAE`` has its own weight in ``net``.
        perceptual: see :class:`Perceptual`.
        adversarial: see :class:`Adversarial`.
        restart_every: every so many steps, code book entries that nothing is encoded as are moved to encodings of the
            batch (``VQVAE``; Dhariwal et al. 2020, arXiv:2005.00341, section 3.1).

    The rest: :class:`~medgen.trainers.config.TrainConfig`.

    Raises:
        MedgenError: a field fails its check, or two fields contradict each other.
    """

    family: str = checked(choice(lambda: ("autoencoder",)), default="autoencoder")
    net: dict[str, Any] = checked(network_form)
    packing_levels: int = checked(integer(0, 4), default=1)
    kl_weight: float = checked(number(0, 1e3), default=1e-6)
    perceptual: Perceptual = checked(nested(lambda: Perceptual), default_factory=Perceptual)
    adversarial: Adversarial = checked(nested(lambda: Adversarial), default_factory=Adversarial)
    restart_every: int = checked(integer(1, 10**8), default=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.net["_target_"] not in AUTOENCODERS:
            raise MedgenError(
                f"TrainConfig: field 'net._target_' must be one of {', '.join(AUTOENCODERS)} for family 'autoencoder'. "
                f"Got {self.net['_target_']}."
            )


def _stack(codec: VoxelCodec, item: Mapping[str, Tensor]) -> Tensor:
    """Voxel channels ``(1, C, *spatial)`` of an item."""
    return codec.stack(item["image"][None], item["label"][None] if "label" in item else None)


class AutoencoderTrainer(RunTrainer[AutoencoderConfig, AutoencoderSpec]):
    """Trains an autoencoder against a patch discriminator.

    The generator's loss: ``mean|y - x| + w_p perceptual(y, x) + w_l latent + w_a (D(y) - 1)^2`` with the latent term
    ``KL(N(mu, sigma^2) || N(0, 1))`` or the commitment; the discriminator's ``((D(y))^2 + (D(x) - 1)^2) / 2``
    (Rombach et al. 2022, arXiv:2112.10752, appendix G; Mao et al. 2017, arXiv:1611.04076).
    """

    origin_fields: ClassVar[tuple[str, ...]] = (*RunTrainer.origin_fields, "network", "packing_levels")
    measured_fields: ClassVar[tuple[str, ...]] = ("channel_mean", "channel_std")

    def __init__(
        self,
        config: AutoencoderConfig,
        spec: AutoencoderSpec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(config, spec, networks, loader, device, start)
        self.coder: Any = self.networks["autoencoder"]
        self.source: Source = loader.dataset.source  # type: ignore[attr-defined]  # of medgen's Items
        self.codec = VoxelCodec(spec)
        self.space = LatentSpace(spec, self.coder)
        if not start and not config.start_from:
            self._begin()
        self.optimizers["autoencoder"] = adamw(config, self._trained())
        self.ema["autoencoder"] = Ema(self.coder, config.optimisation.ema_decay)
        self.discriminator = self.networks.get("discriminator")
        if self.discriminator is not None:
            self.optimizers["discriminator"] = adamw(config, self.discriminator.parameters())
        perceptual = config.perceptual.build(spec.spatial_dims)
        self.perceptual = None if perceptual is None else perceptual.to(device)

    @classmethod
    def measure(cls, config: AutoencoderConfig, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        spec = cls.make_spec(config, source.people)
        plain, codec = LatentSpace(spec, nn.Identity()), VoxelCodec(spec)
        items = Items(source, config, "statistics")
        mean, deviation = channel_moments(
            [plain.padded(_stack(codec, items[i]))[0] for i in range(STATISTICS_ITEMS)], SMALLEST_DEVIATION
        )
        return {"channel_mean": mean, "channel_std": deviation}

    @classmethod
    def make_spec(
        cls,
        config: AutoencoderConfig,
        people: int,
        statistics: Statistics | None = None,
        first: ModelSpec | None = None,
    ) -> AutoencoderSpec:
        figures, count = dict(statistics or {}), latent_channels(config.net)
        dims = len(config.grid.size)
        fields = shared_fields(config, people, statistics)
        voxel_channels = config.image_channels * (config.task != "segment")
        voxel_channels += len(config.label_channels) * (config.task != "image")
        packed = voxel_channels * 2 ** (config.packing_levels * dims)
        implied = {"spatial_dims": dims, "in_channels": packed, "out_channels": packed}
        if config.controls:
            raise MedgenError(f"{config.name}: an autoencoder listens to no controls. Leave 'controls' out.")
        for key, value in implied.items():
            if config.net.get(key, value) != value:
                raise MedgenError(
                    f"field 'net.{key}' must be {value} for this task. Got {config.net[key]}. Leave it out."
                )
        spec = AutoencoderSpec(
            **fields,
            network={**config.net, **implied},
            packing_levels=config.packing_levels,
            channel_mean=tuple(figures.get("channel_mean", ())),
            channel_std=tuple(figures.get("channel_std", ())),
            latent_mean=(0.0,) * count,
            latent_std=(1.0,) * count,
        )
        initial_network(spec.network, 0, config.name)  # wrong arguments are refused here, before anything is trained
        return spec

    @classmethod
    def build(
        cls, config: AutoencoderConfig, spec: AutoencoderSpec, first: Model[Any] | None = None
    ) -> dict[str, nn.Module]:
        networks = super().build(config, spec, first)
        coder: Any = networks["autoencoder"]
        if hasattr(coder, "quant_conv_log_sigma"):  # a narrow posterior: noise of deviation 1 would hide small means
            nn.init.constant_(coder.quant_conv_log_sigma.conv.bias, FIRST_LOG_VARIANCE)
        if config.adversarial.weight:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(config.seed, "weights", "discriminator"))
                networks["discriminator"] = config.adversarial.build(spec.spatial_dims, spec.voxel_channels)
        return networks

    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        x = self.codec.stack(batch["image"], batch.get("label")).to(self.device)
        seen = self.space.padded(x)
        self.coder.train()
        if self.spec.kind == "vq":
            self._refresh_codes(seen, step)
        with self.autocast():
            made, latent_loss = self._reconstructed(seen, batch["index"].tolist())
        y = self.space.unpadded(made.float(), x.shape[2:])
        terms = {"reconstruction": (y - x).abs().mean(), "latent": latent_loss}
        loss = terms["reconstruction"] + terms["latent"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(y, x, derive_seed(self.config.seed, "perceptual", step))
            loss = loss + self.config.perceptual.weight * terms["perceptual"]
        fooling = self.discriminator is not None and step >= self.config.adversarial.start_step
        if fooling:
            terms["adversarial"] = (self._judged(y) - 1).square().mean()
            loss = loss + self.config.adversarial.weight * terms["adversarial"]
        norm = self.optimise("autoencoder", loss, self._trained(), step)
        self.ema["autoencoder"].update(self.coder, step)
        figures = {name: term.item() for name, term in terms.items()}
        if fooling:
            figures["discriminator"] = self._discriminator_step(x, y.detach(), step)
        rate = self.learning_rate(step)
        return {"loss": loss.item(), **figures, "gradient_norm": norm.item(), "learning_rate": rate}

    def final_spec(self) -> AutoencoderSpec:
        """With mean and deviation of the latents of a fixed draw of training items."""
        measured = LatentSpace(self.spec, self.ema["autoencoder"].network)
        items = Items(self.source, self.config, "statistics")
        drawn = [_stack(self.codec, items[index]).to(self.device) for index in range(STATISTICS_ITEMS)]
        mean, deviation = channel_moments([measured.raw(x)[0] for x in drawn], SMALLEST_DEVIATION)
        return dataclasses.replace(self.spec, latent_mean=mean, latent_std=deviation)

    def _begin(self) -> None:
        """First weights: see :mod:`medgen.trainers.principal`; a run that continues gets its own."""
        quiet_branches(self.coder)
        items = Items(self.source, self.config, "statistics")
        rows = rows_of(self.space.padded(_stack(self.codec, items[i])) for i in range(STATISTICS_ITEMS))
        if self.spec.channel_std and can_start_principal(self.coder, len(rows)):
            principal_start(self.coder, rows, torch.tensor(self.spec.channel_std))

    def _trained(self) -> list[Tensor]:
        """Parameters with gradients: a code book follows its own rule."""
        return [parameter for parameter in self.coder.parameters() if parameter.requires_grad]

    def _reconstructed(self, seen: Tensor, indices: list[int]) -> tuple[Tensor, Tensor]:
        """What the network makes of its input, and the weighted latent term."""
        if self.spec.kind == "vq":
            codes, commitment = self.coder.quantize(self.coder.encode(seen))
            return self.coder.decode(codes), commitment
        mean, deviation = self.coder.encode(seen)
        mean, deviation = mean.float(), deviation.float()
        streams = generators([derive_seed(self.config.seed, "noise", index) for index in indices])
        noise = randn(mean.shape[1:], streams, device=self.device)
        divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.log() - 1).flatten(1).sum(1).mean()
        return self.coder.decode(mean + deviation * noise), self.config.kl_weight * divergence

    def _judged(self, made: Tensor) -> Tensor:
        """The discriminator's map of patches; its weights get no gradient."""
        assert self.discriminator is not None  # the caller made sure
        self.discriminator.requires_grad_(False)
        judged: Tensor = self.discriminator(made)[-1]
        self.discriminator.requires_grad_(True)
        return judged

    def _discriminator_step(self, real: Tensor, made: Tensor, step: int) -> float:
        assert self.discriminator is not None  # the caller made sure
        judge = self.discriminator.train()
        loss = 0.5 * (judge(made)[-1].square().mean() + (judge(real)[-1] - 1).square().mean())
        rate = self.learning_rate(step) * self.config.adversarial.learning_rate
        self.optimise("discriminator", loss, judge.parameters(), step, rate)
        return float(loss.item())

    @torch.no_grad()
    def _refresh_codes(self, seen: Tensor, step: int) -> None:
        """Take the first code book from the first batch, and move entries that are not used to encodings."""
        if step % self.config.restart_every:
            return
        book = self.coder.quantizer.quantizer
        codes = self.coder.encode(seen).float().movedim(1, -1).flatten(0, -2)
        unused = book.ema_cluster_size < 1e-2 * book.ema_cluster_size.mean() if step else book.ema_cluster_size >= 0
        stream = torch.Generator().manual_seed(derive_seed(self.config.seed, "codes", step))
        drawn = codes[torch.randint(len(codes), (len(unused),), generator=stream).to(codes.device)]
        size = book.ema_cluster_size.mean().clamp(min=1.0)
        book.ema_cluster_size.copy_(torch.where(unused, size, book.ema_cluster_size))
        book.ema_w.copy_(torch.where(unused[:, None], drawn * size, book.ema_w))
        book.embedding.weight.copy_(torch.where(unused[:, None], drawn, book.embedding.weight))
