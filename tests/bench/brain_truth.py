"""Truth and variety of a label-to-T1 model, beside what can be had without it.

Run ``python -m tests.bench.brain_truth MODEL -o OUT.json``. Floors (a trained regression among them) are kept in the
folder of OUT. Reference: the atlas's 1 mm scan warped and resampled once, as the training targets were.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from medgen.anatomy.labels import TISSUES
from medgen.io.atomic import atomic_path
from medgen.metrics import label_means, paint_labels, variation
from medgen.models.bundled import load_model
from medgen.models.diffusion_model import DiffusionModel
from tests.bench.cases import BRAIN_TISSUES, Array, Case, make_case, population_of, training_seed, unseen_seed
from tests.bench.classifier import patch_auc
from tests.bench.figures import (
    BRAIN_WASSERSTEIN,
    OTHER_WASSERSTEIN,
    SHARPNESS,
    SPECTRUM,
    Figures,
    measure,
)
from tests.bench.floors import NetworkFree, Regression, sample_image, train_regression

VARIETY = (0.5, 1.5)
AUC_GAIN = 0.1
MODEL, NETWORK_FREE, MEANS, REGRESSION = "model", "partial volume + noise", "label means", "regression"


def brain_truth(
    model: DiffusionModel,
    folder: Path,
    subjects: int = 20,
    training_subjects: int = 20,
    regression_steps: int = 400,
    variety_seeds: int = 20,
    classifier_steps: int = 250,
    console: Console | None = None,
) -> dict[str, Any]:
    """All figures of the benchmark as plain values; tables go to ``console``.

    Args:
        model: task ``label_to_image`` with a population as its label source.
        folder: keeps the trained regression between runs.
        subjects: unseen deformations.
        training_subjects: subjects that the floors are fitted to, the first of the model's own training.
        regression_steps: of the regression floor.
        variety_seeds: samples of one label map.
        classifier_steps: of each training of the patch classifier.
        console: where tables go.
    """
    out = console or Console()
    population = population_of(model.spec)
    cases = [make_case(population, unseen_seed(i)) for i in range(subjects)]
    training = [make_case(population, training_seed(model.spec, i)) for i in range(training_subjects)]
    means = label_means([c.image for c in training], [c.groups for c in training], len(TISSUES))
    free = NetworkFree.fit(population, training)
    regression = train_regression(model.spec, training, folder, regression_steps, report=out.log)
    start = time.perf_counter()
    images = {MODEL: [sample_image(model, case, seed) for seed, case in enumerate(cases)]}
    seconds = (time.perf_counter() - start) / subjects
    images[NETWORK_FREE] = [free.image(case, seed) for seed, case in enumerate(cases)]
    images[MEANS] = [paint_labels(case.groups, means) for case in cases]
    images[REGRESSION] = [regression.image(case) for case in cases]
    figures = {name: measure(made, cases, means) for name, made in images.items()}
    real = [case.image for case in cases]
    compared = (MODEL, NETWORK_FREE) if subjects >= 2 else ()
    auc = {name: patch_auc(real, images[name], cases, steps=classifier_steps) for name in compared}
    found = {
        "model": model.spec.name,
        "model_sha256": model.hash,
        "subjects": subjects,
        "seconds_per_volume": seconds,
        "settings": {**model.settings(), "schedule": model.spec.sampling.schedule},
        "label_means": dict(zip(TISSUES, means.tolist(), strict=True)),
        "figures": {name: value.to_dict() for name, value in figures.items()},
        "auc": auc,
        "variety": variety(model, regression, means, cases[0], variety_seeds),
    }
    found["verdicts"] = verdicts(figures, found)
    show(out, figures, found)
    return found


def variety(
    model: DiffusionModel, regression: Regression, means: Array, case: Case, seeds: int
) -> dict[str, dict[str, float]]:
    """Voxel-wise standard deviation over seeds per brain tissue, over the real residual texture's.

    Residual texture: the real image less the regression's prediction (``"residual_regression"``), and less the label
    mean (``"residual_means"``); its standard deviation within the tissue. A regression gives one image: its own is 0.

    Returns:
        Per brain tissue: ``std`` over seeds, both residuals, and ``ratio_regression`` and ``ratio_means``.
    """
    samples = np.stack([sample_image(model, case, 10_000 + seed) for seed in range(seeds)])
    spread = variation(samples, case.groups, TISSUES)
    residuals = {"regression": case.image - regression.image(case), "means": case.image - means[case.groups]}
    found = {}
    for name in (tissue for tissue in BRAIN_TISSUES if tissue in spread):
        stds = {key: float(r[case.within(name)].std()) for key, r in residuals.items()}
        found[name] = {
            "std": spread[name],
            **{f"residual_{key}": std for key, std in stds.items()},
            **{f"ratio_{key}": spread[name] / std for key, std in stds.items()},
        }
    return found


def verdicts(figures: dict[str, Figures], found: dict[str, Any]) -> dict[str, bool]:
    """Each target and whether the model meets it; the regression must fail the variety or the spectrum."""
    met = figures[MODEL].passes()
    if found["auc"]:
        met["auc"] = found["auc"][MODEL] <= found["auc"][NETWORK_FREE] - AUC_GAIN
    met["variety"] = all(VARIETY[0] <= row["ratio_regression"] <= VARIETY[1] for row in found["variety"].values())
    met["regression_fails_spectrum"] = not figures[REGRESSION].passes()["spectrum"]
    return met


def show(console: Console, figures: dict[str, Figures], found: dict[str, Any]) -> None:
    """Three tables and the verdicts."""
    console.print(_summary(figures, found["auc"]))
    console.print(_by_tissue(figures))
    console.print(_variety_table(found["variety"]))
    for name, met in found["verdicts"].items():
        console.print(f"{'met   ' if met else 'NOT MET'} {name}")
    console.print(f"{found['seconds_per_volume']:.1f} s a volume")


def _summary(figures: dict[str, Figures], auc: dict[str, float]) -> Table:
    bands = len(next(iter(figures.values())).spectrum)
    columns = ["Wasserstein brain, mean", "worst", "rest, worst", "sharpness", "order", "AUC"]
    table = Table("image", *columns, *[f"{0.05 * (k + 1):.2f}" for k in range(bands)], title="Against the real scan")
    low, high = SPECTRUM
    targets = [f"<= {BRAIN_WASSERSTEIN}", f"<= {OTHER_WASSERSTEIN}", f"{SHARPNESS[0]}-{SHARPNESS[1]}", "1"]
    table.add_row("target", "", *targets, f"floor - {AUC_GAIN}", *[f"{low}-{high}"] * bands)
    for name, f in figures.items():
        worst, other = (f"{value:.2f} {tissue}" for tissue, value in (f.worst_brain, f.worst_other))
        score = f"{auc[name]:.3f}" if name in auc else ""
        cells = [f"{f.mean_wasserstein:.2f}", worst, other, f"{f.sharpness:.2f}", f"{f.order:.2f}", score]
        table.add_row(name, *cells, *[f"{r:.2f}" for r in f.spectrum])
    return table


def _by_tissue(figures: dict[str, Figures]) -> Table:
    title = "Wasserstein distance over that of the label means: mean of the subjects (all subjects in one histogram)"
    table = Table("tissue", *figures, title=title)
    for tissue in figures[MODEL].wasserstein:
        table.add_row(tissue, *[f"{f.wasserstein[tissue]:.3f} ({f.pooled[tissue]:.3f})" for f in figures.values()])
    return table


def _variety_table(rows: dict[str, dict[str, float]]) -> Table:
    keys = ["std", "residual_regression", "ratio_regression", "residual_means", "ratio_means"]
    titles = ["std over seeds", "real - regression", "ratio", "real - label mean", "ratio", "regression's ratio"]
    table = Table("tissue", *titles, title=f"Variety (target {VARIETY[0]}-{VARIETY[1]})")
    for tissue, row in rows.items():
        table.add_row(tissue, *[f"{row[key]:.3f}" for key in keys], "0")
    return table


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--variety-seeds", type=int, default=20)
    parser.add_argument("--regression-steps", type=int, default=400)
    given = parser.parse_args(arguments)
    found = brain_truth(
        load_model(given.model),
        given.output.parent,
        given.subjects,
        regression_steps=given.regression_steps,
        variety_seeds=given.variety_seeds,
        console=Console(width=200),
    )
    write_json(given.output, found)


if __name__ == "__main__":
    main()
