"""A prepared run: its data and suites, and the records of its base model. All arms are trained and measured with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.hashing import json_digest
from experiments.common.owner import CONFIG, SOURCES
from experiments.config import ExperimentConfig
from experiments.data.base_text import BaseText
from experiments.data.source import Source
from experiments.data.stages import Earlier
from experiments.evaluation.cache import Elsewhere
from experiments.evaluation.evaluate import Suites, alone
from experiments.evaluation.suite import SuiteContext
from experiments.methods.config import ArmConfig
from experiments.methods.saving import facts_of
from experiments.models.packing import documents_apart
from experiments.models.precision import Precision
from experiments.records import ArmResult, write_records
from experiments.runs.baseline import MeasuredBase, headline, measure_base
from experiments.runs.checks import beyond_training, check_run, check_suites, check_tokens, passed_over, unread_loss
from experiments.runs.data import ExperimentData
from experiments.runs.overlap import Searched, search
from experiments.runs.result_file import owners_noted, write_result
from experiments.runs.unused import notes


@dataclass(frozen=True, eq=False)
class Prepared(MeasuredBase):
    """What all arms of a run share. `prepare` makes it.

    searched: what is measured and in the training data too. facts: of the base model that was measured, see `facts_of`.
    """

    config: ExperimentConfig
    data: ExperimentData
    searched: Searched
    facts: dict[str, Any]

    def measure(self, model: PreTrainedModel, result: ArmResult, folder: Path, changed: Mapping[Path, str]) -> None:
        """Measure a model that was changed after its training, fill the result, and write it and its records.

        folder: of the result. changed: the arms whose weights it has, see `write_result`.
        """
        records = self.evaluate(model)
        write_records(folder / f"items-{result.steps}.jsonl", records)
        result.scorecard = self.score(records)
        result.trajectory = [
            {"step": 0, **self.base_headline},
            {"step": result.steps, **headline(result.scorecard)},
        ]
        write_result(folder, result, changed)

    def inputs(self, arm: ArmConfig | None = None) -> list[dict[str, Any]]:
        """Return the sources as inputs of an MLflow run: all of the experiment, or those that an arm reads."""
        return [
            {**one, "source": one["kind"], "kind": "replay" if one["replayed"] else "training"}
            for one in self.data.describe(arm)
            if one["share"] or arm is None
        ]


@dataclass(eq=False)
class Inputs:
    """What a run reads before it writes: the base model, the data and the suites, checked. `read_inputs` makes it.

    model: the base; gone once it is measured, as arms need the memory. digests: of all that must not
    change while the run goes on, by name.
    """

    config: ExperimentConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: ExperimentData
    suites: Suites
    digests: Mapping[str, str]

    def measured(
        self,
        folder: Path,
        say: Callable[[str], None] = print,
        elsewhere: Elsewhere | None = None,
        together: Callable[..., AbstractContextManager[None]] = alone,
    ) -> Prepared:
        """Measure the base model, or read its records in the run's folder. Raises ConfigError if a source changed.

        elsewhere: where other machines have them. together: see `BaseFolder`.
        """
        _check_sources(folder, self.digests, self.config.digest())
        evaluation, precision, root = self.config.evaluation, Precision(self.config.precision), folder.parents[1]
        seed = self.config.seed
        searched = search(self.data, self.suites, root / "cache", list(self.digests.values()))
        for line in searched.lines():
            say(line)
        base = measure_base(
            evaluation, self.suites, self.model, self.tokenizer, precision, root, folder, seed, say, elsewhere, together
        )
        facts = facts_of(self.model)
        del self.model
        return Prepared(**vars(base), config=self.config, data=self.data, searched=searched, facts=facts)


def prepare(config: ExperimentConfig, folder: Path, say: Callable[[str], None] = print) -> Prepared:
    """Read the inputs of a run, and measure its base model or read its records. Raises ConfigError."""
    return read_inputs(config, folder.parents[1], say).measured(folder, say)


def read_inputs(config: ExperimentConfig, root: Path, say: Callable[[str], None] = print) -> Inputs:
    """Load data and base model, and check all that can be known before a folder or a store is made.

    root: its cache gets the text of a source `self`. Raises ConfigError for data that cannot be read, and for arms that
    the base model cannot have.
    """
    for line in notes(config):
        say(line)
    model, tokenizer = config.load_base()
    check_run(config, model)
    for line in passed_over(config, model):
        say(line)
    check_tokens(config, model, tokenizer)

    def writer() -> PreTrainedModel:
        say("the base model works on old text (once): it writes that of source `self`, or reads it for data.choose ...")
        return model

    packed = config.data.packs and documents_apart(model, config.data.length)
    if config.data.packs and not packed:
        say(_not_packed(config.data.regime))
    data = ExperimentData(config, tokenizer, writer, root / "cache", packed)
    context = SuiteContext(config.seed, config.base_model, config.trust_remote_code)
    suites = Suites.drawn(config.evaluation, context, tokenizer, data.tasks)
    check_suites(config.base_model, model, suites)
    beyond = beyond_training(config.base_model, model, suites, config.data.length)
    for line in (*beyond, *_read_twice(config), *unread_loss(config, data.tasks)):
        say(line)
    sources = (*data.new, *(data.old or _only_read(config)))
    for source in sources:
        for note in (*source.notes, *source.test_notes):
            say(f"source {source.label}: {note}")
    for line in (note for suite in suites.suites.values() for note in suite.notes):
        say(line)
    for file in config.evaluation.kept_files:
        for note in file.notes(config.evaluation.settings("kept").items):
            say(f"kept task {file.task}: {note}")
    data.check_rows()
    for line in data.counted():
        say(line)
    digests = {f"{i} {one['name']}": str(one["digest"]) for i, one in enumerate(data.describe())}
    digests |= {f"{i} {one.label}": one.digest() for i, one in enumerate(sources) if i >= len(digests)}
    named = {f"{i} the files of {one.label}": one.origin for i, one in enumerate(sources)}
    digests |= {name: origin for name, origin in named.items() if origin}  # earlier versions noted none
    digests |= {f"kept {one.task}": one.digest() for one in config.evaluation.kept_files}
    if config.data.template is not None:  # maybe a file, which may have changed
        digests["the data.template"] = json_digest(tokenizer.chat_template)
    return Inputs(config, model, tokenizer, data, suites, digests)


def _read_twice(config: ExperimentConfig) -> list[str]:
    """Say which data of the new task is replayed as old data: a copied line, most often."""
    new = [place for one in config.data.new if len(place := _place(one)) > 1]
    both = [one.label for one in config.data.old if _place(one) in new]
    return [f"data.old reads {label} as data.new does: what is replayed is the new task itself" for label in both]


def _place(source: Source) -> dict[str, Any]:
    return source.model_dump(include={"source", "path", "name", "subset", "split"})


def _only_read(config: ExperimentConfig) -> list[Source]:
    """Return the sources of old text that methods read (ewc, corda) though no arm replays it."""
    if not any(arm.build().reads_old for arm in config.arms):
        return []
    return [source for source in config.data.old if not isinstance(source, BaseText | Earlier)]


def _not_packed(regime: str) -> str:
    if regime == "sft":
        return "conversations of one row would see each other in this model: each has a row of its own, not packed"
    return "documents of one row would see each other in this model: each row is one document, so steps read less"


def _check_sources(folder: Path, digests: Mapping[str, str], config: str) -> None:
    """Raise ConfigError if a source, or a file of a kept task, has changed since this run began. config: its digest."""
    path = folder / SOURCES
    advice = "delete it if the data is still that of the run's start, else start anew with --fresh"
    written = read_json(path, advice)
    known = owners_noted(folder) | written
    if known.get(CONFIG, config) != config:
        raise ConfigError(f"{path} is of a run with other settings: bring the run's own back, or {advice}")
    changed = [name.split(" ", 1)[1] for name in digests if known.get(name, digests[name]) != digests[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} has changed since {folder.name} began, so its arms would not compare: "
            "bring the old data back, or start anew with --fresh"
        )
    if not written.keys() >= {*digests, CONFIG}:  # a run that grows may read more with a later arm
        write_json(path, {**digests, **written, CONFIG: config})
