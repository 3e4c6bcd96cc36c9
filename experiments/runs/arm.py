"""Run one arm of an experiment at one learning rate: train it, measure it and score it, or read its result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from experiments.common.errors import ModelError
from experiments.common.files import read_note, write_json
from experiments.common.hashing import json_digest
from experiments.common.machine_faults import of_the_machine
from experiments.common.owner import ARM
from experiments.common.printable import escaped
from experiments.records import ArmResult, Estimate, Record
from experiments.reporting.stream import stream_card
from experiments.reporting.tables import arms_table
from experiments.reporting.text import gain_name, gain_text, interval_tags, with_interval
from experiments.runs.arm_records import ArmRecords
from experiments.runs.arm_training import ArmTraining, reason
from experiments.runs.baseline import headline
from experiments.runs.estimate import TimeLeft
from experiments.runs.growing import settings_of
from experiments.runs.result_file import RESULT, whole_results, write_result
from experiments.runs.trained import TRAINED, best_step
from experiments.scorecard.figures import HEADLINE
from experiments.tracking.journal import find
from experiments.tracking.run import ParentRun, Run
from experiments.tracking.tracker import Tracker
from experiments.tracking.view import kind_params
from experiments.training.callbacks import Hooks
from experiments.training.channel import AbortLaunch
from experiments.training.checkpoints import drop_checkpoints, step_reached
from experiments.training.processes import LaunchMismatch

DATA = "data.json"  # what the arm's rows took from each source
CONSTANT = ("trainable_parameters", "added_parameters")  # costs that are known before the first step
Observer = Callable[[str, int, dict[str, Estimate]], None]  # gets the arm's label, the step and the figures


class StopArm(Exception):
    """Raised by an observer: the arm ends with status `pruned` and keeps what it has recorded."""


@dataclass(frozen=True)
class Session:
    """Where the main process reports to while it runs an experiment.

    say: prints a line. observe: called after each evaluation; may raise StopArm. parent: the MLflow run of the
    study's trial that this experiment belongs to.
    """

    tracker: Tracker
    say: Callable[[str], None] = print
    observe: Observer | None = None
    parent: ParentRun | None = None


class ArmRun:
    """An arm in the main process: its training, its folder, its run in MLflow and its result."""

    def __init__(self, training: ArmTraining, session: Session) -> None:
        self.training, self.session = training, session
        self.prepared, self.arm, self.folder = training.prepared, training.arm, training.folder
        self.result_file = self.folder / RESULT
        self.records = ArmRecords(self.prepared, self.folder)

    def run(self, parent: Run, left: TimeLeft | None = None) -> ArmResult:
        """Train and evaluate, or read the result that is there. An arm that fails does not stop the others.

        left: says anew what the run still needs if steps take longer than estimated.
        """
        self._note_settings()
        result, known = self._read(), self.result_file.is_file()
        run_id = read_note(self.folder / "mlflow.json").get("run_id")
        if known and self._ended(run_id):
            return result
        with self._tracked(result.label, parent, run_id) as run:
            self._log_start(run)
            if not known:
                start, _ = time.perf_counter(), self.prepared.checked
                self._drop_unmeasured()
                step = self._say_start(result)
                evaluated = left.arm(self.folder.name, step) if left else lambda step: None
                with self._failure_noted(result, run):
                    result.cost = self.training.train(self._hooks(result, run, evaluated))
                    if self.prepared.config.training.keep == "last":
                        self._log_model(run)
                with self._failure_noted(result, run):
                    self._score(result, run)
                write_result(self.folder, result)
                self._say_end(result, time.perf_counter() - start)
            elif result.status == "failed":
                run.fail(str(result.reason))
            self._close(result, run)
        return result

    def _note_settings(self) -> None:
        """Note the arm's settings: what the folder has of others is refused or made again, see `common.owner`."""
        file, settings = self.folder / ARM, {"settings": json_digest(settings_of(self.arm))}
        if (known := read_note(file)) != settings:
            if known:  # first: after a kill in between it would count as that of the new settings
                (self.folder / DATA).unlink(missing_ok=True)
            write_json(file, settings)

    def drawn(self) -> list[dict[str, Any]]:
        """Return what the arm's rows took from each source. Kept in data.json, since all rows are read for it."""
        drawn: list[dict[str, Any]] = self._data()["drawn"]
        return drawn

    def packing(self) -> dict[str, Any] | None:
        """Return the counts of packing (`Packing`), if conversations are packed. Kept in data.json too."""
        packing: dict[str, Any] | None = self._data().get("packing")
        return packing

    def _data(self) -> dict[str, Any]:
        path, run = self.folder / DATA, self.prepared.folder.name
        note = read_note(path)
        digest = note.pop("digest", None)  # earlier versions wrote none, and did not name the run
        if "drawn" not in note or note.get("run", run) != run or digest not in (None, json_digest(note)):
            data = self.prepared.data
            rows = data.rows(self.arm)
            batch = self.training.processes.cut(self.training.training)[0]
            packing = data.packing_of(rows, batch)
            note = {"run": run, "drawn": data.drawn(self.arm, rows)}
            note |= {"packing": packing.plain()} if packing else {}
            write_json(path, note | {"digest": json_digest(note)})
        return note

    def _read(self) -> ArmResult:
        """Return the result on disk, or one to be filled. Raises DamagedError."""
        if self.result_file.is_file():
            return whole_results([self.result_file])[0]
        return ArmResult(self.arm.name, self.arm.method_name, self.training.learning_rate, "finished")

    def _ended(self, run_id: str | None) -> bool:
        """Whether the MLflow run of a result has ended too; the process may have died between the two."""
        journal = find(self.folder, run_id) if run_id else None
        end = journal.last("end") if journal else None
        return journal is None or (end is not None and end["status"] != "KILLED" and journal.ended())

    def _tracked(self, name: str, parent: Run, run_id: str | None) -> AbstractContextManager[Run]:
        def note(run_id: str) -> None:
            write_json(self.folder / "mlflow.json", {"run_id": run_id})

        above, joins = parent.journal.run, self.session.parent is not None  # the one arm of a trial
        return self.session.tracker.run(
            name, kind="arm", parent=above, joins=joins, run_id=run_id, params=self._params(), folder=self.folder,
            note=note,
        )  # fmt: skip

    def _log_start(self, run: Run) -> None:
        run.log_file(self.prepared.folder / "config.yaml")
        run.log_inputs(self.prepared.inputs(self.arm))
        training = self.prepared.config.training
        run.log_note(escaped(f"{self.arm.method_name}, {training.steps} steps of {training.step_rows}; not ended yet"))
        run.log_new({name: figure.value for name, figure in self.prepared.base_headline.items()}, 0)

    def _drop_unmeasured(self) -> None:
        """Go back to before the first evaluation whose records are gone or were changed, and measure it again."""
        step = next((s for s in self.prepared.config.evaluation_steps if not self.records.whole(s)), None)
        if step is not None:
            drop_checkpoints(self.folder / "checkpoints", step)

    def _say_start(self, result: ArmResult) -> int:
        """Say which arm begins. Returns the step of the checkpoint that it goes on from, or 0."""
        step = step_reached(self.folder / "checkpoints")
        self.session.say(result.label + (f": continues from checkpoint-{step}" if step else ""))
        return step

    def _say_end(self, result: ArmResult, seconds: float) -> None:
        if not result.reason:
            gain = gain_text(result.scorecard, gain_name([result]))
            retention = with_interval(result.scorecard.get("retention"))
            self.session.say(f"  gain {gain}, retention {retention}, {seconds:.0f} s")

    def _hooks(self, result: ArmResult, run: Run, evaluated: Callable[[int], None]) -> Hooks:
        def record(step: int, records: list[Record]) -> None:
            figures = self.records.write(step, records)
            run.log_new({name: figure.value for name, figure in headline(figures).items()}, step)
            evaluated(step)
            if self.session.observe:
                self.session.observe(result.label, step, figures)

        def is_best(step: int) -> bool:
            return best_step({at: card for at, card in self.records.figures().items() if at <= step}) == step

        return Hooks(self.prepared.evaluate, record, lambda step, logs: run.log_new(logs, step), is_best)

    @contextmanager
    def _failure_noted(self, result: ArmResult, run: Run) -> Iterator[None]:
        """Turn an error into the arm's status and reason; the first one stays. A fault of the machine stops the run."""
        try:
            yield
        except StopArm as stop:
            result.status, result.reason = "pruned", str(stop)
        except Exception as error:
            # the run loaded the base model before
            if of_the_machine(error) or isinstance(error, AbortLaunch | LaunchMismatch | ModelError):
                raise
            if not result.reason:
                result.status, result.reason = "failed", reason(error)
                run.fail(reason(error))
            self.session.say(f"  failed: {reason(error)}")

    def _score(self, result: ArmResult, run: Run) -> None:
        """Fill the result from the records on disk, so that a resumed or failed arm has all that was measured."""
        figures, config = self.records.figures(), self.prepared.config
        result.trajectory = [{"step": 0, **self.prepared.base_headline}]
        result.trajectory += [{"step": step, **headline(card)} for step, card in figures.items()]
        for file in self.records.files().values():
            run.log_file(file, "records")
        if figures:
            result.steps = max(figures)
            result.scorecard = dict(figures[result.steps])
            if config.data.sequential:
                streamed = stream_card(config, self.prepared.base, self.records.read())
                result.scorecard |= streamed
                run.log_new({name: figure.value for name, figure in streamed.items()}, result.steps)
        if result.cost:
            drawn = self.drawn()
            result.cost["replayed_tokens"] = float(sum(part["tokens"] for part in drawn if part["replayed"]))

    def _close(self, result: ArmResult, run: Run) -> None:
        """Do what follows a result, also if the process that wrote it died before this."""
        # Only now: without a result the arm goes on from its checkpoint. One that failed can be continued by hand, but
        # not in a study, which never comes back to a trial that failed with a reason.
        if result.status != "failed" or self.session.parent is not None:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        # Costs are never measured twice alike: those that are logged are those of the result.
        run.log_new({f"cost/{k}": v for k, v in result.cost.items() if k not in CONSTANT}, result.steps)
        run.log_params({f"cost/{k}": f"{v:.0f}" for k, v in result.cost.items() if k in CONSTANT})
        run.log_file(self.result_file, "scorecard")
        run.log_note(escaped(arms_table([result]).markdown()))
        run.set_tags(interval_tags(result.scorecard))
        run.set_tags({"pruned": result.reason or ""} if result.status == "pruned" else {})

    def _log_model(self, run: Run) -> None:
        base, rate = self.prepared.config.base_model, self.training.learning_rate
        params = {"base_model": base, "method": self.arm.method_name, "learning_rate": rate}
        run.log_model(self.folder / TRAINED, self.arm.name, params, HEADLINE, max(self.records.files(), default=0))

    def _params(self) -> dict[str, Any]:
        arm, config = self.arm, self.prepared.config.to_dict()
        params = {"arm": arm.name, **kind_params(arm.method_name, self.training.learning_rate)}
        shared = {name: config[name] for name in ("base_model", "precision", "seed", "training")}
        return {**params, **shared, **arm.params(), "replay": arm.replay}
