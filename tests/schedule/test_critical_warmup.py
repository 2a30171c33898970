import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from warmfree.schedule.critical_warmup import CriticalWarmup, critical_warmup
from warmfree.schedule.shapes import Cosine, Trapezoid


@dataclass(frozen=True)
class Found:
    lr: float | None
    low: float | None = None
    forward_passes: int = 20


def make_optimizer(*lrs: float | torch.Tensor) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def rates(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_papers_formulas() -> None:
    plan = CriticalWarmup.plan(Found(lr=0.3, forward_passes=10), lr=1.0, warmup=1000)
    assert plan == CriticalWarmup(warmup=700, start=0.3, saved=300, net_saved=300.0 - 10 / 2)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 5000), st.integers(0, 100))
def test_lengths_are_those_of_exact_arithmetic(critical: int, target: int, warmup: int, passes: int) -> None:
    plan = CriticalWarmup.plan(
        Found(lr=critical / 1e4, forward_passes=passes), lr=target / 1e4, warmup=warmup
    )
    ratio = min(Fraction(critical, target), Fraction(1))
    assert plan.warmup == math.ceil(warmup * (1 - ratio))
    assert plan.warmup + plan.saved == warmup
    assert plan.net_saved == pytest.approx(float(warmup * ratio - Fraction(passes, 2)), abs=1e-6)
    assert plan.start == pytest.approx(float(ratio))


def test_a_length_is_not_rounded_up_for_an_ulp() -> None:
    assert 1000 * (1.0 - 0.7) > 300.0
    assert CriticalWarmup.plan(0.7, lr=1.0, warmup=1000).warmup == 300


@pytest.mark.parametrize("critical", [1.0, 2.0, 1e6])
def test_a_target_that_is_not_above_the_critical_rate_needs_no_warmup(critical: float) -> None:
    plan = CriticalWarmup.plan(critical, lr=1.0, warmup=50)
    assert plan == CriticalWarmup(warmup=0, start=1.0, saved=50, net_saved=50.0)


def test_a_search_can_cost_more_than_it_saves() -> None:
    assert CriticalWarmup.plan(Found(lr=0.01, forward_passes=30), lr=1.0, warmup=100).net_saved == -14.0


def test_the_slope_is_that_of_the_conventional_warmup() -> None:
    optimizer, plain = make_optimizer(0.5), make_optimizer(0.5)
    seen = rates(optimizer, critical_warmup(optimizer, 0.2, steps=40, warmup=20, cooldown=0), 12)
    shape = Trapezoid(steps=40, warmup=20, cooldown=0)
    conventional = [0.5 * shape(step) for step in range(40)]
    assert [row[0] for row in seen] == pytest.approx(conventional[8:20])
    assert plain.param_groups[0]["lr"] == 0.5


@given(st.floats(0.01, 2.0), st.integers(1, 60), st.floats(0.0, 0.4))
def test_from_the_critical_rate_to_the_target_and_down_again(
    critical: float, warmup: int, end: float
) -> None:
    optimizer = make_optimizer(1.0, 0.1)
    scheduler = critical_warmup(optimizer, critical, steps=100, warmup=warmup, cooldown=0.4, end=end)
    seen = rates(optimizer, scheduler, 101)
    plan = CriticalWarmup.plan(critical, lr=1.0, warmup=warmup)
    assert all(row == pytest.approx([row[0], 0.1 * row[0]]) for row in seen)
    values = [row[0] for row in seen]
    assert values[0] > plan.start - 1e-12
    assert values[max(plan.warmup - 1, 0) : 61] == pytest.approx([1.0] * (61 - max(plan.warmup - 1, 0)))
    assert values[100] == pytest.approx(end)


def test_fractions_of_the_run_and_other_shapes() -> None:
    optimizer = make_optimizer(1.0)
    seen = rates(optimizer, critical_warmup(optimizer, 0.5, steps=100, warmup=0.2), 100)
    shape = Trapezoid(steps=100, warmup=10, start=0.5)
    assert [row[0] for row in seen] == [shape(step) for step in range(100)]
    plan = CriticalWarmup.plan(0.5, lr=1.0, warmup=20)
    assert Cosine(steps=100, warmup=plan.warmup, start=plan.start)(9) == 1.0


def test_a_loss_that_falls_at_the_largest_rate_tried_counts_as_critical_there() -> None:
    assert CriticalWarmup.plan(Found(lr=None, low=0.25), lr=1.0, warmup=100).start == 0.25
    assert CriticalWarmup.plan(Found(lr=None, low=1.0), lr=1.0, warmup=100).warmup == 0


def test_resume_keeps_the_saved_lengths() -> None:
    optimizer = make_optimizer(1.0)
    undisturbed = rates(optimizer, critical_warmup(optimizer, 0.3, steps=30, warmup=10), 30)
    optimizer = make_optimizer(1.0)
    scheduler = critical_warmup(optimizer, 0.3, steps=30, warmup=10)
    seen = rates(optimizer, scheduler, 4)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer = make_optimizer(1.0)
    scheduler = critical_warmup(optimizer, 0.9, steps=99, warmup=5)  # another search, another run
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert seen + rates(optimizer, scheduler, 26) == undisturbed


def test_the_target_is_the_initial_lr_of_a_resumed_optimizer_and_may_be_a_tensor() -> None:
    lr = torch.tensor(0.5)
    optimizer = make_optimizer(lr)
    scheduler = critical_warmup(optimizer, 0.25, steps=20, warmup=8)
    assert optimizer.param_groups[0]["lr"] is lr
    rates(optimizer, scheduler, 1)
    resumed = critical_warmup(optimizer, 0.25, steps=20, warmup=8, last_epoch=0)
    assert float(resumed.get_last_lr()[0]) == pytest.approx(
        0.5 * 0.75
    )  # the second of four steps up from a half


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CriticalWarmup.plan(Found(lr=None), lr=1.0, warmup=9), ValueError, "the step goes uphill"),
        (
            lambda: CriticalWarmup.plan(0.0, lr=1.0, warmup=9),
            ValueError,
            "critical must be a finite .* got 0",
        ),
        (lambda: CriticalWarmup.plan(math.nan, lr=1.0, warmup=9), ValueError, "critical must be a finite"),
        (lambda: CriticalWarmup.plan(1.0, lr=0.0, warmup=9), ValueError, "lr must be > 0 .*, got 0.0"),
        (lambda: CriticalWarmup.plan(1.0, lr=1.0, warmup=-1), ValueError, "warmup must be >= 0, got -1"),
        (lambda: CriticalWarmup.plan(1.0, lr=1.0, warmup=0.5), TypeError, "warmup must be an int"),
        (
            lambda: critical_warmup(make_optimizer(1.0), 0.5, steps=10, warmup=8, cooldown=5),
            ValueError,
            "8 [+] 5 steps is more than steps=10",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
