import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from warmfree import GIAdamW
from warmfree.schedule import curves
from warmfree.schedule.curves import (
    AdamDWarmup,
    GIAdamWarmup,
    RAdamWarmup,
    UntunedExponential,
    UntunedLinear,
    WarmupCurve,
)
from warmfree.schedule.saved import shape_from_state, shape_state
from warmfree.schedule.shapes import Constant, Cosine, InverseSqrt, Trapezoid

BETA2 = [0.95, 0.99, 0.999]

FACTORIES: dict[str, Callable[..., LambdaLR]] = {
    "gi_adam": curves.gi_adam_warmup,
    "untuned_linear": curves.untuned_linear,
    "untuned_exponential": curves.untuned_exponential,
    "radam": curves.radam_warmup,
    "adamd": curves.adamd_warmup,
}


def any_curves() -> st.SearchStrategy[WarmupCurve]:
    beta = st.floats(0.0, 0.9999)
    return st.one_of(
        st.builds(GIAdamWarmup, beta2=beta),
        st.builds(UntunedLinear, beta2=beta),
        st.builds(UntunedExponential, beta2=beta),
        st.builds(RAdamWarmup, beta2=st.floats(0.75, 0.9999), threshold=st.floats(4.0, 6.0)),
        st.builds(AdamDWarmup, beta1=beta),
    )


def adam_updates(
    make: Callable[[torch.Tensor], torch.optim.Optimizer], gradients: torch.Tensor
) -> torch.Tensor:
    """The changes of a weight at lr 1, one row a step."""
    weight = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = make(weight)
    changes = []
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        changes.append(weight.detach() - before)
    return torch.stack(changes)


@pytest.mark.parametrize("beta2", BETA2)
def test_radam_curve_is_the_ratio_of_torchs_radam_to_adam(beta2: float) -> None:
    gradients = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"lr": 1.0, "betas": (0.9, beta2), "eps": 1e-30}
    radam = adam_updates(lambda weight: torch.optim.RAdam([weight], **options), gradients)
    adam = adam_updates(lambda weight: torch.optim.Adam([weight], **options), gradients)
    curve = RAdamWarmup(beta2=beta2)
    factors = torch.tensor([curve(step) for step in range(400)], dtype=torch.float64)
    rectified = factors > 0
    assert not rectified[:5].any()
    assert rectified[6:].all()
    torch.testing.assert_close(radam[rectified], (factors[:, None] * adam)[rectified], rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("beta2", BETA2)
def test_gi_adam_curve_on_adam_is_gi_adam_where_the_gradient_is_its_own_expectation(beta2: float) -> None:
    gradients = torch.tensor([[0.3, -2.0, 1e-3]], dtype=torch.float64).repeat(60, 1)
    start = adam_updates(
        lambda weight: GIAdamW([weight], lr=1.0, betas=(0.9, beta2), eps=1e-30, weight_decay=0.0), gradients
    )
    adam = adam_updates(
        lambda weight: torch.optim.Adam([weight], lr=1.0, betas=(0.9, beta2), eps=1e-30), gradients
    )
    curve = GIAdamWarmup(beta2=beta2)
    factors = torch.tensor([[curve(step)] for step in range(60)], dtype=torch.float64)
    torch.testing.assert_close(start, factors * adam, rtol=1e-9, atol=0.0)


def test_adamd_curve_is_what_an_uncorrected_first_moment_does_for_all_gradients() -> None:
    gradients = torch.randn(80, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    beta1, beta2 = 0.8, 0.95
    adam = adam_updates(lambda weight: torch.optim.Adam([weight], lr=1.0, betas=(beta1, beta2)), gradients)
    m = v = torch.zeros(4, dtype=torch.float64)
    for step, gradient in enumerate(gradients):
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        uncorrected = -m / ((v / (1 - beta2 ** (step + 1))).sqrt() + 1e-8)
        torch.testing.assert_close(AdamDWarmup(beta1=beta1)(step) * adam[step], uncorrected)


@pytest.mark.parametrize("beta2", BETA2)
def test_untuned_warmups_follow_their_formulas(beta2: float) -> None:
    for step in range(3000):
        t = step + 1
        assert UntunedLinear(beta2=beta2)(step) == pytest.approx(min(1.0, t * (1 - beta2) / 2), rel=1e-12)
        expected = 1.0 - math.exp(-(1 - beta2) * t)
        assert UntunedExponential(beta2=beta2)(step) == pytest.approx(expected, rel=1e-9)


def test_untuned_linear_is_a_warmup_over_two_memories_of_the_second_moment() -> None:
    curve, shape = UntunedLinear(beta2=0.999), Constant(warmup=2000)
    assert [curve(step) for step in range(2100)] == pytest.approx([shape(step) for step in range(2100)])


@pytest.mark.parametrize(
    ("beta2", "expected"), [(0.999, [288, 1660, 3915]), (0.95, [5.6, 32, 76])], ids=["0.999", "0.95"]
)
def test_gi_adams_equivalent_warmup_lengths(beta2: float, expected: list[float]) -> None:
    curve = GIAdamWarmup(beta2=beta2)
    found = [curve.steps_to(level) for level in (0.5, 0.9, 0.99)]
    assert found == pytest.approx(expected, rel=0.012)  # the published numbers are rounded
    exact = [math.log1p(-(level**2)) / math.log(beta2) for level in (0.5, 0.9, 0.99)]
    assert found == pytest.approx(exact, rel=1e-8)


def test_gi_adams_factors_at_the_steps_of_the_table() -> None:
    curve = GIAdamWarmup(beta2=0.999)
    steps = [1, 2, 10, 30, 100, 300, 1000]
    published = [0.0316, 0.0447, 0.100, 0.172, 0.309, 0.509, 0.795]
    assert [curve(t - 1) for t in steps] == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.99])
def test_steps_to_of_the_others_against_their_inverses(level: float) -> None:
    assert UntunedLinear(beta2=0.999).steps_to(level) == pytest.approx(2000 * level, rel=1e-8)
    assert UntunedExponential(beta2=0.99).steps_to(level) == pytest.approx(
        -100 * math.log1p(-level), rel=1e-8
    )
    assert AdamDWarmup(beta1=0.9).steps_to(level) == pytest.approx(
        math.log1p(-level) / math.log(0.9), rel=1e-8
    )


@given(any_curves(), st.floats(0.01, 0.99))
def test_the_curve_reaches_a_level_where_it_says_and_not_before(curve: WarmupCurve, level: float) -> None:
    length = curve.steps_to(level)
    assert curve.factor(length * (1 + 1e-8) + 1e-8) >= level
    if length > 1e-6:
        assert curve.factor(length * (1 - 1e-8) - 1e-8) < level


@given(any_curves())
def test_bounded_and_never_falling(curve: WarmupCurve) -> None:
    values = [curve(step) for step in range(300)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert all(before <= after + 1e-12 for before, after in pairwise(values))
    assert curve(10**7) == pytest.approx(1.0)


@given(any_curves())
def test_then_is_multiplied(curve: WarmupCurve) -> None:
    shape = Cosine(steps=40, warmup=3, end=0.1)
    both = replace(curve, then=shape)
    assert both.then == shape
    assert curve.then is None
    assert [both(step) for step in range(50)] == [curve(step) * shape(step) for step in range(50)]
    assert both.steps_to(0.5) == curve.steps_to(0.5)


@given(any_curves(), st.sampled_from([None, Trapezoid(steps=9, warmup=2), InverseSqrt(warmup=4)]))
def test_curves_pickle_compare_and_hash(curve: WarmupCurve, then: Trapezoid | InverseSqrt | None) -> None:
    curve = replace(curve, then=then)
    copy = pickle.loads(pickle.dumps(curve))
    assert copy == curve
    assert hash(copy) == hash(curve)
    assert [copy(step) for step in range(20)] == [curve(step) for step in range(20)]


@pytest.mark.parametrize("shape", [Trapezoid(steps=10, warmup=0.2, end=0.1), Cosine(steps=5), InverseSqrt()])
def test_a_shape_comes_back_from_its_state(shape: Trapezoid | Cosine | InverseSqrt) -> None:
    assert shape_from_state(shape_state(shape)) == shape


def test_a_shape_that_nothing_defines_is_named() -> None:
    with pytest.raises(ValueError, match="shape of class 'Zigzag', which is not defined here"):
        shape_from_state({"shape": "Zigzag", "steps": 3})


def test_radam_before_the_rectification() -> None:
    assert [RAdamWarmup(beta2=0.999, before=0.5)(step) for step in range(5)] == [0.5] * 5
    assert RAdamWarmup(beta2=0.999, threshold=4.0)(4) > 0.0 == RAdamWarmup(beta2=0.999)(4)


def make_adam(
    lr: float | torch.Tensor = 0.5, betas: tuple[tuple[float, float], ...] = ((0.9, 0.95),)
) -> torch.optim.Adam:
    return torch.optim.Adam(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "betas": pair} for pair in betas], lr=lr
    )


def run_schedule(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", FACTORIES)
def test_betas_are_those_of_each_group_or_the_one_given(name: str) -> None:
    optimizer = make_adam(lr=1.0, betas=((0.9, 0.95), (0.5, 0.99)))
    seen = run_schedule(optimizer, FACTORIES[name](optimizer), 20)
    option = "beta1" if name == "adamd" else "beta2"
    for index, betas in enumerate(((0.9, 0.95), (0.5, 0.99))):
        one = make_adam(lr=1.0)
        alone = run_schedule(one, FACTORIES[name](one, **{option: betas[option == "beta2"]}), 20)
        assert [row[index] for row in seen] == [row[0] for row in alone]


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_resume_with_a_decay_equals_undisturbed_from_a_checkpoint_of_plain_values(
    name: str, cut: int
) -> None:
    def build(optimizer: torch.optim.Optimizer, steps: int = 12) -> LambdaLR:
        return FACTORIES[name](optimizer, then=Trapezoid(steps=steps, cooldown=0.5))

    optimizer = make_adam()
    undisturbed = run_schedule(optimizer, build(optimizer), 12)
    optimizer = make_adam()
    scheduler = build(optimizer)
    seen = run_schedule(optimizer, scheduler, cut)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer = make_adam()
    # Built with another length, or without the decay: what was saved must win.
    scheduler = build(optimizer, steps=99) if cut else FACTORIES[name](optimizer)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert seen + run_schedule(optimizer, scheduler, 12 - cut) == undisturbed


@pytest.mark.parametrize("name", FACTORIES)
def test_a_tensor_lr_stays_the_same_tensor(name: str) -> None:
    lr = torch.tensor(0.5)
    optimizer, plain = make_adam(lr), make_adam()
    seen = run_schedule(optimizer, FACTORIES[name](optimizer), 12)
    expected = run_schedule(plain, FACTORIES[name](plain), 12)
    assert seen == [pytest.approx(row, rel=1e-6) for row in expected]
    assert optimizer.param_groups[0]["lr"] is lr


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GIAdamWarmup(beta2=1.0), ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
        (lambda: UntunedLinear(beta2=-0.1), ValueError, "beta2 must be in"),
        (lambda: UntunedExponential(beta2=math.nan), ValueError, "beta2 must be in"),
        (lambda: AdamDWarmup(beta1=1.5), ValueError, "beta1 must be in"),
        (lambda: RAdamWarmup(beta2=0.6), ValueError, "beta2 must be above 0.6667 for RAdam with threshold 5"),
        (lambda: RAdamWarmup(threshold=3.0), ValueError, "threshold must be >= 4"),
        (lambda: RAdamWarmup(before=2.0), ValueError, r"before must be in \[0, 1\]"),
        (lambda: GIAdamWarmup(then=lambda step: 1.0), TypeError, "then must be a Shape"),
        (lambda: GIAdamWarmup()(-1), ValueError, "step must be >= 0, got -1"),
        (lambda: GIAdamWarmup().steps_to(1.0), ValueError, r"level must be in \(0, 1\)"),
        (lambda: GIAdamWarmup().steps_to(0.0), ValueError, r"level must be in \(0, 1\)"),
        (
            lambda: curves.gi_adam_warmup(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)),
            ValueError,
            r"param_groups\[0\] of SGD has no betas.* pass beta2=",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_any_optimizer_may_have_a_curve_of_a_given_beta() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    curves.untuned_linear(optimizer, beta2=0.75, then=Trapezoid(steps=10, cooldown=0))
    assert optimizer.param_groups[0]["lr"] == 0.125
