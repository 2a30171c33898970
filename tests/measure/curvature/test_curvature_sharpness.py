"""Sharpness in one call: of real models, without a trace, by the way that works, and over processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from curvature_cases import MODELS, close, dense_hessian, flat, make
from torch import nn

from processes import spawn
from warmfree.measure.curvature import (
    NotTwiceDifferentiableError,
    UnsupportedOptimizerError,
    adam_preconditioner,
    blocks,
    preconditioned_sharpness,
    sharpness,
    twice_differentiable,
)

EXACT = {"tolerance": 1e-9, "max_products": 1000}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["exact", "differences"])
def test_sharpness_is_the_top_dense_eigenvalue(name, method):
    case = make(name)
    found = sharpness(case.model, case.loss, method=method, **EXACT)
    expected = torch.linalg.eigvalsh(dense_hessian(name))[-1]
    close([found.value], [expected], 1e-6 if method == "exact" else 1e-5)
    assert found.method == method
    assert math.isnan(found.ratio)


def test_no_trace_is_left_in_training_mode_with_dropout():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(16, 4)
    model(x).square().mean().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    draws = torch.get_rng_state()
    for method in ("exact", "differences"):
        first, second = (
            preconditioned_sharpness(model, optimizer, lambda: model(x).square().mean(), method=method)
            for _ in range(2)
        )
        assert first.value == second.value
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), draws)
    assert len(optimizer.state) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_preconditioned_sharpness_of_a_real_gpt_in_training_decides_its_stability():
    case = make("gpt")
    optimizer = torch.optim.AdamW(case.parameters, lr=3e-3, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        case.loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    case.loss().backward()
    found = preconditioned_sharpness(case.model, optimizer, case.loss, **EXACT)
    roots = flat(adam_preconditioner(optimizer, case.parameters)).rsqrt()
    expected = torch.linalg.eigvalsh(roots[:, None] * case.dense_hessian() * roots)[-1]
    close([found.value], [expected])
    assert found.threshold == pytest.approx(38 / 3e-3)
    assert found.early_threshold == pytest.approx(20 / 3e-3)
    assert found.ratio == pytest.approx(found.value / found.threshold)
    # Without gradients that of the loss counts as the coming one.
    optimizer.zero_grad()
    again = preconditioned_sharpness(case.model, optimizer, case.loss, **EXACT)
    assert again.value == pytest.approx(found.value, rel=1e-9)
    assert all(parameter.grad is None for parameter in case.parameters)


def test_learning_rate_zero_and_unknown_optimizers():
    case = make("mlp")
    still = preconditioned_sharpness(case.model, torch.optim.SGD(case.parameters, lr=0.0), case.loss)
    assert (still.threshold, still.ratio) == (math.inf, 0.0)
    assert still.value > 0
    with pytest.raises(UnsupportedOptimizerError):
        preconditioned_sharpness(case.model, torch.optim.Adagrad(case.parameters), case.loss)
    with pytest.raises(ValueError, match="method"):
        sharpness(case.model, case.loss, method="guess")


def test_a_loss_that_is_not_finite_is_not_a_number():
    case = make("mlp")
    for method in ("exact", "differences"):
        found = sharpness(case.model, lambda: case.loss() * math.nan, method=method)
        assert math.isnan(found.value)
        assert not found.converged
        assert found.vector is None


def test_blocks_and_warm_starts():
    case = make("mlp")
    parameters = blocks(case.model)["2"]
    cold = sharpness(case.model, case.loss, parameters, tolerance=1e-6)
    warm = sharpness(case.model, case.loss, parameters, tolerance=1e-6, start=cold.vector)
    assert warm.products < cold.products
    assert warm.value == pytest.approx(cold.value, rel=1e-5)
    assert [tensor.shape for tensor in warm.vector] == [parameter.shape for parameter in parameters]


class Clipped(torch.autograd.Function):
    """Differentiable once, as fused kernels are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_models_without_a_second_derivative_are_measured_by_differences():
    case = make("mlp")
    fused = nn.Linear(3, 2).double()

    def loss(square):
        return (square(fused(case.inputs)) - case.targets).square().mean()

    found = sharpness(fused, lambda: loss(Clipped.apply), **EXACT)
    plain = sharpness(fused, lambda: loss(torch.square), **EXACT)
    assert (found.method, plain.method) == ("differences", "exact")
    assert found.value == pytest.approx(plain.value, rel=1e-6)
    with pytest.raises(NotTwiceDifferentiableError):
        sharpness(fused, lambda: loss(Clipped.apply), method="exact")


def test_scaled_dot_product_attention_without_the_context_has_no_second_derivative_and_says_so():
    from warmfree.measure.curvature import Hessian

    case = make("gpt")
    vectors = [torch.ones_like(parameter) for parameter in case.parameters]
    with pytest.raises(NotTwiceDifferentiableError, match="twice_differentiable"):
        Hessian(case.loss, case.parameters)(vectors)
    with twice_differentiable(case.model):
        assert all(torch.isfinite(product).all() for product in Hessian(case.loss, case.parameters)(vectors))


def ddp_work(rank, folder):
    case = make("encoder")
    rows = slice(rank, rank + 1)  # a batch of its own
    inputs, targets = case.inputs[rows], case.targets[rows]
    model = nn.parallel.DistributedDataParallel(case.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss():
        return case.loss_of_batch(model, inputs, targets)

    results = []
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        results.append(preconditioned_sharpness(model, optimizer, loss))
        optimizer.step()  # the reducer is as it was
    optimizer.zero_grad()
    results.append(preconditioned_sharpness(model, optimizer, loss, **EXACT))
    group = {"process_group": dist.group.WORLD}
    plain = lambda: case.loss_of_batch(case.model, inputs, targets)  # noqa: E731
    results.append(sharpness(case.model, plain, **group, **EXACT))
    results.append(sharpness(case.model, plain, method="differences", **group))
    torch.save(
        [(found.value, found.products, flat(found.vector)) for found in results], folder / f"{rank}.pt"
    )


@pytest.mark.filterwarnings("default")
def test_ranks_with_a_batch_each_agree_with_one_process_with_all_batches(tmp_path):
    spawn(ddp_work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (value, products, vector), (other, others, theirs) in zip(first, second, strict=True):
        assert (value, products) == (other, others)
        assert torch.equal(vector, theirs)
    case = make("encoder")
    optimizer = torch.optim.Adam(case.parameters, lr=1e-3)
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        case.loss().backward()
        expected.append(preconditioned_sharpness(case.model, optimizer, case.loss).value)
        optimizer.step()
    optimizer.zero_grad()
    expected.append(preconditioned_sharpness(case.model, optimizer, case.loss, **EXACT).value)
    expected.append(sharpness(case.model, case.loss, **EXACT).value)
    expected.append(sharpness(case.model, case.loss).value)
    for (value, _, _), reference in zip(first, expected, strict=True):
        assert value == pytest.approx(reference, rel=1e-6)


def sharded_work(rank, folder, way):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    case = make("convnet" if way == "fsdp" else "mlp")
    parts = {"fsdp": case.model, "tp": case.model}[way]
    rows = slice(None)
    if way == "fsdp":
        rows = slice(0, 2) if rank == 0 else slice(2, 4)
        fully_shard(case.model[3])
        fully_shard(case.model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        parallelize_module(parts, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    inputs, targets = case.inputs[rows], case.targets[rows]
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)

    def loss():
        return case.loss_of_batch(case.model, inputs, targets)

    optimizer.zero_grad()
    loss().backward()
    kept = [parameter.grad for parameter in case.model.parameters()]
    plain = sharpness(case.model, loss, tolerance=1e-4, max_products=40)
    block = sharpness(case.model, loss, list(case.model[0].parameters()), tolerance=1e-4, max_products=40)
    found = preconditioned_sharpness(case.model, optimizer, loss, tolerance=1e-4, max_products=40)
    warm = preconditioned_sharpness(case.model, optimizer, loss, start=found.vector)
    assert all(p.grad is grad for p, grad in zip(case.model.parameters(), kept, strict=True))
    optimizer.step()
    results = [plain.value, block.value, found.value, warm.value]
    torch.save((results, plain.method, found.products), folder / f"{rank}.pt")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", ["fsdp", "tp"])
def test_sharded_models_have_the_sharpness_of_the_plain_one(tmp_path, way):
    spawn(sharded_work, 2, tmp_path, way)
    first, second = (torch.load(Path(tmp_path) / f"{rank}.pt") for rank in range(2))
    assert first == second
    values, method, _ = first
    assert method == "differences"
    case = make("convnet" if way == "fsdp" else "mlp")
    if way == "fsdp":
        case.inputs, case.targets = case.inputs[:4], case.targets[:4]
    optimizer = torch.optim.AdamW(case.parameters, lr=1e-3)
    expected = [
        sharpness(case.model, case.loss, **EXACT).value,
        sharpness(case.model, case.loss, list(case.model[0].parameters()), **EXACT).value,
        preconditioned_sharpness(case.model, optimizer, case.loss, **EXACT).value,
    ]
    for value, reference, error in zip(
        values, [*expected, expected[-1]], [1e-3, 1e-3, 1e-3, 1e-2], strict=True
    ):
        assert value == pytest.approx(reference, rel=error)
