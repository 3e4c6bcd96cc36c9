"""What happens between optimiser steps: the method's turn, measuring, checkpoints, the log and the progress bar."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback

from ctrl.sharded import sharded, whole
from experiments.common.files import write_json
from experiments.methods import Method
from experiments.training.checkpoints import COMPLETE, LAUNCH, METHOD_STATE, file_sizes, to_disk
from experiments.training.meter import Meter
from experiments.training.processes import Processes, kind

Measure = Callable[[int, PreTrainedModel], None]  # gets the step and the model


class Evaluate(TrainerCallback):
    """After each step the method's turn; at the steps `at`: measure. Checkpoint then, or every `save_every` steps."""

    def __init__(
        self,
        at: Container[int],
        save_every: int | None,
        measure: Measure,
        meter: Meter,
        method: Method,
        processes: Processes,
    ) -> None:
        self.at, self.save_every, self.measure, self.meter, self.method = at, save_every, measure, meter, method
        self.processes = processes

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, measured = state.global_step, state.global_step in self.at
        self.method.after_step(model, step)
        if measured:
            with self.method.evaluated(model):
                self.processes.lead(lambda: self.measure(step, model), together=sharded(model))
            self.meter.memory.forget()
        due = step % self.save_every == 0 if self.save_every else measured
        control.should_save = due and step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.gathered(None)  # until each has written its part
        kept = {name: whole(tensor).cpu() for name, tensor in self.method.state().items()}
        self.processes.lead(lambda: self._complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", kept))

    def _complete(self, folder: Path, kept: dict[str, Tensor]) -> None:
        self.meter.save(folder)
        write_json(folder / LAUNCH, {"kind": kind()})
        if kept:
            save_file(kept, folder / METHOD_STATE)
        to_disk(folder)
        write_json(folder / COMPLETE, file_sizes(folder))
        to_disk(folder)  # the marker's own name; what is flushed already costs nothing
        for old in folder.parent.glob("checkpoint-*"):  # only now: a kill before this line leaves one that counts
            if old != folder:
                shutil.rmtree(old)


class Progress(TrainerCallback):
    """One bar per arm; Trainer's own prints every step's figures, which are in MLflow already."""

    def __init__(self, label: str) -> None:
        self.label, self.bar = label, tqdm(disable=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # disable=None: no bar where nobody watches a terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", disable=None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.bar.close()


class Report(TrainerCallback):
    """Hand each step's logged figures to the caller."""

    def __init__(self, receive: Callable[[int, dict[str, float]], None]) -> None:
        self.receive = receive

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.receive(state.global_step, logs or {})
