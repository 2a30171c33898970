"""Operators against dense float64 matrices."""

import pytest
import torch
from curvature_cases import MODELS, Matrix, close, dense, dense_hessian, flat, make
from torch import nn

from warmfree.measure.curvature import (
    DifferenceHessian,
    GaussNewton,
    Hessian,
    NotTwiceDifferentiableError,
    Preconditioned,
    adam_preconditioner,
    blocks,
    lanczos,
    twice_differentiable,
)
from warmfree.measure.curvature.gradient import Gradient


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_how_the_gradient_changes(name):
    case = make(name)
    torch.testing.assert_close(dense_hessian(name), case.hessian_by_differences(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep_graph", [True, False])
def test_hessian_products_are_the_dense_ones_and_leave_gradients_alone(name, keep_graph):
    case, reference = make(name), dense_hessian(name)
    with twice_differentiable(case.model):
        operator = Hessian(case.loss, case.parameters, keep_graph=keep_graph)
        for _ in range(2):
            vectors = [torch.randn_like(parameter) for parameter in case.parameters]
            torch.testing.assert_close(
                flat(operator(vectors)), reference @ flat(vectors), rtol=1e-9, atol=1e-10
            )
    assert all(parameter.grad is None for parameter in case.parameters)


@pytest.mark.parametrize("name", MODELS)
def test_top_eigenvalues_of_hessian_and_gauss_newton_are_the_dense_ones(name):
    case = make(name)
    size = len(case.flat())
    with twice_differentiable(case.model):
        hessian = lanczos(Hessian(case.loss, case.parameters), count=2, tolerance=1e-9, max_products=size)
        gauss_newton = lanczos(
            GaussNewton(case.outputs, case.loss_of, case.parameters), tolerance=1e-9, max_products=size
        )
    expected = torch.linalg.eigvalsh(dense_hessian(name))
    close(hessian.values, expected[-2:].flip(0))
    close(gauss_newton.values, torch.linalg.eigvalsh(case.dense_gauss_newton())[-1:])
    assert hessian.converged
    assert gauss_newton.converged


@pytest.mark.parametrize("name", MODELS)
def test_the_preconditioned_eigenvalue_is_that_of_the_dense_product(name):
    case = make(name)
    optimizer = torch.optim.Adam(case.parameters, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        case.loss().backward()
        optimizer.step()
    divisors = adam_preconditioner(optimizer, case.parameters)
    # Not symmetric, as in the paper's code; same eigenvalues.
    product = case.dense_hessian() / flat(divisors)[:, None]
    expected = torch.linalg.eigvals(product).real.max()
    with twice_differentiable(case.model):
        operator = Preconditioned(Hessian(case.loss, case.parameters), divisors)
        found = lanczos(operator, tolerance=1e-9, max_products=len(product))
    close(found.values, [expected])


def test_gauss_newton_is_the_hessian_where_the_model_is_linear_and_positive_elsewhere():
    case = make("mlp")
    case.model = nn.Linear(3, 2).double()
    torch.testing.assert_close(
        dense(GaussNewton(case.outputs, case.loss_of, case.parameters)), case.dense_hessian()
    )
    case = make("convnet")
    eigenvalues = torch.linalg.eigvalsh(dense(GaussNewton(case.outputs, case.loss_of, case.parameters)))
    assert eigenvalues.min() > -1e-12 * eigenvalues.max()


def test_several_batches_give_the_weighted_mean():
    case, weights = make("mlp"), [3, 7]
    whole = case.inputs, case.targets
    parts = [(slice(0, 3), 3), (slice(3, 10), 7)]

    def loss_of(rows):
        return nn.functional.mse_loss(case.model(whole[0][rows]), whole[1][rows])

    losses = [(lambda rows=rows: loss_of(rows), weight) for rows, weight in parts]
    assert [weight for _, weight in losses] == weights
    for make_operator in (Hessian, lambda *given: Hessian(*given, keep_graph=False)):
        torch.testing.assert_close(dense(make_operator(losses, case.parameters)), case.dense_hessian())
    expected = torch.autograd.grad(case.loss(), case.parameters)
    torch.testing.assert_close(Gradient(losses, case.parameters)(), list(expected))


def test_unused_frozen_and_tied_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight  # tied
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.frozen(self.second(self.first(x).tanh()).tanh())

    case = make("mlp")
    case.model, case.inputs, case.targets = (
        Model().double(),
        torch.randn(4, 3).double(),
        torch.randn(4, 3).double(),
    )
    assert [tuple(parameter.shape) for parameter in case.parameters] == [(2,), (3, 3)]
    reference = case.dense_hessian()
    assert reference[:2].abs().max() == 0
    for operator in (
        Hessian(case.loss, case.parameters),
        Hessian(case.loss, case.parameters, keep_graph=False),
        DifferenceHessian(case.loss, case.parameters),
    ):
        torch.testing.assert_close(dense(operator), reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        dense(GaussNewton(case.outputs, case.loss_of, case.parameters)), case.dense_gauss_newton()
    )


def test_blocks_of_a_model_have_the_blocks_of_the_hessian():
    case = make("gpt")
    grouped = blocks(case.model)
    assert list(grouped) == ["tokens", "positions", "blocks.0", "blocks.1", "norm"]
    assert sum(map(len, grouped.values())) == len(case.parameters)
    reference, begin = dense_hessian("gpt"), 0
    for parameters in grouped.values():
        end = begin + sum(parameter.numel() for parameter in parameters)
        with twice_differentiable(case.model):
            found = lanczos(Hessian(case.loss, parameters), tolerance=1e-9, max_products=end - begin)
        close(found.values, torch.linalg.eigvalsh(reference[begin:end, begin:end])[-1:])
        begin = end


def test_a_loss_that_is_linear_or_constant_in_the_parameters_has_no_curvature():
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    for loss in (lambda: weight.sum(), lambda: weight.sum() + 0 * other.square().sum()):
        for kind in (Hessian, DifferenceHessian):
            (product, rest) = kind(loss, [weight, other])([torch.ones(3), torch.ones(2)])
            assert product.abs().max() == 0
            assert rest.abs().max() == 0
    operator = GaussNewton(lambda: 2 * weight, lambda outputs: outputs.sum(), [weight])
    assert operator([torch.ones(3)])[0].abs().max() == 0


def test_what_does_not_move_has_zero_rows():
    matrix = torch.randn(7, 7).double()
    operator = Matrix(matrix + matrix.T)
    divisors = [torch.full_like(parameter, 4.0) for parameter in operator.parameters]
    divisors[1][-1] = torch.inf
    found = dense(Preconditioned(operator, divisors))
    torch.testing.assert_close(found[:6, :6], (matrix + matrix.T)[:6, :6] / 4)
    assert found[6].abs().max() == 0
    assert found[:, 6].abs().max() == 0


@pytest.mark.parametrize("name", MODELS)
def test_differences_come_close_in_float64(name):
    case, reference = make(name), dense_hessian(name)
    operator = DifferenceHessian(case.loss, case.parameters)
    for _ in range(3):
        vectors = [torch.randn_like(parameter) for parameter in case.parameters]
        expected = reference @ flat(vectors)
        error = torch.linalg.vector_norm(flat(operator(vectors)) - expected)
        assert error <= 1e-6 * torch.linalg.vector_norm(expected)


def test_differences_come_close_in_float32_in_flat_and_in_sharp_directions():
    case = make("gpt")
    values, vectors = torch.linalg.eigh(dense_hessian("gpt"))
    case.model.float()
    operator = DifferenceHessian(case.loss, case.parameters)
    for index in (-1, -2, 0, -10):
        pieces = vectors[:, index].split([parameter.numel() for parameter in case.parameters])
        direction = [
            piece.view(p.shape).float() * 1e3 for piece, p in zip(pieces, case.parameters, strict=True)
        ]
        expected = 1e3 * values[index] * vectors[:, index]
        error = torch.linalg.vector_norm(flat(operator(direction)).double() - expected)
        assert error <= 5e-3 * torch.linalg.vector_norm(expected)


def test_differences_know_in_which_precision_the_loss_is_computed():
    case = make("gpt")
    values, vectors = torch.linalg.eigh(dense_hessian("gpt"))
    pieces = vectors[:, -1].split([parameter.numel() for parameter in case.parameters])
    direction = [piece.view(p.shape) for piece, p in zip(pieces, case.parameters, strict=True)]
    case.model.float()

    def rough():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.loss()

    for loss, error in ((case.loss, 5e-3), (rough, 0.15)):
        products = DifferenceHessian(loss, case.parameters)([piece.float() for piece in direction])
        quotient = (flat(products).double() @ flat(direction)).item()
        assert quotient == pytest.approx(values[-1].item(), rel=error)


def test_differences_restore_weights_bit_for_bit_also_after_an_exception():
    case = make("mlp")
    case.model.float()
    case.inputs, case.targets = case.inputs.float(), case.targets.float()
    case.loss().backward()
    gradients = [parameter.grad.clone() for parameter in case.parameters]
    before = flat(case.parameters).clone()
    ones = [torch.ones_like(parameter) for parameter in case.parameters]
    DifferenceHessian(case.loss, case.parameters)(ones)
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("batch")
        return case.loss()

    with pytest.raises(KeyError):
        DifferenceHessian(failing, case.parameters)(ones)
    assert torch.equal(flat(case.parameters), before)
    for parameter, gradient in zip(case.parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_losses_that_draw_random_numbers_draw_the_same_for_both_differences():
    weight = nn.Parameter(torch.ones(50, dtype=torch.float64))
    operator = DifferenceHessian(lambda: (weight.square() * torch.rand(50)).sum(), [weight])
    state = torch.get_rng_state()
    (product,) = operator([torch.ones(50, dtype=torch.float64)])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(product, 2 * torch.rand(50).double(), rtol=1e-6, atol=1e-7)


def test_bfloat16_weights_are_refused_by_differences():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="float32 or wider"):
        DifferenceHessian(lambda: weight.square().sum(), [weight])


def test_a_missing_second_derivative_is_said_plainly():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(NotTwiceDifferentiableError, match="finite differences"):
        Hessian(lambda: Once.apply(weight).square().sum(), [weight])([torch.ones(2)])


def test_bad_arguments_are_refused():
    weight, frozen = nn.Parameter(torch.ones(2)), torch.ones(2)
    ones = [torch.ones(2)]
    for arguments, words in (
        ((weight.sum, []), "at least one parameter"),
        ((weight.sum, [frozen]), "require a gradient"),
        ((weight.sum, [weight, weight]), "twice"),
        (([(weight.sum, 0.0)], [weight]), "weights > 0"),
        (([], [weight]), "weights > 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Hessian(*arguments)
    with pytest.raises(ValueError, match="scalar"):
        Hessian(lambda: weight * 2, [weight])(ones)
    with pytest.raises(ValueError, match="no gradient"):
        Hessian(lambda: frozen.sum(), [weight])(ones)
