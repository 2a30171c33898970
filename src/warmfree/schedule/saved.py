"""Shapes as plain values, for checkpoints: ``torch.load`` refuses objects by default.

LambdaLR saves the ``__dict__`` of its callable. A callable that holds a shape keeps it there in this form.
"""

from collections.abc import Iterator, Mapping
from typing import Any, overload

from warmfree.schedule.shapes import Shape

__all__ = ["SavedShape", "shape_from_state", "shape_state"]


def shape_state(shape: Shape) -> dict[str, Any]:
    """Return a shape as plain values: its class name and its fields.

    ``torch.load`` refuses objects by default; a checkpoint of plain values loads everywhere.

    Example:
        >>> from warmfree.schedule.shapes import Constant
        >>> shape_state(Constant(warmup=2))
        {'shape': 'Constant', 'warmup': 2, 'start': 0.0}
    """
    return {"shape": type(shape).__qualname__, **vars(shape)}


def shape_from_state(state: Mapping[str, Any]) -> Shape:
    """Return the shape that `shape_state` was given.

    Raises:
        ValueError: no class of that name is a `Shape`; of several, the one defined last is taken.
    """
    fields = dict(state)
    name = fields.pop("shape")
    found = [kind for kind in _kinds_of(Shape) if kind.__qualname__ == name]
    if not found:
        raise ValueError(
            f"the saved schedule holds a shape of class {name!r}, which is not defined here; import the module "
            "that defines it before loading"
        )
    shape: Shape = object.__new__(found[-1])
    vars(shape).update(fields)
    return shape


def _kinds_of(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds_of(kind)


class SavedShape:
    """A field that reads as a shape and lies in ``__dict__``, which is what LambdaLR saves, as plain values."""

    @overload
    def __get__(self, holder: None, owner: type) -> None: ...
    @overload
    def __get__(self, holder: object, owner: type) -> Shape | None: ...
    def __get__(self, holder: object | None, owner: type) -> Shape | None:
        state = None if holder is None else vars(holder)["then"]  # of the class: the field's default
        return None if state is None else shape_from_state(state)

    def __set__(self, holder: object, then: Shape | None) -> None:
        if then is not None and not isinstance(then, Shape):
            raise TypeError(
                f"then must be a Shape, e.g. Cosine(steps=1000), or None, got {type(then).__name__}"
            )
        vars(holder)["then"] = None if then is None else shape_state(then)
