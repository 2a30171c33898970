"""Processes that train together, each on its own data, are given the same advice."""

import warnings

import pytest
import torch
from advised_runs import batches, check_advice, loss_fn, mlp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from processes import spawn
from warmfree.advice import advise
from warmfree.advice.first_step import measure_first_step

STEPS = 40
RATES = {"few batches": 0.02, "large": 0.5}


def own_batches(rank, count=12):
    """Half of each batch; inputs of the second process are larger, so that its layers change by other shares."""
    return [
        (inputs[rank::2] * (1 + 2 * rank), targets[rank::2])
        for inputs, targets in batches(count, dtype=torch.float64)
    ]


def whole_batches():
    halves = [own_batches(rank) for rank in range(2)]
    return [
        tuple(torch.cat(parts) for parts in zip(*both, strict=True)) for both in zip(*halves, strict=True)
    ]


def replicated(model):
    return DistributedDataParallel(model)


def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in (0, 2, 4):
        fully_shard(model[layer], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def part_of(weight):
    return (weight.to_local() if hasattr(weight, "to_local") else weight).detach()


def ask(model, optimizer, found, **options):
    return advise(model, loss_fn, found, optimizer, steps=STEPS, batch_size=16, **options)


def work(rank, spread, folder):
    warnings.simplefilter("ignore")
    results = {}
    for name, lr in RATES.items():
        model = spread(mlp(torch.float64))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        before = [part_of(weight).clone() for weight in model.parameters()]
        torch.manual_seed(rank)
        told = []
        # The second process has fewer batches, and nobody who listens.
        found = own_batches(rank)[: 12 - 5 * rank if name == "few batches" else None]
        advice = ask(model, optimizer, found, on_progress=told.append if rank == 0 else None)
        check_advice(advice, steps=STEPS)
        assert all(map(torch.equal, map(part_of, model.parameters()), before))
        assert all(weight.grad is None for weight in model.parameters())
        assert not optimizer.state
        assert torch.initial_seed() == rank
        own = measure_first_step(model, loss_fn, found[:1], optimizer, lr=lr).representation_change
        results[name] = advice.as_dict(), advice.evidence.rehearsal.candidates, own
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("spread", [replicated, sharded])
def test_all_processes_are_given_the_same_advice(spread, tmp_path):
    spawn(work, 2, spread, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name, lr in RATES.items():
        one, other = first[name], second[name]
        assert without_times(one[0]) == without_times(other[0])
        assert one[1] == other[1]
        changes = one[2], other[2]
        assert changes[0] != changes[1]
        assert one[0]["evidence"]["first_step"]["representation_change"] == max(changes)
        # It is training on the batches of both together.
        alone = mlp(torch.float64)
        together = whole_batches()[: 7 if name == "few batches" else None]
        advice = ask(alone, torch.optim.AdamW(alone.parameters(), lr=lr), together)
        own = advice.evidence.rehearsal.candidates[0]
        assert one[1][0].losses == pytest.approx(own.losses, rel=1e-6)
        replaced = {r.optimizer: r.losses for r in one[1] if r.optimizer == "AdamW2"}
        expected = advice.evidence.rehearsal.find(warmup=0, optimizer="AdamW2")
        if replaced and expected is not None:
            assert replaced["AdamW2"] == pytest.approx(expected.losses, rel=1e-3)
        assert one[0]["evidence"]["critical"]["outcome"] == advice.evidence.critical.outcome == "found"
        assert one[0]["evidence"]["critical"]["lr"] == pytest.approx(advice.evidence.critical.lr, rel=1e-3)
    assert any(r.optimizer == "AdamW2" for r in first["large"][1])


def without_times(values):
    """Leave out how long things took."""
    if isinstance(values, dict):
        return {key: without_times(value) for key, value in values.items() if key != "seconds"}
    return [without_times(value) for value in values] if isinstance(values, list) else values
