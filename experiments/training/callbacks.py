"""Callbacks between optimiser steps: the method's own step, evaluations, checkpoints, the log, the progress bar.

Those of one step run in the order of the list that `train_arm` gives to Trainer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from ctrl.sharded import whole
from experiments.common.progress import Task
from experiments.methods import ActiveMethod
from experiments.training.checkpoints import complete
from experiments.training.launcher import deepspeed, shards
from experiments.training.meter import Meter
from experiments.training.processes import ALONE, Processes
from experiments.training.stopping import StopRequest


@dataclass(frozen=True)
class Hooks:
    """What the caller of `train_arm` does with a model in training.

    evaluate: measures the model, in all processes, which share the items; its result goes to `record` with the step.
    record, log: called in the main process; log gets the step and its figures. is_best: whether the evaluation of a
    step is the best so far, asked in the main process after `record`. keep: called in all processes after an
    evaluation, with its step, while the model has the weights that were measured.
    """

    evaluate: Callable[[PreTrainedModel], Any]
    record: Callable[[int, Any], None]
    log: Callable[[int, dict[str, float]], None]
    is_best: Callable[[int], bool] = lambda step: False
    keep: Callable[[int], None] = lambda step: None


class MethodStep(TrainerCallback):
    """Let the method act after each optimiser step."""

    def __init__(self, method: ActiveMethod) -> None:
        self.method = method

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.method.after_step(model, state.global_step)


class Evaluate(TrainerCallback):
    """Evaluate at the steps `at`, with the weights that the method wants measured."""

    def __init__(
        self, at: Container[int], hooks: Hooks, method: ActiveMethod, meter: Meter, processes: Processes = ALONE
    ) -> None:
        self.at, self.hooks, self.method, self.meter, self.processes = at, hooks, method, meter, processes

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, name = state.global_step, f"evaluation at step {state.global_step}"
        if step not in self.at:
            return
        with self.method.evaluated(model):
            with self.processes.sharing(model, name):
                found = self.hooks.evaluate(model)
            self.processes.on_main(name, lambda: self.hooks.record(step, found))
            self.hooks.keep(step)
        self.meter.memory.forget()


class Checkpoint(TrainerCallback):
    """Save every `every` steps, by default at the steps `at`, but not after the last step; mark what is complete.

    asked: whether to stop; then the step is saved, too, and training ends with the signal's exception.
    """

    def __init__(
        self,
        at: Container[int],
        every: int | None,
        method: ActiveMethod,
        meter: Meter,
        processes: Processes = ALONE,
        asked: StopRequest | None = None,
    ) -> None:
        self.at, self.every, self.method, self.meter, self.processes = at, every, method, meter, processes
        self.asked = StopRequest() if asked is None else asked

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        due = step % self.every == 0 if self.every else step in self.at
        control.should_save = (due or self.processes.stops(step, self.asked)) and step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.processes.all_gather(f"{folder.name} is written")
        method_state = {name: whole(tensor).cpu() for name, tensor in self.method.state().items()}
        self.processes.on_main(f"{folder.name} is complete", lambda: complete(folder, method_state, self.meter))
        if self.processes.stops(state.global_step, self.asked):
            self.asked.act()


class Progress(TrainerCallback):
    """Tell the task of an arm its step and loss. Trainer's own bar prints all figures, which MLflow has already."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.task.advance(state.global_step - self.task.done, loss=logs["loss"])


class Log(TrainerCallback):
    """Hand the figures of each step to the caller. Not Trainer's closing line: after a resume its means are wrong."""

    def __init__(self, receive: Callable[[int, dict[str, float]], None]) -> None:
        self.receive = receive

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.receive(state.global_step, logs)


class ZeroGradient(TrainerCallback):
    """Warn once of what no gradient reaches, and if all of it is exactly 0 for PATIENCE steps: nothing trains any more.

    A model may read the weight of a layer without calling it (Jamba's `dt_proj`): an adapter there never trains.
    """

    PATIENCE = 10

    def __init__(self, label: str) -> None:
        self.label, self.steps, self.looked = label, 0, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.looked or shards() or deepspeed():  # gradients of shards are elsewhere
            return
        self.looked = True
        idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if idle:
            warnings.warn(
                f"{self.label}: no gradient reaches {len(idle)} of the tensors that train, so they stay as they are: "
                f"{', '.join(idle[:3])}{', ...' if len(idle) > 3 else ''}",
                stacklevel=2,
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "grad_norm" not in logs:
            return
        self.steps = self.steps + 1 if logs["grad_norm"] == 0 else 0
        if self.steps == self.PATIENCE:
            warnings.warn(
                f"{self.label}: the gradient has been exactly 0 for {self.PATIENCE} steps, up to step "
                f"{state.global_step}: nothing trains any more; a lower learning rate may help",
                stacklevel=2,
            )
