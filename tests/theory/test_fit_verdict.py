from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fit_cases import Floats, synthetic_run, two_phased

from warmfree.theory.fit import SmoothnessFit, fit_smoothness
from warmfree.theory.fit.ranks import two_phases


def fits(curvature: Callable[[Floats], Floats], *, runs: int = 6, **run) -> list[SmoothnessFit]:
    points = [synthetic_run(curvature, seed=seed, **run) for seed in range(runs)]
    return [fit_smoothness(*one, resamples=40) for one in points]


def verdicts(found: list[SmoothnessFit]) -> Counter[str]:
    return Counter(one.verdict for one in found)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("curvature", "verdict"),
    [
        (lambda gap: 2.0 + gap**0.5, "describes"),
        (lambda gap: 2.0 + gap, "describes"),
        (lambda gap: 2.0 + gap**2, "describes"),
        (lambda gap: gap, "describes"),
        (lambda gap: 2.0 + 0.0 * gap, "flat"),
        (lambda gap: gap**-0.5, "reversed"),
        (lambda gap: gap**-0.1, "reversed"),
    ],
)
def test_families_have_their_verdict(curvature: Callable[[Floats], Floats], verdict: str, late: bool) -> None:
    found = fits(curvature, late=late)
    assert verdicts(found)[verdict] >= 5
    right = next(one for one in found if one.verdict == verdict)
    said = {"describes": "Curvature rises", "flat": "hardly depends", "reversed": "Curvature grows"}
    assert said[verdict] in right.reasons[0]
    assert "rank correlation" in right.reasons[1]
    assert right.intervals["correlation"][0] < right.correlation < right.intervals["correlation"][1]


def test_noise_hides_a_verdict_and_never_turns_it_round() -> None:
    """With noise of 30 % that is correlated by 0.8 from point to point; wrong ones are counted, not denied."""
    flat = verdicts(fits(lambda gap: 2.0 + 0.0 * gap, noise=0.3, correlation=0.8, runs=12))
    assert flat["flat"] + flat["inconclusive"] >= 8
    rising = verdicts(fits(lambda gap: 2.0 + gap, noise=0.3, correlation=0.8, runs=12))
    assert rising["describes"] >= 9
    assert rising["reversed"] == 0
    falling = verdicts(fits(lambda gap: gap**-0.5, noise=0.3, correlation=0.8, runs=12))
    assert falling["reversed"] >= 10
    assert falling["describes"] == 0


def test_a_rise_too_small_for_a_warmup_is_flat_however_clear_it_is() -> None:
    losses = np.geomspace(10.0, 0.1, 60)
    found = fit_smoothness(losses, 2.0 + 0.04 * losses, resamples=20)
    assert found.correlation == pytest.approx(1.0)
    assert found.explained > 0.99
    assert found.verdict == "flat"


def test_too_narrow_a_range_of_the_gap_is_inconclusive() -> None:
    losses = np.geomspace(2.0, 1.1, 40)
    found = fit_smoothness(losses, losses, resamples=20)
    assert found.verdict == "inconclusive"
    assert "The gap changes by a factor of 1.71 over the run" in found.reasons[0]
    assert fit_smoothness(losses, losses, f_star=1.0, resamples=20).verdict == "describes"
    assert fit_smoothness(np.ones(20), np.ones(20), resamples=20).verdict == "inconclusive"


def test_two_points_at_the_start_do_not_make_an_envelope() -> None:
    losses = np.concatenate([[10.0, 9.0], np.geomspace(0.4, 0.1, 60)])
    noise = np.exp(0.05 * np.random.default_rng(0).normal(size=62))
    found = fit_smoothness(losses, (2.0 + losses) * noise, resamples=40)
    assert found.verdict == "inconclusive"
    assert "Measure more often at the start" in found.reasons[0]


def test_a_run_that_first_falls_and_then_sharpens_has_two_phases() -> None:
    """The verdict hangs on which is higher: above the late curvature the early one makes an envelope, below it not."""
    for one in fits(two_phased(8.0, 2.0)):
        assert one.verdict == "describes"
        assert one.phases is not None
        assert (one.phases.early.direction, one.phases.late.direction) == (1, -1)
        assert 35 <= one.phases.late.steps[0] <= 65
        assert one.phases.early.steps[1] < one.phases.late.steps[0]
        assert one.phases.early.correlation > 0.9 > -0.5 > one.phases.late.correlation
        assert one.phases.early.change == pytest.approx(1 / 8, rel=0.7)
        assert one.phases.late.change == pytest.approx(2.0, rel=0.3)
        assert any("A warmup is about the early phase" in reason for reason in one.reasons)
    for one in fits(two_phased(2.0, 8.0)):
        assert one.verdict == "reversed"
        assert one.phases is None or one.phases.late.direction == -1
    for one in fits(lambda gap: 1.0 / two_phased(4.0, 4.0)(gap)):
        assert one.verdict == "reversed"
        assert one.phases is not None
        assert (one.phases.early.direction, one.phases.late.direction) == (-1, 1)
        assert any("Curvature first grows" in reason for reason in one.reasons)


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 1), (0.7, 3), (0.9, 6)])
def test_noise_has_no_phases(correlation: float, most: int) -> None:
    """But for a few: of 100 others 0, 1 and 5 had."""
    found = 0
    for seed in range(40):
        losses, curvatures = synthetic_run(
            lambda gap: 2.0 + 0.0 * gap, noise=0.3, correlation=correlation, seed=seed
        )
        found += two_phases(np.arange(losses.size), np.log(losses), np.log(curvatures)) is not None
    assert found <= most


def test_an_envelope_that_is_far_above_the_beginning_does_not_describe() -> None:
    """Curvature of a cross-entropy saturates at large losses: a power through the rest is far above it there."""
    losses = np.concatenate([np.geomspace(3.0, 1.5, 12), np.geomspace(1.4, 0.002, 60)])
    curvatures = np.minimum(losses, 0.05) ** 1.2
    found = fit_smoothness(losses, curvatures, resamples=40)
    assert found.correlation > 0.7
    assert found.verdict != "describes"


class Perceptron:
    """Two hidden layers on a fixed small regression, its loss as a function of one vector, in float64."""

    def __init__(self, *, scale: float, seed: int, width: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.inputs = normal(24, 4)
        self.targets = torch.sin(2.0 * self.inputs[:, :1]) * self.inputs[:, 1:2]
        generator.manual_seed(seed)
        self.shapes = [(width, 4), (width, width), (1, width)]
        self.start = torch.cat([scale * normal(*shape).flatten() / shape[1] ** 0.5 for shape in self.shapes])

    def loss(self, weights: torch.Tensor) -> torch.Tensor:
        parts = weights.split([rows * columns for rows, columns in self.shapes])
        first, second, last = (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))
        hidden = torch.tanh(torch.tanh(self.inputs @ first.T) @ second.T)
        return 0.5 * ((hidden @ last.T - self.targets) ** 2).mean()


def descent_of(network: Perceptron, *, lr: float, steps: int, every: int) -> tuple[list[int], Floats, Floats]:
    """Full-batch gradient descent: steps, losses and largest eigenvalues of the Hessian."""
    weights, seen = network.start, []
    gradient, hessian = torch.func.grad(network.loss), torch.func.hessian(network.loss)
    for step in range(steps):
        if step % every == 0 or (step < 60 and step % 2 == 0):
            top = torch.linalg.eigvalsh(hessian(weights))[-1]
            seen.append((step, float(network.loss(weights)), float(top)))
        weights = weights - lr * gradient(weights)
    at, losses, curvatures = zip(*seen, strict=True)
    return list(at), np.array(losses), np.array(curvatures)


def test_full_batch_gradient_descent_of_a_perceptron_sharpens() -> None:
    """The known effect, on a network that begins small: the smoothness holds only through its floor."""
    at, losses, curvatures = descent_of(Perceptron(scale=1.0, seed=10), lr=0.05, steps=900, every=25)
    assert losses[-1] < 0.3 * losses[0]
    assert curvatures[-1] > 1.5 * curvatures[0]
    found = fit_smoothness(losses, curvatures, steps=at, resamples=60)
    assert found.verdict == "reversed"
    assert found.correlation < -0.5
    assert "progressive sharpening" in found.reasons[0]


def test_a_perceptron_that_begins_large_first_falls_and_then_sharpens() -> None:
    """The early phase alone is what the condition describes."""
    at, losses, curvatures = descent_of(Perceptron(scale=2.0, seed=11), lr=0.02, steps=2000, every=40)
    assert curvatures[0] > 1.5 * curvatures.min() < curvatures[-1]
    found = fit_smoothness(losses, curvatures, steps=at, resamples=60)
    assert found.verdict == "reversed"
    assert found.phases is not None
    assert (found.phases.early.direction, found.phases.late.direction) == (1, -1)
    assert found.phases.early.change < 0.7
    assert found.phases.late.change > 2.0
    first = slice(0, found.phases.early.points)
    early = fit_smoothness(losses[first], curvatures[first], steps=at[first], resamples=60)
    assert early.phases is None
    assert early.even_correlation > 0.9
    assert early.verdict == "describes"


def test_a_perceptron_that_begins_larger_still_is_described() -> None:
    at, losses, curvatures = descent_of(Perceptron(scale=4.0, seed=11), lr=0.02, steps=2000, every=40)
    found = fit_smoothness(losses, curvatures, steps=at, resamples=60)
    assert found.verdict == "describes"
    assert found.smoothness.curvature(found.gaps[0]) > 2.0 * found.smoothness.curvature(found.gaps[-1])
