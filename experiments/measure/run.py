"""Measure what models forgot of their base, with the suites, records, statistics and tables of an experiment.

All state is in a folder: `base/` with the base model's records, and `arms/NAME/` with those of each model. The same
call goes on there. `compare` and `gate` read it as a run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctrl
from experiments.common.errors import BenchError
from experiments.common.machine_faults import of_the_machine
from experiments.measure.config import measure_config
from experiments.measure.endpoint import EndpointError, is_endpoint
from experiments.measure.folder import Folder, open_session
from experiments.measure.gate import Condition, conditions
from experiments.measure.models import Model, by_replies_alone, check_endpoints, read_base, read_models
from experiments.measure.report import Report, write_measurement
from experiments.measure.session import Session
from experiments.measure.tokenizers import load_tokenizer
from experiments.records import ArmResult
from experiments.runs.run import only_one_process
from experiments.tracking.uri import without_password


@dataclass(frozen=True)
class Measurement:
    """What a call leaves. results: by the order of the models. failed: by name why a model could not be measured.

    left_out: by name the suites that a model cannot have, and why. report: words, tables and the path of the page.
    conditions: of the gate.
    """

    folder: Path
    results: list[ArmResult]
    report: Report
    failed: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    conditions: Sequence[Condition] = ()

    def judged(self) -> list[tuple[bool, str]]:
        """Judge each condition of the gate for each model that was measured: (whether it holds, one line)."""
        return [c.judge(r, self.left_out.get(r.arm, {})) for r in self.results for c in self.conditions]

    def verdicts(self) -> list[tuple[bool, str]]:
        """Return what is judged; a model that could not be measured holds no condition."""
        broken = [(False, f"FAIL  {name}: not measured: {why}") for name, why in self.failed.items()]
        return self.judged() + (broken if self.conditions else [])


def measure(
    base: str,
    models: Sequence[str],
    new: str | Path | None = None,
    suites: Sequence[str] | None = None,
    kept_tasks: Sequence[str] | None = None,
    gate: Sequence[str] = (),
    out: str | Path | None = None,
    root: str | Path | None = None,
    precision: str = "auto",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
    say: Callable[[str], None] = print,
    kept_files: Sequence[str | Path] = (),
    grader: Any = None,
    lm_eval: Sequence[str] = (),
    **loading: Any,
) -> Measurement:
    """Measure models against their base, or go on. Raises ConfigError for wrong input, before anything heavy is loaded.

    models: addresses, or `NAME=ADDRESS`: a Hugging Face name, a folder of a model, of a PEFT adapter or of `ctrl.save`,
    a published Control LLM checkpoint, a folder with `checkpoint-STEP` folders, an address in MLflow, an endpoint
    (http://HOST:PORT/v1#MODEL, or without #MODEL if it serves one model: it is asked for replies, and kept questions
    are answered in replies too). new: file with the new task, for the gain. gate: conditions such as "retention >=
    .98". out: folder of the results; default: one below `root`, named after base and settings. changes: fields of the
    section `evaluation` (`kept.items`). kept_files: files of questions that count as kept tasks. grader: of the new
    task, as in YAML. lm_eval: tasks of lm-evaluation-harness that count as kept. loading: dtype, device_map and
    trust_remote_code, see `MeasureConfig`.
    allow_other_base: see `base.Base`. A model that fails does not stop the others.
    """
    only_one_process("measuring")
    given = functools.partial(
        measure_config, base, new, suites, kept_tasks, precision, seed, changes, kept_files, grader, lm_eval, **loading
    )
    config = given()
    served = any(is_endpoint(address) or is_endpoint(address.partition("=")[2]) for address in models)
    if served and "kept" in config.evaluation.suites and config.evaluation.settings("kept").has_options:
        config = given(few={"kept.generated": True})  # a server does not give the options' probabilities
    asked = conditions(gate, config)
    found = read_base(base, allow_other_base, config.loading)
    tokenizer = load_tokenizer(found.folder, found.remote_code)
    task = config.task(tokenizer)
    for line in config.notes(task):
        say(line)
    chosen = read_models(models, found, tokenizer, task)
    check_endpoints(chosen, config.evaluation.suites)
    remarks = [f"{model.name}: {model.remark}" for model in chosen if model.remark]
    folder = Folder("measure", _slug(base), out, root, arms=[model.name for model in chosen])
    with open_session(config, found, tokenizer, task, folder, chosen, say) as session:
        for line in (note for suite in session.suites.suites.values() for note in suite.notes):
            say(line)
        chosen = [by_replies_alone(model, session.suites) for model in chosen]
        results, failed = _measure_all(session, chosen)
        if not results:
            session.base_measured()  # raises what was wrong with the base, if that was it
        left_out = {model.name: dict(model.left_out) for model in chosen if model.left_out}
        report = write_measurement(session, results, failed, left_out, remarks)
        return Measurement(session.folder, results, report, failed, left_out, asked)


def _measure_all(session: Session, models: Sequence[Model]) -> tuple[list[ArmResult], dict[str, str]]:
    results, failed = [], {}
    for model in models:
        try:
            results.append(session.measure(model))
        except (BenchError, ctrl.CheckpointError, ctrl.ConfigError, ValueError, RuntimeError) as error:
            if of_the_machine(error) and not isinstance(error, EndpointError):  # full memory says nothing of the model
                raise
            failed[model.name] = without_password(f"{type(error).__name__}: {error}")
            session.say(f"  failed: {failed[model.name]}")
    return results, failed


def _slug(base: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(base).name)
