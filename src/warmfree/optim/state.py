"""Which parameters an optimizer here takes, and which state_dicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmfree.optim.sharding import check_placements, signature


def check_supported(parameter: Tensor, *, name: str) -> None:
    """Raise TypeError or ValueError unless a parameter is dense, real, floating-point, and sharded in a way we know."""
    kind = f"a {parameter.dtype} parameter of shape {tuple(parameter.shape)}"
    if not parameter.is_floating_point():
        raise TypeError(f"{name} needs real floating-point parameters, got {kind}")
    if parameter.layout != torch.strided:
        raise TypeError(f"{name} needs dense parameters, got {kind} in layout {parameter.layout}")
    if parameter.device.type == "meta":
        raise ValueError(
            f"{name} needs parameters with memory, got {kind} on the meta device: materialise it first"
        )
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        raise TypeError(
            f"{name} needs to see matrices, which FullyShardedDataParallel (FSDP1) flattens: shard the model with "
            f"torch.distributed.fsdp.fully_shard"
        )
    check_placements(parameter, name=name)


def check_gradient(parameter: Tensor, *, name: str) -> None:
    """Raise TypeError if a parameter's gradient is sparse."""
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise TypeError(f"{name} does not support sparse gradients; use sparse=False in nn.Embedding")


def check_state_dict(optimizer: Optimizer, state_dict: Any, *, passed: str | None = None) -> None:
    """Raise ValueError unless a state_dict has the groups, entries and shapes that the optimizer has.

    Args:
        optimizer: one whose state exists since the constructor.
        state_dict: what is about to be loaded.
        passed: entries whose names begin so are somebody else's to check.
    """
    name = type(optimizer).__name__
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            "state_dict must be a dict with 'state' and 'param_groups', as state_dict() returns it"
        )
    ours, theirs = optimizer.param_groups, state_dict["param_groups"]
    if not isinstance(theirs, list) or not all(isinstance(group, dict) for group in theirs):
        raise ValueError("state_dict['param_groups'] must be a list of dicts, as state_dict() returns it")
    sizes = [len(group["params"]) for group in ours], [len(group.get("params", ())) for group in theirs]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"state_dict is for groups of {sizes[1]} parameters, this {name} has groups of {sizes[0]}"
        )
    for mine, group in zip(ours, theirs, strict=True):
        if missing := optimizer.defaults.keys() - group.keys():
            raise ValueError(f"state_dict is not one of {name}: its groups lack {', '.join(sorted(missing))}")
        for parameter, key in zip(mine["params"], group["params"], strict=True):
            found = {
                entry: value
                for entry, value in state_dict["state"].get(key, {}).items()
                if passed is None or not entry.startswith(passed)
            }
            _check_entries(optimizer.state[parameter], found, parameter, name=name)


def _check_entries(expected: dict[str, Any], found: dict[str, Any], parameter: Tensor, *, name: str) -> None:
    if expected.keys() != found.keys():
        raise ValueError(
            f"state_dict is not one of {name} for these parameters: expected the entries {', '.join(expected)}, "
            f"found {', '.join(map(str, found)) or 'none'}"
        )
    for key, value in expected.items():
        if not isinstance(found[key], Tensor) or found[key].shape != value.shape:
            shape = tuple(found[key].shape) if isinstance(found[key], Tensor) else type(found[key]).__name__
            raise ValueError(
                f"state_dict does not fit: {key} of a parameter of shape {tuple(parameter.shape)} must have shape "
                f"{tuple(value.shape)}, got {shape}"
            )
        if signature(found[key]) != signature(value):
            raise ValueError(
                f"state_dict does not fit: {key} of a parameter of shape {tuple(parameter.shape)} is spread over "
                f"processes as {signature(found[key]) or 'a plain tensor'}, here it is "
                f"{signature(value) or 'a plain tensor'}; load it through torch.distributed.checkpoint, which reshards"
            )


def with_frozen_state(optimizer: Optimizer, state_dict: Any) -> Any:
    """Fill in the state of frozen parameters, which `get_optimizer_state_dict` of torch leaves out."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        return state_dict
    missing = {}
    for ours, theirs in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        for parameter, key in zip(ours["params"], theirs.get("params", ()), strict=False):
            if not parameter.requires_grad and not state_dict["state"].get(key):
                missing[key] = optimizer.state[parameter]
    return {**state_dict, "state": {**state_dict["state"], **missing}} if missing else state_dict


def state_kinds(optimizer: Optimizer) -> dict[Tensor, dict[str, tuple[torch.dtype, torch.device]]]:
    """Return type and device of every state entry, for `restore_kinds`."""
    return {
        parameter: {name: (value.dtype, value.device) for name, value in optimizer.state[parameter].items()}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def restore_kinds(
    optimizer: Optimizer,
    state_dict: dict[str, Any],
    kinds: dict[Tensor, dict[str, tuple[torch.dtype, torch.device]]],
) -> None:
    """Give loaded state its types and devices back; torch's load_state_dict gives all of it the parameter's.

    Args:
        optimizer: into which the state_dict has just been loaded.
        state_dict: where the entries are still as wide as they were saved.
        kinds: types and devices before loading.
    """
    for ours, theirs in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for parameter, key in zip(ours["params"], theirs["params"], strict=True):
            for name, (dtype, device) in kinds[parameter].items():
                loaded = optimizer.state[parameter][name]
                if loaded.dtype != dtype or loaded.device != device:
                    saved = state_dict["state"][key][name].detach()
                    optimizer.state[parameter][name] = saved.to(device, dtype, copy=True)
