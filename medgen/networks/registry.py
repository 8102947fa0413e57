"""The closed registry of networks.

A model folder says ``{"_target_": "DiffusionModelUNet", ...}``. The name is looked up in a table that this
file fills; nothing is imported by a name found in a file and no string is ever evaluated. MONAI's
``ConfigParser`` reads the same spelling but runs any ``_target_`` and any ``$...``, so it is not used here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

TARGET = "_target_"
MAX_PARAMETERS = 1_000_000_000
MAX_INTEGER = 4096
MAX_ENTRIES = 16
_MAX_TEXT = 200
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Network:
    """One entry of the registry.

    Args:
        name: what a specification calls it.
        load: returns the class; imports it only when called.
        limits: largest value of single integer arguments (or of their entries); ``MAX_INTEGER`` for the rest.
        on_meta: whether it can be built without memory, to count its weights; where it cannot, ``limits`` keep it
            small.
    """

    name: str
    load: Callable[[], type[nn.Module]]
    limits: Mapping[str, int] = field(default_factory=dict)
    on_meta: bool = True

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Arguments of the real constructor by name (imports the class)."""
        return dict(inspect.signature(self.load()).parameters)


NETWORKS: dict[str, Network] = {}


def register(
    name: str, limits: Mapping[str, int] | None = None, on_meta: bool = True
) -> Callable[[Callable[[], type[nn.Module]]], Callable[[], type[nn.Module]]]:
    """Enrol a network: decorates a function without arguments that imports and returns the class.

    Args:
        name: what specifications call it, an identifier.
        limits: see :class:`Network`.
        on_meta: see :class:`Network`.

    Raises:
        MedgenError: the name is taken or is no identifier.
    """

    def enrol(load: Callable[[], type[nn.Module]]) -> Callable[[], type[nn.Module]]:
        if not name.isidentifier():
            raise MedgenError(f"register: name must be a Python identifier. Got {name!r}. Use letters and digits.")
        if name in NETWORKS:
            raise MedgenError(f"register: network {name!r} is registered already. Choose another name.")
        NETWORKS[name] = Network(name, load, dict(limits or {}), on_meta)
        return load

    return enrol


_UNET_LIMITS = {"spatial_dims": 3, "num_res_blocks": 16, "transformer_num_layers": 16}


@register("DiffusionModelUNet", limits=_UNET_LIMITS)
def _diffusion_model_unet() -> type[nn.Module]:
    """Rombach et al. 2022 (arXiv:2112.10752), MONAI's implementation."""
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet


@register("ConditionalUNet", limits=_UNET_LIMITS)
def _conditional_unet() -> type[nn.Module]:
    """medgen's own lean diffusion U-Net, its many conditioning channels reduced point-wise first."""
    from medgen.networks.conditional_unet import ConditionalUNet

    return ConditionalUNet


@register("UNet", limits={"spatial_dims": 3, "num_res_units": 16, "strides": 8, "kernel_size": 9, "up_kernel_size": 9})
def _unet() -> type[nn.Module]:
    """Residual U-Net of MONAI (Kerfoot et al. 2018), a plain regression network."""
    from monai.networks.nets import UNet

    return UNet


@register("BasicUNet", limits={"spatial_dims": 3})
def _basic_unet() -> type[nn.Module]:
    """MONAI's U-Net with two convolutions a level (Falk et al. 2019), a plain regression network."""
    from monai.networks.nets import BasicUNet

    return BasicUNet


@register("RestorationUNet", limits={"spatial_dims": 3, "num_res_blocks": 16})
def _restoration_unet() -> type[nn.Module]:
    """medgen's own regression U-Net without normalisation."""
    from medgen.networks.restoration_unet import RestorationUNet

    return RestorationUNet


_SWIN_LIMITS = {
    "spatial_dims": 3, "patch_size": 8, "window_size": 16, "depths": 16, "num_heads": 96, "feature_size": 192,
    "in_channels": 256, "out_channels": 256,
}  # fmt: skip


@register("SwinUNETR", limits=_SWIN_LIMITS, on_meta=False)
def _swin_unetr() -> type[nn.Module]:
    """Hatamizadeh et al. 2022 (arXiv:2201.01266), MONAI's implementation."""
    from monai.networks.nets import SwinUNETR

    return SwinUNETR


@register("Restormer", limits={"spatial_dims": 3, "num_blocks": 16, "heads": 64, "num_refinement_blocks": 16})
def _restormer() -> type[nn.Module]:
    """Zamir et al. 2022 (arXiv:2111.09881), MONAI's implementation."""
    from monai.networks.nets.restormer import Restormer

    return Restormer


def check_plain(value: Any, where: str, source: str, depth: int = 0) -> None:
    """Refuse anything that is not plain, finite JSON without expressions.

    Args:
        value: what a JSON file held.
        where: name of the field, for the error.
        source: name of the file or caller, for the error.
        depth: how deep ``value`` is nested already.

    Raises:
        MedgenError: a string with ``$`` anywhere, or with ``@`` or ``%`` first (MONAI's expressions, references
            and macros); a number that is not finite; another type; nesting deeper than eight levels.

    Example:
        >>> check_plain({"channels": [8, 16]}, "network", "medgen.json")
        >>> check_plain("$print(1)", "network.norm", "medgen.json")
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: medgen.json: field 'network.norm' must not hold an expression, reference or \
macro ('$', or '@' or '%' in front). Got '$print(1)'. Write the plain value.
    """
    if depth > _MAX_DEPTH:
        raise MedgenError(f"{source}: field {where!r} is nested deeper than {_MAX_DEPTH} levels. Flatten it.")
    if isinstance(value, str):
        _check_text(value, where, source)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise MedgenError(f"{source}: field {where!r} must have text as keys. Got {short(key)}. Quote it.")
            _check_text(key, where, source)
            check_plain(item, f"{where}.{key}", source, depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]", source, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise MedgenError(f"{source}: field {where!r} must be finite. Got {value!r}. Write a finite number.")
    elif value is not None and not isinstance(value, bool | int | float):
        raise MedgenError(
            f"{source}: field {where!r} must be plain JSON. Got {type(value).__name__}. "
            "Use text, numbers, true, false, null, lists and objects."
        )


def _check_text(text: str, where: str, source: str) -> None:
    if "$" in text or text[:1] in {"@", "%"}:
        raise MedgenError(
            f"{source}: field {where!r} must not hold an expression, reference or macro ('$', or '@' or '%' in "
            f"front). Got {short(text)}. Write the plain value."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise MedgenError(f"{source}: field {where!r} is not valid Unicode text. Got {short(text)}. Correct it.")


def short(value: Any, length: int = 60) -> str:
    """``repr`` on one line, cut to ``length`` characters, for error messages.

    Example:
        >>> short("x" * 100, 10)
        "'xxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def check_network_form(spec: Any, source: str = "build_network", where: str = "network") -> Network:
    """Check a network specification without importing the network.

    Args:
        spec: ``{"_target_": name, **arguments}``.
        source: name of the file or caller, for errors.
        where: name of the field, for errors.

    Returns:
        The registry's entry.

    Raises:
        MedgenError: no mapping, a name outside the registry, an expression, a value that is not plain JSON,
            or a number, list or text too large to be meant.
    """
    if not isinstance(spec, Mapping):
        raise MedgenError(
            f"{source}: field {where!r} must be an object with '{TARGET}' and arguments. Got {short(spec)}. "
            f"Write for example {{'{TARGET}': 'DiffusionModelUNet', 'spatial_dims': 3}}."
        )
    check_plain(dict(spec), where, source)
    name = spec.get(TARGET)
    if not isinstance(name, str) or name not in NETWORKS:
        raise MedgenError(
            f"{source}: field '{where}.{TARGET}' must be one of {', '.join(NETWORKS)}. Got {short(name)}."
            f"{nearest(name, NETWORKS) or ' Only these can be loaded from a folder.'}"
        )
    network = NETWORKS[name]
    for key, value in spec.items():
        if key != TARGET:
            _check_size(value, network.limits.get(key, MAX_INTEGER), f"{where}.{key}", source)
    return network


def _check_size(value: Any, limit: int, where: str, source: str) -> None:
    """Refuse integers above ``limit``, lists above ``MAX_ENTRIES`` and long texts, at any depth."""
    if isinstance(value, bool | None):
        return
    if isinstance(value, int | float) and abs(value) > limit:
        raise MedgenError(f"{source}: field {where!r} must be at most {limit}. Got {short(value)}. Choose less.")
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise MedgenError(f"{source}: field {where!r} must be at most {_MAX_TEXT} characters. Got {len(value)}.")
    if isinstance(value, list | tuple | Mapping):
        if len(value) > MAX_ENTRIES:
            raise MedgenError(f"{source}: field {where!r} must have at most {MAX_ENTRIES} entries. Got {len(value)}.")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_size(item, limit, where, source)


def check_network(spec: Any, source: str = "build_network", where: str = "network") -> None:
    """Check a network specification in full, against the signature of the real constructor (imports it).

    Args:
        spec: ``{"_target_": name, **arguments}``.
        source: name of the file or caller, for errors.
        where: name of the field, for errors.

    Raises:
        MedgenError: as :func:`check_network_form`, and for an unknown, missing or wrongly typed argument.

    Example:
        >>> check_network({"_target_": "UNet", "spatial_dims": 3, "in_channel": 1})
        Traceback (most recent call last):
        ...
        medgen.checks.MedgenError: build_network: field 'network.in_channel' is not an argument of UNet. \
Did you mean 'in_channels'?
    """
    network = check_network_form(spec, source, where)
    parameters = network.parameters()
    given = {key: value for key, value in spec.items() if key != TARGET}
    for key, value in given.items():
        if key not in parameters:
            hint = nearest(key, parameters) or f" It takes {', '.join(parameters)}."
            raise MedgenError(f"{source}: field '{where}.{key}' is not an argument of {network.name}.{hint}")
        _check_type(value, parameters[key].annotation, f"{where}.{key}", source)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise MedgenError(f"{source}: field '{where}.{key}' is missing, {network.name} needs it. Add it.")


_KINDS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "None": lambda v: v is None,
    "tuple": lambda v: isinstance(v, list | tuple),
    "Sequence[int]": lambda v: isinstance(v, list | tuple) and all(_KINDS["int"](i) for i in v),
    "Sequence[bool]": lambda v: isinstance(v, list | tuple) and all(_KINDS["bool"](i) for i in v),
}


def _check_type(value: Any, annotation: Any, where: str, source: str) -> None:
    """Check ``value`` against an annotation in text form; forms that are not in ``_KINDS`` are let through."""
    if not isinstance(annotation, str):
        return
    kinds = [kind.strip() for kind in annotation.split("|")]
    if all(kind in _KINDS for kind in kinds) and not any(_KINDS[kind](value) for kind in kinds):
        raise MedgenError(f"{source}: field {where!r} must be of type {annotation}. Got {short(value)}. Correct it.")


def build_network(spec: Any, source: str = "build_network") -> nn.Module:
    """Build a network, with fresh weights, from its declarative specification.

    Args:
        spec: ``{"_target_": name, **arguments}``, name one of ``NETWORKS``.
        source: name of the file or caller, for errors.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        MedgenError: see :func:`check_network`; also where the constructor itself refuses the arguments.
    """
    parameter_shapes(spec, source)
    return _construct(spec, source)


def parameter_shapes(spec: Any, source: str = "build_network") -> dict[str, torch.Tensor]:
    """The state dictionary a network would have, on the ``meta`` device: shapes and types, no memory.

    Raises:
        MedgenError: see :func:`check_network`; also where there would be more than ``MAX_PARAMETERS`` parameters.
    """
    import torch

    check_network(spec, source)
    with torch.device("meta" if NETWORKS[spec[TARGET]].on_meta else "cpu"):
        state = _construct(spec, source).state_dict()
    total = sum(tensor.numel() for tensor in state.values())
    if total > MAX_PARAMETERS:
        raise MedgenError(
            f"{source}: field 'network' describes {total:,} parameters, more than {MAX_PARAMETERS:,}. "
            "Choose fewer channels or levels."
        )
    return state


def _construct(spec: Mapping[str, Any], source: str) -> nn.Module:
    arguments = {key: value for key, value in spec.items() if key != TARGET}
    cls = NETWORKS[spec[TARGET]].load()
    try:
        return cls(**arguments)
    except Exception as error:  # whatever a third-party constructor raises is about these arguments
        raise MedgenError(
            f"{source}: {spec[TARGET]} refuses its arguments: {short(str(error), 200)}. Correct field 'network'."
        ) from error


@register("ControlEncoder", limits={"numbers": 64, "frequencies": 256})
def _control_encoder() -> type[nn.Module]:
    """Classes, numbers and text as context tokens."""
    from medgen.networks.control_encoder import ControlEncoder

    return ControlEncoder


@register("ControlUNet", limits=_UNET_LIMITS)
def _control_unet() -> type[nn.Module]:
    """The control network (Zhang et al. 2023, arXiv:2302.05543) of a ConditionalUNet."""
    from medgen.networks.control_unet import ControlUNet

    return ControlUNet


@register("ControlNet", limits=_UNET_LIMITS)
def _controlnet() -> type[nn.Module]:
    """MONAI's control network of a DiffusionModelUNet."""
    from monai.networks.nets import ControlNet

    return ControlNet


@register("AutoencoderKL", limits={"spatial_dims": 3, "num_res_blocks": 16})
def _autoencoder_kl() -> type[nn.Module]:
    """Autoencoder with a Gaussian latent (Rombach et al. 2022, arXiv:2112.10752), MONAI's implementation."""
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL


@register("VQVAE", limits={"spatial_dims": 3, "num_res_layers": 16, "num_embeddings": 65536})
def _vqvae() -> type[nn.Module]:
    """Autoencoder with a code book (van den Oord et al. 2017, arXiv:1711.00937), MONAI's implementation."""
    from monai.networks.nets import VQVAE

    return VQVAE


@register("DecoderOnlyTransformer", limits={"num_tokens": 65537, "max_seq_len": 16384, "attn_layers_depth": 64})
def _decoder_only_transformer() -> type[nn.Module]:
    """Causal transformer over tokens, MONAI's implementation."""
    from monai.networks.nets import DecoderOnlyTransformer

    return DecoderOnlyTransformer


@register("StyleGenerator", limits={"spatial_dims": 3, "mapping_layers": 16})
def _style_generator() -> type[nn.Module]:
    """Generator of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958), 2D and 3D."""
    from medgen.networks.style_generator import StyleGenerator

    return StyleGenerator


@register("StyleDiscriminator", limits={"spatial_dims": 3})
def _style_discriminator() -> type[nn.Module]:
    """Discriminator of StyleGAN2, 2D and 3D."""
    from medgen.networks.style_discriminator import StyleDiscriminator

    return StyleDiscriminator


@register("PatchDiscriminator", limits={"spatial_dims": 3, "num_layers_d": 8, "kernel_size": 9})
def _patch_discriminator() -> type[nn.Module]:
    """Discriminator of patches (Isola et al. 2017, arXiv:1611.07004), MONAI's implementation."""
    from monai.networks.nets import PatchDiscriminator

    return PatchDiscriminator


@register("SpadeGenerator", limits={"spatial_dims": 3})
def _spade_generator() -> type[nn.Module]:
    """Label map to image by spatially adaptive normalisation (Park et al. 2019, arXiv:1903.07291)."""
    from medgen.networks.translation_generators import SpadeGenerator

    return SpadeGenerator


@register("ResNetGenerator", limits={"spatial_dims": 3, "num_res_blocks": 32})
def _resnet_generator() -> type[nn.Module]:
    """Image to image, residual blocks (Zhu et al. 2017, CycleGAN, arXiv:1703.10593)."""
    from medgen.networks.translation_generators import ResNetGenerator

    return ResNetGenerator


@register("UNetGenerator", limits={"spatial_dims": 3})
def _unet_generator() -> type[nn.Module]:
    """Image to image, U-Net (Isola et al. 2017, pix2pix, arXiv:1611.07004)."""
    from medgen.networks.translation_generators import UNetGenerator

    return UNetGenerator


@register("SPADEDiffusionModelUNet", limits=_UNET_LIMITS)
def _spade_diffusion_model_unet() -> type[nn.Module]:
    """MONAI's diffusion U-Net normalised by a label map (Park et al. 2019, arXiv:1903.07291)."""
    from monai.networks.nets import SPADEDiffusionModelUNet

    return SPADEDiffusionModelUNet


@register("SPADEAutoencoderKL", limits={"spatial_dims": 3, "num_res_blocks": 16})
def _spade_autoencoder_kl() -> type[nn.Module]:
    """MONAI's autoencoder whose decoder is normalised by a label map."""
    from monai.networks.nets import SPADEAutoencoderKL

    return SPADEAutoencoderKL


@register("AutoencoderKlMaisi", limits={"spatial_dims": 3, "num_res_blocks": 16, "num_splits": 64, "dim_split": 2})
def _autoencoder_kl_maisi() -> type[nn.Module]:
    """MAISI's autoencoder (Guo et al. 2024, arXiv:2409.11169), which works in pieces along one axis."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    return AutoencoderKlMaisi


@register("DiffusionModelUNetMaisi", limits=_UNET_LIMITS)
def _diffusion_model_unet_maisi() -> type[nn.Module]:
    """MAISI's diffusion U-Net, which may be told spacing and body regions."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    return DiffusionModelUNetMaisi


@register("ControlNetMaisi", limits=_UNET_LIMITS)
def _controlnet_maisi() -> type[nn.Module]:
    """MAISI's control network."""
    from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi

    return ControlNetMaisi


@register("DiffusersUNet", limits={"spatial_dims": 2})
def _diffusers_unet() -> type[nn.Module]:
    """A U-Net of diffusers that has no exact counterpart in MONAI; needs the package diffusers."""
    from medgen.networks.diffusers_unet import DiffusersUNet

    return DiffusersUNet


@register("DiffusersAutoencoderKL", limits={"spatial_dims": 2})
def _diffusers_autoencoder_kl() -> type[nn.Module]:
    """An autoencoder of diffusers, with MONAI's methods; needs the package diffusers."""
    from medgen.networks.diffusers_unet import DiffusersAutoencoderKL

    return DiffusersAutoencoderKL
