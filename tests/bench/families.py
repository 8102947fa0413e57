"""One table over all families of models trained on the hippocampus people, each beside its floors and its ceiling.

Run ``python -m tests.bench.families MODEL... --data DIR --out TABLE.md``; a model is a folder or a bundled name, DIR
holds ``images`` and ``labels``. Beside TABLE.md go its figures as JSON and two pictures a model: samples beside real
people, and the samples nearest to a training person beside that person. The judging networks and the figures of each
model are kept in ``--cache`` and used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import medgen
from medgen.checks import MedgenError
from medgen.diffusion.randomness import derive_seed
from medgen.io.atomic import atomic_path
from medgen.io.configs import read_yaml
from medgen.io.contact_sheet import comparison_sheet
from medgen.metrics import bootstrap_interval, frechet_distance, precision_recall_intervals, standardise
from medgen.models.base import Model
from medgen.networks import build_network
from tests.bench.brain_truth import write_json
from tests.bench.judge import FLOORS, Judge, floors, texture, train_judge
from tests.bench.memorisation import Gallery, nearest_sheet, planted
from tests.bench.people import People, Volume, as_meta, load_people, volume_of

Array = NDArray[np.float64]
FREE_SEED, TOLD_SEED = 1, 100_000
NEIGHBOUR = 5
UNTRAINED_STEPS = 4
SPACES = ("texture", "network")
FORMAT = 1
CEILING, COPIES = "training people", "copies of training people"


@dataclass(frozen=True)
class Row:
    """What is known of one model, floor or ceiling; plain values throughout.

    Args:
        name: of the model.
        kind: ``model``, ``untrained``, ``floor`` or ``ceiling``.
        grid: of the people it is compared with.
        family: and task.
        parameters: of all networks.
        minutes: of training, None where not recorded.
        seconds: of processor time a sample, one thread.
        frechet: by space, value and interval.
        shares: precision, recall, density and coverage, each value and interval.
        dice: of the judge with the label given (``told``), or generated along (``made``).
        nearest: see :meth:`tests.bench.memorisation.Gallery.compare`.
        settings: of sampling.
    """

    name: str
    kind: str
    grid: str
    family: str = ""
    parameters: int = 0
    minutes: float | None = None
    seconds: float | None = None
    frechet: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    nearest: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class Comparison:
    """Real people of one grid and how sets are measured against them.

    Args:
        people: see :func:`load_people`.
        judge: trained on them.
        count: subjects of each set that is compared: distances and shares depend on it.
        repeats: bootstrap draws.
    """

    def __init__(self, people: People, judge: Judge, count: int, repeats: int = 200) -> None:
        self.people = people
        self.judge = judge
        self.count = min(count, len(people.held_out), len(people.training))
        self.repeats = repeats
        self.gallery = Gallery(people, judge)
        chosen = np.random.default_rng(1).permutation(len(people.training))[: self.count]
        self.ceiling = [people.training[i] for i in chosen]
        held_out = people.held_out[: self.count]
        self._spaces = {name: (of(people.training), of(held_out)) for name, of in self._features().items()}

    def _features(self) -> dict[str, Any]:
        return {"texture": texture, "network": self.judge.features}

    def measure(self, volumes: Sequence[Volume]) -> dict[str, Any]:
        """Frechet distances and shares of the first ``count`` volumes against as many held-out people."""
        frechet, shares = {}, {}
        for name, of in self._features().items():
            _, held_out, made = standardise(*self._spaces[name], of(volumes[: self.count]))
            frechet[name] = list(bootstrap_interval(frechet_distance, made, held_out, repeats=self.repeats))
            if name == "network":
                found = precision_recall_intervals(held_out, made, k=NEIGHBOUR, repeats=self.repeats)
                shares = {key: list(interval) for key, interval in found._asdict().items()}
        return {"frechet": frechet, "shares": shares, "nearest": self.gallery.compare(volumes)}

    def references(self) -> list[Row]:
        """Ceiling, floors and planted copies."""
        held_out = {"told": self.judge.dice(self.people.held_out)}
        found = self.measure(self.ceiling)
        found["nearest"] = self.gallery.compare(self.people.held_out)  # of themselves it would be 0
        rows = [Row(CEILING, "ceiling", self.people.name, dice=held_out, **found)]
        for name, volumes in floors(self.people.training, self.count).items():
            dice = {"told": self.judge.dice(volumes)}
            rows.append(Row(name, "floor", self.people.name, dice=dice, **self.measure(volumes)))
        copies = planted(self.people, self.count)
        return [*rows, Row(COPIES, "floor", self.people.name, **self.measure(copies))]


def free_samples(model: Model[Any], people: People, count: int, **settings: Any) -> list[Volume]:
    """Samples as the model draws them; for labels of training people where it needs one."""
    if model.spec.task == "label_to_image":
        return told_samples(model, people.training, count, FREE_SEED, **settings)
    return [_as_volume(subject) for subject in model.sample(count, FREE_SEED, **settings)]


def told_samples(
    model: Model[Any], people: Sequence[Volume], count: int, seed: int = TOLD_SEED, **settings: Any
) -> list[Volume]:
    """One sample for the label of each of the first people."""
    found = []
    for i, person in enumerate(people[:count]):
        label = as_meta(person, model.spec.grid)["label"]
        found.append(_as_volume(model.sample(1, seed + i, label=label, **settings)[0]))
    return found


def takes_label(model: Model[Any]) -> bool:
    """Whether a sample can be made for a given label."""
    return bool(getattr(model.spec, "told_label", model.spec.task == "label_to_image"))


def _as_volume(subject: dict[str, Any]) -> Volume:
    return volume_of(subject["image"], subject.get("label"))


def untrained(model: Model[Any], seed: int = 0) -> Model[Any]:
    """The same model with the weights it may have begun with."""
    networks = {}
    for name, form in model.spec.networks().items():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "untrained", name))
            networks[name] = build_network(form, model.spec.name).to(model.device).eval()
    return type(model)(model.spec, networks, model.device)


def training_minutes(path: Path) -> float | None:
    """Minutes of training by the records of the run and of the stages before it; None where there are none."""
    total, folder = 0.0, path.parent
    while (record := folder / "run.json").is_file():
        total += float(json.loads(record.read_text(encoding="utf-8"))["minutes"])
        folder = folder / "first_stage"
    return total or None


def measure_model(model: Model[Any], comparison: Comparison, **settings: Any) -> tuple[list[Row], list[Volume]]:
    """The rows of a model and of its untrained self, and samples to look at."""
    people, count, spec = comparison.people, comparison.count, model.spec
    start = time.process_time()
    free = free_samples(model, people, count, **settings)
    seconds = (time.process_time() - start) / len(free)
    dice, shown = {}, free
    if takes_label(model):
        shown = told_samples(model, people.held_out, count, **settings)
        dice["told"] = comparison.judge.dice(shown)
    if spec.makes_label and all(volume.label is not None for volume in free):
        dice["made"] = comparison.judge.dice(free)
    about: dict[str, Any] = {
        "family": f"{spec.family}, {spec.task}",
        "parameters": sum(p.numel() for network in model.networks.values() for p in network.parameters()),
    }
    row = Row(
        spec.name,
        "model",
        people.name,
        seconds=seconds,
        dice=dice,
        settings=model.settings(**settings),
        **about,
        **comparison.measure(free),
    )
    return [row, _untrained_row(model, comparison, about, settings)], [*shown, *free] if shown is not free else free


def _untrained_row(model: Model[Any], comparison: Comparison, about: dict[str, Any], settings: dict[str, Any]) -> Row:
    fresh = untrained(model)
    if "num_inference_steps" in fresh.settings():
        settings = {**settings, "num_inference_steps": UNTRAINED_STEPS}
    free = free_samples(fresh, comparison.people, comparison.count, **settings)
    dice = {}
    if takes_label(fresh):
        told = told_samples(fresh, comparison.people.held_out, comparison.count, **settings)
        dice["told"] = comparison.judge.dice(told)
    name = f"{model.spec.name}, untrained"
    return Row(name, "untrained", comparison.people.name, dice=dice, **about, **comparison.measure(free))


def verdict(row: Row, rows: Iterable[Row]) -> dict[str, Any]:
    """Where a model stands between its floors and its ceiling.

    Returns:
        For each space ``way``: 0 at the nearest floor's Frechet distance, 1 at the ceiling's, in logarithms; and
        ``clear``: in both spaces the interval of the model lies below those of all floors.
    """
    others = [other for other in rows if other.grid == row.grid]
    ceiling = next(other for other in others if other.kind == "ceiling")
    below = [o for o in others if o.name in FLOORS or (o.kind == "untrained" and o.name.startswith(f"{row.name},"))]
    way, clear = {}, True
    for space in SPACES:
        floor = min(other.frechet[space][0] for other in below)
        top, own = ceiling.frechet[space][0], row.frechet[space]
        way[space] = float((np.log(floor) - np.log(max(own[0], 1e-9))) / (np.log(floor) - np.log(top)))
        clear &= own[2] < min(other.frechet[space][1] for other in below)
    return {"way": way, "clear": bool(clear)}


HEADINGS = (
    "model", "family, task", "parameters", "training, min", "sampling, s", "Frechet texture", "Frechet network",
    "precision", "recall", "density", "coverage", "Dice", "nearest: voxels, network", "copies", "way to ceiling",
)  # fmt: skip
NOTES = """\
All sets have {count} subjects, compared with {count} held-out people; brackets: 95% bootstrap intervals over subjects.
Frechet distance: *texture*, of radiomics-like features of the image; *network*, of the deepest features of a
segmentation network trained on real training people; both in units of the training people's standard deviation.
Precision, recall, density, coverage: network features, {neighbour} neighbours. Dice: of that network with the label
given (t) or generated along (g), mean of both parts / whole. Nearest: median distance to the nearest training person
over that of held-out people. Copies: share of samples nearer than any held-out person, in voxels. Way: 0 at the best
floor's Frechet distance (its own untrained network among them), 1 at the ceiling's, in logarithms, texture / network;
* = both intervals lie below those of all floors. Sampling: processor seconds, one thread; untrained networks take
{steps} steps.
"""


def markdown(rows: Sequence[Row], count: int) -> str:
    """The table, one part a grid."""
    lines = [
        "# Families on the hippocampus people",
        "",
        NOTES.format(count=count, neighbour=NEIGHBOUR, steps=UNTRAINED_STEPS),
    ]
    for grid in sorted({row.grid for row in rows}, reverse=True):
        own = [row for row in rows if row.grid == grid]
        order = {"ceiling": 0, "model": 1, "untrained": 2, "floor": 3}
        lines += [f"## {grid}", "", f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
        lines += [f"| {' | '.join(_cells(row, rows))} |" for row in sorted(own, key=lambda row: order[row.kind])]
        lines.append("")
    return "\n".join(lines)


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    near = [row.nearest[space] for space in ("voxels", "network")]
    way = ""
    if row.kind == "model":
        found = verdict(row, rows)
        way = " / ".join(f"{found['way'][space]:.2f}" for space in SPACES) + (" *" if found["clear"] else "")
    return [
        row.name,
        row.family,
        f"{row.parameters:,}" if row.parameters else "",
        "" if row.minutes is None else f"{row.minutes:.1f}",
        "" if row.seconds is None else f"{row.seconds:.2f}",
        *(_interval(row.frechet[space], 0) for space in SPACES),
        *(_interval(row.shares[name], 2) for name in ("precision", "recall", "density", "coverage")),
        "; ".join(f"{key[0].replace('m', 'g')} {d['parts']:.2f} / {d['whole']:.2f}" for key, d in row.dice.items()),
        ", ".join(f"{space['ratio']:.2f}" for space in near),
        f"{near[0]['nearer']:.0%}",
        way,
    ]


def _interval(values: Sequence[float], digits: int) -> str:
    value, low, high = (f"{max(0.0, x):.{digits}f}" for x in values)
    return f"{value} ({low}-{high})"


def families_bench(
    paths: Sequence[str],
    data: Path,
    out: Path,
    cache: Path,
    count: int = 32,
    *,
    plane: str | None = None,
    limit: int | None = None,
    judge_steps: int | None = None,
    repeats: int = 200,
    console: Console | None = None,
    **settings: Any,
) -> list[Row]:
    """All rows; table, figures and pictures are written.

    Args:
        paths: folders of models, or bundled names.
        data: folder with ``images`` and ``labels``.
        out: a ``.md`` file; figures and pictures lie beside it.
        cache: keeps judging networks and figures.
        count: samples of each kind.
        plane: of the slices of two-dimensional models; by default what their run's configuration says.
        limit: use only so many people of either kind, for a trial.
        judge_steps: of training of the judging network.
        repeats: bootstrap draws.
        console: where progress goes.
        **settings: of :meth:`Model.sample`.
    """
    say = (console or Console(stderr=True)).log
    comparisons: dict[str, Comparison] = {}
    rows: list[Row] = []
    for path in paths:
        model = medgen.load_model(path, device="cpu")
        slices = (plane or plane_of(Path(path))) if model.spec.spatial_dims == 2 else ""
        grid = f"{asdict(model.spec.grid)} {slices}"
        if grid not in comparisons:
            people = load_people(data, model.spec.grid, slices, limit)
            comparisons[grid] = Comparison(people, train_judge(people, cache, judge_steps), count, repeats)
            rows += _kept(cache, ["references", comparisons[grid], limit], comparisons[grid].references)
            say(f"{people.name}: references")
        comparison = comparisons[grid]
        own = out.parent / f"{out.stem}_{model.spec.name}"

        def measured(model: Any = model, comparison: Comparison = comparison, own: Path = own) -> list[Row]:
            found, samples = measure_model(model, comparison, **settings)
            pictures(samples, comparison, own)
            return found

        try:
            found = _kept(cache, [model.hash, comparison, limit, settings], measured)
        except MedgenError as error:  # what an autoencoder, a translator or an inpainter says
            say(f"{path}: left out: {error}")
            continue
        rows += [found[0] if (minutes := training_minutes(Path(path))) is None else replace(found[0], minutes=minutes)]
        rows += found[1:]
        say(f"{path}: Frechet {found[0].frechet['texture'][0]:.0f} / {found[0].frechet['network'][0]:.0f}")
        write_json(out.with_suffix(".json"), {"rows": [asdict(row) for row in rows]})
        with atomic_path(out) as temporary:
            temporary.write_text(markdown(rows, count), encoding="utf-8")
    return rows


def pictures(samples: Sequence[Volume], comparison: Comparison, path: Path) -> None:
    """Samples beside real people, and the nearest samples beside training people."""
    people, count = comparison.people, comparison.count
    sets = {"held out": people.held_out, "synthetic": samples[:count], "synthetic, drawn freely": samples[count:]}
    shown = {name: [as_meta(v, people.grid) for v in volumes[:6]] for name, volumes in sets.items() if len(volumes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    comparison_sheet(shown, path.with_name(f"{path.name}.png"))
    nearest_sheet(samples, people, comparison.gallery, path.with_name(f"{path.name}_nearest.png"))


def plane_of(path: Path) -> str:
    """The plane of the slices that a model was trained on, from the configuration of its run.

    Raises:
        MedgenError: it does not say.
    """
    file = path.parent / "config.yaml"
    slices = (read_yaml(file.read_text(encoding="utf-8")) or {}).get("slices") if file.is_file() else None
    if not slices:
        raise MedgenError(f"bench: '{file}' does not say which slices the model was trained on. Give --plane.")
    return str(slices["plane"])


def _kept(cache: Path, key: Sequence[Any], make: Any) -> list[Row]:
    """Rows from the cache, else made and kept."""
    parts = [(part.judge.key, part.count, part.repeats) if isinstance(part, Comparison) else part for part in key]
    name = hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache / f"rows-{name}.json"
    if path.is_file():
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    rows: list[Row] = make()
    write_json(path, {"rows": [asdict(row) for row in rows]})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("families.md"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "medgen-bench")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--plane", choices=("axial", "coronal", "sagittal", "any"))
    parser.add_argument("--sampler")
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--limit", type=int, help="use only so many people of either kind, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = {name: getattr(given, name) for name in ("sampler", "num_inference_steps", "guidance_scale")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        families_bench(
            given.models,
            given.data,
            given.out,
            given.cache,
            given.samples,
            plane=given.plane,
            limit=given.limit,
            repeats=given.bootstrap,
            **{name: value for name, value in options.items() if value is not None},
        )
    print(given.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
