"""Translated settings against independent formulas, and against random walks of the real optimizers."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam

import warmfree
from warmfree import AdamW2, GIAdamW, LionA, SizedOptimizer
from warmfree.advice.translated import translated
from warmfree.advice.translation import Translation, translate_lr
from warmfree.measure.equilibrium import predicted_equilibrium, predicted_update_rms
from warmfree.measure.updates import UpdateProbe
from warmfree.measure.white_noise import adamw_angle
from warmfree.optim import SpectralBound, wrap

ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
TARGETS = ("AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW")
PLAIN, ROTATIONAL = TARGETS[:3], TARGETS[3:]
adamw_settings = st.fixed_dictionaries(
    {
        "lr": st.floats(1e-6, 1e-1),
        "betas": st.tuples(st.floats(0.0, 0.99), st.floats(0.9, 0.9999)),
        "weight_decay": st.floats(1e-4, 1.0),
    }
)


def build(translation: Translation, parameter: nn.Parameter | None = None) -> Optimizer:
    parameter = nn.Parameter(torch.ones(4, 4)) if parameter is None else parameter
    kind: Any = getattr(warmfree, translation.optimizer)
    return kind([parameter], lr=translation.lr, **translation.options)


# What is said of the new optimizer, against what is predicted of it elsewhere.


@pytest.mark.parametrize("to", TARGETS)
@settings(max_examples=30)
@given(source=adamw_settings, momentum=st.none() | st.floats(0.0, 0.99))
def test_both_keeps_step_angle_and_norm(to: str, source: dict[str, Any], momentum: float | None) -> None:
    new = translate_lr(source, to, momentum=momentum)
    optimizer = build(new)
    old = AdamW([nn.Parameter(torch.ones(4, 4))], **source)
    rms, angle = predicted_update_rms(old, step=10**9)["0.0"], predicted_equilibrium(old)["0.0"].angle
    assert rms is not None
    assert angle is not None
    if to != "GIAdamW":  # of whose steps nothing is predicted
        assert predicted_update_rms(optimizer, step=10**9)["0.0"] == pytest.approx(
            rms * source["lr"] / new.lr, rel=1e-9
        )
    assert new.update_rms == pytest.approx(rms * source["lr"], rel=1e-9)
    settled = predicted_equilibrium(optimizer)["0.0"]
    turn = math.atan(angle) if to in ROTATIONAL else angle
    assert settled.angle == pytest.approx(turn, rel=1e-6)
    assert new.angle == pytest.approx(angle, rel=1e-9)
    if to in PLAIN:
        assert settled.norm == pytest.approx(predicted_equilibrium(old)["0.0"].norm, rel=1e-6)


@settings(max_examples=30)
@given(source=adamw_settings)
@pytest.mark.parametrize("match", ["both", "rms", "angle"])
@pytest.mark.parametrize("to", ["AdamW2", "GIAdamW", "RotationalAdamW"])
def test_adams_own_kind_gets_the_very_settings(to: str, match: Any, source: dict[str, Any]) -> None:
    new = translate_lr(source, to, match=match)
    assert (new.lr, new.options) == (
        source["lr"],
        {"betas": source["betas"], "eps": 1e-8, "weight_decay": source["weight_decay"]},
    )


@settings(max_examples=30)
@given(source=adamw_settings, factor=st.floats(1e-2, 1e2), momentum=st.floats(0.0, 0.99))
@pytest.mark.parametrize("match", ["both", "rms", "angle"])
@pytest.mark.parametrize("to", TARGETS)
def test_learning_rates_scale_and_weight_decays_stay(
    to: str, match: Any, source: dict[str, Any], factor: float, momentum: float
) -> None:
    one = translate_lr(source, to, match=match, momentum=momentum)
    more = translate_lr(source | {"lr": factor * source["lr"]}, to, match=match, momentum=momentum)
    assert more.lr == pytest.approx(factor * one.lr, rel=1e-9)
    assert more.options["weight_decay"] == pytest.approx(one.options["weight_decay"], rel=1e-9)


@settings(max_examples=30)
@given(source=adamw_settings, momentum=st.floats(0.0, 0.99))
@pytest.mark.parametrize("match", ["both", "angle"])
@pytest.mark.parametrize("to", TARGETS)
def test_there_and_back_again(to: str, match: Any, source: dict[str, Any], momentum: float) -> None:
    there = build(translate_lr(source, to, match=match, momentum=momentum))
    back = translate_lr(there, "AdamW2", match=match, momentum=source["betas"][0])
    assert back.lr == pytest.approx(source["lr"], rel=1e-9)
    assert back.options["weight_decay"] == pytest.approx(source["weight_decay"], rel=1e-9)
    assert back.options["betas"][0] == source["betas"][0]


def test_other_momentum_changes_lr_by_the_ratio_of_update_sizes() -> None:
    ratio = math.sqrt(0.1 / 1.9) / math.sqrt(0.02 / 1.98)
    for to in TARGETS:
        assert translate_lr(ADAMW, to, momentum=0.98).lr == pytest.approx(1e-3 * ratio, rel=1e-12)
    assert translate_lr(ADAMW, "LionA", momentum=0.98, match="rms").options == {
        "momentum": 0.98,
        "weight_decay": 0.1,
    }


def test_a_given_weight_decay_leaves_one_thing_to_keep() -> None:
    sized = translate_lr(ADAMW, "LionAR", match="rms", weight_decay=1.0)
    assert (sized.lr, sized.options["weight_decay"]) == (1e-3, 1.0)
    assert sized.angle == pytest.approx(adamw_angle(lr=1e-3, weight_decay=1.0, beta1=0.9))
    turned = translate_lr(ADAMW, "LionAR", match="angle", weight_decay=1.0)
    assert turned.lr == pytest.approx(1e-4)
    assert turned.angle == pytest.approx(adamw_angle(lr=1e-3, weight_decay=0.1, beta1=0.9))
    assert any("settled steps, of what is not rotated, are 0.1 times" in note for note in turned.notes)
    assert not any("size of a settled step" in kept for kept in turned.exact)


def test_the_settings_of_an_optimizer_are_those_of_its_group_with_decay_at_the_peak() -> None:
    weights = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    groups = [
        {"params": weights[:1], "weight_decay": 0.0},
        {"params": weights[1:], "weight_decay": 0.1, "lr": 2e-3},
    ]
    optimizer = AdamW(groups, lr=1e-3, betas=(0.8, 0.95))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[1]["lr"] == 0.0
    found = translate_lr(optimizer, LionA)
    assert (found.lr, found.options["momentum"]) == (2e-3, 0.8)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=10, cycle_momentum=False)
    assert translate_lr(optimizer, LionA).lr == 5e-3
    tensor_lr = AdamW(weights, lr=torch.tensor(1e-3, dtype=torch.float64))
    assert translate_lr(tensor_lr, "AdamW2").lr == 1e-3


def test_optimizers_that_settle_as_adamw_does() -> None:
    expected = translate_lr(ADAMW, "LionA")
    for kind in (Adam, RAdam):
        source = kind([nn.Parameter(torch.ones(2))], **ADAMW, decoupled_weight_decay=True)
        assert translate_lr(source, "LionA") == Translation(
            **{
                name: getattr(expected, name)
                for name in ("optimizer", "lr", "options", "update_rms", "angle", "exact")
            },
            notes=tuple(note.replace("AdamW", kind.__name__) for note in expected.notes),
        )
    for source in (
        AdamW2([nn.Parameter(torch.ones(2))], **ADAMW),
        GIAdamW([nn.Parameter(torch.ones(2))], **ADAMW),
        wrap(AdamW([nn.Parameter(torch.ones(2))], **ADAMW), [SpectralBound()]),
    ):
        found = translate_lr(source, "LionA")
        assert (found.lr, found.options) == (expected.lr, expected.options)


class AdamW8bit(Optimizer):
    """As bitsandbytes calls it."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"eps": 1e-8, **options})


class PagedAdamW8bit(AdamW8bit):
    """As bitsandbytes derives it."""


def test_eight_bit_adamw_is_known_by_name() -> None:
    for kind in (AdamW8bit, PagedAdamW8bit):
        found = translate_lr(kind([nn.Parameter(torch.ones(2))], **ADAMW), "LionA")
        assert found.options == translate_lr(ADAMW, "LionA").options


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda w: SGD(w, lr=0.1), {}, "SGD cannot be translated"),
        (lambda w: Adagrad(w), {}, "Adagrad cannot be translated"),
        (lambda w: SizedOptimizer(w, "sgd"), {}, "SizedOptimizer cannot be translated"),
        (lambda w: Adam(w, weight_decay=0.1), {}, r"added to the gradient \(L2\)"),
        (lambda w: Adam(w, weight_decay=0.1), {"match": "rms"}, r"added to the gradient \(L2\)"),
        (lambda w: AdamW(w, amsgrad=True), {}, "amsgrad"),
        (lambda w: AdamW(w, lr=0.0), {}, "lr must be finite and > 0"),
        (lambda w: Adam(w), {"match": "angle"}, "needs weight decay"),
        (lambda w: Adam(w), {"to": "LionAR"}, "Ask for angle='present'"),
        (lambda w: Adam(w), {"angle": "present"}, "optimizers that rotate"),
        (
            lambda w: AdamW([nn.Parameter(torch.zeros(3, 3))]),
            {"to": "LionAR", "angle": "present"},
            "got none",
        ),
        (lambda w: AdamW(w), {"to": "Muon"}, "can translate to AdamW2"),
        (lambda w: AdamW(w), {"to": AdamW}, "can translate to AdamW2"),
        (lambda w: AdamW(w), {"match": "norm"}, "match must be 'both' or"),
        (lambda w: AdamW(w), {"angle": "now"}, "angle must be 'settled' or"),
        (lambda w: AdamW(w), {"momentum": 1.0}, "momentum must be in"),
        (lambda w: AdamW(w), {"weight_decay": 0.1}, "match='both' finds the weight decay"),
        (lambda w: AdamW(w), {"weight_decay": -0.1, "match": "rms"}, "weight_decay must be finite"),
        (lambda _: {"betas": (0.9, 0.95)}, {}, "must have an lr"),
        (lambda _: {"lr": 1e-3, "momentum": 0.9}, {}, "got momentum"),
        (lambda _: {"lr": 1e-3, "betas": (0.9, 1.0)}, {}, "betas must be"),
        (lambda _: ADAMW, {"to": "LionAR", "angle": "present"}, "got none"),
    ],
)
def test_what_cannot_be_translated_says_why(
    source: Callable[[list[nn.Parameter]], Any], options: dict[str, Any], message: str
) -> None:
    weights = [nn.Parameter(torch.ones(3, 3))]
    with pytest.raises(ValueError, match=message):
        translate_lr(source(weights), **{"to": "LionA", **options})


def test_adam_without_decoupled_decay() -> None:
    weights = [nn.Parameter(torch.ones(3, 3))]
    found = translate_lr(Adam(weights, lr=1e-3), "LionA")
    assert (found.lr, found.options, found.angle) == (1e-3, {"momentum": 0.9, "weight_decay": 0.0}, None)
    assert any("nothing settles" in note for note in found.notes)
    l2 = translate_lr(Adam(weights, lr=1e-3, weight_decay=0.1), "AdamW2", match="rms", weight_decay=0.01)
    assert (l2.lr, l2.options["weight_decay"]) == (1e-3, 0.01)
    assert any("L2" in note for note in l2.notes)


def test_notes_name_what_differs() -> None:
    def notes(to: str, **options: Any) -> str:
        return " ".join(translate_lr(ADAMW, to, **options).notes)

    assert "tau" in notes("AdamW2")
    assert "first step is 0.22 of AdamW's" in notes("GIAdamW")
    assert "33 steps" in notes("GIAdamW")
    assert "4.4 times" in notes("LionA")
    assert "0.712 times as far" in notes("LionA")
    assert "0.00456 rad; AdamW settles at 0.00324" in notes("LionA", match="rms")
    assert "45 steps" in notes("LionAR", momentum=0.95)
    assert "5e+03 steps" in notes("RotationalAdamW")
    assert "momentum_decay" in " ".join(translate_lr(NAdam([nn.Parameter(torch.ones(2))]), "AdamW2").notes)
    low = translate_lr({"lr": 1e-3, "betas": (0.9, 0.5)}, "AdamW2")
    assert any("beta2 = 0.5" in note for note in low.notes)
    lion = translate_lr(LionA([nn.Parameter(torch.ones(2))], lr=1e-3), "LionA", momentum=0.95)
    assert not any("from the first one on" in note for note in lion.notes)
    back = translate_lr(LionA([nn.Parameter(torch.ones(2))], lr=1e-3), "AdamW2")
    assert any("no beta2" in note for note in back.notes)


# What happens in the first step.


def first_step(optimizer: Optimizer) -> torch.Tensor:
    (weight,) = optimizer.param_groups[0]["params"]
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    optimizer.step()
    return before - weight.detach()


def test_first_steps() -> None:
    def weight() -> nn.Parameter:
        start = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return nn.Parameter(start)

    source = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    adamw = first_step(AdamW([weight()], **source))
    same = first_step(
        AdamW2([weight()], translate_lr(source, "AdamW2").lr, (0.9, 0.95), weight_decay=0.0, tau=math.inf)
    )
    assert torch.equal(same, adamw)
    torch.testing.assert_close(
        first_step(build(translate_lr(source, "GIAdamW"), weight())), math.sqrt(0.05) * adamw
    )
    torch.testing.assert_close(
        first_step(build(translate_lr(source, "LionA"), weight())), math.sqrt(0.1 / 1.9) * adamw
    )
    bounded = first_step(build(translate_lr(source | {"lr": 1.0}, "AdamW2"), weight()))
    assert 0 < float(bounded.abs().max()) < 0.1  # AdamW's is 1
    turned = translate_lr({**source, "weight_decay": 0.1}, "RotationalAdamW")
    parameter = weight()
    old = parameter.detach().clone()
    first_step(build(turned, parameter))
    cosines = torch.cosine_similarity(old, parameter.detach())
    assert cosines.acos() == pytest.approx([math.atan(turned.angle or 0.0)] * 8, rel=1e-3)


# Random walks of the real optimizers: a matrix of 3000 elements and a vector of 2000.

LR, DECAY, STEPS = 2e-3, 0.5, 1500
Sources = Callable[[list[nn.Parameter]], Optimizer]
WALKS: dict[str, Sources] = {
    "AdamW": lambda p: AdamW(p, LR, (0.9, 0.99), weight_decay=DECAY),
    "Adam": lambda p: Adam(p, LR, (0.95, 0.99), weight_decay=DECAY, decoupled_weight_decay=True),
    "RAdam": lambda p: RAdam(p, LR, (0.8, 0.99), weight_decay=DECAY, decoupled_weight_decay=True),
    "NAdam": lambda p: NAdam(
        p, LR, (0.9, 0.99), weight_decay=DECAY, momentum_decay=1e3, decoupled_weight_decay=True
    ),
    "LionA": lambda p: LionA(p, LR, 0.9, DECAY, nesterov=False),
}


def walk(optimizer: Optimizer, *, start: float) -> dict[str, tuple[float, float]]:
    """Return by parameter the RMS of a step and of its angle over the last third of a walk from an RMS of `start`."""
    generator = torch.Generator().manual_seed(2)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.data = start * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    probe = UpdateProbe([(str(weight.ndim), weight) for weight in weights])
    sums = {str(weight.ndim): [0.0, 0.0] for weight in weights}
    for step in range(STEPS):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if step < STEPS * 2 // 3:
            optimizer.step()
            continue
        probe.snapshot()
        optimizer.step()
        for name, update in probe.compare(lr=1.0).items():
            angle = update.neuron_angle if name == "2" else update.angle
            sums[name] = [sums[name][0] + update.rms**2, sums[name][1] + angle**2]
    count = STEPS - STEPS * 2 // 3
    return {name: (math.sqrt(rms / count), math.sqrt(angle / count)) for name, (rms, angle) in sums.items()}


def fresh() -> list[nn.Parameter]:
    return [
        nn.Parameter(torch.ones(4, 750, dtype=torch.float64)),
        nn.Parameter(torch.ones(2000, dtype=torch.float64)),
    ]


def start_of(name: str) -> float:
    """RMS at which weights settle, so that there is little left to wait for."""
    norm = predicted_equilibrium(WALKS[name](fresh()))["0.1"].norm
    return math.sqrt(LR / (2 * DECAY)) if norm is None else norm / math.sqrt(2000)


@cache
def source_walk(name: str) -> dict[str, tuple[float, float]]:
    return walk(WALKS[name](fresh()), start=start_of(name))


def check_walk(name: str, to: str, momentum: float | None) -> None:
    options = {"tau": math.inf} if to == "AdamW2" else {}
    optimizer = translated(WALKS[name](fresh()), to, momentum=momentum, **options)
    old, new = source_walk(name), walk(optimizer, start=start_of(name))
    vector, matrix = "1", "2"
    assert new[vector] == pytest.approx(old[vector], rel=0.05)  # size and angle
    assert new[matrix][1] == pytest.approx(old[matrix][1], rel=0.05)
    if to in PLAIN:
        assert new[matrix][0] == pytest.approx(old[matrix][0], rel=0.05)


@pytest.mark.parametrize(("to", "momentum"), [("LionA", None), ("LionAR", 0.95)])
def test_a_walk_at_translated_settings_is_the_same_walk(to: str, momentum: float | None) -> None:
    check_walk("AdamW", to, momentum)


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", WALKS)
def test_walks_at_translated_settings_are_the_same_walk(name: str, to: str) -> None:
    if (name, to) == ("LionA", "GIAdamW"):
        pytest.skip("at beta2 = 0.999, the default, g_0^2 is not forgotten in these steps")
    check_walk(name, to, 0.8 if len(name + to) % 2 else None)


@pytest.mark.parametrize("to", ROTATIONAL)
def test_the_present_angle_is_that_of_settled_steps_at_present_norms(to: str) -> None:
    def start() -> nn.Parameter:
        values = torch.randn(10, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return nn.Parameter(values * torch.linspace(0.5, 2.0, 10, dtype=torch.float64)[:, None])

    def angle(optimizer: Optimizer) -> float:
        (weight,) = optimizer.param_groups[0]["params"]
        probe, generator, total = UpdateProbe([("w", weight)]), torch.Generator().manual_seed(1), 0.0
        for step in range(300):
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            probe.snapshot()
            optimizer.step()
            total += (step >= 100) * probe.compare(lr=1.0)["w"].neuron_angle ** 2
        return math.sqrt(total / 200)

    adam = Adam([start()], lr=1e-3, betas=(0.9, 0.99))
    new = translate_lr(adam, to, angle="present")
    fixed = translate_lr(adam, to, angle="present", match="angle", weight_decay=1.0)
    assert new.lr == 1e-3  # of what is not rotated
    assert (fixed.angle, fixed.options["weight_decay"]) == (pytest.approx(new.angle), 1.0)
    by_hand = torch.atan(1e-3 * math.sqrt(0.1 / 1.9) * math.sqrt(300) / start().detach().norm(dim=1))
    assert new.angle == pytest.approx(float(by_hand.square().mean().sqrt()))
    assert angle(build(new, start())) == pytest.approx(angle(adam), rel=0.05)
