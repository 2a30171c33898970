"""A question from beginning to end: a verdict that holds together, and a run that was not touched."""

import copy
import functools
import importlib
import random
import signal
import warnings

import numpy as np
import pytest
import torch
from advised_runs import batches, check_advice, gpt, loss_fn, mlp, token_batches, token_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import warmfree
from traces import Traces
from warmfree.advice import Advice, advise

STEPS = 40  # rehearsals have 20


def ask(model, optimizer, *, found=None, loss=loss_fn, steps=STEPS, accumulate=1, **options):
    """Ask, and see that nothing changed."""
    fired = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: fired.append("before")),
        optimizer.register_step_post_hook(lambda *_: fired.append("after")),
    ]
    before = Traces(model, optimizer)
    advice = advise(
        model,
        loss,
        batches() if found is None else found,
        optimizer,
        steps=steps,
        batch_size=16 * accumulate,
        accumulate=accumulate,
        **options,
    )
    assert before.differences(Traces(model, optimizer)) == []
    assert fired == []
    for handle in handles:
        handle.remove()
    assert isinstance(advice, Advice)
    assert (advice.optimizer, advice.batch_size) == (type(optimizer).__name__, 16 * accumulate)
    check_advice(advice, steps=steps)
    return advice


def train(model, optimizer, steps=3):
    for pair in batches(steps, seed=9):
        optimizer.zero_grad()
        loss_fn(model, pair).backward()
        optimizer.step()


def verdicts(advice):
    return [(one.optimizer, one.warmup) for one in advice.evidence.rehearsal.candidates]


def test_a_small_learning_rate_needs_no_warmup():
    model = mlp()
    advice = ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    assert (advice.verdict, advice.confidence) == ("no warmup", "high")
    assert advice.doubts == ()
    assert advice.summary() == "AdamW needs no warmup at learning rate 0.001."
    assert verdicts(advice) == [("AdamW", 0), ("AdamW", 7), ("AdamW", 12)]


def test_a_gpt_at_a_sane_and_at_a_crashing_learning_rate():
    model = gpt()
    sane = ask(model, torch.optim.AdamW(model.parameters(), lr=3e-3), found=token_batches(), loss=token_loss)
    assert sane.verdict == "no warmup"
    crash = ask(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.3),
        found=token_batches(60),
        loss=token_loss,
        steps=200,
    )
    assert crash.verdict in ("warmup", "replace")
    assert ("AdamW2", 0) in verdicts(crash)
    assert crash.reasons[0].startswith("Mean loss over the last 25 of 100 steps rehearsed: ")


OPTIMIZERS = {
    "SGD": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr),
    "SGD, momentum": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9),
    "Adam": lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr / 10),
    "AdamW, groups": lambda m, lr: torch.optim.AdamW(
        [{"params": [p], "lr": lr / 10 / (index + 1)} for index, p in enumerate(m.parameters())]
    ),
    "AdamW, Tensor lr": lambda m, lr: torch.optim.AdamW(m.parameters(), lr=torch.tensor(lr / 10)),
    "Muon": lambda m, lr: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=lr / 10),
    "AdamW2": lambda m, lr: warmfree.AdamW2(m.parameters(), lr=lr / 10),
    "GIAdamW": lambda m, lr: warmfree.GIAdamW(m.parameters(), lr=lr / 10),
    "LionA": lambda m, lr: warmfree.LionA(m.parameters(), lr=lr / 10),
    "LionAR": lambda m, lr: warmfree.LionAR(m.parameters(), lr=lr / 10, weight_decay=0.1),
    "Adagrad": lambda m, lr: torch.optim.Adagrad(m.parameters(), lr=lr / 10),
}
MODELS = {
    "plain": mlp,
    "dropout": lambda: mlp(torch.float32, nn.Dropout(0.2)),
    "batch norm": lambda: mlp(torch.float32, nn.BatchNorm1d(12)),
}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    network=st.sampled_from(list(MODELS)),
    power=st.integers(-3, 2),
    before=st.integers(0, 2),
    accumulate=st.sampled_from([1, 2]),
    max_grad_norm=st.sampled_from([None, 1.0]),
    rehearse=st.booleans(),
    steps=st.sampled_from([1, 7, 8, 24]),
)
def test_every_advice_holds_together_and_nothing_is_touched(
    name, network, power, before, accumulate, max_grad_norm, rehearse, steps
):
    model = MODELS[network]()
    optimizer = OPTIMIZERS[name](model, 10.0**power)
    train(model, optimizer, before)
    advice = ask(
        model, optimizer, steps=steps, accumulate=accumulate, max_grad_norm=max_grad_norm, rehearse=rehearse
    )
    assert (advice.evidence.rehearsal is not None) == (rehearse and steps >= 4)
    if before or name not in ("Adam", "AdamW, groups", "AdamW, Tensor lr", "GIAdamW"):
        assert advice.replacement is None
    torch.manual_seed(3)
    train(model, optimizer, 2)
    twin = MODELS[network]()
    others = OPTIMIZERS[name](twin, 10.0**power)
    train(twin, others, before)
    torch.manual_seed(3)
    train(twin, others, 2)
    for weight, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, other) or not torch.isfinite(weight).all()


def advised(verdict, *, warmup=0, start=1.0, lr=0.5, steps=STEPS):
    """An advice like another one, but for what a schedule takes from it."""
    model = mlp()
    any_advice = advise(
        model,
        loss_fn,
        batches(3),
        torch.optim.SGD(model.parameters(), lr=lr),
        steps=steps,
        batch_size=16,
        rehearse=False,
    )
    return Advice(
        **{name: getattr(any_advice, name) for name in Advice.__slots__}
        | {"verdict": verdict, "warmup_steps": warmup, "start_lr": start * lr, "lr": lr}
    )


@pytest.mark.parametrize(("warmup", "start"), [(0, 1.0), (10, 0.0), (10, 0.25), (12, 0.7)])
@pytest.mark.parametrize("cooldown", [0, 8, 0.5])
def test_the_schedule_is_the_one_that_was_rehearsed(warmup, start, cooldown):
    advice = advised("warmup" if warmup else "no warmup", warmup=warmup, start=start)
    optimizer = torch.optim.SGD(mlp().parameters(), lr=advice.lr)
    scheduler = advice.schedule(optimizer, cooldown=cooldown)
    length = round(cooldown * STEPS) if isinstance(cooldown, float) else cooldown
    for step in range(STEPS):
        climbed = start + (1 - start) * (step + 1) / warmup if step < warmup else 1.0
        left = (STEPS - step) / length if length and STEPS - step < length else 1.0
        assert optimizer.param_groups[0]["lr"] == pytest.approx(advice.lr * climbed * left)
        if step == 5:  # a run that ends here, and is resumed
            saved = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
            optimizer = torch.optim.SGD(mlp().parameters(), lr=advice.lr)
            scheduler = advice.schedule(optimizer)
            scheduler.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        optimizer.step()
        scheduler.step()


def test_progress_is_told_in_words():
    model, heard = mlp(), []
    ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), on_progress=heard.append)
    assert heard == [
        "reading batches",
        "looking for the critical learning rate",
        "measuring the first step",
        "measuring gradient noise",
        "measuring sharpness",
        "rehearsing 20 steps of AdamW, warmup none",
        "rehearsing 20 steps of AdamW, warmup 7",
        "rehearsing 20 steps of AdamW, warmup 12",
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("how", [signal.raise_signal, None])
def test_an_interrupt_while_progress_is_told(number, how):
    model, told = mlp(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def interrupt(what):
        told.append(what)
        if len(told) == number + 1:
            if how is None:
                raise KeyboardInterrupt
            how(signal.SIGINT)

    before = Traces(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        advise(model, loss_fn, batches(), optimizer, steps=STEPS, batch_size=16, on_progress=interrupt)
    assert before.differences(Traces(model, optimizer)) == []
    assert len(told) == number + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class MineError(Exception):
    pass


class Failing:
    """A loss_fn that raises when it is called for the n-th time."""

    def __init__(self, call, error):
        self.calls, self.call, self.error = 0, call, error

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return loss_fn(model, batch)


def ask_failing(model, optimizer, failing):
    advise(model, failing, batches(), optimizer, steps=STEPS, batch_size=16)


@functools.cache
def calls_in_all():
    model, counting = mlp(torch.float32, nn.Dropout(0.1)), Failing(0, None)
    ask_failing(model, torch.optim.AdamW(model.parameters(), lr=1e-3), counting)
    return counting.calls


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0, 1, exclude_max=True),
    error=st.sampled_from([MineError, KeyboardInterrupt, TypeError, AssertionError]),
)
def test_what_loss_fn_raises_is_what_comes_out(share, error):
    model = mlp(torch.float32, nn.Dropout(0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    failing = Failing(1 + int(share * calls_in_all()), error("mine"))
    before = Traces(model, optimizer)
    with pytest.raises(error) as found:
        ask_failing(model, optimizer, failing)
    assert found.value is failing.error
    assert failing.calls == failing.call
    assert before.differences(Traces(model, optimizer)) == []


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_the_batches_is_not_taken_for_a_loss_that_rises(seed):
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(4, 4, generator=generator) * (1 + index % 3) for index in range(10)]
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    advice = ask(model, optimizer, found=found, loss=lambda model, x: (model(x) - x.sum(1)).square().mean())
    assert advice.verdict != "unknown"
    losses = [one.loss for one in advice.evidence.rehearsal.candidates]
    assert min(losses) < advice.evidence.rehearsal.initial_loss


def test_without_a_rehearsal_the_evidence_decides():
    model = mlp()
    few = ask(model, torch.optim.AdamW(model.parameters(), lr=1e-4), rehearse=False)
    assert (few.verdict, few.confidence) == ("no warmup", "low")
    many = ask(model, torch.optim.AdamW(model.parameters(), lr=1.0), rehearse=False)
    assert (many.verdict, many.warmup_steps) == ("warmup", 12)  # the longest, 0.3 of the run
    assert many.start_lr < 0.1
    assert any("follow 12 steps of warmup" in reason for reason in many.reasons)
    assert any("No steps were rehearsed" in doubt for doubt in many.doubts)


def test_fewer_batches_than_steps_are_used_again_and_said_so():
    model = mlp()
    advice = ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), found=batches(2))
    assert advice.evidence.rehearsal.repeated == 10.0
    assert advice.confidence != "high"
    assert any("There were batches for 2 steps, of 20 rehearsed" in doubt for doubt in advice.doubts)


def test_what_a_step_leaves_over_is_not_used():
    model = mlp()
    advice = ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), found=batches(5), accumulate=2)
    assert advice.evidence.rehearsal.repeated == 10.0


def test_a_loader_goes_on_where_it_was():
    model = mlp()
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True, generator=generator)
    state = generator.get_state()
    ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), found=loader)
    assert torch.equal(generator.get_state(), state)
    # Without one of its own it draws from the global generator, which `ask` looks at.
    ask(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        found=DataLoader(TensorDataset(inputs, targets), 16, True),
    )


def test_batches_that_draw_random_numbers_leave_them():
    model = mlp()

    class Drawing:
        def __iter__(self):
            for inputs, targets in batches():
                yield inputs + torch.randn_like(inputs) + random.random() + np.random.rand(), targets  # noqa: NPY002

    ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), found=Drawing())


def test_an_iterator_is_warned_of_where_it_was_passed():
    model = mlp()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3), found=(one for one in batches()))
    (warning,) = caught
    assert "20 were taken from it" in str(warning.message)
    assert warning.filename == __file__


def test_a_scheduler_stays_where_it_is():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = LambdaLR(optimizer, lambda step: min(step / 10, 1.0))
    advice = ask(model, optimizer)  # at 0 now
    assert advice.lr == 1e-3
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert not any("scheduler" in doubt for doubt in advice.doubts)
    optimizer.step()
    scheduler.step()
    assert ask(model, optimizer).lr == 1e-3  # the full one, not the tenth of it that the schedule is at
    assert optimizer.param_groups[0]["lr"] == 1e-4
    with pytest.raises(
        ValueError, match=r"the advice is for learning rate 0\.5, the schedule would start from"
    ):
        advised("no warmup", lr=0.5).schedule(optimizer)


def test_a_group_that_stands_still_is_no_reference():
    model = mlp()
    first, *others = model.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.0}, {"params": others}], lr=1e-3)
    advice = ask(model, optimizer)
    assert advice.lr == advice.evidence.critical.target == 1e-3
    assert advice.evidence.sharpness is not None
    advice.schedule(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 1e-3]


def test_a_run_that_has_begun_has_no_replacement():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    fresh = ask(model, optimizer)
    assert ("AdamW2", 0) in verdicts(fresh)
    train(model, optimizer)
    begun = ask(model, optimizer)
    assert begun.replacement is None
    assert {name for name, _ in verdicts(begun)} == {"AdamW"}


def test_long_batches_are_held_up_to_a_bound(monkeypatch):
    inputs, targets = batches(1)[0]
    module = importlib.import_module("warmfree.advice.advise")  # the package's name for it is the function
    monkeypatch.setattr(module, "_BATCH_MEMORY", 4 * (inputs.nbytes + targets.nbytes))
    model = mlp()
    advice = ask(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    assert advice.evidence.rehearsal.repeated == 20 / 4


def nan_loss(model, batch):
    return loss_fn(model, batch) * float("nan")


BAD = {
    "no steps": ({"steps": 0}, ValueError, "steps must be an int >= 1, got 0"),
    "steps that are no int": ({"steps": 10.0}, ValueError, "steps must be an int >= 1"),
    "no batch size": ({"batch_size": 0}, ValueError, "batch_size must be an int >= 1"),
    "no accumulation": ({"accumulate": 0}, ValueError, "accumulate must be an int >= 1"),
    "no batches": ({"batches": []}, ValueError, "batches is empty"),
    "less than a step": ({"batches": batches(1), "accumulate": 2}, ValueError, "only 1 of the 2"),
    "a single batch": ({"batches": batches(1)[0][0]}, TypeError, "must be an iterable of batches"),
    "a loss that is not finite": ({"loss_fn": nan_loss}, ValueError, "the loss is nan before any step"),
    "a loss that is no tensor": ({"loss_fn": lambda m, b: 1.0}, TypeError, "must return a scalar tensor"),
    "no clipping": ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be > 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_changed(case):
    changed, error, message = BAD[case]
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    given = {"loss_fn": loss_fn, "batches": batches(), "steps": STEPS, "batch_size": 16} | changed
    before = Traces(model, optimizer)
    with pytest.raises(error, match=message):
        advise(model, given.pop("loss_fn"), given.pop("batches"), optimizer, **given)
    assert before.differences(Traces(model, optimizer)) == []


def test_models_and_optimizers_that_do_not_train_are_refused():
    model = mlp()
    with pytest.raises(TypeError, match=r"LBFGS.step needs 'closure'"):
        advise(model, loss_fn, batches(), torch.optim.LBFGS(model.parameters()), steps=STEPS, batch_size=16)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer"):
        advise(model, loss_fn, batches(), model.parameters(), steps=STEPS, batch_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="learning rates must be finite"):
        advise(model, loss_fn, batches(), optimizer, steps=STEPS, batch_size=16)
    model.eval()
    with pytest.raises(ValueError, match="in eval mode"):
        advise(model, loss_fn, batches(), torch.optim.SGD(model.parameters()), steps=STEPS, batch_size=16)
