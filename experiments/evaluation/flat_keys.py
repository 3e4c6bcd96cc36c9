"""The flat keys of earlier versions, such as `kept_items: 16` for `suites: {kept: {items: 16}}`.

Files, `--set`, studies and saved runs may use either form. The functions here work on plain values, before validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.yaml_values import set_field

FLAT: dict[str, tuple[str, ...]] = {  # flat key: suite and field, or the suite as a whole
    "kept_tasks": ("kept", "tasks"),
    "kept_items": ("kept", "items"),
    "kept_generated": ("kept", "generated"),
    "aa_floor": ("kept", "aa_floor"),
    "instruction_items": ("instructions", "items"),
    "replies": ("drift", "replies"),
    "new_replies": ("drift", "new_replies"),
    "reply_tokens": ("drift", "reply_tokens"),
    "perplexity_tokens": ("text", "tokens"),
    "lm_eval": ("lm_eval",),
}
DEFAULT_SUITES = ("new", "kept", "drift", "text")

PlainSettings = dict[str, Any]  # by suite


def split(evaluation: Mapping[str, Any]) -> tuple[dict[str, Any], PlainSettings]:
    """Return the section without settings of suites, `suites` as a list of names, and the settings that are given.

    Values of a wrong type are returned as they are. Raises ConfigError for a field that both forms set, to two values.
    """
    fields = {key: value for key, value in evaluation.items() if key not in FLAT}
    fields["suites"], settings = _named(fields.get("suites", list(DEFAULT_SUITES)))
    for key, (suite, *field) in FLAT.items():
        value = evaluation.get(key)
        if key not in evaluation or (value is None and not field):
            continue
        own, new = settings.get(suite) or {}, {field[0]: value} if field else value
        _check_once(key, suite, bool(field), own, new)
        settings[suite] = {**own, **new} if isinstance(own, dict) and isinstance(new, dict) else new
    return fields, settings


def _check_once(key: str, suite: str, of_field: bool, own: Any, new: Any) -> None:
    """Raise ConfigError if a flat key and the section of its suite give a field two values."""
    if not (isinstance(own, dict) and isinstance(new, dict)):
        return
    if both := [name for name in new if name in own and own[name] != new[name]]:
        name = both[0]
        flat_key = key if of_field else f"{key}.{name}"
        nested = f"suites.{suite}.{name}={own[name]!r}"
        raise ConfigError(f"{flat_key}={new[name]!r} and {nested} are two names of one field: leave one out")


def join(fields: Mapping[str, Any], settings: PlainSettings) -> dict[str, Any]:
    """Return the section from the two parts that `split` gives. Settings of suites not measured become flat keys."""
    names = fields["suites"]
    if not isinstance(names, list):
        return dict(fields)
    suites = [{name: settings[name]} if isinstance(name, str) and name in settings else name for name in names]
    return {**fields, "suites": suites, **flat({n: given for n, given in settings.items() if n not in names})}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a flat key, under that key."""
    found = {}
    for key, (suite, *field) in FLAT.items():
        given = settings.get(suite)
        if isinstance(given, dict) and (not field or field[0] in given):
            found[key] = given[field[0]] if field else given
    return found


def set_key(evaluation: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the section with one field set by its dotted key: `replies`, `suites.drift.replies`, `suites`, `every`.

    With a list as `suites`, each suite keeps its settings (lm_eval only if it is in the list); a mapping replaces the
    settings of the suites it names. Settings of a suite that is not in `suites` add it, unless the key is flat.
    """
    first, *rest = key.split(".")
    path = ["suites", *FLAT[first], *rest] if first in FLAT else [first, *rest]
    fields, settings = split(evaluation)
    if path == ["suites"]:
        fields["suites"], given = _named(value)
        settings |= given
        if isinstance(fields["suites"], list) and "lm_eval" not in fields["suites"]:
            settings.pop("lm_eval", None)  # its settings say which tasks, so they cannot stay without it
    elif path[0] == "suites" and isinstance(fields["suites"], list):
        if first not in FLAT and path[1] not in fields["suites"]:
            fields["suites"].append(path[1])
        set_field({"evaluation": {"suites": settings}}, ".".join(["evaluation", *path]), value)
    else:
        set_field({"evaluation": fields}, f"evaluation.{key}", value)
    return join(fields, settings)


def with_defaults(evaluation: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with fields of its suites, such as `kept.items`, set where it has no value for them."""
    section, settings = split(evaluation)
    names = section["suites"]
    for key, value in fields.items():
        suite, field = key.split(".")
        given = settings.setdefault(suite, {}) if isinstance(names, list) and suite in names else None
        if isinstance(given, dict):
            given.setdefault(field, value)
    return join(section, settings)


def place_of(key: str) -> tuple[str, ...]:
    """Return the parts of a config's dotted key: those of a flat key as they are now, and 00 as 0."""
    first, *rest = key.split(".")
    if first == "evaluation" and rest and rest[0] in FLAT:
        rest = ["suites", *FLAT[rest[0]], *rest[1:]]
    return (first, *(str(int(part)) if part.isdecimal() else part for part in rest))


def replaces(later: str, key: str) -> bool:
    """Whether a key that is set later sets the same field as `key`, or a section with it."""
    place = place_of(later)
    return place_of(key)[: len(place)] == place


def _named(suites: Any) -> tuple[Any, PlainSettings]:
    """Return the names of suites and the settings given with them. A value of a wrong type is returned as it is."""
    if isinstance(suites, dict):
        return list(suites), {name: _copy(given) for name, given in suites.items()}
    if not isinstance(suites, list | tuple):
        return suites, {}
    parts = [_named(entry) if isinstance(entry, dict) else ([entry], {}) for entry in suites]
    return [name for names, _ in parts for name in names], {n: given for _, own in parts for n, given in own.items()}


def _copy(given: Any) -> Any:
    return dict(given) if isinstance(given, dict) else {} if given is None else given


def of_results(values: Any) -> Any:
    """Return the flat values of a run or of its section without what no result depends on, for a digest.

    A batch size of lm_eval that is found out counts as the 8 that was the default of earlier versions.
    """
    if isinstance(values, dict):
        section = values.get("evaluation", values)
        lm_eval = section.get("lm_eval") if isinstance(section, dict) else None
        if isinstance(lm_eval, dict) and lm_eval.get("batch_size") == "auto":
            section = {**section, "lm_eval": {**lm_eval, "batch_size": 8}}
            return {**values, "evaluation": section} if "evaluation" in values else section
    return values
