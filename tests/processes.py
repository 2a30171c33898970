"""Processes that form a group, for the tests of what is spread over several."""

import gc
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank, work, size, port, arguments):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        work(rank, *arguments)
        # What holds communication (reducers, graphs) goes first, and in all processes, or its threads end the process.
        gc.collect()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def spawn(work, size, *arguments):
    """Run work(rank, *arguments) in `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_enter, args=(work, size, port, arguments), nprocs=size)
