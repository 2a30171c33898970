"""The fused step of whole optimizers: equal to the eager one, with the eager code wherever there is no kernel."""

import copy

import pytest
import torch
from problems import OPTIMIZERS, assert_equal, make_model, train, weights
from torch import nn

from warmfree import AdamW2, GIAdamW, LionAR, parameter_groups
from warmfree.optim import Precision, kernels

pytest.importorskip("ninja")


def relative(one, other, start):
    moved = sum((a - b).norm() ** 2 for a, b in zip(one, start, strict=True)) ** 0.5
    apart = sum((a - b).norm() ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
    return (apart / moved).item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_equals_eager(name):
    eager, fused = make_model(), make_model()
    start = weights(eager)
    reference = OPTIMIZERS[name](parameter_groups(eager))
    optimizer = OPTIMIZERS[name](parameter_groups(fused), fused=True)
    # A bound that is active is estimated to 0.2 %, which training amplifies.
    train(eager, reference, 8)
    train(fused, optimizer, 8)
    assert relative(weights(eager), weights(fused), start) <= (1e-2 if name == "AdamW2" else 1e-5)
    ours, theirs = optimizer.step_report.fetch(), reference.step_report.fetch()
    assert ours.keys() == theirs.keys()
    for parameter, report in theirs.items():
        assert ours[parameter] == pytest.approx(report, rel=2e-2)


@pytest.mark.parametrize("build", [AdamW2, GIAdamW, LionAR], ids=lambda build: build.__name__)
def test_a_resumed_run_is_bitwise_the_same_and_modes_share_checkpoints(build):
    model = make_model()
    optimizer = build(parameter_groups(model), 1e-2, fused=True)
    train(model, optimizer, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 5, start=5)
    start = None
    for mode in ({"fused": True}, {}):
        again = make_model()
        again.load_state_dict(saved[0])
        start = weights(again)
        resumed = build(parameter_groups(again), 1e-2, **mode)
        resumed.load_state_dict(copy.deepcopy(saved[1]))
        train(again, resumed, 5, start=5)
        if mode:
            assert_equal(weights(model), weights(again))
    assert relative(weights(model), weights(again), start) <= 1e-2


def test_what_has_no_kernel_takes_the_eager_step():
    def make():
        generator = torch.Generator().manual_seed(0)
        shapes = {
            "float64": (4, 5),
            "strided": (6, 4),
            "transposed": (4, 6),
            "bfloat16": (3, 4),
            "plain": (5, 3),
        }
        values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        values["float64"], values["bfloat16"] = values["float64"].double(), values["bfloat16"].bfloat16()
        values["strided"] = values["strided"].T
        params = {name: nn.Parameter(value) for name, value in values.items()}
        return params, [
            {"params": [params["transposed"]], "out_dim": 1},
            {"params": [param for name, param in params.items() if name != "transposed"]},
        ]

    def run(**mode):
        params, groups = make()
        optimizer = AdamW2(groups, 1e-2, tau=0.02, **mode)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            for param in params.values():
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            optimizer.step()
        return params

    eager, fused = run(), run(fused=True)
    for name, param in eager.items():
        if name == "plain":
            torch.testing.assert_close(param, fused[name], rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(param, fused[name]), name


def test_a_precision_of_its_own_takes_the_eager_step():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = AdamW2([weight], fused=True, precision=Precision(bf16_moments=True))
    for _ in range(3):
        weight.grad = torch.ones(4, 4)
        optimizer.step()
    assert optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16


def test_compile_and_fused_exclude_each_other():
    with pytest.raises(ValueError, match="choose one"):
        AdamW2([nn.Parameter(torch.ones(2, 2))], compile=True, fused=True)


@pytest.mark.parametrize("build", [AdamW2, GIAdamW, LionAR], ids=lambda build: build.__name__)
def test_non_finite_gradients_and_lr_zero_change_nothing(build):
    model = make_model()
    optimizer = build(parameter_groups(model), 1e-2, fused=True)
    train(model, optimizer, 3)
    before = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    for bad in (float("nan"), float("inf")):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        parameter.grad.view(-1)[-1] = bad
        optimizer.step()
    assert optimizer.skipped_steps == 2
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_equal(before[0], weights(model))
    for key, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][key][name]) for name, value in entries.items())


@pytest.mark.parametrize("name", ["AdamW2", "GIAdamW", "LionA", "LionAR", "RotationalAdamW", "AdamD"])
def test_the_kernels_are_what_steps(name, monkeypatch):
    called = []
    for kernel in ("adam", "lion", "adam_spectral", "adam_angular", "lion_angular", "square_sums"):
        original = getattr(kernels, kernel)

        def noted(*args, kernel=kernel, original=original, **options):
            called.append(kernel)
            return original(*args, **options)

        monkeypatch.setattr(kernels, kernel, noted)
    model = make_model()
    optimizer = OPTIMIZERS[name](parameter_groups(model), fused=True)
    train(model, optimizer, 2)
    direction = "lion" if name.startswith("Lion") else "adam"
    size = {"AdamW2": ["adam_spectral"], "LionAR": ["lion_angular"], "RotationalAdamW": ["adam_angular"]}
    assert set(called) == {direction, "square_sums", *size.get(name, [])}


def test_structure_that_was_edited_is_refused_before_a_kernel_sees_it():
    for build, option, value in (
        (lambda p: LionAR(p, per_neuron=False, fused=True), "per_neuron", True),
        (lambda p: AdamW2(p, fused=True), "split", 4),
    ):
        weight = nn.Parameter(torch.randn(64, 32))
        optimizer = build([weight])
        for _ in range(3):
            weight.grad = torch.randn(64, 32)
            optimizer.step()
        optimizer.param_groups[0][option] = value
        before = weight.detach().clone()
        with pytest.raises(RuntimeError, match=f"{option} was changed"):
            optimizer.step()
        assert torch.equal(weight, before)


@pytest.mark.parametrize("mode", [{}, {"fused": True}, {"compile": True}], ids=["eager", "fused", "compiled"])
def test_a_huge_gradient_does_not_stop_a_weight_for_good(mode):
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = AdamW2([weight], 1e-2, betas=(0.9, 0.9), weight_decay=0.0, tau=10.0, **mode)
    for _ in range(6):
        weight.grad = torch.full((4, 4), 2.5e19)
        optimizer.step()
    assert optimizer.state[weight]["exp_avg_sq"].isfinite().all()
    assert weight.max() < 0.96


def test_what_a_build_lacks_is_said_by_the_constructor(monkeypatch):
    def fail():
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr(kernels, "_build", fail)
    monkeypatch.setattr(kernels, "_module", None)
    monkeypatch.setattr(kernels, "_failure", None)
    with pytest.raises(RuntimeError, match=r"pip install warmfree\[fused\].*Ninja is required"):
        AdamW2([nn.Parameter(torch.ones(2, 2))], fused=True)
