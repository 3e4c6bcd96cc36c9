"""Arms on a tiny model through the real engine, in a fraction of a second each.

python -m tests.helpers.engine      # writes tests/golden/*.json, the loss curves that test_train.py compares
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.config import ExperimentConfig, parse_config
from experiments.evaluation.reply_log_probs import fp32_head
from experiments.methods import ActiveMethod, Batch, Method, MethodContext
from experiments.methods.base import Tuning
from experiments.methods.config import ArmConfig
from experiments.methods.saving import load_onto
from experiments.methods.weights import snapshot
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.training.callbacks import Hooks
from experiments.training.processes import ALONE, Processes
from experiments.training.train import TrainingPlan, train_arm
from tests.helpers.tiny_llama import sequences, tiny

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_METHODS = ("full", "control", "ewc")
LAYERS = {"layers": [1, 3]}

# options of each short name for the contract tests: far enough from "nothing happens" to be seen
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.1},
    "rslora": {"rank": 2, "targets": "mlp"},
    "dora": {"rank": 2},
    "corda": {"rank": 2, "batches": 2},
    "peft": {"type": "miss", "r": 4},
    "kl": {"weight": 0.5},
    "l2sp": {"weight": 0.5},
    "ewc": {"weight": 50.0, "batches": 2},
    "ema": {"decay": 0.5},
    "mer": {"every": 2, "rate": 0.5},
}
CONTROL = {"control": LAYERS}
LORA = {"lora": {"rank": 2}}
# arms that no short name can say, by a name of their own
TUNED: dict[str, Any] = {
    "full": "full",
    "partial": {"partial": LAYERS},
    "control": CONTROL,
    "stack": {"stack": LAYERS},
    "lora": {"lora": {"rank": 2}},
    "corda": {"corda": {"rank": 2, "batches": 2}},
}
PRODUCTS: dict[str, dict[str, Any]] = {
    "kl on lora": {"train": {"lora": {"rank": 16}}, "loss": [{"kl": {"weight": 0.5}}]},
    "kl on shira": {"train": {"peft": {"type": "shira", "r": 8}}, "loss": [{"kl": {"weight": 5.0}}]},
    "kl on corda": {"train": {"corda": {"rank": 16, "batches": 2}}, "loss": [{"kl": {"weight": 5.0}}]},
    "kl on stack": {"train": {"stack": LAYERS}, "loss": [{"kl": {"weight": 0.5}}]},
    "l2sp on lora": {"train": LORA, "loss": [{"l2sp": {"weight": 0.5}}]},
    "ewc on lora": {"train": LORA, "loss": [{"ewc": {"weight": 50.0, "batches": 2}}]},
    "ema on lora": {"train": LORA, "average": {"ema": {"decay": 0.5}}},
    "mer on corda": {"train": {"corda": {"rank": 2, "batches": 2}}, "average": {"mer": {"every": 2, "rate": 0.5}}},
    "kl and ema": {"train": "full", "loss": [{"kl": {"weight": 0.5}}], "average": {"ema": {"decay": 0.5}}},
    "kl on replayed and control": {"train": CONTROL, "loss": [{"kl": {"weight": 2.0, "tokens": "replayed"}}]},
    "kl with a budget": {"train": CONTROL, "loss": [{"kl": {"budget": 0.001, "top": 8, "weight": 50.0}}]},
    "kl on gates": {
        "train": {"control": {**LAYERS, "interpolation": "gate", "divergence": "none"}},
        "loss": [{"kl": {"tokens": "replayed", "weight": 5.0}}, "not_replayed"],
    },
    "dft on control": {"train": CONTROL, "loss": ["dft"]},
    "dft, kl and l2sp": {"loss": ["dft", {"kl": {"weight": 0.5}}, {"l2sp": {"weight": 0.5}}]},
}


class Killed(Exception):
    """Act as after kill -9: the objects are dropped, only the folder is left."""


@dataclass
class Outcome:
    method: ActiveMethod
    model: PreTrainedModel
    logs: dict[int, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)  # as saved: inside `evaluated`
    measured: dict[int, Tensor] = field(default_factory=dict)  # logits at each evaluation


def arm_config(method: str, options: dict[str, Any] | None = None, **changes: Any) -> ArmConfig:
    """The arm of a short name, with these options, or of `PRODUCTS`."""
    options = OPTIONS.get(method, {}) if options is None else options
    short = {"method": method, "control": LAYERS, "options": options}
    return ArmConfig.model_validate({"name": "x", "learning_rates": [1e-2], **PRODUCTS.get(method, short), **changes})


def rows(count: int = 64, replayed: bool = False) -> list[dict[str, Tensor]]:
    """Rows of unlike length, of which every third is marked as replayed if asked."""
    made = sequences(count)
    return [row | {"replayed": torch.tensor(i % 3 == 0)} for i, row in enumerate(made)] if replayed else made


def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {k: torch.stack([row[k] for row in batch]) for k in batch[0]}


def old_text(count: int) -> list[Batch]:
    texts = sequences(4 * count, seed=7)
    return [collate(texts[4 * i : 4 * i + 4]) for i in range(count)]


def context(precision: str = "fp32") -> MethodContext:
    return MethodContext(0, Precision(precision), old_text)


def bf16_start(tuning: Tuning, folder: Path) -> float:
    """Return the KL of an untrained arm to its base under bf16, as suites measure it, before and after a save.

    Without a KL its logits and greedy replies have to be the base's. The base's matrices are large enough for likely
    tokens to differ by rounding.
    """
    method, bf16, ids = Method(tuning), context("bf16"), collate(sequences(8))["input_ids"]

    def base() -> Any:
        model = tiny().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4 if p.dim() > 1 else 1)
        return model

    def log_p(model: PreTrainedModel) -> Tensor:
        with evaluating(model, bf16.precision), fp32_head(model):
            found: Tensor = model(ids).logits.log_softmax(-1)
        return found

    def replies(model: Any) -> list[list[int]]:
        with evaluating(model, bf16.precision):
            found: list[list[int]] = model.generate(ids[:, :6], max_new_tokens=3, do_sample=False).tolist()
        return found

    model = method.prepare(base(), bf16)
    active = method.begin(model, bf16)
    want, own, again = map(log_p, (base(), model, load_onto(base(), active.save(model, folder))))
    kl = max(float((want.exp() * (want - found)).sum(-1).max()) for found in (own, again))
    assert kl or (torch.equal(own, want) and torch.equal(again, want) and replies(model) == replies(base()))
    return kl


def config(arm: ArmConfig, **training: Any) -> ExperimentConfig:
    values = {"steps": 6, "batch_size": 4, "warmup_steps": 2} | training
    return parse_config({"name": "x", "training": values, "evaluation": {"every": 2}, "arms": [arm]})


def plan(config: ExperimentConfig, folder: Path, data: list[dict[str, Tensor]] | None = None) -> TrainingPlan:
    """What the arm of a config is trained on; checkpoints go to the folder."""
    rows_of_arm: Any = data or rows()
    return TrainingPlan("x", config.training, 1e-2, config.evaluation_steps, rows_of_arm, collate, folder)


def train(
    arm: ArmConfig,
    folder: Path,
    kill_at: int | None = None,
    data: list[dict[str, Tensor]] | None = None,
    precision: str = "fp32",
    processes: Processes = ALONE,
    **training: Any,
) -> Outcome:
    """Train the tiny model. kill_at: raise Killed when that step is measured, before it is checkpointed."""
    method, using = arm.build(), context(precision)
    data = data or rows(replayed=method.needs_replay)
    model = method.prepare(tiny(), using)
    active = method.begin(model, using)
    outcome = Outcome(active, model)
    probe = sequences(1)[0]["input_ids"][None]

    def evaluate(model: PreTrainedModel) -> Tensor:
        model.eval()
        with torch.no_grad(), using.precision.autocast():
            logits: Tensor = model(probe).logits
        model.train()
        return logits

    def record(step: int, logits: Tensor) -> None:
        if step == kill_at:
            raise Killed
        outcome.measured[step] = logits

    def note(step: int, logs: dict[str, float]) -> None:
        if "loss" in logs:
            outcome.logs[step] = {k: v for k, v in logs.items() if k != "tokens_per_s"}

    planned = plan(config(arm, **training), folder, data)
    outcome.cost = train_arm(model, active, using, planned, Hooks(evaluate, record, note), processes)
    with active.evaluated(model):
        outcome.weights = snapshot(model)
    return outcome


def golden_curve(method: str, folder: Path) -> list[float]:
    return [logs["loss"] for logs in train(arm_config(method), folder, steps=10).logs.values()]


if __name__ == "__main__":
    for name in GOLDEN_METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / f"{name}.json").write_text(json.dumps(golden_curve(name, Path(scratch)), indent=2) + "\n")
