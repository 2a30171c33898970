import copy
import io
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warmfree.schedule.loss_driven import LossDriven
from warmfree.schedule.shapes import Cosine, Trapezoid
from warmfree.schedule.smoothness import GapRule, InverseGapRule, PeakedRule, SmoothnessRule

RULES: dict[str, GapRule] = {
    "smoothness": SmoothnessRule(exponent=1.5, floor=5.0, growth=0.4),
    "inverse": InverseGapRule.from_start(peak=0.1, start=0.002, initial_gap=4.0),
    "peaked": PeakedRule.from_start(peak=0.1, start=0.002, initial_gap=4.0),
}
LOSSES = st.lists(st.floats(-1.0, 20.0), min_size=1, max_size=30)


def make_optimizer(lr: float | torch.Tensor = 0.1, groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(groups)], lr=lr)


def follow(scheduler: LossDriven, losses: Iterable[float | torch.Tensor]) -> list[list[float]]:
    """The learning rates after each loss."""
    seen = []
    for loss in losses:
        scheduler.optimizer.step()
        scheduler.step(loss)
        seen.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        assert [float(lr) for lr in scheduler.get_last_lr()] == seen[-1]
    return seen


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


@pytest.mark.parametrize(
    ("start", "half", "whole"), [(2, 28, 12), (4, 38, 18), (6, 50, 24), (7, 56, 27), (8, 62, 30)]
)
def test_gradient_descent_on_cosh_takes_the_steps_of_the_table(start: int, half: int, whole: int) -> None:
    """f = 2 (cosh x - 1) + y^2 / 2 from (a, 1) to 1e-6: steps linear in a, while the curvature is exponential."""

    def f(at: torch.Tensor) -> torch.Tensor:
        return 2.0 * (torch.cosh(at[0]) - 1.0) + 0.5 * at[1] ** 2

    for safety, expected in ((0.5, half), (1.0, whole)):
        at = torch.tensor([float(start), 1.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([at], lr=1.0)
        rule = SmoothnessRule(exponent=1.0, floor=2.0, growth=1.0, safety=safety)
        loss = f(at)
        scheduler = LossDriven(optimizer, rule, initial_loss=loss, smoothing=0.0)
        steps = 0
        while float(loss.detach()) > 1e-6:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss = f(at)
            scheduler.step(loss)
            steps += 1
        assert steps == expected


@pytest.mark.parametrize("name", RULES)
def test_the_learning_rate_is_the_rules_of_the_smallest_averaged_gap(name: str) -> None:
    rule, smoothing, f_star = RULES[name], 0.7, 0.25
    losses = [4.0, 3.5, 5.0, 2.0, 2.5, 1.0, 0.9, 0.3, 0.3, 0.3]
    scheduler = LossDriven(make_optimizer(), rule, initial_loss=losses[0], f_star=f_star, smoothing=smoothing)
    seen = [scheduler.get_last_lr()[0], *flat(follow(scheduler, losses[1:]))]
    gaps = []
    for t in range(len(losses)):
        weights = smoothing ** np.arange(t, -1, -1.0)
        gaps.append(float(np.average(losses[: t + 1], weights=weights)) - f_star)
        assert seen[t] == pytest.approx(min(0.1, rule.warmup(min(gaps))), rel=1e-12)
    assert scheduler.gap == pytest.approx(min(gaps))
    assert scheduler.last_epoch == len(losses) - 1


@given(st.sampled_from(sorted(RULES)), LOSSES, st.floats(0.0, 0.99))
def test_monotone_never_falls_and_never_exceeds_the_optimizers_lr(
    name: str, losses: list[float], smoothing: float
) -> None:
    scheduler = LossDriven(make_optimizer(0.08), RULES[name], initial_loss=4.0, smoothing=smoothing)
    seen = [float(scheduler.get_last_lr()[0]), *flat(follow(scheduler, losses))]
    assert all(before <= after for before, after in pairwise(seen))
    assert max(seen) <= 0.08


@given(st.sampled_from(sorted(RULES)), LOSSES)
def test_without_monotone_or_smoothing_the_rate_is_the_rules_of_the_last_loss(
    name: str, losses: list[float]
) -> None:
    rule = RULES[name]
    scheduler = LossDriven(make_optimizer(), rule, initial_loss=4.0, smoothing=0.0, monotone=False)
    for loss, lr in zip(losses, flat(follow(scheduler, losses)), strict=True):
        assert lr == pytest.approx(min(0.1, rule.warmup(max(loss, 0.0))), rel=1e-12)


def test_a_loss_below_f_star_is_a_closed_gap() -> None:
    for rule in RULES.values():
        scheduler = LossDriven(make_optimizer(), rule, initial_loss=9.0, f_star=3.0, smoothing=0.0)
        assert flat(follow(scheduler, [2.0])) == pytest.approx([0.1])
        assert scheduler.gap == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_holds_the_rate_and_counts_the_step(bad: float) -> None:
    clean = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0)
    hit = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0)
    before, after = flat(follow(hit, [3.0, bad]))
    assert before == after
    assert hit.last_epoch == 2
    follow(clean, [3.0])
    assert flat(follow(hit, [2.0, 1.0])) == flat(follow(clean, [2.0, 1.0]))


def test_then_is_a_second_bound_over_the_steps_of_the_run() -> None:
    shape = Trapezoid(steps=10, cooldown=0.5)
    losses = [4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.0, 0.0]
    alone = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0)
    both = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0, then=shape)
    expected = [min(lr, 0.1 * shape(step)) for step, lr in enumerate(flat(follow(alone, losses)), start=1)]
    assert flat(follow(both, losses)) == pytest.approx(expected, rel=1e-12)


def test_groups_keep_their_ratio_and_none_exceeds_its_own_lr() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    optimizer = torch.optim.SGD(
        [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.1, 0.3, 0.0), strict=True)]
    )
    scheduler = LossDriven(optimizer, RULES["inverse"], initial_loss=4.0, smoothing=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.002, 0.006, 0.0])
    assert follow(scheduler, [0.0])[0] == pytest.approx([0.1, 0.3, 0.0])


def test_the_peak_is_the_smaller_one_of_rule_and_optimizer() -> None:
    for lr, expected in ((0.05, 0.05), (0.4, 0.1)):
        scheduler = LossDriven(make_optimizer(lr), RULES["inverse"], initial_loss=4.0, smoothing=0.0)
        assert float(scheduler.get_last_lr()[0]) == pytest.approx(0.002)
        assert flat(follow(scheduler, [0.0])) == pytest.approx([expected])


def test_a_rule_without_a_peak_stops_at_the_optimizers_lr() -> None:
    rule = SmoothnessRule(exponent=1.0, floor=0.0, growth=1.0)
    scheduler = LossDriven(make_optimizer(), rule, initial_loss=100.0, smoothing=0.0)
    assert flat(follow(scheduler, [0.0])) == [0.1]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("cut", [0, 1, 9])
@pytest.mark.parametrize("tensor", [False, True])
def test_resume_equals_undisturbed_from_a_checkpoint_of_plain_values(
    name: str, cut: int, tensor: bool
) -> None:
    losses = [4.0, 3.9, 4.2, 3.0, math.nan, 2.0, 2.2, 1.0, 1.5, 0.4, 0.2, 0.1]

    def start() -> torch.optim.SGD:
        return make_optimizer(torch.tensor(0.1, dtype=torch.float64) if tensor else 0.1, groups=2)

    def build(optimizer: torch.optim.Optimizer) -> LossDriven:
        return LossDriven(
            optimizer, RULES[name], initial_loss=4.0, f_star=0.1, then=Cosine(steps=12, end=0.1)
        )

    undisturbed = follow(build(start()), losses)
    optimizer = start()
    scheduler = build(optimizer)
    seen = follow(scheduler, losses[:cut])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    optimizer = start()
    # Built with other settings and numbers: what was saved must win.
    other: dict[str, GapRule] = {
        "smoothness": SmoothnessRule(exponent=9.0, floor=1.0, growth=1.0),
        "inverse": InverseGapRule(peak=9.0, slope=9.0),
        "peaked": PeakedRule(peak=9.0, peak_gap=9.0, quadratic=9.0),
    }
    scheduler = LossDriven(optimizer, other[name], initial_loss=1e3, smoothing=0.1, monotone=False)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert scheduler.rule == RULES[name]
    assert scheduler.then == Cosine(steps=12, end=0.1)
    assert seen + follow(scheduler, losses[cut:]) == undisturbed
    assert state["scheduler"]["rule"]  # loading took nothing out of what it was given


def test_a_state_of_another_rule_is_refused() -> None:
    state = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0).state_dict()
    scheduler = LossDriven(make_optimizer(), RULES["peaked"], initial_loss=4.0)
    with pytest.raises(ValueError, match="saved with a InverseGapRule, this scheduler has a PeakedRule"):
        scheduler.load_state_dict(state)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue(duplicate: Callable[[LossDriven], LossDriven]) -> None:
    scheduler = LossDriven(make_optimizer(), RULES["peaked"], initial_loss=4.0, then=Cosine(steps=20))
    follow(scheduler, [4.0, 3.0])
    twin = duplicate(scheduler)
    assert twin.optimizer is not scheduler.optimizer
    assert follow(twin, [2.0, 1.0, 0.5]) == follow(scheduler, [2.0, 1.0, 0.5])


def test_a_tensor_lr_stays_the_same_tensor() -> None:
    lr = torch.tensor(0.1)
    scheduler = LossDriven(make_optimizer(lr), RULES["inverse"], initial_loss=4.0)
    plain = LossDriven(make_optimizer(0.1), RULES["inverse"], initial_loss=4.0)
    losses = [3.0, 2.0, 1.0, 0.0]
    assert flat(follow(scheduler, losses)) == pytest.approx(flat(follow(plain, losses)), rel=1e-6)
    assert scheduler.optimizer.param_groups[0]["lr"] is lr


def test_losses_may_be_tensors_that_require_gradients() -> None:
    as_tensor = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=torch.tensor([4.0]))
    as_float = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0)
    losses = [3.0, 1.5]
    with_graph = [torch.tensor(loss, requires_grad=True) * 1.0 for loss in losses]
    assert follow(as_tensor, with_graph) == follow(as_float, losses)
    with pytest.raises(ValueError, match=r"the loss must be one number, got a tensor of shape \(2,\)"):
        as_tensor.step(torch.ones(2))


def test_a_step_without_a_loss_is_an_error_and_changes_nothing() -> None:
    scheduler = LossDriven(make_optimizer(), RULES["inverse"], initial_loss=4.0)
    scheduler.optimizer.step()
    before = scheduler.state_dict()
    with pytest.raises(TypeError, match=r"needs a loss: call scheduler.step\(loss\)"):
        scheduler.step()
    assert scheduler.state_dict() == before


@dataclass(frozen=True, kw_only=True)
class RootRule(GapRule):
    scale: float

    def _rate(self, gap: float) -> float:
        return self.scale / math.sqrt(1.0 + gap)


def test_a_rule_of_ones_own() -> None:
    scheduler = LossDriven(make_optimizer(1.0), RootRule(scale=0.5), initial_loss=3.0, smoothing=0.0)
    assert flat(follow(scheduler, [3.0, 0.0])) == [0.25, 0.5]
    assert scheduler.state_dict()["rule"] == {"rule": "RootRule", "scale": 0.5}


def test_training_warms_up_as_the_loss_falls() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 5, generator=generator)
    wanted = inputs @ torch.randn(5, 1, generator=generator)
    model = torch.nn.Linear(5, 1)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    first = torch.nn.functional.mse_loss(model(inputs), wanted).item()
    rule = InverseGapRule.from_start(peak=0.1, start=0.02, initial_gap=first)
    scheduler = LossDriven(optimizer, rule, initial_loss=first, then=Trapezoid(steps=200))
    rates = []
    for _ in range(200):
        loss = torch.nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.02)  # the first loss is that before the first step
    assert max(rates[:100]) > 0.08
    assert rates[-1] == 0.0
    assert loss.item() < 0.01 * first


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": lambda gap: 0.1}, TypeError, "rule must be a GapRule, e.g. SmoothnessRule.*, got function"),
        ({"initial_loss": math.nan}, ValueError, "initial_loss must be finite and above f_star=0, got nan"),
        ({"initial_loss": math.inf}, ValueError, "initial_loss must be finite"),
        ({"initial_loss": 1.0, "f_star": 1.0}, ValueError, "above f_star=1, got 1.0"),
        ({"f_star": math.nan}, ValueError, "f_star must be finite"),
        ({"smoothing": 1.0}, ValueError, r"smoothing must be in \[0, 1\), got 1.0"),
        ({"then": lambda step: 1.0}, TypeError, "then must be a Shape"),
        ({"optimizer": make_optimizer(0.0)}, ValueError, "first parameter group must have lr > 0, got 0.0"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"optimizer": make_optimizer(), "rule": RULES["inverse"], "initial_loss": 4.0, **options}
    with pytest.raises(error, match=message):
        LossDriven(**arguments)
