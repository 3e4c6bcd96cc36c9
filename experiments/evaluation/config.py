"""The YAML section `evaluation`: which suites are measured, with which settings, and when."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from experiments.common.errors import ConfigError
from experiments.common.section import MAX_DRAWS, Place, Section, nearest
from experiments.evaluation.flat_keys import DEFAULT_SUITES, FLAT, flat, place_of, split
from experiments.evaluation.kept_tasks.own import KeptFile
from experiments.evaluation.suite import DrawnSuite, SuiteSettings
from experiments.evaluation.suites import SUITES

MAX_ITEMS = 10**6  # held-out items


class EvaluationConfig(Section):
    """How much is measured, and when. The base model and every arm at every step get the same items.

    `suites` is a list of names, a mapping of names to settings, or a list of both: `[new, {drift: {replies: 8}}]`. The
    flat keys of earlier versions (`kept_items`) are read as well. After validation `suites` holds the names.
    """

    every: int | None = Field(
        20, ge=1, description="steps between evaluations during training; null, the default with suite lm_eval: the "
        "end alone",
    )  # fmt: skip
    suites: tuple[str, ...] = Field(
        DEFAULT_SUITES, min_length=1, description="what is measured, in order: names, or a mapping of names to settings"
    )
    new_items: int = Field(128, ge=1, le=MAX_ITEMS, description="held-out items of each new source")
    bootstrap: int = Field(10_000, ge=100, le=MAX_DRAWS, description="resamples for the intervals of figures")
    _settings: dict[str, SuiteSettings] = PrivateAttr(default_factory=dict)  # of suites measured, or not the default

    def settings(self, suite: str) -> Any:
        """Return the settings of a suite, measured or not: an instance of its class `Settings`."""
        return self._settings[suite] if suite in self._settings else SUITES[suite].Settings()

    def unused_settings(self) -> set[str]:
        """Return the suites that are not measured but have a setting that is not its default."""
        return self._settings.keys() - set(self.suites)

    def check_settings(self, given: Collection[str] = ()) -> None:
        """Raise ConfigError for settings of suites that are not measured.

        given: keys that are set over those of the file. If `evaluation.suites` is one of them, settings that the file
        has for other suites may stay.
        """
        unused = self.unused_settings()
        if "evaluation.suites" in given:
            places = [place for place in map(place_of, given) if place[:2] == ("evaluation", "suites")]
            unused = {place[2] for place in places if len(place) > 2} - set(self.suites)
        for name in sorted(unused):
            raise ConfigError(
                f"evaluation: the settings of {name} have no effect: add {name} to suites, or leave them out"
            )

    @property
    def kept_files(self) -> tuple[KeptFile, ...]:
        """The files of kept tasks that are measured."""
        files: tuple[KeptFile, ...] = self.settings("kept").files if "kept" in self.suites else ()
        return files

    @property
    def has_floor(self) -> bool:
        """Whether the A/A floor is measured: some suite asks the base model in other words too."""
        return any(self.settings(name).has_floor for name in self.suites)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, values: Any, make: ModelWrapValidatorHandler[EvaluationConfig]) -> EvaluationConfig:
        """Check fields and settings, and report all faults together, each at its place in the file."""
        if not isinstance(values, dict):
            return make(values)
        fields, given = split(values)
        names = fields["suites"] if isinstance(fields["suites"], list) else []
        if "lm_eval" in names:
            fields.setdefault("every", None)  # its tasks take long
        known = {n: given.get(n, {}) for n in (*names, *given) if isinstance(n, str) and n in SUITES}
        faults: list[Any] = []
        try:
            checked = _all_settings(tuple(SUITES.items())).model_validate(known)
        except ValidationError as error:
            faults = [{**fault, "loc": _place(fault["loc"], values)} for fault in error.errors()]
        try:
            made = make(fields)
        except ValidationError as error:
            faults = [*error.errors(), *faults]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        if "lm_eval" in known and "lm_eval" not in names:
            raise ValueError("`lm_eval` needs both its section (which tasks) and its name in `suites`")
        settings = {name: getattr(checked, name) for name in known}
        if {"kept", "lm_eval"} <= set(names):  # figures go by the names of tasks
            tasks = {*settings["lm_eval"].new, *settings["lm_eval"].kept}
            if both := sorted(tasks.intersection(settings["kept"].names)):
                raise ValueError(f"{both[0]!r} is a kept task and one of lm_eval: give the file another `name`")
        made._settings = {n: one for n, one in settings.items() if n in names or one != SUITES[n].Settings()}
        return made

    @field_validator("suites")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SUITES:
                raise ValueError(f"unknown name {name!r}: {nearest(name, SUITES)}")
            if value.count(name) > 1:
                raise ValueError(f"{name!r} appears more than once")
        return value

    @model_serializer(mode="wrap")
    def _with_settings(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write settings as sections of `suites`; those of suites that are not measured as flat keys."""
        suites = {name: self._plain(name) for name in self.suites}
        others = {n: self._plain(n, exclude_defaults=True) for n in self._settings if n not in suites}
        return {**fields(self), "suites": suites, **flat(others)}

    def to_flat(self) -> dict[str, Any]:
        """Return the section in the form of earlier versions: `suites` as names, all settings as flat keys.

        Digests are made of it (`flat_keys.of_results`), so they are the same as in earlier versions. A setting that
        has no flat key is written next to the suite's name, and only if it differs from its default.
        """
        settings = {suite: self._plain(suite) for suite, *field in FLAT.values() if field}
        lm_eval = self._plain("lm_eval") if "lm_eval" in self._settings else None
        suites = [{name: rest} if (rest := self._without_flat_key(name)) else name for name in self.suites]
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return {**own, **flat(settings), "lm_eval": lm_eval, "suites": suites}

    def _plain(self, suite: str, **options: Any) -> dict[str, Any]:
        plain: dict[str, Any] = self.settings(suite).model_dump(mode="json", **options)
        return plain

    def _without_flat_key(self, suite: str) -> dict[str, Any]:
        if (suite,) in FLAT.values():
            return {}
        flat_fields = {field[0] for name, *field in FLAT.values() if name == suite}
        return self._plain(suite, exclude=flat_fields, exclude_defaults=True)


@functools.cache
def _all_settings(suites: tuple[tuple[str, type[DrawnSuite]], ...]) -> type[Section]:
    """Make the class with the settings of these suites. A script may add a suite at any time, so it is not fixed."""
    sections: Any = {name: (suite.Settings, None) for name, suite in suites}
    made: type[Section] = create_model("AllSettings", __base__=Section, **sections)
    return made


def _place(loc: Place, values: dict[str, Any]) -> Place:
    """Return the place of a setting in the file: its flat key if that is used, else the suite's section."""
    for key, path in FLAT.items():
        if key in values and loc[: len(path)] == path:
            return (key, *loc[len(path) :])
    return ("suites", *loc)
