"""Read the plain values of a YAML file, and set one of its fields by a dotted key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from experiments.common.errors import ConfigError
from experiments.common.files import read_text

MAX_VALUES = 10**6  # of a file, with what its aliases repeat


_ODD_NUMBER = re.compile(r"[-+]?(?:0[0-7_]+|[0-9_]+(?::[0-9_]+)+(?:\.[0-9_]*)?)")  # 010 is 8, and 1:30 is 90


class _Loader(yaml.SafeLoader):
    """Read 1e-3 as a number, as YAML 1.2 and Python do. PyYAML would read a text, and a number only from 1.0e-3.

    A key that is there twice is an error: PyYAML would take the last value and say nothing. So are half a character,
    and 010 and 1:30, which YAML reads as 8 and 90.
    """

    def compose_mapping_node(self, anchor: Any) -> Any:
        node, lines = super().compose_mapping_node(anchor), dict[tuple[str, str], int]()
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(
                    f"the key {key.value!r} is in line {lines[name]} and again in line {line}: keep one"
                )
            lines[name] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds half of a character (of a surrogate pair)")
        if node.tag in (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")) and _ODD_NUMBER.fullmatch(node.value):
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: {node.value} is {self.construct_object(node)} in YAML, which counts "
                "by 8 after a 0 and by 60 at a colon: write the number itself, or a text in quotes"
            )
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quote the texts that `_Loader` would read as something else: PyYAML writes 1e-3 bare. Write each list in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a reader of a report would have to look up what &id001 and *id001 are


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump_yaml(values: Any, short: bool = False) -> str:
    """Return plain values as YAML that `load_yaml` reads as the same values. Keys keep their order.

    short: a list or section that holds no other is one line.
    """
    layout: dict[str, Any] = {"default_flow_style": None, "width": 110} if short else {}
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, **layout))


def load_yaml(text: str) -> Any:
    """Return the values of a YAML text. Raises yaml.YAMLError."""
    try:
        values = yaml.load(text, _Loader)
        if (size := _size(values, {})) > MAX_VALUES:
            raise yaml.YAMLError(
                f"its aliases (&x, *x) make {size:.0e} values of it; at most {MAX_VALUES:.0e} are read"
            )
        return values
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of too many digits
        raise yaml.YAMLError(str(error)) from None


def _size(value: Any, sizes: dict[int, int]) -> int:
    """Count the values in a value. sizes: of the collections counted before, by id: aliases share them."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in sizes:
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(value)]


def read_yaml(path: str | Path, shipped: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """Read a file by its path, or by its name in the folder `shipped`. Returns the path and the mapping in the file.

    Raises ConfigError. If there is no such file, it lists the names of the shipped ones.
    """
    path, own = Path(path), shipped / f"{path}.yaml"
    path = own if own.is_file() and not path.is_file() else path
    if not path.is_file():
        names = ", ".join(sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")))
        raise ConfigError(f"no {what} {path}: give a path, or a shipped name: {names}")
    try:
        values = load_yaml(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must contain a mapping at the top, but contains {type(values).__name__}")
    return path, values


def set_field(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one field in place. A number in the key is an index into a list: `arms.0.method`."""
    *parents, last = dotted.split(".")
    place: Any = values
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[_index(place, key, dotted)]
        if not isinstance(place, dict | list):
            raise ConfigError(f"cannot set {dotted!r}: {key!r} is not a section")
    place[last if isinstance(place, dict) else _index(place, last, dotted)] = value


def get_field(values: dict[str, Any], dotted: str) -> Any:
    """Return the value of one field, or None if it is not set. A number in the key is an index into a list."""
    place: Any = values
    for key in dotted.split("."):
        place = place[_index(place, key, dotted)] if isinstance(place, list) else (place or {}).get(key)
    return place


def _index(entries: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(entries):
        raise ConfigError(
            f"cannot set {dotted!r}: {key!r} is no index into a list of {len(entries)} entries: give a number from 0 on"
        )
    return int(key)
