import dataclasses
import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from processes import spawn
from warmfree.measure.updates import Update, UpdateProbe


def measure(before: Tensor, after: Tensor, *, lr: float = 0.1) -> Update:
    weight = nn.Parameter(before.clone())
    probe = UpdateProbe([("w", weight)])
    probe.snapshot()
    with torch.no_grad():
        weight.copy_(after)
    return probe.compare(lr=lr)["w"]


def exact_angle(before: Tensor, after: Tensor) -> float:
    """Kahan's formula on the stored weights, in float64."""
    u, v = before.double().flatten(), after.double().flatten()
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


@pytest.mark.parametrize("size", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_float32_agrees_with_float64_for_angles_of_any_size(size: float, scale: float) -> None:
    before = torch.randn(64, 32) * scale
    after = before + size * scale * torch.randn(64, 32)
    got = measure(before, after, lr=0.25)
    change = after.double() - before.double()
    rows = torch.tensor([exact_angle(b, a) for b, a in zip(before, after, strict=True)], dtype=torch.float64)
    assert got.angle == pytest.approx(exact_angle(before, after), rel=1e-5)
    assert got.neuron_angle == pytest.approx(float(rows.square().mean().sqrt()), rel=1e-5)
    assert got.l2 == pytest.approx(float(change.norm()), rel=1e-5)
    assert got.rms == pytest.approx(float(change.square().mean().sqrt()), rel=1e-5)
    assert got.rms_per_lr == pytest.approx(got.rms / 0.25)
    assert got.relative == pytest.approx(float(change.norm() / before.double().norm()), rel=1e-5)


def test_a_pure_rescaling_has_no_angle_and_a_reversal_has_pi() -> None:
    before = torch.randn(8, 8)
    assert measure(before, 0.9 * before).angle == pytest.approx(0.0, abs=1e-7)
    assert measure(before, -before).angle == pytest.approx(math.pi)
    assert measure(before, -before).neuron_angle == pytest.approx(math.pi)


def test_tensor_and_neuron_angles_differ_when_one_row_carries_the_norm() -> None:
    before = torch.tensor([[1e4, 0.0], [1.0, 0.0]])
    after = torch.tensor([[1e4, 0.0], [0.0, 1.0]])
    got = measure(before, after)
    assert got.angle == pytest.approx(1.4142e-4, rel=1e-3)
    assert got.neuron_angle == pytest.approx(math.sqrt((math.pi / 2) ** 2 / 2))


def test_zero_rows_are_left_out_and_zero_tensors_have_no_angle() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[0.0, 1.0], [3.0, 3.0], [0.0, 0.0]])
    assert measure(before, after).neuron_angle == pytest.approx(math.pi / 2)
    moved = measure(torch.zeros(2, 2), torch.ones(2, 2))
    assert math.isnan(moved.angle)
    assert math.isnan(moved.neuron_angle)
    assert moved.relative == math.inf
    still = measure(torch.zeros(2, 2), torch.zeros(2, 2))
    assert (still.relative, still.l2) == (0.0, 0.0)


def test_an_unmoved_tensor_measures_zero() -> None:
    weight = torch.randn(3, 4)
    got = measure(weight, weight)
    assert (got.l2, got.rms, got.rms_per_lr, got.relative, got.angle, got.neuron_angle) == (0,) * 6


def test_vectors_have_no_neuron_angle_and_convolutions_have_one_per_output_channel() -> None:
    assert math.isnan(measure(torch.ones(4), torch.arange(4.0)).neuron_angle)
    before, after = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    flat = measure(before.flatten(1), after.flatten(1))
    assert measure(before, after) == flat


def test_lr_zero_has_no_update_per_lr() -> None:
    assert math.isnan(measure(torch.ones(2), torch.ones(2), lr=0.0).rms_per_lr)


def test_half_precision_is_compared_in_float32_and_double_in_double() -> None:
    before = torch.randn(16, 16, dtype=torch.float64)
    after = before + 1e-9 * torch.randn(16, 16, dtype=torch.float64)
    assert measure(before, after).angle == pytest.approx(exact_angle(before, after), rel=1e-6)
    low, high = before.bfloat16(), (before + 0.1).bfloat16()
    assert measure(low, high).angle == pytest.approx(exact_angle(low, high), rel=1e-5)


def test_probe_measures_every_step_anew_and_mixes_dtypes() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    probe = UpdateProbe([("a", a), ("b", b)])
    for step in (1.0, 2.0):
        probe.snapshot()
        with torch.no_grad():
            a.add_(step)
            b.add_(step)
        got = probe.compare(lr=1.0)
        assert got["a"].rms == pytest.approx(step)
        assert got["b"].rms == pytest.approx(step)


def test_frozen_parameters_are_left_out_and_nothing_is_an_error() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    probe = UpdateProbe(model)
    probe.snapshot()
    assert set(probe.compare(lr=1.0)) == {"bias"}
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        UpdateProbe(model)


def test_compare_needs_a_fresh_snapshot() -> None:
    probe = UpdateProbe(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"call snapshot\(\)"):
        probe.compare(lr=1.0)
    probe.snapshot()
    probe.compare(lr=1.0)
    with pytest.raises(RuntimeError, match=r"call snapshot\(\)"):
        probe.compare(lr=1.0)


def dense(before: Tensor, after: Tensor) -> Update:
    """The definitions in float64, with Kahan's angles."""
    change = after.double() - before.double()
    l2, norm = float(change.norm()), float(before.double().norm())
    matrix = before.ndim >= 2
    alive = [
        exact_angle(b, a)
        for b, a in zip(before, after, strict=True)
        if matrix and b.abs().sum() and a.abs().sum()
    ]
    rms = l2 / math.sqrt(before.numel())
    return Update(
        l2=l2,
        rms=rms,
        rms_per_lr=rms / 0.1,
        relative=l2 / norm if norm else (math.inf if l2 else 0.0),
        angle=exact_angle(before, after) if norm and after.abs().sum() else math.nan,
        neuron_angle=math.sqrt(sum(angle**2 for angle in alive) / len(alive)) if alive else math.nan,
        weight_norm=norm,
    )


def assert_same(got: Update, expected: Update, *, rel: float = 1e-6, abs_: float = 1e-12) -> None:
    assert dataclasses.asdict(got) == pytest.approx(
        dataclasses.asdict(expected), rel=rel, abs=abs_, nan_ok=True
    )


@given(
    shape=st.sampled_from([(1,), (7,), (1, 1), (3, 1), (1, 5), (6, 4), (4, 3, 2), (500, 300)]),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]),
    radial=st.sampled_from([0.0, 1.0, -1.0, 100.0]),
    zeroed=st.sampled_from(["nothing", "old row", "new row", "old", "new"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_every_number_is_that_of_the_definitions(
    shape: tuple[int, ...], size: float, radial: float, zeroed: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(shape, generator=generator, dtype=torch.float64)
    before = before * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator, dtype=torch.float64)
    after = before * (1 + size * radial) + size * torch.randn(shape, generator=generator, dtype=torch.float64)
    chosen = slice(0, 1) if zeroed.endswith("row") else slice(None)
    if zeroed != "nothing":
        (before if zeroed.startswith("old") else after)[chosen] = 0
    # An angle below the rounding of the weights themselves is none.
    assert_same(measure(before, after), dense(before, after), rel=1e-7, abs_=1e-14)


def test_rows_are_output_neurons_also_where_the_weight_is_stored_transposed() -> None:
    class Conv1D(nn.Module):  # as transformers' own: (in, out)
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 700))

    model = nn.ModuleDict({"c": Conv1D(), "t": nn.ConvTranspose2d(2, 5, 3), "e": nn.Embedding(11, 4)})
    probe, old = (
        UpdateProbe(model),
        {name: weight.detach().clone() for name, weight in model.named_parameters()},
    )
    probe.snapshot()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    got = probe.compare(lr=0.1)
    for name, weight in model.named_parameters():
        transposed = name in ("c.weight", "t.weight")
        pair = (old[name], weight.detach())
        expected = dense(*(tensor.transpose(0, 1) for tensor in pair) if transposed else pair)
        assert_same(got[name], expected, rel=1e-5)
    same = UpdateProbe([("w", model["c"].weight)], out_dims={"w": 1})
    same._before, same._armed = {"w": old["c.weight"]}, True
    assert_same(same.compare(lr=0.1)["w"], got["c.weight"])


def test_spectral_ratio_is_measured_when_asked_and_gets_better_from_step_to_step() -> None:
    model = nn.Sequential(nn.Linear(60, 40), nn.Conv1d(4, 6, 5), nn.ConvTranspose1d(3, 7, 2))
    probe = UpdateProbe(model, spectral=True)
    change = {name: torch.randn_like(weight) for name, weight in model.named_parameters()}
    for step in range(12):
        probe.snapshot()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.add_(change[name] + 0.1 * torch.randn_like(weight), alpha=1e-3)
        got = probe.compare(lr=1e-3)
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                assert math.isnan(got[name].spectral_ratio)
                continue
            before = probe.before(name)
            flat = (
                (lambda w: w.transpose(0, 1).flatten(1)) if name == "2.weight" else (lambda w: w.flatten(1))
            )
            exact = (
                torch.linalg.svdvals(flat(weight.detach() - before))[0]
                / torch.linalg.svdvals(flat(before))[0]
            )
            assert got[name].spectral_ratio == pytest.approx(float(exact), rel=0.15 if step < 9 else 0.01)
    assert math.isnan(measure(torch.eye(2), torch.ones(2, 2)).spectral_ratio)


def test_spectral_ratio_of_zeros() -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    probe = UpdateProbe([("w", weight)], spectral=True)
    for change, expected in ((0.0, 0.0), (1.0, math.inf)):
        probe.snapshot()
        weight.data.add_(change)
        assert probe.compare(lr=1.0)["w"].spectral_ratio == expected


def test_copies_can_be_restricted_and_read() -> None:
    model = nn.Linear(3, 2)
    probe = UpdateProbe(model, names=["weight"])
    assert "weight" not in probe
    with pytest.raises(KeyError, match="no copy of 'weight'"):
        probe.before("weight")
    probe.snapshot()
    old = model.weight.detach().clone()
    model.weight.data.add_(1.0)
    assert "weight" in probe
    assert torch.equal(probe.before("weight"), old)
    assert set(probe.compare(lr=1.0)) == {"weight"}
    assert "bias" not in probe
    with pytest.raises(ValueError, match=r"no parameter head\.weight, tail"):
        UpdateProbe(model, names=["tail", "head.weight"])
    with pytest.raises(ValueError, match=r"out_dims\['bias'\] must be a dimension of shape \(2,\), got 1"):
        UpdateProbe(model, out_dims={"bias": 1})


def test_the_model_is_read_anew_at_each_snapshot() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    probe = UpdateProbe(model, spectral=True)
    probe.snapshot()
    model[0].bias.requires_grad_(True)
    assert set(probe.compare(lr=1.0)) == {"0.weight", "1.bias"}  # tied weights once, the thawed bias not yet
    model.append(nn.Linear(2, 1))
    model[0].weight = nn.Parameter(torch.ones(5, 2))
    probe.snapshot()
    model[1].requires_grad_(False)
    got = probe.compare(lr=1.0)
    assert set(got) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert got["0.weight"].weight_norm == pytest.approx(math.sqrt(10))
    model.requires_grad_(False)
    probe.snapshot()
    assert probe.compare(lr=1.0) == {}
    pairs = UpdateProbe([("a", model[2].weight.requires_grad_()), ("b", model[2].weight)])
    pairs.snapshot()
    assert set(pairs.compare(lr=1.0)) == {"a"}


def test_learning_rates_may_differ() -> None:
    model = nn.Linear(2, 2)
    probe = UpdateProbe(model)
    probe.snapshot()
    with torch.no_grad():
        model.weight.add_(1.0)
        model.bias.add_(1.0)
    got = probe.compare(lr={"weight": 0.5})
    assert got["weight"].rms_per_lr == pytest.approx(2.0)
    assert math.isnan(got["bias"].rms_per_lr)


def test_weights_that_are_not_finite_measure_nan() -> None:
    got = measure(torch.ones(2, 2), torch.tensor([[1.0, math.nan], [1.0, 1.0]]))
    assert all(
        math.isnan(value) for value in (got.l2, got.relative, got.angle, got.neuron_angle, got.rms_per_lr)
    )
    assert got.weight_norm == pytest.approx(2.0)


SHARDS: list[tuple[tuple[int, ...], int | None]] = [  # shape, and the dimension that two processes share out
    ((19, 16), 0), ((16, 19), 1), ((3, 4), 0), ((1, 6), 0), ((6, 1), 1), ((5, 3, 2, 2), 0), ((3, 2, 5), 2),
    ((5,), 0), ((1,), 0), ((4, 4), None), ((7, 3), 0), ((4,), None),
]  # fmt: skip


def _measure_shards(rank: int) -> None:
    """Worker: measure the same changes of sharded weights and of whole ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, generator = init_device_mesh("cpu", (2,)), torch.Generator().manual_seed(1)
    plain, spread = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
    placements = {}
    for copy in range(2):  # twice as many must not take more collectives
        for shape, dim in SHARDS:
            name, value = f"{copy}{shape}{dim}", torch.randn(shape, generator=generator, dtype=torch.float64)
            value[0] *= shape != (3, 4)  # a zero row
            placements[name] = [Replicate() if dim is None else Shard(dim)]
            plain[name] = nn.Parameter(value)
            spread[name] = nn.Parameter(distribute_tensor(value.clone(), mesh, placements[name]))
    calls, found = [], []
    for weights, chosen in ((plain, 24), (spread, 24), (spread, 12)):
        named = [pair for _, pair in zip(range(chosen), weights.items(), strict=False)]
        out_dims = {name: 1 for name, _ in named if "(7, 3)" in name}
        probe = UpdateProbe(named, out_dims=out_dims, spectral=True)
        changes = torch.Generator().manual_seed(2)
        for _ in range(2):
            probe.snapshot()
            for name, weight in named:
                change = torch.randn(weight.shape, generator=changes, dtype=torch.float64)
                if weights is spread:
                    change = distribute_tensor(change, mesh, placements[name])
                weight.data.add_(change, alpha=0.01)
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
                found.append(probe.compare(lr=0.1))
            calls.append(reduce.call_count)
    assert calls[0] == calls[1] == 0
    assert calls[2:4] == calls[4:6]
    assert min(calls[2:]) > 0
    for step in range(2):
        assert found[step].keys() == found[step + 2].keys()
        for name, expected in found[step].items():
            assert_same(found[step + 2][name], expected, rel=1e-9)


def test_sharded_weights_measure_as_whole_ones_in_a_constant_number_of_collectives() -> None:
    spawn(_measure_shards, 2)
