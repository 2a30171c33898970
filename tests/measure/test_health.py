import math

import pytest
import torch
from torch import nn

from processes import spawn
from warmfree.measure.health import (
    StableRanks,
    first_nonfinite_gradient,
    first_nonfinite_parameter,
    gradient_norms,
    weight_norms,
)
from warmfree.measure.noise import MomentumNoise


def parameters(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (7, 5), "conv": (6, 3, 2, 2), "bias": (4,), "scalar": ()}
    named = []
    for name, shape in shapes.items():
        weight = nn.Parameter(
            (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        )
        weight.grad = (2 * scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        named.append((name, weight))
    return [*named, ("without", nn.Parameter(torch.ones(3, dtype=dtype)))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_norms_are_those_of_float64(dtype, scale):
    named = parameters(dtype, scale)
    rel = 1e-2 if dtype == torch.bfloat16 else 1e-6
    grads = {name: weight.grad.double().norm().item() for name, weight in named if weight.grad is not None}
    weights = {name: weight.detach().double().norm().item() for name, weight in named}
    for found, expected in ((gradient_norms(named), grads), (weight_norms(named), weights)):
        assert list(found) == [*expected, ""]
        assert found.pop("") == pytest.approx(math.hypot(*expected.values()), rel=rel)
        assert found == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_named(value):
    named = parameters(torch.float32, 1e25)  # finite norms that overflow are not mistaken
    assert first_nonfinite_gradient(named) is None
    assert first_nonfinite_parameter(named) is None
    with torch.no_grad():
        named[1][1].grad[2, 1, 0, 0] = value
        named[2][1].grad[0] = value
        named[2][1][3] = value
    assert first_nonfinite_gradient(named) == "conv"
    assert first_nonfinite_parameter(named) == "bias"
    found = gradient_norms(named)
    for name in ("conv", "bias", ""):
        assert not math.isfinite(found[name])
    assert math.isfinite(found["matrix"])


def test_zero_and_nothing():
    weight = nn.Parameter(torch.zeros(2, 2))
    assert weight_norms([("w", weight)]) == {"w": 0.0, "": 0.0}
    assert gradient_norms([("w", weight)]) == {}
    assert first_nonfinite_gradient([]) is None


def test_sparse_gradients():
    layer = nn.Embedding(10, 3, sparse=True)
    layer(torch.tensor([1, 1, 4])).square().sum().backward()
    expected = layer.weight.grad.to_dense().norm().item()
    assert gradient_norms(layer.named_parameters())["weight"] == pytest.approx(expected)


def test_stable_ranks_of_matrices_and_convolutions():
    named = parameters(torch.float64)
    found = StableRanks(first=500).measure(named)
    assert list(found) == ["matrix", "conv"]
    for name, weight in named[:2]:
        values = torch.linalg.svdvals(weight.detach().flatten(1))
        assert found[name].sigma == pytest.approx(values[0].item(), rel=1e-9)
        assert found[name].stable_rank == pytest.approx(
            (values.square().sum() / values[0] ** 2).item(), rel=1e-9
        )


def test_later_measurements_follow_and_find_what_is_new():
    weight, ranks = torch.randn(60, 40), StableRanks()
    for _ in range(12):
        found = ranks.measure([("w", weight)])["w"]
        weight = weight + 0.01 * torch.randn(60, 40)
        truth = torch.linalg.matrix_norm(weight, 2).item()
    assert found.sigma == pytest.approx(truth, rel=0.02)
    left, right = torch.randn(60), torch.randn(40)
    weight = weight + 100 * torch.outer(left / left.norm(), right / right.norm())
    found = ranks.measure([("w", weight)])["w"]
    assert found.sigma == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-3)
    assert found.stable_rank == pytest.approx(weight.norm().item() ** 2 / found.sigma**2, rel=1e-5)


def test_zero_matrices_have_no_rank_and_half_precision_is_widened():
    found = StableRanks(first=50).measure(
        [("zero", torch.zeros(3, 4)), ("half", torch.diag(torch.tensor([3.0, 1.0, 1.0])).bfloat16())]
    )
    assert found["zero"].sigma == 0
    assert math.isnan(found["zero"].stable_rank)
    assert found["half"].sigma == pytest.approx(3.0, rel=1e-5)
    with pytest.raises(ValueError, match="first must be >= 1"):
        StableRanks(first=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 11), nn.LayerNorm(11), nn.Linear(11, 3)

    def forward(self, x):
        return self.down(self.norm(torch.relu(self.up(x))))


def build(way):
    """A net after some steps of AdamW, with a gradient in place, spread over two processes in some way."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    net = Net().double()
    if way == "tp":
        plan = {
            "up": ColwiseParallel(output_layouts=Replicate()),
            "down": RowwiseParallel(input_layouts=Replicate()),
        }
        parallelize_module(net, init_device_mesh("cpu", (2,)), plan)
    elif way == "fsdp":
        fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer, noise = torch.optim.AdamW(net.parameters(), lr=1e-3), MomentumNoise(batch_size=5)
    found = {}
    for step in range(6):
        net.zero_grad()
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        net(x).square().mean().backward()
        found = noise.measure(optimizer, net.named_parameters())
        if step < 5:
            optimizer.step()
    return net, found


def everything(way):
    net, noise = build(way)
    ranks = StableRanks(first=30)
    ranks.measure(net.named_parameters())
    stable = ranks.measure(net.named_parameters())
    return {
        "noise": {name: (one.signal, one.noise) for name, one in noise.items()},
        "gradients": gradient_norms(net.named_parameters()),
        "weights": weight_norms(net.named_parameters()),
        "ranks": {name: (one.sigma, one.stable_rank) for name, one in stable.items()},
        "bad": first_nonfinite_parameter(net.named_parameters()),
    }


def work(rank, folder):
    results = {way: everything(way) for way in ("none", "fsdp", "tp")}
    net, _ = build("fsdp")
    part = net.down.weight.to_local()
    if rank == 1 and part.numel():
        part.data.view(-1)[0] = math.nan
    results["bad"] = first_nonfinite_parameter(net.named_parameters())
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("default")
def test_spread_over_processes_it_is_the_same(tmp_path):
    spawn(work, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first["bad"] == "down.weight"
    for way in ("fsdp", "tp"):
        for kind, expected in first["none"].items():
            found = first[way][kind]
            if kind == "bad":
                assert found is None
                continue
            assert set(found) == set(expected)
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-12), (way, kind, name)
