"""From evidence to a verdict: pure rules, on evidence made by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from verdict_cases import critical, evidence, first_step, rehearsed

import warmfree
from warmfree.advice.verdict import (
    CHEAP,
    LONGEST,
    MARGIN,
    REPRESENTATION_LIMIT,
    Excess,
    _decide,
    choose,
    derived_warmup,
    measure_excess,
    momentum_memory,
    rehearsal_length,
    rehearse,
)

NAN = math.nan

# Critical learning rate, representation change: excess by loss, by representation, of both. The target is 1e-3.
EXCESSES = {
    "both safe": (critical(4e-3), first_step(0.1), (0.25, 0.5, 1.0)),
    "the loss says too large": (critical(2.5e-4), first_step(0.1), (4.0, 0.5, 4.0)),
    "representations say too large": (critical(4e-3), first_step(0.6), (0.25, 3.0, 3.0)),
    "both, the larger counts": (critical(5e-4), first_step(0.6), (2.0, 3.0, 3.0)),
    "no catapult": (critical(None), first_step(0.1), (0.0, 0.5, 1.0)),
    "no catapult, but representations": (critical(None), first_step(0.4), (0.0, 2.0, 2.0)),
    "uphill": (critical(None, outcome="uphill"), first_step(0.4), (NAN, 2.0, 2.0)),
    "uphill, nothing else": (critical(None, outcome="uphill"), None, (NAN, NAN, NAN)),
    "uphill, no layer": (critical(None, outcome="uphill"), first_step(NAN, layer=""), (NAN, NAN, NAN)),
    "no first step": (critical(5e-4), None, (2.0, NAN, 2.0)),
    "no catapult, no first step": (critical(None), None, (0.0, NAN, 1.0)),
}


@pytest.mark.parametrize("case", EXCESSES)
def test_excess_is_read_off_the_evidence(case):
    found, first, expected = EXCESSES[case]
    excess = measure_excess(evidence(found, first=first))
    assert (excess.loss, excess.representation, excess.value) == pytest.approx(expected, nan_ok=True)


def test_the_limit_of_the_representation_change_is_that_of_the_docs():
    assert measure_excess(evidence(first=first_step(0.4))).representation == 0.4 / REPRESENTATION_LIMIT == 2.0


WEIGHTS = [torch.nn.Parameter(torch.zeros(2, 2))]
MEMORIES = {
    "SGD": (lambda: torch.optim.SGD(WEIGHTS, lr=1.0), 1.0),
    "SGD, momentum": (lambda: torch.optim.SGD(WEIGHTS, lr=1.0, momentum=0.95), 20.0),
    "AdamW": (lambda: torch.optim.AdamW(WEIGHTS), 10.0),
    "AdamW, slow": (lambda: torch.optim.AdamW(WEIGHTS, betas=(0.99999, 0.999)), 1000.0),
    "LionA": (lambda: warmfree.LionA(WEIGHTS, momentum=0.8), 5.0),
    "Muon": (lambda: torch.optim.Muon(WEIGHTS), 20.0),
    "RMSprop": (lambda: torch.optim.RMSprop(WEIGHTS), 1.0),
    "Adagrad": (lambda: torch.optim.Adagrad(WEIGHTS), 10.0),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_of_the_momentum(name):
    build, expected = MEMORIES[name]
    assert momentum_memory(build()) == pytest.approx(expected)


def test_rehearsals_are_a_tenth_of_the_run_within_bounds():
    assert [rehearsal_length(steps) for steps in (1, 3, 4, 100, 199, 200, 1000, 1500, 2000, 10**6)] == [
        *(1, 1, 2, 50, 99, 100, 100, 150, 200, 200)
    ]


@given(st.integers(1, 10**6))
def test_a_rehearsal_fits_into_the_run(steps):
    assert 1 <= rehearsal_length(steps) <= max(steps / 2, 1)


def test_the_derived_warmup():
    assert derived_warmup(3.0, 10.0, steps=600) == 20
    assert derived_warmup(100.0, 10.0, steps=600) == 180  # 0.3 of the run
    assert derived_warmup(math.inf, 10.0, steps=600) == 180
    assert derived_warmup(NAN, 10.0, steps=600) == 0
    assert derived_warmup(1.1, 10.0, steps=600) == 0  # a warmup of 1 step is none
    assert derived_warmup(9.0, 10.0, steps=1) == 0


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1000), st.integers(1, 10**5))
def test_a_larger_excess_never_asks_for_less(first, second, memory, steps):
    less, more = (derived_warmup(one, memory, steps=steps) for one in sorted((first, second)))
    assert 0 <= less <= more <= LONGEST * steps + 0.5


# Own losses by warmup, the replacement's loss or None: warmup or None, whether it is replaced, whether that is clear.
# Runs have 1000 steps, and losses begin at 2. With the best at 1, the margin is 0.02.
CHOICES = {
    "none is needed": ({0: 1.0, 20: 1.1, 100: 1.2}, None, (0, False, True)),
    "none, within the margin": ({0: 1.005, 20: 1.0, 100: 1.1}, None, (0, False, True)),
    "none, but half the margin says otherwise": ({0: 1.015, 20: 1.0}, None, (0, False, False)),
    "a warmup, but twice the margin says otherwise": ({0: 1.03, 20: 1.0}, None, (20, False, False)),
    "the shortest that is good": ({0: 1.5, 20: 1.001, 100: 1.0}, None, (20, False, True)),
    "the longer one is better by far": ({0: 1.5, 20: 1.4, 100: 1.0}, None, (100, False, True)),
    "all the same": ({0: 1.0, 20: 1.0, 100: 1.0}, 1.0, (0, False, True)),
    "no warmup diverges": ({0: math.inf, 20: 1.0}, None, (20, False, True)),
    "a cheap warmup is not worth a replacement": ({0: 1.5, 30: 1.0, 100: 1.0}, 1.0, (30, False, True)),
    "a long one is": ({0: 1.5, 30: 1.2, 100: 1.0}, 1.0, (100, True, True)),
    "the replacement is worse": ({0: 1.5, 100: 1.0}, 1.3, (100, False, True)),
    "the replacement diverges": ({0: 1.5, 100: 1.0}, math.inf, (100, False, True)),
    "the replacement is better than all": ({0: 1.5, 100: 1.4}, 1.0, (None, True, True)),
    "the replacement alone is finite": ({0: math.inf, 100: math.inf}, 1.0, (None, True, True)),
}


def choice_of(losses, other=None, steps=1000):
    own = [rehearsed(loss, warmup) for warmup, loss in losses.items()]
    return choose(
        own, None if other is None else rehearsed(other, optimizer="AdamW2"), before=2.0, steps=steps
    )


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case):
    losses, other, expected = CHOICES[case]
    choice = choice_of(losses, other)
    assert (choice.warmup and choice.warmup.warmup, choice.replaces, choice.clear) == expected
    assert choice.best.loss == min([*losses.values(), math.inf if other is None else other])


@pytest.mark.parametrize(
    "losses", [{0: 2.0, 20: 2.0}, {0: 3.0, 20: 2.5}, {0: math.inf, 20: math.inf}, {0: NAN}]
)
@pytest.mark.parametrize("other", [None, 2.0, math.inf])
def test_where_no_loss_falls_nothing_is_chosen(losses, other):
    choice = choice_of(losses, other)
    assert (choice.best, choice.warmup, choice.replaces, choice.clear) == (None, None, False, False)


losses_of_candidates = st.one_of(
    st.floats(0, 3), st.just(math.inf), st.sampled_from([1.0, 1.01, 1.02, 1.04, 1.05])
)
candidates = st.dictionaries(st.integers(1, 300), losses_of_candidates, max_size=5)


def length(warmup):
    return math.inf if warmup is None else warmup.warmup


@given(losses_of_candidates, candidates, st.one_of(st.none(), losses_of_candidates), st.randoms())
def test_the_order_of_candidates_does_not_matter(without, warmups, other, random):
    shuffled = list(warmups.items())
    random.shuffle(shuffled)
    first, second = (
        choice_of({0: without, **warmups}, other),
        choice_of({0: without, **dict(shuffled)}, other),
    )
    assert (first.warmup, first.replaces, first.clear) == (second.warmup, second.replaces, second.clear)
    assert (first.best is None) == (second.best is None)


@given(
    losses_of_candidates,
    candidates,
    st.one_of(st.none(), losses_of_candidates),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_more_margin_never_asks_for_a_longer_warmup(without, warmups, other, one, two):
    own = [rehearsed(loss, warmup) for warmup, loss in {0: without, **warmups}.items()]
    replacement = [] if other is None else [rehearsed(other, optimizer="AdamW2")]
    small, large = sorted((one, two))
    strict, _ = _decide(own, *(replacement or [None]), 2.0, 1000, small)
    loose, _ = _decide(own, *(replacement or [None]), 2.0, 1000, large)
    assert length(loose) <= length(strict)


@given(losses_of_candidates, candidates, st.one_of(st.none(), losses_of_candidates))
def test_what_is_chosen_is_within_the_margin(without, warmups, other):
    choice = choice_of({0: without, **warmups}, other)
    losses = [without, *warmups.values(), *([] if other is None else [other])]
    if choice.best is None:
        assert not min(losses) < 2.0
        return
    assert choice.best.loss == min(losses) < 2.0
    allowed = choice.best.loss + MARGIN * (2.0 - choice.best.loss)
    if choice.warmup is not None:
        assert choice.warmup.loss <= allowed
        assert all(loss > allowed for warmup, loss in warmups.items() if warmup < choice.warmup.warmup)
    if choice.replaces:
        assert other <= allowed
        assert choice.warmup is None or choice.warmup.warmup > CHEAP * 1000
    assert choice.warmup is not None or choice.replaces


class Scripted:
    """A stage whose losses are written down; it remembers what was tried."""

    def __init__(self, loss_of, other=None):
        self.loss_of, self.other, self.tried = loss_of, other, []

    def initial_loss(self):
        return 2.0

    def rehearse(self, *, warmup=0, start=0.0, build=None):
        if build is not None:
            build()
            self.tried.append("AdamW2")
            return rehearsed(self.other, optimizer="AdamW2")
        self.tried.append((warmup, start) if warmup else 0)
        return rehearsed(self.loss_of(warmup), warmup)


def play(stage, derived=20, *, length=100, steps=1000, replaces=True):
    made = []
    choice = rehearse(
        stage,
        derived,
        start=0.25,
        length=length,
        steps=steps,
        replacement=(lambda: made.append("AdamW2")) if replaces else None,
    )
    assert len(made) == stage.tried.count("AdamW2") <= 1
    return choice


def test_little_is_tried_where_no_warmup_is_needed():
    stage = Scripted(lambda warmup: 1 + warmup / 100)
    choice = play(stage)
    assert stage.tried == [0, (20, 0.25), (100, 0.25)]
    assert choice.warmup.warmup == 0


def test_more_is_tried_where_one_is():
    stage = Scripted(lambda warmup: 1.0 if warmup else 1.5, other=1.2)
    choice = play(stage)
    assert stage.tried == [0, (20, 0.25), (100, 0.25), "AdamW2", (7, 0.25), (300, 0.25)]
    assert (choice.warmup.warmup, choice.replaces) == (7, False)
    assert play(Scripted(lambda warmup: 1.0 if warmup >= 100 else 1.5, other=1.0)).replaces


@pytest.mark.parametrize("loss", [math.inf, 2.5])
def test_more_is_tried_where_no_loss_falls_at_first(loss):
    stage = Scripted(lambda warmup: 1.0 if warmup == 300 else loss, other=math.inf)
    choice = play(stage)
    assert stage.tried == [0, (20, 0.25), (100, 0.25), "AdamW2", (7, 0.25), (300, 0.25)]
    assert choice.warmup.warmup == 300
    assert play(Scripted(lambda warmup: loss, other=1.0)).replaces
    assert play(Scripted(lambda warmup: loss), replaces=False).best is None


def test_without_a_derived_warmup_lengths_follow_the_rehearsal():
    stage = Scripted(lambda warmup: 1.0 if warmup >= 100 else 1.5)
    play(stage, 0, replaces=False)
    assert [one if one == 0 else one[0] for one in stage.tried] == [0, 33, 100, 11, 300]


@given(st.integers(1, 2000), st.integers(0, 600), st.floats(0, 1))
def test_every_warmup_that_is_tried_is_one_of_its_own_within_the_run(steps, derived, best):
    stage = Scripted(lambda warmup: 1 + abs(warmup / steps - best), other=1.0)
    play(stage, min(derived, round(LONGEST * steps)), length=rehearsal_length(steps), steps=steps)
    warmups = [one[0] for one in stage.tried if one not in (0, "AdamW2")]
    assert len(warmups) == len(set(warmups)) <= 4
    assert all(1 < warmup <= LONGEST * steps + 0.5 for warmup in warmups)
    assert stage.tried[0] == 0


def test_an_excess_knows_what_it_does_not_know():
    assert math.isnan(Excess(loss=NAN, representation=NAN).value)
    assert Excess(loss=NAN, representation=3.0).value == 3.0
    assert Excess(loss=0.0, representation=NAN).value == 1.0
