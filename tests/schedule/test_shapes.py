import io
import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from warmfree.schedule import shapes
from warmfree.schedule.shapes import Constant, Cosine, InverseSqrt, Shape, Trapezoid


def make_optimizer(lr: float | torch.Tensor = 0.5, groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(groups)], lr=lr)


FACTORIES: dict[str, Callable[..., LambdaLR]] = {
    "trapezoid": lambda optimizer: shapes.trapezoid(optimizer, steps=12, warmup=3, cooldown=0.5, start=0.1),
    "cosine": lambda optimizer: shapes.cosine(optimizer, steps=12, warmup=0.25, end=0.1),
    "linear": lambda optimizer: shapes.linear(optimizer, steps=12, warmup=2),
    "inverse_sqrt": lambda optimizer: shapes.inverse_sqrt(optimizer, warmup=3),
    "constant": lambda optimizer: shapes.constant(optimizer, warmup=3),
}


@st.composite
def trapezoids(draw: st.DrawFn) -> Trapezoid:
    steps = draw(st.integers(1, 60))
    warmup = draw(st.integers(0, steps))
    cooldown = draw(st.integers(0, steps - warmup))
    unit = st.floats(0, 1)
    return Trapezoid(steps=steps, warmup=warmup, cooldown=cooldown, start=draw(unit), end=draw(unit))


@st.composite
def any_shapes(draw: st.DrawFn) -> Shape:
    steps, warmup, unit = draw(st.integers(1, 60)), draw(st.floats(0, 1)), st.floats(0, 1)
    return draw(
        st.one_of(
            trapezoids(),
            st.just(Cosine(steps=steps, warmup=warmup, start=draw(unit), end=draw(unit))),
            st.just(InverseSqrt(warmup=round(warmup * steps), start=draw(unit))),
            st.just(InverseSqrt(warmup=round(warmup * steps), timescale=steps)),
            st.just(Constant(warmup=round(warmup * steps), start=draw(unit))),
        )
    )


def independent_trapezoid(step: int, *, steps: int, warmup: int, cooldown: int) -> float:
    """The formula of the docstring, as a minimum of three lines."""
    lines = [1.0]
    if warmup:
        lines.append((step + 1) / warmup)
    if cooldown:
        lines.append((steps - step) / cooldown)
    return min(lines)


@given(trapezoids())
def test_trapezoid_is_the_minimum_of_its_three_lines(shape: Trapezoid) -> None:
    bare = Trapezoid(steps=shape.steps, warmup=shape.warmup, cooldown=shape.cooldown)
    for step in range(shape.steps):
        expected = independent_trapezoid(
            step, steps=shape.steps, warmup=int(shape.warmup), cooldown=int(shape.cooldown)
        )
        assert bare(step) == pytest.approx(expected, abs=1e-15)


@given(any_shapes())
def test_bounded_and_rises_through_the_warmup_then_reaches_one_and_falls(shape: Shape) -> None:
    values = [shape(step) for step in range(80)]
    assert all(0.0 <= value <= 1.0 for value in values)
    rising, falling = values[: int(shape.warmup)], values[max(int(shape.warmup) - 1, 0) :]
    ulp = 2e-16  # a start next to 1 rounds
    assert all(before <= after + ulp for before, after in pairwise(rising))
    if not isinstance(shape, Trapezoid | Cosine) or shape.warmup < shape.steps:
        assert all(before >= after - ulp for before, after in pairwise(falling))
    assert shape(max(int(shape.warmup) - 1, 0)) == pytest.approx(1.0)


@given(any_shapes())
def test_every_step_of_the_run_moves(shape: Shape) -> None:
    steps = shape.steps if isinstance(shape, Trapezoid | Cosine) else 80
    assert shape(0) > 0
    assert shape(steps - 1) > 0


@given(trapezoids())
def test_after_the_run_the_multiplier_is_the_end(shape: Trapezoid) -> None:
    expected = shape.end if shape.cooldown else 1.0
    assert shape(shape.steps) == expected
    assert shape(shape.steps + 1000) == expected


@given(any_shapes())
def test_shapes_pickle(shape: Shape) -> None:
    copy = pickle.loads(pickle.dumps(shape))
    assert copy == shape
    assert [copy(step) for step in range(70)] == [shape(step) for step in range(70)]


def test_warmup_of_one_step_is_no_warmup() -> None:
    assert [Trapezoid(steps=4, warmup=1)(step) for step in range(4)] == [
        Trapezoid(steps=4)(step) for step in range(4)
    ]


def test_start_is_the_multiplier_one_step_before_the_first() -> None:
    shape = Trapezoid(steps=100, warmup=4, start=0.2)
    assert [shape(step) for step in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_fractions_are_of_the_whole_run_and_one_differs_from_one_point_zero() -> None:
    assert (Trapezoid(steps=300, warmup=0.2).warmup, Trapezoid(steps=300).cooldown) == (60, 150)
    assert Cosine(steps=100, warmup=0.29).warmup == 29  # 28.999999999999996
    assert Cosine(steps=300, warmup=1).warmup == 1
    assert Cosine(steps=300, warmup=1.0).warmup == 300


@given(st.integers(1, 500), st.floats(0, 1))
def test_fractions_that_fill_the_run_always_fit(steps: int, warmup: float) -> None:
    shape = Trapezoid(steps=steps, warmup=warmup, cooldown=1.0 - warmup)
    assert shape.steps - 1 <= shape.warmup + shape.cooldown <= shape.steps


def test_cosine_follows_the_closed_form_after_its_warmup() -> None:
    shape = Cosine(steps=50, warmup=10, end=0.1)
    for step in range(10, 50):
        expected = 0.1 + 0.9 * math.cos(math.pi * (step - 10) / 80) ** 2
        assert shape(step) == pytest.approx(expected, abs=1e-12)


def test_inverse_sqrt_is_the_first_transformers_schedule() -> None:
    shape = InverseSqrt(warmup=16)
    for step in range(200):
        assert shape(step) == pytest.approx(min((step + 1) / 16, math.sqrt(16 / (step + 1))))


def test_inverse_sqrt_without_warmup_starts_at_one_and_halves_at_three_timescales() -> None:
    shape = InverseSqrt(timescale=10)
    assert shape(0) == 1.0
    assert shape(30) == pytest.approx(0.5)


def test_linear_has_no_constant_part() -> None:
    optimizer = make_optimizer(1.0)
    scheduler = shapes.linear(optimizer, steps=10, warmup=0.2)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.5, 1.0, 1.0, *(left / 8 for left in range(7, 0, -1))])


def run_schedule(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("cut", [0, 1, 5, 11])
def test_resume_equals_undisturbed(name: str, cut: int) -> None:
    optimizer = make_optimizer(groups=2)
    undisturbed = run_schedule(optimizer, FACTORIES[name](optimizer), 14)

    optimizer = make_optimizer(groups=2)
    scheduler = FACTORIES[name](optimizer)
    seen = run_schedule(optimizer, scheduler, cut)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    optimizer = make_optimizer(groups=2)
    # Built with other lengths: what was saved must win.
    scheduler = (
        FACTORIES[name](optimizer) if name != "trapezoid" else shapes.trapezoid(optimizer, steps=99, warmup=9)
    )
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert seen + run_schedule(optimizer, scheduler, 14 - cut) == undisturbed


@pytest.mark.parametrize("name", FACTORIES)
def test_tensor_lr_stays_the_same_tensor(name: str) -> None:
    lr = torch.tensor(0.5)
    optimizer, plain = make_optimizer(lr), make_optimizer(0.5)
    scheduler, reference = FACTORIES[name](optimizer), FACTORIES[name](plain)
    assert run_schedule(optimizer, scheduler, 12) == [
        [pytest.approx(value, rel=1e-6) for value in row] for row in run_schedule(plain, reference, 12)
    ]
    assert optimizer.param_groups[0]["lr"] is lr


def test_trapezoid_composes_with_groups_of_different_lr() -> None:
    optimizer = torch.optim.SGD(
        [
            {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0},
            {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1},
        ]
    )
    shapes.trapezoid(optimizer, steps=10, warmup=5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Trapezoid(steps=0), ValueError, "steps must be >= 1, got 0"),
        (lambda: Trapezoid(steps=True), TypeError, "steps must be an int"),
        (lambda: Trapezoid(steps=10.0), TypeError, "steps must be an int"),
        (lambda: Trapezoid(steps=10, warmup=True), TypeError, "warmup must be an int .* or a float"),
        (lambda: Trapezoid(steps=10, warmup="2"), TypeError, "warmup must be an int .* or a float"),
        (lambda: Trapezoid(steps=10, warmup=-1), ValueError, "warmup must be between 0 and steps=10, got -1"),
        (lambda: Trapezoid(steps=10, warmup=11), ValueError, "warmup must be between 0 and steps=10, got 11"),
        (
            lambda: Trapezoid(steps=10, warmup=1.5),
            ValueError,
            r"warmup as a fraction .* in \[0, 1\], got 1.5",
        ),
        (lambda: Trapezoid(steps=10, warmup=math.nan), ValueError, "warmup as a fraction"),
        (lambda: Trapezoid(steps=10, cooldown=-0.1), ValueError, "cooldown as a fraction"),
        (lambda: Trapezoid(steps=10, warmup=6), ValueError, "6 [+] 5 steps is more than steps=10"),
        (lambda: Trapezoid(steps=10, start=2.0), ValueError, r"start must be in \[0, 1\]"),
        (lambda: Cosine(steps=10, end=-0.5), ValueError, r"end must be in \[0, 1\]"),
        (lambda: Constant(warmup=0.5), TypeError, "warmup must be an int"),
        (lambda: Constant(warmup=-1), ValueError, "warmup must be >= 0"),
        (lambda: InverseSqrt(warmup=0.5), TypeError, "warmup must be an int"),
        (lambda: InverseSqrt(timescale=0), ValueError, "timescale must be >= 1"),
        (lambda: Constant()(-1), ValueError, "step must be >= 0, got -1"),
        (lambda: shapes.linear(make_optimizer(), steps=0), ValueError, "steps must be >= 1"),
        (lambda: shapes.linear(make_optimizer(), steps=5, warmup=True), TypeError, "warmup must be an int"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
