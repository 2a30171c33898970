r"""How far one optimizer step moved each weight, measured from outside the optimizer.

The same probe serves every optimizer alike: it keeps a copy of the weights, lets the step happen and
compares. It costs one copy of the weights and a few passes over them, and only on the steps that are
measured.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Update", "UpdateProbe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    r"""What one step did to one tensor, with weight change :math:`\Delta = w_{new} - w_{old}`.

    Attributes:
        l2: :math:`\lVert\Delta\rVert_2`.
        rms: :math:`\lVert\Delta\rVert_2 / \sqrt{n}`, the root mean square over the n entries.
        rms_per_lr: ``rms / lr``: the update RMS, which is about 1 for Adam's first step; nan at lr 0.
        relative: :math:`\lVert\Delta\rVert_2 / \lVert w_{old}\rVert_2`; 0 for a tensor that did not move, inf
            for a zero tensor that moved.
        angle: the angle between old and new weights, in radians, in [0, pi]; nan when either is zero.
        neuron_angle: the root mean square over the rows (first dimension) of the rows' angles, in radians,
            leaving out rows that are zero before or after; nan when no row is left, and for tensors with
            fewer than 2 dimensions.
    """

    l2: float
    rms: float
    rms_per_lr: float
    relative: float
    angle: float
    neuron_angle: float


class UpdateProbe:
    r"""Measure what an optimizer step does to the weights.

    Call :meth:`snapshot` before the step and :meth:`compare` after it, on the steps that matter; on the
    others the probe costs nothing. The angle is computed from the part of the change that is perpendicular to
    the old weights,

    .. math:: \theta = \operatorname{atan2}\left(\lVert\Delta_\perp\rVert,\;
              \lVert w_{old}\rVert + \Delta \cdot \hat w_{old}\right),

    which is accurate to a few roundings for angles of any size, where the arc cosine of a float32 cosine
    cannot tell angles below 3e-4 apart. Half-precision weights are compared in float32.

    Args:
        model: a module, or its named parameters. Parameters without ``requires_grad`` are left out.

    Raises:
        ValueError: there is nothing to measure.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> probe = UpdateProbe([("weight", weight)])
        >>> probe.snapshot()
        >>> _ = weight.data.add_(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
        >>> update = probe.compare(lr=0.5)["weight"]
        >>> update.l2, update.rms, update.rms_per_lr, update.relative
        (5.0, 2.5, 5.0, 1.0)
        >>> round(math.degrees(update.angle), 4), round(math.degrees(update.neuron_angle), 4)
        (45.0, 45.0)
    """

    def __init__(self, model: nn.Module | Iterable[tuple[str, Tensor]]) -> None:
        named = model.named_parameters() if isinstance(model, nn.Module) else model
        self._weights = {
            name: weight for name, weight in named if weight.requires_grad and weight.numel() > 0
        }
        if not self._weights:
            raise ValueError(
                "UpdateProbe got no parameter that requires a gradient; pass a model or named parameters"
            )
        self._before: dict[str, Tensor] = {}
        self._armed = False

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the weights as they are now; the copies are allocated once and reused."""
        for name, weight in self._weights.items():
            if name in self._before:
                self._before[name].copy_(weight)
            else:
                self._before[name] = weight.detach().clone()
        self._armed = True

    @torch.no_grad()
    def compare(self, *, lr: float) -> dict[str, Update]:
        """Compare the weights with the last snapshot.

        Args:
            lr: the learning rate of the step, >= 0, for :attr:`Update.rms_per_lr`.

        Returns:
            One :class:`Update` per parameter name.

        Raises:
            RuntimeError: there was no snapshot since the last comparison.
        """
        if not self._armed:
            raise RuntimeError(
                "UpdateProbe.compare needs a snapshot: call snapshot() before the optimizer step"
            )
        self._armed = False
        rows = [_measure(self._before[name], weight) for name, weight in self._weights.items()]
        widest = functools.reduce(torch.promote_types, (row.dtype for row in rows))
        # Stacked, so that an accelerator is waited for once and not once a tensor.
        values = torch.stack([row.to(rows[0].device, widest) for row in rows]).tolist()
        return {
            name: _as_update(row, size=weight.numel(), lr=lr)
            for (name, weight), row in zip(self._weights.items(), values, strict=True)
        }


def _measure(before: Tensor, after: Tensor) -> Tensor:
    """Return (change norm, old norm, angle, neuron angle) as one tensor on the weights' device."""
    precise = torch.promote_types(before.dtype, torch.float32)
    old = before.to(precise)
    change = after.detach().to(precise) - old
    angle = _angles(old.reshape(1, -1), change.reshape(1, -1))[0]
    if old.ndim >= 2:
        rows = _angles(old.flatten(1), change.flatten(1))
        neuron_angle = rows.square().nanmean().sqrt()
    else:
        neuron_angle = torch.full_like(angle, math.nan)
    return torch.stack([torch.linalg.vector_norm(change), torch.linalg.vector_norm(old), angle, neuron_angle])


def _angles(old: Tensor, change: Tensor) -> Tensor:
    """Return the angle between each row of ``old`` and of ``old + change``; nan where one of them is zero."""
    norm = torch.linalg.vector_norm(old, dim=1)
    unit = old / norm.unsqueeze(1)  # 0/0 = nan marks the zero rows
    along = (change * unit).sum(1)
    across = torch.linalg.vector_norm(torch.addcmul(change, unit, along.unsqueeze(1), value=-1), dim=1)
    angle = torch.atan2(across, norm + along)
    return torch.where((old + change).abs().amax(1) > 0, angle, math.nan)


def _as_update(row: list[float], *, size: int, lr: float) -> Update:
    l2, old_norm, angle, neuron_angle = row
    rms = l2 / math.sqrt(size)
    return Update(
        l2=l2,
        rms=rms,
        rms_per_lr=rms / lr if lr else math.nan,
        relative=l2 / old_norm if old_norm else (math.inf if l2 else 0.0),
        angle=angle,
        neuron_angle=neuron_angle,
    )
