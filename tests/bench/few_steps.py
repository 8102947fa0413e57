"""What few evaluations reach: the default sampler against 30 Euler steps of a flow, a student against its teacher.

Run ``python -m tests.bench.few_steps TEACHER [STUDENT] --data DIR -o OUT.json``; DIR holds ``images`` and ``labels`` of
the hippocampus people. Without a student only the sampler is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import medgen
from medgen.diffusion.randomness import derive_seed, generators, randn
from medgen.diffusion.samplers import SAMPLERS, evaluations
from medgen.diffusion.schedules import flow_sigmas, logsnr_sigmas
from medgen.metrics import bootstrap_interval, frechet_distance, standardise
from medgen.models.diffusion_model import DiffusionModel
from medgen.networks.threads import at_most_threads
from tests.bench.brain_truth import write_json
from tests.bench.hippocampus import features, generate, load_people

EULER_STEPS = 30
MOST_EVALUATIONS = 12
MOST_FIDELITY_LOSS = 1.15
LEAST_SPEED_UP = 8.0
RUNS: tuple[tuple[str, int], ...] = (("dpmpp_2m", 8), ("dpmpp_2m", 12), ("unipc", 12), ("ab2", 12), ("heun", 6))


def sampler_errors(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    error: Callable[[Tensor, Tensor], float],
    exact: Tensor | None = None,
    reference_steps: int = 200,
) -> dict[str, float]:
    """Error of samplers at ``sigma = 0`` by name and evaluations; Euler's on the even grid of rectified flow.

    Args:
        denoise: bound to its conditioning.
        x: start at ``sigma_max``.
        sigma_min: last level above 0.
        sigma_max: first level.
        error: of a sample and the exact one.
        exact: the end of the flow; that of ``dpmpp_2m`` in many steps if None.
        reference_steps: how many.
    """
    if exact is None:
        exact = SAMPLERS["dpmpp_2m"](denoise, x, logsnr_sigmas(reference_steps, sigma_min, sigma_max))
    flow = SAMPLERS["euler"](denoise, x, flow_sigmas(EULER_STEPS, sigma_min, sigma_max))
    found = {f"euler on a flow grid, {EULER_STEPS}": error(flow, exact)}
    for name, steps in RUNS:
        made = SAMPLERS[name](denoise, x, logsnr_sigmas(steps, sigma_min, sigma_max))
        found[f"{name}, {evaluations(name, steps)}"] = error(made, exact)
    return found


def model_sampler_errors(model: DiffusionModel, subjects: int = 4) -> dict[str, float]:
    """The same with a trained model, unconditional: root mean square error; the data's deviation is 1."""
    given = model.codec.given_nothing(model.spec.grid.size)
    denoise = model.bound(given, model.settings())
    sampling, totals = model.spec.sampling, []
    with torch.no_grad(), at_most_threads(2, model.device):
        for i in range(subjects):
            x = randn(model.shape(given), generators([derive_seed(i, "sample")])) * sampling.sigma_max
            found = sampler_errors(denoise, x, sampling.sigma_min, sampling.sigma_max, root_mean_square)
            totals.append(found)
    return {name: float(np.mean([found[name] for found in totals])) for name in totals[0]}


def root_mean_square(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def compare_student(
    teacher: DiffusionModel, student: DiffusionModel, data: Path, samples: int = 48, repeats: int = 500
) -> dict[str, Any]:
    """Frechet distance to held-out people and processor seconds a subject, of both at their defaults.

    Args:
        teacher: task ``joint``, hippocampus.
        student: distilled from it.
        data: folder with ``images`` and ``labels``.
        samples: unconditional, of each; at most as many as there are people held out count.
        repeats: bootstrap draws.
    """
    people = load_people(teacher, data)
    sets, seconds = {}, {}
    for name, model in (("teacher", teacher), ("student", student)):
        begin = time.process_time()
        sets[name] = generate(model, samples)
        seconds[name] = (time.process_time() - begin) / samples
    count = min(samples, len(people.held_out))
    real = features(people.training)
    _, held, *made = standardise(real, features(people.held_out), *(features(v) for v in sets.values()))
    frechet = {
        name: bootstrap_interval(frechet_distance, rows[:count], held[:count], repeats=repeats)._asdict()
        for name, rows in zip(sets, made, strict=True)
    }
    ratio = frechet["student"]["value"] / frechet["teacher"]["value"]
    speed_up = seconds["teacher"] / seconds["student"]
    return {
        "set_size": count,
        "frechet": frechet,
        "seconds": seconds,
        "steps": {
            name: m.spec.sampling.num_inference_steps for name, m in (("teacher", teacher), ("student", student))
        },
        "ratio": ratio,
        "speed_up": speed_up,
        "passes": {"fidelity": ratio <= MOST_FIDELITY_LOSS, "speed": speed_up >= LEAST_SPEED_UP},
    }


def default_passes(errors: dict[str, float]) -> bool:
    """Whether the default sampler is as near as 30 Euler steps within ``MOST_EVALUATIONS``."""
    euler = errors[f"euler on a flow grid, {EULER_STEPS}"]
    return errors[f"dpmpp_2m, {MOST_EVALUATIONS}"] <= euler


def show(found: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("sampler, evaluations", "error", title="Error of the flow's end, in deviations of the data")
    for name, value in found["sampler_errors"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    if "student" not in found:
        return
    student = found["student"]
    table = Table(
        "model", "steps", "Frechet distance", "95% interval", "CPU s", title=f"n = {student['set_size']} each"
    )
    for name, row in student["frechet"].items():
        interval = f"{row['low']:.0f} .. {row['high']:.0f}"
        seconds = f"{student['seconds'][name]:.2f}"
        table.add_row(name, str(student["steps"][name]), f"{row['value']:.0f}", interval, seconds)
    console.print(table)
    console.print(f"ratio {student['ratio']:.2f}, {student['speed_up']:.1f} times as fast, {student['passes']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student", nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--subjects", type=int, default=4, help="for the errors of samplers")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    teacher: Any = medgen.load_model(given.teacher, device="cpu")
    found: dict[str, Any] = {
        "teacher": teacher.spec.name,
        "sampler_errors": model_sampler_errors(teacher, given.subjects),
    }
    found["default_passes"] = default_passes(found["sampler_errors"])
    if given.student and given.data:
        student: Any = medgen.load_model(given.student, device="cpu")
        found["student"] = compare_student(teacher, student, given.data, given.samples)
    write_json(given.output, found)
    show(found, Console(width=140))


if __name__ == "__main__":
    main()
