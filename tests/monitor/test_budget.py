"""The budget: early steps may spend ahead, the fraction holds from the horizon on, nobody starves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.monitor.budget import Budget


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.floats(0.1, 8), st.floats(1e-4, 3.0)), min_size=1
    ),
    st.floats(0.005, 0.2),
    st.integers(1, 300),
)
def test_the_fraction_holds_from_the_horizon_on_and_everyone_runs(probes, fraction, horizon):
    budget = Budget.over(
        {name: weight for name, (weight, _) in probes.items()}, fraction=fraction, horizon=horizon
    )
    first = sum(
        cost for _, cost in probes.values()
    )  # in units of a step; the first run is free of the budget
    steps = int(horizon + 3 * first / fraction) + 1
    for step in range(min(steps, 20_000)):
        for name in budget.chosen(list(probes)):
            budget.accounts[name].charge(probes[name][1])
        budget.steps, budget.training_seconds = step + 1, float(step + 1)
    for name, (_, cost) in probes.items():
        account = budget.accounts[name]
        allowance = (
            account.share * fraction * budget.training_seconds * max(1.0, math.sqrt(horizon / budget.steps))
        )
        assert account.runs >= 1
        assert account.seconds <= max(allowance, cost) + 1e-9
        if cost > 2 * fraction * account.share:  # it has to wait, so it uses what it may
            assert account.seconds >= allowance - 2 * cost - fraction * account.share


def test_early_steps_spend_ahead():
    budget = Budget.over({"a": 1.0}, fraction=0.02, horizon=100)
    runs = []
    for step in range(400):
        if budget.affords("a"):
            budget.accounts["a"].charge(0.5)
            runs.append(step)
        budget.steps, budget.training_seconds = step + 1, float(step + 1)
    assert len([step for step in runs if step <= 100]) == 4  # all that 2 % of 100 steps pays for, spread
    assert len(runs) == 15
    assert runs[1] - runs[0] <= runs[-1] - runs[-2] <= 26


def test_infinite_budget_never_waits():
    budget = Budget.over({"a": 1.0}, fraction=math.inf, horizon=1)
    budget.accounts["a"].charge(1e9)
    assert budget.affords("a")


def test_bad_settings():
    with pytest.raises(ValueError, match="budget must be > 0"):
        Budget.over({"a": 1.0}, fraction=0.0, horizon=1)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        Budget.over({"a": 1.0}, fraction=0.1, horizon=0)


def test_what_hooks_and_records_take_comes_off_first():
    budget = Budget.over({"a": 1.0}, fraction=0.02, horizon=1)
    budget.steps, budget.training_seconds = 100, 100.0
    budget.accounts["a"].charge(0.5)
    budget.overhead_seconds = 0.5
    assert budget.affords("a")
    budget.overhead_seconds = 0.5 + 1.2
    assert not budget.affords("a")
