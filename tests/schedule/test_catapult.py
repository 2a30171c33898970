"""The persistent catapult warmup: algorithm 3 on replayed runs, and a scheduler that training does not notice."""

import copy
import io
import math
import pickle
import signal
from itertools import pairwise

import pytest
import torch
from critical_cases import own_loss, random_quadratic, rise, squares, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from processes import spawn
from traces import Traces, bits
from warmfree.schedule.catapult import CatapultWarmup
from warmfree.schedule.shapes import Cosine, Trapezoid

OPTIMIZERS = {
    "SGD": (lambda p, lr: torch.optim.SGD(p, lr=lr), 1.0),
    "SGD, heavy ball": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 1.0),
    "Adam": (lambda p, lr: torch.optim.Adam(p, lr=lr), 2.0),
}


def sharp_start(seed=2):
    """A small network whose first sharpness is many times that which it trains at, and a full batch."""
    torch.manual_seed(seed)
    inputs = torch.randn(32, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        model[2].weight.mul_(4.0)
    return model, (inputs, torch.sin(2 * inputs[:, :1]))


def sharpness(model, batch):
    """The largest eigenvalue of the dense Hessian."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [weight.shape for weight in model.parameters()]

    def loss(weights):
        parts = weights.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return 0.5 * (torch.func.functional_call(model, given, (batch[0],)) - batch[1]).square().mean()

    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, weights))[-1].item()


def follow(scheduler, model, batch, *, steps, loss_fn=squares):
    """Train on a full batch; return the loss before, and the learning rate of, each step."""
    rows = []
    for _ in range(steps):
        rows.append((loss_fn(model, batch).item(), float(scheduler.optimizer.param_groups[0]["lr"])))
        train(model, scheduler.optimizer, loss_fn, batch, steps=1)
        scheduler.step()
    return rows


def quadratic(curvature, lr, start=1.0):
    """curvature w^2 / 2, with one weight of two that moves."""
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    model = nn.Module()
    model.weight = weight
    return (
        model,
        torch.optim.SGD([weight], lr=lr),
        lambda model, _: 0.5 * curvature * model.weight.square().sum(),
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3])
def test_a_replayed_run_obeys_algorithm_3(name, every):
    make, target = OPTIMIZERS[name]
    model, batch = sharp_start()
    optimizer = make(model.parameters(), target)
    tolerance = 0.1 if "SGD" in name else 0.01
    start = copy.deepcopy((model, optimizer))
    scheduler = CatapultWarmup(optimizer, model, squares, [batch], every=every)
    follow(scheduler, model, batch, steps=40)

    model, optimizer = start
    found = {step: (lr, loss) for step, lr, loss in scheduler.history}
    reference, lr = math.inf, None
    for step in range(40):
        loss = squares(model, batch).item()
        is_due = step % every == 0 and (lr is None or lr < target)
        assert (step in found) == (is_due and loss < reference)
        if step in found:
            before, (lr, known), reference = lr, found[step], loss
            assert known == loss
            if rise(model, optimizer, squares, batch, lr) <= tolerance * loss:
                # Above the critical learning rate, or a hair below it where the loss is steep.
                assert lr == target or rise(model, optimizer, squares, batch, 1.1 * lr) > 0
            else:
                assert lr == before
                assert (
                    min(rise(model, optimizer, squares, batch, lr * part) for part in (1, 0.1, 0.01, 1e-3))
                    > 0
                )
        optimizer.param_groups[0]["lr"] = lr
        train(model, optimizer, squares, batch, steps=1)
    assert len(found) > 1
    assert scheduler.searches == len(found)


def test_catapults_lower_the_sharpness_until_the_target_is_stable():
    """Where a linear warmup of 100 steps diverges, the target is reached in a tenth of that."""
    for seed in (1, 2):
        target = 1.0
        model, batch = sharp_start(seed)
        first = sharpness(model, batch)
        assert first > 2 / target * 2
        losses = []
        linear = copy.deepcopy(model)
        optimizer = torch.optim.SGD(linear.parameters(), lr=target)
        for step in range(150):
            optimizer.param_groups[0]["lr"] = target * min(1.0, (step + 1) / 100)
            losses.append(squares(linear, batch).item())
            train(linear, optimizer, squares, batch, steps=1)
        assert not losses[-1] < 1e3

        optimizer = torch.optim.SGD(model.parameters(), lr=target)
        scheduler = CatapultWarmup(optimizer, model, squares, [batch])
        rows = follow(scheduler, model, batch, steps=300)
        assert 0 < scheduler.reached <= 15
        assert 2 / first < scheduler.history[0][1] < target  # above the critical one, below the target
        assert any(later > before for (before, _), (later, _) in pairwise(rows[: scheduler.reached + 1]))
        assert sharpness(model, batch) < 2.2 / target
        assert rows[-1][0] < 0.1 * rows[0][0]


def test_on_a_network_that_sharpens_it_follows_two_over_the_sharpness():
    torch.manual_seed(0)
    inputs = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
    model, batch = (
        nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double(),
        (inputs, inputs.sin()),
    )
    scheduler = CatapultWarmup(torch.optim.SGD(model.parameters(), lr=2.0), model, squares, [batch])
    products = []
    for _ in range(60):
        follow(scheduler, model, batch, steps=1)
        if scheduler.history[-1][0] == scheduler.last_epoch:
            products.append(scheduler.get_last_lr()[0] * sharpness(model, batch))
    assert len(products) > 10
    assert all(2.0 < product < 2.4 for product in products)


@given(st.floats(0.1, 100.0), st.floats(0.02, 0.5), st.floats(1.1, 1000.0))
@settings(max_examples=25, deadline=None)
def test_on_a_parabola_it_starts_just_above_two_over_the_curvature(curvature, tolerance, above):
    model, optimizer, loss_fn = quadratic(curvature, above * 2 / curvature)
    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None], tolerance=tolerance)
    # After a step of z / curvature the loss is (1 - z)^2 times what it was.
    assert (
        2.0 <= scheduler.get_last_lr()[0] * curvature <= min(1 + math.sqrt(1 + tolerance), 2 * above) + 1e-9
    )
    assert scheduler.reached is (0 if scheduler.get_last_lr()[0] == scheduler.target else None)


def test_a_target_below_the_critical_learning_rate_is_there_at_once_and_costs_four_passes():
    calls = 0

    def counted(model, batch):
        nonlocal calls
        calls += 1
        return own_loss(model, batch)

    model = random_quadratic(6)
    scheduler = CatapultWarmup(torch.optim.SGD(model.parameters(), lr=1.5), model, counted, [None])
    assert (scheduler.reached, scheduler.forward_passes, calls) == (0, 4, 4)
    rows = follow(scheduler, model, None, steps=5, loss_fn=own_loss)
    assert [lr for _, lr in rows] == [1.5] * 5
    assert (scheduler.searches, calls) == (1, 4)


def test_passes_are_counted_and_micro_batches_make_one_step():
    calls = 0

    def counted(model, batch):
        nonlocal calls
        calls += 1
        return squares(model, batch)

    model, batch = sharp_start()
    whole = copy.deepcopy(model)
    halves = [tuple(part[:16] for part in batch), tuple(part[16:] for part in batch)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = CatapultWarmup(optimizer, model, counted, halves, accumulate=2)
    follow(scheduler, model, batch, steps=5)
    assert calls == 2 * scheduler.forward_passes
    other = CatapultWarmup(torch.optim.SGD(whole.parameters(), lr=1.0), whole, squares, [batch])
    assert other.history[0] == pytest.approx(scheduler.history[0])


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=1024.0)])
def test_the_step_that_is_tried_is_clipped_and_scaled_as_training_is(scaler):
    model, optimizer, loss_fn = quadratic(8.0, 100.0, start=3.0)
    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None], max_grad_norm=6.0, scaler=scaler)
    # The gradient is 24, clipped to a quarter.
    assert 4 * 2.0 <= scheduler.get_last_lr()[0] * 8.0 <= 4 * (1 + math.sqrt(1.1)) + 1e-4


class Noisy(nn.Module):
    """Draws random numbers and counts in training mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 1)
        )

    def forward(self, inputs):
        return self.body(inputs)


class Run:
    """Mini-batches, two groups, a decay: what a scheduler may disturb."""

    def __init__(self, *, tensor_lr=False, adam=True, lr=3.0):
        torch.manual_seed(1)
        self.model = Noisy()
        with torch.no_grad():
            self.model.body[4].weight.mul_(6.0)
        weights = list(self.model.parameters())
        rates = [torch.tensor(lr * ratio) if tensor_lr else lr * ratio for ratio in (1.0, 0.5)]
        groups = [{"params": weights[:2], "lr": rates[0]}, {"params": weights[2:], "lr": rates[1]}]
        self.optimizer = torch.optim.Adam(groups) if adam else torch.optim.SGD(groups, momentum=0.9)
        inputs = torch.randn(30, 16, 4)
        self.batches = list(zip(inputs, inputs[..., :1].sin() * 3, strict=True))

    def schedule(self, **options):
        return CatapultWarmup(self.optimizer, self.model, squares, self.batches, **options)

    def step(self, number):
        train(self.model, self.optimizer, squares, self.batches[number % 30], steps=1)

    def rates(self):
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def bits(self):
        state = self.optimizer.state_dict()["state"]
        values = [*self.model.state_dict().values(), *(v for one in state.values() for v in one.values())]
        return [
            bits(value) for value in values if isinstance(value, torch.Tensor)
        ], torch.get_rng_state().tolist()


@pytest.mark.parametrize("adam", [True, False])
def test_training_is_that_with_the_same_learning_rates_set_by_hand(adam):
    run = Run(adam=adam)
    scheduler = run.schedule(every=2, then=Trapezoid(steps=30))
    rates = []
    for number in range(30):
        rates.append(run.rates())
        run.step(number)
        scheduler.step()
    ours, twin = run.bits(), Run(adam=adam)
    for number, lrs in enumerate(rates):
        for group, lr in zip(twin.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        twin.step(number)
    assert scheduler.searches > 1
    assert ours == twin.bits()


@pytest.mark.parametrize("cut", [0, 1, 7, 29])
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("scheduler_first", [False, True])
def test_resumed_from_plain_values_it_continues_to_the_last_bit(cut, tensor_lr, scheduler_first):
    options = {"tolerance": 0.02, "every": 2, "then": Cosine(steps=30, end=0.1)}

    def go(run, scheduler, numbers):
        rates = []
        for number in numbers:
            run.step(number)
            scheduler.step()
            rates.append(run.rates())
        return rates

    whole = Run(tensor_lr=tensor_lr)
    undisturbed = whole.schedule(**options)
    rates = go(whole, undisturbed, range(30))

    run = Run(tensor_lr=tensor_lr)
    scheduler = run.schedule(**options)
    seen = go(run, scheduler, range(cut))
    file = io.BytesIO()
    parts = {"model": run.model, "optimizer": run.optimizer, "scheduler": scheduler}
    torch.save(
        {**{name: part.state_dict() for name, part in parts.items()}, "rng": torch.get_rng_state()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)

    run = Run(tensor_lr=tensor_lr)
    # Made with other settings: what was saved must win.
    if scheduler_first:
        scheduler = run.schedule(search=False, every=5)
        run.optimizer.load_state_dict(state["optimizer"])
    else:
        run.optimizer.load_state_dict(state["optimizer"])
        scheduler = run.schedule(monotone=True)  # its own search must be forgotten
    run.model.load_state_dict(state["model"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    assert seen + go(run, scheduler, range(cut, 30)) == rates
    assert run.bits() == whole.bits()
    assert scheduler.history == undisturbed.history
    assert scheduler.forward_passes == undisturbed.forward_passes
    assert scheduler.then == options["then"]


def test_without_a_search_a_state_is_needed():
    run = Run()
    before = run.bits()
    scheduler = run.schedule(search=False)
    assert run.bits() == before
    assert (run.rates(), scheduler.forward_passes, scheduler.reached) == ([3.0, 1.5], 0, None)
    run.step(0)
    with pytest.raises(RuntimeError, match="needs a state: call load_state_dict first"):
        scheduler.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue(duplicate):
    run = Run()
    scheduler = run.schedule(then=Cosine(steps=20))
    run.step(0)
    scheduler.step()
    twin, copied = duplicate((run, scheduler))
    for number in range(1, 6):
        rates = []
        for one, of_it in ((run, scheduler), (twin, copied)):
            torch.manual_seed(number)
            one.step(number)
            of_it.step()
            rates.append(one.rates())
        assert rates[0] == rates[1]
    assert run.bits() == twin.bits()


@pytest.fixture
def _ctrl_c():
    """Let SIGINT raise, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise OSError("the disk is gone")


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize(("how", "error"), [(interrupt, KeyboardInterrupt), (fail, OSError)])
@pytest.mark.parametrize("visit", [1, 2, 4])
def test_what_ends_a_step_leaves_all_as_it_was_and_the_step_can_be_made_again(how, error, visit):
    left = 0

    def loss_fn(model, batch):
        nonlocal left
        left -= 1
        if left == 0:
            how()
        return squares(model, batch)

    def start():
        model, batch = sharp_start()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
        scheduler = CatapultWarmup(optimizer, model, loss_fn, [batch], tolerance=0.01)
        train(model, optimizer, squares, batch, steps=2)
        assert squares(model, batch).item() < scheduler.history[0][2]
        return model, optimizer, scheduler

    def everything(model, optimizer, scheduler):
        return Traces(model, optimizer), scheduler.state_dict()

    undisturbed = start()
    undisturbed[-1].step()
    assert undisturbed[-1].searches == 2
    run = start()
    traces, state = everything(*run)
    left = visit
    with pytest.raises(error):
        run[-1].step()
    after, state_after = everything(*run)
    assert traces.differences(after) == []
    assert state_after == state
    run[-1].step()
    assert run[-1].state_dict() == undisturbed[-1].state_dict()


def test_a_constructor_that_fails_leaves_the_optimizer_alone():
    model, batch = sharp_start()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = Traces(model, optimizer)
    with pytest.raises(OSError, match="the disk"):
        CatapultWarmup(optimizer, model, lambda model, batch: fail(), [batch])
    with pytest.raises(ValueError, match="the loss is nan before any step"):
        CatapultWarmup(optimizer, model, lambda model, batch: squares(model, batch) * math.nan, [batch])
    assert before.differences(Traces(model, optimizer)) == []


def test_losses_of_different_steps_are_drawn_alike():
    """Weights that do not move have the same loss, whatever was drawn meanwhile, so that nothing is searched."""
    run = Run()
    scheduler = run.schedule()
    assert scheduler.reached is None
    for _ in range(5):
        torch.rand(3)
        run.optimizer.zero_grad()
        run.optimizer.step()
        before = torch.get_rng_state()
        passes = scheduler.forward_passes
        scheduler.step()
        assert torch.equal(torch.get_rng_state(), before)
        assert scheduler.forward_passes == passes + 1
    assert scheduler.searches == 1


def test_groups_keep_their_proportions_and_a_tensor_lr_its_place():
    run = Run(tensor_lr=True)
    plain = Run()
    tensors = [group["lr"] for group in run.optimizer.param_groups]
    schedulers = run.schedule(), plain.schedule()
    for number in range(10):
        assert run.rates() == pytest.approx(plain.rates(), rel=1e-4)
        assert run.rates()[1] == pytest.approx(run.rates()[0] / 2)
        for one, scheduler in zip((run, plain), schedulers, strict=True):
            torch.manual_seed(number)
            one.step(number)
            scheduler.step()
    assert all(group["lr"] is lr for group, lr in zip(run.optimizer.param_groups, tensors, strict=True))
    assert schedulers[0].target == 3.0


def test_then_is_the_smaller_one_and_nothing_is_probed_where_it_is():
    shape = Trapezoid(steps=40, cooldown=1.0)
    model, batch = sharp_start()
    twin = copy.deepcopy(model)
    target = 8.0  # above what this network bears: the warmup alone would not end
    scheduler = CatapultWarmup(
        torch.optim.SGD(model.parameters(), lr=target), model, squares, [batch], then=shape, tolerance=0.01
    )
    alone = CatapultWarmup(
        torch.optim.SGD(twin.parameters(), lr=target), twin, squares, [batch], tolerance=0.01
    )
    assert scheduler.history == alone.history
    passes = []
    for step in range(40):
        ((_, lr),) = follow(scheduler, model, batch, steps=1)
        passes.append(scheduler.forward_passes)
        catapult = max(entry for entry in scheduler.history if entry[0] <= step)[1]
        assert lr == pytest.approx(min(catapult, target * shape(step)))
    bound = next(step for step in range(40) if target * shape(step) < scheduler.history[-1][1])
    assert passes[bound] == passes[-1]
    assert scheduler.get_last_lr() == [0.0]


def push(model, optimizer, *, weight, momentum):
    """Put a run of one weight into a state."""
    with torch.no_grad():
        model.weight.fill_(weight)
    optimizer.state[model.weight]["momentum_buffer"] = torch.full_like(model.weight, momentum)


def uphill_problem():
    model, _, loss_fn = quadratic(1.0, 1.0, start=2.0)
    return model, torch.optim.SGD(model.parameters(), lr=8.0, momentum=0.9), loss_fn


def test_where_momentum_carries_uphill_the_learning_rate_stays():
    model, optimizer, loss_fn = uphill_problem()
    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None])
    first = scheduler.get_last_lr()
    assert 2.0 <= first[0] < 2.1
    train(model, optimizer, loss_fn, None, steps=1)
    push(model, optimizer, weight=1.0, momentum=-100.0)
    scheduler.step()
    assert scheduler.get_last_lr() == first
    assert [entry[1:] for entry in scheduler.history] == [(first[0], 2.0), (first[0], 0.5)]


def test_before_the_first_step_uphill_means_the_smallest_one_tried():
    model, optimizer, loss_fn = uphill_problem()
    push(model, optimizer, weight=1.0, momentum=-100.0)
    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None])
    assert 0 < scheduler.get_last_lr()[0] <= 8.0 * 1e-3


@pytest.mark.parametrize("monotone", [False, True])
def test_it_follows_the_critical_learning_rate_down_unless_monotone(monotone):
    model, optimizer, loss_fn = uphill_problem()
    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None], monotone=monotone)
    train(model, optimizer, loss_fn, None, steps=1)
    push(
        model, optimizer, weight=1.0, momentum=10.0
    )  # u = 10 takes the weight down to 0 with a tenth of that
    scheduler.step()
    lr = scheduler.get_last_lr()[0]
    assert 2.0 <= lr < 2.1 if monotone else 0.2 <= lr < 0.21


def test_a_search_that_runs_out_of_passes_takes_what_is_safe():
    model, optimizer, _ = quadratic(1.0, 400.0)
    model.curvature = 1.0

    def loss_fn(model, batch):
        return 1.0 + 0.5 * model.curvature * model.weight.square().sum()

    scheduler = CatapultWarmup(optimizer, model, loss_fn, [None], max_passes=4)
    first = scheduler.get_last_lr()[0]
    assert 1.6 < first < 2.0  # of 400 and this the largest one at which the loss falls
    train(model, optimizer, loss_fn, None, steps=1)
    model.curvature = 1e-3
    scheduler.step()
    assert first < scheduler.get_last_lr()[0] < 400.0  # two trials do not lead to the target


def test_a_later_search_that_fails_warns_and_the_learning_rate_stays():
    model, batch = sharp_start()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = CatapultWarmup(optimizer, model, squares, [batch], tolerance=0.01)
    train(model, optimizer, squares, batch, steps=2)
    before = scheduler.get_last_lr()
    overflow = model[0].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.warns(UserWarning, match="the learning rate stays: the gradient of .* is not finite"):
        scheduler.step()
    overflow.remove()
    assert scheduler.get_last_lr() == before
    assert scheduler.searches == 1
    assert scheduler.last_epoch == 1


def test_a_model_in_eval_mode_is_refused_at_every_check():
    model, batch = sharp_start()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = CatapultWarmup(optimizer, model, squares, [batch])
    optimizer.step()
    model.eval()
    with pytest.raises(ValueError, match=r"eval mode.*call model.train\(\)"):
        scheduler.step()
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be an int >= 1, got 0"),
        ({"accumulate": 1.5}, ValueError, "accumulate must be an int >= 1, got 1.5"),
        ({"accumulate": 2}, ValueError, "batches has only 1 of the 2"),
        ({"max_passes": 3}, ValueError, "max_passes must be an int >= 4, got 3"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be > 0 and finite, got 0.0"),
        ({"precision": math.nan}, ValueError, "precision must be > 0 and finite, got nan"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be > 0 and finite, got 0.0"),
        ({"then": lambda step: 1.0}, TypeError, "then must be a Shape"),
        ({"lr": 0.0}, ValueError, "not all 0"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": torch.ones(2)}, TypeError, "for a single batch pass"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, TypeError, "without a closure"),
        ({"loss_fn": lambda model, batch: 3.0}, TypeError, "must return a scalar tensor"),
    ],
)
def test_bad_arguments(options, error, message):
    model, batch = sharp_start()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    given = {"optimizer": optimizer, "loss_fn": squares, "batches": [batch], **options}
    before = Traces(model, optimizer)
    with pytest.raises(error, match=message):
        CatapultWarmup(given.pop("optimizer"), model, given.pop("loss_fn"), given.pop("batches"), **given)
    assert before.differences(Traces(model, optimizer)) == []


def test_an_epoch_is_refused():
    model, batch = sharp_start()
    scheduler = CatapultWarmup(torch.optim.SGD(model.parameters(), lr=0.1), model, squares, [batch])
    scheduler.optimizer.step()
    with pytest.raises(TypeError, match="takes no epoch"):
        scheduler.step(3)


def compare_with_one_process(rank):
    model, batch = sharp_start()
    alone = copy.deepcopy(model)
    mine = tuple(part[16 * rank : 16 * rank + 16] for part in batch)
    spread = nn.parallel.DistributedDataParallel(model)
    scheduler = CatapultWarmup(torch.optim.SGD(model.parameters(), lr=1.0), spread, squares, [mine])
    follow(scheduler, spread, mine, steps=3)
    other = CatapultWarmup(torch.optim.SGD(alone.parameters(), lr=1.0), alone, squares, [batch])
    follow(other, alone, batch, steps=3)
    assert scheduler.searches > 1
    for ours, theirs in zip(scheduler.history, other.history, strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)  # the search may turn otherwise where rounding decides
    follow(scheduler, spread, mine, steps=10)
    histories = [None, None]
    torch.distributed.all_gather_object(histories, scheduler.history)
    assert histories[0] == histories[1]


def test_processes_share_one_learning_rate():
    spawn(compare_with_one_process, 2)
