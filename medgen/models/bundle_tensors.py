"""``network_data_format`` of a bundle: what the main network of a model takes and gives, channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from medgen.models.autoencoder_spec import AutoencoderSpec
from medgen.models.autoregressive_spec import AutoregressiveSpec
from medgen.models.diffusion_spec import DiffusionSpec
from medgen.models.gan_spec import GanSpec
from medgen.models.restorer_spec import RestorerSpec
from medgen.models.specification import ModelSpec, network_integer

DEFAULT_LATENT_DIM = {"StyleGenerator": 64, "SpadeGenerator": 32}


def data_format(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """``inputs`` and ``outputs`` of the main network, each tensor in MONAI's words.

    Args:
        spec: the model.
    """
    inputs, outputs = _FORMATS[spec.family](spec)
    return {"inputs": inputs, "outputs": outputs}


def _diffusion(spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    diffusion: DiffusionSpec = spec
    packed = diffusion.reduction
    if diffusion.autoencoder is not None:
        sample = [f"latent {i}" for i in range(diffusion.diffused_channels)]
    else:
        sample = _banded(_voxel_names(diffusion), packed, diffusion.spatial_dims)
    joined = 0 if diffusion.control_network is not None else diffusion.condition_channels
    size = [n // packed for n in diffusion.grid.size]
    names = [*sample, *(f"conditioning {i}" for i in range(joined))]
    return {"image": _tensor(spec, names, size, packed > 1)}, {"pred": _tensor(spec, sample, size, packed > 1)}


def _autoencoder(spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    autoencoder: AutoencoderSpec = spec
    packed = 2**autoencoder.packing_levels
    names = _banded(_voxel_names(spec), packed, spec.spatial_dims)
    size = [-(-n // packed) for n in spec.grid.size]
    return {"image": _tensor(spec, names, size, packed > 1)}, {"pred": _tensor(spec, names, size, packed > 1)}


def _autoregressive(spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    model: AutoregressiveSpec = spec
    entries = model.autoencoder.num_embeddings
    tokens = _tensor(spec, ["code book entry, or the first token"], [model.tokens], True)
    tokens |= {"dtype": "int64", "value_range": [0, entries]}
    names = [f"logit of entry {i}" for i in range(entries)] + ["logit of the first token"]
    return {"tokens": tokens}, {"pred": _tensor(spec, names, [model.tokens], True)}


def _gan(spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    gan: GanSpec = spec
    packed, dims = gan.reduction if gan.makes_blocks else 1, gan.spatial_dims
    size = [n // packed for n in gan.grid.size]
    labels, sources = [f"label {name}" for name, _ in gan.label_channels], list(gan.source_modalities)
    told = _banded(labels if gan.kind == "spade" else sources, packed, dims) if gan.shape.told else []
    flags = [f"{name} is given" for name in sources] if gan.kind == "pix2pix" else []
    inputs = {"image": _tensor(spec, [*told, *flags], size, packed > 1)} if told else {}
    target = gan.network["_target_"]
    length = network_integer(gan.network, "latent_dim", DEFAULT_LATENT_DIM.get(target, 0))
    if length:
        inputs["latent"] = _tensor(spec, [f"latent {i}" for i in range(length)], [], True)
    made = _banded(_voxel_names(spec), packed, dims)
    return inputs, {"pred": _tensor(spec, made, size, packed > 1)}


def _restorer(spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    restorer: RestorerSpec = spec
    packed, dims = restorer.reduction, restorer.spatial_dims
    size = [n // packed for n in restorer.grid.size]
    given = ["degraded", "hole"] if restorer.restores == "inpaint" else ["degraded"]
    names = [*_banded(given, packed, dims), "strength"]
    made = ["what is added", "log of the expected error"] if restorer.variance else ["what is added"]
    outputs = _tensor(spec, _banded(made, packed, dims), size, packed > 1)
    return {"image": _tensor(spec, names, size, packed > 1)}, {"pred": outputs}


_FORMATS: dict[str, Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]] = {
    "diffusion": _diffusion,
    "autoencoder": _autoencoder,
    "autoregressive": _autoregressive,
    "gan": _gan,
    "restorer": _restorer,
}


def _voxel_names(spec: ModelSpec) -> list[str]:
    """The channels of a sample, before it is packed."""
    single = [spec.modality] if spec.image_channels == 1 else []
    images = list(spec.channels) or single or [f"image {i}" for i in range(spec.image_channels)]
    labels = [f"label {name}" for name, _ in spec.label_channels]
    return [*(images if spec.makes_image else []), *(labels if spec.makes_label else [])]


def _banded(names: Sequence[str], packed: int, dims: int) -> list[str]:
    """Names of the channels after blocks of ``packed`` voxels along each axis became channels."""
    bands = packed**dims
    return [f"{name}, band {b}" for name in names for b in range(bands)] if bands > 1 else list(names)


def _tensor(spec: ModelSpec, names: Sequence[str], size: Sequence[int], latent: bool) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "latent" if latent else "magnitude",
        "modality": "MR" if spec.modality.lower() not in {"ct", "pet"} else spec.modality.upper(),
        "num_channels": len(names),
        "spatial_shape": list(size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }
