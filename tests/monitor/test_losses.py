"""Which step a logged loss belongs to."""

import math

import pytest
import torch

from warmfree.monitor.losses import Losses


def run(losses, *, steps, before=None, after=None, returned=None, called=None):
    written = []
    for step in range(steps):
        for value in before(step) if before else ():
            losses.log(value, stepped=step, called=called and True)
        if returned:
            losses.returned([torch.tensor(value) for value in returned(step)])
        losses.begin(step, 0.1)
        written += losses.ready()
        for value in after(step) if after else ():
            losses.log(value, stepped=step + 1, called=called and False)
    written += losses.ready(last=True)
    return [(step, loss) for step, loss, _ in written]


def test_logged_before_the_step():
    assert run(Losses(), steps=3, before=lambda step: [float(step)]) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_logged_after_the_step():
    assert run(Losses(), steps=3, after=lambda step: [float(step)]) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_logged_after_every_other_step():
    written = run(Losses(), steps=4, after=lambda step: [float(step)] if step % 2 else [])
    assert written == [(0, None), (1, 1.0), (2, None), (3, 3.0)]


def test_micro_batches_are_averaged():
    assert run(Losses(), steps=2, before=lambda step: [1.0, torch.tensor(3.0)]) == [(0, 2.0), (1, 2.0)]


def test_returned_by_the_model_unless_told():
    assert run(Losses(), steps=2, returned=lambda step: [2.0, 4.0]) == [(0, 3.0), (1, 3.0)]
    told = run(Losses(), steps=2, returned=lambda step: [2.0], before=lambda step: [7.0])
    assert told == [(0, 7.0), (1, 7.0)]


def test_logged_now_and_then_before_the_step():
    written = run(Losses(), steps=4, before=lambda step: [float(step)] if step % 2 else [], called=True)
    assert written == [(0, None), (1, 1.0), (2, None), (3, 3.0)]


def test_a_loss_that_is_not_finite_is_not_averaged_away():
    assert run(Losses(), steps=1, before=lambda step: [1.0, math.inf, 2.0]) == [(0, math.inf)]


def test_no_loss_at_all():
    assert run(Losses(), steps=3) == [(0, None), (1, None), (2, None)]


def test_a_logged_tensor_is_read_as_it_was():
    losses, loss = Losses(), torch.tensor([1.0])
    losses.log(loss, stepped=0, called=None)
    loss.zero_()
    losses.begin(0, 0.1)
    assert losses.ready() == [(0, 1.0, 0.1)]


def test_a_step_that_was_begun_twice_counts_once():
    losses = Losses()
    losses.begin(0, 0.1)
    losses.begin(0, 0.1)
    losses.begin(1, 0.1)
    assert [step for step, *_ in losses.ready(last=True)] == [0, 1]


def test_more_than_one_number_is_refused():
    with pytest.raises(ValueError, match=r"one number, got a tensor of shape \(2,\)"):
        Losses().log(torch.ones(2), stepped=0, called=None)
