"""Send MLflow the trials that are finished and that its store lacks: somebody deleted mlflow.db, or replaced it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.common.commands import command
from experiments.common.files import read_note
from experiments.studies.config import StudyConfig
from experiments.studies.trial import trial_folder
from experiments.studies.trials import Trial
from experiments.tracking.journal import Journal, in_order, journals
from experiments.tracking.tracker import Tracker


def send_trials(
    study: StudyConfig, trials: Sequence[Trial], root: Path, tracker: Tracker, say: Callable[[str], None] = print
) -> None:
    """Send them below the study's run, which is open. If that fails, say why, and the command that sends them."""
    if why := tracker.send_missing(trial_journals(study, trials, root)):
        say(
            f"MLflow lacks runs of trials that are finished ({why}); to send them and all others: "
            f"{command('sync', root)}"
        )


def trial_journals(study: StudyConfig, trials: Sequence[Trial], root: Path) -> list[Journal]:
    """Return the journals of trials that ran on this machine and have ended, and of their runs: parents first."""
    noted = {trial.number: read_note(trial_folder(study, root, trial.number) / "mlflow.json") for trial in trials}
    own = {number: note["run_id"] for number, note in noted.items() if note.get("run_id")}
    if not own:
        return []
    above = [journal for journal in journals(root / "journals") if journal.ids & set(own.values())]
    folders = [root / run["folder"] for trial in trials if trial.number in own for run in trial.runs]
    return in_order([*above, *(journal for folder in dict.fromkeys(folders) for journal in journals(folder))])
