"""The plain loop of notebook 06 gives the loss curve of the bench's own engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from transformers import PreTrainedModel

from experiments.config import parse_config
from experiments.methods import MethodContext
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.training.callbacks import Hooks
from experiments.training.train import TrainingPlan, train_arm
from tests.helpers.small_run import tiny_base

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "notebooks" / "06_expand_by_hand.py"
SIZES = {"steps": 6, "batch_size": 3, "warmup": 2, "layers": 2, "learning_rate": 1e-2, "held_out": 2}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the notebook's cells leave, run on a tiny model: its `data` and its `curve` among them."""
    matplotlib.use("agg")
    base = tiny_base(tmp_path_factory.mktemp("base"))
    cells = re.split(r"^# %%.*$", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names: dict[str, Any] = {}
    for cell in cells[1:]:
        exec(compile(cell, str(SCRIPT), "exec"), names)
        if "held_out =" in cell:  # the parameters' cell, as papermill does it
            names |= {**SIZES, "base_model": base}
    return names


def engine_curve(base: str, data: dict[str, torch.Tensor], folder: Path) -> list[float]:
    """The losses of the bench's engine on the notebook's batches."""
    training = {"steps": SIZES["steps"], "batch_size": SIZES["batch_size"], "warmup_steps": SIZES["warmup"]}
    arm = {"name": "x", "method": "control", "learning_rates": [SIZES["learning_rate"]], "control": {"layers": 2}}
    config = parse_config({"name": "x", "base_model": base, "training": training, "arms": [arm]})
    rows: Any = [{name: values[i] for name, values in data.items()} for i in range(len(data["labels"]))]
    losses: list[float] = []

    def log(step: int, logs: dict[str, float]) -> None:
        losses.extend([logs["loss"]] if "loss" in logs else [])

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}

    def evaluate(model: PreTrainedModel) -> list[Any]:
        return []

    context, method = MethodContext(0, Precision("fp32")), config.arms[0].build()
    model = method.prepare(load_base(base, "")[0], context)
    plan = TrainingPlan("x", config.training, float(SIZES["learning_rate"]), (), rows, collate, folder)
    train_arm(model, method.begin(model, context), context, plan, Hooks(evaluate, lambda step, records: None, log))
    return losses


def test_the_plain_loop_has_the_engines_loss_curve(notebook: dict[str, Any], tmp_path: Path) -> None:
    curve = [loss for loss, _, _ in notebook["curve"]]
    expected = engine_curve(notebook["base_model"], notebook["data"], tmp_path)
    assert len(curve) == SIZES["steps"]
    assert curve[-1] < curve[0]  # it learns something
    assert curve == pytest.approx(expected, abs=2e-4)  # Trainer rounds what it logs to four digits


def test_it_is_as_short_as_it_says() -> None:
    lines = [line.strip() for line in SCRIPT.read_text(encoding="utf-8").splitlines()]
    assert "in 60 lines" in "\n".join(lines)
    assert sum(bool(line) and not line.startswith("#") for line in lines) <= 60


def test_the_dial_was_read_at_all_alphas(notebook: dict[str, Any]) -> None:
    assert notebook["alpha"] == 1.0
    assert len(notebook["replies"]) == SIZES["held_out"]
