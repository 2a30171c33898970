"""Predictions for white noise against random walks of the real optimizers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RAdam

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer
from warmfree.measure.equilibrium import Equilibrium, predicted_equilibrium, predicted_update_rms
from warmfree.measure.updates import UpdateProbe
from warmfree.measure.white_noise import adam_update_rms, adamw_angle, lion_angle, sign_displacement
from warmfree.optim import SGD as SGDDirection  # noqa: N811
from warmfree.optim import Adam as AdamDirection
from warmfree.optim import SpectralBound
from warmfree.optim.wrap import wrap

SIZE = 2000
Parameters = list[nn.Parameter]


class Lion(Optimizer):
    """Lion as published (Chen et al. 2023): two betas, decoupled decay."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(m.lerp(p.grad, 1 - group["betas"][0]).sign(), alpha=-group["lr"])
                m.lerp_(p.grad, 1 - group["betas"][1])


LR, DECAY = 2e-3, 0.5
WALKS: dict[str, Callable[[Parameters], Optimizer]] = {
    "AdamW": lambda p: AdamW(p, LR, (0.9, 0.99), weight_decay=DECAY),
    "AdamW-amsgrad": lambda p: AdamW(p, LR, (0.9, 0.99), weight_decay=DECAY, amsgrad=True),
    "Adam-decoupled": lambda p: Adam(p, LR, (0.95, 0.99), weight_decay=DECAY, decoupled_weight_decay=True),
    "RAdam-decoupled": lambda p: RAdam(p, LR, (0.8, 0.99), weight_decay=DECAY, decoupled_weight_decay=True),
    "GIAdamW": lambda p: GIAdamW(p, LR, (0.9, 0.99), weight_decay=DECAY),
    "AdamW2": lambda p: AdamW2(p, LR, (0.9, 0.99), weight_decay=DECAY, tau=math.inf),
    "Lion": lambda p: Lion(p, LR, (0.95, 0.98), DECAY),
    "LionA": lambda p: LionA(p, LR, 0.9, DECAY),
    "LionA-plain": lambda p: LionA(p, LR, 0.9, DECAY, nesterov=False),
    "SGD": lambda p: SGD(p, 0.1, weight_decay=0.01),
    "SGD-momentum": lambda p: SGD(p, 0.02, momentum=0.9, weight_decay=0.005),
    "SGD-dampening": lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.8, weight_decay=0.005),
    "SGD-nesterov": lambda p: SGD(p, 0.02, momentum=0.9, weight_decay=0.005, nesterov=True),
    "ours-SGD": lambda p: SizedOptimizer(p, SGDDirection(momentum=0.5), lr=0.1, weight_decay=0.01),
    "wrapped": lambda p: wrap(AdamW(p, LR, (0.9, 0.99), weight_decay=DECAY), [SpectralBound(tau=math.inf)]),
    "LionAR": lambda p: LionAR(p, LR, 0.9, DECAY),
    "LionAR-linear": lambda p: LionAR(p, LR, 0.9, DECAY, angle_schedule="linear"),
    "RotationalAdamW": lambda p: RotationalAdamW(p, LR, (0.9, 0.99), weight_decay=DECAY),
}


def walk(build: Callable[[Parameters], Optimizer], *, steps: int) -> tuple[Equilibrium, float, float]:
    """Return the prediction, and the RMS angle and norm over the last third of a walk that starts near its end."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, SIZE // 4, generator=generator))
    optimizer = build([weight])
    predicted = predicted_equilibrium(optimizer)["0.0"]
    group = optimizer.param_groups[0]
    gain = (1 - group.get("dampening", 0)) / (1 - group.get("momentum", 0))
    gain = gain**2 if isinstance(optimizer, SizedOptimizer) else gain  # whose decay bypasses the momentum
    near = predicted.norm or math.sqrt(group["lr"] * gain * SIZE / (2 * group["weight_decay"]))
    weight.data.mul_(near / weight.detach().norm())
    probe, angles, norms = UpdateProbe([("w", weight)]), [], []
    for step in range(steps):
        weight.grad = torch.randn(weight.shape, generator=generator)
        measured = step > steps * 2 // 3
        if measured:
            probe.snapshot()
        optimizer.step()
        if measured:
            update = probe.compare(lr=1.0)["w"]
            angles.append(update.angle**2)
            norms.append(update.weight_norm**2)
    return predicted, math.sqrt(sum(angles) / len(angles)), math.sqrt(sum(norms) / len(norms))


@pytest.mark.parametrize("name", WALKS)
def test_random_walks_settle_where_predicted(name: str) -> None:
    predicted, angle, norm = walk(WALKS[name], steps=1500)
    assert predicted.angle is not None
    assert angle == pytest.approx(predicted.angle, rel=0.05)
    if predicted.norm is None:
        assert predicted.reason
    else:
        assert norm == pytest.approx(predicted.norm, rel=0.05)


def test_the_arcsine_law_is_near_its_linear_form_and_unites_the_sign_optimizers() -> None:
    for b, plain, nesterov in ((0.9, 0.836, 0.712), (0.95, 0.834, 0.756), (0.98, 0.833, 0.795)):
        square = (1 - b) / (1 + b)
        assert math.sqrt(square * sign_displacement(betas=(b, b))) == pytest.approx(plain, abs=1e-3)
        assert math.sqrt(square * sign_displacement(betas=(b * b, b))) == pytest.approx(nesterov, abs=1e-3)
    for b1, b2 in ((0.9, 0.99), (0.95, 0.98), (0.0, 0.5)):
        square = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
        bussgang = math.sqrt(math.pi / 2 * 2e-4 * square)
        assert lion_angle(lr=1e-3, weight_decay=0.1, betas=(b1, b2)) == pytest.approx(
            bussgang, rel=0.05 if b1 else 0.3
        )


@pytest.mark.parametrize("betas", [(0.9, 0.0), (0.0, 0.9), (0.5, 0.999)])
def test_sign_displacement_is_the_sum_over_correlations_of_the_taps(betas: tuple[float, float]) -> None:
    b1, b2 = betas
    later = b1 * (1 - b2) * b2 ** torch.arange(20_000, dtype=torch.float64)
    taps = torch.cat([torch.tensor([1 - b1], dtype=torch.float64), later])
    correlations = [float(taps[k:] @ taps[: len(taps) - k] / (taps @ taps)) for k in range(1, 8000)]
    expected = 1 + 4 / math.pi * math.fsum(map(math.asin, correlations))
    assert sign_displacement(betas=betas) == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_predicted_says_why() -> None:
    model = nn.Linear(3, 2)
    decayed = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
    cases = [
        (AdamW, None),
        (Adam, "no formula for Adam with L2 decay"),
        (Adagrad, "no formula for Adagrad"),
        (SGD, "depends on the size of the gradients"),
    ]
    for build, reason in cases:
        found = predicted_equilibrium(build([dict(group) for group in decayed], lr=0.1), model=model)
        assert found.keys() == {"weight", "bias"}
        assert found["bias"] == Equilibrium(angle=None, norm=None, reason="no weight decay: nothing settles")
        assert (reason or "") in found["weight"].reason
        assert (found["weight"].norm is None) == (reason is not None)
    still = predicted_equilibrium(AdamW(model.parameters(), lr=torch.tensor(0.0)))
    assert still["0.0"].reason == "the learning rate is 0"
    fixed = AdamW([{"params": [model.weight], "fixed_decay": True}])
    assert "no formula for this kind" in predicted_equilibrium(fixed)["0.0"].reason


def test_parameters_have_the_names_of_model_optimizer_or_place() -> None:
    model = nn.Linear(3, 2)
    assert predicted_equilibrium(AdamW(model.named_parameters())).keys() == {"weight", "bias"}
    assert predicted_equilibrium(AdamW(model.parameters())).keys() == {"0.0", "0.1"}
    assert predicted_equilibrium(AdamW(model.parameters()), model=model).keys() == {"weight", "bias"}


def test_rotational_optimizers_rotate_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(1, 2))
    found = predicted_equilibrium(RotationalAdamW(model.parameters(), 1e-2, weight_decay=0.1), model=model)
    angle = adamw_angle(lr=1e-2, weight_decay=0.1, beta1=0.9)
    assert found["0.weight"].angle == pytest.approx(math.atan(angle), rel=1e-12)
    assert found["0.weight"].norm is None
    for name in ("0.bias", "1.weight"):  # a vector, and neurons of one weight
        assert found[name].angle == pytest.approx(angle, rel=1e-12)
        assert found[name].norm is not None


@pytest.mark.parametrize("snr", [0.0, 0.1, 10.0, math.inf])
@pytest.mark.parametrize("beta2", [0.95, 0.999])
@pytest.mark.parametrize("corrections", [(True, True), (False, True), (False, False)])
def test_rms_of_adams_update_at_every_step(snr: float, beta2: float, corrections: tuple[bool, bool]) -> None:
    generator, dim = torch.Generator().manual_seed(0), 20_000
    mean, spread = (1.0, 0.0) if math.isinf(snr) else (math.sqrt(snr), 1.0)
    m, v = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for step in range(1, 101):
        gradient = mean + spread * torch.randn(dim, generator=generator, dtype=torch.float64)
        m.lerp_(gradient, 0.1)
        v.lerp_(gradient**2, 1 - beta2)
        update = m / (1 - 0.9**step if corrections[0] else 1)
        update = update / (v / (1 - beta2**step if corrections[1] else 1)).sqrt()
        if step in (1, 3, 10, 30, 100):
            expected = adam_update_rms(
                step,
                betas=(0.9, beta2),
                batch_snr=snr,
                correct_momentum=corrections[0],
                correct_variance=corrections[1],
            )
            assert float(update.square().mean().sqrt()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["AdamW", "AdamW2", "Lion", "LionA"])
def test_update_rms_of_an_optimizer(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(100, 200, dtype=torch.float64))
    optimizer = WALKS[name]([weight])
    for step in range(1, 21):
        before = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        change = (weight.detach() - before * (1 - LR * DECAY)) / LR
        size = float(change.square().mean().sqrt())
        assert predicted_update_rms(optimizer, step=step)["0.0"] == pytest.approx(size, rel=0.05)


def test_update_rms_is_not_known_of_optimizers_that_do_not_normalise() -> None:
    weight = nn.Parameter(torch.ones(3))
    for optimizer in (
        SGD([weight]),
        Adam([weight], amsgrad=True),
        RAdam([weight]),
        SizedOptimizer([weight], "sgd"),
    ):
        assert predicted_update_rms(optimizer, step=1) == {"0.0": None}
    adamd = SizedOptimizer([weight], AdamDirection(correct_momentum=False))
    assert predicted_update_rms(adamd, step=1)["0.0"] == pytest.approx(0.1)
