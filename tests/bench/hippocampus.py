"""Figures of ``hippocampus-t1`` on real people that it never saw.

Run ``python -m tests.bench.hippocampus MODEL --data DIR -o OUT.json``; DIR holds ``images`` and ``labels``. Tables go
to the terminal, all figures to OUT.json, a picture beside it; the segmentation network is kept there for the next run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import medgen
from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path
from medgen.io.configs import find_config
from medgen.metrics import (
    bootstrap_interval,
    frechet_distance,
    label_means,
    nearest_distances,
    paint_labels,
    radiomic_features,
    standardise,
)
from medgen.models.diffusion_model import DiffusionModel
from medgen.trainers.config import TrainConfig, load_config
from medgen.trainers.data import FileSource, find_pairs, is_held_out
from tests.bench.brain_truth import write_json

Array = NDArray[np.float64]
LABELS = (1, 2)
FLOORS = ("label means and noise", "label means", "white noise")
LEAST_DICE = 0.80
CONDITIONAL_SEED = 100_000


class Volume(NamedTuple):
    """Image in 0..1.5 and label ids, both ``(X, Y, Z)``."""

    image: NDArray[np.float32]
    label: NDArray[np.int16]


@dataclass(frozen=True)
class People:
    """The real people on the model's grid, made by the trainer's own code."""

    training: list[Volume]
    held_out: list[Volume]
    source: FileSource
    config: TrainConfig


def load_people(model: DiffusionModel, data: Path, limit: int | None = None) -> People:
    """Training and held-out people as the trainer prepares them.

    Args:
        model: whose grid is used.
        data: folder with ``images`` and ``labels``.
        limit: at most so many of either kind, for a trial.

    Raises:
        MedgenError: another grid than the configuration's, or fewer than two people of a kind.
    """
    config = load_config(find_config("hippocampus"), [f"data={data}"])
    if tuple(config.grid.size) != tuple(model.spec.grid.size):
        raise MedgenError(
            f"hippocampus bench: the model's grid must be {config.grid.size}. Got {model.spec.grid.size}."
        )
    pairs = find_pairs(data)
    kinds = [[p for p in pairs if is_held_out(p[0], config.held_out_endings) is held][:limit] for held in (False, True)]
    if min(len(kind) for kind in kinds) < 2:
        raise MedgenError(f"hippocampus bench: '{data}' needs people of both kinds. Got {[len(k) for k in kinds]}.")
    sources = [FileSource.read(config, kind) for kind in kinds]
    training, held_out = ([_volume(*subject) for subject in source.subjects] for source in sources)
    return People(training, held_out, sources[0], config)


def _volume(image: Tensor, label: Tensor) -> Volume:
    return Volume(np.asarray(image, np.float32)[0].clip(0, 1.5), np.asarray(label, np.int16)[0])


def features(volumes: Sequence[Volume]) -> Array:
    """Radiomics-like features of image and label, a row a subject."""
    return np.stack([radiomic_features(v.image, v.label, label_ids=LABELS) for v in volumes])


def floors(training: Sequence[Volume], count: int, seed: int = 0) -> dict[str, list[Volume]]:
    """What needs no model, for real training labels: white noise, each label's mean, that mean blurred under noise.

    White noise has a label of white noise. The last has the scatter of real voxels about their label's mean.
    """
    rng = np.random.default_rng(seed)
    images, labels = np.stack([v.image for v in training]), np.stack([v.label for v in training])
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    shape = images.shape[1:]
    noise = [
        Volume(
            rng.normal(images.mean(), images.std(), shape).clip(0, 1.5).astype(np.float32),
            rng.choice(3, shape, p=shares).astype(np.int16),
        )
        for _ in range(count)
    ]
    means = label_means(list(images), list(labels), 3)
    chosen = rng.permutation(len(training))[:count]
    painted = [Volume(paint_labels(labels[i], means).astype(np.float32), labels[i]) for i in chosen]
    spread = float((images - np.asarray(means)[labels]).std())
    blurred = [gaussian_filter(v.image, 0.7) + rng.normal(0, spread, shape) for v in painted]
    noisy = [Volume(x.clip(0, 1.5).astype(np.float32), v.label) for x, v in zip(blurred, painted, strict=True)]
    return {"white noise": noise, "label means": painted, "label means and noise": noisy}


def frechet_table(people: People, samples: Sequence[Volume], repeats: int = 500, draws: int = 20) -> dict[str, Any]:
    """Distance of each set to the held-out people; all sets as large as the smallest, the ceiling over many draws.

    Features are in units of the training people's standard deviation.
    """
    count = min(len(samples), len(people.held_out), len(people.training))
    sets = {"model": list(samples[:count]), **floors(people.training, count)}
    real = features(people.training)
    _, held, *others = standardise(real, features(people.held_out), *(features(v) for v in sets.values()))
    training = standardise(real)[0]
    held = held[:count]
    found: dict[str, Any] = {"set_size": count, "features": held.shape[1]}
    for name, rows in zip(sets, others, strict=True):
        found[name] = bootstrap_interval(frechet_distance, rows[:count], held, repeats=repeats)._asdict()
    rng = np.random.default_rng(1)
    picks = [training[rng.permutation(len(training))[:count]] for _ in range(draws)]
    found["training people"] = bootstrap_interval(frechet_distance, picks[0], held, repeats=repeats)._asdict()
    values = [frechet_distance(rows, held) for rows in picks]
    found["training people"] |= {"mean_of_draws": float(np.mean(values)), "std_of_draws": float(np.std(values))}
    return found


def segmenter(people: People, path: Path, steps: int) -> nn.Module:
    """A small U-Net trained on real training people; read from ``path`` if it was trained there before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BasicUNet(spatial_dims=3, in_channels=1, out_channels=3, features=(12, 12, 24, 48, 96, 12))
    key = f"{steps} steps, {len(people.training)} people, {medgen.__version__}"
    if path.is_file() and (kept := torch.load(path, weights_only=True))["key"] == key:
        network.load_state_dict(kept["state"])
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(steps, 2))
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    for step in range(steps):
        items = [people.source.item(derive_seed(7, "segmenter", 4 * step + i)) for i in range(4)]
        image, label = (torch.stack([item[k] for item in items]) for k in ("image", "label"))
        loss = loss_of(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"key": key, "state": network.state_dict()}, temporary)
    return network.eval()


def dice(network: nn.Module, volumes: Sequence[Volume]) -> dict[str, Any]:
    """Dice of what the network finds with the label each image has: per label and together, over people."""
    rows = []
    for volume in volumes:
        with torch.no_grad():
            found = network(torch.from_numpy(volume.image)[None, None]).argmax(1)[0].numpy()
        rows.append([_overlap(found == i, volume.label == i) for i in LABELS] + [_overlap(found > 0, volume.label > 0)])
    table = np.array(rows)
    names = ("anterior", "posterior", "whole")
    found = {name: float(column.mean()) for name, column in zip(names, table.T, strict=True)}
    return {**found, "mean_of_parts": float(table[:, :2].mean()), "least_whole": float(table[:, 2].min())}


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def neighbours(people: People, samples: Sequence[Volume]) -> dict[str, Any]:
    """Distance to the nearest training person, of samples and of held-out people, in voxels' values and features."""
    sets = (people.training, people.held_out, list(samples))
    spaces = {
        "voxels": [np.stack([v.image.ravel() for v in volumes]) for volumes in sets],
        "features": standardise(*(features(volumes) for volumes in sets)),
    }
    found: dict[str, Any] = {}
    for name, (training, held, made) in spaces.items():
        figures = {}
        for kind, rows in (("samples", made), ("held_out", held)):
            nearest = nearest_distances(rows, training)
            figures[kind] = {"median": float(np.median(nearest)), "p05": float(np.percentile(nearest, 5))}
        passed = all(figures["samples"][k] >= figures["held_out"][k] for k in ("median", "p05"))
        found[name] = {**figures, "passes": passed}
    return found


def generate(
    model: DiffusionModel, count: int, labels: Sequence[NDArray[np.int16]] | None = None, **settings: Any
) -> list[Volume]:
    """Unconditional samples, or one for each of the first ``count`` labels."""
    if labels is None:
        made = model.sample(count, seed=1, **settings)
    else:
        given = [medgen_label(model, label) for label in labels[:count]]
        made = [model.sample(1, CONDITIONAL_SEED + i, label=label, **settings)[0] for i, label in enumerate(given)]
    return [_volume(subject["image"].as_tensor(), subject["label"].as_tensor()) for subject in made]


def medgen_label(model: DiffusionModel, label: NDArray[np.int16]) -> Any:
    """A label ``(X, Y, Z)`` as the MetaTensor that :meth:`DiffusionModel.sample` takes."""
    from monai.data import MetaTensor

    return MetaTensor(torch.from_numpy(label.copy())[None], affine=np.diag([*model.spec.grid.spacing, 1.0]))


def picture(rows: dict[str, Sequence[Volume]], path: Path, columns: int = 6) -> None:
    """A sagittal and a coronal plane through the label of the first volumes of each set, the label outlined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * columns, 4 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * len(rows), columns, squeeze=False)
    for cell in axes.ravel():
        cell.set_axis_off()
    for number, (name, volumes) in enumerate(rows.items()):
        for column, volume in enumerate(volumes[:columns]):
            where = np.argwhere(volume.label > 0)
            middle = np.rint(where.mean(0)).astype(int) if len(where) else np.array(volume.label.shape) // 2
            for axis in (0, 1):
                cell = axes[2 * number + axis, column]
                cell.imshow(volume.image.take(middle[axis], axis).T, cmap="gray", origin="lower", vmin=0, vmax=1)
                for part, colour in zip(LABELS, ("yellow", "cyan"), strict=True):
                    mask = (volume.label == part).take(middle[axis], axis).T
                    if mask.any() and not mask.all():
                        cell.contour(mask, levels=[0.5], colors=colour, linewidths=0.7)
                cell.set_title(name if column == 0 and axis == 0 else "", fontsize=8, loc="left")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def hippocampus_bench(
    model: DiffusionModel,
    data: Path,
    output: Path,
    samples: int = 48,
    *,
    segmenter_steps: int = 200,
    limit: int | None = None,
    repeats: int = 500,
    **settings: Any,
) -> dict[str, Any]:
    """All figures, written to ``output`` and returned.

    Args:
        model: task ``joint``.
        data: folder with ``images`` and ``labels``.
        output: JSON file; the picture and the segmentation network lie beside it.
        samples: of each kind, unconditional and for held-out labels.
        segmenter_steps: of training.
        limit: use only so many people of either kind.
        repeats: bootstrap draws.
        **settings: of :meth:`DiffusionModel.sample`.
    """
    people = load_people(model, data, limit)
    network = segmenter(people, output.with_name("segmenter.pt"), segmenter_steps)
    free = generate(model, samples, **settings)
    told = generate(model, samples, [v.label for v in people.held_out], **settings)
    figures: dict[str, Any] = {
        "model": model.spec.name,
        "model_sha256": model.hash,
        "settings": model.settings(**settings),
        "people": {"training": len(people.training), "held_out": len(people.held_out)},
        "samples": {"unconditional": len(free), "label_conditional": len(told)},
        "frechet": frechet_table(people, free, repeats),
        "dice": {
            "held_out_people": dice(network, people.held_out),
            "label_conditional": dice(network, told),
            "unconditional": dice(network, free),
            "label_means": dice(network, floors(people.training, len(told))["label means"]),
        },
        "neighbours": neighbours(people, free),
    }
    figures["passes"] = {
        "dice": figures["dice"]["label_conditional"]["mean_of_parts"] >= LEAST_DICE,
        "nearest": {name: space["passes"] for name, space in figures["neighbours"].items()},
        "nearer_ceiling": _nearer_ceiling(figures["frechet"]),
    }
    write_json(output, figures)
    picture({"held out": people.held_out, "their labels": told, "unconditional": free}, output.with_suffix(".png"))
    return figures


def _nearer_ceiling(frechet: dict[str, Any]) -> bool:
    """Whether even the upper end of the model's interval is nearer the ceiling than the best floor, by ratio."""
    floor = min(frechet[name]["value"] for name in FLOORS)
    return bool(frechet["model"]["high"] < np.sqrt(floor * frechet["training people"]["mean_of_draws"]))


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    frechet = figures["frechet"]
    table = Table("set", "Frechet distance to held-out people", "95% interval", title=f"n = {frechet['set_size']} each")
    for name in ("training people", "model", *FLOORS):
        row = frechet[name]
        table.add_row(name, f"{row['value']:.2f}", f"{row['low']:.2f} .. {row['high']:.2f}")
    console.print(table)
    table = Table("images", "anterior", "posterior", "whole", "least whole", title="Dice of a network of real people")
    for name, row in figures["dice"].items():
        table.add_row(name, *(f"{row[k]:.3f}" for k in ("anterior", "posterior", "whole", "least_whole")))
    console.print(table)
    table = Table("space", "set", "median", "5th percentile", title="Distance to the nearest training person")
    for space, row in figures["neighbours"].items():
        for kind in ("samples", "held_out"):
            table.add_row(space, kind, f"{row[kind]['median']:.2f}", f"{row[kind]['p05']:.2f}")
    console.print(table)
    console.print(figures["passes"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--sampler")
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--segmenter-steps", type=int, default=200)
    parser.add_argument("--bootstrap", type=int, default=500)
    parser.add_argument("--limit", type=int, help="use only so many people of either kind, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = hippocampus_bench(
        medgen.load_model(given.model, device="cpu"),
        given.data,
        given.output,
        given.samples,
        segmenter_steps=given.segmenter_steps,
        limit=given.limit,
        repeats=given.bootstrap,
        sampler=given.sampler,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
    )
    show(figures, Console())


if __name__ == "__main__":
    main()
