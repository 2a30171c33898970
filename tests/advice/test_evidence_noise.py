"""Gradient noise against exact per-sample gradients."""

import itertools
import math
from collections import UserDict, namedtuple

import pytest
import torch
from evidence_cases import Picture, batch, loss_fn, mlp, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.parallel import DistributedDataParallel

from processes import spawn
from warmfree.advice.gradient_noise import measure_noise, pooled_noise
from warmfree.advice.halves import halves, samples_in
from warmfree.advice.missing import NotMeasuredError


def per_sample(model, pair):
    """Gradients of single samples, (samples, weights)."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, *pair)
    return torch.cat([gradient.flatten(1) for gradient in found.values()], dim=1)


def pieces(pair, *sizes):
    return list(zip(*(tensor.split(list(sizes)) for tensor in pair), strict=True))


def measure(model, batches, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    picture = Picture(model, optimizer)
    found = measure_noise(model, options.pop("loss", loss_fn), batches, optimizer, **options)
    picture.check()
    return found


def test_single_samples_give_the_covariance_and_the_mean_without_bias():
    model, samples = mlp(), batch(30)
    found = measure(model, pieces(samples, *[1] * 30), batch_size=1, most=30)
    gradients = per_sample(model, samples)
    trace = float(gradients.var(0).sum())
    signal = float(gradients.mean(0).square().sum()) - trace / 30
    assert found.signal_to_noise == pytest.approx(signal / trace, rel=1e-9)
    assert found.critical_batch_size == pytest.approx(trace / signal, rel=1e-9)
    assert found.batch_size == 1


@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_give_the_two_batch_sizes_formula(accumulate):
    model, samples = mlp(), batch(24)
    found = measure(model, pieces(samples, *[4] * 6), batch_size=4 * accumulate, accumulate=accumulate)
    micro = per_sample(model, samples).unflatten(0, (6, 4)).mean(1)
    big, small = float(micro.mean(0).square().sum()), float(micro.square().sum(1).mean())
    signal, noise = (24 * big - 4 * small) / 20, (small - big) / (1 / 4 - 1 / 24)
    assert found.signal_to_noise == pytest.approx(max(signal, 0) / noise, rel=1e-9)
    assert found.batch_size == 4 * accumulate


def test_the_estimate_is_near_the_truth_of_the_set_that_samples_are_drawn_from():
    """Eight batches of 32 from 64 samples: exact |G|^2 and tr Sigma of that set."""
    model, samples = mlp(), batch(64)
    gradients = per_sample(model, samples)
    generator = torch.Generator().manual_seed(0)
    truth = float(gradients.mean(0).square().sum() / gradients.var(0, correction=0).sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(20):
        chosen = torch.randint(64, (8, 32), generator=generator)
        batches = [(samples[0][rows], samples[1][rows]) for rows in chosen]
        found.append(measure_noise(model, loss_fn, batches, optimizer, batch_size=32).signal_to_noise)
    mean = torch.tensor(found).mean()
    assert mean == pytest.approx(truth, rel=0.15)


@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=3),
    sizes=st.lists(st.integers(1, 2), min_size=2, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_it_is_unbiased_whatever_the_sizes(values, sizes):
    """One weight, all draws of samples enumerated: on average it is the square of the mean, and the variance."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    signals, noises = [], []
    for draw in itertools.product(values, repeat=sum(sizes)):
        left = list(draw)
        gradients = [sum(left.pop() for _ in range(size)) / size for size in sizes]
        pooled = sum(size * gradient for size, gradient in zip(sizes, gradients, strict=True)) / sum(sizes)
        found = pooled_noise([gradient**2 for gradient in gradients], sizes, pooled=pooled**2)
        signals.append(found.signal)
        noises.append(found.noise)
    assert sum(signals) / len(signals) == pytest.approx(mean**2, abs=1e-9)
    assert sum(noises) / len(noises) == pytest.approx(variance, abs=1e-9)


def test_a_last_batch_that_is_smaller_counts_for_less():
    model, samples = mlp(), batch(11)
    found = measure(model, pieces(samples, 4, 4, 3), batch_size=4)
    gradients = [part.mean(0) for part in per_sample(model, samples).split([4, 4, 3])]
    pooled = (4 * gradients[0] + 4 * gradients[1] + 3 * gradients[2]) / 11
    expected = pooled_noise(
        [float(gradient.square().sum()) for gradient in gradients],
        [4, 4, 3],
        pooled=float(pooled.square().sum()),
    )
    assert found.signal_to_noise == pytest.approx(expected.snr, rel=1e-9)


def test_a_single_batch_is_cut_in_two():
    model, samples = mlp(), batch(20)
    whole = measure(model, [samples], batch_size=20)
    cut = measure(mlp(), pieces(samples, 10, 10), batch_size=10)
    assert whole.signal_to_noise == pytest.approx(cut.signal_to_noise, rel=1e-12)
    assert whole.batch_size == 20


def test_samples_are_in_the_units_of_the_batch_size():
    samples = pieces(batch(16), 8, 8)
    sequences, tokens = (measure(mlp(), samples, batch_size=8 * unit) for unit in (1, 1024))
    assert tokens.critical_batch_size == pytest.approx(1024 * sequences.critical_batch_size, rel=1e-9)


def test_only_so_many_batches_are_read():
    calls = []

    def counting(model, pair):
        calls.append(pair)
        return loss_fn(model, pair)

    batches = pieces(batch(40), *[4] * 10)
    found = measure(mlp(), batches, batch_size=4, loss=counting)
    assert len(calls) == 8
    assert found == measure(mlp(), batches[:8], batch_size=4)


def test_masks_of_dropout_are_noise_in_training_and_none_in_eval_mode():
    model, samples = mlp(middle=[nn.Dropout(0.5)]), batch(16)
    found = measure(model, [samples] * 4, batch_size=16)
    assert found.signal_to_noise < 100
    assert found == measure(mlp(middle=[nn.Dropout(0.5)]), [samples] * 4, batch_size=16)  # repeatable
    # The same batch again and again, without masks: signal alone, but for rounding.
    found = measure(mlp(middle=[nn.Dropout(0.5)]).eval(), [samples] * 4, batch_size=16)
    assert found.signal_to_noise > 1e12
    assert found.critical_batch_size < 1e-12


def test_batch_statistics_are_those_of_training():
    model, samples = mlp(middle=[nn.BatchNorm1d(10)]), batch(32)
    found = measure(model, pieces(samples, 16, 16), batch_size=16)
    gradients = []
    for piece in pieces(samples, 16, 16):
        model.zero_grad()
        loss_fn(model, piece).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    squares = [float(gradient.square().sum()) for gradient in gradients]
    pooled = float((sum(gradients) / 2).square().sum())
    assert found.signal_to_noise == pytest.approx(
        pooled_noise(squares, [16, 16], pooled=pooled).snr, rel=1e-9
    )


def test_one_batch_that_cannot_be_cut_is_not_enough():
    model = mlp()
    with pytest.raises(NotMeasuredError, match="cannot be cut in two"):
        measure(model, [batch(1)], batch_size=1)
    with pytest.raises(NotMeasuredError, match="accumulate=2"):
        measure(model, [batch(8)], batch_size=16, accumulate=2)
    with pytest.raises(ValueError, match="batches is empty"):
        measure(model, [], batch_size=8)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        measure(model, [batch(8)], batch_size=0)


def test_gradients_that_are_not_finite_are_not_measured():
    broken = (batch(8)[0] * math.inf, batch(8)[1])
    with pytest.raises(NotMeasuredError, match="not finite"):
        measure(mlp(), [batch(8), broken], batch_size=8)


def test_weights_in_half_precision_are_added_up_in_single():
    model = mlp(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = pieces(batch(64, dtype=torch.bfloat16), *[8] * 8)
    half = measure_noise(model, loss_fn, batches, optimizer, batch_size=8)
    model = mlp()
    full = measure_noise(
        model, loss_fn, pieces(batch(64), *[8] * 8), torch.optim.SGD(model.parameters(), lr=0.1), batch_size=8
    )
    assert half.signal_to_noise == pytest.approx(full.signal_to_noise, rel=0.1)


Pair = namedtuple("Pair", "x y")


def test_batches_of_any_structure_are_cut_in_halves():
    x, y = torch.arange(5), torch.arange(10).view(5, 2)
    for tree in (x, (x, y), [x, y], {"x": x, "more": [y, None]}, Pair(x, y), UserDict(x=x, y=y)):
        assert samples_in(tree) == 5
        first, second = halves(tree)
        assert type(first) is type(tree)
        assert (samples_in(first), samples_in(second)) == (2, 3)
    first, second = halves({"x": x, "more": [y, None, True]})
    assert torch.equal(torch.cat([first["x"], second["x"]]), x)
    assert torch.equal(torch.cat([first["more"][0], second["more"][0]]), y)
    assert first["more"][1:] == [None, True]


@pytest.mark.parametrize(
    "tree",
    [
        (torch.zeros(4), torch.zeros(3)),
        (torch.zeros(4), torch.tensor(1.0)),
        (torch.zeros(4), ["a", "b", "c", "d"]),
        (torch.zeros(4), 4),
        {},
        None,
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (4,), check_invariants=True),
    ],
    ids=str,
)
def test_what_has_no_known_samples_is_not_cut(tree):
    assert samples_in(tree) is None
    assert halves(tree) is None


def _ranks(rank, expected):
    samples = pieces(batch(32), *[8] * 4)
    model = mlp()
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure_noise(model, loss_fn, samples[2 * rank : 2 * rank + 2], optimizer, batch_size=16)
    assert found.signal_to_noise == pytest.approx(expected, rel=1e-9)
    alone = measure_noise(
        model, loss_fn, samples[rank : rank + 1], optimizer, batch_size=16
    )  # one batch a process
    assert alone.signal_to_noise >= 0


def test_processes_pool_their_batches():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure_noise(model, loss_fn, pieces(batch(32), *[8] * 4), optimizer, batch_size=8)
    spawn(_ranks, 2, found.signal_to_noise)
