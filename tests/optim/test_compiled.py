"""The compiled step against the eager one, and no compilation after the first steps."""

import copy

import pytest
import torch
from problems import OPTIMIZERS
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from warmfree import AdamW2, GIAdamW, LionAR


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((6, 10), (7,))]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def run(optimizer, params, steps):
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_equals_eager(name):
    eager, compiled = parameters(), parameters()
    reference = OPTIMIZERS[name](eager)
    optimizer = OPTIMIZERS[name](compiled, compile=True, maximize=False)
    run(reference, eager, range(6))
    run(optimizer, compiled, range(6))
    start = parameters()
    for before, one, other in zip(start, eager, compiled, strict=True):
        moved = (one - before).norm()
        assert moved > 1e-3
        assert (one - other).norm() <= 2e-6 * moved + 2e-7 * before.norm()  # and the rounding of six steps
        for key, value in reference.state[one].items():
            torch.testing.assert_close(optimizer.state[other][key], value, rtol=2e-5, atol=2e-6)
    ours, theirs = optimizer.step_report.fetch(), reference.step_report.fetch()
    assert ours.keys() == theirs.keys()
    for parameter, report in theirs.items():
        assert ours[parameter] == pytest.approx(report, rel=1e-4)


def test_bf16_weights_are_compiled_too():
    eager, compiled = parameters(torch.bfloat16), parameters(torch.bfloat16)
    reference, optimizer = LionAR(eager), LionAR(compiled, compile=True)
    run(reference, eager, range(5))
    run(optimizer, compiled, range(5))
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=0)


@pytest.mark.parametrize("build", [AdamW2, GIAdamW, LionAR], ids=lambda build: build.__name__)
def test_schedules_edits_and_resume_compile_nothing(build):
    params = parameters()
    optimizer = build(params, 1e-2, compile=True)
    momentum = "betas" if "betas" in optimizer.defaults else "momentum"
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=220, cycle_momentum=True)
    run(optimizer, params, range(3))
    scheduler.step()
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3, 203):
            give_gradients(params, step)
            optimizer.step()
            scheduler.step()
            if step == 50:
                optimizer.param_groups[0]["weight_decay"] *= 0.5
            if step == 60 and momentum == "betas":
                optimizer.param_groups[0]["eps"] = 1e-6
            if step == 70 and "tau" in optimizer.param_groups[0]:
                optimizer.param_groups[0]["tau"] = 0.01
            if step == 100:
                saved = copy.deepcopy(optimizer.state_dict())
                params = [nn.Parameter(param.detach().clone()) for param in params]
                optimizer = build(params, 1e-2, compile=True)
                optimizer.load_state_dict(saved)
                scheduler.optimizer = optimizer
    assert all(param.isfinite().all() for param in params)


def test_what_differs_in_structure_is_compiled_again():
    params = parameters()
    optimizer = AdamW2(params, 1e-2, compile=True)
    run(optimizer, params, range(3))
    optimizer.param_groups[0]["power_iterations"] = 3
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        run(optimizer, params, range(3, 4))


def test_lr_zero_and_non_finite_gradients_are_as_in_the_eager_step():
    params = parameters()
    optimizer = AdamW2(params, 1e-2, compile=True)
    run(optimizer, params, range(3))
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, params, range(3, 5))
    optimizer.param_groups[0]["lr"] = 1e-2
    params[0].grad[0, 0] = float("nan")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(old, param) for old, param in zip(before, params, strict=True))


def test_betas_may_be_a_list_and_shapes_many():
    """As configuration files have them; and more regions than torch.compile lets one function have."""
    shapes = [(2, size) for size in range(2, 12)] + [(2, 2, 3), (2, 3, 2)]
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = GIAdamW(params, 1e-2, betas=[0.9, 0.95], compile=True)
    run(optimizer, params, range(3))
    assert all(optimizer.state[param]["step"] == 3 for param in params)
