r"""Signal-to-noise ratio of gradients and critical batch size, from the momentum that an optimizer keeps anyway.

With per-sample gradients of mean G and covariance :math:`\Sigma`, the signal is :math:`\|G\|^2`, the noise
:math:`\mathrm{tr}\,\Sigma`, the signal-to-noise ratio :math:`\varphi = \|G\|^2/\mathrm{tr}\,\Sigma`, and the critical
batch size :math:`1/\varphi` samples. Both parts are estimated without bias, averaged over measurements, and divided
last: the mean of ratios would not be the ratio. `warmfree.measure.microbatches` has another estimator of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.measure.momentum import coupled_decay, momentum_of, unwrapped
from warmfree.measure.real import as_real
from warmfree.measure.sums import whole_sums
from warmfree.optim.norms import compute_dtype, scalar_dtype
from warmfree.optim.sharding import local, local_gradient

__all__ = ["GradientNoise", "MomentumNoise", "NoiseAverages", "split_noise"]


@dataclass(frozen=True, slots=True)
class GradientNoise:
    r"""Signal and noise of per-sample gradients.

    Attributes:
        signal: estimate of :math:`\|G\|^2`; without bias, hence sometimes below 0 where the noise prevails.
        noise: estimate of :math:`\mathrm{tr}\,\Sigma`, per sample.

    Example:
        >>> GradientNoise(signal=2.0, noise=100.0).critical_batch
        50.0
        >>> GradientNoise(signal=-0.1, noise=100.0).snr
        0.0
    """

    signal: float
    noise: float

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio phi per sample, in [0, inf]; nan where there is neither."""
        signal, noise = max(self.signal, 0.0), max(self.noise, 0.0)
        if noise == 0:
            return math.inf if signal > 0 else math.nan
        return signal / noise

    @property
    def critical_batch(self) -> float:
        """The batch size, in samples, whose gradient is half signal: 1/phi, in [0, inf]."""
        snr = self.snr
        return 1 / snr if snr else math.inf


class NoiseAverages:
    r"""Exponential averages of signal and noise over measurements, corrected for their start at zero.

    Args:
        smoothing: constant of the averages, in [0, 1): about 1/(1 - smoothing) measurements count; 0 for the last
            alone. The default is our choice.

    Example:
        >>> averages = NoiseAverages(smoothing=0.5)
        >>> _ = averages.add({"weight": (1.0, 8.0), "bias": (0.5, 1.0)})
        >>> averages.add({"weight": (4.0, 8.0)})["weight"]
        GradientNoise(signal=3.0, noise=8.0)
    """

    def __init__(self, *, smoothing: float = 0.9) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self._smoothing = smoothing
        self._sums: dict[str, tuple[float, float, float]] = {}

    def add(self, measured: Mapping[str, tuple[float, float]]) -> dict[str, GradientNoise]:
        """Take in one measurement.

        Args:
            measured: signal and noise by parameter name. What is not finite is left out of the averages.

        Returns:
            The averages of the parameters measured now, and under the name "" their sum: the whole gradient's. Empty if
            nothing was measured.
        """
        keep, found = self._smoothing, dict[str, GradientNoise]()
        for name, (signal, noise) in measured.items():
            if not (math.isfinite(signal) and math.isfinite(noise)):
                continue
            old_signal, old_noise, weight = self._sums.get(name, (0.0, 0.0, 0.0))
            self._sums[name] = (
                keep * old_signal + (1 - keep) * signal,
                keep * old_noise + (1 - keep) * noise,
                keep * weight + (1 - keep),
            )
            signal, noise, weight = self._sums[name]
            found[name] = GradientNoise(signal / weight, noise / weight)
        if found:
            found[""] = GradientNoise(
                math.fsum(one.signal for one in found.values()),
                math.fsum(one.noise for one in found.values()),
            )
        return found


def split_noise(*, mean_square: float, product: float, square: float, overlap: float) -> tuple[float, float]:
    r"""Split a gradient into signal and noise, given an independent average m of earlier gradients.

    g has mean G and variance T; m, an average that does not hold g, has mean G and variance :math:`\rho T`. Hence

    .. math::  T = \frac{\|g-m\|^2}{1+\rho}, \qquad
               \|G\|^2 = \left\|\frac{m+\rho g}{1+\rho}\right\|^2 - \frac{\rho}{1+\rho}T .

    Args:
        mean_square: :math:`\|m\|^2`.
        product: :math:`\langle m, g\rangle`.
        square: :math:`\|g\|^2`.
        overlap: :math:`\rho`, in (0, 1]: the sum of squares of the weights with which m averages gradients.

    Returns:
        Signal and noise of a batch's gradient, both without bias.

    Example:
        >>> split_noise(mean_square=4.0, product=4.0, square=4.0, overlap=0.5)
        (4.0, 0.0)

    Reference: derived; our choice. Kosson et al. 2024 measure the signal-to-noise ratio, their formula was not found.
    Of all estimators without bias it has the smallest variance for Gaussian isotropic noise, since the pooled mean
    and the difference g - m are sufficient. :math:`\langle m,g\rangle` alone has 5 times (b = .9) to 25 times (.98) its
    variance at small phi; :math:`(r-\rho)/(1-r)` from norms alone, with an m that holds g, has twice its variance at
    phi_B = 1, and neither estimate at rho = 1. That formula and this one agree on average.
    """
    noise = (mean_square + square - 2 * product) / (1 + overlap)
    pooled = (mean_square + 2 * overlap * product + overlap**2 * square) / (1 + overlap) ** 2
    return pooled - overlap / (1 + overlap) * noise, noise


class MomentumNoise:
    r"""Gradient noise from an optimizer's momentum, measured before its step.

    At that moment the gradient is the new one and the momentum holds the earlier ones, so that they are independent
    while the mean gradient hardly changes over the 1/(1-b) steps that the momentum remembers; `split_noise` has the
    formula. With k gradients in an exponential average, :math:`\rho = \frac{(1-b)(1+b^k)}{(1+b)(1-b^k)}`; it is that of
    the optimizer's own average, however rarely measurements are made.

    It knows the momentum of Adam and its relatives (`exp_avg` with `betas`), of Lion, of torch's SGD (a sum, with
    dampening) and Muon, and of warmfree's optimizers, wrapped ones included. An L2 term that an optimizer adds to its
    gradients is taken out again. Parameters without a gradient or without a known momentum are left out, at their
    first step among them: one gradient tells nothing of its noise.

    Where the weights move fast the mean gradient does turn within the momentum's memory, and the estimate is then low:
    it is the part of the signal that persists. On the lab's GPT (60 steps in, b = .9, whole gradient) mean gradients 9
    steps apart had a cosine of 0.99 at lr 1e-5, 0.32 at 5e-4 and -0.41 at 2e-3, and the signal found was right, near 0
    and 0. `warmfree.measure.microbatches` compares gradients at the same weights and does not depend on this.

    Gradients have to be the ones that the step will see: after `GradScaler.unscale_`, averaged over ranks, and clipped
    if they are: what is then measured is the noise of clipped gradients.

    Args:
        batch_size: samples in the batch of one optimizer step, over all micro-batches and ranks, > 0. What is called a
            sample (a sequence, a token) is what the critical batch size is counted in.
        smoothing: constant of the averages over measurements, see `NoiseAverages`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(50, 50))
        >>> optimizer, noise = torch.optim.AdamW([weight]), MomentumNoise(batch_size=8)
        >>> for _ in range(40):
        ...     weight.grad = 0.5 + torch.randn(50, 50)
        ...     found = noise.measure(optimizer, [("weight", weight)])
        ...     optimizer.step()
        >>> 28 < found["weight"].critical_batch < 36  # phi is 0.5^2 for a batch, 0.5^2 / 8 for a sample
        True

    Reference: Kosson et al. 2024, section on the signal-to-noise ratio, for the aim; McCandlish et al. 2018 for the
    critical batch size.
    """

    def __init__(self, *, batch_size: float, smoothing: float = 0.9) -> None:
        if not 0 < batch_size < math.inf:
            raise ValueError(f"batch_size must be a number of samples > 0, got {batch_size}")
        self._batch_size = batch_size
        self._averages = NoiseAverages(smoothing=smoothing)

    @torch.no_grad()
    def measure(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        steps: int | None = None,
    ) -> dict[str, GradientNoise]:
        """Measure the gradients that are in place now. Call it before `optimizer.step()`.

        Args:
            optimizer: its momentum is read, nothing is changed.
            named_parameters: pairs of name and parameter.
            steps: steps that the optimizer has made, for those that do not count them (SGD, Lion, Muon); None if they
                are many more than 1/(1-b).

        Returns:
            Signal and noise per sample by name, and of the whole gradient under ""; see `NoiseAverages.add`.
        """
        pairs = _pairs(optimizer, list(named_parameters), steps)
        if not pairs:
            return {}
        sums = whole_sums([pair.sums() for pair in pairs], [pair.parameter for pair in pairs])
        measured = {}
        for pair, (mean_square, product, square) in zip(pairs, sums, strict=True):
            signal, noise = split_noise(
                mean_square=mean_square, product=product, square=square, overlap=pair.overlap
            )
            measured[pair.name] = signal, noise * self._batch_size
        return self._averages.add(measured)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A parameter's gradient, its independent average, and the variance of the one by that of the other."""

    name: str
    parameter: Tensor
    gradient: Tensor
    mean: Tensor
    scale: float
    overlap: float

    def sums(self) -> Tensor:
        """Return |m|^2, <m,g> and |g|^2 over the elements that are here."""
        mean, gradient = self.mean.reshape(-1), self.gradient.to(self.mean.dtype).reshape(-1)
        sums = torch.stack([torch.dot(mean, mean), torch.dot(mean, gradient), torch.dot(gradient, gradient)])
        sums = sums.to(scalar_dtype(sums.device))
        return sums * sums.new_tensor([self.scale**2, self.scale, 1.0])


def _pairs(optimizer: Optimizer, named: Sequence[tuple[str, Tensor]], steps: int | None) -> list[_Pair]:
    inner = unwrapped(optimizer)
    groups = {parameter: group for group in inner.param_groups for parameter in group["params"]}
    found = []
    for name, parameter in named:
        if parameter.grad is None or parameter.grad.is_sparse or parameter not in groups:
            continue
        group, state = groups[parameter], inner.state.get(parameter, {})
        momentum = momentum_of(inner, group, state)
        count = float(state["step"]) if "step" in state else math.inf if steps is None else steps
        if momentum is None or count < 1:
            continue
        total, squares = momentum.weights(count)
        scale = (-1.0 if group.get("maximize") else 1.0) / total
        tensor = as_real(local(momentum.tensor))
        mean = tensor.to(compute_dtype(tensor))
        if decay := coupled_decay(inner, group):
            # The weights hardly change while the momentum remembers, so that the term is the same in all gradients.
            weight = as_real(local(parameter.detach())).to(mean.dtype)
            mean, scale = mean * scale - decay * weight, 1.0
        gradient = as_real(local_gradient(parameter))
        found.append(_Pair(name, parameter, gradient, mean, scale, squares / total**2))
    return found
