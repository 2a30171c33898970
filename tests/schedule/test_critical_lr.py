"""What a search is asked for, and what it answers: batches, groups, clipping, precision, outcomes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from critical_cases import Quadratic, crossings, own_loss, random_quadratic, search, squares, train
from torch import nn

import warmfree
from warmfree.schedule.critical import Trial, critical_lr
from warmfree.schedule.critical.trials import learning_rate


def make_model(*, dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2)]
    return nn.Sequential(*layers).to(dtype)


def make_batches(number=1, *, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 5, dtype=dtype, generator=generator),
            torch.randn(size, 2, dtype=dtype, generator=generator),
        )
        for _ in range(number)
    ]


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def adamw(model, lr=0.01, **options):
    return torch.optim.AdamW(model.parameters(), lr=lr, **options)


def test_the_answer_tells_the_target_the_cost_and_every_trial():
    model, batches = make_model(), make_batches(3)
    tried = []
    found = search(model, squares, batches, sgd(model), num_steps=3, on_trial=tried.append)
    assert (found.outcome, found.target, found.backward_passes) == ("found", 0.1, 3)
    assert found.ratio == pytest.approx(0.1 / found.lr)
    assert tried == [trial for one in found.searches for trial in one.trials]
    assert all(isinstance(trial, Trial) for trial in tried)
    lrs = [one.lr for one in found.searches]
    assert found.lr == sorted(lrs)[1]
    assert found.spread == max(lrs) / min(lrs) > 1
    assert found.low == min(one.low for one in found.searches)
    assert found.high == max(one.high for one in found.searches)
    assert found.seconds > 0
    # Each search begins where the last one ended, and is that of its batch alone.
    assert found.searches[1].trials[0].lr == lrs[0]
    for batch, one in zip(batches, found.searches, strict=True):
        alone = search(model, squares, [batch], sgd(model)).searches[0]
        assert alone.lr == pytest.approx(one.lr, rel=1e-3)
        assert alone.initial_loss == one.initial_loss == squares(model, batch).item()
        assert alone.slope == pytest.approx(one.slope, rel=1e-9)


def test_the_slope_is_the_derivative_of_the_loss_along_the_step():
    for clip in (None, 0.01):
        model, batch = make_model(), make_batches()[0]
        optimizer = adamw(model, weight_decay=0.5)
        train(model, optimizer, squares, batch, steps=3)
        found = search(model, squares, [batch], optimizer, max_grad_norm=clip).searches[0]
        losses = []
        for lr in (1e-6, 2e-6):
            other, other_optimizer = copy.deepcopy((model, optimizer))
            other_optimizer.param_groups[0]["lr"] = lr
            other_optimizer.zero_grad()
            squares(other, batch).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(other.parameters(), clip)
            other_optimizer.step()
            losses.append(squares(other, batch).item())
        assert found.slope == pytest.approx((losses[1] - losses[0]) / 1e-6, rel=1e-3)


def test_micro_batches_make_the_step_of_the_large_batch():
    model, batches = make_model(), make_batches(6)
    joint = [tuple(torch.cat(parts) for parts in zip(*batches[i : i + 3], strict=True)) for i in (0, 3)]
    for build in (sgd, adamw):
        small = search_accumulated(model, batches, build(model), accumulate=3, num_steps=2)
        large = critical_lr(model, squares, joint, build(model), num_steps=2)
        for one, other in zip(small.searches, large.searches, strict=True):
            assert one.lr == pytest.approx(other.lr, rel=1e-9)
            assert one.initial_loss == pytest.approx(other.initial_loss)
            assert one.forward_passes == other.forward_passes


def search_accumulated(model, batches, optimizer, *, accumulate, **options):
    calls = []
    found = critical_lr(
        model,
        lambda model, batch: (calls.append(1), squares(model, batch))[1],
        batches,
        optimizer,
        accumulate=accumulate,
        **options,
    )
    assert len(calls) == accumulate * found.forward_passes
    return found


def test_groups_keep_their_proportions():
    hessian = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    model = Quadratic(hessian, torch.ones(2, dtype=torch.float64))
    groups = [{"params": [model.first], "lr": 0.3}, {"params": [model.second], "lr": 0.1}]
    found = search(model, own_loss, [None], torch.optim.SGD(groups))
    step = torch.tensor([1.0, 4.0 / 3], dtype=torch.float64)  # for lr 1 in the first group
    gradient = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert found.lr == pytest.approx((2 * gradient @ step / (step @ hessian @ step)).item(), rel=1e-6)
    assert found.target == 0.3
    # A group that stands still goes on doing so.
    groups[1]["lr"] = 0.0
    assert search(model, own_loss, [None], torch.optim.SGD(groups)).lr == pytest.approx(2.0, rel=1e-6)


def test_a_warmup_that_begins_at_zero_is_asked_for_its_peak():
    model, batches = make_model(), make_batches()
    optimizer = sgd(model, 0.25)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    found = search(model, squares, batches, optimizer)
    assert found.target == learning_rate(optimizer) == 0.25
    assert found.searches[0].trials[0].lr == 0.25
    assert optimizer.param_groups[0]["lr"] == 0
    optimizer.step(), scheduler.step()
    assert search(model, squares, batches, optimizer).target == pytest.approx(0.025)


def test_start_max_lr_and_max_passes_are_respected():
    model, batches = make_model(), make_batches()
    found = search(model, squares, batches, sgd(model), start=1e-3)
    assert found.searches[0].trials[0].lr == 1e-3
    bound = found.lr / 2
    none = search(model, squares, batches, sgd(model), max_lr=bound)
    assert (none.outcome, none.lr, none.low, none.high) == ("none", None, bound, None)
    assert math.isnan(none.ratio)
    assert math.isnan(none.spread)
    for most in (4, 6):
        short = search(model, squares, batches, sgd(model, 1e-6), max_passes=most)
        assert short.forward_passes == most
        assert short.outcome in ("none", "found")


@pytest.mark.parametrize("precision", [0.5, 0.05, 0.005])
def test_the_bracket_is_as_narrow_as_asked(precision):
    model, batches = make_model(), make_batches()
    found = search(model, squares, batches, adamw(model), precision=precision)
    assert found.high <= found.low * (1 + precision)
    exact = crossings(
        model, adamw(model), squares, batches[0], lowest=0.1 * found.lr, highest=2 * found.lr, points=20
    )
    assert found.low <= exact[0] <= found.high


def test_the_loss_at_the_upper_end_is_within_the_tolerance():
    model, batches = make_model(), make_batches()
    start = model[0].weight[0, 0].item()
    for steepness, tolerance, most, width in ((5e4, 0.5, 0.5, 1.05), (1e6, 1e-4, math.inf, 1.0125)):

        def steep(model, batch, steepness=steepness):
            moved = (model[0].weight[0, 0] - start).abs()
            return 1 + squares(model, batch) + torch.relu(moved - 1e-3) * steepness

        found = search(model, steep, batches, adamw(model), tolerance=tolerance)
        losses = {trial.lr: trial.loss for trial in found.searches[0].trials}
        assert found.low <= 1.01e-3
        # Where no bracket that can be told apart is gentle enough, it is at least narrower than asked.
        assert losses[found.high] <= found.searches[0].initial_loss * (1 + most)
        assert found.high <= found.low * width


def test_a_loss_that_never_rises_has_no_critical_learning_rate():
    model, batches = make_model(), make_batches()
    for loss in (
        lambda model, batch: model[3].bias.sum(),
        lambda model, batch: F.softplus(model[3].bias.sum()),
        lambda model, batch: -model[3].bias.sum().sigmoid(),
    ):
        found = search(model, loss, batches, sgd(model))
        assert (found.outcome, found.lr, found.high) == ("none", None, None)
        assert found.low >= 1e6 * 0.1


def test_momentum_that_carries_uphill_is_told():
    model = random_quadratic(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, own_loss, None, steps=1)
    for weight in (model.first, model.second):
        optimizer.state[weight]["momentum_buffer"].mul_(-100)
    found = search(model, own_loss, [None], optimizer)
    assert (found.outcome, found.lr, found.low) == ("uphill", None, None)
    assert found.high is not None
    assert found.searches[0].slope > 0
    # One search that finds something is enough for a number.
    batches = [1.0, -1.0, 1.0]
    both = search(model, lambda model, sign: 10 + sign * model(), batches, optimizer, num_steps=3)
    assert {one.outcome for one in both.searches} >= {"uphill"}


def test_an_optimizer_that_only_prepares_itself_is_told_to_step_first():
    class Late(torch.optim.SGD):
        """Moves from its second step."""

        def step(self, closure=None):
            first = not self.state
            for weight in self.param_groups[0]["params"]:
                self.state[weight]["seen"] = True
            return None if first else super().step(closure)

    model, batches = make_model(), make_batches()
    optimizer = Late(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="moves no weight"):
        critical_lr(model, squares, batches, optimizer)
    optimizer.step()
    assert search(model, squares, batches, optimizer).outcome == "found"


class Careless(torch.optim.SGD):
    """Writes to gradients, and lets go of them."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for weight in self.param_groups[0]["params"]:
            weight.grad.mul_(-3)
            weight.grad = None


def test_what_an_optimizer_does_to_gradients_does_not_reach_the_next_trial():
    model, batches = make_model(), make_batches(2)
    careless = Careless(model.parameters(), lr=0.1, momentum=0.9)
    plain = search(model, squares, batches, sgd(model, momentum=0.9), num_steps=2, tolerance=0.1)
    found = search(model, squares, batches, careless, num_steps=2, tolerance=0.1)
    # To rounding: how sums are split depends on where in memory tensors lie.
    for one, other in zip(found.searches, plain.searches, strict=True):
        assert [trial.lr for trial in one.trials] == pytest.approx(
            [trial.lr for trial in other.trials], rel=1e-6
        )
        assert one.slope == pytest.approx(other.slope, rel=1e-9)


def test_clipping_changes_the_unit_of_sgd_and_nothing_for_adam():
    model, batches = make_model(), make_batches()
    plain = search(model, squares, batches, sgd(model))
    squares(model, batches[0]).backward()
    norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters()]).item()
    clipped = search(model, squares, batches, sgd(model), max_grad_norm=norm / 10)
    assert clipped.lr == pytest.approx(10 * plain.lr, rel=1e-3)
    loose = search(model, squares, batches, sgd(model), max_grad_norm=10 * norm)
    assert loose.lr == plain.lr
    for clip in (norm / 10, None):
        found = search(model, squares, batches, adamw(model, eps=1e-12), max_grad_norm=clip)
        assert found.lr == pytest.approx(
            search(model, squares, batches, adamw(model, eps=1e-12)).lr, rel=1e-3
        )


class Scale:
    """What is used of a GradScaler."""

    def get_scale(self):
        return 1024.0


def test_a_loss_scale_does_not_matter():
    model, batches = make_model(), make_batches()
    for clip in (None, 0.01):
        scaled = search(model, squares, batches, sgd(model), scaler=Scale(), max_grad_norm=clip)
        plain = search(model, squares, batches, sgd(model), max_grad_norm=clip)
        assert scaled.lr == plain.lr  # a power of two
        assert scaled.searches[0].slope == plain.searches[0].slope


def test_a_loss_scale_that_overflows_is_told():
    model, batches = make_model(), make_batches()

    def in_half(model, batch):
        return squares(model, batch) + HalfGradient.apply(model[0].bias).sum()

    class HalfGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 200

        @staticmethod
        def backward(ctx, gradient):
            return (gradient.half() * 200).double()

    with pytest.raises(
        ValueError, match=r"gradient of 0.bias is not finite .* loss scale 1024 may be too large"
    ):
        critical_lr(model, in_half, batches, sgd(model), scaler=Scale())


def test_dropout_is_the_same_in_all_passes():
    model, batches = make_model(dropout=0.5), make_batches(2)
    found = search(model, squares, batches, sgd(model), num_steps=2)
    assert found.outcome == "found"
    losses = {one.initial_loss for one in found.searches}
    state = torch.get_rng_state()
    assert squares(model, batches[0]).item() in losses
    torch.set_rng_state(state)


@pytest.mark.parametrize("where", ["ambient", "inside"])
def test_under_autocast_trials_see_the_weights_that_they_moved(where):
    model, batches = make_model(dtype=torch.float32), make_batches(dtype=torch.float32, size=64)
    plain = search(model, squares, batches, sgd(model)).lr

    def inside(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return squares(model, batch)

    if where == "inside":
        found = search(model, inside, batches, sgd(model))
        squares(model, batches[0]).backward()
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            squares(model, batches[0])  # fills the cache of casts
            found = search(model, squares, batches, sgd(model))
            # Casts that the trials made under no_grad would let no gradient through.
            squares(model, batches[0]).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert found.lr == pytest.approx(plain, rel=0.1)
    assert len({trial.loss for trial in found.searches[0].trials}) > 1


def test_narrow_weights_that_a_small_step_does_not_move():
    model, batches = make_model(dtype=torch.bfloat16), make_batches(dtype=torch.bfloat16, size=64)

    def loss_fn(model, batch):
        return squares(model, batch).float()

    found = search(model, loss_fn, batches, sgd(model, 1e-7))
    assert [trial.loss for trial in found.searches[0].trials][:1] == [found.searches[0].initial_loss]
    wide = make_model()
    exact = search(wide, squares, make_batches(size=64), sgd(wide))
    assert found.lr == pytest.approx(exact.lr, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_complex_weights_are_pairs_of_real_ones(dtype):
    torch.manual_seed(0)
    inputs = torch.randn(9, 3, dtype=torch.complex64)
    complex_model = nn.Linear(3, 2, bias=False, dtype=torch.complex64)
    if dtype == torch.complex64:
        model, loss_fn = complex_model, lambda model, x: model(x).abs().square().sum()
    else:
        weight = torch.view_as_real(complex_model.weight.detach())
        model = nn.Module()
        model.pairs = nn.Parameter(weight.clone())
        loss_fn = lambda model, x: (x @ torch.view_as_complex(model.pairs).T).abs().square().sum()  # noqa: E731
    gram = (inputs.T.conj() @ inputs).to(torch.complex128)
    gradient = 2 * complex_model.weight.detach().to(torch.complex128) @ gram.conj()
    theory = 2 * gradient.abs().square().sum() / (gradient.conj() * (2 * gradient @ gram.conj())).real.sum()
    found = search(model, loss_fn, [inputs], torch.optim.SGD(model.parameters(), lr=0.01))
    assert found.lr == pytest.approx(theory.item(), rel=1e-3)


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.SparseAdam])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_sparse_gradients(build, clip):
    tokens = torch.tensor([0, 3, 3])
    lrs = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Embedding(5, 3, sparse=sparse)
        optimizer = (build if sparse or build is torch.optim.SGD else torch.optim.Adam)(
            model.parameters(), lr=0.1
        )
        found = search(
            model, lambda model, x: model(x).square().sum(), [tokens], optimizer, max_grad_norm=clip
        )
        lrs.append(found.lr)
    assert lrs[0] == pytest.approx(lrs[1], rel=1e-3)


def test_a_loss_may_take_things_out_of_its_batch():
    model, (batch,) = make_model(), make_batches()
    batches = [{"inputs": batch[0], "targets": batch[1]}]
    found = search(
        model, lambda model, b: squares(model, (b.pop("inputs"), b.pop("targets"))), batches, sgd(model)
    )
    assert found.lr == search(model, squares, [batch], sgd(model)).lr
    assert list(batches[0]) == ["inputs", "targets"]


def test_weights_of_the_loss_take_part():
    model, batches = make_model(), make_batches()
    scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)

    def loss_fn(model, batch):
        inputs, targets = batch
        return (scale * model(inputs) - targets).square().mean()

    found = search(model, loss_fn, batches, optimizer)
    assert scale.item() == 1.5
    assert scale.grad is None
    joint = nn.Module()
    joint.model, joint.scale = model, scale
    exact = crossings(
        joint,
        torch.optim.SGD(joint.parameters(), lr=0.1),
        lambda joint, batch: (joint.scale * joint.model(batch[0]) - batch[1]).square().mean(),
        batches[0],
        lowest=1e-2,
        highest=1e2,
    )
    assert found.lr == pytest.approx(exact[0], rel=1e-3)


def test_a_loss_that_differentiates_within_itself():
    model, (batch,) = make_model(), make_batches()

    def with_penalty(model, batch):
        with torch.enable_grad():
            inputs = batch[0].clone().requires_grad_()
            (slopes,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
            return squares(model, batch) + slopes.square().mean()

    found = search(model, with_penalty, [batch], sgd(model))
    exact = crossings(model, sgd(model), with_penalty, batch, lowest=1e-2, highest=1e2)
    assert found.lr == pytest.approx(exact[0], rel=1e-3)


def test_a_compiled_model_is_searched_without_compiling():
    model, batches = make_model(), make_batches()
    plain = search(model, squares, batches, sgd(model)).lr
    compiled = torch.compile(model, backend="eager")
    assert search(compiled, squares, batches, sgd(compiled)).lr == plain


def test_our_own_optimizers_are_searched_at_their_first_step_and_later():
    model, batches = make_model(), make_batches()
    optimizer = warmfree.GIAdamW(model.parameters(), 0.01)
    first = search(model, squares, batches, optimizer).lr
    plain = search(model, squares, batches, adamw(model, weight_decay=0.0)).lr
    # GI-Adam's first step is sqrt(1 - beta2) times Adam's.
    beta2 = optimizer.param_groups[0]["betas"][1]
    assert first == pytest.approx(plain / math.sqrt(1 - beta2), rel=0.05)
