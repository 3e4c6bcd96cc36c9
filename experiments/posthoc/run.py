"""Apply operations to the trained weights of finished arms, and measure the result as the arms were measured.

    control-llm posthoc mlruns/runs/NAME-DIGEST --arm full-0.001 --op wise --alphas 0.25 0.5 0.75

Each result is in `<run>/posthoc/<label>/` (items-*.jsonl and result.json, as of an arm) and is a run in MLflow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from experiments.common.errors import ConfigError, RunError
from experiments.common.paths import absolute
from experiments.common.section import nearest
from experiments.evaluation.suites.text import text_windows
from experiments.plan.shape import base_model
from experiments.posthoc.checks import as_printed, check_kept, check_operation
from experiments.posthoc.operations import OPERATIONS, Figures, TrainedArm
from experiments.posthoc.tracked import end_tracked, experiment_of, measure_tracked
from experiments.records import ArmResult
from experiments.runs.prepared import Prepared
from experiments.runs.result_file import RESULT, check_operation_of, read_result, trained_digest, whole_results
from experiments.runs.run import errors_explained, open_run
from experiments.runs.trained import as_kept
from experiments.tracking.tracker import Tracker


def posthoc(
    run: str | Path,
    arm: str,
    learning_rate: float,
    operation: str,
    alphas: Sequence[float] | None = None,
    others: Sequence[Path] = (),
    say: Callable[[str], None] = print,
    study: str | None = None,
) -> list[ArmResult]:
    """Apply an operation at each alpha and measure the model with the run's own suites. Raises ConfigError, RunError.

    others: folders of further arms, for task_vectors and ensemble. study: name of the study that the run belongs to.
    Results that are on disk are read, and make no second run in MLflow.
    """
    run, others = absolute(run), [absolute(folder) for folder in others]
    if operation not in OPERATIONS:
        raise ConfigError(f"unknown operation {operation!r}: {nearest(operation, OPERATIONS)}")
    trained = result_file(run, arm, learning_rate)
    check_operation(operation, trained.parent, alphas or (), others)
    check_kept(run)
    opened: tuple[Prepared, Tracker] | None = None
    results, changed = [], [trained.parent, *others]
    shares: list[float | None] = [as_printed(alpha) for alpha in alphas] if alphas else [None]
    for alpha in shares:
        (result,) = whole_results([trained])
        # the step of the weights that are changed; they were trained well if the arm failed after that
        result = replace(as_kept(result, trained.parent), status="finished", reason=None)
        result.operation = operation_name(operation, alpha, others)
        folder = result_folder(run, result)
        options = {"operation": operation, "alpha": alpha, "others": ", ".join(_named(others))}
        with errors_explained(run.parent.parent):
            with _missing(folder, trained.parent, say) as missing:
                if missing:
                    prepared, tracker = opened = opened or _opened(run, say, study)
                    weights = {one: trained_digest(one) for one in changed}  # as they are loaded
                    source = TrainedArm(run, arm, learning_rate, others, _text_batches(prepared))
                    model, figures = _applied(operation, source, alpha)
                    result.cost = {"added_parameters": float(model.num_parameters() - _size(prepared)), **figures}
                    say(f"measuring {result.label}{_of_step(result, trained)} ...")
                    measure_tracked(prepared, tracker, model, result, folder, options, weights)
            results += whole_results([folder / RESULT])
            check_operation_of(folder / RESULT, result, changed)
            end_tracked(run, results[-1], folder, options)
    return results


def _of_step(result: ArmResult, trained: Path) -> str:
    """Say which step the weights are of if it is not the arm's last, whose figures the arm has (`keep: best`)."""
    last = read_result(trained).steps
    return "" if result.steps == last else f" (weights of step {result.steps} of {last}, training.keep: best)"


@contextlib.contextmanager
def _missing(folder: Path, arm: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Give whether a result is to be measured, which this process then does alone. It waits for one that does so.

    arm: the folder for the lock, which is there already.
    """
    if (folder / RESULT).is_file():
        yield False
        return
    lock = FileLock(arm / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process measures {folder.name}: waiting for it")
        lock.acquire()
    try:
        yield not (folder / RESULT).is_file()
    finally:
        lock.release()


def result_file(run: Path, arm: str, learning_rate: float) -> Path:
    """Return the file with an arm's result. Raises RunError, which names the finished arms."""
    finished = {file.parent.name: file for file in sorted(run.glob(f"arms/*/{RESULT}"))}
    if path := finished.get(f"{arm}-{learning_rate:g}"):
        return path
    found = [name for name, file in finished.items() if (file.parent / "trained").is_dir()]
    raise RunError(f"{run} has no finished arm {arm} at {learning_rate:g}; there are: {', '.join(found) or 'none'}")


def _opened(run: Path, say: Callable[[str], None], study: str | None) -> tuple[Prepared, Tracker]:
    """Prepare the run, and open the MLflow experiment that it belongs to."""
    prepared = open_run(run, say)
    return prepared, Tracker(run.parent.parent, study or experiment_of(run) or prepared.config.name)


def _text_batches(prepared: Prepared) -> list[dict[str, Tensor]]:
    """Return windows of general text as batches of one row."""
    windows = text_windows(prepared.tokenizer, prepared.config.evaluation.settings("text").tokens)
    return [{"input_ids": torch.tensor([window])} for window in windows]


def _applied(operation: str, arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    try:
        return OPERATIONS[operation](arm, alpha)
    except ctrl.ConfigError as error:  # no merged form, for example
        raise ConfigError(f"{operation}: arm {arm.name!r}: {error}") from error
    except FileNotFoundError as error:
        raise RunError(str(error)) from error


def _size(prepared: Prepared) -> int:
    """Count the base's parameters without loading them."""
    return base_model(prepared.config).num_parameters()


def result_folder(run: Path, result: ArmResult) -> Path:
    """Return the folder with the records and the figures of an operation's result."""
    return run / "posthoc" / result.label.replace(" ", "-").replace("/", "-")


def operation_name(operation: str, alpha: float | None = None, others: Sequence[Path] = ()) -> str:
    """Name an operation on an arm: `wise 0.5`, `merge`, `task_vectors partial-0.0003 0.5`."""
    return " ".join([operation, *_named(others), *([] if alpha is None else [f"{alpha:g}"])])


def _named(others: Sequence[Path]) -> list[str]:
    """Name arm folders by run and arm."""
    return [f"{folder.parent.parent.name}/{folder.name}" for folder in others]
