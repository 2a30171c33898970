"""Stochastic rounding is unbiased; master copies and bfloat16 moments do what they are for."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import OPTIMIZERS
from torch import nn

from warmfree import AdamW2, GIAdamW
from warmfree.optim import Precision
from warmfree.optim.precision import round_stochastically


def neighbours(value):
    """The bfloat16 numbers around a float32 one."""
    down = (torch.tensor([value]).view(torch.int32) & -0x10000).view(torch.float32)
    up = (down.view(torch.int32) + 0x10000).view(torch.float32)
    return down.item(), up.item()


@given(
    value=st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: abs(x) > 1e-30),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_rounding_is_to_a_neighbour_and_right_in_the_mean(value, seed):
    count = 40_000
    rounded = round_stochastically(torch.full((count,), value), seed=seed).double()
    near, far = neighbours(value)
    assert set(rounded.tolist()) <= {near, far}
    # The share that goes to the far one is binomial: five standard deviations.
    share = (value - near) / (far - near)
    found = (rounded == far).double().mean().item()
    assert abs(found - share) <= 5 * (share * (1 - share) / count) ** 0.5 + 1e-9


def test_rounding_keeps_what_bfloat16_has_and_what_is_no_number():
    exact = torch.randn(1000).bfloat16().float()
    assert torch.equal(round_stochastically(exact, seed=1).float(), exact)
    odd = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0])
    assert torch.equal(round_stochastically(odd, seed=1).float(), odd)
    assert round_stochastically(torch.tensor([float("nan")]), seed=1).isnan().all()
    assert round_stochastically(torch.full((1000,), torch.finfo(torch.bfloat16).max), seed=1).isfinite().all()


def test_noise_differs_by_place_and_seed_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    values = torch.full((64, 64), 1.0 + 2**-8)
    one, same, other = (round_stochastically(values, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    changed = (one != other).float().mean()
    assert 0.4 < changed < 0.6
    bits = (one > 1).double().view(-1)
    for lag in (1, 2, 3, 8, 64):  # neighbours, and neighbours of the next row
        assert abs(torch.corrcoef(torch.stack([bits[:-lag], bits[lag:]]))[0, 1]) < 0.08
    assert torch.equal(state, torch.get_rng_state())


def drift(precision, steps=400):
    """A weight of 1 that is to move by 1e-4 a step, in the end by 0.04: five bfloat16 numbers."""
    weight = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    optimizer = AdamW2([weight], 1e-4, weight_decay=0.0, precision=precision)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.detach().float().mean().item()


def test_small_steps_are_lost_by_plain_rounding_and_kept_by_the_options():
    assert drift(Precision()) == 1.0
    assert drift(Precision(master_weights=True)) == pytest.approx(0.96, abs=2**-9)
    assert drift(Precision(stochastic_rounding=True)) == pytest.approx(0.96, abs=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "precision",
    [
        Precision(stochastic_rounding=True, bf16_moments=True),
        Precision(master_weights=True),
        Precision(bf16_moments=True),
    ],
    ids=["stochastic", "master", "moments"],
)
def test_narrow_runs_follow_the_wide_one_and_resume_bitwise(name, precision):
    def make():
        torch.manual_seed(0)
        values = [0.5 * torch.randn(12, 10), 0.5 * torch.randn(9)]
        # Rounding weights to the nearest loses steps, whatever the moments: with these alone the weights are wide.
        keeps = precision.stochastic_rounding or precision.master_weights
        params = [
            nn.Parameter(value.bfloat16().to(torch.bfloat16 if keeps else torch.float32)) for value in values
        ]
        return params, OPTIMIZERS[name](params, precision=precision)

    def run(params, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for param in params:
                gradient = torch.randn(param.shape, generator=generator) + 1.0
                param.grad = gradient.bfloat16().to(param.dtype)
            optimizer.step()

    params, optimizer = make()
    run(params, optimizer, range(15))
    saved = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in params]
    run(params, optimizer, range(15, 30))

    again, resumed = make()
    for param, value in zip(again, saved[1], strict=True):
        param.data.copy_(value)
    resumed.load_state_dict(saved[0])
    run(again, resumed, range(15, 30))
    assert all(torch.equal(one, other) for one, other in zip(params, again, strict=True))

    start, _ = make()
    wide = [nn.Parameter(param.detach().float()) for param in start]
    reference = OPTIMIZERS[name](wide)
    run(wide, reference, range(30))
    for before, exact, narrow in zip(start, wide, params, strict=True):
        moved = (exact - before.float()).norm()
        assert (exact - narrow.float()).norm() <= 0.25 * moved + 0.01 * before.float().norm()


def test_state_has_the_types_that_were_asked_for():
    weight = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    state = GIAdamW([weight], precision=Precision(bf16_moments=True, master_weights=True)).state[weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["master_weight"].dtype == torch.float32
    plain = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    state = GIAdamW([plain], precision=Precision(bf16_moments=True, master_weights=True)).state[plain]
    assert state["exp_avg"].dtype == torch.float64
    assert "master_weight" not in state
    with pytest.raises(ValueError, match="choose one"):
        Precision(stochastic_rounding=True, master_weights=True)
