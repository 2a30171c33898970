r"""White-noise gradients: how large updates are at each step, and the rotation and norm at which weights settle.

Under weight decay a weight's norm grows by the random walk of its updates until decay takes back what they add.
From then on a step turns it by an angle that depends on the optimizer's options alone. That is so for the whole tensor
and for each of its neurons alike.
"""

import math

__all__ = ["adam_update_rms", "adamw_angle", "lion_angle", "sgd_angle", "sign_displacement", "walk_norm"]


def adamw_angle(*, lr: float, weight_decay: float, beta1: float) -> float:
    r"""Angle a step at which AdamW settles: :math:`\sqrt{2\,\mathrm{lr}\,\lambda\,(1-\beta_1)/(1+\beta_1)}`.

    It holds for every update that averages gradients by b = beta1 with weights that sum to one, of whatever scale.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay, multiplied by the learning rate; lr * weight_decay << 1 - beta2.
        beta1: decay of the first moment, in [0, 1).

    Returns:
        Radians.

    Example:
        >>> round(adamw_angle(lr=1e-3, weight_decay=0.1, beta1=0.9), 6)
        0.003244

    Reference: Kosson et al. 2023, arXiv 2305.17212 (rotational equilibrium).
    """
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))


def sgd_angle(
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
) -> float:
    r"""Angle a step at which SGD settles: :math:`\sqrt{2\,\mathrm{lr}\,\lambda/(1+a)}` for :math:`m \leftarrow am + g`.

    With Nesterov momentum it is :math:`\sqrt{2\,\mathrm{lr}\,\lambda\,(1-a)\left[(1+a)^2 + a^4/(1-a^2)\right]}`.
    Decay that does not pass through the momentum (`decoupled`) is weaker by 1 - a; dampening scales the learning rate.

    Args:
        lr: learning rate, >= 0.
        weight_decay: added to the gradient times the weight (L2), or decoupled; >= 0.
        momentum: a in [0, 1).
        dampening: of what enters the momentum, in [0, 1); 0 without momentum.
        nesterov: step by g + a*m.
        decoupled: subtract lr * weight_decay * w apart from the momentum.

    Returns:
        Radians.

    Example:
        >>> round(sgd_angle(lr=0.1, weight_decay=5e-4, momentum=0.9), 6)
        0.007255

    Reference: Kosson et al. 2023, arXiv 2305.17212 (SGDM); Nesterov, dampening and decoupled decay are derived.
    """
    power = 1 / (1 - momentum**2)
    if nesterov:
        power = (1 + momentum) ** 2 + momentum**4 / (1 - momentum**2)
    # What a step adds to |w|^2 is lr^2 power, its walk that over (1 - a)^2 power; L2 decay takes lr wd / (1 - a).
    rate = lr * weight_decay if decoupled else lr * (1 - dampening) * weight_decay / (1 - momentum)
    return math.sqrt(2 * rate * power) * (1 - momentum)


def sign_displacement(*, betas: tuple[float, float]) -> float:
    r"""How much farther the squared walk of a sign-optimizer leads than that of independent steps of the same size.

    .. math::  D = 1 + 2 \sum_{k \ge 1} \tfrac{2}{\pi} \arcsin c_k

    with the autocorrelation c_k of :math:`\beta_1 m + (1-\beta_1) g` in Lion, m being averaged by beta2. LionA with
    momentum b is Lion with betas (b^2, b) if Nesterov, else (b, b).

    Args:
        betas: Lion's, each in [0, 1).

    Example:
        >>> round(sign_displacement(betas=(0.9, 0.9)), 2), sign_displacement(betas=(0.0, 0.0))
        (13.28, 1.0)

    Reference: derived (arcsine law of Gaussian signs). Linearised it is Bussgang's :math:`D = 2/(\pi s^2)`,
    :math:`s^2 = (1-\beta_1)^2 + \beta_1^2(1-\beta_2)/(1+\beta_2)`, as Kosson et al. 2023 have it for Lion.
    """
    beta1, beta2 = betas
    power = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    # Gradients have the weights 1-b1, then b1 (1-b2) b2^j: correlations fall by b2 a step from the first.
    correlation = beta1 * (1 - beta2) * (1 - beta1 + beta1 * beta2 / (1 + beta2)) / power
    total = 0.0
    while correlation > 1e-9 * (1 - beta2):
        total += math.asin(min(correlation, 1.0))
        correlation *= beta2
    return 1 + 4 / math.pi * total


def lion_angle(*, lr: float, weight_decay: float, betas: tuple[float, float]) -> float:
    r"""Angle a step at which Lion settles: :math:`\sqrt{2\,\mathrm{lr}\,\lambda/D}`, D of `sign_displacement`.

    The updates' scale does not matter, so it holds for LionA, too.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled, multiplied by lr; lr * weight_decay << 1 - beta2.
        betas: Lion's, each in [0, 1).

    Returns:
        Radians.

    Example:
        >>> round(lion_angle(lr=1e-4, weight_decay=1.0, betas=(0.9, 0.99)), 6)
        0.002087

    Reference: Kosson et al. 2023, arXiv 2305.17212 (Lion, linearised); the arcsine law is derived.
    """
    return math.sqrt(2 * lr * weight_decay / sign_displacement(betas=betas))


def walk_norm(*, lr: float, weight_decay: float, size: int, displacement: float = 1.0) -> float:
    r"""Norm at which weights settle: :math:`\sqrt{\mathrm{lr}\, n\, D/(2\lambda)}`.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled, multiplied by lr; > 0.
        size: number n of elements.
        displacement: what the squared walk of the updates is to that of n independent signs a step; 1 for AdamW,
            `sign_displacement` for Lion, that times the squared update RMS for LionA.

    Example:
        >>> walk_norm(lr=2e-3, weight_decay=0.5, size=2000)
        2.0

    Reference: derived, see Kosson et al. 2023, arXiv 2305.17212.
    """
    return math.sqrt(lr * size * displacement / (2 * weight_decay))


def adam_update_rms(
    step: int,
    *,
    betas: tuple[float, float],
    batch_snr: float = 0.0,
    correct_momentum: bool = True,
    correct_variance: bool = True,
) -> float:
    r"""Root mean square of Adam's update :math:`\hat m/(\sqrt{\hat v}+\epsilon)` at a step.

    .. math::  \sqrt{\frac{\varphi_B + \rho_t}{\varphi_B + 1}}, \qquad
               \rho_t = \frac{(1-\beta_1)(1+\beta_1^t)}{(1+\beta_1)(1-\beta_1^t)}

    for gradients of a constant mean and independent noise: 1 at the first step, 0.229 in the end for beta1 = 0.9 and
    pure noise. Without the momentum's correction it is smaller by 1 - beta1^t, without the variance's larger by
    1/sqrt(1 - beta2^t). Within 5 % for beta2 >= 0.95.

    Args:
        step: t, 1 for the first.
        betas: decay of first and second moments, each in [0, 1).
        batch_snr: phi_B = mean^2/variance of a coordinate of the batch's gradient, >= 0; 0 white noise, inf no noise.
        correct_momentum: divide m by 1 - beta1^t.
        correct_variance: divide v by 1 - beta2^t.

    Example:
        >>> [round(adam_update_rms(step, betas=(0.9, 0.95)), 3) for step in (1, 10, 1000)]
        [1.0, 0.33, 0.229]

    Reference: derived for Kosson et al. 2024, section 3.
    """
    beta1, beta2 = betas
    started = 1 - beta1**step
    noise = (1 - beta1) * (1 + beta1**step) / ((1 + beta1) * started)
    square = 1.0 if math.isinf(batch_snr) else (batch_snr + noise) / (batch_snr + 1)
    if not correct_momentum:
        square *= started**2
    if not correct_variance:
        square /= 1 - beta2**step
    return math.sqrt(square)
