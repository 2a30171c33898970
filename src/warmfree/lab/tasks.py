"""What is trained in a comparison: a byte GPT on a text, with everything that decides its numbers."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warmfree.lab.data import Batches, Corpus
from warmfree.lab.methods import Method
from warmfree.lab.models.gpt import GPT, GPTConfig
from warmfree.lab.train import Run
from warmfree.schedule.shapes import trapezoid

__all__ = ["ByteGPTConfig", "prepare_run"]

VALIDATE_EVERY = 150
CHECKPOINT_EVERY = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteGPTConfig:
    """Model, batches and schedule of a byte-level GPT.

    Attributes:
        layers: blocks of the model.
        width: features of its residual stream.
        heads: attention heads.
        context: bytes per sequence.
        batch_size: sequences per step.
        steps: optimizer steps, >= 1.
        cooldown: fraction of the run in which the learning rate falls linearly to 0, in [0, 1].
        weight_decay: of the tensors with 2 or more dimensions.
        betas: of optimizers that have two.
        validation_sequences: sequences per validation.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    batch_size: int = 16
    steps: int = 300
    cooldown: float = 0.5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    validation_sequences: int = 256

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")

    def with_steps(self, steps: int) -> "ByteGPTConfig":
        """Return the same task with another length of the run."""
        return dataclasses.replace(self, steps=steps)

    def model_config(self) -> GPTConfig:
        """Return the shape of the model."""
        return GPTConfig(
            vocabulary=256, context=self.context, layers=self.layers, width=self.width, heads=self.heads
        )

    def describe(self, corpus: Corpus) -> dict[str, Any]:
        """Return every setting, with the size of the model and the corpus, as plain JSON values."""
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in GPT(self.model_config()).parameters())
        return {
            "name": "byte GPT",
            **dataclasses.asdict(self),
            "betas": list(self.betas),
            "parameters": parameters,
            "tokens": self.steps * self.batch_size * self.context,
            "corpus": {"name": corpus.name, "sha256": corpus.sha256},
            "useless_loss": corpus.unigram_loss(),
        }


def prepare_run(config: ByteGPTConfig, corpus: Corpus, method: Method, *, lr: float, seed: int) -> Run:
    """Seed, and build the model, optimizer and schedule of one cell of a comparison.

    All methods start from the same weights and see the same batches for the same seed. A run counts as
    diverged when it ends no better than the entropy of single bytes, which a model reaches without any use of
    its context.

    Args:
        config: model, batches and schedule.
        corpus: the text.
        method: the optimizer and its warmup.
        lr: peak learning rate, > 0.
        seed: of weights and batches, >= 0.
    """
    batches = Batches(
        corpus,
        context=config.context,
        batch_size=config.batch_size,
        seed=seed,
        validation_sequences=config.validation_sequences,
    )
    validation = batches.validation()
    torch.manual_seed(seed)
    model = GPT(config.model_config())
    optimizer = method.build(model, lr=lr, weight_decay=config.weight_decay, betas=config.betas)
    cooldown = min(config.cooldown, 1.0 - method.warmup)

    def loss(step: int) -> Tensor:
        return model.loss(*batches.train(step))

    def validate() -> float:
        tokens = sum(targets.numel() for _, targets in validation)
        return sum(model.loss(*batch).item() * batch[1].numel() for batch in validation) / tokens

    return Run(
        model=model,
        optimizer=optimizer,
        schedule=trapezoid(optimizer, steps=config.steps, warmup=method.warmup, cooldown=cooldown),
        loss=loss,
        validate=validate,
        steps=config.steps,
        useless_loss=corpus.unigram_loss(),
        eval_every=min(VALIDATE_EVERY, math.ceil(config.steps / 2)),
        checkpoint_every=CHECKPOINT_EVERY,
    )
