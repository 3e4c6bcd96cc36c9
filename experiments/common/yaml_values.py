"""The plain values of a YAML file: read, and one field of them set by its dotted key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from experiments.common.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """1e-3 is a number, as in YAML 1.2 and in Python; PyYAML wants 1.0e-3 and would read a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(text: str) -> Any:
    """The values of a YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def read_yaml(path: str | Path, shipped: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """The mapping in a file given by its path or, below the folder `shipped`, by name; and where it was found.

    Raises ConfigError, which names the shipped ones where there is no such file.
    """
    path, own = Path(path), shipped / f"{path}.yaml"
    path = own if own.is_file() and not path.is_file() else path
    if not path.is_file():
        names = ", ".join(sorted(str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")))
        raise ConfigError(f"no {what} {path}: give a path, or a shipped name: {names}")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping at the top, but holds {type(values).__name__}")
    return path, values


def set_field(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one field in place. Numbers in the key count the entries of a list: `arms.0.method`."""
    *parents, last = dotted.split(".")
    place: Any = values
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[_index(place, key, dotted)]
        if not isinstance(place, dict | list):
            raise ConfigError(f"cannot set {dotted!r}: {key!r} is not a section")
    place[last if isinstance(place, dict) else _index(place, last, dotted)] = value


def _index(entries: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(entries):
        raise ConfigError(f"cannot set {dotted!r}: {key!r} stands for an entry of a list of {len(entries)}, from 0 on")
    return int(key)
