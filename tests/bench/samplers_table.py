"""What each sampler reaches in how many steps, with one trained model.

Run ``python -m tests.bench.samplers_table MODEL -o OUT.json``. DDPM with 1,000 steps runs on the first three volumes.
``--size 64`` saves time: crops about the middle of the brain (the sampler works on any size).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medgen.anatomy.labels import TISSUES
from medgen.diffusion.samplers import evaluations
from medgen.metrics import label_means
from medgen.models.bundled import load_model
from medgen.models.diffusion_model import DiffusionModel
from tests.bench.brain_truth import write_json
from tests.bench.cases import Array, Case, central_window, make_case, population_of, training_seed, unseen_seed
from tests.bench.figures import Figures, measure
from tests.bench.floors import sample_image

GRID: dict[str, tuple[int, ...]] = {
    "ddpm": (10, 20, 40, 100),
    "ddim": (10, 20, 40),
    "euler": (10, 20, 40),
    "heun": (5, 10, 20),
    "dpmpp_2m": (6, 10, 14, 20, 40),
    "dpmpp_2m_sde": (10, 14, 20, 40),
    "unipc": (6, 10, 14, 20),
    "ab2": (10, 14, 20),
}
LONGEST = ("ddpm", 1000)
ALLOWED_SHARE = 1 / 25


def samplers_table(
    model: DiffusionModel,
    subjects: int = 3,
    size: int | None = None,
    grid: dict[str, tuple[int, ...]] | None = None,
    longest_subjects: int = 3,
    console: Console | None = None,
) -> dict[str, Any]:
    """Figures of every sampler and number of steps on the same volumes and seeds.

    Args:
        model: task ``label_to_image`` with a population as its label source.
        subjects: unseen deformations.
        size: edge of the crops in voxels; None: whole volumes.
        grid: sampler to numbers of steps; ``GRID`` by default.
        longest_subjects: volumes for DDPM-1000; 0 leaves it out.
        console: where the table goes.
    """
    out = console or Console()
    population = population_of(model.spec)
    cases = [make_case(population, unseen_seed(i)) for i in range(subjects)]
    if size is not None:
        cases = [case.crop(central_window(case, size)) for case in cases]
    training = [make_case(population, training_seed(model.spec, i)) for i in range(6)]
    means = label_means([c.image for c in training], [c.groups for c in training], len(TISSUES))
    chosen: dict[str, tuple[int, ...]] = GRID if grid is None else grid
    runs = [(name, steps, cases) for name, counts in chosen.items() for steps in counts]
    if longest_subjects:
        runs.append((*LONGEST, cases[:longest_subjects]))
    rows = []
    for name, steps, some in runs:
        rows.append(_row(model, name, steps, some, means))
        out.log(f"{name} {steps}: {rows[-1]['seconds']:.1f} s a volume")
    found: dict[str, Any] = {"model": model.spec.name, "size": size, "rows": rows, "verdicts": _verdicts(model, rows)}
    out.print(_table(rows))
    for name, met in found["verdicts"].items():
        out.print(f"{'met   ' if met else 'NOT MET'} {name}")
    return found


def _row(model: DiffusionModel, sampler: str, steps: int, cases: Sequence[Case], means: Array) -> dict[str, Any]:
    start, used = time.perf_counter(), time.process_time()
    images = [sample_image(model, case, k, sampler=sampler, num_inference_steps=steps) for k, case in enumerate(cases)]
    count = len(cases)
    figures: Figures = measure(images, cases, means)
    return {
        "sampler": sampler,
        "steps": steps,
        "evaluations": evaluations(sampler, steps),
        "subjects": count,
        "seconds": (time.perf_counter() - start) / count,
        "processor_seconds": (time.process_time() - used) / count,
        **figures.to_dict(),
    }


def _verdicts(model: DiffusionModel, rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """The default against DDPM-1000: at most 1/25 of its evaluations, and every target met that it meets."""
    default = model.spec.sampling
    own = evaluations(default.sampler, default.num_inference_steps)
    met = {"evaluations": own <= ALLOWED_SHARE * evaluations(*LONGEST)}
    mine = [r for r in rows if (r["sampler"], r["steps"]) == (default.sampler, default.num_inference_steps)]
    longest = [r for r in rows if (r["sampler"], r["steps"]) == LONGEST]
    if mine and longest:
        met["same figures"] = all(mine[0]["passes"][name] for name, ok in longest[0]["passes"].items() if ok)
    return met


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ["evaluations", "Wasserstein brain", "worst tissue", "worst band", "sharpness", "s / volume", "CPU s"]
    table = Table("sampler", "steps", *columns, title=f"Samplers, {rows[0]['subjects']} unseen subjects")
    for row in rows:
        worst = "{1:.2f} {0}".format(*row["worst_brain"])
        cells = [f"{row['mean_wasserstein_brain']:.2f}", worst, f"{row['worst_band']:.2f}", f"{row['sharpness']:.2f}"]
        cost = [f"{row['seconds']:.1f}", f"{row['processor_seconds']:.1f}"]
        table.add_row(row["sampler"], str(row["steps"]), str(row["evaluations"]), *cells, *cost)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--size", type=int, help="edge of crops in voxels; whole volumes by default")
    parser.add_argument("--longest-subjects", type=int, default=3)
    given = parser.parse_args(arguments)
    found = samplers_table(
        load_model(given.model),
        given.subjects,
        given.size,
        longest_subjects=given.longest_subjects,
        console=Console(width=160),
    )
    write_json(given.output, found)


if __name__ == "__main__":
    main()
