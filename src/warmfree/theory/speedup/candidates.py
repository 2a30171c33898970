"""Members of families of schedules, very many side by side: what is tuned over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["NON_INCREASING", "Candidates"]

Floats = NDArray[np.float64]

NON_INCREASING = ("constant", "1/sqrt(t)", "1/t", "step drop")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    r"""n schedules, the same numbers as those of `warmfree.theory.steps` give one by one.

    .. math:: \eta_t = \eta_0 \, (1 + t/k)^{-p} \, q^{\lfloor t/e \rfloor}
        \, \min\{1, \max\{(t+1)/L, \; g^{\,t+1-L}\}\}

    The last factor is a warmup of L steps: linear (g = 0) or geometric (by a factor g > 1 every step; then without the
    linear term). Each attribute is an array (n,).

    Attributes:
        family: number of the family in `names`.
        lr: eta_0, > 0.
        offset: k; inf does not decay.
        power: p; 1/2 or 1.
        every: e, steps between drops; inf does not drop.
        drop: q.
        length: L, steps of the warmup; 1 has none.
        growth: g, 0 for a linear warmup.
        names: of the families, of any length.
    """

    family: NDArray[np.intp]
    lr: Floats
    offset: Floats
    power: Floats
    every: Floats
    drop: Floats
    length: Floats
    growth: Floats
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        name: str,
        lr: ArrayLike,
        *,
        offset: ArrayLike = math.inf,
        every: ArrayLike = math.inf,
        drop: ArrayLike = 1.0,
        length: ArrayLike = 1.0,
        growth: ArrayLike = 0.0,
    ) -> Self:
        """Return the members of one family; the arrays are broadcast against each other.

        Args:
            name: of the family; "1/sqrt(t)" sets the power to 1/2, others leave it at 1.
            lr: as the attribute.
            offset: as the attribute.
            every: as the attribute.
            drop: as the attribute.
            length: as the attribute.
            growth: as the attribute.
        """
        arrays = np.broadcast_arrays(lr, offset, every, drop, length, growth)
        rates, offsets, periods, drops, lengths, growths = (
            np.array(array, np.float64).ravel() for array in arrays
        )
        return cls(
            family=np.zeros(rates.size, np.intp),
            lr=rates,
            offset=offsets,
            power=np.full(rates.size, 0.5 if name == "1/sqrt(t)" else 1.0),
            every=periods,
            drop=drops,
            length=lengths,
            growth=growths,
            names=(name,),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the members of several families, in this order."""
        starts = np.cumsum([0] + [len(part.names) for part in parts])
        arrays = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name not in ("names", "family")
        }
        family = np.concatenate([part.family + start for part, start in zip(parts, starts, strict=False)])
        return cls(family=family, names=tuple(name for part in parts for name in part.names), **arrays)

    def __len__(self) -> int:
        return self.lr.size

    @cached_property
    def is_constant(self) -> bool:
        """Whether no member changes its learning rate."""
        return bool(
            np.isinf(self.offset).all()
            and (np.isinf(self.every) | (self.drop == 1.0)).all()
            and (self.length <= 1.0).all()
        )

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Self:
        """Return some of the members."""
        arrays = {f.name: getattr(self, f.name)[which] for f in fields(self) if f.name != "names"}
        return type(self)(names=self.names, **arrays)

    def rates(self, step: int) -> Floats:
        """Return the learning rates at a step, of shape (n,)."""
        if self.is_constant:
            return self.lr
        exponent = np.floor(step / self.every) * self._log_drop - self.power * np.log(
            1.0 + step / self.offset
        )
        rates = self.lr * np.exp(exponent)  # exp and log are vectorised, powers are not
        if step < self._longest:
            linear = (step + 1.0) / self.length
            with np.errstate(divide="ignore"):
                geometric = self.growth ** np.minimum(step + 1.0 - self.length, 0.0)
            rates = rates * np.minimum(1.0, np.where(self.growth == 0.0, linear, geometric))
        return rates

    @cached_property
    def _log_drop(self) -> Floats:
        return np.log(self.drop)

    @cached_property
    def _longest(self) -> float:
        return float(self.length.max(initial=0.0))

    def parameters(self, which: int) -> dict[str, float]:
        """Return what one member is made of, without what does nothing."""
        values = {"lr": self.lr[which]}
        if math.isfinite(self.offset[which]):
            values["offset"] = self.offset[which]
        if math.isfinite(self.every[which]):
            values |= {"every": self.every[which], "drop": self.drop[which]}
        if self.length[which] > 1.0:
            values["length"] = self.length[which]
        if self.growth[which] > 0.0:
            values["growth"] = self.growth[which]
        return {name: float(value) for name, value in values.items()}
