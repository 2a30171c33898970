"""Weights and moments narrower than float32: stochastic rounding, master copies, bfloat16 moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """How an optimizer keeps what is narrower than float32. Everything is computed in float32 all the same.

    bfloat16 has 8 bits: a change of less than 1/512 of a weight is lost when it is rounded to the nearest, step after
    step. Either of the first two options keeps it: in the mean, or exactly for 4 bytes a parameter.

    Attributes:
        stochastic_rounding: round weights up or down at random, so that the mean is right (bfloat16 parameters). The
            noise is a hash of step and place: the same in all replicas and in a run that is resumed as it was sharded,
            and apart from torch's generators.
        master_weights: keep a float32 copy of bfloat16 and float16 weights in the state, and round it to the nearest.
            What is written to the parameter by others is overwritten.
        bf16_moments: keep the direction's moments in bfloat16, rounded stochastically: 2 bytes a parameter less each.

    Raises:
        ValueError: both ways to keep weights.

    Example:
        >>> from warmfree import AdamW2
        >>> weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        >>> optimizer = AdamW2([weight], precision=Precision(stochastic_rounding=True, bf16_moments=True))
        >>> optimizer.state[weight]["exp_avg"].dtype
        torch.bfloat16
    """

    stochastic_rounding: bool = False
    master_weights: bool = False
    bf16_moments: bool = False

    def __post_init__(self) -> None:
        """Refuse to round stochastically what a master copy makes exact."""
        if self.stochastic_rounding and self.master_weights:
            raise ValueError(
                "choose one of stochastic_rounding and master_weights: a master copy is rounded anew each step"
            )

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.stochastic_rounding or self.master_weights or self.bf16_moments)

    def keeps_master(self, parameter: Tensor) -> bool:
        """Whether a parameter has a float32 copy in the state."""
        return self.master_weights and parameter.dtype in (torch.bfloat16, torch.float16)

    def write(self, target: Tensor, source: Tensor, *, seed: int) -> None:
        """Write float32 or float64 values to a parameter."""
        if self.stochastic_rounding and target.dtype == torch.bfloat16:
            target.copy_(round_stochastically(source, seed=seed))
        elif target is not source:
            target.copy_(source)


def round_stochastically(values: Tensor, *, seed: int) -> Tensor:
    """Round float32 to bfloat16, up or down with the probabilities that make the mean right.

    Args:
        values: any shape. inf and NaN stay what they are, as do values that bfloat16 has.
        seed: of the noise, which depends on nothing else but the place of a value in the tensor.

    Example:
        >>> values = torch.full((100_000,), 1.0 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
        >>> rounded = round_stochastically(values, seed=0).float()
        >>> sorted(set(rounded.tolist())), round((rounded.mean().item() - 1) * 2**9, 1)
        ([1.0, 1.0078125], 1.0)
    """
    values = values.to(torch.float32)
    # Sixteen random bits below what is kept, and a carry with the probability of what is dropped.
    noise = _hashed(values.numel(), seed, values.device).bitwise_and_(0xFFFF).view(values.shape)
    bits = values.contiguous().view(torch.int32)
    rounded = ((bits + noise) & -0x10000).view(torch.float32)
    return torch.where(values.isfinite() & rounded.isfinite(), rounded, values).to(torch.bfloat16)


def widened(buffers: Sequence[Tensor]) -> list[Tensor]:
    """Return float32 copies of bfloat16 buffers; wider ones are themselves."""
    return [buffer.float() if buffer.dtype == torch.bfloat16 else buffer for buffer in buffers]


def _hashed(count: int, seed: int, device: torch.device) -> Tensor:
    """Return one pseudo-random int32 a place: a multiply-xorshift hash of the place and the seed."""
    bits = torch.arange(count, dtype=torch.int32, device=device)
    bits += _as_int32(seed * 0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= (bits >> shift) & (0x7FFFFFFF >> (shift - 1))  # a logical shift: int32 has none of its own
        bits *= _as_int32(factor)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def _as_int32(number: int) -> int:
    """Wrap an integer to the range of int32, as its arithmetic does."""
    return (number + 0x80000000) % 0x100000000 - 0x80000000
