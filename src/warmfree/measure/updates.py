r"""How far one optimizer step moved each weight, measured from outside the optimizer.

The same probe serves every optimizer alike: it keeps a copy of the weights, lets the step happen and
compares. It costs one copy of the weights and a few passes over them, and only on the steps that are
measured. What warmfree's own optimizers report of a step anyway gives part of the same numbers for nothing.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from warmfree.measure.displacement import Totals, matrices, measure_neurons, total
from warmfree.measure.inputs import is_conv1d
from warmfree.optim.move import Layout
from warmfree.optim.norms import largest_singular_values, random_direction, scalar_dtype
from warmfree.optim.sharding import Peers, local, part_of, peers_of, signature

__all__ = ["Update", "UpdateProbe", "updates_from_report"]

# Power iterations from fresh vectors, and from those of the last measurement.
_COLD, _WARM = 10, 2


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
        neuron_angle: the root mean square over the rows (output neurons; tokens of an embedding) of the rows'
            angles, in radians, leaving out rows that are zero before or after; nan when no row is left, and for
            tensors with fewer than 2 dimensions.
        weight_norm: :math:`\lVert w_{old}\rVert_2`.
        spectral_ratio: :math:`\sigma_1(\Delta) / \sigma_1(w_{old})`, 0 and inf as for ``relative``; nan where it was
            not asked for, for tensors with fewer than 2 dimensions, and for complex ones.
    """

    l2: float
    rms: float
    rms_per_lr: float
    relative: float
    angle: float
    neuron_angle: float
    weight_norm: float
    spectral_ratio: float = math.nan


class UpdateProbe:
    r"""Measure what an optimizer step does to the weights.

    Call :meth:`snapshot` before the step and :meth:`compare` after it, on the steps that matter; on the
    others the probe costs nothing. The angle is computed from the part of the change that is perpendicular to
    the old weights,

    .. math:: \theta = \operatorname{atan2}\left(\lVert\Delta_\perp\rVert,\;
              \lVert w_{old}\rVert + \Delta \cdot \hat w_{old}\right),

    which is accurate to a few roundings for angles of any size, where the arc cosine of a float32 cosine
    cannot tell angles below 3e-4 apart. Half-precision weights are compared in float32.

    Complex weights are read as pairs of real ones, but for the root mean square, which is over complex entries.

    The model's parameters are read anew at each snapshot: added and thawed ones appear, shared ones count once. Of
    sharded parameters (DTensor) each process copies its part and all get the numbers of the whole. That takes at most
    four small all-reduces per kind of sharding, and three per power iteration; all processes have to call the probe.

    Args:
        model: a module, or its named parameters. Parameters without ``requires_grad`` are left out.
        names: measure and copy these parameters alone.
        out_dims: by parameter name, the dimension that counts output neurons where it is not 0. For a module, the
            weights of transposed convolutions and of transformers' Conv1D are known to have it at 1.
        spectral: measure :attr:`Update.spectral_ratio`, too: ten power iterations at first, then two from where the
            last measurement ended. The estimate of each sigma is never too high, but for rounding; see
            ``largest_singular_values`` for how low it may be.

    Raises:
        ValueError: there is nothing to measure, or a name or dimension that the model does not have.

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

    Reference: Kosson et al. 2024, section 3, for the quantities; Qi et al. 2025, Algorithm 1, for the spectral ratio.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        names: Collection[str] | None = None,
        out_dims: Mapping[str, int] | None = None,
        spectral: bool = False,
    ) -> None:
        self._model = model if isinstance(model, nn.Module) else list(model)
        self._names, self._out_dims, self._spectral = names, dict(out_dims or {}), spectral
        self._check_names()
        self._weights = self._present()
        if not self._weights:
            raise ValueError(
                "UpdateProbe got no parameter that requires a gradient; pass a model or named parameters"
            )
        self._before: dict[str, Tensor] = {}
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}
        self._armed = False

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the weights as they are now; the copies are allocated once and reused."""
        self._weights = self._present()
        old = self._before
        self._before = {name: _copied(weight, old.get(name)) for name, weight in self._weights.items()}
        # A parameter that was exchanged for another has other vectors.
        kept = {name for name, copy in self._before.items() if copy is old.get(name)}
        self._vectors = {name: vectors for name, vectors in self._vectors.items() if name in kept}
        self._armed = True

    def before(self, name: str) -> Tensor:
        """Return a weight as it was at the last snapshot: the probe's own copy, which the next one overwrites.

        Raises:
            KeyError: no such parameter was copied.
        """
        if name not in self._before:
            raise KeyError(
                f"no copy of {name!r}: it is frozen, was not asked for, or there was no snapshot yet"
            )
        return self._before[name]

    def __contains__(self, name: str) -> bool:
        """Return whether the last snapshot copied a parameter."""
        return name in self._before

    @torch.no_grad()
    def compare(self, *, lr: float | Mapping[str, float]) -> dict[str, Update]:
        """Compare the weights with the last snapshot.

        Args:
            lr: the learning rate of the step, >= 0, for :attr:`Update.rms_per_lr`; by parameter name if they differ.

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
        if not self._weights:
            return {}
        out_dims = self._out_dimensions()
        kinds: dict[tuple[Peers, torch.dtype, torch.device], list[str]] = {}
        for name, weight in self._weights.items():
            kind = _peers(weight, out_dims.get(name, 0)), weight.dtype, weight.device
            kinds.setdefault(kind, []).append(name)
        rows: dict[str, Tensor] = {}
        for (peers, _, _), names in kinds.items():
            totals, sigmas = self._measure(names, out_dims, peers), self._sigmas(names, out_dims, peers)
            rows |= {name: torch.cat(pair) for name, *pair in zip(names, totals, sigmas, strict=True)}
        # Stacked, so that an accelerator is waited for once and not once a tensor.
        first = next(iter(rows.values()))
        values = torch.stack([rows[name].to(first) for name in self._weights]).tolist()
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(self._weights, lr)
        return {
            name: _as_update(row, weight, lr=rates.get(name, math.nan))
            for (name, weight), row in zip(self._weights.items(), values, strict=True)
        }

    def _named(self) -> list[tuple[str, Tensor]]:
        return list(self._model.named_parameters()) if isinstance(self._model, nn.Module) else self._model

    def _present(self) -> dict[str, Tensor]:
        """Find the parameters to measure, shared ones under their first name."""
        chosen: dict[int, tuple[str, Tensor]] = {}
        for name, weight in self._named():
            if weight.requires_grad and weight.numel() and (self._names is None or name in self._names):
                chosen.setdefault(id(weight), (name, weight))
        return dict(chosen.values())

    def _check_names(self) -> None:
        weights = dict(self._named())
        unknown = sorted({*(self._names or ()), *self._out_dims} - weights.keys())
        if unknown:
            raise ValueError(f"the model has no parameter {', '.join(unknown)}; see model.named_parameters()")
        for name, out_dim in self._out_dims.items():
            if not 0 <= out_dim < weights[name].ndim:
                shape = tuple(weights[name].shape)
                raise ValueError(f"out_dims[{name!r}] must be a dimension of shape {shape}, got {out_dim}")

    def _out_dimensions(self) -> dict[str, int]:
        """Name the parameters whose output neurons are not their first dimension."""
        if not isinstance(self._model, nn.Module):
            return self._out_dims
        transposed = {
            id(weight)
            for module in self._model.modules()
            if _is_transposed(module)
            for weight in _weights(module)
        }
        known = {name: 1 for name, weight in self._weights.items() if id(weight) in transposed}
        return known | self._out_dims

    def _measure(self, names: list[str], out_dims: Mapping[str, int], peers: Peers) -> list[Tensor]:
        """Return for each tensor its `Totals`, on the tensor's device."""
        neurons = []
        if peers.column_groups:  # all together, for one sum over the processes
            pairs = [self._matrices(name, out_dims) for name in names]
            olds, news = zip(*pairs, strict=True)
            neurons = measure_neurons(olds, news, peers.add_columns)
        else:
            for name in names:
                weights = local(self._before[name]), local(self._weights[name].detach())
                some = matrices(*weights, out_dim=out_dims.get(name, 0))
                neurons.append(
                    torch.cat([measure_neurons([old], [new], list)[0] for old, new in some], dim=1)
                )
        return total(neurons, peers)

    def _matrices(self, name: str, out_dims: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        weights = local(self._before[name]), local(self._weights[name].detach())
        return next(matrices(*weights, out_dim=out_dims.get(name, 0), whole=True))

    def _sigmas(self, names: list[str], out_dims: Mapping[str, int], peers: Peers) -> list[Tensor]:
        """Return for each tensor the largest singular values of change and weight, nan for vectors."""
        device = local(self._weights[names[0]]).device
        found = {
            name: torch.full((2,), math.nan, dtype=scalar_dtype(device), device=device) for name in names
        }
        wide = [name for name in names if self._spectral and _is_real_matrix(self._weights[name])]
        # Sharded ones go together, for few all-reduces; else one at a time, for little memory.
        for some in [wide] if peers.groups and wide else [[name] for name in wide]:
            found |= zip(some, self._iterate(some, out_dims, peers), strict=True)
        return list(found.values())

    def _iterate(self, names: list[str], out_dims: Mapping[str, int], peers: Peers) -> list[Tensor]:
        pairs = [self._matrices(name, out_dims) for name in names]
        olds, changes = [old for old, _ in pairs], [new - old for old, new in pairs]
        parts = [part_of(self._weights[name], Layout("matrix", out_dims.get(name, 0))) for name in names]
        randoms = [
            random_direction(part.fan_in, device=old.device, dtype=old.dtype)
            for part, old in zip(parts, olds, strict=True)
        ]
        last = [
            self._vectors.get(name, (random, random)) for name, random in zip(names, randoms, strict=True)
        ]
        iterations = _WARM if all(name in self._vectors for name in names) else _COLD
        columns, many = [part.columns for part in parts], peers if peers.groups else None
        # A fixed random start beside what the last measurement found is what sees a direction that is new.
        starts = [torch.stack([old, random]) for (old, _), random in zip(last, randoms, strict=True)]
        sigma_weights, tops = largest_singular_values(
            olds, starts, iterations=iterations, peers=many, columns=columns
        )
        starts = [torch.stack([old, *two]) for (_, old), *two in zip(last, randoms, tops, strict=True)]
        sigma_changes, found = largest_singular_values(
            changes, starts, iterations=iterations, peers=many, columns=columns
        )
        self._vectors |= zip(names, zip(tops, found, strict=True), strict=True)
        return [torch.stack(pair) for pair in zip(sigma_changes, sigma_weights, strict=True)]


def updates_from_report(
    report: Mapping[str, Mapping[str, float]], *, lr: float | Mapping[str, float]
) -> dict[str, Update]:
    r"""Turn what an optimizer of this package reports of a step into update sizes, as far as it goes.

    .. math::  \lVert\Delta\rVert = \mathrm{lr}\, f\, \lVert u\rVert, \qquad
               \sigma_1(\Delta)/\sigma_1(w) = \mathrm{lr}\, f\, \sigma_1(u)/\sigma_1(w)

    with the factor f that the size controls left of the step, and for tensors that are rotated by an angle and keep
    their norm :math:`\lVert\Delta\rVert = 2 \sin(\theta/2)\, \lVert w\rVert`. What the report lacks is nan.

    Exact, but for rounding and the estimate of sigma_1, if there is no weight decay, one factor for the tensor and,
    when rotating, one angle for its neurons. Approximate: **weight decay is not in it**, except under a rotation, which
    replaces it, and in what `wrap` reports; a tensor that is bounded in sections (`split`) has the mean of their
    factors and the largest of their sigmas; RotationalAdamW's `update_norm_decay` turns neurons by different angles,
    of which the report has the mean, and only that of the neurons which are in this process. `zero_mean` moves
    the weights at the first step by more than the report says. A rotated tensor that is bounded, too, has no ratio.

    Args:
        report: `optimizer.step_report.fetch()`: by parameter name, `factor`, `angle`, `sigma_weight`, `sigma_update`
            and, with `optimizer.report_norms = True`, `update_norm`, `update_rms`, `weight_norm`.
        lr: the learning rate of that step, >= 0; by parameter name if they differ.

    Returns:
        One :class:`Update` per name in the report; empty for a step that was skipped.

    Example:
        >>> report = {"weight": {"factor": 0.5, "update_norm": 8.0, "update_rms": 1.0, "weight_norm": 16.0}}
        >>> update = updates_from_report(report, lr=0.1)["weight"]
        >>> update.l2, update.rms_per_lr, update.relative, update.angle
        (0.4, 0.5, 0.025, nan)
    """
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(report, lr)
    return {name: _from_report(values, lr=rates.get(name, math.nan)) for name, values in report.items()}


def _from_report(values: Mapping[str, float], *, lr: float) -> Update:
    update_norm, weight_norm = values.get("update_norm", math.nan), values.get("weight_norm", math.nan)
    step = lr * values.get("factor", 1.0)
    angle, spectral_ratio = values.get("angle", math.nan), math.nan
    if "angle" in values:
        l2 = 2 * math.sin(angle / 2) * weight_norm
    else:
        l2 = step * update_norm
        if "sigma_update" in values:
            spectral_ratio = _ratio(step * values["sigma_update"], values["sigma_weight"])
    per_entry = values.get("update_rms", math.nan) / update_norm if update_norm else 0.0
    rms = l2 * per_entry
    return Update(
        l2=l2,
        rms=rms,
        rms_per_lr=rms / lr if lr else math.nan,
        relative=2 * math.sin(angle / 2) if "angle" in values else _ratio(l2, weight_norm),
        angle=angle,
        neuron_angle=angle,
        weight_norm=weight_norm,
        spectral_ratio=spectral_ratio,
    )


def _copied(weight: Tensor, copy: Tensor | None) -> Tensor:
    """Copy a weight, into an old copy of its kind if there is one."""
    same = copy is not None and (copy.shape, copy.dtype, copy.device) == (
        weight.shape,
        weight.dtype,
        weight.device,
    )
    if copy is not None and same and signature(copy) == signature(weight):
        return copy.copy_(weight)
    return weight.detach().clone()


def _is_real_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and not weight.is_complex()


def _is_transposed(module: nn.Module) -> bool:
    return is_conv1d(module) or isinstance(
        module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    )


def _weights(module: nn.Module) -> list[Tensor | None]:
    """Return a module's weight, and what it is made of if it is parametrised; only to read it would run that code."""
    weights: list[Tensor | None] = [module._parameters.get("weight")]
    if is_parametrized(module, "weight"):
        weights += cast(nn.ModuleDict, module.parametrizations)["weight"]._parameters.values()
    return weights


def _peers(weight: Tensor, out_dim: int) -> Peers:
    """Find who has other rows and columns of a tensor; a vector is one row."""
    peers = peers_of(weight, Layout("matrix", out_dim))
    return peers if weight.ndim >= 2 else Peers(column_groups=peers.groups)


def _as_update(row: list[float], weight: Tensor, *, lr: float) -> Update:
    totals, (sigma_change, sigma_weight) = Totals(*row[:-2]), row[-2:]
    l2, norm = math.sqrt(totals.change), math.sqrt(totals.square)
    rms = l2 / math.sqrt(weight.numel())
    return Update(
        l2=l2,
        rms=rms,
        rms_per_lr=rms / lr if lr else math.nan,
        relative=_ratio(l2, norm),
        angle=totals.angle,
        neuron_angle=totals.neuron_angle if weight.ndim >= 2 else math.nan,
        weight_norm=norm,
        spectral_ratio=math.nan if math.isnan(sigma_weight) else _ratio(sigma_change, sigma_weight),
    )


def _ratio(change: float, weight: float) -> float:
    return change / weight if weight else (math.inf if change else 0.0)
