"""Operations on the trained weights of finished arms, measured as the arms were: nothing is trained.

    python -m experiments.cli posthoc mlruns/runs/NAME-DIGEST --arm full --lr 1e-3 --op wise --alphas 0.25 0.5 0.75

Each result lies in `<run>/posthoc/<label>/`: items-*.jsonl and result.json, as an arm's, and is a run in MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.control_model import ControlModel
from ctrl.layer import expanded_layers
from ctrl.model import set_alpha
from experiments.config import ConfigError, ExperimentConfig, load_config
from experiments.evaluation.text import text_windows
from experiments.experiment import Experiment
from experiments.methods.saving import is_peft, load_onto
from experiments.models import load_base
from experiments.posthoc_run import end_tracked, experiment_of, measure_tracked
from experiments.records import ArmResult, read_json
from experiments.results import load_trained
from experiments.run import RunError, open_run
from experiments.section import nearest

Figures = dict[str, float]
Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One trained arm, and what is added to it. batches: of general text, on which a merged model's gap is measured."""

    run: Path
    name: str
    learning_rate: float
    others: Sequence[Path] = ()
    batches: list[dict[str, Tensor]] = field(default_factory=list)

    def base(self) -> PreTrainedModel:
        return load_base(load_config(self.run / "config.yaml").base_model)[0]

    def trained(self) -> PreTrainedModel:
        return load_trained(self.run, self.name, self.learning_rate)


def wise(arm: Arm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """WiSE-FT (arXiv 2109.01903): (1 - alpha) base + alpha tuned; an expanded or adapted model is made plain first."""
    if alpha is None:
        raise ConfigError("wise needs the tuned model's shares: --alphas 0.25 0.5 0.75")
    tuned = dict(plain_model(arm.trained(), arm.batches).named_parameters())
    return moved(arm.base(), [(alpha, tuned)]), {}


def merge(arm: Arm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """The expanded model merged back with alpha's share of its copies (default: its own), and its gap; or the adapter
    folded into the weights."""
    model = arm.trained()
    if not isinstance(model, ControlModel):
        if alpha is not None or not is_peft(model):
            raise ConfigError(
                f"merge: arm {arm.name!r} is not expanded"
                + (", so --alphas has no meaning for it" if is_peft(model) else " and has no adapter: use wise")
            )
        return plain_model(model), {}
    merged = ctrl.merge_back(model, alpha, gate_batches(model, arm.batches) if alpha is None else None)
    gap = ctrl.merge_gap(model.eval(), merged.eval(), arm.batches)
    return merged, {"merge_gap_kl": gap.kl, "merge_gap_logits": gap.max_logit_difference}


def task_vectors(arm: Arm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """base + alpha * sum_i (theta_i - base) over this arm and the others (arXiv 2212.04089)."""
    if not arm.others:
        raise ConfigError("task_vectors adds arms: name the folders of the others, --with RUN/arms/NAME-LR")
    base_model = load_config(arm.run / "config.yaml").base_model
    vectors = [dict(plain_model(arm.trained(), arm.batches).named_parameters())]
    for folder in arm.others:
        theirs = _config_of(folder).base_model
        if theirs != base_model:
            raise ConfigError(f"task_vectors needs one base model, but {folder} was trained on {theirs!r}")
        other = plain_model(load_onto(arm.base(), folder / "trained"), arm.batches)
        vectors.append(dict(other.named_parameters()))
    share = 1.0 if alpha is None else alpha
    return moved(arm.base(), [(share, vector) for vector in vectors]), {}


def dial(arm: Arm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """The expanded model with this share of its copies in every layer and for every token (`ctrl.at_alpha`)."""
    model = arm.trained()
    if alpha is None or not isinstance(model, ControlModel):
        raise ConfigError(
            f"dial needs an expanded arm and shares of its copies: --alphas 0.25 0.5 0.75 (arm {arm.name!r})"
        )
    set_alpha(model, alpha)
    return model, {}


OPERATIONS: dict[str, Callable[[Arm, float | None], tuple[PreTrainedModel, Figures]]] = {
    "wise": wise,
    "merge": merge,
    "dial": dial,
    "task_vectors": task_vectors,
}


@torch.no_grad()
def moved(base: PreTrainedModel, parts: Sequence[tuple[float, Mapping[str, Tensor]]]) -> PreTrainedModel:
    """theta = base + sum_i share_i (theta_i - base), in place; exact at a single share of 0 or 1.

    Raises ConfigError where a model has other weights than the base (stacked copies).
    """
    shapes = {name: p.shape for name, p in base.named_parameters()}
    for _, tuned in parts:
        if {name: p.shape for name, p in tuned.items()} != shapes:
            raise ConfigError(
                "the trained model has other weights than its base (stacked copies?): they cannot be mixed"
            )
    for name, p in base.named_parameters():
        start = p.clone()
        first, *rest = (torch.lerp(start, tuned[name], share) for share, tuned in parts)
        p.copy_(first)
        for other in rest:
            p.add_(other - start)
    return base


def plain_model(model: PreTrainedModel, batches: Batches = ()) -> PreTrainedModel:
    """A model of the base's class: expanded ones merged back (see `gate_batches`), adapters folded in."""
    if isinstance(model, ControlModel):
        return ctrl.merge_back(model, batches=gate_batches(model, batches), in_place=True)
    if is_peft(model):
        return model.merge_and_unload()  # type: ignore[operator]
    return model


def gate_batches(model: ControlModel, batches: Batches) -> Batches | None:
    """The text on which alpha is measured, if it depends on the token: sigmoid(theta) is then not its mean. None for
    other models: theta says it all."""
    layers = [layer.interpolation for layer in expanded_layers(model) if layer.interpolation is not None]
    return batches if batches and any(layer.per_token for layer in layers) else None


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
                for window in text_windows(experiment.tokenizer, experiment.config.evaluation.perplexity_tokens)
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


def _config_of(folder: Path) -> ExperimentConfig:
    if not (folder / "trained").is_dir():
        raise ConfigError(f"{folder} is not the folder of a trained arm: RUN/arms/NAME-LR, with `trained` in it")
    return load_config(folder.parent.parent / "config.yaml")
