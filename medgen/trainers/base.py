"""What the trainers of all families share, on MONAI's engine: optimisers, averages, state, finite numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from monai.engines.trainer import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.models.base import Model
from medgen.models.controls import Control, class_control, control_arguments, number_control
from medgen.models.families import model_class
from medgen.models.specification import ModelSpec
from medgen.networks.registry import build_network
from medgen.trainers.checkpoint import TrainerState
from medgen.trainers.config import POPULATION, TrainConfig
from medgen.trainers.data import Source
from medgen.trainers.ema import Ema, learning_rate

Config = TypeVar("Config", bound=TrainConfig)
Spec = TypeVar("Spec", bound=ModelSpec)
Statistics = Mapping[str, Any]
SHARED_FIELDS = (
    "name", "version", "task", "grid", "channels", "label_channels", "label_encoding", "label_distance_mm",
    "source_modalities", "control_dropout", "intensity", "modality", "body_part", "licence", "authors", "copyright",
    "description", "intended_use",
)  # fmt: skip


class RunTrainer(Trainer, Generic[Config, Spec]):
    """One run of a family: subclasses say how networks are made and what one step does.

    Everything random in a step is drawn from ``(seed, item)``, so that a killed run continues exactly.

    Args:
        config: of the run.
        spec: of the model that results.
        networks: all that take part, by name; those of ``spec.networks()`` are among them.
        loader: batches of :class:`~medgen.trainers.data.Items` from step ``start`` on.
        device: where to train; the networks are there.
        start: steps done before.

    Attributes:
        optimizers: by name, made by the subclass.
        ema: averages of trained networks, by name of the network, made by the subclass.
    """

    origin_fields: ClassVar[tuple[str, ...]] = ("task", "label_channels", "label_encoding", "label_distance_mm")
    measured_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: Config,
        spec: Spec,
        networks: Mapping[str, nn.Module],
        loader: DataLoader[Any],
        device: torch.device,
        start: int = 0,
    ) -> None:
        super().__init__(device, 1, loader, epoch_length=config.steps - start, decollate=False)
        self.config = config
        self.spec = spec
        self.networks = dict(networks)
        self.start = start
        self.dtype = precision_type(config.precision, device)
        self.gradient_scaler = torch.amp.GradScaler("cuda", enabled=self.dtype is torch.float16)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.ema: dict[str, Ema] = {}

    # what a family is made of, before the first step

    @classmethod
    def plan(cls, config: Config, source: Source, first: Model[Any] | None = None) -> Spec:
        """The specification of the model that a configuration trains, its figures measured on the data.

        Args:
            config: of the run.
            source: of training subjects.
            first: the trained first stage, where the configuration has one.
        """
        first_spec = first.spec if first is not None else None
        return cls.make_spec(config, source.people, cls.measure(config, source, first), first_spec)

    @classmethod
    def measure(cls, config: Config, source: Source, first: Model[Any] | None = None) -> dict[str, Any]:
        """Figures of the training data that become fields of the specification; here the controls."""
        if not config.controls:
            return {}
        from medgen.trainers.data import measure_controls

        return {"controls": measure_controls(config, source)}

    @classmethod
    @abstractmethod
    def make_spec(
        cls, config: Config, people: int, statistics: Statistics | None = None, first: ModelSpec | None = None
    ) -> Spec:
        """The specification of the model.

        Args:
            config: of the run.
            people: how many it is trained on.
            statistics: of :meth:`measure`; plain defaults where left out.
            first: specification of the first stage, where the configuration has one.

        Raises:
            MedgenError: an unknown or wrong argument of a network, or channels that do not suit the task.
        """

    @classmethod
    def build(cls, config: Config, spec: Spec, first: Model[Any] | None = None) -> dict[str, nn.Module]:
        """All networks that take part, on the CPU: those of the model and what is only trained against.

        Their first weights are a function of the seed; those of a first stage are its own. A run that continues gets
        its weights afterwards, and no ``first``.
        """
        return {name: initial_network(form, config.seed, spec.name, name) for name, form in spec.networks().items()}

    # one step

    @abstractmethod
    def train_step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        """One optimiser step (of each optimiser).

        Args:
            batch: of items, on the CPU.
            step: from 0.

        Returns:
            Figures for the log, ``loss`` among them.
        """

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        return self.train_step(batchdata, self.steps_done - 1)

    def optimise(
        self, name: str, loss: Tensor, parameters: Iterable[Tensor], step: int, rate: float | None = None
    ) -> Tensor:
        """Backward pass, clipping and one step of optimiser ``name``.

        Args:
            name: of the optimiser.
            loss: a scalar.
            parameters: whose gradients are clipped.
            step: from 0.
            rate: learning rate; that of the schedule if None.

        Returns:
            Norm of the gradient before clipping.

        Raises:
            MedgenError: loss or gradient are not finite.
        """
        if not torch.isfinite(loss):
            raise not_finite(step + 1, "loss", loss.item())
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step) if rate is None else rate
        optimizer.zero_grad(set_to_none=True)
        self.gradient_scaler.scale(loss).backward()
        self.gradient_scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optimisation.clip_norm)
        if not torch.isfinite(norm) and not self.gradient_scaler.is_enabled():
            raise not_finite(step + 1, "gradient", norm.item())
        self.gradient_scaler.step(optimizer)
        self.gradient_scaler.update()
        return norm

    def learning_rate(self, step: int) -> float:
        """See :func:`~medgen.trainers.ema.learning_rate`."""
        return learning_rate(step, self.config.steps, self.config.optimisation)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass in the run's precision."""
        return torch.autocast(self.state.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        found: torch.device = self.state.device
        return found

    # state and result

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the very beginning, earlier runs counted in."""
        return self.start + int(self.state.iteration)

    def kept(self) -> dict[str, nn.Module]:
        """The networks of the model: averaged where there is an average."""
        return {n: self.ema[n].network if n in self.ema else self.networks[n] for n in self.spec.networks()}

    def final_spec(self) -> Spec:
        """The specification as it is saved; a family may add what is known only after training."""
        return self.spec

    def model(self) -> Model[Any]:
        """What has been trained so far, as a model."""
        return model_class(self.spec.family, self.spec.name)(self.final_spec(), self.kept(), self.device)

    def extra_state(self) -> dict[str, Any]:
        """What else a continuation needs: plain values and tensors."""
        return {}

    def load_extra_state(self, extra: Mapping[str, Any]) -> None:
        """Continue from :meth:`extra_state`."""

    def state_dict_of_run(self) -> TrainerState:
        """All that a continuation needs."""
        return {
            "step": self.steps_done,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "ema": {name: ema.network.state_dict() for name, ema in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "gradient_scaler": self.gradient_scaler.state_dict(),
            "extra": self.extra_state(),
        }

    def load_state_dict_of_run(self, state: TrainerState) -> None:
        """Continue from :meth:`state_dict_of_run`."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, ema in self.ema.items():
            ema.network.load_state_dict(state["ema"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.gradient_scaler.load_state_dict(state["gradient_scaler"])
        self.load_extra_state(state["extra"])


def shared_fields(config: TrainConfig, people: int, statistics: Statistics | None = None) -> dict[str, Any]:
    """Fields of a specification that every family takes from its configuration and from the data as they are.

    Args:
        config: of the run.
        people: how many it is trained on.
        statistics: of :meth:`RunTrainer.measure`: ``controls`` with their distribution.
    """
    population = config.data == POPULATION
    grid = {"spacing": list(config.grid.spacing), "size": list(config.grid.size)}
    fields: dict[str, Any] = {name: getattr(config, name) for name in SHARED_FIELDS}
    fields["image_channels"] = config.image_channels
    if population and config.task == "label_to_image":
        fields["label_source"] = {"population": {**grid, **config.population}}
    controls = tuple((statistics or {}).get("controls", ())) or planned_controls(config)
    if controls:
        fields["controls"] = controls
        fields["control_encoder"] = {
            "_target_": "ControlEncoder", "context_dim": config.context_dim, **control_arguments(controls)
        }  # fmt: skip
    fields["training"] = {
        "data": config.data if population else "files",
        "people": people,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "config_sha256": config.sha256(),
    }
    return fields


def planned_controls(config: TrainConfig) -> tuple[Control, ...]:
    """Controls as far as they are known before the data are: their shapes, for a check of the configuration."""
    made = {
        "class": lambda c: class_control(c.name, list(c.values) or ["a", "b"], c.values or None),
        "number": lambda c: number_control(c.name, [0.0, 1.0]),
        "text": lambda c: Control(c.name, "text", prompts=("a",), encoder="unknown", tokens=1, text_dim=1),
    }
    return tuple(made[control.kind](control) for control in config.controls)


def initial_network(form: Mapping[str, Any], seed: int, source: str, name: str = "denoiser") -> nn.Module:
    """An untrained network, its weights a function of seed and name alone; the global generators stay as they are.

    Args:
        form: in the registry.
        seed: of the run.
        source: for errors.
        name: of the network in the model.
    """
    own = derive_seed(seed, "weights") if name == "denoiser" else derive_seed(seed, "weights", name)
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed the GPUs too, which are not put back
        torch.default_generator.manual_seed(own)
        return build_network(form, source)


def adamw(config: TrainConfig, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimiser that ``config.optimisation`` describes."""
    settings = config.optimisation
    return torch.optim.AdamW(
        list(parameters),
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )


def not_finite(step: int, what: str, value: object) -> MedgenError:
    """The error of a run whose numbers have run away."""
    return MedgenError(
        f"training stopped: {what} of step {step}: {value}. The last good checkpoint is kept. Resume it with a lower "
        "optimisation#learning_rate, or look for unusual values in the data."
    )


def precision_type(precision: str, device: torch.device) -> torch.dtype:
    """The floating type of ``auto | fp32 | bf16 | fp16`` on a device.

    Raises:
        MedgenError: half precision on a CPU, where it is many times slower.
    """
    if device.type != "cuda":
        if precision in ("bf16", "fp16"):
            raise MedgenError(
                f"precision '{precision}' needs a CUDA GPU; on {device.type} it is slower. Use precision=fp32."
            )
        return torch.float32
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
