"""Scale laws as properties: growth of sigma_1, exact angles, kept norms, invariance to the gradient's scale."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer
from warmfree.optim import SGD, AngularControl, Lion, NoiseControl, SpectralBound

SHAPES = st.one_of(
    st.sampled_from([(1, 7), (7, 1), (2, 300), (300, 2), (64, 64), (3, 5, 2, 2), (1, 1), (40, 25)]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
KINDS = st.sampled_from(["noise", "rank-one", "aligned", "one element", "fresh support"])


def sigma(tensor):
    return torch.linalg.matrix_norm(tensor.detach().double().flatten(1), ord=2).item()


def hostile_gradient(kind, weight, step):
    """Gradients that concentrate a step in few directions, or move its support about."""
    shape = weight.shape
    if kind == "rank-one":
        flat = torch.outer(torch.randn(shape[0]), torch.randn(weight[0].numel()))
    elif kind == "aligned":
        left, _, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        flat = -torch.outer(left[:, 0], right[0])
    elif kind == "one element":
        flat = torch.zeros(shape[0], weight[0].numel())
        flat[step % shape[0], step % flat.shape[1]] = 1.0
    elif kind == "fresh support":
        flat = torch.zeros(shape[0], weight[0].numel())
        flat[:, step % flat.shape[1]] = torch.randn(shape[0])
    else:
        flat = torch.randn(shape[0], weight[0].numel())
    return flat.view(shape)


@pytest.mark.parametrize("direction", ["adam", "sgd"])
@given(
    shape=SHAPES,
    kind=KINDS,
    exponent=st.integers(-12, 12),
    tau=st.sampled_from([1e-3, 0.02, 0.05, 0.3]),
    lr=st.sampled_from([1e-3, 1.0, 1e4]),
)
@settings(max_examples=40, deadline=None)
def test_sigma_grows_by_at_most_tau(direction, shape, kind, exponent, tau, lr):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    if direction == "adam":
        optimizer = AdamW2([weight], lr, (0.9, 0.95), weight_decay=0.1 if lr <= 1 else 0.0, tau=tau)
    else:
        optimizer = SizedOptimizer([weight], SGD(), [SpectralBound(tau=tau)], lr=lr)
    for step in range(6):
        before = sigma(weight)
        weight.grad = hostile_gradient(kind, weight, step) * 10.0**exponent
        optimizer.step()
        assert torch.isfinite(weight).all()
        assert sigma(weight) <= before * (1 + tau) * (1 + 2e-3)


@pytest.mark.parametrize(("width", "size"), [(64, 3.0), (256, 5.0), (768, 6.0)])
def test_a_new_direction_beside_an_old_one_is_seen_at_once(width, size):
    """The vector of the last step stays on the old direction; W's own top direction is the new one."""
    weight = torch.zeros(width, width)
    weight[0, width // 2], weight[1, 0] = 1.0, 0.5
    weight = torch.nn.Parameter(weight)
    optimizer = SizedOptimizer([weight], SGD(), [SpectralBound(tau=0.05)], lr=1e3)
    for step in range(5):
        weight.grad = torch.zeros_like(weight)
        weight.grad[1, 0] = 1.0
        if step >= 2:
            weight.grad[0, width // 2] = -size
        before = sigma(weight)
        optimizer.step()
        assert sigma(weight) <= before * 1.05 * 1.002


@pytest.mark.parametrize("width", [64, 256])
def test_adam_with_one_column_active_and_another_spiking_is_bounded(width):
    torch.manual_seed(0)
    start = 0.02 * torch.randn(width, width)
    start[:, 3] = 0.5 * torch.sign(torch.randn(width))
    weight = torch.nn.Parameter(start)
    optimizer = AdamW2([weight], 1.0, weight_decay=0.0, tau=0.05)
    left = torch.randn(width)
    for step in range(70):
        weight.grad = torch.zeros_like(weight)
        weight.grad[:, 7] = left
        if step >= 60:
            weight.grad[:, 3] = -100.0 * weight.detach()[:, 3]
        before = sigma(weight)
        optimizer.step()
        assert sigma(weight) <= before * 1.05 * 1.002


def test_the_bound_is_used_up():
    """On a rank-one update along sigma_1's own direction the growth is tau, not less."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(30, 20))
    before = sigma(weight)
    weight.grad = hostile_gradient("aligned", weight, 0)
    optimizer = SizedOptimizer([weight], SGD(), [SpectralBound(tau=0.1)], lr=0.0)
    for _ in range(20):  # a cold estimate of sigma_1(W) is low and the bound tighter than it need be
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e6
    optimizer.step()
    assert sigma(weight) == pytest.approx(1.1 * before, rel=2e-3)


def test_sections_are_bounded_one_by_one():
    torch.manual_seed(0)
    for out_dim in (0, 1):
        value = torch.randn(24, 8) if out_dim == 0 else torch.randn(8, 24)
        weight = torch.nn.Parameter(value.clone())
        group = {"params": [weight], "split": (8, 12, 4), "out_dim": out_dim}
        optimizer = AdamW2([group], 10.0, weight_decay=0.0, tau=0.01)
        sizes = torch.ones(24)
        sizes[8:20] = 1e-6  # tiny updates of the middle section (eps makes them so) need no bound
        optimizer.param_groups[0]["eps"] = 1.0
        weight.grad = torch.randn_like(weight) * (sizes[:, None] if out_dim == 0 else sizes[None, :])
        optimizer.step()
        old, new = value.split((8, 12, 4), out_dim), weight.detach().split((8, 12, 4), out_dim)
        for before, after in zip(old, new, strict=True):
            assert sigma(after) <= sigma(before) * 1.01 * 1.002
        expected = weight.grad / (weight.grad.abs() + 1.0)
        middle = -10.0 * expected.split((8, 12, 4), out_dim)[1]
        torch.testing.assert_close(new[1] - old[1], middle, rtol=1e-2, atol=1e-6)


def test_a_zero_matrix_grows_by_tau_times_the_floor_then_geometrically():
    weight = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float64))
    optimizer = AdamW2([weight], 1.0, weight_decay=0.0, tau=0.1)
    floor = 0.1 * 0.02 * 20
    direction = torch.outer(torch.ones(100), torch.ones(100)).double()
    sizes = [0.0]
    for _ in range(30):
        weight.grad = -direction
        optimizer.step()
        sizes.append(sigma(weight))
    for before, after in itertools.pairwise(sizes):
        assert after == pytest.approx(before + 0.1 * max(before, floor), rel=2e-3)


def test_the_shortened_step_multiplies_the_decay():
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.float64))
    optimizer = AdamW2([weight], 1.0, eps=0.0, weight_decay=0.5, tau=0.01)
    weight.grad = torch.zeros(4, 4, dtype=torch.float64)
    weight.grad[0, 1] = 1.0  # update: one element of size 1, sigma_1 = 1 = sigma_1(W)
    optimizer.step()
    expected = torch.eye(4, dtype=torch.float64) * (1 - 0.01 * 0.5)
    expected[0, 1] = -0.01
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-9)


@given(
    shape=st.sampled_from([(5, 7), (3, 4, 3, 3), (1, 9), (20, 2)]),
    lr=st.floats(1e-5, 2.0),
    wd=st.floats(1e-3, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.98]),
    per_neuron=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_lionar_turns_by_the_angle_and_keeps_norms(shape, lr, wd, momentum, per_neuron):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = LionAR([weight], lr, momentum, wd, per_neuron=per_neuron, angle_schedule="sqrt")
    rows = (lambda w: w.flatten(1)) if per_neuron else (lambda w: w.reshape(1, -1))
    norms = rows(weight.detach()).norm(dim=1)
    for step in range(1, 6):
        before = rows(weight.detach().clone())
        weight.grad = torch.randn(shape, dtype=torch.float64)
        optimizer.step()
        after = rows(weight.detach())
        torch.testing.assert_close(after.norm(dim=1), norms, rtol=1e-14, atol=0)
        cosines = (before * after).sum(1) / norms**2
        theta = math.sqrt(2 * lr * wd * (1 - momentum) / (1 + momentum)) * (1 - momentum**step)
        torch.testing.assert_close(
            torch.acos(cosines.clamp(-1, 1)), torch.full_like(norms, math.atan(theta)), rtol=1e-5, atol=1e-7
        )
        angle = optimizer.step_report.fetch()["0.0"]["angle"]
        assert angle == pytest.approx(math.atan(theta), rel=1e-9)


def test_linear_schedule_turns_in_proportion_to_lr():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    optimizer = LionAR([weight], 0.08, 0.5, 0.1, inverse_bias_correction=False, angle_schedule="linear")
    angles = []
    for lr in (0.08, 0.04, 0.02):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        angles.append(math.tan(optimizer.step_report.fetch()["0.0"]["angle"]))
    peak = math.sqrt(2 * 0.08 * 0.1 / 3)
    assert angles == pytest.approx([peak, peak / 2, peak / 4], rel=1e-9)


def test_rotational_adamw_without_averaging_has_the_exact_angle():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    optimizer = RotationalAdamW([weight], 0.05, weight_decay=0.2, update_norm_decay=0.0)
    theta = math.sqrt(2 * 0.05 * 0.2 * 0.1 / 1.9)
    for _ in range(10):
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        cosine = torch.nn.functional.cosine_similarity(before, weight.detach(), dim=1)
        torch.testing.assert_close(
            cosine.acos(), torch.full_like(cosine, math.atan(theta)), rtol=1e-6, atol=0
        )


def test_the_reported_angle_is_the_one_that_was_made():
    """Whatever stands before or after the rotation: a bound, an averaged update norm, a neuron that is zero."""
    torch.manual_seed(0)
    start = torch.randn(8, 16, dtype=torch.float64)
    start[2] = 0.0
    for controls in (
        [AngularControl()],
        [AngularControl(update_norm_decay=0.9), SpectralBound(tau=1e-3)],
        [NoiseControl(batch_size=4), AngularControl()],
    ):
        weight = torch.nn.Parameter(start.clone())
        optimizer = SizedOptimizer([weight], Lion(momentum=0.9), controls, lr=0.1, weight_decay=0.1)
        for _ in range(4):
            before = weight.detach().clone()
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            others = [i for i in range(8) if i != 2]
            cosines = torch.nn.functional.cosine_similarity(before[others], weight.detach()[others])
            reported = optimizer.step_report.fetch()["0.0"]["angle"]
            assert reported == pytest.approx(cosines.clamp(max=1).acos().mean().item(), rel=1e-4)


def test_a_matrix_that_is_rotated_late_keeps_the_norm_it_then_has():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(8, 64))
    optimizer = RotationalAdamW([weight], 1e-2, weight_decay=0.1)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    norm = None
    for step in range(10):
        if step == 3:
            optimizer.param_groups[0]["weight_decay"] = 1.0
            norm = weight.detach().norm(dim=1)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        assert ("angle" in optimizer.step_report.fetch().get("0.0", {})) == (step >= 3)
    torch.testing.assert_close(weight.detach().norm(dim=1), norm, rtol=1e-5, atol=0)


def test_zero_mean_leaves_constant_neurons_alone_and_centres_the_others():
    weight = torch.nn.Parameter(torch.stack([torch.full((6,), 0.1), torch.randn(6) + 1.0]))
    norms = weight.detach().norm(dim=1)
    optimizer = RotationalAdamW([weight], 1e-6, weight_decay=1e-3, zero_mean=True)
    weight.grad = torch.randn(2, 6)
    optimizer.step()
    torch.testing.assert_close(weight.detach()[0], torch.full((6,), 0.1), rtol=1e-3, atol=0)
    assert weight.detach()[1].mean().abs() < 1e-6
    torch.testing.assert_close(weight.detach().norm(dim=1), norms)


def test_at_lr_zero_a_gradient_moves_nothing():
    for build in (LionAR, RotationalAdamW, AdamW2, GIAdamW, LionA):
        weight = torch.nn.Parameter(torch.randn(5, 7))
        start = weight.detach().clone()
        options = {"zero_mean": True} if build is RotationalAdamW else {}
        optimizer = build([weight], 0.0, weight_decay=0.1, **options)
        for _ in range(3):
            weight.grad = torch.randn(5, 7)
            optimizer.step()
        assert torch.equal(weight.detach(), start)


def test_a_radial_update_and_a_zero_gradient_turn_nothing():
    for start, gradient in ((torch.ones(3, 4), torch.ones(3, 4)), (torch.randn(3, 4), torch.zeros(3, 4))):
        weight = torch.nn.Parameter(start.clone())
        optimizer = LionAR([weight], 0.1, 0.9, 0.1)
        for _ in range(3):
            weight.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(weight.detach(), start, rtol=1e-6, atol=0)


def test_zero_rows_train_as_liona_until_they_have_a_norm_and_then_keep_it():
    torch.manual_seed(0)
    start = torch.randn(4, 16, dtype=torch.float64)
    start[1] = 0.0
    weight = torch.nn.Parameter(start.clone())
    optimizer = LionAR([weight], 0.05, 0.9, 0.1)
    step = 0.05 * math.sqrt(0.1 / 1.9)
    gradient = torch.randn(4, 16, dtype=torch.float64)
    norms = []
    for _ in range(60):
        weight.grad = gradient
        optimizer.step()
        norms.append(weight.detach()[1].norm().item())
    assert norms[0] == pytest.approx(step * 4, rel=1e-9)  # sixteen weights, each moved by the step
    born = next(i for i, norm in enumerate(norms) if norm >= 3**-0.5)
    assert 1 < born < 50
    assert norms[born + 1 :] == pytest.approx([norms[born]] * (59 - born), rel=1e-9)
    torch.testing.assert_close(
        weight.detach()[[0, 2, 3]].norm(dim=1), start[[0, 2, 3]].norm(dim=1), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda p: AdamW2(p, 1e-2, eps=0.0, tau=0.01),
        lambda p: GIAdamW(p, 1e-2, eps=0.0),
        lambda p: LionA(p, 1e-2),
        lambda p: LionAR(p, 1e-2),
        lambda p: RotationalAdamW(p, 1e-2, eps=0.0),
    ],
    ids=["AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW"],
)
@given(exponent=st.integers(-30, 30))
@settings(max_examples=15, deadline=None)
def test_updates_do_not_change_when_the_gradient_is_scaled(build, exponent):
    def run(scale):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(6, 4))
        optimizer = build([weight])
        for _ in range(4):
            weight.grad = torch.randn(6, 4) * scale
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(1.0), run(2.0**exponent))


def test_an_update_that_centring_takes_away_turns_nothing():
    """A constant gradient row, as of a layer whose inputs are all equal: what is left of it is rounding."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, 0.5, -1.5], [0.3, -0.7, 0.4]]))
    start = weight.detach().clone()
    optimizer = RotationalAdamW([weight], 1e-2, weight_decay=0.1, zero_mean=True)
    for _ in range(10):
        weight.grad = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 1.0]]).abs()  # Adam's updates: all ones
        optimizer.step()
    torch.testing.assert_close(weight.detach(), start, rtol=0, atol=1e-6)
