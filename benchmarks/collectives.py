"""How many collectives does a step start on sharded parameters, and how much do they move?

A GPT is sharded by FSDP2, by HSDP (two replicas) and by FSDP2 on top of tensor parallelism (two processes), for world
sizes that need no machines: torch's fake process group moves nothing, so that counts and sizes are right and values are
not. Gradients are made by hand. Steps from the second on are alike; the first, in which AdamW2 looks for its singular
vectors, is shown apart. Bytes are what one process sends if collectives go round a ring: 2 (n - 1)/n of an all-reduce,
(n - 1)/n of an all-gather or a reduce-scatter. They are compared to what FSDP itself sends for parameters and gradients
in a forward and a backward pass, which are run for it; what tensor parallelism sends for activations is left out.

    python benchmarks/collectives.py
    python benchmarks/collectives.py --worlds 8 64 --width 768 --json collectives.json
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from harness import OURS, print_table, save
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from warmfree.lab.models.gpt import GPT, GPTConfig

WAYS = {"FSDP2": 2, "HSDP": 4, "FSDP2 + TP": 4}  # and from how many processes on they exist
HEADS = 4


class Attention(nn.Module):
    """Attention whose queries, keys and values are layers of their own: a fused one cannot be split by columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.head_size = width // HEADS

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        parts = [layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for layer in layers]
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Collectives(TorchDispatchMode):
    """Count collectives and the bytes that a process sends for them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.functional = 0  # those of DTensor, and so of tensor parallelism, are of this other kind
        self.sent = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor calls again, with local tensors
        self.functional += function.namespace == "_c10d_functional" and "wait" not in function.__name__
        if function.namespace == "c10d":
            self.count += 1
            self.sent += sent(function.__name__, args)
        return function(*args, **(kwargs or {}))


def sent(name: str, args: tuple[Any, ...]) -> float:
    """Return the bytes that one process of a ring sends."""
    moved = sum(value.nbytes for value in tree_leaves(args) if isinstance(value, Tensor))
    group = next(dist.ProcessGroup.unbox(value) for value in args if isinstance(value, torch.ScriptObject))
    share = (group.size() - 1) / group.size()
    if "allreduce" in name:
        return 2 * share * moved
    if "allgather" in name or "reduce_scatter" in name:  # arguments: the whole, and one of n parts of it
        return share * moved * group.size() / (group.size() + 1)
    raise RuntimeError(f"no rule for what {name} sends")


def sharded(way: str, *, layers: int, width: int) -> GPT:
    """Return a GPT that is spread over all processes."""
    model = GPT(GPTConfig(vocabulary=256, context=64, layers=layers, width=width, heads=HEADS))
    for block in model.blocks:
        block.attention = Attention(width)
    processes = dist.get_world_size()
    if way == "FSDP2":
        mesh = init_device_mesh("cpu", (processes,))
    elif way == "HSDP":
        mesh = init_device_mesh("cpu", (2, processes // 2), mesh_dim_names=("replicas", "shards"))
    else:
        both = init_device_mesh("cpu", (processes // 2, 2), mesh_dim_names=("data", "tensor"))
        mesh = both["data"]
        plan = dict.fromkeys(("attention.query", "attention.key", "attention.value"), ColwiseParallel())
        plan |= {
            "attention.out": RowwiseParallel(),
            "mlp.up": ColwiseParallel(),
            "mlp.out": RowwiseParallel(),
        }
        for block in model.blocks:
            parallelize_module(block, both["tensor"], plan)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def count(work: Callable[[], object]) -> Collectives:
    """Run something and return its collectives."""
    with Collectives() as collectives:
        work()
    return collectives


def train_once(model: GPT) -> Collectives:
    """Return what FSDP sends in a forward and a backward pass."""
    tokens = torch.zeros(1, 8, dtype=torch.long)
    model.loss(tokens, tokens).backward()  # the first pass sets FSDP up
    return count(lambda: model.loss(tokens, tokens).backward())


def set_gradients(model: GPT) -> None:
    for parameter in model.parameters():
        part = 1e-3 * torch.randn_like(parameter.to_local())
        shape = {"shape": parameter.shape, "stride": parameter.stride()}
        spread = (parameter.device_mesh, parameter.placements)
        parameter.grad = DTensor.from_local(part, *spread, run_check=False, **shape)


def measure(way: str, name: str, *, layers: int, width: int) -> dict[str, float]:
    """Return the collectives of the first steps of an optimizer."""
    model = sharded(way, layers=layers, width=width)
    training = train_once(model)
    # What came through a group that moves nothing may be anything; weights must not be.
    set_gradients(model)
    optimizer = OURS[name](model, lr=1e-6)
    first, *later = [count(optimizer.step) for _ in range(4)]
    if optimizer.skipped_steps or len({(step.count, step.sent) for step in later}) > 1:
        raise RuntimeError(f"{name}: steps were skipped, or differ from each other after the first")
    if any(step.functional for step in (first, *later)):
        raise RuntimeError(f"{name}: a step starts collectives that are not counted here")
    return {
        "layers": layers,
        "first": first.count,
        "first_sent": first.sent,
        "later": later[0].count,
        "later_sent": later[0].sent,
        "training": training.count,
        "training_sent": training.sent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = (2, 4, 8, 16, 32, 64)
    parser.add_argument("--worlds", type=int, nargs="+", default=sizes, help="processes (default: 2 to 64)")
    parser.add_argument("--depths", type=int, nargs="+", default=(2, 12), help="blocks (default: 2 12)")
    parser.add_argument("--width", type=int, default=256, help="features of the model (default: 256)")
    parser.add_argument("--json", metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    results = []
    for world in arguments.worlds:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
        for way in (way for way, least in WAYS.items() if world >= least):
            for name in OURS:
                found = [
                    measure(way, name, layers=depth, width=arguments.width) for depth in arguments.depths
                ]
                results.append({"way": way, "processes": world, "optimizer": name, "depths": found})
        dist.destroy_process_group()

    def each(row: dict[str, Any], text: Callable[[dict[str, float]], str]) -> str:
        return " / ".join(map(text, row["depths"]))

    print(f"GPT of width {arguments.width} and {' / '.join(map(str, arguments.depths))} blocks")
    print_table(
        "sharded by | processes | optimizer | collectives, first | later | FSDP's | KiB sent | FSDP's | %",
        [
            (
                row["way"],
                row["processes"],
                row["optimizer"],
                each(row, lambda depth: f"{depth['first']}"),
                each(row, lambda depth: f"{depth['later']}"),
                each(row, lambda depth: f"{depth['training']}"),
                each(row, lambda depth: f"{depth['later_sent'] / 1024:.1f}"),
                each(row, lambda depth: f"{depth['training_sent'] / 1024:.0f}"),
                each(row, lambda depth: f"{100 * depth['later_sent'] / depth['training_sent']:.2g}"),
            )
            for row in results
        ],
    )
    save(arguments.json, width=arguments.width, results=results)


if __name__ == "__main__":
    main()
