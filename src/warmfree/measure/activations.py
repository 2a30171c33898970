r"""Dead units and the first layer whose output is not finite, seen in one forward pass.

A unit is dead in a batch if its activation function is flat at every token: :math:`|f'(x)|` below a threshold. For
ReLU that is an input that is never positive; a saturated tanh, sigmoid or GELU is dead likewise: no gradient passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from warmfree.measure.hooks import hooked
from warmfree.measure.real import as_real

__all__ = ["ActivationWatch", "watch_activations"]

# Element-wise functions by the names they have in torch, torch.nn.functional and torch.Tensor; a trailing "_" is cut.
_FUNCTIONS = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
        *("hardswish", "hardtanh", "hardsigmoid", "softplus", "tanh", "sigmoid"),
    )
)
# Modules that make an activation of several functions are taken as a whole.
_MODULE_HOMES = ("transformers.activations", "timm.layers.activations")
# The dimension of the features after a layer: the last, or the channels. Others leave it where it was.
_FEATURE_DIMS = {
    **dict.fromkeys(("linear", "addmm", "layer_norm", "rms_norm", "embedding"), -1),
    **dict.fromkeys(("conv1d", "conv_transpose1d"), -2),
    **dict.fromkeys(("conv2d", "conv_transpose2d"), -3),
    **dict.fromkeys(("conv3d", "conv_transpose3d"), -4),
}


@contextmanager
def watch_activations(model: nn.Module, *, flat: float = 1e-3) -> Iterator[ActivationWatch]:
    r"""Watch activation functions and module outputs until exit; the outputs are the same to the last bit.

    Functions are seen wherever the forward pass calls them (`torch.relu`, `F.gelu`, `x.tanh_()`, `nn.SiLU`), and are
    named by the innermost module around them. Activation modules of transformers and timm that are made of several
    functions count as one. The features are the last dimension, or the channels where the last layer was a
    convolution. Several forward passes count as one batch.

    The pass should not record gradients. `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` take their plain
    paths in place of the fused ones, which differ by rounding. What is called inside `F.glu`, inside a kernel of
    another library or in TorchScript is not seen. Under tensor parallelism every process sees the units that it
    computes.

    Args:
        model: the module that will be called; neither compiled nor wrapped by DistributedDataParallel.
        flat: a unit is dead if |f'(x)| < flat at every token, in (0, 1]. The default is our choice: below the slope of
            leaky ReLU (0.01); for GELU it means x < -3.9, for SiLU x < -9.1, for tanh |x| > 4.1.

    Returns:
        Yields what is seen, to be asked during the pass or after it.

    Raises:
        ValueError: flat is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]]))
        >>> with torch.no_grad(), watch_activations(model) as seen:
        ...     outputs = model(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        >>> seen.dead_units(), seen.first_nonfinite()
        ({'1': 0.5}, None)

    Reference: Kosson et al. 2024, appendix on ResNet-20, for dead ReLUs; their extension to smooth functions is ours.
    """
    if not 0 < flat <= 1:
        raise ValueError(f"flat must be a slope in (0, 1], got {flat}")
    watch = ActivationWatch(flat=flat)
    with hooked(dict(model.named_modules()), watch._register), watch._mode:
        yield watch


class ActivationWatch:
    """What `watch_activations` saw."""

    def __init__(self, *, flat: float) -> None:
        self._flat = flat
        self._mode = _Interceptor(self)
        self._around: list[str] = []  # names of the modules that are running, innermost last
        self._whole = 0  # activation modules that are running and have been taken as a whole
        self._feature_dim = -1
        self._calls: dict[str, int] = {}
        self._dead: dict[tuple[str, int], Tensor] = {}
        self._flags: list[tuple[str, Tensor]] = []

    def dead_units(self) -> dict[str, float]:
        """Return the fraction of dead units by the module that holds the activation, over all its calls in a pass."""
        counts: dict[str, list[Tensor]] = {}
        for (name, _), dead in self._dead.items():
            counts.setdefault(name, []).append(dead)
        return {name: torch.cat(dead).double().mean().item() for name, dead in counts.items()}

    def first_nonfinite(self) -> str | None:
        """Return the first module to end with inf or nan in its output, None if all were finite."""
        if not self._flags:
            return None
        device = self._flags[0][1].device
        flags = torch.stack(
            [flag.to(device, torch.float32) for _, flag in self._flags]
        ).tolist()  # one transfer
        return next((name for (name, _), flag in zip(self._flags, flags, strict=True) if flag != 0), None)

    def _register(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
        yield module.register_forward_hook(self._leaving(name), always_call=True)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if not self._around:
                self._calls, self._feature_dim, self._whole = {}, -1, 0
            self._around.append(name)
            if type(module).__module__.startswith(_MODULE_HOMES):
                if inputs and isinstance(inputs[0], Tensor):
                    self.note(inputs[0], lambda x: module.forward(x, *inputs[1:], **keywords))
                self._whole += 1

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            del inputs
            # A module that an exception left above this one has not taken its name away.
            while self._around and self._around.pop() != name:
                pass
            self._whole -= type(module).__module__.startswith(_MODULE_HOMES)
            for output in tree_leaves(outputs):
                if isinstance(output, Tensor) and (output.is_floating_point() or output.is_complex()):
                    # 0 if all is finite, else nan: ten times as fast as isfinite().all()
                    self._flags.append((name, (as_real(output.detach()) * 0).sum()))

        return leave

    def note(self, inputs: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Find where an activation function is flat. Called by the interceptor, before the function itself."""
        if self._whole or not self._around or inputs.ndim < 2 or not inputs.is_floating_point():
            return
        self._whole += 1
        try:
            slopes = _slopes(inputs, function)
        finally:
            self._whole -= 1
        if slopes is None:
            return
        feature_dim = self._feature_dim if -self._feature_dim <= slopes.ndim else -1
        others = [dim for dim in range(slopes.ndim) if dim != slopes.ndim + feature_dim]
        dead = slopes.abs().amax(others) < self._flat
        name = self._around[-1]
        call = name, self._calls.get(name, 0)
        self._calls[name] = call[1] + 1
        before = self._dead.get(call)
        self._dead[call] = dead if before is None or before.shape != dead.shape else before & dead

    def layer(self, name: str) -> None:
        """Remember where the last layer left the features. Called by the interceptor."""
        self._feature_dim = _FEATURE_DIMS.get(name, self._feature_dim)


class _Interceptor(TorchFunctionMode):
    """Sees every torch function that a forward pass calls, and calls it unchanged."""

    def __init__(self, watch: ActivationWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        if name in _FUNCTIONS:
            first, rest = (args[0], args[1:]) if args else (keywords.get("input"), ())
            if isinstance(first, Tensor):
                options = {key: value for key, value in keywords.items() if key not in ("input", "out")}
                self._watch.note(first, lambda x: func(x, *rest, **options))
        result = func(*args, **keywords)
        self._watch.layer(name)
        return result


def _slopes(inputs: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return the derivative of an element-wise function at each input; None if it is not element-wise after all."""
    with torch.enable_grad():
        point = inputs.detach().requires_grad_()
        outputs = function(point.clone())  # a copy, since the function may work in place
        if outputs.shape != inputs.shape:
            return None
        (slopes,) = torch.autograd.grad(outputs.sum(), point)
    return slopes
