"""Label-to-contrast synthesis: each step by itself, and the whole on small maps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.anatomy.contrast import (
    PRIORS,
    ContrastParameters,
    ContrastRanges,
    _apply,
    _sampling,
    _texture,
    draw_contrast,
    render_contrast,
    synthesize_contrast,
)
from medgen.anatomy.labels import TISSUES
from medgen.checks import MedgenError


def head(shape: tuple[int, ...] = (24, 28, 20)) -> torch.Tensor:
    """Nested boxes: background, cortex (left and right), white matter, ventricle."""
    label = torch.zeros(1, *shape, dtype=torch.int16)
    for depth, (left, right) in enumerate(((3, 42), (2, 41), (4, 43)), start=1):
        inner = tuple(slice(depth * 3, n - depth * 3) for n in shape)
        label[0][inner] = right
        label[0][(slice(depth * 3, shape[0] // 2), *inner[1:])] = left
    return label


def quiet(**changes: object) -> ContrastRanges:
    """Ranges that leave only the means."""
    base: dict[str, object] = {
        "std": (0, 0), "prior_std_factor": (0, 0), "bias_std": (0, 0), "gamma_std": 0.0, "noise_std": (0, 0),
        "isotropic_probability": 1.0, "isotropic_mm": (0, 0), "partial_volume": (0, 0), "background_probability": 0.0,
    }  # fmt: skip
    return ContrastRanges(**{**base, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(24, 28, 20), (30, 26)])
def test_same_seed_same_bytes_and_range(shape: tuple[int, ...]) -> None:
    label = head(shape)
    first, again, other = (synthesize_contrast(label, seed) for seed in (5, 5, 6))
    assert first.shape == label.shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() < first.max() <= 1


def test_threads_do_not_change_bytes() -> None:
    before = torch.get_num_threads()
    images = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            images.append(synthesize_contrast(head(), 3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*images)


def test_quiet_image_is_the_map_of_means() -> None:
    label = head()
    image = synthesize_contrast(label, 1, ranges=quiet())
    values = {int(i): image[label == i].unique() for i in label.unique()}
    assert all(len(found) == 1 for found in values.values())
    assert values[0] == 0
    assert values[2] == values[41]
    assert len({float(values[i]) for i in (0, 2, 3, 4)}) == 4


def test_left_and_right_share_and_tissues_may_not() -> None:
    generator = np.random.default_rng(0)
    drawn = draw_contrast(generator, (17, 18, 53, 54, 900), replace(quiet(), share_tissues=False))
    means = dict(zip(drawn.ids, drawn.means, strict=True))
    assert means[17] == means[53] != means[18] == means[54]
    assert means[900] not in (means[17], means[18])


@pytest.mark.parametrize("contrast", sorted(PRIORS))
def test_priors_cover_all_tissues_and_order_them(contrast: str) -> None:
    assert set(PRIORS[contrast]) == set(TISSUES) - {"background"}
    label = head()
    image = synthesize_contrast(label, 2, ranges=quiet(contrasts={contrast: 1}, prior_mean_jitter=0.0))
    csf, grey, white = (float(image[label == i].mean()) for i in (4, 3, 2))
    assert (
        (csf < grey < white) if contrast == "t1" else (csf > grey > white if contrast == "t2" else grey > white > csf)
    )


def test_any_ids_work() -> None:
    label = torch.tensor([[-7, 0, 3_000_000], [5, 5, 70_000]])[None]
    image = synthesize_contrast(label, 0, ranges=quiet())
    assert torch.isfinite(image).all()


def test_metatensor_keeps_affine_and_gives_spacing() -> None:
    label = MetaTensor(head(), affine=torch.diag(torch.tensor([-2.0, 1.0, 3.0, 1.0], dtype=torch.float64)))
    image = synthesize_contrast(label, 4)
    assert isinstance(image, MetaTensor)
    assert torch.equal(image.affine, label.affine)
    assert torch.equal(image.as_tensor(), synthesize_contrast(head(), 4, spacing_mm=(2, 1, 3)))


def test_parameters_are_plain_and_render_the_same() -> None:
    label = head()
    parameters = draw_contrast(np.random.default_rng(7), (0, 2, 3, 4, 41, 42, 43), ContrastRanges())
    stored = json.loads(json.dumps(parameters.to_dict()))
    loaded = ContrastParameters(
        **{k: tuple(v) if isinstance(v, list) and k != "bias" else v for k, v in stored.items()}
    )
    assert torch.equal(render_contrast(label, parameters), render_contrast(label, loaded))
    assert torch.equal(render_contrast(label, parameters), synthesize_contrast(label, 7))


def test_thick_slices_blur_one_axis() -> None:
    label = torch.zeros(1, 48, 48, 48, dtype=torch.int16)
    label[:, 16:32, 16:32, 16:32] = 2
    parameters = draw_contrast(np.random.default_rng(0), (0, 2), quiet())
    thick = replace(parameters, spacing_mm=(1.0, 1.0, 6.0), thickness_mm=(1.0, 1.0, 6.0))
    image = render_contrast(label, thick)[0]
    sharp = (image[1:, 24, 24] - image[:-1, 24, 24]).abs().max()
    soft = (image[24, 24, 1:] - image[24, 24, :-1]).abs().max()
    assert sharp == pytest.approx(1)
    assert soft < 0.3


def test_sampling_keeps_constants_and_lines() -> None:
    down, up = _sampling(40, 3.3, 3.0)
    constant = _apply(up, _apply(down, np.ones((40, 5), np.float32), 0), 0)
    np.testing.assert_allclose(constant, 1, atol=1e-5)
    line = np.arange(40, dtype=np.float32)[None].repeat(3, 0)
    np.testing.assert_allclose(_apply(up, _apply(down, line, 1), 1)[:, 6:-6], line[:, 6:-6], atol=1e-3)


def test_texture_has_unit_variance() -> None:
    for sigma in (0.0, 0.6, 2.0):
        field = _texture((64, 64, 64), np.full(3, sigma), np.random.default_rng(1))
        assert abs(field.std() - 1) < 0.08


def test_rician_noise_lifts_the_background() -> None:
    label = head()
    ranges = quiet(noise_std=(0.05, 0.05), masked_probability=0.0)
    means = {}
    for probability in (0.0, 1.0):
        image = synthesize_contrast(label, 1, ranges=replace(ranges, rician_probability=probability))
        means[probability] = float(image[label == 0].mean())
    assert means[1.0] > 1.5 * means[0.0]
    masked = synthesize_contrast(label, 1, ranges=replace(ranges, masked_probability=1.0))
    assert float(masked[label == 0].abs().max()) == 0


def test_bias_field_has_the_drawn_strength() -> None:
    label = torch.ones(1, 32, 32, 32, dtype=torch.int16)
    image = synthesize_contrast(label, 3, ranges=quiet(bias_std=(0.1, 0.1), contrasts={"random": 1}))
    assert float(image.log().std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.zeros(4, 8, 8, 8), r"label must have shape \(1, X, Y\) or \(1, X, Y, Z\). Got \(4, 8, 8, 8\)"),
        (torch.full((1, 8, 8), 0.5), "label must hold whole ids"),
    ],
)
def test_bad_labels(label: torch.Tensor, message: str) -> None:
    with pytest.raises(MedgenError, match=message):
        synthesize_contrast(label, 0)


def test_bad_ranges_and_parameters() -> None:
    with pytest.raises(MedgenError, match="Did you mean 'flair'"):
        ContrastRanges(contrasts={"flare": 1.0})
    with pytest.raises(MedgenError, match="noise_std must be"):
        ContrastRanges(noise_std=(0.2, 0.1))
    with pytest.raises(MedgenError, match=r"spacing_mm must have 3 entries"):
        synthesize_contrast(head(), 0, spacing_mm=(1, 1))
    parameters = draw_contrast(np.random.default_rng(0), (0, 2), ContrastRanges())
    with pytest.raises(MedgenError, match=r"do not hold the ids \[3, 4, 41, 42, 43\]"):
        render_contrast(head(), parameters)
    with pytest.raises(MedgenError, match="must have 3 spatial axes"):
        render_contrast(head((20, 20)), parameters)
