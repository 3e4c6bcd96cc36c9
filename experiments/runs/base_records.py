"""Measure the base model of a run once, and keep its records, the state of its suites and their digests."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.computes import COMPUTES, TRAINING, computes, differences, trains
from experiments.common.errors import ConfigError, RunError
from experiments.common.files import is_damaged, read_note, write_json
from experiments.common.hashing import file_digest, json_digest
from experiments.common.owner import anew
from experiments.evaluation.cache import BaseCache, tokenizer_digest
from experiments.evaluation.evaluate import Evaluation, Suites, alone
from experiments.evaluation.suite import DrawnSuite
from experiments.models.precision import EXACT, Precision
from experiments.models.weights_digest import weights_digest
from experiments.records import Record, read_records, write_records

ITEMS, STATE, REWORDED, TIMING = "items.jsonl", "state.json", "reworded.jsonl", "timing.json"


def check_suites(folder: Path, suites: Suites) -> None:
    """Raise ConfigError if the base model was measured with other questions, or by other code, than suites have now.

    folder: of the run. Without a note of an earlier version nothing is known.
    """
    if changed := changed_suites(folder, suites):
        raise ConfigError(
            f"{', '.join(changed)}: the questions, or the code that asks them, have changed since {folder.name} began "
            "(another version of this bench or of a library), so new figures would not compare: go on with the "
            f"version that it began with, or {anew(folder)}"
        )


def changed_suites(folder: Path, suites: Suites) -> list[str]:
    """Return the names of suites whose questions or code are others than when the base of a run was measured."""
    return asked_others(read_note(folder / "base" / TIMING).get("suites", {}), suites)


def is_whole(file: Path) -> bool:
    """Whether a file of the folder `base` is there, as it was written; without a digest of it, as it can be read."""
    note = file.with_name(TIMING)
    digest = read_note(note).get("files", {}).get(file.name)
    return file.is_file() and (not is_damaged(note) if digest is None else file_digest(file) == digest)


def asked(suites: Suites) -> dict[str, str]:
    """Return by suite a digest of what it asks and how it grades, as the tokenizer writes it, and of its code."""
    return {name: _asked(suite) for name, suite in suites.suites.items()}


def replies_noted(suites: Suites) -> dict[str, Any]:
    """Return for `compare`, by suite and task, the most tokens of a reply and what decides which are right."""
    drawn = suites.suites.items()
    return {
        "room": {name: dict(suite.room) for name, suite in drawn if suite.room},
        "graded": {name: dict(suite.grading) for name, suite in drawn if suite.grading},
    }


def asked_others(known: Mapping[str, str], suites: Suites) -> list[str]:
    """Return the suites of which `asked` is another than was noted; what was not noted does not count."""
    return [name for name, digest in asked(suites).items() if known.get(name, digest) != digest]


def _asked(suite: DrawnSuite) -> str:
    """Return a digest of what a suite asks, and of the version of its code."""
    return json_digest([suite.version, suite.content()])[:16]


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the base model has another tokenizer than when its arms were trained. folder: of the run."""
    known = read_note(folder / "base" / TIMING).get("tokenizer")
    if known not in (None, tokenizer_digest(tokenizer)):
        raise ConfigError(
            f"base_model has another tokenizer than when {folder.name} began, which its arms were not trained with: "
            "bring the old one back"
        )


def check_precision(folder: Path, precision: Precision) -> None:
    """Raise RunError if the base model was measured in another arithmetic, by `auto` on another machine.

    folder: of the run. Without a note of an earlier version nothing is known.
    """
    known = read_note(folder / "base" / TIMING).get("precision")
    if known not in (None, precision.name):
        raise RunError(
            f"{folder.name} began in {known}, and precision auto is {precision.name} here ({precision.reason}), so new "
            f"figures would not compare: go on on a machine like the first one, or {anew(folder)}"
        )


def check_weights(folder: Path, model: PreTrainedModel) -> None:
    """Raise ConfigError if a base model has other weights than when its arms were trained. folder: of the run."""
    known = read_note(folder / "base" / TIMING).get("weights")
    if known not in (None, weights_digest(model)):
        raise ConfigError(f"base_model has other weights than when {folder.name} began: bring the old ones back")


def config_digest(fields: Mapping[str, Any]) -> str:
    """Return a digest of how a config lets weights compute and train, of the fields that all versions have.

    fields: `computes` and `trains`.
    """
    stable = (*COMPUTES, "rope_parameters")
    known = {name: fields[name] for name in fields if name in stable or re.fullmatch(TRAINING, name)}
    return json_digest(known)


@dataclass(frozen=True)
class BaseFolder:
    """The folder `base` of a run, the base model and the cache of its results.

    A file that is damaged or gone is made again, from the cache if it has it. `timing.json` holds the seconds of the
    measurement, what the base model is, and the digests of the other files; earlier versions wrote the seconds alone.
    together: lets other processes measure with this one (`Suites.measure_base`); has `reworded=True` for the floor.
    """

    folder: Path
    suites: Suites
    model: PreTrainedModel
    precision: Precision
    cache: BaseCache
    together: Callable[..., AbstractContextManager[None]] = alone

    def check_base(self) -> None:
        """Raise ConfigError if the base model has other weights, config, tokenizer or ends of replies than at the start
        of the run."""
        known, here = self._note(), self._base()
        own = ("weights", "tokenizer", "code")
        changed = [what for what in own if what in here and known.get(what, here[what]) != here[what]]
        if fields := differences(known.get("computes", {}), here["computes"]):
            changed.append(f"config ({fields})")
        if known.get("ends", here["ends"]) != here["ends"]:
            changed.append(
                f"ends of replies (tokens {known['ends']} there, {here['ends']} here: generation_config.json)"
            )
        if changed:
            raise ConfigError(
                f"base_model has other {' and '.join(changed)} than when {self.folder.parent.name} began, so its arms "
                f"would not compare: bring the old ones back, or {anew(self.folder.parent)}"
            )

    def _base(self) -> dict[str, Any]:
        """Return what must not change of the base model: weights, tokenizer, code of its own, how they compute and
        train by its config, the tokens at which its replies end."""
        own = {name: self.cache.key[name] for name in ("weights", "tokenizer", "code") if name in self.cache.key}
        fields = computes(self.model.config) | trains(self.model.config)
        return own | {"computes": fields, "config": config_digest(fields), "ends": self.cache.ends}

    def measured(self, say: Callable[[str], None]) -> tuple[Evaluation, list[Record], float]:
        """Return the prepared suites, the base model's records and the seconds that these took."""
        state = read_note(self.folder / STATE)
        if state and self._whole(ITEMS) and self._whole(STATE):
            self._say_changed(say)
            evaluation = self.suites.prepare(self.model, self.precision, self.cache, state)
        else:
            say("measuring the base model (results of earlier runs are reused) ...")
            evaluation, found = self.suites.measure_base(self.model, self.precision, self.cache, self.together)
            write_json(self.folder / STATE, evaluation.state())
            write_records(self.folder / ITEMS, found.records)
            noted = {"seconds": found.seconds, "measured": found.measured, "precision": self.precision.name}
            noted |= {"with": self._with(), **replies_noted(self.suites)}
            self._keep(STATE, ITEMS, suites=asked(self.suites), **noted)
        if ITEMS not in self._note().get("files", {}):  # of an earlier version, or killed between two files
            self._keep(STATE, ITEMS)
        return evaluation, read_records(self.folder / ITEMS), float(self._note().get("seconds", 0.0))

    def _with(self) -> dict[str, str]:
        """Return what last digits depend on, and which may be another one when the next model is measured."""
        key = self.cache.key
        own = {name: str(key[name]) for name in ("torch", "transformers", "device", "gpu") if name in key}
        return own | {"products of fp32": key.get("products", EXACT)}

    def _say_changed(self, say: Callable[[str], None]) -> None:
        """Warn that the base was measured by other libraries, or on another device, than models are now."""
        known = self._note().get("with", {})
        if changed := [
            f"{n} {known[n]}, and {n} is {now} here" for n, now in self._with().items() if known.get(n, now) != now
        ]:
            say(
                f"warning: the base model was measured with {'; '.join(changed)}: what is measured now may differ for "
                f"that alone ({anew(self.folder.parent)})"
            )

    def floor(self) -> list[Record]:
        """Return the base model's answers to the kept questions in other words."""
        if not self._whole(REWORDED):
            together = self.together if self.together is alone else functools.partial(self.together, reworded=True)
            _, found = self.suites.reworded().measure_base(self.model, self.precision, self.cache, together)
            write_records(self.folder / REWORDED, found.records)
            self._keep(REWORDED)
        return read_records(self.folder / REWORDED)

    def _note(self) -> dict[str, Any]:
        return read_note(self.folder / TIMING)

    def _whole(self, name: str) -> bool:
        return is_whole(self.folder / name)

    def _keep(self, *names: str, **values: Any) -> None:
        note = self._note() | values | self._base()
        files = note.get("files", {}) | {name: file_digest(self.folder / name) for name in names}
        write_json(self.folder / TIMING, note | {"files": files})
