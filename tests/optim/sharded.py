"""A small transformer with awkward sizes, ways to spread it over processes, and a worker that trains it."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree import AdamW2, GIAdamW, LionA, LionAR, RotationalAdamW, SizedOptimizer
from warmfree.optim import Adam, AngularControl, NoiseControl, SpectralBound

BUILD = {
    "AdamW2": lambda groups: AdamW2(groups, 1e-2, tau=0.02),
    "GIAdamW": lambda groups: GIAdamW(groups, 1e-2),
    "LionA": lambda groups: LionA(groups, 3e-3),
    "LionAR": lambda groups: LionAR(groups, 1e-2, weight_decay=0.5),
    "LionAR-whole": lambda groups: LionAR(groups, 1e-2, weight_decay=0.5, per_neuron=False),
    "RotationalAdamW": lambda groups: RotationalAdamW(groups, 1e-2, zero_mean=True),
    "everything": lambda groups: SizedOptimizer(
        groups,
        Adam(),
        [NoiseControl(batch_size=8), AngularControl(), SpectralBound()],
        lr=1e-2,
        weight_decay=0.1,
    ),
}
VOCABULARY, WIDTH, HEADS, CLASSES = 19, 16, 4, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 20)
        self.down = nn.Linear(20, WIDTH, bias=False)

    def forward(self, x):
        normed = self.norm(x)
        heads = [
            layer(normed).unflatten(-1, (-1, WIDTH // HEADS)) for layer in (self.query, self.key, self.value)
        ]
        query, key, value = (head.transpose(1, 2) for head in heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Transformer(nn.Module):
    """On four processes the 19 rows of the embedding are uneven shards, and the 3 of the head leave one empty."""

    def __init__(self, layers=2):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_transformer(layers=2, dtype=torch.float32):
    torch.manual_seed(5)
    return Transformer(layers).to(dtype)


def spread(model, way):
    """Shard a model: "ddp", "fsdp", "hsdp", "tp" or "fsdp+tp"; "none" leaves it alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size = dist.get_world_size() if dist.is_initialized() else 1
    if way == "none":
        return model
    if way == "ddp":  # its parameters are the model's own
        return nn.parallel.DistributedDataParallel(model)
    if way in ("hsdp", "fsdp+tp"):
        mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("outer", "inner"))
    else:
        mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("inner",))
    if way in ("tp", "fsdp+tp"):
        plan = dict.fromkeys(("query", "key", "value", "up"), ColwiseParallel()) | dict.fromkeys(
            ("out", "down"), RowwiseParallel()
        )
        for block in model.blocks:
            parallelize_module(block, mesh["inner"], plan)
    if way != "tp":
        data = mesh["outer"] if way == "fsdp+tp" else mesh
        for block in model.blocks:
            fully_shard(block, mesh=data)
        fully_shard(model, mesh=data)
    return model


def groups_of(model):
    """Vectors apart, as everybody does; the rest has matrices of every placement in one group."""
    parameters = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
    return [
        {"params": [(name, p) for name, p in parameters if p.ndim > 1]},
        {"params": [(name, p) for name, p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def backward(model, step):
    """All processes see the whole batch, so that averaging gradients over a power of two changes no bit."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (4, 6), generator=generator)
    targets = tokens.roll(1, 1) % CLASSES
    model.zero_grad()  # before the forward pass: during it FSDP shows its unsharded parameters
    loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    loss.backward()
    return loss.item()


def train(model, optimizer, steps):
    for step in steps:
        backward(model, step)
        optimizer.step()


def whole(model):
    """Full copies of the parameters, by name."""
    full = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        full[name.removeprefix("module.")] = (
            value.full_tensor() if hasattr(value, "full_tensor") else value
        ).clone()
    return full
