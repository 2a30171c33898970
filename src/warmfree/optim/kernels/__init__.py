"""Steps of Adam and Lion on the CPU, compiled for this machine: each in as few passes over memory as it can be made in.

The C++ is built by `torch.utils.cpp_extension` at the first use and kept in its cache; a C++ compiler and ninja must
be there. All functions work in place on contiguous float32 tensors on the CPU with the output neurons first, on
torch's own threads. What they compute is what the optimizers of this package compute without them.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

# Nothing that lets the compiler assume finite numbers or flush small ones to zero: -ffast-math would do the latter to
# the whole process.
_FLAGS = ["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"]
_X86_FLAGS = ["-march=native", "-mprefer-vector-width=512"]
_ARM_FLAGS = ["-mcpu=native"]

_lock = threading.Lock()
_module: Any = None
_failure: str | None = None


def _processor() -> str:
    """Name of the instruction set: a cache on a shared disk must not serve code that was built for another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return " ".join([platform.machine(), platform.processor(), *sorted(kinds)])


def load() -> Any:
    """Return the compiled module; the first call of a process builds it, or finds it in torch's extension cache.

    Raises:
        RuntimeError: it cannot be built here; says what is missing. Later calls say so at once.
    """
    global _module, _failure
    with _lock:
        if _module is None and _failure is None:
            try:
                _module = _build()
            except (RuntimeError, OSError, ImportError) as error:
                _failure = (
                    "the fused CPU kernels could not be built. They need a C++ compiler (g++ or clang++) and ninja: "
                    f"pip install warmfree[fused]. The build said: {error}"
                )
        if _failure is not None:
            raise RuntimeError(_failure)
        return _module


def _build() -> Any:
    here = Path(__file__).parent
    machine = platform.machine().lower()
    native = _X86_FLAGS if machine in ("x86_64", "amd64") else _ARM_FLAGS
    sources = sorted(path for path in here.iterdir() if path.suffix in (".cpp", ".h"))
    text = "\n".join(
        [torch.__version__, _processor(), *_FLAGS, *native, *(path.read_text() for path in sources)]
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return cpp_extension.load(
        name=f"warmfree_cpu_{digest}",
        sources=[str(here / "cpu.cpp")],
        extra_cflags=[*_FLAGS, *native],
    )


def takes(parameter: Tensor, gradient: Tensor, *state: Tensor) -> bool:
    """Whether the kernels can step a parameter: all dense float32 on the CPU, contiguous, of one shape, not empty.

    Example:
        >>> takes(torch.zeros(2, 3), torch.zeros(2, 3)), takes(torch.zeros(2, 3), torch.zeros(3, 2).T)
        (True, False)
    """
    fitting: bool = load().takes((parameter, gradient, *state))
    return fitting


def square_sums(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor, float64; inf where a square is no float32, NaN where one is NaN."""
    sums: Tensor = load().square_sums(tensors)
    return sums


def adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    corrections: Sequence[float],
    roots: Sequence[float],
    maximize: bool = False,
) -> None:
    r"""AdamW: :math:`w \leftarrow (1 - \mathrm{lr}\,\lambda)w - (\mathrm{lr}/c)\,m/(\sqrt v/r + \epsilon)`.

    Args:
        params: tensors of any shape.
        grads: their gradients.
        exp_avgs: first moments m, updated.
        exp_avg_sqs: second moments v, updated.
        lr: learning rate.
        weight_decay: decoupled.
        beta1: decay of m.
        beta2: decay of v.
        eps: at least 0; where the denominator is 0 there is no update.
        corrections: c of each tensor, 1 - beta1^t, or 1 for AdamD.
        roots: r of each tensor, sqrt(1 - beta2^t).
        maximize: go up instead of down.
    """
    load().adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        lr,
        weight_decay,
        beta1,
        beta2,
        eps,
        corrections,
        roots,
        maximize,
    )


def lion(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    maximize: bool = False,
) -> None:
    """LionA, as `directions.lion_update`: w <- (1 - lr wd) w - lr kappa sign(c), and m is updated."""
    load().lion(params, grads, exp_avgs, lr, weight_decay, momentum, nesterov, maximize)


def adam_spectral(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    weight_vectors: Sequence[Tensor],
    update_vectors: Sequence[Tensor],
    random_vectors: Sequence[Tensor],
    *,
    heights: Sequence[Sequence[int]],
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    corrections: Sequence[float],
    roots: Sequence[float],
    tau: float,
    floor_unit: float,
    power_iterations: int,
    maximize: bool = False,
) -> Tensor:
    """AdamW with every section's step bounded as by `SpectralBound`, for steps after the first.

    The first power iteration is made while the moments are, from last step's vector, the random one and W's top
    direction; another while the weights are written, where four times the first estimate would be bounded; more than
    two take a pass each. A factor that the last iteration would change by less than 0.2 % is kept.

    Args:
        params: tensors of at least two dimensions; the first counts the rows.
        grads: their gradients.
        exp_avgs: first moments, updated.
        exp_avg_sqs: second moments, updated.
        weight_vectors: of shape (sections, columns), updated: unit right vectors of the weight's sections.
        update_vectors: likewise of the update; their length is sigma_1(U)/max(sigma_1(W), floor), by which the next
            step knows whether the bound is far. 1 means unknown.
        random_vectors: of shape (columns,), unit vectors.
        heights: number of rows of each section of each tensor.
        lr: learning rate.
        weight_decay: decoupled, multiplied by the shortened step.
        beta1: see `adam`.
        beta2: see `adam`.
        eps: see `adam`.
        corrections: see `adam`.
        roots: see `adam`.
        tau: largest relative growth of sigma_1 in a step.
        floor_unit: the floor of sigma_1(W) in units of sqrt(rows) + sqrt(columns).
        power_iterations: at most so many, at least 1.
        maximize: go up instead of down.

    Returns:
        float64 of shape (tensors, 3): the largest sigma_1 of the weight's and of the update's sections, and the mean
        factor.
    """
    report: Tensor = load().adam_spectral(
        params, grads, exp_avgs, exp_avg_sqs, weight_vectors, update_vectors, random_vectors, heights,
        lr, weight_decay, beta1, beta2, eps, corrections, roots, tau, floor_unit, power_iterations, maximize,
    )  # fmt: skip
    return report


def adam_angular(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    kept_norms: Sequence[Tensor],
    update_norm_sqs: Sequence[Tensor],
    *,
    lr: float,
    angles: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    corrections: Sequence[float],
    roots: Sequence[float],
    update_norm_decay: float,
    average_corrections: Sequence[float],
    rotational_eps: float,
    maximize: bool = False,
) -> Tensor:
    """Adam with every row turned as by `AngularControl`, for rotations after the first.

    Args:
        params: tensors of at least two dimensions; the first counts the rows.
        grads: their gradients.
        exp_avgs: first moments, updated.
        exp_avg_sqs: second moments, updated.
        kept_norms: one number a row, 0 for a row that does not rotate yet; updated where one begins to.
        update_norm_sqs: one number a row, the average squared norm of its update; updated.
        lr: learning rate of rows that do not rotate; they have no decay.
        angles: of each tensor, its correction included, in radians.
        beta1: see `adam`.
        beta2: see `adam`.
        eps: see `adam`.
        corrections: see `adam`.
        roots: see `adam`.
        update_norm_decay: constant of the average; 0: the angle is exact at every step.
        average_corrections: 1 - update_norm_decay^turns of each tensor.
        rotational_eps: added to the norm that an update is divided by.
        maximize: go up instead of down.

    Returns:
        float64 of shape (tensors,): the mean angle of the rows that rotate, in radians.
    """
    report: Tensor = load().adam_angular(
        params, grads, exp_avgs, exp_avg_sqs, kept_norms, update_norm_sqs, lr, angles, beta1, beta2, eps,
        corrections, roots, update_norm_decay, average_corrections, rotational_eps, maximize,
    )  # fmt: skip
    return report


def lion_angular(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    kept_norms: Sequence[Tensor],
    update_norm_sqs: Sequence[Tensor],
    *,
    lr: float,
    angles: Sequence[float],
    momentum: float,
    nesterov: bool,
    update_norm_decay: float,
    average_corrections: Sequence[float],
    rotational_eps: float,
    maximize: bool = False,
) -> Tensor:
    """Lion with every row turned as by `AngularControl`; the rest is as in `adam_angular`."""
    report: Tensor = load().lion_angular(
        params, grads, exp_avgs, kept_norms, update_norm_sqs, lr, angles, momentum, nesterov,
        update_norm_decay, average_corrections, rotational_eps, maximize,
    )  # fmt: skip
    return report
