"""Train on the rows of an experiment, without its evaluations."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from experiments.config import ExperimentConfig
from experiments.methods import MethodContext
from experiments.runs.data import ExperimentData
from experiments.training.callbacks import Hooks
from experiments.training.train import TrainingPlan, train_arm


def never() -> PreTrainedModel:
    raise AssertionError("the base model was asked for")


def trained(
    config: ExperimentConfig, method: str, folder: Path, stop: int | None = None
) -> tuple[list[float], dict[str, float]]:
    """Losses of the steps and the cost; killed when step `stop` is logged."""
    (arm,) = (arm for arm in config.arms if arm.name == method)
    tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    torch.manual_seed(0)
    method, setting = arm.build(), MethodContext()
    model = method.prepare(AutoModelForCausalLM.from_pretrained(config.base_model), setting)
    made = ExperimentData(config, tokenizer, never)
    losses: list[float] = []

    def log(step: int, logs: dict[str, float]) -> None:
        if step == stop:
            raise KeyboardInterrupt(f"step {step}")
        losses.extend([logs["loss"]] if "loss" in logs else [])

    steps = config.evaluation_steps
    plan = TrainingPlan(arm.name, config.training, 1e-2, steps, made.rows(arm), made.collator, folder)
    cost = train_arm(
        model, method.begin(model, setting), setting, plan, Hooks(lambda model: None, lambda step, found: None, log)
    )
    return losses, cost
