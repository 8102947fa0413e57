"""Every entry of ``OPERATORS`` enrols itself: adjoint, pseudo-inverse, singular values, batches, types, errors.

``EXAMPLES`` come from the registration of each operator, in 2D and in 3D.
"""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import Tensor

from medgen.checks import MedgenError
from medgen.operators import OPERATORS, Operator, adjoint_error, least_squares, register_operator
from medgen.operators.base import inner

EXAMPLES = [
    pytest.param(operator, id=f"{name}-{dims}D-{number}")
    for name, entry in OPERATORS.items()
    for dims in (2, 3)
    for number, operator in enumerate(entry.examples(dims))
]
LINEAR = [case for case in EXAMPLES if case.values[0].linear]
every = pytest.mark.parametrize("operator", EXAMPLES)
linear = pytest.mark.parametrize("operator", LINEAR)
closed = pytest.mark.parametrize("operator", [case for case in LINEAR if case.values[0].closed])
decomposed = pytest.mark.parametrize("operator", [case for case in LINEAR if case.values[0].decomposed])


def volume(operator: Operator, batch: int = 2, channels: int = 2, seed: int = 1, double: bool = True) -> Tensor:
    """Random, complex where the operator has complex volumes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *operator.size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if operator.domain == "complex":
        x = torch.complex(x, torch.randn(shape, generator=generator, dtype=torch.float64))
    return x if double else x.to(torch.complex64 if x.is_complex() else torch.float32)


def measurement(operator: Operator, seed: int = 2) -> Tensor:
    """Random, of the type of a measurement."""
    y = operator.forward(volume(operator))
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return (
        torch.complex(real, torch.randn(y.shape, generator=generator, dtype=torch.float64)) if y.is_complex() else real
    )


def test_every_operator_has_examples_in_2d_and_3d() -> None:
    for name, entry in OPERATORS.items():
        assert entry.examples(3), name
        assert entry.examples(2) or name == "cone_beam"
        assert all(type(example) is entry.cls for example in entry.examples(3))
        assert entry.cls.name == name


@linear
def test_adjoint(operator: Operator) -> None:
    assert adjoint_error(operator, channels=1) < 1e-14
    assert adjoint_error(operator, channels=3, batch=1, seed=5) < 1e-14


def test_a_wrong_adjoint_is_found() -> None:
    class Wrong(OPERATORS["through_plane"].cls):  # type: ignore[name-defined,misc]
        def _adjoint(self, y: Tensor) -> Tensor:
            found: Tensor = super()._adjoint(y)
            return found * 1.001

    assert adjoint_error(Wrong((4, 6), 2.0)) > 1e-5
    assert adjoint_error(OPERATORS["through_plane"].cls((4, 6), 2.0)) < 1e-14  # type: ignore[call-arg]


@linear
def test_complex_volumes_of_real_matrices_have_the_same_adjoint(operator: Operator) -> None:
    if operator.domain != "any":
        return
    x = torch.complex(volume(operator), volume(operator, seed=3))
    y = torch.complex(measurement(operator), measurement(operator, seed=4))
    torch.testing.assert_close(inner(operator.forward(x), y), inner(x, operator.adjoint(y)))
    assert operator.forward(x.to(torch.complex64)).dtype == torch.complex64


@linear
def test_linear(operator: Operator) -> None:
    a, b = volume(operator, seed=1), volume(operator, seed=2)
    together = operator.forward(2.0 * a - b)
    torch.testing.assert_close(together, 2.0 * operator.forward(a) - operator.forward(b))


@closed
def test_pseudo_inverse(operator: Operator) -> None:
    """The four conditions of Moore and Penrose."""
    x, y = volume(operator), measurement(operator)
    image, back = operator.forward(x), operator.pseudo_inverse(y)
    assert back.shape == x.shape
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(operator.forward(operator.pseudo_inverse(image)), image, **close)
    torch.testing.assert_close(operator.pseudo_inverse(operator.forward(back)), back, rtol=1e-5, atol=1e-5 * _top(back))
    other = measurement(operator, seed=6)
    onto = inner(operator.forward(back), other), inner(y, operator.forward(operator.pseudo_inverse(other)))
    within = inner(operator.pseudo_inverse(image), x), inner(x, operator.pseudo_inverse(image))
    torch.testing.assert_close(*(value.real for value in onto), **close)
    torch.testing.assert_close(*(value.real for value in within), **close)


def _top(x: Tensor) -> float:
    return float(x.abs().max())


@linear
def test_least_squares_tends_to_the_pseudo_inverse(operator: Operator) -> None:
    """Exact data are fitted, whatever the operator; where it is closed the residual of any data is the least one."""
    y = operator.forward(volume(operator, channels=1))
    found = least_squares(operator, y, iterations=60, tolerance=1e-12)
    gap = (operator.forward(found) - y).norm() / y.norm()
    assert float(gap) < 1e-2
    if not operator.closed:
        with pytest.raises(MedgenError, match=r"no pseudo-inverse in closed form. Use medgen.operators.least_sq"):
            operator.pseudo_inverse(y)


@decomposed
def test_singular_value_decomposition(operator: Operator) -> None:
    svd = operator.svd()
    x, y = volume(operator), measurement(operator)
    assert bool((svd.singular_values >= 0).all())
    torch.testing.assert_close(svd.u(svd.singular_values * svd.vh(x)), operator.forward(x))
    torch.testing.assert_close(svd.v(svd.singular_values * svd.uh(y)), operator.adjoint(y))
    torch.testing.assert_close(svd.v(svd.vh(x)), x)
    torch.testing.assert_close(svd.vh(svd.v(x)), x)
    seen = (svd.singular_values > 1e-9 * svd.singular_values.max()).to(x.real.dtype) * x
    torch.testing.assert_close(svd.uh(svd.u(seen)), seen)
    small = svd.vh(volume(operator, double=False))
    assert small.dtype in (torch.float32, torch.complex64)


@linear
def test_what_has_no_decomposition_says_so(operator: Operator) -> None:
    if not operator.decomposed:
        with pytest.raises(MedgenError, match="has no cheap singular value decomposition"):
            operator.svd()


@every
def test_shapes_types_and_rows_alone_as_in_a_batch(operator: Operator) -> None:
    x = volume(operator, batch=3, double=False)
    kept = x.clone()
    state = torch.random.get_rng_state()
    y = operator.forward(x)
    assert y.shape == (3, *operator.measurement_shape(2))
    assert y.dtype in (torch.float32, torch.complex64)
    assert y.device == x.device
    for row in range(3):
        torch.testing.assert_close(operator.forward(x[row : row + 1]), y[row : row + 1], rtol=1e-5, atol=1e-5)
    assert torch.equal(operator.forward(x), y)
    if operator.linear:
        back = operator.adjoint(y)
        assert back.shape == x.shape
        assert back.dtype == x.dtype
        alone = operator.adjoint(y[1:2])
        torch.testing.assert_close(alone, back[1:2], rtol=1e-4, atol=1e-4)
        image = operator.to_image(y)
        assert image.shape == x.shape
        assert bool(torch.isfinite(torch.view_as_real(image) if image.is_complex() else image).all())
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_single_precision_agrees_with_double(operator: Operator) -> None:
    x = volume(operator, channels=1)
    single = operator.forward(x.to(torch.complex64 if x.is_complex() else torch.float32))
    torch.testing.assert_close(
        single.to(torch.complex128), operator.forward(x).to(torch.complex128), rtol=1e-4, atol=1e-4
    )


@linear
def test_gradients_are_adjoints(operator: Operator) -> None:
    x, y = volume(operator).requires_grad_(), measurement(operator)
    (gradient,) = torch.autograd.grad(inner(operator.forward(x), y).real.sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(y))
    y = y.requires_grad_()
    (gradient,) = torch.autograd.grad(inner(operator.adjoint(y), x.detach()).real.sum(), y)
    torch.testing.assert_close(gradient, operator.forward(x.detach()).to(gradient.dtype))
    with torch.inference_mode():
        torch.testing.assert_close(operator.adjoint(y), operator.adjoint(y.detach()))


@every
def test_pickles_and_compares_by_its_parameters(operator: Operator) -> None:
    copy = pickle.loads(pickle.dumps(operator))
    assert copy == operator
    assert hash(copy) == hash(operator)
    assert json.loads(json.dumps(operator.parameters())) == operator.parameters()
    assert operator.parameters()["name"] == type(operator).name
    x = volume(operator, double=False)
    assert torch.equal(copy.forward(x), operator.forward(x))
    others = [case.values[0] for case in EXAMPLES if case.values[0] is not operator]
    assert all(other != operator for other in others)
    assert type(operator).__name__ in repr(operator)


@every
def test_moves_to_a_device_with_all_it_holds(operator: Operator) -> None:
    moved = operator.to("meta")
    assert type(moved) is type(operator)
    if operator.device is None:
        return
    assert moved.device == torch.device("meta")
    assert operator.device == torch.device("cpu")
    with pytest.raises(MedgenError, match=r"must be on the operator's device meta. Got cpu. Use operator.to"):
        moved.forward(volume(operator))


@every
def test_unmeasured_entries_are_zero(operator: Operator) -> None:
    if operator.observed is None:
        return
    y = operator.forward(volume(operator))
    assert not operator.observed.all() or operator.name == "cartesian_kspace"
    assert bool((y[~operator.observed.expand_as(y)] == 0).all())


@every
def test_refuses_what_does_not_fit(operator: Operator) -> None:
    x = volume(operator)
    name = type(operator).__name__
    with pytest.raises(MedgenError, match=rf"^{name}: x must have shape \(B, C, "):
        operator.forward(x[..., :-1])
    with pytest.raises(MedgenError, match=rf"^{name}: x must have shape \(B, C, "):
        operator.forward(x[0])
    with pytest.raises(MedgenError, match=rf"^{name}: x must be float32"):
        operator.forward(torch.zeros(x.shape, dtype=torch.int16))
    if operator.domain == "real":
        with pytest.raises(MedgenError, match=rf"^{name}: x must be float32. Got torch.complex128"):
            operator.forward(x.to(torch.complex128))
    y = operator.forward(x)
    if operator.linear:
        with pytest.raises(MedgenError, match=rf"^{name}: y must have shape \(B, "):
            operator.adjoint(y[..., :-1])
    else:
        with pytest.raises(MedgenError, match=f"^{name}: this operator is not linear and has no adjoint"):
            operator.adjoint(y)


def test_names_are_taken_once() -> None:
    with pytest.raises(MedgenError, match="'blur' is registered already"):
        register_operator("blur", lambda dims: [])(OPERATORS["blur"].cls)
    with pytest.raises(MedgenError, match=r"must be an identifier. Got 'my blur'"):
        register_operator("my blur", lambda dims: [])(OPERATORS["blur"].cls)
