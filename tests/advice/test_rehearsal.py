"""A rehearsal is real training, and none of it happened."""

import copy
import gc
import importlib
import math
import random
import signal
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsal_cases import OPTIMIZERS, batches, groups_of, loss_fn, losses_of_training, network, train
from torch import nn

import warmfree
from traces import Traces
from warmfree.advice.rehearsal import Stage, judged_steps
from warmfree.measure.kept import Kept
from warmfree.measure.unchanged import unchanged
from warmfree.schedule.shapes import Constant

LENGTH = 8


def run_of(name="AdamW", *, steps=0, lr=0.01, dtype=torch.float64):
    model = network(dtype)
    optimizer = OPTIMIZERS[name](groups_of(model, lr))
    if steps:
        train(model, optimizer, steps)
    return model, optimizer


def in_steps(found, accumulate=1):
    return [found[first : first + accumulate] for first in range(0, len(found), accumulate)]


def stage_in(session, model, optimizer, *, length=LENGTH, loss=loss_fn, found=None, **options):
    found = in_steps(batches(LENGTH)) if found is None else found
    return Stage(session, model, loss, optimizer, found, length=length, **options)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    before=st.integers(0, 2),
    warmup=st.integers(0, 2 * LENGTH),
    start=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    accumulate=st.sampled_from([1, 2]),
    number=st.integers(1, LENGTH),
    max_grad_norm=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 9),
)
def test_losses_are_those_of_training_to_the_last_bit(
    name, before, warmup, start, accumulate, number, max_grad_norm, seed
):
    model, optimizer = run_of(name, steps=before)
    found = in_steps(batches(number * accumulate), accumulate)
    torch.manual_seed(seed)
    expected = losses_of_training(
        model,
        optimizer,
        found,
        length=LENGTH,
        multiplier=Constant(warmup=warmup, start=start),
        max_grad_norm=max_grad_norm,
    )
    traces = Traces(model, optimizer)
    with unchanged(model, optimizer) as session:
        stage = stage_in(session, model, optimizer, found=found, max_grad_norm=max_grad_norm)
        rehearsed = stage.rehearse(warmup=warmup, start=start)
    assert traces.differences(Traces(model, optimizer)) == []
    if max_grad_norm is None:
        assert list(rehearsed.losses) == expected
    else:  # norms of several tensors are added up in another order than torch's
        assert rehearsed.losses == pytest.approx(expected, rel=1e-9)
    assert rehearsed.loss == math.fsum(rehearsed.losses[-2:]) / 2
    assert stage.result().repeated == LENGTH / number
    assert stage.result().forward_passes == LENGTH


def test_another_optimizer_trains_as_it_would():
    model, optimizer = run_of("AdamW")

    def build(weights=None):
        return warmfree.AdamW2(groups_of(model if weights is None else weights, 0.02))

    other = copy.deepcopy(model)
    torch.manual_seed(3)
    expected = losses_of_training(
        other, build(other), in_steps(batches(LENGTH)), length=LENGTH, multiplier=Constant()
    )
    traces = Traces(model, optimizer)
    with unchanged(model, optimizer) as session:
        found = stage_in(session, model, optimizer).rehearse(build=build)
    assert list(found.losses) == expected
    assert found.optimizer == "AdamW2"
    assert traces.differences(Traces(model, optimizer)) == []


@pytest.mark.parametrize("name", ["AdamW", "SGD, momentum", "LionAR", "wrap(SGD)"])
@pytest.mark.parametrize("before", [0, 2])
def test_candidates_see_nothing_of_each_other(name, before):
    model, optimizer = run_of(name, steps=before)
    candidates = [
        {},
        {"warmup": 3, "start": 0.5},
        {"warmup": 20},
        {"build": lambda: warmfree.AdamW2(groups_of(model))},
        {"build": lambda: torch.optim.SGD(groups_of(model, 1e30))},  # leaves inf and nan behind
    ]

    def losses(order):
        with unchanged(model, optimizer) as session:
            stage = stage_in(session, model, optimizer)
            inside = Traces(model, optimizer)
            found = {}
            for index in order:
                # To the last bit, nan included.
                found[index] = np.array(stage.rehearse(**candidates[index]).losses).tobytes()
                assert [
                    path for path in inside.differences(Traces(model, optimizer)) if not is_gradient(path)
                ] == []
        return found

    assert losses([0, 1, 2, 3, 4]) == losses([4, 3, 0, 2, 1])


def is_gradient(path):
    """Gradients of the last step are there until the end, and versions, too."""
    return ".grad" in path or path.startswith("model.")


def test_what_the_caller_does_on_progress_changes_nothing():
    model, optimizer = run_of()

    def draw(told):
        heard.append(told)
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 (the state is what is kept)
        model[1].running_mean.add_(1.0)

    heard = []
    with unchanged(model, optimizer) as session:
        quiet = stage_in(session, model, optimizer).rehearse(warmup=2)
        loud = stage_in(session, model, optimizer, on_progress=draw).rehearse(warmup=2)
    assert quiet.losses == loud.losses
    assert heard == ["rehearsing 8 steps of AdamW, warmup 2"]


def test_nothing_is_copied_and_the_other_optimizer_is_let_go(monkeypatch):
    model, optimizer = run_of(steps=1)
    copies, made = [], []
    module = importlib.import_module("warmfree.measure.unchanged")
    monkeypatch.setattr(module, "Kept", lambda *values: copies.append(values) or Kept(*values))

    def build():
        new = warmfree.AdamW2(groups_of(model))
        made.append(weakref.ref(new))
        return new

    with unchanged(model, optimizer) as session:
        before = len(copies)
        stage = stage_in(session, model, optimizer)
        for candidate in ({}, {"warmup": 2}, {"build": build}, {}):
            stage.rehearse(**candidate)
        assert len(copies) == before
        gc.collect()
        assert made[0]() is None


def test_a_loss_that_is_not_finite_ends_a_candidate():
    model, optimizer = run_of("SGD, momentum", lr=1e30, dtype=torch.float32)
    steps = in_steps(batches(LENGTH, dtype=torch.float32))
    traces = Traces(model, optimizer)
    with unchanged(model, optimizer) as session:
        stage = stage_in(session, model, optimizer, found=steps)
        found, small = stage.rehearse(), stage.rehearse(build=lambda: torch.optim.SGD(groups_of(model, 0.01)))
    assert found.loss == math.inf
    assert 1 < len(found.losses) < LENGTH
    assert not math.isfinite(found.losses[-1])
    assert all(map(math.isfinite, found.losses[:-1]))
    assert math.isfinite(small.loss)
    assert stage.result().forward_passes == len(found.losses) + LENGTH
    assert traces.differences(Traces(model, optimizer)) == []


class CutShortError(Exception):
    pass


def boom():
    raise CutShortError


def interrupt():
    raise KeyboardInterrupt


def send_signal():
    signal.raise_signal(signal.SIGINT)


def two_candidates(stage, build):
    stage.rehearse(warmup=2)
    stage.rehearse(build=build)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    before=st.integers(0, 1),
    call=st.integers(1, 2 * LENGTH),
    after=st.booleans(),
    how=st.sampled_from([boom, interrupt, send_signal]),
    replaces=st.booleans(),
)
def test_what_is_cut_short_is_undone(name, before, call, after, how, replaces):
    model, optimizer = run_of(name, steps=before)
    calls = 0

    def failing(model, batch):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            how()
        loss = loss_fn(model, batch)
        if calls == call:
            how()
        return loss

    build = (lambda: warmfree.AdamW2(groups_of(model))) if replaces else None
    expected = CutShortError if how is boom else KeyboardInterrupt
    traces = Traces(model, optimizer)
    weights = [weight.detach().clone() for weight in model.parameters()]
    with unchanged(model, optimizer) as session:
        stage = stage_in(session, model, optimizer, loss=failing)
        with pytest.raises(expected):
            two_candidates(stage, build)
        assert all(map(torch.equal, model.parameters(), weights))
        # What was cut short is no candidate, and the next one begins anew.
        assert len(stage.result().candidates) == (call > LENGTH)
        loss_of_next = stage.rehearse(warmup=2).losses
    assert traces.differences(Traces(model, optimizer)) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with unchanged(model, optimizer) as session:
        assert stage_in(session, model, optimizer).rehearse(warmup=2).losses == loss_of_next


def test_a_scaler_leaves_out_steps_and_lowers_its_scale():
    model, optimizer = run_of("SGD, momentum", dtype=torch.float32)
    found = batches(LENGTH, dtype=torch.float32)
    scaler, real = (torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.25) for _ in range(2))

    def large(model, batch):
        return 8 * loss_fn(model, batch)

    torch.manual_seed(5)
    twin, others = copy.deepcopy((model, optimizer))
    expected = []
    with torch.random.fork_rng():
        for batch in found:
            others.zero_grad()
            loss = large(twin, batch)
            real.scale(loss).backward()
            real.step(others)
            real.update()
            expected.append(loss.item())
    assert 2.0**110 < real.get_scale() < 2.0**127  # some steps were left out, others not
    with unchanged(model, optimizer) as session:
        rehearsed = stage_in(
            session, model, optimizer, found=in_steps(found), loss=large, scaler=scaler
        ).rehearse()
    assert rehearsed.losses == pytest.approx(expected, rel=1e-5)
    assert scaler.get_scale() == 2.0**127


def test_a_scaler_that_is_off_does_nothing():
    model, optimizer = run_of(dtype=torch.float32)
    found = in_steps(batches(LENGTH, dtype=torch.float32))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with unchanged(model, optimizer) as session:
        without = stage_in(session, model, optimizer, found=found).rehearse()
        assert stage_in(session, model, optimizer, found=found, scaler=scaler).rehearse() == without


@pytest.mark.parametrize("number", [3, LENGTH])
def test_candidates_start_from_the_loss_of_the_batches_that_judge_them(number):
    model, optimizer = run_of(steps=1)
    model[3].p = 0.0
    found = batches(number)
    expected = [loss_fn(model, found[step % number]).item() for step in (LENGTH - 2, LENGTH - 1)]
    traces = Traces(model, optimizer)
    with unchanged(model, optimizer) as session:
        stage = stage_in(session, model, optimizer, found=in_steps(found))
        assert math.isnan(stage.result().initial_loss)
        first = stage.rehearse()
        assert stage.initial_loss() == math.fsum(expected) / 2
        assert stage.rehearse() == first
    assert stage.result().initial_loss == math.fsum(expected) / 2
    assert stage.result().forward_passes == 2 * LENGTH + 2
    assert traces.differences(Traces(model, optimizer)) == []


def test_candidates_are_found_by_optimizer_and_warmup():
    model, optimizer = run_of()
    with unchanged(model, optimizer) as session:
        stage = stage_in(session, model, optimizer, length=2)
        first, second = stage.rehearse(), stage.rehearse(warmup=4)
        other = stage.rehearse(build=lambda: warmfree.AdamW2(groups_of(model)))
    rehearsal = stage.result()
    assert rehearsal.candidates == (first, second, other)
    assert rehearsal.find(warmup=0) is first
    assert rehearsal.find(warmup=4) is second
    assert rehearsal.find(warmup=0, optimizer="AdamW2") is other
    assert rehearsal.find(warmup=5) is None


def test_the_last_quarter_is_judged():
    assert [judged_steps(length) for length in (1, 2, 6, 7, 25, 200)] == [1, 1, 2, 2, 6, 50]


def test_batches_that_loss_fn_takes_apart_are_whole_again():
    model, optimizer = run_of()
    found = [[{"inputs": inputs, "targets": targets}] for inputs, targets in batches(2)]

    def greedy(model, batch):
        return nn.functional.cross_entropy(model(batch.pop("inputs")), batch.pop("targets"))

    with unchanged(model, optimizer) as session:
        rehearsed = stage_in(session, model, optimizer, found=found, loss=greedy).rehearse()
    assert len(rehearsed.losses) == LENGTH
