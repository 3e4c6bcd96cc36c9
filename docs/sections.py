"""Tables of the fields of a YAML section, read from its class: name, type, default, meaning."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ctrl import ControlConfig
from experiments.reporting.table import Table

ROOT = Path(__file__).parents[1]
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping", Any: "any value"}
PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "any value": "any values"}
BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "min_length": "at least {}"}
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
HEAD = ("field", "type", "default", "meaning")


def fields_table(cls: type[BaseModel], anchors: Mapping[type, str]) -> str:
    """A Markdown table with one row per field. anchors: heading of each section that fields may link to."""
    rows = [
        (f"`{name}`", _typed(field, anchors), _default(field, anchors), meaning(cls, name))
        for name, field in cls.model_fields.items()
    ]
    return Table("", HEAD, tuple(rows)).markdown() if rows else ""


def control_table() -> str:
    """The same for `ControlConfig`, whose docstring describes its fields."""
    hints, texts = get_type_hints(ControlConfig), dict(_described(ControlConfig))
    rows = [
        (f"`{field.name}`", _type(hints[field.name], {}), _value(field.default), texts[field.name])
        for field in dataclasses.fields(ControlConfig)
    ]
    return Table("", HEAD, tuple(rows)).markdown()


def meaning(cls: type[BaseModel], name: str) -> str:
    """Return the description of a field, or that of the field which it replaces. Raises KeyError if there is none."""
    fields = (base.model_fields.get(name) for base in cls.__mro__ if issubclass(base, BaseModel))
    for field in filter(None, fields):
        if field.description:
            return field.description
    raise KeyError(f"{cls.__name__}.{name} has no description: write Field(..., description=...)")


def variants(kind: str, table: Mapping[str, Any], anchors: Mapping[type, str]) -> str:
    """One heading per class or function of a table, with its docstring, its file and its fields."""
    return "\n\n".join(variant(kind, name, value, anchors, value) for name, value in table.items())


def variant(kind: str, name: str, value: Any, anchors: Mapping[type, str], fields: Any) -> str:
    """One of them. fields: the class that has its fields, if there is one."""
    file = Path(inspect.getsourcefile(value) or "").relative_to(ROOT)
    text = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", inspect.getdoc(value) or "")
    parts = [f"### {kind} `{name}`", text, f"Code: `{value.__name__}` in [{file}](../{file})."]
    if isinstance(fields, type) and issubclass(fields, BaseModel):
        parts.append(fields_table(fields, anchors))
    return "\n\n".join(filter(None, parts))


def _typed(field: FieldInfo, anchors: Mapping[type, str]) -> str:
    limits = [
        form.format(f"{bound:g}")
        for item in field.metadata
        for name, form in BOUNDS.items()
        if (bound := getattr(item, name, None)) is not None
    ]
    limits += ["of letters, digits and `_.-`" for item in field.metadata if getattr(item, "pattern", None)]
    return ", ".join([_type(field.annotation, anchors), *limits])


def _type(annotation: Any, anchors: Mapping[type, str]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in anchors:
        return f"[{anchors[annotation]}](#{_anchor(anchors[annotation])})"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(args[0], anchors)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (tuple, Sequence):
        item = _type(args[0], anchors)
        return f"list of {PLURALS.get(item, item)}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(arg, anchors) for arg in args if arg is not types.NoneType))
    return WORDS[origin or annotation]


def _default(field: FieldInfo, anchors: Mapping[type, str]) -> str:
    factory: Callable[[], Any] | None = field.default_factory  # type: ignore[assignment]
    value = field.default if factory is None else factory()
    if value is PydanticUndefined:
        return "required"
    return "its own defaults" if type(value) in anchors else _value(value)


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"`[{', '.join(_plain(one) for one in value)}]`"
    return "none" if value is None else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return ", ".join(f"{name}: {_plain(getattr(value, name))}" for name in ("source", "name"))
    return repr(value) if value in ("", "\n\n") else f"{value:g}" if isinstance(value, float) else str(value)


def _described(cls: type) -> list[tuple[str, str]]:
    """(field, text) pairs of a docstring whose lines begin with `field: `."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return [(name, " ".join(words.split())) for name, words in re.findall(r"^(\w+): (.*(?:\n    .*)*)", text, re.M)]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
