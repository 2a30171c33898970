"""A pass of a probe's own through a model, which leaves no trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import NoneType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from warmfree.optim.sharding import is_dtensor, local

__all__ = ["evaluation", "undisturbed"]

# What modules count and cache in attributes of their own.
_PLAIN = (bool, int, float, NoneType, Tensor)


@contextmanager
def undisturbed(model: nn.Module, *, evaluate: bool = True) -> Iterator[None]:
    """Let a probe run a model, and leave the model and the random numbers as they were.

    Inside, every module is in eval mode (no dropout, no update of running statistics), compiled models run eagerly, so
    that hooks are seen and nothing is compiled anew, and random numbers (of torch, Python and NumPy's global state) are
    drawn from a copy of the state. On exit, also by an exception, training flags and generators are what they were, and
    modules under FSDP2 hold their shards only.

    With `evaluate=False` modules stay in the mode they are in. All passes begin with the same random numbers and
    buffers, so that in training mode, too, two passes with the same weights and batch are the same.

    So are buffers, to the last bit: some change in eval mode, too (codebooks, counters, observers of fake
    quantisation). Other attributes that hold None, a number or a tensor hold the same one again: a rotary embedding
    remembers the length of its cache there. What is changed in place but is no buffer stays changed, and so do sparse
    buffers and those of tensor subclasses.

    Buffers are copied on entry and written back on exit, all of them, since a change by way of `.data` shows in no
    version counter: twice the time of copying them, and their memory once. Beside a forward pass that is little.

    Gradients are the caller's affair: use `torch.no_grad()` or `torch.autograd.grad`.

    Args:
        model: the module that will be called. What DistributedDataParallel itself counts goes on, in step with its
            reducer.
        evaluate: put it in eval mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
        >>> with undisturbed(model), torch.no_grad():
        ...     same = torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
        >>> same, model.training, model[1].training
        (True, True, True)
    """
    modules = list(model.modules())
    devices = {weight.device for weight in model.parameters() if weight.device.type not in ("cpu", "meta")}
    kinds = sorted({device.type for device in devices})
    try:
        with (
            _kept(modules),
            evaluation(model) if evaluate else nullcontext(),
            _host_generators(),
            torch.random.fork_rng(devices=[]),
            _forked(kinds, devices),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for module in modules:
            # FSDP2 leaves the root module gathered after a forward pass that no backward pass follows.
            if hasattr(module, "_get_fsdp_state"):
                cast(Any, module).reshard()


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and give it back its training flag on exit.

    To read the weights of a model is to run code where they are parametrised: the weight of a layer with
    `spectral_norm` makes a step of its power iteration each time that it is looked at, in training mode.

    Args:
        model: any module.

    Example:
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
        >>> with evaluation(layer):
        ...     torch.equal(layer.weight, layer.weight)
        True
        >>> layer.training
        True
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, training in flags:
            if training:
                module.training = False
        yield
    finally:
        for module, training in flags:
            if module.training != training:
                module.training = training


@contextmanager
def _kept(modules: list[nn.Module]) -> Iterator[None]:
    """Keep the buffers of modules, and their attributes that are plain."""
    held = [
        (module, dict(module._buffers.items()), dict(vars(module)))
        for module in modules
        if not isinstance(module, DistributedDataParallel)
    ]
    buffers = {
        id(buffer): buffer
        for module in modules
        for _, buffer in module._buffers.items()
        if buffer is not None
    }
    memories = [(buffer, _memory(buffer)) for buffer in buffers.values()]
    copies = [(buffer, memory, memory.clone()) for buffer, memory in memories if memory is not None]
    try:
        yield
    finally:
        for module, of_module, attributes in held:
            _put_back(module._buffers, of_module)
            _put_back(vars(module), attributes)
        for buffer, memory, copy in copies:
            if not is_dtensor(buffer):
                buffer.data = memory  # a module may have given it another
            memory.copy_(copy)


def _memory(buffer: Tensor) -> Tensor | None:
    """Return the elements of a buffer that are here, None if they cannot be copied and written."""
    here = local(buffer)
    if type(here) not in (Tensor, nn.Parameter) or here.layout is not torch.strided:
        return None
    # Nobody writes to elements that share their memory, such as those of a mask that is expanded.
    shared = any(stride == 0 and size > 1 for stride, size in zip(here.stride(), here.shape, strict=True))
    # As an alias: to write to it is not to write to a tensor that a graph has saved.
    return None if shared or here.is_meta or here.is_inference() else here.data


def _put_back(current: Any, before: dict[str, Any]) -> None:
    """Make plain values what they were. Those of TorchScript are in mappings that have little more than items."""
    now = dict(current.items())
    for name in now.keys() - before.keys():
        if isinstance(now[name], _PLAIN):
            del current[name]
    for name, value in before.items():
        if now.get(name, now) is not value and isinstance(value, _PLAIN):
            current[name] = value


@contextmanager
def _host_generators() -> Iterator[None]:
    """Keep the random states of Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 (the user's, if any)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _forked(kinds: list[str], devices: set[torch.device]) -> Iterator[None]:
    """Keep the generators of accelerators, one kind of device after the other."""
    if not kinds:
        yield
        return
    indices = [device.index or 0 for device in devices if device.type == kinds[0]]
    with torch.random.fork_rng(devices=indices, device_type=kinds[0]), _forked(kinds[1:], devices):
        yield
