"""What a regression restorer is: the content of ``medgen.json`` of family ``restorer``."""

# ruff: noqa: RUF009  (fields are made by a function that attaches the check; it is called once per field, as meant)
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medgen.checks import MedgenError
from medgen.models.domain import Domain
from medgen.models.fields import checked, choice, nested, number, optional, plain_object, refuse, sequence
from medgen.models.fields import network_form as form
from medgen.models.specification import ModelSpec, network_integer

__all__ = [
    "LEARNS_FROM", "RESTORED", "RestorerSpec", "degradations_field", "implied_arguments", "network_multiple", "truth",
]  # fmt: skip

RESTORED = ("denoise", "superres", "inpaint", "motion", "bias")
FLAT = ("denoise", "motion")  # what can be done slice by slice
PACKINGS = ("none", "haar")
SCALINGS = ("percentile", "hounsfield")
LEARNS_FROM = ("pairs", "noise2void", "sure")


def truth(value: Any, where: str, source: str) -> bool:
    """A truth value, nothing that could be taken for one."""
    if not isinstance(value, bool):
        raise refuse(source, where, "true or false", value)
    return value


def degradations_field(value: Any, where: str, source: str) -> tuple[dict[str, dict[str, Any]], ...]:
    """A list of alternatives, each ``{name: ranges}`` of :data:`medgen.operators.degradations.DEGRADATIONS`."""
    from medgen.operators.degradations import check_degradations

    found = []
    for i, item in enumerate(sequence(plain_object, 0, 16)(value, where, source)):
        named = {name: dict(ranges or {}) for name, ranges in item.items()}
        if not named:
            raise refuse(source, f"{where}[{i}]", "an object with at least one degradation", item)
        check_degradations(f"{source}: {where}[{i}]", named)
        found.append(named)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class RestorerSpec(ModelSpec):
    """A network that takes a degraded image and gives the expected clean one, at any size.

    It sees the image scaled to about 0..1 (see ``scaling``), for task ``inpaint`` the hole beside it, and one number
    more, the strength of the degradation (the noise level over the bright end, or the slice spacing in voxels), as a
    constant channel. It answers with what is to be added, and with ``variance`` with the logarithm of the expected
    error of each voxel.

    Args:
        network: regression network in the registry's form.
        restores: what it undoes, one of ``RESTORED``.
        degradations: what training images were degraded by, one alternative each; empty for holes, plain pairs and
            scans that were noisy as they are.
        learns_from: ``pairs``: it was shown the truth; ``noise2void`` or ``sure``: noisy scans alone.
        packing: ``none``, or ``haar``: blocks of voxels are channels.
        variance: whether it says its own expected error.
        scaling: ``percentile``: the 99.9th percentile of the magnitude is 1 and 0 is 0; ``hounsfield``: -1000 HU is 0
            and 1000 HU is 1.
        strength: least and greatest strength seen in training.
        interval_factor: half the width of the 90% interval over the expected error, measured on people not trained on;
            None if it was not measured.
        domain: the scans that it was made for, others are remarked on or refused; None: nothing is known.

    The rest: :class:`~medgen.models.specification.ModelSpec`; ``grid.size`` is the patch that it was trained on and
    ``grid.spacing`` that of its training scans.

    Raises:
        MedgenError: a field fails its check, or channels that do not fit.
    """

    network: dict[str, Any] = checked(form)
    restores: str = checked(choice(lambda: RESTORED))
    degradations: tuple[dict[str, dict[str, Any]], ...] = checked(degradations_field, default=())
    learns_from: str = checked(choice(lambda: LEARNS_FROM), default="pairs")
    packing: str = checked(choice(lambda: PACKINGS), default="haar")
    variance: bool = checked(truth, default=True)
    scaling: str = checked(choice(lambda: SCALINGS), default="percentile")
    strength: tuple[float, ...] = checked(sequence(number(0, 1e3), 2, 2), default=(0.0, 0.0))
    interval_factor: float | None = checked(optional(number(0, 1e3, above=True)), default=None)
    domain: Domain | None = checked(optional(nested(lambda: Domain)), default=None)
    family: str = checked(choice(lambda: ("restorer",)), default="restorer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spatial_dims == 2 and self.restores not in FLAT:
            raise refuse("ModelSpec", "grid.size", f"of 3 axes for '{self.restores}'", list(self.grid.size))
        if self.task != "restore" or self.image_channels != 1:
            raise refuse("ModelSpec", "task", "restore, with one image channel, for a restorer", self.task)
        wanted = implied_arguments(self.network, self.spatial_dims, self.packing, self.restores, self.variance)
        for key, value in wanted.items():
            if self.network.get(key) != value:
                raise refuse("ModelSpec", f"network.{key}", f"{value}", self.network.get(key))
        if self.learns_from != "pairs" and (self.restores != "denoise" or self.variance):
            raise refuse("ModelSpec", "learns_from", "pairs, but for 'denoise' without variance", self.learns_from)
        if any(n % self.multiple for n in self.grid.size):
            raise refuse("ModelSpec", "grid.size", f"multiples of {self.multiple}", list(self.grid.size))
        if self.interval_factor is not None and not self.variance:
            raise refuse("ModelSpec", "interval_factor", "null without variance", self.interval_factor)

    @property
    def reduction(self) -> int:
        """Voxels per packed voxel, along each axis."""
        return 2 if self.packing == "haar" else 1

    @property
    def multiple(self) -> int:
        return self.reduction * network_multiple(self.network)

    def networks(self) -> dict[str, dict[str, Any]]:
        return {"restorer": self.network}


def implied_arguments(
    network: Mapping[str, Any], dims: int, packing: str, restores: str, variance: bool
) -> dict[str, int]:
    """Arguments of the network that follow from the rest; see :class:`RestorerSpec`."""
    factor = 2**dims if packing == "haar" else 1
    inputs = factor * (2 if restores == "inpaint" else 1) + 1
    return {"spatial_dims": dims, "in_channels": inputs, "out_channels": factor * (2 if variance else 1)}


def network_multiple(network: Mapping[str, Any]) -> int:
    """What every axis of the network's input must be a multiple of."""
    name = network["_target_"]
    levels = network.get("channels", ())
    if name == "RestorationUNet":
        return int(2 ** (len(levels) - 1)) if levels else 4
    if name == "UNet":
        return math.prod(int(stride) for stride in network.get("strides", ()))
    if name == "Restormer":
        return int(2 ** (len(network.get("num_blocks", (1, 1, 1, 1))) - 1))
    known = {"BasicUNet": 16, "SwinUNETR": 16 * network_integer(dict(network), "patch_size", 2)}
    if name not in known:
        names = ", ".join(("RestorationUNet", "UNet", "Restormer", *known))
        raise MedgenError(f"ModelSpec: field 'network._target_' must be one of {names} for a restorer. Got {name!r}.")
    return known[name]
