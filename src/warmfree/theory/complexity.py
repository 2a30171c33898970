r"""How many steps a descent needs at most with the warmup step, and at least with steps that do not grow.

All of it is ours; the proofs stand in `docs/theory.md`, in short in the docstrings.
"""

import math

from warmfree.theory.smoothness import Smoothness

__all__ = ["non_increasing_lower_bound", "steps_bound", "warmup_upper_bound"]


def steps_bound(
    smoothness: Smoothness,
    initial_gap: float,
    target: float,
    *,
    pl: float | None = None,
    distance: float | None = None,
    safety: float = 0.5,
) -> float:
    r"""Return a number of steps within which gradient descent with the warmup step comes to a gap.

    While the gap is in :math:`(D/2, D]` the step is at least that at D, :math:`\eta_D = c / \max\{K_0, 3^\rho K_\rho
    D^\rho\}`, and a step lowers the gap by at least :math:`\kappa \eta / 2` times the squared gradient, with
    :math:`\kappa = \min\{1, 2 - c (1 + 3^{-\rho})\}`, which is 1 for c = 1/2. So the gap is halved within

    .. math:: \lceil \ln 2 / {-\ln(1 - \kappa \mu \eta_D)} \rceil \quad (\mathrm{PL}), \qquad
        \lceil 2 R^2 / (\kappa \eta_D D) \rceil \quad (\text{convex})

    steps, and the bound is the sum over :math:`D = \Delta_0, \Delta_0 / 2, \dots`, of which the last ends at the
    target. With :math:`D_1 = (K_0 / K_\rho)^{1/\rho} / 3`, below which the step is constant, it grows (c = 1/2, for a
    target below it) as

    .. math::
        \text{PL:}\quad & \tfrac{2}{\mu} \left( K_0 \ln \tfrac{D_1}{\epsilon}
            + \tfrac{\ln 2}{1 - 2^{-\rho}}\, 3^\rho K_\rho \Delta_0^\rho \right) \\
        \text{convex:}\quad & 4 R^2 \left( \tfrac{K_0}{\epsilon} + 3^\rho K_\rho\, s \right), \quad
            s = \begin{cases}
                D_1^{\rho - 1} / (1 - 2^{\rho - 1}) & \rho < 1 \\
                \log_2 (\Delta_0 / D_1) & \rho = 1 \\
                \Delta_0^{\rho - 1} / (1 - 2^{1 - \rho}) & \rho > 1
            \end{cases}

    where a constant step has the order :math:`(K_0 + K_\rho \Delta_0^\rho) R^2 / \epsilon`: for convex functions a
    large first gap costs a warmup nothing for :math:`\rho < 1`, its logarithm for 1, and else less by the factor
    :math:`\epsilon / \Delta_0`.

    Args:
        smoothness: of the function on the sublevel set of the start.
        initial_gap: :math:`\Delta_0`, finite and > 0.
        target: :math:`\epsilon`, finite and > 0.
        pl: mu of Polyak and Lojasiewicz on that set, in (0, K0]; more than K0 no function has.
        distance: R of the start to a minimiser, finite and > 0, for a convex function.
        safety: c, > 0 and below :math:`2 / (1 + 3^{-\rho})`, from where the step need not descend.

    Returns:
        The number of steps, 0 if the target is reached at the start. If both `pl` and `distance` are given, each
        interval takes the smaller of its two numbers.

    Raises:
        ValueError: a number is out of its range, or neither `pl` nor `distance` is given.

    Example:
        >>> cosh = Smoothness(exponent=1.0, floor=2.0, growth=1.0)
        >>> [steps_bound(cosh, gap, 1e-6, distance=9.0, pl=1.0) for gap in (3e3, 6e3)]  # 972 more if it doubles
        [5502.0, 6474.0]

    Reference: ours; that the number is a sum over the gap is the reading of Liu et al. 2025.
    """
    _check_positive(initial_gap=initial_gap, target=target, safety=safety)
    if pl is None and distance is None:
        raise ValueError(
            "give pl (Polyak-Lojasiewicz), distance (to a minimiser of a convex function), or both"
        )
    if pl is not None:
        _check_positive(pl=pl)
        if pl > smoothness.floor * (1.0 + 1e-9):
            raise ValueError(
                f"pl must be at most the smoothness's floor, {smoothness.floor:g}, got {pl!r}: towards the infimum "
                "mu comes to no more than the curvature"
            )
    if distance is not None:
        _check_positive(distance=distance)
    product = safety * (1.0 + 3.0**-smoothness.exponent)  # the most that eta l(gap) can be
    if product >= 2.0:
        raise ValueError(
            f"safety must be below {2.0 * safety / product:g}, got {safety!r}: the step need not descend"
        )
    share = min(1.0, 2.0 - product)
    total, upper = 0.0, initial_gap
    while upper > target:
        lower = max(0.5 * upper, target)
        rate = share * float(smoothness.step(upper, safety=safety))
        counts = []
        if pl is not None:
            counts.append(_steps_linear(upper / lower, pl * rate))
        if distance is not None:
            counts.append(_whole(2.0 * distance * (distance / upper) * ((upper - lower) / lower) / rate))
        total += min(counts)
        upper = lower
    return total


def non_increasing_lower_bound(a: float, mu: float, target: float, *, drop: float = 1.0) -> float:
    r"""Return a number of steps that gradient descent needs on the cosh bowl if its learning rate does not grow.

    .. math:: f(x, y) = 2 (\cosh x - 1) + \tfrac{\mu}{2} y^2, \quad w_0 = (a, 1): \qquad
        T \ge \frac{\ln(\mu / 2 \epsilon)}{-2 \ln(1 - \mu \bar\eta)}, \quad \bar\eta = \sigma \frac{a}{\sinh a}

    where :math:`\sigma \ge 1` solves :math:`\sinh((2 \sigma - 1) a) = (2 \sigma - 1)\, q \sinh a`, 1 for q = 1. For

    - q = 1: all constant learning rates, and all that do not grow and start with :math:`\eta_0 \le a / \sinh a`, whose
      first step, that is, throws x no further out than it was;
    - any q: all that do not grow and fall by no more than the factor q from one step to the next. A step drop to a half
      has q = 2, :math:`1 / (1 + t / k)` has :math:`1 + 1/k`.

    For no q it holds for schedules that throw x further out and then fall by more than q at once: with
    :math:`\eta_0 = 1 / \mu` and :math:`\eta_1 = x_1 / (2 \sinh x_1)` two steps reach the minimum.

    Proof. With :math:`h(x) = x / \sinh x`, which falls with :math:`|x|`, and :math:`s_t = \eta_t / h(x_t)` a step
    takes :math:`|x|` to :math:`|1 - 2 s_t| |x|`: further out as long as :math:`s_t > 1`. For a target below :math:`2
    (\cosh a - 1)` x has to come back, so some :math:`s_m \le 1`; take the first. Before it :math:`|x_t| \ge a` and
    :math:`s_{t+1} \ge (s_t / q) F_{|x_t|}(s_t)`, with :math:`F_b(s) = h(b) / h((2 s - 1) b)`, which grows with s and
    b; and :math:`F_a(\sigma) = q`. If :math:`s_{t+1} \le \sigma` then :math:`s_t F_a(s_t) \le q \sigma = \sigma
    F_a(\sigma)`, so :math:`s_t \le \sigma` as well: back to :math:`\eta_0 \le \sigma h(a)`. No later learning rate is
    larger, :math:`y_T \ge (1 - \mu \bar\eta)^T`, and the target needs :math:`\tfrac{\mu}{2} y_T^2 \le \epsilon`.

    For :math:`\mu \bar\eta \ge 1` one step may bring y to 0, and for targets of :math:`2 (\cosh a - 1)` or more x may
    stay away: there only 1 is claimed. With q = 1 the former takes :math:`\sinh a \le \mu a`: never for :math:`\mu \le
    1`, and for :math:`\mu \le 2` only below a = 2.18.

    Args:
        a: where x starts, finite and > 0.
        mu: curvature of the parabola, in (0, 2].
        target: :math:`\epsilon`, finite and > 0.
        drop: q, at least 1, finite.

    Returns:
        What the number of steps is not below; 0 if the target is reached at the start.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> [round(non_increasing_lower_bound(a, 1.0, 1e-6), 1) for a in (2.0, 4.0, 6.0, 7.0, 8.0)]
        [8.2, 41.4, 217.3, 510.7, 1219.1]

    Reference: ours.
    """
    _check_bowl(a, mu, target)
    if not 1.0 <= drop < math.inf:
        raise ValueError(
            f"drop must be finite and at least 1, got {drop!r}: the most that a learning rate falls by"
        )
    wall, parabola = _gaps(a, mu)
    if wall + parabola <= target:
        return 0.0
    contraction = mu * _widest(a, drop) * a * math.exp(-_log_sinh(a))
    if contraction >= 1.0 or target >= min(wall, parabola):
        return 1.0
    return max(1.0, math.log(parabola / target) / (-2.0 * math.log1p(-contraction)))


def warmup_upper_bound(a: float, mu: float, target: float, *, safety: float = 0.5) -> float:
    r"""Return a number of steps within which the warmup step comes to a gap on the cosh bowl.

    On :math:`f(x, y) = 2 (\cosh x - 1) + \tfrac{\mu}{2} y^2`, from (a, 1), :math:`\eta = c \min\{1/2, 1/(3 f)\}` takes

    .. math:: T \le \left\lceil \frac{3 (a - \ln 2)^+}{c} \right\rceil + \left\lceil
        \frac{\ln^+(u / \max\{\epsilon, 2/3\})}{-2 \ln \lambda_1} \right\rceil + \left\lceil
        \frac{\ln^+(\min\{u, 2/3\} / \epsilon)}{-2 \ln \lambda_2} \right\rceil

    with :math:`u = (1 + \mu)/2`, :math:`\lambda_1 = 1 - \mu c \min\{1/2, 1/(3 u)\}` and :math:`\lambda_2 = 1 - \mu c /
    2`, both at least :math:`c \sinh(\ln 2) / \ln 2 - 1`: about :math:`3 a / c + \ln(1/\epsilon) / (\mu c)`, while
    `non_increasing_lower_bound` is exponential in a.

    Proof. While :math:`x \ge \ln 2`, a step moves x inwards by at least c/3, because :math:`2 \sinh x - f = 2 (1 -
    e^{-x}) - \mu y^2 / 2 \ge 0` and :math:`\sinh x \ge 1/3`, and by at most :math:`\tfrac{c}{3} \coth \tfrac{x}{2}`,
    so that x stays above :math:`\ln 2 - 1`. From :math:`|x| \le \ln 2` on, :math:`f \le u`, and y shrinks by :math:`1
    - \mu \eta`, x by :math:`1 - 2 \eta \sinh x / x`, in size at most :math:`\max\{1 - 2 \eta, c \sinh(\ln 2) / \ln 2 -
    1\}`. Because :math:`(\cosh x - 1) / x^2` grows with :math:`|x|`, f shrinks by at least the square of the larger
    factor: with the step at u first, with c / 2 below 2/3.

    Args:
        a: where x starts, finite and > 0.
        mu: curvature of the parabola, in (0, 2].
        target: :math:`\epsilon`, finite and > 0.
        safety: c, in (0, 1].

    Returns:
        The number of steps.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> [warmup_upper_bound(a, 1.0, 1e-6) for a in (2.0, 4.0, 6.0, 7.0, 8.0)]  # it takes 28, 38, 50, 56, 62
        [34.0, 46.0, 58.0, 64.0, 70.0]

    Reference: ours.
    """
    _check_bowl(a, mu, target)
    if not 0.0 < safety <= 1.0:
        raise ValueError(f"safety must be in (0, 1], got {safety!r}")
    if sum(_gaps(a, mu)) <= target:
        return 0.0
    walls = math.ceil(3.0 * max(a - math.log(2.0), 0.0) / safety)
    highest = 0.5 * (1.0 + mu)
    overshoot = safety * 0.75 / math.log(2.0) - 1.0
    above = max(1.0 - mu * safety * min(0.5, 1.0 / (3.0 * highest)), overshoot)
    below = max(1.0 - 0.5 * mu * safety, overshoot)
    bend = _steps_linear(highest / max(target, 2.0 / 3.0), 1.0 - above**2)
    return float(walls + bend + _steps_linear(min(highest, 2.0 / 3.0) / target, 1.0 - below**2))


def _steps_linear(ratio: float, rate: float) -> float:
    """Return in how many steps a number that shrinks by 1 - rate a step shrinks by a ratio; 0 for one of at most 1."""
    if ratio <= 1.0:
        return 0.0
    if rate <= 0.0:
        return math.inf
    return _whole(math.log(ratio) / -math.log1p(-rate)) if rate < 1.0 else 1.0


def _whole(count: float) -> float:
    """Return the next whole number, at least 1."""
    return max(1.0, float(math.ceil(count))) if count < math.inf else math.inf


def _widest(a: float, drop: float) -> float:
    """Return sigma: by what factor over a / sinh a a learning rate can start and come back."""
    lower, upper = 1.0, 1.0 + 0.5 * math.log(2.0 * drop) / a
    while _outward(upper, a) < math.log(drop):
        upper *= 2.0
    for _ in range(200):
        middle = 0.5 * (lower + upper)
        lower, upper = (middle, upper) if _outward(middle, a) < math.log(drop) else (lower, middle)
    return upper


def _outward(sigma: float, a: float) -> float:
    """Return ln of F_a(sigma) = h(a) / h((2 sigma - 1) a)."""
    stretch = 2.0 * sigma - 1.0
    return _log_sinh(stretch * a) - math.log(stretch) - _log_sinh(a)


def _log_sinh(x: float) -> float:
    return x + math.log(-math.expm1(-2.0 * x)) - math.log(2.0)


def _gaps(a: float, mu: float) -> tuple[float, float]:
    """Return what the wall and the parabola have of the gap at (a, 1)."""
    return (4.0 * math.sinh(0.5 * a) ** 2 if a < 700.0 else math.inf), 0.5 * mu


def _check_bowl(a: float, mu: float, target: float) -> None:
    _check_positive(a=a, target=target)
    if not 0.0 < mu <= 2.0:
        raise ValueError(
            f"mu must be in (0, 2], got {mu!r}: above 2 the constants of the smoothness do not hold"
        )


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be finite and > 0, got {value!r}")
