"""How much time measuring may take, and who decides which probe runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Account", "Budget"]


@dataclass(slots=True)
class Account:
    """What one probe has cost so far.

    Attributes:
        share: part of the budget that is the probe's, in (0, 1].
        runs: how often it ran.
        seconds: what that took, in all.
        last: what the last run took.
    """

    share: float = 1.0
    runs: int = 0
    seconds: float = 0.0
    last: float = 0.0

    def charge(self, seconds: float) -> None:
        """Add the cost of one run."""
        self.runs += 1
        self.seconds += seconds
        self.last = seconds


@dataclass(slots=True)
class Budget:
    r"""Keep the time that probes take below a fraction of the time that training takes.

    After n steps that took the training (without the probes) the time T in all, what all probes together may have
    used up is

    .. math:: \text{fraction} \cdot T \cdot \max\!\left(1, \sqrt{h/n}\right),

    and a probe its share of what is left of it when hooks are paid. The budget of the first h steps may thus be spent
    early, where most happens, along a square root; from step h on the fraction holds as it is. A probe whose cost is
    not yet known runs once, whatever it takes, and pays for it by waiting. That a run shorter than h steps, or one with
    a probe that costs more than its budget of the whole run, takes more than the fraction is the price of seeing the
    first steps (our choice).

    Attributes:
        fraction: of the training time, > 0; math.inf for no limit.
        horizon: h, in steps; the length of the run if it is known.
        accounts: one for each probe.
        steps: n.
        training_seconds: T.
        overhead_seconds: all that the monitor took.

    Example:
        >>> budget = Budget(fraction=0.02, horizon=100, accounts={"updates": Account(share=0.5)})
        >>> budget.steps, budget.training_seconds = 100, 10.0
        >>> budget.affords("updates")
        True
        >>> budget.accounts["updates"].charge(0.09)
        >>> budget.affords("updates")  # 0.09 + 0.09 > 0.5 * 0.02 * 10
        False
    """

    fraction: float
    horizon: int
    accounts: dict[str, Account]
    steps: int = 0
    training_seconds: float = 0.0
    overhead_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.fraction > 0:
            raise ValueError(f"budget must be > 0 (a fraction of the training time), got {self.fraction}")
        if self.horizon < 1:
            raise ValueError(f"total_steps must be >= 1, got {self.horizon}")

    @classmethod
    def over(cls, shares: dict[str, float], *, fraction: float, horizon: int) -> "Budget":
        """Divide a budget between probes in proportion to their weights."""
        total = math.fsum(shares.values())
        accounts = {name: Account(share=weight / total) for name, weight in shares.items()}
        return cls(fraction=fraction, horizon=horizon, accounts=accounts)

    def affords(self, name: str) -> bool:
        """Return whether a probe may run now."""
        account = self.accounts[name]
        if account.runs == 0 or math.isinf(self.fraction):
            return True
        early = max(1.0, math.sqrt(self.horizon / max(self.steps, 1)))
        # What hooks take comes off first, over all of the steps whose budget may be spent: it is there in any case.
        probes = sum(each.seconds for each in self.accounts.values())
        hooks = max(self.overhead_seconds - probes, 0.0) * max(1.0, self.horizon / max(self.steps, 1))
        left = self.fraction * self.training_seconds * early - hooks
        return account.seconds + account.last <= account.share * left

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return those of the probes that may run now."""
        return [name for name in names if self.affords(name)]

    @property
    def overhead(self) -> float:
        """All that the monitor took, relative to the time of training without it."""
        return self.overhead_seconds / self.training_seconds if self.training_seconds > 0 else 0.0
