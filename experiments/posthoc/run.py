"""Operations on the trained weights of finished arms, measured as the arms were: nothing is trained.

    python -m experiments.cli posthoc mlruns/runs/NAME-DIGEST --arm full --lr 1e-3 --op wise --alphas 0.25 0.5 0.75

Each result lies in `<run>/posthoc/<label>/`: items-*.jsonl and result.json, as an arm's, and is a run in MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

import ctrl
from experiments.common.errors import ConfigError
from experiments.common.files import read_json
from experiments.common.section import nearest
from experiments.evaluation.suites.text import text_windows
from experiments.models.base import load_base
from experiments.posthoc.operations import OPERATIONS, Arm, Figures
from experiments.posthoc.tracked import end_tracked, experiment_of, measure_tracked
from experiments.records import ArmResult
from experiments.runs.experiment import Experiment
from experiments.runs.run import RunError, open_run


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
    """Apply an operation at each alpha and measure the model with the run's own suite. Raises ConfigError, RunError.

    others: folders of further arms, for task_vectors. study: that the run is of. Results that are there already are
    read, and make no second run in MLflow.
    """
    run, others = Path(run).resolve(), [folder.resolve() for folder in others]
    if operation not in OPERATIONS:
        raise ConfigError(f"unknown operation {operation!r}: {nearest(operation, OPERATIONS)}")
    trained = run / "arms" / f"{arm}-{learning_rate:g}" / "result.json"
    if not trained.is_file():
        found = sorted(p.parent.name for p in run.glob("arms/*/trained"))
        raise RunError(f"{run} has no finished arm {arm} at {learning_rate:g}; there are: {', '.join(found) or 'none'}")
    experiment: Experiment | None = None
    results = []
    shares: list[float | None] = list(alphas) if alphas else [None]
    for alpha in shares:
        result = ArmResult.from_dict(read_json(trained))
        result.operation = operation_name(operation, alpha, others)
        folder = result_folder(run, result)
        options = {"operation": operation, "alpha": alpha, "others": ", ".join(_named(others))}
        if not (folder / "result.json").is_file():
            experiment = experiment or open_run(run, say, study or experiment_of(run))
            batches = [
                {"input_ids": torch.tensor([window])}
                for window in text_windows(experiment.tokenizer, experiment.config.evaluation.settings("text").tokens)
            ]
            model, figures = _applied(operation, Arm(run, arm, learning_rate, others, batches), alpha)
            result.cost = {"added_parameters": float(model.num_parameters() - _size(experiment)), **figures}
            say(f"measuring {result.label} ...")
            measure_tracked(experiment, model, result, folder, options)
        results.append(ArmResult.from_dict(read_json(folder / "result.json")))
        end_tracked(run, results[-1], folder, options)
    return results


def _applied(operation: str, arm: Arm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    try:
        return OPERATIONS[operation](arm, alpha)
    except ctrl.ConfigError as error:  # no merged form, for example
        raise ConfigError(f"{operation}: arm {arm.name!r}: {error}") from error
    except FileNotFoundError as error:
        raise RunError(str(error)) from error


def _size(experiment: Experiment) -> int:
    return load_base(experiment.config.base_model)[0].num_parameters()


def result_folder(run: Path, result: ArmResult) -> Path:
    """Where the records and the figures of an operation's result lie."""
    return run / "posthoc" / result.label.replace(" ", "-").replace("/", "-")


def operation_name(operation: str, alpha: float | None = None, others: Sequence[Path] = ()) -> str:
    """`wise 0.5`, `merge`, `task_vectors partial-0.0003 0.5`."""
    return " ".join([operation, *_named(others), *([] if alpha is None else [f"{alpha:g}"])])


def _named(others: Sequence[Path]) -> list[str]:
    """Arm folders by run and arm."""
    return [f"{folder.parent.parent.name}/{folder.name}" for folder in others]
