"""A small GPT in plain PyTorch: pre-LayerNorm blocks, learned positions, tied head.

Initialisation as in GPT-2: every matrix normal with standard deviation 0.02, the projections that write into
the residual stream scaled by 1/sqrt(2 * layers), so that its variance does not grow with depth.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

__all__ = ["GPT", "GPTConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """The shape of a GPT.

    Attributes:
        vocabulary: number of tokens; 256 for bytes.
        context: the longest sequence.
        layers: number of blocks.
        width: features of the residual stream, a multiple of ``heads``.
        heads: attention heads.
        bias: biases in the Linears and LayerNorms.
        qk_norm: normalise queries and keys (RMSNorm per head, with a gain), which bounds the attention
            logits.
    """

    vocabulary: int = 256
    context: int = 64
    layers: int = 4
    width: int = 128
    heads: int = 4
    bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "width", "heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got {self.width}")


class Attention(nn.Module):
    """Causal self-attention; the rows of ``qkv.weight`` make queries, then keys, then values."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        size = config.width // config.heads
        self.query_norm = nn.RMSNorm(size) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(size) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width) -> the same
        batch, time, width = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()  # (batch, heads, time, width / heads) each
        mixed = F.scaled_dot_product_attention(
            self.query_norm(query), self.key_norm(key), value, is_causal=True
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two Linears with a GELU between them, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.out = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-LayerNorm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer whose head is its token embedding.

    Args:
        config: the shape of the model.

    Example:
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim >= 2:
                writes_residual = name.endswith("out.weight")
                weight.normal_(std=0.02 / math.sqrt(2 * self.config.layers) if writes_residual else 0.02)
            # what is left are the gains of the norms, which PyTorch sets to 1

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
        logits = self(tokens).flatten(0, 1)
        # A sum over the vocabulary in half precision would lose the digits that the comparison is about.
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten())
