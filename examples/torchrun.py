"""Train the lab's GPT in one process or many, with DDP, FSDP2 or FSDP2 and tensor parallelism.

    python examples/torchrun.py --optimizer LionAR
    torchrun --nproc-per-node 2 examples/torchrun.py --parallel fsdp2 --optimizer AdamW2
    torchrun --nproc-per-node 4 examples/torchrun.py --parallel fsdp2+tp --optimizer GIAdamW

Needs ``pip install 'warmfree[lab]'``. Takes GPUs where there are any; it has run on the CPU only.
Weights and batches follow from --seed alone, and the batch is split over the data-parallel ranks: every layout
trains the same model on the same text. ``record.jsonl`` in --out holds the loss of every step. The same command
again goes on from the last checkpoint, with the very losses of a run that was never stopped; another --parallel or
number of processes may take over, with losses that agree up to rounding.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import warmfree
from warmfree.lab.data import Batches, Corpus, load_shakespeare, load_text
from warmfree.lab.interrupt import Interrupts
from warmfree.lab.lock import LockedError, exclusive
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.record import RecordWriter, read_json, write_json
from warmfree.schedule import trapezoid

# Class, options, and learning rate and weight decays (of matrices, of embeddings) that did best on a small GPT
# (docs/compare.md). Rotation keeps norms; the embedding is the head, too, and must be free to grow.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any], float, float, float | None]] = {
    "AdamW2": (warmfree.AdamW2, {"betas": (0.9, 0.95)}, 8e-3, 0.1, None),
    "GIAdamW": (warmfree.GIAdamW, {"betas": (0.9, 0.95)}, 1e-3, 0.1, None),
    "LionA": (warmfree.LionA, {}, 1e-3, 0.1, None),
    "LionAR": (warmfree.LionAR, {}, 1.6e-2, 1.0, 0.0),
    "RotationalAdamW": (warmfree.RotationalAdamW, {"betas": (0.9, 0.95)}, 8e-3, 1.0, 0.0),
    "AdamW": (torch.optim.AdamW, {"betas": (0.9, 0.95)}, 5e-4, 0.1, None),
}
COOLDOWN = {"constant": 0.0, "cooldown": 0.5, "linear": 1.0}  # fractions of the run
# What a resumed run may change; every other option decides the numbers.
FREE = ("parallel", "tp", "checkpoint_every", "print_every", "out", "text")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, for one process to print them."""

    def error(self, message: str) -> NoReturn:  # noqa: D102 (argparse's)
        raise ValueError(message)


def parse(processes: int) -> argparse.Namespace:
    """Read the command line; raise ValueError for what does not fit together."""
    style = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=style)
    add, layouts = parser.add_argument, ("ddp", "fsdp2", "fsdp2+tp")
    add("--parallel", choices=layouts, default="ddp", help="how several processes share the work")
    add("--tp", type=int, default=2, help="tensor-parallel ranks of fsdp2+tp, a divisor of the processes")
    add("--bf16", action="store_true", help="compute in bfloat16 under fsdp2; weights stay in float32")
    add("--optimizer", choices=OPTIMIZERS, default="AdamW2", help="AdamW is torch's, the others are ours")
    add("--lr", type=float, help="peak learning rate; None: the optimizer's own, from 5e-4 to 1.6e-2")
    add("--weight-decay", type=float, help="decoupled; None: 0.1, and 1 for LionAR and RotationalAdamW")
    add("--schedule", choices=COOLDOWN, default="cooldown", help="cooldown: linear to 0 in the last half")
    add("--steps", type=int, default=300, help="optimizer steps")
    add("--batch", type=int, default=16, help="sequences per step, over all ranks")
    add("--seed", type=int, default=0, help="of weights and batches")
    add("--layers", type=int, default=4, help="blocks of the model")
    add("--width", type=int, default=128, help="features of its residual stream")
    add("--heads", type=int, default=4, help="attention heads")
    add("--context", type=int, default=64, help="bytes per sequence")
    add("--text", type=Path, help="a UTF-8 text to train on; None: Shakespeare's plays")
    add("--checkpoint-every", type=int, default=100, help="steps; the end, Ctrl-C and SIGTERM make one, too")
    add("--print-every", type=int, default=10, help="steps between lines of output")
    add("--out", type=Path, default=Path("runs/torchrun"), help="folder of the run, shared by the processes")
    options = parser.parse_args()
    _, _, lr, weight_decay, _ = OPTIMIZERS[options.optimizer]
    options.lr = lr if options.lr is None else options.lr
    options.weight_decay = weight_decay if options.weight_decay is None else options.weight_decay
    for name in ("steps", "batch", "checkpoint_every", "print_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    if options.bf16 and options.parallel == "ddp":
        parser.error("--bf16 needs --parallel fsdp2 or fsdp2+tp")
    if options.parallel != "fsdp2+tp":
        options.tp = 1
    elif options.tp < 2 or any(size % options.tp for size in (processes, options.width, 256)):
        parser.error(f"--tp must divide {processes} processes, --width and 256 bytes, got {options.tp}")
    ranks = processes // options.tp
    if options.batch % ranks:
        parser.error(f"--batch must be a multiple of {ranks} data-parallel ranks, got {options.batch}")
    return options


def start_processes() -> torch.device:
    """Join the process group, of one process without torchrun; return the device of this process."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, **alone)
    return device


def distribute(gpt: GPT, options: argparse.Namespace) -> tuple[nn.Module, DeviceMesh]:
    """Return what to call for the logits, and the mesh of the data-parallel ranks."""
    device, processes = gpt.tokens.weight.device, dist.get_world_size()
    mesh = init_device_mesh(device.type, (processes // options.tp, options.tp), mesh_dim_names=("dp", "tp"))
    if options.parallel == "ddp":
        return gpt if processes == 1 else DistributedDataParallel(gpt), mesh["dp"]
    if options.tp > 1:
        shard_matrices(gpt, mesh["tp"])
    policy = MixedPrecisionPolicy(torch.bfloat16 if options.bf16 else None, reduce_dtype=torch.float32)
    for module in (*gpt.blocks, gpt):
        fully_shard(module, mesh=mesh["dp"], mp_policy=policy)
    return gpt, mesh["dp"]


def shard_matrices(gpt: GPT, mesh: DeviceMesh) -> None:
    """Spread the matrices over the tensor-parallel ranks, and let the residual stream be a replicated DTensor.

    The rows of ``qkv`` are all queries, then all keys, then all values: a rank's share is no whole heads, so its output
    is gathered and every rank has all heads. The embedding, tied to the head, is sharded over the bytes. What is left
    is replicated, since foreach optimizers want all parameters on one mesh.
    """
    stream: dict[str, Any] = {"output_layouts": Replicate(), "use_local_output": False}
    plan = {
        "tokens": RowwiseParallel(input_layouts=Replicate(), **stream),
        "blocks.*.attention.qkv": ColwiseParallel(output_layouts=Replicate()),
        "blocks.*.attention.out": RowwiseParallel(input_layouts=Replicate(), **stream),
        "blocks.*.mlp.up": ColwiseParallel(),
        "blocks.*.mlp.out": RowwiseParallel(**stream),
    }
    parallelize_module(gpt, mesh, plan)
    distribute_module(gpt, mesh)


class Run:
    """Model, optimizer, schedule and batches, the same in every layout."""

    def __init__(self, options: argparse.Namespace, corpus: Corpus, device: torch.device) -> None:
        self.device = device
        self.batches = Batches(corpus, context=options.context, batch_size=options.batch, seed=options.seed)
        shape = {name: getattr(options, name) for name in ("context", "layers", "width", "heads")}
        torch.manual_seed(options.seed)
        # Whole on every rank, so that all layouts start alike; a model too large for that starts on the meta device.
        self.gpt = GPT(GPTConfig(**shape)).to(device)
        self.model, ranks = distribute(self.gpt, options)
        self.mine = torch.arange(options.batch).chunk(ranks.size())[ranks.get_local_rank()]
        build, extra, _, _, embedding_decay = OPTIMIZERS[options.optimizer]
        decay = options.weight_decay
        # Sharding has replaced the parameters: the optimizer comes after it.
        groups = warmfree.parameter_groups(self.gpt, weight_decay=decay, embedding_decay=embedding_decay)
        self.optimizer = build(groups, lr=options.lr, weight_decay=decay, **extra)
        self.schedule = trapezoid(self.optimizer, steps=options.steps, cooldown=COOLDOWN[options.schedule])
        # DDP settles the order of its sums after one backward pass: do it now, and a resumed run sums alike.
        self.loss(0).backward()
        self.model.zero_grad()

    def loss(self, step: int) -> Tensor:
        """Return the mean loss of this rank's share of a batch."""
        tokens, targets = (part[self.mine].to(self.device) for part in self.batches.train(step))
        logits = self.model(tokens)
        if isinstance(logits, DTensor):  # a tensor-parallel rank has the logits of some of the bytes
            logits = logits.full_tensor()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def state(self, step: int) -> dict[str, Any]:
        """Return all that a run goes on from; no random numbers are drawn after its start."""
        model, optimizer = get_state_dict(self.gpt, self.optimizer)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict(), "step": step}

    def load(self, checkpoint: str) -> int:
        """Restore a checkpoint onto the shards of this layout; return the step to go on from."""
        state = self.state(step=0)
        dcp.load(state, checkpoint_id=checkpoint)
        model, optimizer = state["model"], state["optimizer"]
        set_state_dict(self.gpt, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        self.schedule.load_state_dict(state["schedule"])
        return int(state["step"])

    def save(self, out: Path, step: int) -> None:
        """Write a checkpoint beside the last one, then put it into place in one move."""
        dcp.save(self.state(step), checkpoint_id=out / ".part")
        if dist.get_rank() == 0:  # here all ranks have written
            os.replace(out / ".part", out / f"checkpoint-{step:08d}")
            for old in sorted(out.glob("checkpoint-*"))[:-1]:
                shutil.rmtree(old)


def open_folder(options: argparse.Namespace, corpus: Corpus, stack: contextlib.ExitStack) -> str | None:
    """Create or check the folder and lock it; return its last checkpoint, None at the start. On rank 0 only."""
    out, file = options.out, options.out / "run.json"
    config = {key: value for key, value in vars(options).items() if key not in FREE} | {"text": corpus.sha256}
    advice = "choose another folder with --out, or delete this one"
    stored = read_json(file) if file.exists() else config
    for key, value in config.items():
        if stored.get(key) != value:
            raise ValueError(f"{out} holds a run with {key} {stored.get(key)}, asked {value}; {advice}")
    if out.exists() and not file.exists() and set(os.listdir(out)) - {".lock"}:
        raise ValueError(f"{out} is not empty and holds no run; {advice}")
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(exclusive(out / ".lock"))
    write_json(file, config)
    shutil.rmtree(out / ".part", ignore_errors=True)
    return str(max(out.glob("checkpoint-*"), default="")) or None


def on_rank_zero(function: Callable[[], str | None]) -> str | None:
    """Call a function on rank 0; every rank returns its result, or raises its ValueError."""
    box: list[str | None] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except (ValueError, OSError, LockedError) as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise ValueError(box[1])
    return box[0]


def train(run: Run, options: argparse.Namespace, first: int) -> bool:
    """Train to the end, or until a signal; return whether it was the end."""
    done, rank = first, dist.get_rank()
    with Interrupts() as interrupts, contextlib.ExitStack() as stack:
        if rank == 0:
            record = stack.enter_context(RecordWriter(options.out / "record.jsonl"))
            # What was recorded after the checkpoint is going to be recorded again.
            lines = record.path.read_bytes().splitlines(keepends=True)
            os.truncate(record.path, sum(len(line) for line in lines if json.loads(line)["step"] < first))
            print(f"training from step {first} to {options.steps}", flush=True)
        printed, since = first, time.perf_counter()
        for step in range(first, options.steps):
            loss = run.loss(step)
            loss.backward()
            lr = run.schedule.get_last_lr()[0]
            run.optimizer.step()
            run.schedule.step()
            run.optimizer.zero_grad()
            # One sum for both: the mean loss, and whether any rank got a signal, so that all stop together.
            sums = torch.tensor([loss.item(), interrupts.requested], dtype=torch.float64, device=run.device)
            dist.all_reduce(sums)
            mean, stop, done = sums[0].item() / dist.get_world_size(), sums[1].item() > 0, step + 1
            if rank == 0:
                record.write({"step": step, "loss": mean, "lr": lr})
            if rank == 0 and (done in (first + 1, options.steps) or done % options.print_every == 0):
                speed = (done - printed) * options.batch * options.context / (time.perf_counter() - since)
                text = f"step {done}/{options.steps}  loss {mean:.4f}  lr {lr:.3g}  {speed:.0f} tokens/s"
                print(text, flush=True)
                printed, since = done, time.perf_counter()
            if stop or done == options.steps or done % options.checkpoint_every == 0:
                run.save(options.out, done)
            if stop:
                break
    if rank == 0:
        print("finished" if done == options.steps else f"stopped after step {done}; the same command goes on")
    return done == options.steps


def main() -> int:
    """Run the command line; return 0, 2 for bad input, 130 when stopped by a signal."""
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    with contextlib.ExitStack() as stack:
        try:
            options = parse(int(os.environ.get("WORLD_SIZE", 1)))
            corpus = load_text(options.text) if options.text else load_shakespeare()
            device = start_processes()
            stack.callback(dist.destroy_process_group)
            run = Run(options, corpus, device)
            checkpoint = on_rank_zero(lambda: open_folder(options, corpus, stack))
        except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
            if speaks:
                print(f"torchrun.py: {error}", file=sys.stderr)
            else:
                time.sleep(2)  # torchrun ends all processes when one has failed: the message goes first
            return 2
        first = run.load(checkpoint) if checkpoint else 0
        return 0 if train(run, options, first) else 130


if __name__ == "__main__":
    sys.exit(main())
