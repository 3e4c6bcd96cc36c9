"""A prepared run: its data and suites, and the records of its base model. All arms are trained and measured with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.hashing import json_digest
from experiments.config import ArmConfig, ExperimentConfig
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.models.packing import documents_apart
from experiments.models.precision import Precision
from experiments.records import ArmResult, write_records
from experiments.runs.baseline import MeasuredBase, headline, measure_base
from experiments.runs.checks import check_run, check_suites, check_tokens
from experiments.runs.data import ExperimentData
from experiments.runs.overlap import Searched, search
from experiments.runs.result_file import write_result


@dataclass(frozen=True, eq=False)
class Prepared(MeasuredBase):
    """What all arms of a run share. `prepare` makes it. searched: what is measured and in the training data too."""

    config: ExperimentConfig
    data: ExperimentData
    searched: Searched

    def measure(self, model: PreTrainedModel, result: ArmResult, folder: Path) -> None:
        """Measure a model after its training, fill the result, and write it and its records to `folder`."""
        records = self.evaluate(model)
        write_records(folder / f"items-{result.steps}.jsonl", records)
        result.scorecard = self.score(records)
        result.trajectory = [
            {"step": 0, **self.base_headline},
            {"step": result.steps, **headline(result.scorecard)},
        ]
        write_result(folder, result)

    def inputs(self, arm: ArmConfig | None = None) -> list[dict[str, Any]]:
        """Return the sources as inputs of an MLflow run: all of the experiment, or those that an arm reads."""
        return [
            {**one, "source": one["kind"], "kind": "replay" if one["replayed"] else "training"}
            for one in self.data.describe(arm)
            if one["share"] or arm is None
        ]


def prepare(config: ExperimentConfig, folder: Path, say: Callable[[str], None] = print) -> Prepared:
    """Load data and base model, and measure the base model unless its records are on disk.

    Raises ConfigError for data that cannot be read or has changed, and for arms that the base model cannot have.
    """
    precision, root = Precision(config.precision), folder.parents[1]
    model, tokenizer = config.load_base()
    check_run(config, model)
    check_tokens(config, model, tokenizer)

    def writer() -> PreTrainedModel:
        say("the base model writes the text of the source `self` (once) ...")
        return model

    packed = config.data.regime != "cpt" or documents_apart(model)
    if not packed:
        say("documents of one row would see each other in this model: each row is one document, so steps read less")
    data = ExperimentData(config, tokenizer, writer, root / "cache", packed)
    digests = {f"{i} {one['name']}": str(one["digest"]) for i, one in enumerate(data.describe())}
    further = {f"kept {one.task}": one.digest() for one in config.evaluation.kept_files}
    if config.data.template is not None:  # maybe a file, which may have changed
        further["the data.template"] = json_digest(tokenizer.chat_template)
    _check_sources(folder, digests | further)
    for source in (*data.new, *data.old):
        for note in source.notes:
            say(f"source {source.label}: {note}")
    for line in data.too_long():
        say(line)
    context = SuiteContext(config.seed, config.base_model, config.trust_remote_code)
    suites = Suites.drawn(config.evaluation, context, tokenizer, data.tasks)
    check_suites(config, model, suites)
    searched = search(data, suites, root / "cache", list(digests.values()))
    for line in searched.lines():
        say(line)
    measured = measure_base(config.evaluation, suites, model, tokenizer, precision, root, folder, config.seed, say)
    return Prepared(**vars(measured), config=config, data=data, searched=searched)


def _check_sources(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise ConfigError if a source, or a file of a kept task, has changed since this run began."""
    path = folder / "sources.json"
    known = read_json(path, "delete it if the data is still that of the run's start, else start anew with --fresh")
    changed = [name.split(" ", 1)[1] for name in digests if known.get(name, digests[name]) != digests[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} has changed since {folder.name} began, so its arms would not compare: "
            "bring the old data back, or start anew with --fresh"
        )
    if not known:
        write_json(path, digests)
