"""Numbers as people read them: one rounding and one spelling for the terminal, the verdict and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence


def short(value: float) -> str:
    """Write a learning rate, or the like, short enough for a tick and ready to paste into a command.

    Example:
        >>> short(0.003), short(0.00178), short(0.1)
        ('3e-3', '1.78e-3', '0.1')
    """
    if 0.01 <= value < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def loss(value: float) -> str:
    """Write a loss in nats with three decimals.

    Example:
        >>> loss(1.96049)
        '1.960'
    """
    return f"{value:.3f}"


def percent(fraction: float) -> str:
    """Write the size of a fraction in percent, without its sign.

    Example:
        >>> percent(0.0668), percent(-0.0668), percent(0.0001)
        ('6.7 %', '6.7 %', 'less than 0.1 %')
    """
    text = f"{abs(100 * fraction):.1f}"
    return "less than 0.1 %" if text == "0.0" and fraction else f"{text} %"


def signed_percent(fraction: float) -> str:
    """Write a fraction in percent with its sign.

    Example:
        >>> signed_percent(0.0668), signed_percent(-0.0042), signed_percent(0.0)
        ('+6.7 %', '−0.4 %', '0.0 %')
    """
    text = f"{abs(100 * fraction):.1f} %"
    if text == "0.0 %":
        return text
    return f"{'+' if fraction > 0 else '−'}{text}"


def factor(value: float) -> str:
    """Write a ratio with two digits, whole from ten up.

    Example:
        >>> factor(3.1623), factor(31.6), factor(3.0)
        ('3.2', '32', '3')
    """
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def count(number: int, noun: str) -> str:
    """Write a number with its noun, plural where it should be.

    Example:
        >>> count(1, "seed"), count(3, "seed"), count(2, "pass")
        ('1 seed', '3 seeds', '2 passes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def listing(items: Sequence[str]) -> str:
    """Join names the way a sentence does.

    Example:
        >>> listing(["AdamW"]), listing(["AdamW", "RAdam", "LionA"])
        ('AdamW', 'AdamW, RAdam and LionA')
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def number(value: float) -> str:
    """Write any number with three digits; zero, infinities and "not a number" too.

    Example:
        >>> number(0.02134), number(12345.6), number(-1.5e-7), number(0), number(float("nan")), number(float("inf"))
        ('0.0213', '12,346', '−1.5e-7', '0', 'NaN', '∞')
    """
    if math.isnan(value):
        return "NaN"
    sign, size = ("−" if value < 0 else ""), abs(value)
    if size == 0:
        return "0"
    if math.isinf(size):
        return f"{sign}∞"
    if 999.5 <= size < 99_999.5:
        return f"{sign}{size:,.0f}"
    if 0.00095 <= size < 1000:
        return f"{sign}{size:.3g}"
    mantissa, exponent = f"{size:.2e}".split("e")
    return f"{sign}{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
