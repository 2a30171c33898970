"""Everything that a training run consists of, to the last bit: what a probe must leave as it was."""

import random
from collections import deque

import numpy as np
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer


def bits(tensor):
    """Return the bytes of a tensor, the part of it that is here."""
    tensor = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
    if tensor.is_sparse:
        return bits(tensor._indices()), bits(tensor._values())
    return tensor.cpu().resolve_conj().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Traces:
    """All objects that can be reached from a model and an optimizer, their identities and contents.

    Of modules and optimizers all attributes are looked at, through containers and objects; of tensors bits, memory
    and gradient, of parameters and buffers also the version counter by which graphs find out about changes.
    """

    def __init__(self, model, optimizer, *others):
        self.found = {}
        self._alive = []  # so that no identity is given to another object
        self._seen = set()
        for name, module in model.named_modules():
            self._walk(f"model.{name}", vars(module))
        self._walk("optimizer", optimizer)
        for index, other in enumerate(others):
            self._walk(f"others.{index}", other)
        numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (the global state is what is kept)
        self.found["random"] = (
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(numpy),
            numpy["state"]["pos"],
        )
        self.found["random keys"] = numpy["state"]["key"].tobytes()
        self.found["hooks"] = [
            list(hooks.values())
            for hooks in (
                torch_optimizer._global_optimizer_pre_hooks,
                torch_optimizer._global_optimizer_post_hooks,
            )
        ]

    def differences(self, other):
        """Return the paths at which two differ."""
        return [
            path
            for path in dict.fromkeys([*self.found, *other.found])
            if self.found.get(path) != other.found.get(path)
        ]

    def _walk(self, path, value):
        self._alive.append(value)
        if isinstance(value, bool | int | float | str | bytes | type(None)):
            self.found[path] = type(value), repr(value)
            return
        if id(value) in self._seen:
            self.found[path] = id(value)
            return
        self._seen.add(id(value))
        self.found[path] = id(value), type(value)
        if isinstance(value, torch.Tensor):
            is_named = path.startswith("model.")
            self.found[path] += (
                value.dtype,
                value.shape,
                value.requires_grad,
                bits(value),
                None if value.is_sparse or hasattr(value, "to_local") else value.data_ptr(),
                value._version if is_named and not hasattr(value, "to_local") else None,
            )
            if value.grad is not None:
                self._walk(f"{path}.grad", value.grad)
            else:
                self.found[f"{path}.grad"] = None
        elif isinstance(value, dict):
            self.found[path] += (len(value),)
            for key, item in value.items():
                name = key if isinstance(key, str | int) else f"<{id(key)}>"
                self._alive.append(key)
                self._walk(f"{path}.{name}", item)
        elif isinstance(value, list | tuple | deque):
            self.found[path] += (len(value),)
            for index, item in enumerate(value):
                self._walk(f"{path}.{index}", item)
        elif isinstance(value, torch.Generator):
            self.found[path] += (value.get_state().tolist(),)
        elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
            self._walk(path + ".vars", vars(value))
