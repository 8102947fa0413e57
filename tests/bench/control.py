"""Whether models of the hippocampus do what they are asked, on real people that they never saw.

Run ``python -m tests.bench.control KIND MODEL [MODEL ...] --data DIR -o OUT.json``: KIND is ``class``, ``attribute``,
``text`` or ``mask``; several models are the same configuration trained from several seeds. Each figure stands beside
its floor (samples asked for nothing, or judged against what others were asked) and its ceiling (real people).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import spearmanr
from torch import nn

import medgen
from medgen.cohort.conditions import subject_conditions
from medgen.metrics import bootstrap_interval, wilson_interval
from medgen.models.controls import null_conditions
from medgen.models.diffusion_model import DiffusionModel
from tests.bench.brain_truth import write_json
from tests.bench.hippocampus import People, Volume, dice, generate, load_people, picture, segmenter

Array = NDArray[np.float64]
SEED = 500_000
LEAST = {"class": 0.85, "attribute": 0.8, "text": 0.85, "mask": 0.80}
# wordings and words that no training prompt has, each with what it asks for
UNSEEN = {
    "size": {
        "small": [
            "tiny hippocampus", "marked hippocampal atrophy", "the hippocampus has lost volume",
            "brain scan showing a diminished hippocampus", "please give me a hippocampus with a low volume",
            "an undersized hippocampus", "hippocampus, far below average in size", "severe volume loss",
        ],
        "large": [
            "huge hippocampus", "no hippocampal atrophy, great volume", "the hippocampus has gained volume",
            "brain scan showing a massive hippocampus", "please give me a hippocampus with a high volume",
            "an oversized hippocampus", "hippocampus, far above average in size", "a bulky hippocampus",
        ],
    },
    "balance": {
        "posterior": [
            "its tail is the greater part", "hippocampus with a prominent tail", "the posterior part prevails",
            "more tail than head", "the head of the hippocampus is short", "the back part outweighs the front",
        ],
        "anterior": [
            "its head is the greater part", "hippocampus with a prominent head", "the anterior part prevails",
            "more head than tail", "the tail of the hippocampus is short", "the front part outweighs the back",
        ],
    },
}  # fmt: skip
SEEN = {
    "size": {
        "small": ["a small hippocampus", "an MRI of a shrunken hippocampus", "hippocampal volume is reduced"],
        "large": ["a large hippocampus", "an MRI of a big hippocampus", "hippocampal volume is enlarged"],
    },
    "balance": {
        "posterior": ["a hippocampus that is mostly posterior", "T1 scan of a hippocampus that is posterior-heavy"],
        "anterior": ["a hippocampus that is mostly anterior", "T1 scan of a hippocampus that is anterior-heavy"],
    },
}  # all that training uses, too
UPPER = {"large", "anterior"}


def volume_ml(label: NDArray[Any]) -> float:
    """Of both parts, at 1 mm."""
    return float((label > 0).sum()) / 1000


def anterior_share(label: NDArray[Any]) -> float:
    """Of the anterior part in both; 0 of nothing."""
    return float((label == 1).sum() / max(1, (label > 0).sum()))


MEASURES: dict[str, Callable[[NDArray[Any]], float]] = {"volume_ml": volume_ml, "anterior_share": anterior_share}


class Judge:
    """What is measured in real and generated people, by a segmentation network of real training people.

    Args:
        people: on the model's grid.
        network: of :func:`tests.bench.hippocampus.segmenter`.
    """

    def __init__(self, people: People, network: nn.Module) -> None:
        self.people = people
        self.network = network
        real = people.training
        self.median = {name: float(np.median([f(v.label) for v in real])) for name, f in MEASURES.items()}
        self.seen_median = {name: float(np.median(self.seen(name, real))) for name in MEASURES}

    def drawn(self, name: str, volumes: Sequence[Volume]) -> Array:
        """By each subject's own label map."""
        return np.array([MEASURES[name](volume.label) for volume in volumes])

    def seen(self, name: str, volumes: Sequence[Volume]) -> Array:
        """By what the network finds in the image."""
        found = []
        for volume in volumes:
            with torch.no_grad():
                label = self.network(torch.from_numpy(volume.image)[None, None]).argmax(1)[0].numpy()
            found.append(MEASURES[name](label))
        return np.array(found)

    def above(self, name: str, volumes: Sequence[Volume], by_image: bool) -> NDArray[np.bool_]:
        """Which are above the training people's median, of labels or of what the network finds in their images."""
        if by_image:
            return self.seen(name, volumes) > self.seen_median[name]
        return self.drawn(name, volumes) > self.median[name]


def sample(
    model: DiffusionModel, asked: Sequence[dict[str, Any] | None], seed: int = SEED, **settings: Any
) -> list[Volume]:
    """One subject for each request; None asks for nothing (all controls left out, not drawn)."""
    made = []
    for number, request in enumerate(asked):
        if request is None:
            known = {key: value[0] for key, value in null_conditions(model.spec.controls).items()}
            plain = model.settings(**{**settings, "guidance_scale": 1.0})
            image, label = model.produce(known, tuple(model.spec.grid.size), seed + number, plain)
        else:
            subject = model.sample(1, seed + number, conditions=request, **settings)[0]
            image, label = subject["image"].as_tensor(), subject["label"].as_tensor()
        if image is None or label is None:
            raise medgen.MedgenError("control bench: the model must make image and label (task joint).")
        made.append(Volume(image.numpy()[0].clip(0, 1.5).astype(np.float32), label.numpy()[0].astype(np.int16)))
    return made


def share(hits: NDArray[np.bool_]) -> dict[str, float]:
    """Share of hits with a 95% interval."""
    low, high = wilson_interval(float(hits.mean()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high}


def rank_correlation(asked: Array, found: Array) -> dict[str, float]:
    """Spearman's correlation with a 95% bootstrap interval over subjects."""
    pairs = np.stack([asked, found], axis=1)

    def statistic(rows: Array) -> float:
        if np.ptp(rows[:, 0]) == 0 or np.ptp(rows[:, 1]) == 0:
            return 0.0
        return float(spearmanr(rows[:, 0], rows[:, 1]).statistic)

    return bootstrap_interval(statistic, pairs, repeats=1000, method="percentile")._asdict()


def class_figures(
    model: DiffusionModel, judge: Judge, count: int, **settings: Any
) -> tuple[dict[str, Any], list[Volume]]:
    """Accuracy of the class ``size``, judged on labels and on images; balanced requests."""
    wanted = ["small", "large"] * (count // 2)
    made = sample(model, [{"size": value} for value in wanted], **settings)
    free = sample(model, [None] * len(wanted), **settings)
    upper = np.array([value in UPPER for value in wanted])
    real = judge.people.held_out
    truth = judge.above("volume_ml", real, by_image=False)
    return {
        "by_label": share(judge.above("volume_ml", made, False) == upper),
        "by_image": share(judge.above("volume_ml", made, True) == upper),
        "floor_by_image": share(judge.above("volume_ml", free, True) == upper),
        "ceiling_by_image": share(judge.above("volume_ml", real, True) == truth),
    }, made


def attribute_figures(
    model: DiffusionModel, judge: Judge, count: int, **settings: Any
) -> tuple[dict[str, Any], list[Volume]]:
    """Rank correlation of what was asked with what was made, both numbers spread independently."""
    ends = {}
    for control in model.spec.controls:
        low, high = np.quantile(control.quantiles, [0.05, 0.95])
        ends[control.name] = (float(low), float(high))
    wanted = [subject_conditions(ends, number) for number in range(count)]
    made = sample(model, list(wanted), **settings)
    free = sample(model, [None] * count, **settings)
    figures: dict[str, Any] = {}
    for name in ends:
        asked = np.array([float(request[name]) for request in wanted])
        drawn, real = judge.drawn(name, made), judge.people.held_out
        figures[name] = {
            "by_label": rank_correlation(asked, drawn),
            "by_image": rank_correlation(asked, judge.seen(name, made)),
            "floor_by_label": rank_correlation(asked, judge.drawn(name, free)),
            "ceiling_by_image": rank_correlation(judge.drawn(name, real), judge.seen(name, real)),
            "mean_absolute_error": float(np.abs(asked - drawn).mean()),
            "mean_absolute_error_of_the_mean": float(np.abs(asked - asked.mean()).mean()),
        }
    return figures, made


def text_figures(
    model: DiffusionModel, judge: Judge, count: int, **settings: Any
) -> tuple[dict[str, Any], list[Volume]]:
    """Share of samples that lie on the side of the training median that the prompt names; balanced prompts."""
    figures: dict[str, Any] = {}
    shown: list[Volume] = []
    for (attribute, values), measure in zip(UNSEEN.items(), ("volume_ml", "anterior_share"), strict=True):
        figures[attribute] = {}
        for kind, prompts in (("unseen", values), ("seen", SEEN[attribute])):
            pairs = [
                (value, prompts[value][i % len(prompts[value])]) for i, value in product(range(count // 2), prompts)
            ]
            made = sample(model, [{"prompt": prompt} for _, prompt in pairs], **settings)
            upper = np.array([value in UPPER for value, _ in pairs])
            hits = judge.above(measure, made, False) == upper
            figures[attribute][kind] = share(hits)
            figures[attribute][f"{kind}_by_image"] = share(judge.above(measure, made, True) == upper)
            if kind == "unseen":
                figures[attribute]["by_prompt"] = _by_prompt([text for _, text in pairs], hits)
                free = sample(model, [None] * len(pairs), **settings)
                figures[attribute]["null_prompt"] = share(judge.above(measure, free, False) == upper)
                shown += made[:6]
    return figures, shown


def _by_prompt(prompts: Sequence[str], hits: NDArray[np.bool_]) -> dict[str, float]:
    """Share of hits of each prompt."""
    return {text: float(hits[[other == text for other in prompts]].mean()) for text in dict.fromkeys(prompts)}


def mask_figures(
    model: DiffusionModel, judge: Judge, count: int, **settings: Any
) -> tuple[dict[str, Any], list[Volume]]:
    """Dice of the network of real people on images made for held-out people's label maps."""
    real = judge.people.held_out[:count]
    made = generate(model, count, [volume.label for volume in real], **settings)
    turned = [Volume(image.image, other.label) for image, other in zip(made, [*made[1:], made[0]], strict=True)]
    return {
        "label_conditional": dice(judge.network, made),
        "ceiling_held_out_people": dice(judge.network, real),
        "floor_label_of_another": dice(judge.network, turned),
    }, made


KINDS: dict[str, Callable[..., tuple[dict[str, Any], list[Volume]]]] = {
    "class": class_figures,
    "attribute": attribute_figures,
    "text": text_figures,
    "mask": mask_figures,
}


def control_bench(
    kind: str,
    models: Sequence[DiffusionModel],
    data: Path,
    output: Path,
    samples: int = 64,
    *,
    segmenter_steps: int = 200,
    limit: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """All figures of one kind, written to ``output`` and returned; a picture lies beside.

    Args:
        kind: one of ``KINDS``.
        models: trained from different seeds.
        data: folder with ``images`` and ``labels``.
        output: JSON file; the segmentation network lies beside.
        samples: of each model.
        segmenter_steps: of training.
        limit: use only so many people of either kind.
        **settings: of :meth:`DiffusionModel.sample`.
    """
    people = load_people(models[0], data, limit)
    judge = Judge(people, segmenter(people, output.with_name("segmenter.pt"), segmenter_steps))
    runs = []
    rows: dict[str, Sequence[Volume]] = {"held-out people": people.held_out}
    for model in models:
        figures, made = KINDS[kind](model, judge, samples, **settings)
        seed = model.spec.training.get("seed")
        runs.append(
            {"model_sha256": model.hash, "training_seed": seed, "settings": model.settings(**settings), **figures}
        )
        rows[f"{model.spec.name}, seed {seed}"] = made
    found = {
        "kind": kind,
        "model": models[0].spec.name,
        "people": {"training": len(people.training), "held_out": len(people.held_out)},
        "samples": samples,
        "target": LEAST[kind],
        "runs": runs,
    }
    write_json(output, found)
    picture(rows, output.with_suffix(".png"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sampler")
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--segmenter-steps", type=int, default=200)
    parser.add_argument("--limit", type=int, help="use only so many people of either kind, for a trial")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = control_bench(
        given.kind,
        [medgen.load_model(model, device="cpu") for model in given.models],
        given.data,
        given.output,
        given.samples,
        segmenter_steps=given.segmenter_steps,
        limit=given.limit,
        sampler=given.sampler,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
    )
    Console().print_json(data=found)


if __name__ == "__main__":
    main()
