"""The runs on which advice is checked: models, data, optimizers and batch sizes, each with its learning rates.

Three were looked at while the rules of the advisor were made; the others (`held_out`) only afterwards. Learning rates
are a factor of 2 apart, placed so that the best one with 10 % warmup (seed 0) is inside.
"""

import functools
import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.optim import Optimizer

from warmfree.lab.data import Batches, Corpus, load_shakespeare
from warmfree.lab.images import ImageBatches, load_mnist
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.lab.models.vit import ViT, ViTConfig
from warmfree.optim import parameter_groups

CONTEXT = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run before its first step."""

    model: nn.Module
    optimizer: Optimizer
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batch: Callable[[int], Any]
    validation: list[Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A kind of run: `start(seed=..., lr=...)` makes one."""

    name: str
    what: str
    held_out: bool
    steps: int
    batch_size: int
    lrs: tuple[float, ...]
    build: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module, float], Optimizer]
    text: str | None = None  # else images
    loss_fn: Callable[[nn.Module, Any], Tensor]

    def start(self, *, seed: int, lr: float) -> Training:
        """Make the run of a seed; all learning rates and warmups start from the same weights and see the same data."""
        data = text_batches(self.text, self.batch_size, seed) if self.text else images(self.batch_size, seed)
        torch.manual_seed(seed)
        model = self.build()
        return Training(
            model=model,
            optimizer=self.optimizer(model, lr),
            loss_fn=self.loss_fn,
            batch=data.train,
            validation=data.validation(),
        )


def text_batches(name: str, batch_size: int, seed: int) -> Batches:
    return Batches(corpus(name), context=CONTEXT, batch_size=batch_size, seed=seed, validation_sequences=256)


def images(batch_size: int, seed: int) -> ImageBatches:
    return ImageBatches(mnist(), batch_size=batch_size, seed=seed, validation_images=1000)


@functools.cache
def mnist() -> Any:
    return load_mnist()


@functools.cache
def corpus(name: str) -> Corpus:
    """Return Shakespeare's plays, or the Python files of the installed torch that are about networks."""
    if name == "plays":
        return load_shakespeare()
    root = Path(torch.__file__).parent
    files = sorted(
        glob.glob("nn/**/*.py", root_dir=root, recursive=True) + glob.glob("optim/*.py", root_dir=root)
    )
    return Corpus.from_documents(((root / file).read_bytes() for file in files), name="torch's source")


# Models


def gpt(**shape: Any) -> nn.Module:
    return GPT(GPTConfig(vocabulary=256, context=CONTEXT, **shape))


class PostNormTransformer(nn.Module):
    """The transformer of 2017: LayerNorm after each residual sum, default initialisation of torch."""

    def __init__(self, *, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=False
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for weight in self.blocks.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)  # the encoder's layers start as copies of one
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(tokens) + self.positions.weight[:length]
        return self.head(self.blocks(x, mask=mask, is_causal=True))


class RecurrentNet(nn.Module):
    """An LSTM over bytes."""

    def __init__(self, *, width: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0])


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            use_cache=False,
        )
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a norm each, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([norm(after), norm(after)])
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(y)) + self.shortcut(x)).relu()


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 12, 3, 2, 1, bias=False),
        norm(12),
        nn.ReLU(),
        ResidualBlock(12, 12, 1, norm),
        ResidualBlock(12, 24, 2, norm),
        ResidualBlock(24, 48, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def mlp() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return model


# Losses


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    return model.loss(*batch)


def classify(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def huggingface(model: nn.Module, batch: Any) -> Tensor:
    tokens, targets = batch
    return F.cross_entropy(model(input_ids=tokens).logits.flatten(0, -2), targets.flatten())


# Optimizers


def adamw(beta2: float, weight_decay: float = 0.1) -> Callable[[nn.Module, float], Optimizer]:
    def build(model: nn.Module, lr: float) -> Optimizer:
        return torch.optim.AdamW(
            parameter_groups(model, weight_decay=weight_decay), lr=lr, betas=(0.9, beta2)
        )

    return build


def adam(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def nadam(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.NAdam(model.parameters(), lr=lr)


def sgd(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def by_twos(lowest: float, number: int = 5) -> tuple[float, ...]:
    return tuple(lowest * 2**power for power in range(number))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            name="gpt-adamw",
            what="pre-norm GPT, 2 x 64, plays, AdamW (.9, .95), batch 16",
            held_out=False,
            steps=600,
            batch_size=16,
            lrs=by_twos(1e-3),
            build=functools.partial(gpt, layers=2, width=64, heads=4),
            optimizer=adamw(0.95),
            text="plays",
            loss_fn=own_loss,
        ),
        Setting(
            name="vit-adamw",
            what="ViT, 3 x 64, patches of 7, MNIST, AdamW (.9, .999), batch 64",
            held_out=False,
            steps=600,
            batch_size=64,
            lrs=by_twos(1e-3),
            build=lambda: ViT(ViTConfig(patch=7, layers=3, width=64, heads=4)),
            optimizer=adamw(0.999),
            loss_fn=own_loss,
        ),
        Setting(
            name="resnet-sgd",
            what="ResNet with BatchNorm, MNIST, SGD with momentum, batch 64",
            held_out=False,
            steps=400,
            batch_size=64,
            lrs=by_twos(5e-2),
            build=functools.partial(resnet, nn.BatchNorm2d),
            optimizer=sgd,
            loss_fn=classify,
        ),
        Setting(
            name="llama-adamw",
            what="Llama (transformers), 3 x 64, torch's source, AdamW (.9, .95), batch 16",
            held_out=True,
            steps=400,
            batch_size=16,
            lrs=by_twos(1e-3, 4),
            build=llama,
            optimizer=adamw(0.95),
            text="source",
            loss_fn=huggingface,
        ),
        Setting(
            name="postnorm-adam",
            what="post-norm transformer, 4 x 64, plays, Adam (.9, .999), batch 16",
            held_out=True,
            steps=400,
            batch_size=16,
            lrs=by_twos(1e-3, 4),
            build=PostNormTransformer,
            optimizer=adam,
            text="plays",
            loss_fn=classify,
        ),
        Setting(
            name="lstm-adam",
            what="LSTM, 1 x 96, torch's source, Adam (.9, .999), batch 32",
            held_out=True,
            steps=400,
            batch_size=32,
            lrs=by_twos(8e-3, 4),
            build=RecurrentNet,
            optimizer=adam,
            text="source",
            loss_fn=classify,
        ),
        Setting(
            name="mlp-nadam",
            what="MLP without norms, 4 x 256, MNIST, NAdam, batch 256",
            held_out=True,
            steps=300,
            batch_size=256,
            lrs=by_twos(2.5e-4, 4),
            build=mlp,
            optimizer=nadam,
            loss_fn=classify,
        ),
        Setting(
            name="resnet-adamw",
            what="ResNet with GroupNorm, MNIST, AdamW (.9, .999), batch 32",
            held_out=True,
            steps=300,
            batch_size=32,
            lrs=by_twos(2e-3, 4),
            build=functools.partial(resnet, group_norm),
            optimizer=adamw(0.999),
            loss_fn=classify,
        ),
        Setting(
            name="gpt-large-batch",
            what="pre-norm GPT, 4 x 48, torch's source, AdamW (.9, .999), batch 64",
            held_out=True,
            steps=200,
            batch_size=64,
            lrs=by_twos(1e-3, 4),
            build=functools.partial(gpt, layers=4, width=48, heads=4),
            optimizer=adamw(0.999),
            text="source",
            loss_fn=own_loss,
        ),
    )
}
