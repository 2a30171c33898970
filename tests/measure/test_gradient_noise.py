import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import warmfree
from warmfree import SizedOptimizer, wrap
from warmfree.measure.noise import GradientNoise, MomentumNoise, NoiseAverages, split_noise
from warmfree.optim import SGD, SpectralBound


def signal_direction(size, generator):
    direction = torch.randn(size, generator=generator, dtype=torch.float64)
    return direction / direction.norm()


def feed(
    build, *, snr, size=(40, 250), steps=120, every=1, first=1, seed=0, batch_size=1.0, known=True, **options
):
    """Give an optimizer gradients of a known signal-to-noise ratio; return the last measurement."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
    signal = signal_direction(size, generator) * math.sqrt(snr)
    optimizer, noise = build([weight]), MomentumNoise(batch_size=batch_size, **options)
    found = {}
    for step in range(steps):
        weight.grad = signal + torch.randn(size, generator=generator, dtype=torch.float64) / math.sqrt(
            weight.numel()
        )
        if step >= first and (step - first) % every == 0:
            found = noise.measure(optimizer, [("w", weight)], steps=step if known else None)
        optimizer.step()
    return found


class Lion(torch.optim.Optimizer):
    """Lion as everybody has it: the momentum is that of the second beta, and steps are not counted."""

    def __init__(self, params, betas=(0.9, 0.98)):
        super().__init__(params, {"lr": 1e-4, "betas": betas})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                average = self.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                weight.sub_(average.lerp(weight.grad, 1 - beta1).sign_(), alpha=group["lr"])
                average.lerp_(weight.grad, 1 - beta2)


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, betas=(0.9, 0.99)),
    "Adam with L2": lambda p: torch.optim.Adam(p, lr=1e-4, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, betas=(0.98, 0.99), weight_decay=0.1),
    "AdamW, maximize": lambda p: torch.optim.AdamW(p, maximize=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9),
    "SGD with L2": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, weight_decay=0.1),
    "SGD, dampened": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, dampening=0.5),
    "Muon": lambda p: torch.optim.Muon(p, momentum=0.9, ns_steps=1),
    "Lion": Lion,
    "AdamW2": lambda p: warmfree.AdamW2(p, lr=1e-3, betas=(0.9, 0.95)),
    "GIAdamW": lambda p: warmfree.GIAdamW(p, lr=1e-3),
    "LionA": lambda p: warmfree.LionA(p, lr=1e-3),
    "LionAR": lambda p: warmfree.LionAR(p, lr=1e-3, weight_decay=0.1),
    "SizedOptimizer, SGD": lambda p: SizedOptimizer(p, SGD(momentum=0.9), lr=1e-3),
    "wrapped": lambda p: wrap(torch.optim.AdamW(p, weight_decay=0.0), [SpectralBound(tau=0.1)]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gives_the_known_ratio(name):
    found = feed(OPTIMIZERS[name], snr=0.5, batch_size=4.0, steps=40, smoothing=0.95)["w"]
    assert found.snr == pytest.approx(0.125, rel=0.05)
    assert found.critical_batch == pytest.approx(8.0, rel=0.05)
    assert found.noise == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("momentum", [0.9, 0.98])
@pytest.mark.parametrize("snr", [0.0, 0.01, 0.1, 1.0, 10.0])
def test_the_table(momentum, snr):
    found = feed(lambda p: torch.optim.AdamW(p, betas=(momentum, 0.999)), snr=snr, steps=200, smoothing=0.98)
    assert found["w"].snr == pytest.approx(snr, rel=0.05, abs=2e-3)


@pytest.mark.parametrize("steps", range(2, 21, 3))
def test_from_the_second_step_on(steps):
    build = OPTIMIZERS["Adam"]
    found = feed(build, snr=0.5, size=(200, 500), steps=steps, first=steps - 1)
    assert found["w"].snr == pytest.approx(0.5, abs=0.012)


def test_the_first_step_tells_nothing():
    for name, build in OPTIMIZERS.items():
        assert feed(build, snr=0.5, steps=1, first=0) == {}, name


def test_rare_measurements_average_to_the_same():
    found = feed(OPTIMIZERS["AdamW"], snr=0.3, steps=401, every=25, smoothing=0.99)
    assert found["w"].snr == pytest.approx(0.3, rel=0.05)


def test_the_steps_of_an_optimizer_that_does_not_count_matter_early_only():
    early = feed(OPTIMIZERS["SGD"], snr=0.5, steps=3, first=2, known=False)["w"].snr
    assert abs(early - 0.5) > 0.2
    assert feed(OPTIMIZERS["SGD"], snr=0.5, steps=3, first=2)["w"].snr == pytest.approx(0.5, abs=0.05)
    assert feed(OPTIMIZERS["SGD"], snr=0.5, known=False, first=100)["w"].snr == pytest.approx(0.5, rel=0.1)


def test_signal_and_noise_are_unbiased_and_beat_the_product_and_the_norms_alone():
    """2000 independent (m, g) with 50 elements: means within 4 standard errors, variances as derived."""
    generator = torch.Generator().manual_seed(0)
    for momentum, count in ((0.9, 1000), (0.98, 1000), (0.9, 1), (0.9, 4)):
        decayed = momentum**count
        rho = (1 - momentum) * (1 + decayed) / ((1 + momentum) * (1 - decayed))
        for snr in (0.0, 0.1, 1.0):
            signal = signal_direction((50,), generator) * math.sqrt(snr)
            mean, gradient = torch.randn(2, 2000, 50, generator=generator, dtype=torch.float64) / math.sqrt(
                50
            )
            mean, gradient = signal + math.sqrt(rho) * mean, signal + gradient
            square, product, mean_square = (
                (gradient**2).sum(1),
                (gradient * mean).sum(1),
                (mean**2).sum(1),
            )
            found = torch.tensor(
                [
                    split_noise(mean_square=a, product=c, square=n, overlap=rho)
                    for a, c, n in zip(mean_square.tolist(), product.tolist(), square.tolist(), strict=True)
                ],
                dtype=torch.float64,
            )
            errors = found.std(0) / math.sqrt(2000)
            assert (found.mean(0) - torch.tensor([snr, 1.0], dtype=torch.float64)).abs().lt(4 * errors).all()
            assert found[:, 0].var() <= 1.1 * product.var()
            if snr == 0:
                assert found[:, 0].var() == pytest.approx(4 * rho**2 / (1 + rho) ** 2 / 25 / 2, rel=0.15)
                if count == 1000:
                    assert product.var() / found[:, 0].var() == pytest.approx(
                        (1 + rho) ** 2 / 4 / rho, rel=0.2
                    )


@given(
    st.floats(1e-3, 1.0),
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=9),
)
def test_split_noise_is_the_pooled_mean_and_the_difference(rho, pairs):
    mean, gradient = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    signal, noise = split_noise(
        mean_square=float(mean @ mean),
        product=float(mean @ gradient),
        square=float(gradient @ gradient),
        overlap=rho,
    )
    size = float(mean @ mean + gradient @ gradient) + 1e-300
    difference = float((gradient - mean).square().sum()) / (1 + rho)
    pooled = float(((mean + rho * gradient) / (1 + rho)).square().sum())
    assert noise == pytest.approx(difference, abs=1e-12 * size)
    assert signal == pytest.approx(pooled - rho / (1 + rho) * difference, abs=1e-12 * size)


def test_batches_of_a_real_data_set_give_its_exact_signal_and_noise():
    """A linear regression that stands still, batches drawn with replacement, 40 samples: 4 standard errors."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    targets = inputs.sum(1) + torch.randn(40, generator=generator, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.zeros(12, dtype=torch.float64))
    gradients = -2 * targets[:, None] * inputs
    truth = torch.stack([gradients.mean(0).square().sum(), gradients.var(0, correction=0).sum()])
    rows = []
    for _ in range(60):
        optimizer, noise = torch.optim.AdamW([weight], lr=0.0), MomentumNoise(batch_size=5, smoothing=0.999)
        for _ in range(30):
            chosen = torch.randint(40, (5,), generator=generator)
            optimizer.zero_grad()
            (inputs[chosen] @ weight - targets[chosen]).square().mean().backward()
            found = noise.measure(optimizer, [("w", weight)])
            optimizer.step()
        rows.append([found["w"].signal, found["w"].noise])
    rows = torch.tensor(rows, dtype=torch.float64)
    assert ((rows.mean(0) - truth).abs() < 4 * rows.std(0) / math.sqrt(60)).all()
    assert (rows.std(0) / math.sqrt(60) < 0.05 * truth).all()


def test_scaling_all_gradients_changes_no_ratio():
    ratios = []
    for scale in (1.0, 2.0**-20, 2.0**20):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(10, 10))
        optimizer, noise = torch.optim.SGD([weight], lr=0.0, momentum=0.9), MomentumNoise(batch_size=2)
        for step in range(6):
            weight.grad = scale * (0.3 + torch.randn(10, 10, generator=generator))
            found = noise.measure(optimizer, [("w", weight)], steps=step)
            optimizer.step()
        ratios.append(found["w"].snr)
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-6)


def test_the_global_value_is_of_the_whole_gradient():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.nn.Parameter(torch.zeros(100, 100)) for name in ("loud", "clear")}
    frozen = torch.nn.Parameter(torch.zeros(3))
    named = [*weights.items(), ("frozen", frozen)]
    optimizer, noise = (
        torch.optim.AdamW([w for _, w in named], betas=(0.9, 0.99)),
        MomentumNoise(batch_size=1),
    )
    for _ in range(80):
        for (name, weight), size in zip(weights.items(), (3.0, 1.0), strict=True):
            signal = {"loud": 0.0, "clear": 1.0}[name]
            weight.grad = signal + size * torch.randn(100, 100, generator=generator)
        found = noise.measure(optimizer, named)
        optimizer.step()
    assert set(found) == {"loud", "clear", ""}
    assert found["loud"].snr == pytest.approx(0.0, abs=5e-3)
    assert found["clear"].snr == pytest.approx(1.0, rel=0.03)
    assert found[""].snr == pytest.approx(1 / 10, rel=0.03)
    assert found[""].noise == pytest.approx(1e5, rel=0.03)


def test_half_precision_gradients_are_measured_in_float32():
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(200, 200, dtype=torch.bfloat16))
    optimizer, noise = torch.optim.SGD([weight], lr=0.0, momentum=0.9), MomentumNoise(batch_size=1)
    for step in range(60):
        weight.grad = (0.5 + torch.randn(200, 200, generator=generator)).bfloat16()
        found = noise.measure(optimizer, [("w", weight)], steps=step)
        optimizer.step()
    assert found["w"].snr == pytest.approx(0.25, rel=0.06)  # bfloat16 momentum rounds


def test_constant_gradients_are_all_signal_zero_ones_are_neither_and_infinite_ones_are_ignored():
    weight = torch.nn.Parameter(torch.zeros(4))
    for value, expected in ((1.0, math.inf), (0.0, math.nan)):
        optimizer, noise = torch.optim.SGD([weight], lr=0.0, momentum=0.5), MomentumNoise(batch_size=1)
        for step in range(4):
            weight.grad = torch.full((4,), value)
            found = noise.measure(optimizer, [("w", weight)], steps=step)
            optimizer.step()
        assert found["w"].snr == pytest.approx(expected, nan_ok=True)
    weight.grad = torch.full((4,), math.inf)
    assert noise.measure(optimizer, [("w", weight)]) == {}
    weight.grad = torch.zeros(4)
    assert math.isfinite(noise.measure(optimizer, [("w", weight)])["w"].signal)


def test_optimizers_without_momentum_are_left_out():
    for build in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop):
        assert feed(lambda p, build=build: build(p, lr=1e-3), snr=1.0, steps=4) == {}
    assert feed(lambda p: torch.optim.Adam(p, betas=(0.0, 0.9)), snr=1.0, steps=4) == {}


def test_an_optimizer_inside_another_is_found():
    class Accelerated(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)
        state = property(lambda self: self.optimizer.state)

        def step(self):
            self.optimizer.step()

    found = feed(lambda p: Accelerated(Lion(p)), snr=0.5, steps=60, smoothing=0.95)
    assert found["w"].snr == pytest.approx(0.5, rel=0.05)


def test_measuring_changes_nothing():
    weight = torch.nn.Parameter(torch.randn(5, 5))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    weight.grad = torch.randn(5, 5)
    optimizer.step()
    kept = [weight.detach().clone(), weight.grad.clone(), optimizer.state[weight]["momentum_buffer"].clone()]
    MomentumNoise(batch_size=1).measure(optimizer, [("w", weight)])
    now = [weight.detach(), weight.grad, optimizer.state[weight]["momentum_buffer"]]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_ratios_at_their_ends():
    assert GradientNoise(-1.0, 2.0).snr == 0
    assert GradientNoise(-1.0, 2.0).critical_batch == math.inf
    assert GradientNoise(1.0, 0.0).critical_batch == 0
    assert GradientNoise(1.0, -0.1).snr == math.inf
    assert math.isnan(GradientNoise(0.0, 0.0).snr)
    assert math.isnan(GradientNoise(0.0, 0.0).critical_batch)


def test_averages_are_ratios_of_averages():
    averages = NoiseAverages(smoothing=0.5)
    averages.add({"w": (0.0, 4.0)})
    assert averages.add({"w": (3.0, 1.0)})["w"] == GradientNoise(2.0, 2.0)
    assert averages.add({"w": (math.nan, 1.0)}) == {}
    assert averages.add({"v": (5.0, 7.0)}) == {"v": GradientNoise(5.0, 7.0), "": GradientNoise(5.0, 7.0)}


def test_arguments():
    with pytest.raises(ValueError, match="batch_size must be"):
        MomentumNoise(batch_size=0)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\)"):
        MomentumNoise(batch_size=1, smoothing=1.0)
