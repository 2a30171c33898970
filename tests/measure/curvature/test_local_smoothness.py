"""Local smoothness: what it is on a quadratic and of a network, that it leaves no trace, and over processes."""

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from curvature_cases import Case, close, dense_hessian, flat, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

import warmfree
from optim.sharded import CLASSES, VOCABULARY, make_transformer, spread, whole
from processes import spawn
from warmfree.measure.curvature import (
    Hessian,
    LocalSmoothness,
    UnsupportedOptimizerError,
    effective_preconditioner,
    twice_differentiable,
)

EIGENVALUES = torch.tensor([-3.0, 0.5, 2.0, 7.0], dtype=torch.float64)


class Quadratic(nn.Module):
    """Half of w^T H w, with the eigenvalues above and eigenvectors of its own."""

    def __init__(self, weight=(1.0, 1.0, 1.0, 1.0)):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        noise = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.vectors = torch.linalg.qr(noise).Q
        self.hessian = self.vectors @ EIGENVALUES.diag() @ self.vectors.T
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def loss(self):
        return 0.5 * self.weight @ self.hessian @ self.weight


def moved(model, loss, step, **options):
    """Measure a step that is made by hand, of one tensor per parameter."""
    with LocalSmoothness(model, loss, **options) as probe, torch.no_grad():
        for parameter, change in zip(model.parameters(), step, strict=True):
            parameter.add_(change)
    return probe.found


def trained(case, optimizer, steps=3):
    """Give an optimizer a state, and the weights the gradients of the next step."""
    for number in range(steps + 1):
        optimizer.zero_grad()
        case.loss().backward()
        if number < steps:
            optimizer.step()
    return optimizer


def test_it_is_the_eigenvalue_along_an_eigenvector():
    model = Quadratic()
    for eigenvalue, vector in zip(EIGENVALUES, model.vectors.T, strict=True):
        found = moved(model, model.loss, [0.3 * vector])
        assert found.value == pytest.approx(abs(eigenvalue.item()), rel=1e-9)
        assert found.step_norm == pytest.approx(0.3)
        assert found.preconditioned is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=8))
def test_on_a_quadratic_it_lies_between_the_smallest_and_the_largest_curvature(numbers):
    model = Quadratic(numbers[:4])
    step = torch.tensor(numbers[4:], dtype=torch.float64)
    found = moved(model, model.loss, [step])
    if (model.weight.detach() == torch.tensor(numbers[:4], dtype=torch.float64)).all():
        assert math.isnan(found.value)
    elif found.step_norm > 1e-6:
        assert 0.5 * (1 - 1e-5) <= found.value <= 7.0 * (1 + 1e-5)


def test_for_a_short_step_it_is_the_hessian_times_the_step():
    for name in ("mlp", "gpt", "encoder"):
        case = make(name)
        generator = torch.Generator().manual_seed(7)
        step = [
            1e-6 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in case.parameters
        ]
        with twice_differentiable(case.model):
            product = flat(Hessian(case.loss, case.parameters)(step)).norm() / flat(step).norm()
        found = moved(case.model, case.loss, step)
        assert found.value == pytest.approx(product.item(), rel=1e-4)


def test_it_is_at_most_the_largest_curvature_on_the_way_not_that_of_the_start():
    case = make("mlp")
    optimizer = torch.optim.SGD(case.parameters, lr=2.0)
    before = [p.detach().clone() for p in case.parameters]
    case.loss().backward()
    with LocalSmoothness(case.model, case.loss) as probe:
        optimizer.step()
    after = [p.detach().clone() for p in case.parameters]
    largest = 0.0
    for share in torch.linspace(0, 1, 21):
        with torch.no_grad():
            for parameter, first, last in zip(case.parameters, before, after, strict=True):
                parameter.copy_(torch.lerp(first, last, share.item()))
        largest = max(largest, torch.linalg.matrix_norm(case.dense_hessian(), 2).item())
    assert 0 < probe.found.value <= largest
    steep = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        steep.weight.fill_(0.0)
    found = moved(steep, lambda: steep.weight.cosh().sum(), [torch.full((1, 1), 4.0)])
    assert found.value == pytest.approx(math.sinh(4) / 4)
    assert 1.0 < found.value <= math.cosh(4)  # the curvature at the start is 1, that at the end cosh 4


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "NAdam", "AdamW2", "GIAdamW"])
def test_the_preconditioned_one_is_that_of_the_preconditioned_loss(name):
    case = make("mlp")
    kind = getattr(torch.optim, name, None) or getattr(warmfree, name)
    groups = [{"params": case.parameters[:3], "lr": 1e-5}, {"params": case.parameters[3:], "lr": 4e-5}]
    optimizer = trained(case, kind(groups, **({} if name == "SGD" else {"weight_decay": 0.0})))
    roots = flat(effective_preconditioner(optimizer, case.parameters)[0]).sqrt()
    hessian, before = case.dense_hessian(), case.flat()
    scaled = hessian / roots / roots[:, None]
    with LocalSmoothness(case.model, case.loss, optimizer) as probe:
        optimizer.step()
    step = case.flat() - before
    expected = [
        (hessian @ step).norm() / step.norm(),
        (scaled @ (roots * step)).norm() / (roots * step).norm(),
    ]
    assert probe.found.value == pytest.approx(expected[0].item(), rel=1e-2)
    assert probe.found.preconditioned == pytest.approx(expected[1].item(), rel=1e-2)
    assert probe.found.preconditioned <= torch.linalg.matrix_norm(scaled, 2).item() * 1.01


def test_its_unit_is_one_over_the_learning_rate():
    """The same loss and step in other units of the weights: the plain one changes, the preconditioned one does not."""
    found = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        layer = nn.Linear(3, 1, bias=False).double()
        x = torch.randn(5, 3, dtype=torch.float64)
        with torch.no_grad():
            layer.weight /= scale

        def loss(layer=layer, x=x, scale=scale):
            return (scale * layer(x) - 1).square().mean()

        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3 / scale, eps=0.0)
        loss().backward()
        with LocalSmoothness(layer, loss, optimizer) as probe:
            optimizer.step()
        found.append(probe.found)
    first, second = found
    assert second.value == pytest.approx(1e4 * first.value, rel=1e-6)
    assert second.preconditioned * 1e-5 == pytest.approx(first.preconditioned * 1e-3, rel=1e-6)


def test_losses_and_norms_are_those_of_the_two_points():
    case = make("gpt")
    optimizer = trained(case, torch.optim.AdamW(case.parameters, lr=1e-2))
    gradient, before = flat([p.grad for p in case.parameters]), case.flat()
    probe = LocalSmoothness(case.model, case.loss, optimizer)
    first = case.loss().item()
    probe.before()
    optimizer.step()
    found = probe.after()
    assert found is probe.found
    optimizer.zero_grad()
    case.loss().backward()
    change = flat([p.grad for p in case.parameters]) - gradient
    step = case.flat() - before
    close([found.loss, found.loss_after], [first, case.loss().item()], 1e-12)
    close([found.step_norm, found.gradient_norm], [step.norm(), gradient.norm()], 1e-12)
    close([found.gradient_change, found.value], [change.norm(), change.norm() / step.norm()], 1e-9)
    assert found.precision == torch.finfo(torch.float64).eps
    assert 0 < found.rounding < 1e-10


def test_several_batches_count_by_their_weights():
    case = make("mlp")
    parts = [
        (Case(case.model, case.inputs[rows], case.targets[rows], by_squares=True).loss, float(size))
        for rows, size in ((slice(0, 4), 4), (slice(4, 10), 6))
    ]
    step = [0.1 * torch.ones_like(p) for p in case.parameters]
    back = [-change for change in step]
    together = moved(case.model, parts, step)
    moved(case.model, case.loss, back)
    apart = moved(case.model, case.loss, step)
    close([together.value, together.loss, together.loss_after], [apart.value, apart.loss, apart.loss_after])


class Restless(nn.Module):
    """Dropout, running statistics, a frozen layer, a shared one, a counter and a parametrised weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.shared = nn.Linear(8, 8)
        self.turned = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.again = self.shared
        self.head = nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = self.drop(self.norm(self.first(x)))
        return self.head(self.turned(self.again(torch.relu(self.shared(self.frozen(x))))))


def loss_on(model, x, y):
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, torch.optim.SGD, warmfree.LionAR])
def test_training_goes_on_bit_for_bit(make_optimizer):
    results = []
    for watched in (False, True):
        torch.manual_seed(2)
        model = Restless()
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(weights, lr=0.01, weight_decay=0.1)
        losses = []
        for number in range(6):
            x, y = torch.randn(16, 4), torch.randint(2, (16,))
            optimizer.zero_grad()
            loss = loss_on(model, x, y)
            loss.backward()
            gradients = [p.grad.clone() for p in weights]
            if watched:
                given = None if make_optimizer is warmfree.LionAR else optimizer
                held = partial(loss_on, model, x, y)
                with LocalSmoothness(model, held, given) as probe:
                    assert all(torch.equal(p.grad, g) for p, g in zip(weights, gradients, strict=True))
                    optimizer.step()
                assert probe.found.value > 0
                assert probe.found.precision == torch.finfo(torch.float32).eps
            else:
                optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(weights, gradients, strict=True))
            losses.append(loss.item())
            assert model.calls == number + 1
            assert all(module.training for module in model.modules())
        state = copy.deepcopy(optimizer.state_dict()["state"])
        results.append((losses, torch.rand(3), list(model.state_dict().values()), state))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0][2], results[1][2], strict=True))
    for ours, theirs in zip(*(result[3].values() for result in results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_step_of_length_zero_has_no_smoothness():
    case = make("mlp")
    optimizer = trained(case, torch.optim.AdamW(case.parameters, lr=0.0))
    with LocalSmoothness(case.model, case.loss, optimizer) as probe:
        optimizer.step()
    found = probe.found
    assert found.step_norm == found.gradient_change == 0
    assert math.isnan(found.value)
    assert math.isnan(found.preconditioned)
    assert found.rounding == math.inf
    assert found.loss == found.loss_after == case.loss().item()


@pytest.mark.parametrize("where", ["before", "after", "loss"])
def test_what_is_not_finite_is_not_a_number(where):
    case = make("mlp")
    optimizer = torch.optim.Adam(case.parameters, lr=1e-3)
    case.loss().backward()
    factor = torch.tensor(math.nan if where == "before" else 1.0)
    scale = math.inf if where == "loss" else 1.0
    with LocalSmoothness(case.model, lambda: case.loss() * factor * scale, optimizer) as probe:
        optimizer.step()
        if where == "after":
            with torch.no_grad():
                case.parameters[0][0, 0] = math.inf
    assert math.isnan(probe.found.value)
    assert math.isnan(probe.found.preconditioned)


def test_frozen_weights_and_a_choice_of_parameters():
    case = make("mlp")
    for parameter in case.model[2].parameters():
        parameter.requires_grad_(False)
    hessian = dense_hessian("mlp")
    ends = torch.tensor([p.numel() for p in case.model.parameters()]).cumsum(0).tolist()
    kept = torch.cat([torch.arange(0, ends[1]), torch.arange(ends[3], ends[5])])
    optimizer = torch.optim.SGD(case.parameters, lr=1e-6)
    gradient = flat(torch.autograd.grad(case.loss(), case.parameters))
    case.loss().backward()
    head = LocalSmoothness(case.model, case.loss, parameters=list(case.model[4].parameters()))
    with LocalSmoothness(case.model, case.loss, optimizer) as probe, head:
        optimizer.step()
    of_all = (hessian[kept][:, kept] @ gradient).norm() / gradient.norm()
    close([probe.found.value, probe.found.preconditioned], [of_all, of_all], 1e-4)
    of_head = (hessian[ends[3] :][:, kept] @ gradient).norm() / gradient[ends[1] :].norm()
    close([head.found.value], [of_head], 1e-4)


def test_several_optimizers_have_one_preconditioner():
    case = make("mlp")
    pair = [torch.optim.SGD(case.parameters[:2], lr=2e-5), torch.optim.Adam(case.parameters[2:], lr=1e-5)]
    case.loss().backward()
    hessian, before = case.dense_hessian(), case.flat()
    first = effective_preconditioner(pair[0], case.parameters[:2])[0]
    second = [2 * divisor for divisor in effective_preconditioner(pair[1], case.parameters[2:])[0]]
    divisors = flat(first + second)
    with LocalSmoothness(case.model, case.loss, pair) as probe:
        for optimizer in pair:
            optimizer.step()
    step = case.flat() - before
    expected = (hessian @ step / divisors.sqrt()).norm() / (divisors.sqrt() * step).norm()
    assert probe.found.preconditioned == pytest.approx(expected.item(), rel=1e-3)


def test_what_the_preconditioner_does_not_let_move_is_left_out():
    model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3)])
    groups = [{"params": [model[0]]}, {"params": [model[1]], "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)

    def loss():
        return (model[0] * model[1] * model[2]).square().sum()

    loss().backward()
    probe = LocalSmoothness(model, loss, optimizer)
    probe.before()
    optimizer.step()
    with torch.no_grad():
        model[2].mul_(0.9)  # moved by something else
    found = probe.after()
    ahead, behind = 2 * (0.8 * 0.9**2), 2.0  # of the loss in model[0], at 0.8, 1, 0.9 and at 1, 1, 1
    assert found.preconditioned == pytest.approx(abs(ahead - behind) / 0.2)
    assert found.value != pytest.approx(found.preconditioned)


def test_without_gradients_that_of_the_loss_counts_as_the_coming_one():
    found = []
    for has_gradients in (True, False):
        case = make("mlp")
        optimizer = torch.optim.Adam(case.parameters, lr=1e-3)
        if has_gradients:
            case.loss().backward()
        probe = LocalSmoothness(case.model, case.loss, optimizer)
        probe.before()
        assert all((p.grad is None) == (not has_gradients) for p in case.parameters)
        optimizer.zero_grad()
        case.loss().backward()
        optimizer.step()
        found.append(probe.after())
    assert found[0] == found[1]


def test_half_precision_weights_are_compared_in_float32():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).bfloat16()
    x, y = torch.randn(32, 8).bfloat16(), torch.randn(32, 1).bfloat16()
    reference = copy.deepcopy(model).double()

    def loss(net=model, dtype=torch.bfloat16):
        return F.mse_loss(net(x.to(dtype)), y.to(dtype))

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    loss().backward()
    with LocalSmoothness(model, loss, optimizer) as probe:
        optimizer.step()
    found = probe.found
    # The reference makes the step that was really made, in rounded weights.
    step = [p.double() - q for p, q in zip(model.parameters(), reference.parameters(), strict=True)]
    expected = moved(reference, lambda: loss(reference, torch.float64), step)
    assert found.step_norm == pytest.approx(expected.step_norm, rel=1e-6)
    assert found.value == pytest.approx(expected.value, rel=0.05)
    assert found.preconditioned > 0
    assert found.precision == torch.finfo(torch.bfloat16).eps


def test_rounding_says_when_a_step_is_too_short_for_the_precision():
    case = make("gpt")
    model, inputs, targets = case.model.float(), case.inputs, case.targets
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())

    def measured(distance, *, half):
        def loss():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                return case.loss_of_batch(model, inputs, targets)

        model.load_state_dict(before)
        return moved(model, loss, [distance * d for d in direction])

    true = measured(1e-3, half=False).value
    for distance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        reference, found = measured(distance, half=False), measured(distance, half=True)
        assert reference.rounding < 0.1
        if distance < 1e-1:
            assert reference.value == pytest.approx(true, rel=0.1)
        if found.rounding < 0.1:
            assert found.value == pytest.approx(reference.value, rel=0.1)
    assert found.rounding > 0.3
    assert found.value > 3 * true  # it tells nothing there


def test_complex_weights_are_pairs_of_real_ones():
    weight = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)
    model = nn.ParameterList([nn.Parameter(weight)])
    real = nn.ParameterList([nn.Parameter(torch.view_as_real(weight).clone())])

    def loss():
        return model[0].real.pow(4).sum() + (model[0].imag.square() * model[0].real).sum()

    def real_loss():
        return real[0][:, 0].pow(4).sum() + (real[0][:, 1].square() * real[0][:, 0]).sum()

    step = torch.tensor([0.1 - 0.2j, 0.3j], dtype=torch.complex128)
    found = moved(model, loss, [step])
    expected = moved(real, real_loss, [torch.view_as_real(step)])
    close([found.value, found.step_norm], [expected.value, expected.step_norm], 1e-12)
    with pytest.raises(UnsupportedOptimizerError, match="some are complex; leave the optimizer out"):
        LocalSmoothness(model, loss, torch.optim.Adam(model.parameters()))


def test_one_autocast_block_around_a_step_serves_no_stale_weights():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(8, 4)

    def loss():
        return model(x).float().square().mean()

    loss().backward()
    probe = LocalSmoothness(model, loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probe.before()
        optimizer.step()
        found = probe.after()
    assert found.gradient_change > 0.1 * found.gradient_norm
    assert found.loss_after < found.loss


def test_a_loss_that_draws_has_the_same_draws_at_both_points():
    model = nn.ParameterList([nn.Parameter(torch.ones(50))])

    def loss():
        return (model[0] - torch.randn(50)).square().sum()

    draws = torch.get_rng_state()
    probe = LocalSmoothness(model, loss)
    probe.before()
    assert torch.equal(torch.get_rng_state(), draws)
    torch.randn(7)  # as an optimizer with stochastic rounding does
    with torch.no_grad():
        model[0].add_(0.1)
    assert probe.after().value == pytest.approx(2.0, rel=1e-5)


def test_wrong_order_says_so_and_an_exception_forgets():
    case = make("mlp")
    probe = LocalSmoothness(case.model, case.loss)
    with pytest.raises(RuntimeError, match="no step was measured"):
        _ = probe.found
    with pytest.raises(RuntimeError, match=r"call before\(\) before the optimizer's step"):
        probe.after()
    with pytest.raises(ZeroDivisionError), probe:
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match=r"call before\(\)"):
        probe.after()
    with pytest.raises(UnsupportedOptimizerError, match="Adagrad"):
        LocalSmoothness(case.model, case.loss, torch.optim.Adagrad(case.parameters))
    with pytest.raises(ValueError, match="scalar"):
        LocalSmoothness(case.model, case.outputs).before()
    with pytest.raises(ValueError, match="at least one parameter"):
        LocalSmoothness(case.model.requires_grad_(False), case.loss).before()


def tokens_of(number, rank, size):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(VOCABULARY, (4, 6), generator=generator).chunk(size)[rank]


def loss_of(model, tokens):
    return F.cross_entropy(model(tokens).flatten(0, 1), (tokens.roll(1, 1) % CLASSES).flatten())


def run_spread(way, rank=0, size=1, *, measured=True):
    """Train on batches that are spread over processes, with a probe batch that is, too."""
    model = spread(make_transformer(dtype=torch.float64), way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held = tokens_of(99, rank, size)
    probe = LocalSmoothness(model, lambda: loss_of(model, held), optimizer)
    found = []
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, tokens_of(number, rank, size)).backward()
        if measured:
            kept = [p.grad for p in model.parameters()]
            with probe:
                optimizer.step()
            assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
            one = probe.found
            found.append([one.value, one.preconditioned, one.loss, one.loss_after, one.step_norm])
        else:
            optimizer.step()
    return found, whole(model)


def run_in_group(rank=0, size=1, **options):
    """Measure plain weights, on a part of the batch: what the monitor does under DistributedDataParallel."""
    case = make("mlp")
    inputs, targets = case.inputs.chunk(size)[rank], case.targets.chunk(size)[rank]
    part = Case(case.model, inputs, targets, by_squares=True)
    found = moved(case.model, part.loss, [0.1 * torch.ones_like(p) for p in case.parameters], **options)
    return [found.value, found.loss, found.loss_after]


def spread_work(rank, folder, ways):
    grouped = run_in_group(rank, dist.get_world_size(), process_group=dist.group.WORLD)
    torch.save(grouped, Path(folder, f"group-{rank}.pt"))
    for way in ways:
        # Under tensor parallelism all see the whole batch.
        rank_, size = (0, 1) if way == "tp" else (rank, dist.get_world_size())
        found, weights = run_spread(way, rank_, size)
        _, bare = run_spread(way, rank_, size, measured=False)
        assert all(torch.equal(weights[name], bare[name]) for name in bare), f"{way}: training differs"
        torch.save(found, Path(folder, f"{way}-{rank}.pt"))


@pytest.mark.filterwarnings("default")
def test_many_processes_find_what_one_does(tmp_path):
    ways = ("ddp", "fsdp", "tp")
    spawn(spread_work, 2, str(tmp_path), ways)
    expected, _ = run_spread("none")
    for way in ways:
        first, second = (torch.load(tmp_path / f"{way}-{rank}.pt") for rank in range(2))
        assert first == second
        for found, reference in zip(first, expected, strict=True):
            assert found == pytest.approx(reference, rel=1e-6), way
    for rank in range(2):
        assert torch.load(tmp_path / f"group-{rank}.pt") == pytest.approx(run_in_group(), rel=1e-9)
