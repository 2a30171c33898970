"""Spread over processes: all find what one process finds on all of the batch, and nothing is changed in any."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from processes import spawn
from traces import Traces
from warmfree import AdamW2
from warmfree.schedule.critical import critical_lr

TWO = (
    ("ddp", "AdamW2"),
    ("ddp, views", "SGD"),
    ("ddp, compiled", "AdamW"),
    ("fsdp", "SGD"),
    ("fsdp", "AdamW2"),
)
FOUR = (("fsdp+tp", "AdamW"),)
OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.01),
    "AdamW2": lambda weights: AdamW2(weights, 0.01),
}


NO_MODULES = nn.Module()  # what FSDP and DDP keep in theirs goes on


class Net(nn.Module):
    """Its 5 and 3 rows are uneven shards on two processes, and its one output row leaves a process without a part."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.mixed, self.out = nn.Linear(4, 5), nn.Linear(5, 1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        x = x + self.down(torch.tanh(self.up(x)))
        return self.out(torch.tanh(self.mixed(x)))


def make_model():
    torch.manual_seed(5)
    return Net().double()


def make_batches(number=3):
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(8, 4, dtype=torch.float64, generator=generator),
            torch.randn(8, 1, dtype=torch.float64, generator=generator),
        )
        for _ in range(number)
    ]


def loss_fn(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def part(batch, rank, size):
    return tuple(tensor[rank::size] for tensor in batch)


def spread(model, way):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if way.startswith("ddp"):
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=way == "ddp, views")
        return torch.compile(model, backend="eager") if way == "ddp, compiled" else model
    size = dist.get_world_size()
    if way == "fsdp":
        mesh = data = init_device_mesh("cpu", (size,))
    else:
        mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "model"))
        data = mesh["data"]
        parallelize_module(model, mesh["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for layer in (model.mixed, model.out):
        fully_shard(layer, mesh=data)
    return fully_shard(model, mesh=data)


def data_of(batches, way):
    """The part of each batch that a process sees; tensor-parallel ones see the same."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rank, size = (rank // 2, size // 2) if way == "fsdp+tp" else (rank, size)
    return [part(batch, rank, size) for batch in batches]


def train(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


def traces(model, optimizer):
    return Traces(NO_MODULES, optimizer, *model.parameters())


def local_parts(model):
    return [weight.to_local() if hasattr(weight, "to_local") else weight for weight in model.parameters()]


def search_from(rank, folder, cases):
    for way, name in cases:
        batches = data_of(make_batches(), way)
        model, twin = spread(make_model(), way), spread(make_model(), way)
        optimizer, theirs = (
            OPTIMIZERS[name](list(model.parameters())),
            OPTIMIZERS[name](list(twin.parameters())),
        )
        for steps in (0, 2):
            train(model, optimizer, batches[:steps]), train(twin, theirs, batches[:steps])
            before = traces(model, optimizer)
            found = critical_lr(model, loss_fn, batches, optimizer, num_steps=2, max_grad_norm=0.5)
            summed = critical_lr(model, loss_fn, batches, optimizer, accumulate=3)
            assert before.differences(traces(model, optimizer)) == [], (way, name, steps)
            torch.save(
                ([one.lr for one in found.searches], found.searches[0].slope, summed.lr),
                f"{folder}/{way}-{name}-{steps}-{rank}.pt",
            )
        train(model, optimizer, batches), train(twin, theirs, batches)
        for ours, other in zip(local_parts(model), local_parts(twin), strict=True):
            assert torch.equal(ours, other), (way, name)


def whole(name):
    """What one process finds on all of each batch."""
    model, batches = make_model(), make_batches()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    results = {}
    for steps in (0, 2):
        train(model, optimizer, batches[:steps])
        found = critical_lr(model, loss_fn, batches, optimizer, num_steps=2, max_grad_norm=0.5)
        joint = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
        summed = critical_lr(model, loss_fn, joint, optimizer)
        results[steps] = [one.lr for one in found.searches], found.searches[0].slope, summed.lr
    return results


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("size", "cases"), [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow)])
def test_all_processes_find_what_one_finds_on_the_joint_batch(tmp_path, size, cases):
    spawn(search_from, size, str(tmp_path), cases)
    for way, name in cases:
        for steps, (lrs, slope, summed) in whole(name).items():
            found = [torch.load(tmp_path / f"{way}-{name}-{steps}-{rank}.pt") for rank in range(size)]
            assert all(one == found[0] for one in found), (way, name, steps)
            # Power iterations of AdamW2 add up in another order.
            assert found[0][0] == pytest.approx(lrs, rel=1e-4), (way, name, steps)
            assert found[0][1] == pytest.approx(slope, rel=1e-4), (way, name, steps)
            assert found[0][2] == pytest.approx(summed, rel=1e-4), (way, name, steps)
