"""The guard: scans of the model's kind pass, others are told apart by the card's own line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.checks import MedgenError
from medgen.io.findings import Refused
from medgen.models.domain import FIGURES, Domain, Limit
from medgen.restoration.guard import guard, refuse_doubtful, scan_figures

NEGATIVE = "Images with values below 0, such as CT."
DOMAIN = Domain(
    ("MR",),
    "Images that are not MR.",
    (
        Limit("spacing_most", "Slices thicker than those it was trained on.", high=4.5),
        Limit("spacing_most", "Slices thicker than those it was trained on.", high=5.0, severity="refuse"),
        Limit("extent_s", "Fields of view that are not a head's.", low=130, high=200, severity="refuse"),
        Limit("negative", NEGATIVE, high=0.0125),
        Limit("negative", NEGATIVE, high=0.05, severity="refuse"),
        Limit("middle", "Images of another contrast.", low=0.6, high=0.75),
    ),
)


def head(seed: int, size: tuple[int, ...] = (40, 48, 40), spacing: tuple[float, ...] = (4.0, 4.0, 4.0)) -> MetaTensor:
    """A bright ball in a dark box."""
    stream = torch.Generator().manual_seed(seed)
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij"))
    ball = (place.square().sum(0) < 0.6).float()
    values = 300 * ball * (1 + 0.2 * torch.randn(size, generator=stream)) + 5 * torch.rand(size, generator=stream)
    return MetaTensor(values.clamp(min=0)[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))


@pytest.fixture
def domain() -> Domain:
    return DOMAIN


def codes(volume: MetaTensor, domain: Domain, **options: object) -> list[tuple[str, str]]:
    return [(doubt.code, doubt.severity) for doubt in guard(volume, domain, **options)]


def test_scans_of_its_kind_pass(domain: Domain) -> None:
    for seed in range(4, 8):
        assert guard(head(seed), domain, modality="T1w") == []
    assert guard(head(9), domain, modality="MR") == []


def test_the_axes_may_lie_otherwise(domain: Domain) -> None:
    scan = head(5, spacing=(4.0, 4.0, 4.3))
    turned = MetaTensor(scan.as_tensor().permute(0, 3, 1, 2).flip(1), affine=scan.affine[:, [2, 0, 1, 3]])
    turned.affine[:3, 0] *= -1
    names = ["spacing_s", "extent_s", "extent_a"]
    assert scan_figures(turned, names) == scan_figures(scan, names)
    assert guard(turned, domain) == []


def test_ct_is_refused_with_the_cards_line(domain: Domain) -> None:
    ct = head(4)
    ct = MetaTensor(ct.as_tensor() * 3 - 1000, affine=ct.affine)
    found = guard(ct, domain)  # nobody says that it is CT
    assert (found[0].code, found[0].severity) == ("INTENSITIES", "refuse")
    assert NEGATIVE in {doubt.sentence for doubt in found}
    told = guard(ct, domain, modality="CT")
    assert (told[0].code, told[0].severity, told[0].value, told[0].allowed) == ("MODALITY", "refuse", "CT", "MR")
    with pytest.raises(
        Refused, match=r"^EXCLUDED: restore: MODALITY: Images that are not MR\. \(modality CT, allowed MR\)"
    ):
        refuse_doubtful("restore", told)


def test_what_is_said_of_the_modality_is_repeated_only_if_it_is_a_code(domain: Domain) -> None:
    (doubt,) = guard(head(4), domain, modality="Doe^John\n1970")
    assert doubt.value == "another one"


def test_thick_slices_and_a_small_field_of_view(domain: Domain) -> None:
    assert ("SPACING", "refuse") in codes(head(4, (40, 48, 24), (4.0, 4.0, 8.0)), domain)
    assert ("FIELD_OF_VIEW", "refuse") in codes(head(4, (40, 48, 8)), domain)


def test_warnings_leave_the_choice_and_refusals_come_first() -> None:
    domain = Domain(
        limits=(
            Limit("spacing_most", "Thick slices.", high=2.0),
            Limit("extent_s", "Small fields of view.", low=500, severity="refuse"),
            Limit("spacing_most", "Very thick slices.", high=10.0, severity="refuse"),
        )
    )
    found = guard(head(0), domain)
    assert [doubt.severity for doubt in found] == ["refuse", "warn"]
    assert refuse_doubtful("restore", found[1:]) == ("SPACING: Thick slices. (spacing_most 4, allowed at most 2)",)
    (told,) = guard(head(0, spacing=(4.0, 4.0, 20.0)), domain)
    assert told.sentence == "Very thick slices."  # once, by the severer limit


def test_every_figure_is_measured_of_empty_and_noisy_volumes() -> None:
    empty = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.eye(4))
    assert list(scan_figures(empty)) == list(FIGURES)
    assert scan_figures(empty)["zero"] == 1
    noise = torch.randn(1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    figures = scan_figures(MetaTensor(1000 + 10 * noise, affine=torch.eye(4)))
    assert figures["tails"] == pytest.approx(2.9, abs=0.1)
    assert figures["noise"] == pytest.approx(0.0097, abs=0.001)
    assert figures["middle"] == pytest.approx(1000 / 1023, abs=0.005)
    assert figures["background"] == 0


@pytest.mark.parametrize("normal", [lambda x: x / x.max(), lambda x: ((x - x.mean()) / x.std()).clamp(min=0)])
def test_normalised_images_are_told_by_their_unit(normal: Callable[[torch.Tensor], torch.Tensor]) -> None:
    sentence = "Normalised images were not seen."
    domain = Domain(limits=(Limit("bright_end", sentence, low=10.0),))
    scan = head(4)
    assert guard(scan, domain) == []
    (doubt,) = guard(MetaTensor(normal(scan.as_tensor()), affine=scan.affine), domain)
    assert (doubt.code, doubt.severity, doubt.allowed) == ("UNIT", "warn", "at least 10")
    assert doubt.text().startswith(f"UNIT: {sentence} (bright_end ")


def test_a_few_negative_voxels_of_interpolation_are_let_pass(domain: Domain) -> None:
    scan = head(4)
    scan[:, :, :, 0] = -1e-3 * torch.arange(48)  # one slice of forty
    assert [(doubt.figure, doubt.severity) for doubt in guard(scan, domain)] == [("negative", "warn")]


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(MedgenError, match="NaN or infinity"):
        guard(MetaTensor(torch.full((1, 4, 4, 4), np.nan), affine=torch.eye(4)), Domain())
    with pytest.raises(MedgenError, match=r"must have shape \(1, X, Y, Z\)"):
        guard(MetaTensor(torch.zeros(2, 4, 4, 4), affine=torch.eye(4)), Domain())
