"""A function of the user's that returns a model, a loss, batches and an optimizer: found, called, checked."""

import importlib
import importlib.util
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from warmfree.lab.advise.source import Source
from warmfree.monitor.batch import batch_size_of
from warmfree.schedule.critical import LossFn
from warmfree.schedule.critical.batches import first_batches
from warmfree.schedule.critical.critical import check_trainable

__all__ = ["function_source"]

_RETURN = "return (model, loss_fn, batches, optimizer)"


def function_source(name: str, *, steps: int | None, batch_size: int | None, seed: int) -> Source:
    """Call a function and return what it made.

    Args:
        name: ``module:function``, with modules of the current folder as for `python -m`, or
            ``path/to/file.py:function``, with those beside the file.
        steps: of the run, >= 1.
        batch_size: samples in a batch; None for the first dimension of the first batch's first tensor.
        seed: set before the call.

    Raises:
        ValueError: there is no such function, it fails, or what it returns cannot be used.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: there is no such module.
    """
    if steps is None:
        raise ValueError(f"{name} needs the length of the run: --steps N")
    function = _find(name)
    torch.manual_seed(seed)
    try:
        made = function()
    except Exception as error:
        raise ValueError(f"{name} failed: {_where(error)}") from error
    model, loss_fn, batches, optimizer = _check(name, made)
    if batch_size is None:
        try:
            (first,) = first_batches(batches, 1)
        except Exception as error:
            raise ValueError(f"{name}: no batch can be read: {_where(error)}") from error
        batch_size = batch_size_of(first)
        if batch_size is None:
            raise ValueError(
                f"{name}: no tensor with a first dimension in a batch ({_describe(first)}); pass --batch-size N"
            )
    return Source(
        title=f"{type(model).__name__} of {name}",
        model=model,
        loss_fn=_first_explained(name, loss_fn),
        batches=batches,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
    )


def _find(name: str) -> Callable[[], Any]:
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"{name!r} must be module:function or path/to/file.py:function")
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    function = getattr(module, attribute, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        close = get_close_matches(attribute, functions, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(functions) or 'no function'}"
        raise ValueError(f"{place} has no function {attribute!r}; {hint}")
    if not callable(function):
        raise ValueError(f"{name} must be a function, it is {_describe(function)}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(
            f"{name} is called without arguments ({error}); give them defaults, or wrap it in a function"
        ) from None
    except ValueError:
        pass  # some builtins tell no signature
    return function  # type: ignore[no-any-return]


def _load_file(file: Path) -> ModuleType:
    """Run a file as a module of its name, able to import what is beside it, as `python file.py` would be."""
    if not file.is_file():
        raise FileNotFoundError(f"file not found: {file}")
    _put_first(str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where pickle, dataclasses and the workers of a DataLoader look for it.
    before = sys.modules.get(file.stem)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(file.stem)
        if before is not None:
            sys.modules[file.stem] = before
        raise ValueError(f"{file} cannot be run: {_where(error)}") from error
    return module


def _import(name: str) -> ModuleType:
    _put_first(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModuleNotFoundError(
                f"no module {name!r}, neither in {Path.cwd()} nor installed; for a file write path/to/file.py:function",
                name=error.name,
            ) from None
        raise ValueError(f"{name} cannot be imported: {_where(error)}") from error
    except Exception as error:
        raise ValueError(f"{name} cannot be imported: {_where(error)}") from error


def _put_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _check(name: str, made: Any) -> tuple[nn.Module, LossFn, Iterable[Any], Optimizer]:
    if not isinstance(made, tuple | list) or len(made) != 4:
        number = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise ValueError(f"{name} must {_RETURN}, it returned {_describe(made)}{number}")
    model, loss_fn, batches, optimizer = made
    for place, (what, fits, value) in enumerate(
        (
            ("a torch.nn.Module", isinstance(model, nn.Module), model),
            ("a function loss_fn(model, batch)", callable(loss_fn), loss_fn),
            ("an iterable of batches, such as a list or a DataLoader", _is_batches(batches), batches),
            ("a torch.optim.Optimizer", isinstance(optimizer, Optimizer), optimizer),
        ),
        start=1,
    ):
        if not fits:
            raise ValueError(
                f"{name} must {_RETURN}: number {place} must be {what}, it is {_describe(value)}"
            )
    if isinstance(loss_fn, nn.Module):
        raise ValueError(
            f"{name}: loss_fn is called with (model, batch) and must call the model itself, a module like "
            f"{_describe(loss_fn)} does not; return a function, such as "
            f"lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    try:
        inspect.signature(loss_fn).bind(model, None)
    except TypeError as error:
        raise ValueError(f"{name}: loss_fn must take (model, batch): {error}") from None
    except ValueError:
        pass  # some builtins tell no signature
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{name}: batches are gone through more than once, which {_describe(batches)} cannot be; return a "
            f"DataLoader, or a list: list(itertools.islice(batches, 200))"
        )
    try:
        check_trainable(model, optimizer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    own = {id(weight) for weight in model.parameters()}
    stepped = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
    if own.isdisjoint(id(weight) for weight in stepped):
        raise ValueError(
            f"{name}: the optimizer has none of the model's parameters; make it of model.parameters(), after moving "
            f"the model to its device"
        )
    return model, loss_fn, batches, optimizer


def _is_batches(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, Tensor | Mapping | str | bytes | nn.Module)


def _first_explained(name: str, loss_fn: LossFn) -> LossFn:
    """Return the loss function with its first call checked, where it fails if it ever does."""
    checked = False

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal checked
        if checked:
            return loss_fn(model, batch)
        try:
            value = loss_fn(model, batch)
        except Exception as error:
            raise ValueError(f"{name}: loss_fn failed on the first batch: {_where(error)}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"{name}: loss_fn must return the loss as a tensor with one number, it returned {_describe(value)}"
            )
        checked = True
        return value

    return loss


def _where(error: Exception) -> str:
    """Say what happened in one line, and where in the user's code."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    theirs = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    if isinstance(error, SyntaxError) or not theirs:
        return said
    return f"{said} ({theirs[-1].filename}, line {theirs[-1].lineno})"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} with the shape {tuple(value.shape)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"
