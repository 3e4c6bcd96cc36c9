"""Run an experiment from its config to its report, as the main process and as the processes that follow it.

Every step reads what is on disk and does only what is missing. `experiments.runs.run` is the entry.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from experiments.common.commands import command
from experiments.common.errors import RunError
from experiments.common.files import read_note, write_json, write_text
from experiments.common.printable import escaped
from experiments.common.yaml_values import dump_yaml
from experiments.config import ExperimentConfig
from experiments.data.counts import MOST
from experiments.evaluation.evaluate import Evaluation
from experiments.evaluation.suite import PreparedSuite
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.records import ArmResult
from experiments.runs.arm import ArmRun, Session
from experiments.runs.arm_training import ArmTraining, arm_trainings
from experiments.runs.base_records import changed_suites
from experiments.runs.checks import check_device
from experiments.runs.closing import close_run
from experiments.runs.estimate import TimeLeft, say_time
from experiments.runs.fits import fitting_rows
from experiments.runs.messages import BaseReady, Done, MeasureBase, TrainArm
from experiments.runs.outcome import Outcome
from experiments.runs.prepared import Inputs, read_inputs
from experiments.runs.result_file import BASE_ITEMS
from experiments.runs.shared_base import SharedBase
from experiments.tracking.journal import journals
from experiments.tracking.run import Run
from experiments.training.processes import Processes


def lead(inputs: Inputs, folder: Path, session: Session, processes: Processes) -> Outcome:
    """Measure the base model, run all arms and write the report; announce each step to the other processes."""
    config = inputs.config
    write_text(folder / "config.yaml", dump_yaml(config.to_dict()))
    session.say(_first_line(config, processes))
    session.tracker.reap()
    with _tracked(config, folder, session) as run:
        if changed := run.changed_versions():
            session.say(f"this run began with {changed}: its arms may differ for that")
        if session.parent is None and (why := session.tracker.send_missing(journals(folder))):
            session.say(f"MLflow lacks runs of arms that are finished ({why}); to send them: {command('sync', folder)}")
        shared = SharedBase(session.tracker, run)
        prepared = inputs.measured(folder, session.say, shared, functools.partial(_measured_by_all, processes))
        processes.send(BaseReady())
        run.log_file(folder / BASE_ITEMS, "base")
        run.log_inputs(prepared.inputs())
        arms = [ArmRun(training, session) for training in arm_trainings(prepared, processes)]
        _cut_steps([arm.training for arm in arms if not arm.result_file.is_file()], session)
        left = _say_what_is_left(arms, session)
        results = run_arms(arms, run, left)
        check_folder(folder, *(arm.result_file for arm in arms))
        outcome = close_run(prepared, arms, results, run, session.tracker)
        processes.send(Done(outcome))
        return outcome


def run_arms(arms: Sequence[ArmRun], run: Run, left: TimeLeft | None) -> list[ArmResult]:
    """Run the arms one after the other; each sends TrainArm if it trains. Raises MachineError, see `check_device`."""
    results = []
    for arm in arms:
        check_device()
        results.append(arm.run(run, left))
    return results


def follow(config: ExperimentConfig, folder: Path, processes: Processes) -> Outcome:
    """Do what the main process announces until it is done; return its outcome."""
    inputs: Inputs | None = None
    while isinstance(asked := processes.receive(MeasureBase, BaseReady), MeasureBase):
        inputs = inputs or _read_quietly(config, folder)
        _measure_base(inputs, asked, processes)
    prepared = (inputs or _read_quietly(config, folder)).measured(folder, lambda text: None)
    del inputs  # which holds the base
    arms = arm_trainings(prepared, processes)
    while True:
        match processes.receive(TrainArm, Done):
            case TrainArm(index, micro_batch):
                arms[index].follow(micro_batch)
            case Done(outcome):
                return outcome


def _read_quietly(config: ExperimentConfig, folder: Path) -> Inputs:
    return read_inputs(config, folder.parents[1], lambda text: None)


@contextmanager
def _measured_by_all(
    processes: Processes, base: PreTrainedModel, suite: PreparedSuite, folder: Path | None, reworded: bool = False
) -> Iterator[None]:
    """Share with the other processes what is measured inside the block."""
    processes.send(MeasureBase(suite.name, reworded, suite.state(), folder))
    with processes.sharing(base, f"base model, suite {suite.name}"):
        yield


def _measure_base(inputs: Inputs, asked: MeasureBase, processes: Processes) -> None:
    """Measure with the main process, which asked for it and keeps the records."""
    precision, base = Precision(inputs.config.precision), inputs.model
    suite = (inputs.suites.reworded() if asked.reworded else inputs.suites).suites[asked.suite]
    with evaluating(base, precision):
        prepared = suite.prepare(base, asked.state, asked.folder)
    with processes.sharing(base, f"base model, suite {asked.suite}"):
        Evaluation({asked.suite: prepared}).evaluate(base, precision, progress=False)


def check_folder(folder: Path, *results: Path) -> None:
    """Raise RunError if somebody removed the run's folder, or a part of it: what it had is lost.

    Writing makes a new one, and figures would stand in the report without their records. results: of all arms.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"the run's folder {folder} was removed while it ran: start the same command again")
    gone = [file for file in (folder / BASE_ITEMS, *results) if not file.is_file()]
    if gone:
        raise RunError(f"{gone[0]} was removed while the run went on: start the same command again")


@contextmanager
def _tracked(config: ExperimentConfig, folder: Path, session: Session) -> Iterator[Run]:
    """Open the experiment's run in MLflow, or continue it."""
    note, above = folder / "mlflow.json", session.parent
    with session.tracker.run(
        above.name if above else config.name,
        kind="experiment",
        parent=above.id if above else None,
        joins=above is not None and above.joins,
        params=config.to_dict(),
        run_id=read_note(note).get("run_id"),
        tags={"run_folder": str(folder), "experiment": config.name},
        folder=folder,
        note=lambda run_id: write_json(note, {"run_id": run_id}),
    ) as run:
        run.log_file(folder / "config.yaml")
        run.log_note(escaped(f"{config.base_model} learns {config.data.label}; not ended yet"))
        yield run


def _first_line(config: ExperimentConfig, processes: Processes) -> str:
    precision = Precision(config.precision)
    count = sum(len(arm.learning_rates) for arm in config.arms)
    together = f", {processes.count} processes" if processes.count > 1 else ""
    return f"{config.name}: {config.base_model}, {precision}, {count} arms{together}"


def _cut_steps(arms: Sequence[ArmTraining], session: Session) -> None:
    """Cut the steps of arms into micro-batches where all rows at once would not fit, and say so."""
    found = {arm.arm.name: arm for arm in arms}  # one plan for all rates
    rows = {name: fitting_rows(arm.prepared.config, arm.arm, arm.processes.count) for name, arm in found.items()}
    for line in (one[1] for one in rows.values() if one):
        session.say(line)
    for arm in arms:
        fits = rows[arm.arm.name]
        arm.micro_batch = fits[0] if fits else None


def _say_what_is_left(arms: Sequence[ArmRun], session: Session) -> TimeLeft | None:
    """Say how long the arms without a result will take, or that there are none. Not for a study's short trials."""
    if session.parent is not None:
        return None
    missing = [arm.training for arm in arms if not arm.result_file.is_file()]
    if missing:
        _say_packing(missing[0], session)
        return say_time(missing, session.say)
    session.say("all arms are finished already; making the report again (--fresh repeats everything)")
    if changed := changed_suites(arms[0].prepared.folder, arms[0].prepared.suites):
        session.say(
            f"warning: {', '.join(changed)}: the questions, or the code that asks them, have changed since; the "
            "figures are of the earlier ones"
        )
    for arm in arms:
        if read_note(arm.result_file).get("status") == "failed":
            session.say(f"{arm.folder.name} failed; to go on from its last checkpoint, delete {arm.result_file}")
    return None


def _say_packing(arm: ArmTraining, session: Session) -> None:
    """Say how much padding packing saves in the first steps of an arm."""
    data, batch = arm.prepared.data, arm.processes.cut(arm.training)[0]
    if found := data.packing_of(data.rows(arm.arm), batch, MOST):
        less = f"{found.saved:.0%} less" if found.saved >= 0 else f"{-found.saved:.0%} more"
        advice = "" if found.saved >= 0 else ": few fit in one row, so leave data.packed out, or raise data.length"
        session.say(
            f"packing: the first {found.conversations:,} conversations are {found.rows:,} rows of {found.computed:,} "
            f"tokens with padding, {less} than the {found.padded:,} without packing{advice}"
        )
