"""A small GPT in plain PyTorch: pre-LayerNorm blocks, learned positions, tied head, GPT-2's initialisation."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from warmfree.lab.models.blocks import Block, BlocksConfig, cross_entropy, initialise

__all__ = ["GPT", "GPTConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig(BlocksConfig):
    """The shape of a GPT: of its blocks, and of what is around them.

    Attributes:
        vocabulary: number of tokens; 256 for bytes.
        context: the longest sequence.
    """

    vocabulary: int = 256
    context: int = 64


class GPT(nn.Module):
    """A decoder-only transformer whose head is its token embedding.

    Args:
        config: the shape of the model.

    Example:
        >>> import torch
        >>> model = GPT(GPTConfig(vocabulary=11, context=8, layers=1, width=16, heads=2))
        >>> tokens = torch.zeros(3, 8, dtype=torch.long)
        >>> model(tokens).shape
        torch.Size([3, 8, 11])
        >>> model.loss(tokens, tokens).shape
        torch.Size([])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, causal=True) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        initialise(self, layers=config.layers, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token.

        Args:
            tokens: (batch, time) integers in [0, vocabulary), time <= context.

        Returns:
            (batch, time, vocabulary) logits.

        Raises:
            ValueError: the sequence is longer than the context.
        """
        time = tokens.shape[1]
        if time > self.config.context:
            raise ValueError(f"sequence of {time} tokens is longer than context={self.config.context}")
        x = self.tokens(tokens) + self.positions.weight[:time]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats per token.

        Args:
            tokens: (batch, time) integers.
            targets: (batch, time) integers: the token that follows each of ``tokens``.
        """
        return cross_entropy(self(tokens), targets)
