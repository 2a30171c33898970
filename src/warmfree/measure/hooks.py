"""Hooks on the modules of a model for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["hooked", "remove_hooks"]


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], register: Callable[[str, nn.Module], Iterator[RemovableHandle]]
) -> Iterator[None]:
    """Have hooks on modules until exit, also by an exception, and one that comes while they are being registered.

    A module that refuses a hook, as those of TorchScript do, has none: it is seen as a part of what is around it.

    Args:
        modules: by name.
        register: registers the hooks of one module, and yields the handle of each before it registers the next.

    Example:
        >>> model, seen = nn.Sequential(nn.Identity()), []
        >>> def register(name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        ...     yield module.register_forward_hook(lambda *_: seen.append(name))
        >>> with hooked(dict(model.named_modules()), register):
        ...     _ = model(0)
        >>> _ = model(0)
        >>> seen
        ['0', '']
    """
    handles: list[RemovableHandle] = []
    try:
        for name, module in modules.items():
            before = len(handles)
            try:
                for handle in register(name, module):
                    handles.append(handle)  # noqa: PERF402 (at once: not one is lost to an interrupt)
            except Exception:
                remove_hooks(handles[before:])
        yield
    finally:
        remove_hooks(handles)


def remove_hooks(handles: Sequence[RemovableHandle]) -> None:
    """Remove hooks, all of them even if an interrupt comes in between."""
    try:
        for handle in handles:
            handle.remove()
    except BaseException:
        for handle in handles:
            handle.remove()  # does nothing where it is done
        raise
