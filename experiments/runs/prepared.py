"""A prepared run: its data and suites, and the records of its base model. All arms are trained and measured with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.config import ArmConfig, ExperimentConfig
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Evaluation, Suites
from experiments.evaluation.suite import SuiteContext
from experiments.models.packing import documents_apart
from experiments.models.precision import Precision
from experiments.records import ArmResult, Estimate, Record, write_records
from experiments.runs.base_records import BaseFolder
from experiments.runs.checks import check_run, check_suites, check_tokens
from experiments.runs.data import ExperimentData
from experiments.runs.result_file import write_result
from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.figures import HEADLINE


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all arms of a run share. `prepare` makes it.

    folder: of the run. evaluation: the suites, compared with the base model. base: its records. floor: its answers to
    the reworded kept questions, for the A/A floor; empty without one. evaluation_seconds: of the base model.
    """

    config: ExperimentConfig
    folder: Path
    precision: Precision
    tokenizer: PreTrainedTokenizerBase
    data: ExperimentData
    evaluation: Evaluation
    base: list[Record]
    floor: list[Record]
    evaluation_seconds: float

    def evaluate(self, model: PreTrainedModel, progress: bool = True) -> list[Record]:
        """Measure a model as all others of the run. progress: show a bar."""
        return self.evaluation.evaluate(model, self.precision, progress=progress)

    def score(self, records: list[Record]) -> dict[str, Estimate]:
        """Return the scorecard of records against the base model's, with the A/A floor."""
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        card = scorecard(self.base, records, draws, seed)
        return card | (aa_floor(self.base, self.floor, records, draws, seed) if self.floor else {})

    @cached_property
    def base_headline(self) -> dict[str, Estimate]:
        """The headline figures of the base model itself."""
        return headline(self.score(self.base))

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
    _check_sources(folder, data)
    for source in (*data.new, *data.old):
        for note in source.notes:
            say(f"source {source.label}: {note}")
    context = SuiteContext(config.seed, config.base_model, config.trust_remote_code)
    suites = Suites.drawn(config.evaluation, context, tokenizer, data.tasks)
    check_suites(config, model, suites)
    files = BaseFolder(folder / "base", suites, model, precision, BaseCache(root, model, tokenizer, precision))
    files.check_weights()
    evaluation, base, seconds = files.measured(say)
    floor = files.floor() if config.evaluation.has_floor else []
    return Prepared(config, folder, precision, tokenizer, data, evaluation, base, floor, seconds)


def headline(figures: dict[str, Estimate]) -> dict[str, Estimate]:
    """Return the few figures that are shown for every evaluation."""
    return {name: figures[name] for name in HEADLINE if name in figures}


def _check_sources(folder: Path, data: ExperimentData) -> None:
    """Raise ConfigError if a source has changed since this run began."""
    digests = {f"{i} {one['name']}": one["digest"] for i, one in enumerate(data.describe())}
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
