"""Under DistributedDataParallel every rank makes the step of one process with the whole batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from problems import OPTIMIZERS, batch, make_model
from torch import nn

STEPS = 4


def loss_of(model, step, rows):
    inputs, targets = batch(step, torch.float64)
    return nn.functional.cross_entropy(model(inputs[rows]), targets[rows])


def run(name, model, rows, *, bad_rank=False):
    """Train; in step 2 one rank's gradient is not finite. Return weights and the number of skipped steps."""
    optimizer = OPTIMIZERS[name](model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step, rows)
        (loss * float("nan") if bad_rank and step == 2 else loss).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()], optimizer.skipped_steps


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for name in OPTIMIZERS:
        model = nn.parallel.DistributedDataParallel(make_model(torch.float64))
        rows = slice(8 * rank, 8 * rank + 8)
        results[name] = run(name, model, rows, bad_rank=rank == 1)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("default")
def test_ranks_agree_with_one_process_and_skip_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in OPTIMIZERS:
        expected, skipped = run(name, make_model(torch.float64), slice(None), bad_rank=True)
        assert skipped == 1
        for weights, rank_skipped in (ranks[0][name], ranks[1][name]):
            assert rank_skipped == 1
            for weight, other, reference in zip(weights, ranks[0][name][0], expected, strict=True):
                assert torch.equal(weight, other)
                torch.testing.assert_close(weight, reference, rtol=1e-9, atol=1e-12)
