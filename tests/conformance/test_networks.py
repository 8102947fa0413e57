"""What every registered network promises: shapes in 2D and 3D, odd sizes, one channel and several, batches of one,
the same answer twice, a round trip of its weights through safetensors, gradients for all parameters.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from medgen.checks import MedgenError
from medgen.models.diffusion_spec import DIFFUSION_UNETS, DiffusionSpec
from medgen.models.sampling import Sampling
from medgen.models.specification import Grid
from medgen.networks import NETWORKS, build_network, parameter_shapes
from tests.conformance.network_cases import ANY, CASES, FIXED, MULTIPLE, REFUSED, Case, Size, noise

CHANNELS = (1, 3)
ODD = {2: (9, 11), 3: (9, 11, 7)}


def variants(odd: tuple[str, ...] = (ANY, REFUSED, MULTIPLE, FIXED)) -> Any:
    """Every case with every number of axes and channels it can have."""

    def all_of() -> Iterator[Any]:
        for name, case in CASES.items():
            missing = bool(case.needs) and importlib.util.find_spec(case.needs) is None
            marks = [pytest.mark.skipif(missing, reason=f"needs {case.needs}")]
            for dims in case.dims if case.odd in odd else ():
                for channels in CHANNELS:
                    if dims == 3 and channels == 1 and 2 in case.dims:
                        continue  # as in 2D
                    yield pytest.param(name, dims, channels, id=f"{name}-{dims}d-{channels}", marks=marks)

    return pytest.mark.parametrize(("name", "dims", "channels"), list(all_of()))


def size_of(case: Case, dims: int) -> Size:
    """Axes of different length, where there are any."""
    return tuple(case.least + case.multiple * k for k in (0, 1, 0)[:dims])


def odd_size(case: Case, dims: int) -> Size:
    return tuple(n + case.least - 8 for n in ODD[dims])


@functools.lru_cache(maxsize=200)
def built(name: str, dims: int, channels: int, size: Size) -> nn.Module:
    """A network with weights that hide nothing: layers that begin at zero are filled."""
    network = build_network(form(name, dims, channels, size))
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            if not parameter.any():
                parameter.copy_(noise(*parameter.shape, seed=k) * 0.1)
    return network.eval()


def form(name: str, dims: int, channels: int, size: Size) -> dict[str, Any]:
    return {"_target_": name, **CASES[name].arguments(dims, channels, size)}


@torch.no_grad()
def answer(name: str, dims: int, channels: int, batch: int, network: nn.Module | None = None) -> list[Tensor]:
    case = CASES[name]
    size = size_of(case, dims)
    network = network or built(name, dims, channels, size)
    return case.answer(network, case.inputs(network, channels, size, batch))


def check_shapes(case: Case, found: list[Tensor], channels: int, size: Size, batch: int) -> None:
    expected = case.outputs(channels, size, batch)
    assert len(found) == len(expected)
    for tensor, shape in zip(found, expected, strict=True):
        assert len(tensor.shape) == len(shape)
        assert all(wanted in (-1, have) for have, wanted in zip(tensor.shape, shape, strict=True)), tensor.shape
        assert torch.isfinite(tensor).all()


def test_every_registered_network_has_a_case() -> None:
    assert set(CASES) == set(NETWORKS), "add an entry to tests/conformance/network_cases.py"


@variants()
def test_shapes_of_a_batch_of_one_and_of_two(name: str, dims: int, channels: int) -> None:
    for batch in (1, 2):
        found = answer(name, dims, channels, batch)
        check_shapes(CASES[name], found, channels, size_of(CASES[name], dims), batch)


@variants()
def test_answers_the_same_twice_and_alone_as_in_a_batch(name: str, dims: int, channels: int) -> None:
    """In evaluation; and no draw of its own: the global generator is not touched."""
    answer(name, dims, channels, 1)  # builds the network, which draws its weights
    before = torch.random.get_rng_state()
    first, again, alone = (answer(name, dims, channels, batch) for batch in (2, 2, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for together, single in zip(first, alone, strict=True):
        if single.ndim:  # a loss over the batch is another for another batch
            torch.testing.assert_close(together[:1], single, rtol=1e-4, atol=1e-4)


@variants((ANY,))
def test_odd_sizes_have_the_right_output(name: str, dims: int, channels: int) -> None:
    case = CASES[name]
    size = odd_size(case, dims)
    network = built(name, dims, channels, size)
    with torch.no_grad():
        found = case.answer(network, case.inputs(network, channels, size, 1))
    check_shapes(case, found, channels, size, 1)


@variants((REFUSED,))
def test_odd_sizes_are_refused_by_their_multiple(name: str, dims: int, channels: int) -> None:
    case = CASES[name]
    network = built(name, dims, channels, size_of(case, dims))
    with pytest.raises(MedgenError, match=f"multiples? of {case.multiple}"):
        case.answer(network, case.inputs(network, channels, odd_size(case, dims), 1))


@variants((MULTIPLE,))
def test_multiples_that_are_no_powers_have_the_right_output(name: str, dims: int, channels: int) -> None:
    case = CASES[name]
    size = tuple(case.multiple * k for k in (3, 5, 3)[:dims])
    network = built(name, dims, channels, size_of(case, dims))
    with torch.no_grad():
        found = case.answer(network, case.inputs(network, channels, size, 1))
    check_shapes(case, found, channels, size, 1)


@pytest.mark.parametrize("name", [name for name in DIFFUSION_UNETS if CASES[name].odd == MULTIPLE])
def test_specification_says_the_multiple_of_a_diffusion_network(name: str) -> None:
    """Networks of other packages fail at odd sizes in their own words: no model is made that would lead there."""
    dims = max(CASES[name].dims)
    grid, sampling = Grid((1.0,) * dims, odd_size(CASES[name], dims)), Sampling("euler", 2, "logsnr", 0.1, 10.0)
    with pytest.raises(MedgenError, match=r"'grid.size' must be multiples of 2 .*Got \[9, 11"):
        DiffusionSpec(
            name="odd", version="1.0.0", task="image", grid=grid, sampling=sampling, prediction_type="edm",
            network=form(name, dims, 1, grid.size), channel_mean=(0.0,), channel_std=(1.0,),
        )  # fmt: skip


@variants()
def test_weights_survive_safetensors(name: str, dims: int, channels: int) -> None:
    size = size_of(CASES[name], dims)
    network = built(name, dims, channels, size)
    state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    meta = parameter_shapes(form(name, dims, channels, size))
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in meta.items()}
    other = build_network(form(name, dims, channels, size)).eval()
    other.load_state_dict(load(save(state)))
    pairs = zip(answer(name, dims, channels, 1), answer(name, dims, channels, 1, other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@variants()
def test_every_parameter_gets_a_gradient(name: str, dims: int, channels: int) -> None:
    case = CASES[name]
    network = built(name, dims, channels, size_of(case, dims))
    found = case.answer(network, case.inputs(network, channels, size_of(case, dims), 2))
    loss = sum((tensor * noise(*tensor.shape, seed=9)).sum() for tensor in found if tensor.requires_grad)
    assert isinstance(loss, Tensor)
    learnt = {key: value for key, value in network.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(learnt.values()), allow_unused=True)
    missing = [key for key, value in zip(learnt, gradients, strict=True) if value is None]
    assert [key for key in missing if not (case.idle and case.idle in key)] == []
    assert all(torch.isfinite(value).all() for value in gradients if value is not None)
