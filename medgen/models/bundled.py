"""The models that come with medgen, and loading of any model by name or folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.checks import MedgenError, nearest
from medgen.models.device import resolve_device
from medgen.models.families import model_class
from medgen.models.folder import SPECIFICATION, count_parameters, model_hash, open_model, read_spec
from medgen.models.weights import build_networks

if TYPE_CHECKING:
    import torch

    from medgen.models.base import Model

BUNDLED = Path(__file__).parent / "bundled"
RUN = "model"  # where a training run leaves its model


@dataclass(frozen=True)
class ModelSummary:
    """One line of ``medgen models``.

    Args:
        name: what ``load_model`` takes: the bundled name, or the folder's name.
        path: the folder.
        version: of the model.
        family: see :data:`~medgen.models.families.FAMILIES`.
        task: see :class:`~medgen.models.specification.ModelSpec`.
        modality: BIDS suffix of the image.
        spacing: mm per axis.
        size: voxels per axis.
        parameters: number of weights.
        bytes: size of the folder on disk.
        licence: SPDX identifier.
        hash: see :func:`~medgen.models.folder.model_hash`.
        description: one or two sentences.
        problem: why the model cannot be loaded; None for a good one (then all of the above is filled).
    """

    name: str
    path: Path
    version: str = ""
    family: str = ""
    task: str = ""
    modality: str = ""
    spacing: tuple[float, ...] = ()
    size: tuple[int, ...] = ()
    parameters: int = 0
    bytes: int = 0
    licence: str = ""
    hash: str = ""
    description: str = ""
    problem: str | None = None


def bundled_models() -> dict[str, Path]:
    """Folder of each bundled model by name, sorted."""
    folders = BUNDLED.iterdir() if BUNDLED.is_dir() else iter(())
    return {folder.name: folder for folder in sorted(folders) if (folder / SPECIFICATION).is_file()}


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model.

    Args:
        name_or_path: name of a bundled model, or path of a model folder. A bundled name comes first: write
            ``./brain-t1`` for a folder of that name.

    Returns:
        The folder.

    Raises:
        MedgenError: neither; the text has the nearest bundled name and the list of them.
    """
    models = bundled_models()
    if isinstance(name_or_path, str) and name_or_path in models:
        return models[name_or_path]
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise MedgenError(f"'{name_or_path}' is a file, not a model. Give the folder that holds {SPECIFICATION}.")
    hint = nearest(name_or_path, models) or f" Give a folder that holds {SPECIFICATION}, or a bundled name."
    raise MedgenError(f"unknown model '{name_or_path}'. Bundled: {', '.join(models) or '(none)'}.{hint}")


def load_model(name_or_path: str | os.PathLike[str], device: str | torch.device = "auto") -> Model[Any]:
    """Load a model, verified, ready to sample.

    Args:
        name_or_path: name of a bundled model, or path of a model folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Returns:
        The model, in evaluation mode, its weights frozen.

    Raises:
        MedgenError: unknown name, damaged or unsafe folder (see :func:`~medgen.models.folder.open_model`), or the
            device is not there.
    """
    where = resolve_device(device, "load_model")
    files = open_model(find_model(name_or_path))
    networks = build_networks(files.spec, files.state, where)
    return model_class(files.spec.family, files.spec.name)(files.spec, networks, where, files.hash)


def describe_models(place: str | os.PathLike[str] | None = None) -> list[ModelSummary]:
    """What models there are, each verified, for ``medgen models``.

    Args:
        place: a model folder, the folder of a training run, a folder of such, or the name of a bundled model; the
            bundled models by default.

    Returns:
        One summary for each, sorted by path; a damaged model has its ``problem`` filled.

    Raises:
        MedgenError: there is none.
    """
    return [_summary(path) for path in (bundled_models().values() if place is None else _folders(Path(place)))]


def _folders(place: Path) -> list[Path]:
    """The models of a place: itself, that of a run, or those of the models and runs that lie in it."""
    bundled = bundled_models()
    if not place.is_dir():
        if str(place) in bundled:
            return [bundled[str(place)]]
        hint = nearest(str(place), bundled) or " Give a model folder, a run, or a folder of them."
        raise MedgenError(f"'{place}' is not a folder, nor a bundled model ({', '.join(bundled)}).{hint}")

    def there(folder: Path) -> Path | None:
        return next((path for path in (folder, folder / RUN) if (path / SPECIFICATION).is_file()), None)

    own = there(place)
    found = [own] if own else [model for item in sorted(place.iterdir()) if (model := there(item))]
    if not found:
        raise MedgenError(
            f"'{place}' holds no model: no {SPECIFICATION} in it, in a folder of it or in FOLDER/{RUN}. Give another."
        )
    return found


def _summary(path: Path) -> ModelSummary:
    try:
        spec = read_spec(path)
        return ModelSummary(
            name=spec.name,
            path=path,
            version=spec.version,
            family=spec.family,
            task=spec.task,
            modality=spec.modality,
            spacing=spec.grid.spacing,
            size=spec.grid.size,
            parameters=count_parameters(path),
            bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            licence=spec.licence,
            hash=model_hash(path),
            description=spec.description,
        )
    except MedgenError as error:
        return ModelSummary(name=path.name, path=path, problem=str(error))
