"""Make classes at run time whose instances can be pickled: `torch.save(model)`, spawned processes, Ray.

pickle writes a class by its name, and these have the name of the class that they stand for. So it writes how the class
was made instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def made_once(make: Callable[..., Class]) -> Callable[..., Class]:
    """Decorate a function that makes a class: it makes one per arguments, and instances are pickled by them."""

    @functools.cache
    def cached(*args: Any) -> Class:
        cls = make(*args)
        cls.made_by = (cached, args)  # type: ignore[attr-defined]
        cls.__reduce_ex__ = _reduce  # type: ignore[assignment]
        return cls

    return functools.update_wrapper(cached, make)


def _reduce(self: Any, protocol: Any) -> Any:
    cls = type(self)
    if "made_by" not in vars(cls):  # a subclass made by others, fully_shard for one
        return object.__reduce_ex__(self, protocol)
    return _new, (_recipe(cls),), self.__getstate__()


def _recipe(value: Any) -> Any:
    """Replace classes made here by the function and the arguments that make them."""
    made: tuple[Any, tuple[Any, ...]] | None = vars(value).get("made_by") if isinstance(value, type) else None
    return value if made is None else (made[0], *map(_recipe, made[1]))


def _class_of(recipe: Any) -> Any:
    make, *args = recipe
    return make(*(_class_of(arg) if isinstance(arg, tuple) and callable(arg[0]) else arg for arg in args))


def _new(recipe: Any) -> Any:
    cls = _class_of(recipe)
    return cls.__new__(cls)
