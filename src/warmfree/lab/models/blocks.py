"""Pre-LayerNorm transformer blocks, their initialisation and their loss: what the models here have in common."""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

__all__ = ["MLP", "Attention", "Block", "BlocksConfig", "cross_entropy", "initialise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocksConfig:
    """The shape of a stack of blocks.

    Attributes:
        layers: number of blocks.
        width: features of the residual stream, a multiple of ``heads``.
        heads: attention heads.
        bias: biases in the Linears and LayerNorms.
        qk_norm: normalise queries and keys (RMSNorm per head, with a gain), which bounds the attention
            logits.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} must be an int >= 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got {self.width}")


class Attention(nn.Module):
    """Self-attention; the rows of ``qkv.weight`` make queries, then keys, then values.

    Args:
        config: the shape of the stack.
        causal: whether a token sees only itself and the tokens before it.
    """

    def __init__(self, config: BlocksConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.causal = causal
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        size = config.width // config.heads
        self.query_norm = nn.RMSNorm(size) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(size) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: (batch, time, width) to the same."""
        batch, time, width = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()  # (batch, heads, time, width / heads) each
        mixed = F.scaled_dot_product_attention(
            self.query_norm(query), self.key_norm(key), value, is_causal=self.causal
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two Linears with a GELU between them, four times as wide inside."""

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.out = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token on its own: (..., width) to the same."""
        return self.out(F.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-LayerNorm transformer block."""

    def __init__(self, config: BlocksConfig, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config, causal=causal)
        self.mlp_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention, then the MLP, make of the residual stream: (batch, time, width) to the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(model: nn.Module, *, layers: int, std: float) -> None:
    """Set the initial weights in the manner of GPT-2.

    Every matrix is normal with one standard deviation, the projections that write into the residual stream
    (named ``out``) divided by sqrt(2 * layers), so that its variance does not grow with depth; biases are 0.
    The gains of norms stay as PyTorch sets them, at 1.

    Args:
        model: changed in place.
        layers: number of blocks of the model, each with two projections that write.
        std: standard deviation of the matrices, > 0.
    """
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim >= 2:
            writes_residual = name.endswith("out.weight")
            weight.normal_(std=std / math.sqrt(2 * layers) if writes_residual else std)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, computed in float32 at least.

    Args:
        logits: (..., classes) floating point.
        targets: (...) integers in [0, classes).
    """
    logits = logits.flatten(0, -2)
    # A sum over the classes in half precision would lose the digits that a comparison is about.
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten())
