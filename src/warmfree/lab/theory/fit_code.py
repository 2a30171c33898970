"""The lines of Python that put a fit to use."""

import math

from warmfree.lab.theory.implied import Comparison
from warmfree.report.wording import number
from warmfree.theory.fit import SmoothnessFit

__all__ = ["code_for"]


def code_for(implied: Comparison, fit: SmoothnessFit) -> tuple[str, str]:
    """Return a heading, and lines that follow a rule, given `optimizer`.

    Args:
        implied: the rule, scaled to the peak, and the first loss of the run.
        fit: what the rule follows from.
    """
    rule, peak = implied.rule, implied.peak
    if peak is None and math.isfinite(rule.peak):
        peak = rule.peak
    made = "made with the largest lr that it may have; the rule has no peak"
    if peak is not None:
        made = f"made with lr={float(f'{peak:.6g}')!r}, the peak"
    constants = ", ".join(
        f"{name}={_literal(getattr(rule, name))}" for name in ("exponent", "floor", "growth", "safety")
    )
    first = _literal(implied.initial_loss)
    lines = (
        "from warmfree.schedule import LossDriven, SmoothnessRule",
        "",
        f"# optimizer: {made}",
        f"rule = SmoothnessRule({constants})",
        f"scheduler = LossDriven(optimizer, rule, initial_loss={first}, f_star={_literal(fit.f_star)})",
        "# after every optimizer.step(): scheduler.step(loss)",
    )
    all_the_same = "" if fit.verdict == "describes" else " all the same"
    return (
        f"To follow it{all_the_same}, from a learning rate of {number(rule(implied.initial_loss - fit.f_star))} on",
        "\n".join(lines),
    )


def _literal(value: float) -> str:
    """Write a number with six digits, as Python reads it."""
    return repr(float(f"{value:.6g}"))
