r"""What keeps a function smooth with its gap, and with which constants.

Each rule takes smoothnesses and returns that of the new function; the proof idea stands with it. A rule speaks of all
points of which its arguments speak. Gaps are measured from the infimum of each function unless said otherwise; where
that matters it is said. All rules are ours but the exponent of `from_gradient_norm`, which is the paper's.
"""

import math

from warmfree.theory.smoothness import Smoothness

__all__ = [
    "added",
    "composed",
    "from_gradient_norm",
    "from_l0_l1",
    "from_lipschitz_gradient",
    "lower_infimum",
    "raise_infimum",
    "scaled",
    "separable",
    "with_exponent",
]


def from_lipschitz_gradient(constant: float) -> Smoothness:
    r"""Return the smoothness of a function with :math:`\|\nabla^2 f\| \le L`: a floor and no growth, at exponent 1.

    Args:
        constant: L, finite and > 0.

    Raises:
        ValueError: the constant is out of its range.

    Example:
        >>> from_lipschitz_gradient(3.0)
        Smoothness(exponent=1.0, floor=3.0, growth=0.0)

    Reference: ours (by definition).
    """
    if not 0.0 < constant < math.inf:
        raise ValueError(f"constant (L) must be finite and > 0, got {constant!r}")
    return Smoothness(exponent=1.0, floor=constant, growth=0.0)


def from_gradient_norm(*, exponent: float, floor: float, growth: float) -> Smoothness:
    r"""Return the smoothness of a function whose curvature is bounded by the norm of its gradient.

    .. math:: \|\nabla^2 f\| \le L_0 + L_\rho \|\nabla f\|^\rho \quad\Rightarrow\quad
        \left(\alpha,\; 2 L_0,\; L_\rho (4 L_\rho)^\alpha\right), \quad \alpha = \frac{\rho}{2 - \rho}

    Proof: along steepest descent G, the norm of the gradient, falls by at most :math:`L_0 + L_\rho G^\rho` a unit of
    length and the gap by G, and G has to come to 0 before the gap is used up, so that
    :math:`\int_0^G g\,dg / (L_0 + L_\rho g^\rho) \le \Delta`. If :math:`L_\rho G^\rho \le L_0` the curvature is at most
    :math:`2 L_0`; else the denominator is at most :math:`2 L_\rho G^\rho` and hence
    :math:`G^{2 - \rho} \le 4 L_\rho \Delta`. Assumes f bounded below and the condition on the sublevel set.

    Args:
        exponent: rho, in [0, 2). At 0 the bound of the curvature is constant, and so is the smoothness returned.
        floor: L0, finite and at least 0.
        growth: L_rho, finite and at least 0. Not both are 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from_gradient_norm(exponent=1.0, floor=1.0, growth=0.5)  # (L0, L1)-smoothness; `from_l0_l1` is sharper
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)

    Reference: Liu et al. 2025, Lemma 1, the exponent; the constants and this proof are ours.
    """
    if not 0.0 <= exponent < 2.0:
        raise ValueError(
            f"exponent (rho) must be in [0, 2), got {exponent!r}: from 2 on the curvature has no bound by the gap"
        )
    _check_gradient_constants(floor, growth)
    if exponent == 0.0:
        return from_lipschitz_gradient(floor + growth)
    if growth == 0.0:
        return from_lipschitz_gradient(floor)
    alpha = exponent / (2.0 - exponent)
    return Smoothness(exponent=alpha, floor=2.0 * floor, growth=growth * _power(4.0 * growth, alpha))


def from_l0_l1(*, floor: float, growth: float, slope: float = 2.0) -> Smoothness:
    r"""Return the smoothness of an (L0, L1)-smooth function, with the best floor for its growth.

    .. math:: \|\nabla^2 f\| \le L_0 + L_1 \|\nabla f\| \quad\Rightarrow\quad
        \left(1,\; L_0\, a \ln \tfrac{a}{a - 1},\; a L_1^2\right) \quad\text{for every } a > 1

    Proof: as for `from_gradient_norm`, :math:`\Delta \ge (L_0 / L_1^2) (x - \ln(1 + x))` with
    :math:`x = L_1 G / L_0`, and :math:`1 + x - a (x - \ln(1 + x))` is largest at :math:`x = 1 / (a - 1)`. For a = 2 the
    constants are :math:`1.39 L_0` and :math:`2 L_1^2`, both below those of `from_gradient_norm`. Each floor is the
    least for its growth: a function of one variable with equality in the condition attains it.

    Args:
        floor: L0, finite and at least 0.
        growth: L1, finite and at least 0. Not both are 0.
        slope: a, finite and > 1: towards 1 less growth and more floor, the larger the other way round.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> from_l0_l1(floor=1.0, growth=0.5)
        Smoothness(exponent=1.0, floor=1.3862943611198906, growth=0.5)

    Reference: ours.
    """
    _check_gradient_constants(floor, growth)
    if not 1.0 < slope < math.inf:
        raise ValueError(f"slope (a) must be finite and > 1, got {slope!r}")
    if growth == 0.0:
        return from_lipschitz_gradient(floor)
    least = -slope * math.log1p(-1.0 / slope)
    return Smoothness(exponent=1.0, floor=least * floor, growth=slope * growth * growth)


def scaled(smoothness: Smoothness, factor: float) -> Smoothness:
    r"""Return the smoothness of :math:`a f`: :math:`(\rho,\; a K_0,\; a^{1 - \rho} K_\rho)`.

    Proof: curvature and gap are both multiplied by a.

    Args:
        smoothness: of f.
        factor: a, finite and > 0.

    Raises:
        ValueError: the factor is out of its range, or a constant overflows.

    Example:
        >>> scaled(Smoothness(exponent=0.5, floor=1.0, growth=3.0), 4.0)
        Smoothness(exponent=0.5, floor=4.0, growth=6.0)

    Reference: ours.
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor must be finite and > 0, got {factor!r}")
    return Smoothness(
        exponent=smoothness.exponent,
        floor=factor * smoothness.floor,
        growth=_power(factor, 1.0 - smoothness.exponent) * smoothness.growth,
    )


def composed(smoothness: Smoothness, norm: float) -> Smoothness:
    r"""Return the smoothness of :math:`f(A w + b)`: both constants times :math:`\|A\|^2`.

    Proof: the Hessian is :math:`A^T (\nabla^2 f) A`. The gap is measured from the infimum of f. That of the composition
    is the same if A is surjective; if not it may be higher, and the constants do not hold for gaps measured from there:
    :math:`e^x + e^y` with x = w, y = -w is :math:`2 \cosh w`, at whose minimum the floor 0 would be wrong.
    `raise_infimum` then gives those that do, if the difference of the infima is known.

    Args:
        smoothness: of f.
        norm: spectral norm of A, finite and > 0.

    Raises:
        ValueError: the norm is out of its range, or a constant overflows.

    Example:
        >>> composed(Smoothness(exponent=1.0, floor=2.0, growth=1.0), 3.0)  # 2 (cosh 3 x - 1)
        Smoothness(exponent=1.0, floor=18.0, growth=9.0)

    Reference: ours.
    """
    if not 0.0 < norm < math.inf:
        raise ValueError(f"norm must be finite and > 0, got {norm!r}")
    return Smoothness(
        exponent=smoothness.exponent,
        floor=norm * norm * smoothness.floor,
        growth=norm * norm * smoothness.growth,
    )


def with_exponent(smoothness: Smoothness, exponent: float, *, pivot: float = 1.0) -> Smoothness:
    r"""Return a smoothness with a larger exponent that is implied.

    .. math:: \Delta^\rho \le \left(1 - \tfrac{\rho}{\sigma}\right) \Delta_1^\rho
        + \tfrac{\rho}{\sigma} \Delta_1^{\rho - \sigma} \Delta^\sigma

    Proof: the weighted inequality of arithmetic and geometric means; equality at the pivot :math:`\Delta_1`. A smaller
    exponent is not implied: at large gaps the bound would be lower by any factor. Without growth there is no power of
    the gap, and every exponent is.

    Args:
        smoothness: of the function.
        exponent: sigma, finite and at least rho; without growth > 0.
        pivot: the gap at which the bound does not change, finite and > 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> with_exponent(Smoothness(exponent=0.5, floor=0.0, growth=6.0), 1.0)
        Smoothness(exponent=1.0, floor=3.0, growth=3.0)

    Reference: ours.
    """
    if smoothness.growth == 0.0 and 0.0 < exponent < math.inf:
        _check_pivot(pivot)
        return Smoothness(exponent=exponent, floor=smoothness.floor, growth=0.0)
    if not smoothness.exponent <= exponent < math.inf:
        raise ValueError(
            f"exponent must be finite and at least {smoothness.exponent:g}, got {exponent!r}: "
            "a smaller one is not implied"
        )
    _check_pivot(pivot)
    if exponent == smoothness.exponent:
        return smoothness
    share = smoothness.exponent / exponent
    at_pivot = smoothness.growth * _power(pivot, smoothness.exponent)
    return Smoothness(
        exponent=exponent,
        floor=smoothness.floor + (1.0 - share) * at_pivot,
        growth=share * smoothness.growth * _power(pivot, smoothness.exponent - exponent),
    )


def separable(*smoothnesses: Smoothness, pivot: float = 1.0) -> Smoothness:
    r"""Return the smoothness of a sum of functions of different variables: the largest floor and the largest growth.

    Proof: the curvature is the largest of theirs, and no gap exceeds that of the sum, in which they add up.

    Args:
        smoothnesses: of the functions, at least one; different exponents are brought to the largest, those without
            growth left out.
        pivot: as for `with_exponent`.

    Raises:
        ValueError: there is no smoothness, or the pivot is out of its range.

    Example:
        >>> separable(
        ...     Smoothness(exponent=1.0, floor=2.0, growth=1.0), Smoothness(exponent=1.0, floor=0.0, growth=4.0)
        ... )
        Smoothness(exponent=1.0, floor=2.0, growth=4.0)

    Reference: ours.
    """
    if not smoothnesses:
        raise ValueError("separable needs at least one smoothness")
    exponent = _largest_exponent(*smoothnesses)
    alike = [with_exponent(each, exponent, pivot=pivot) for each in smoothnesses]
    return Smoothness(
        exponent=exponent,
        floor=max(each.floor for each in alike),
        growth=max(each.growth for each in alike),
    )


def added(first: Smoothness, second: Smoothness, *, offset: float = 0.0, pivot: float = 1.0) -> Smoothness:
    r"""Return the smoothness of a sum of two functions of the same variables.

    .. math:: \left(\rho,\; K_0 + K_0' + c\, K \delta^\rho,\; c K\right), \qquad
        K = \left(K_\rho^{\frac{1}{1 - \rho}} + K_\rho'^{\frac{1}{1 - \rho}}\right)^{1 - \rho}
        \text{ for } \rho < 1,\; \max\{K_\rho, K_\rho'\} \text{ for } \rho \ge 1

    with :math:`\delta = \inf(f + g) - \inf f - \inf g \ge 0` and c = 1, or :math:`2^{\rho - 1}` for :math:`\rho > 1`
    and :math:`\delta > 0`. Proof: the two gaps add up to :math:`\Delta + \delta`; K is the largest that
    :math:`K_\rho x^\rho + K_\rho' (1 - x)^\rho` can be (Hölder; at an end for :math:`\rho \ge 1`), and
    :math:`(\Delta + \delta)^\rho \le c (\Delta^\rho + \delta^\rho)`.

    Args:
        first: of f.
        second: of g; different exponents are brought to the larger, one without growth left out.
        offset: delta or an upper bound of it, finite and at least 0, in units of the loss; 0 if f and g have a
            minimiser in common. If it is left out though it is not 0, the constants are wrong.
        pivot: as for `with_exponent`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> left, right = (Smoothness(exponent=1.0, floor=0.0, growth=1.0) for _ in range(2))
        >>> added(left, right, offset=2.0)  # exp(x) and exp(-x), together 2 cosh x
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)

    Reference: ours.
    """
    exponent = _largest_exponent(first, second)
    one, other = (with_exponent(each, exponent, pivot=pivot) for each in (first, second))
    largest = max(one.growth, other.growth)
    if exponent < 1.0 and largest > 0.0:
        power = 1.0 / (1.0 - exponent)
        # Scaled by the larger, or the power overflows for exponents near 1.
        sums = (one.growth / largest) ** power + (other.growth / largest) ** power
        largest *= sums ** (1.0 - exponent)
    together = Smoothness(exponent=exponent, floor=one.floor + other.floor, growth=largest)
    return raise_infimum(together, offset)


def lower_infimum(smoothness: Smoothness, by: float) -> Smoothness:
    r"""Return the smoothness for gaps measured from a value below the one they were measured from: the same.

    Proof: all gaps grow, and the bound with them. So a lower bound of the infimum, such as 0, may stand for it; the
    steps that follow are shorter than need be.

    Args:
        smoothness: for gaps measured from some :math:`f^*`.
        by: how much lower, finite and at least 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> lower_infimum(Smoothness(exponent=1.0, floor=2.0, growth=1.0), 0.5)
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)

    Reference: ours.
    """
    _check_distance("by", by)
    return smoothness


def raise_infimum(smoothness: Smoothness, by: float) -> Smoothness:
    r"""Return the smoothness for gaps measured from a value above the one they were measured from.

    .. math:: \left(\rho,\; K_0 + c\,K_\rho \delta^\rho,\; c\,K_\rho\right), \qquad
        c = 1 \text{ for } \rho \le 1 \text{ or } \delta = 0, \text{ else } 2^{\rho - 1}

    Proof: the old gap is the new one plus delta, and
    :math:`(\Delta + \delta)^\rho \le c (\Delta^\rho + \delta^\rho)`. The old constants need not hold any more, and
    without a bound of the difference nothing can be said. The value has to be a lower bound of the function still.

    Args:
        smoothness: for gaps measured from some lower bound of the function.
        by: delta, how much higher, or more; finite and at least 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> raise_infimum(Smoothness(exponent=1.0, floor=0.0, growth=1.0), 2.0)  # 2 cosh x, from 0 and from 2
        Smoothness(exponent=1.0, floor=2.0, growth=1.0)

    Reference: ours.
    """
    _check_distance("by", by)
    if by == 0.0:
        return smoothness
    growth = smoothness.growth * _power(2.0, max(smoothness.exponent - 1.0, 0.0))
    return Smoothness(
        exponent=smoothness.exponent,
        floor=smoothness.floor + growth * _power(by, smoothness.exponent),
        growth=growth,
    )


def _power(base: float, exponent: float) -> float:
    """Return a power; inf where it overflows, which `Smoothness` refuses."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _largest_exponent(*smoothnesses: Smoothness) -> float:
    """Return the largest exponent of those that have a growth; of all if none has."""
    growing = [each.exponent for each in smoothnesses if each.growth > 0.0]
    return max(growing or [each.exponent for each in smoothnesses])


def _check_pivot(pivot: float) -> None:
    if not 0.0 < pivot < math.inf:
        raise ValueError(f"pivot must be finite and > 0, got {pivot!r}")


def _check_distance(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")


def _check_gradient_constants(floor: float, growth: float) -> None:
    for name, symbol, value in (("floor", "L0", floor), ("growth", "L_rho", growth)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} ({symbol}) must be finite and >= 0, got {value!r}")
    if floor == growth == 0.0:
        raise ValueError("floor (L0) and growth (L_rho) are both 0: only a linear function has no curvature")
