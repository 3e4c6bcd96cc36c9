"""One arm: a method at one learning rate, trained by transformers' Trainer and evaluated on the way.

Everything that a resumed process needs lies in the arm's folder; everything measured is written before it is used.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from experiments.config import ExperimentConfig, TrainingConfig
from experiments.data.stages import evaluation_steps
from experiments.layers import LayerFigures
from experiments.meter import Meter
from experiments.methods import Method, Setting
from experiments.models import Precision
from experiments.records import write_json
from experiments.schedules import SCHEDULES

Measure = Callable[[int, PreTrainedModel], None]  # gets the step and the model
# what torch.save says when the disk is full; it has no error number
TORCH_WRITE_FAULTS = ("PytorchStreamWriter failed writing", "iostream error", "unexpected pos")
COMPLETE = "complete.json"  # sizes of a checkpoint's files, written after everything else
METHOD_STATE = "method.safetensors"  # Method.state, in a checkpoint


class ArmFailed(RuntimeError):
    """An arm that cannot go on (NaN loss); what it has recorded stays, and the other arms run."""


class ArmTrainer(Trainer):
    """Trainer that keeps the data's order, adds the method's penalty, stops at a NaN and notes the loss's parts."""

    def __init__(self, *args: Any, method: Method, training: TrainingConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.training_config = method, training
        self.parts: dict[str, Tensor] = {}
        self.layers = LayerFigures(self.model)
        self.meter = Meter()
        self.add_callback(self.meter)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # the order is the dataset's, for every arm

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            schedule = SCHEDULES[self.training_config.schedule]
            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = schedule(chosen, self.training_config)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        self.meter.tokens += real_tokens(inputs)
        inputs = dict(inputs)
        replayed = inputs.pop("replayed", None)
        batch = only_label_logits(inputs)
        with self.layers.noting():
            loss, out = super().compute_loss(
                model, batch, return_outputs=True, num_items_in_batch=num_items_in_batch, **kwargs
            )
        total = num_items_in_batch if self.model_accepts_loss_kwargs else None
        marked = batch if replayed is None else {**batch, "replayed": replayed}
        penalty = self.method.penalty(model, marked, out, total)
        self._note(loss, out, penalty, total)
        if penalty is not None:
            loss = loss + penalty
        if not torch.isfinite(loss):
            raise ArmFailed(
                f"loss became {loss.item()} at step {self.state.global_step + 1}: lower the learning rate "
                f"({self.args.learning_rate:g}) or raise warmup_steps ({self.args.warmup_steps})"
            )
        return (loss, out) if return_outputs else loss

    def _note(self, loss: Tensor, out: Any, penalty: Tensor | None, total: Any) -> None:
        """Add this micro-batch's parts to the step's: parts divided by the step's tokens add up, means are averaged."""
        divergence = getattr(out, "divergence", None)
        parts = {"lm_loss": loss if divergence is None else out.lm_loss, "divergence": divergence, "penalty": penalty}
        if divergence is None and penalty is None:
            return
        weight = 1.0 if total is not None else 1 / self.args.gradient_accumulation_steps
        for name, value in parts.items():
            if value is not None:
                self.parts[name] = self.parts.get(name, 0.0) + weight * value.detach().float()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            parts = {name: value.item() for name, value in self.parts.items()}
            logs = {**logs, **parts, **self.layers.take(), **self.meter.rates()}
            self.parts = {}
        super().log(logs, *args, **kwargs)


def only_label_logits(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for logits only where a label is predicted: the rest of a chat costs a vocabulary-sized product for nothing.

    The loss and its gradient are unchanged (tested); the labels are shifted here, since positions are left out. In a
    packed row the first token of a document has no label, so shifting crosses no border.
    """
    shifted = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    keep = (shifted != -100).any(0).nonzero().squeeze(-1)
    return {**inputs, "logits_to_keep": keep, "shift_labels": shifted[:, keep].contiguous()}


def real_tokens(inputs: dict[str, Any]) -> int:
    """Tokens of a batch without its padding; a packed batch has no mask and no padding."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())


class Evaluate(TrainerCallback):
    """After each step the method's turn; at the steps `at`: measure. Checkpoint then, or every `save_every` steps."""

    def __init__(
        self, at: Container[int], save_every: int | None, measure: Measure, meter: Meter, method: Method
    ) -> None:
        self.at, self.save_every, self.measure, self.meter, self.method = at, save_every, measure, meter, method

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, measured = state.global_step, state.global_step in self.at
        self.method.after_step(model, step)
        if measured:
            with self.method.evaluated(model):
                self.measure(step, model)
            self.meter.memory.forget()
        due = step % self.save_every == 0 if self.save_every else measured
        control.should_save = due and step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.meter.save(folder)
        if kept := self.method.state():
            save_file({name: tensor.detach().cpu() for name, tensor in kept.items()}, folder / METHOD_STATE)
        write_json(folder / COMPLETE, _sizes(folder))


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


def train_arm(
    config: ExperimentConfig,
    setting: Setting,
    method: Method,
    learning_rate: float,
    model: PreTrainedModel,
    data: Dataset[Any],
    collator: Any,
    folder: Path,
    measure: Measure,
    on_log: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Train to `config.training.steps`, from the last whole checkpoint in `folder` if there is one.

    model: prepared by `method`, at its start. Returns the cost: tokens, seconds, tokens_per_s, peak_memory_gb,
    trainable_parameters. Raises ArmFailed at a NaN.
    """
    setting.precision.hold_frozen(model)
    method.begin(model, setting)
    trainer = ArmTrainer(
        model=model,
        args=training_arguments(config, learning_rate, setting.precision, folder),
        train_dataset=data,
        data_collator=collator,
        callbacks=[Report(on_log), Progress(f"{setting.arm.name} {learning_rate:g}")],
        method=method,
        training=config.training,
    )
    trainer.remove_callback(PrinterCallback)
    meter = trainer.meter
    trainer.add_callback(Evaluate(evaluation_steps(config), config.training.save_every, measure, meter, method))
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        meter.load(Path(checkpoint))
        if (Path(checkpoint) / METHOD_STATE).is_file():
            method.load_state(load_file(Path(checkpoint) / METHOD_STATE))
    gc.collect()
    with meter.memory:
        trainer.train(resume_from_checkpoint=checkpoint)
    cost = {
        "tokens": float(meter.tokens),
        "seconds": meter.seconds,
        "tokens_per_s": meter.tokens / meter.seconds if meter.seconds else math.nan,
        "peak_memory_gb": meter.memory.peak / 1e9,
        "trainable_parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
    }
    trainer.model = trainer.optimizer = None  # the next arm needs the memory
    return cost


def training_arguments(
    config: ExperimentConfig, learning_rate: float, precision: Precision, folder: Path
) -> TrainingArguments:
    """Trainer's arguments; evaluation, logging and saving are ours to time."""
    training = config.training
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=learning_rate,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=precision.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Evaluate decides
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,  # Progress has the bar
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; unfinished ones and ones cut short are deleted."""
    for path in folder.glob("checkpoint-*"):
        marker = path / COMPLETE
        if not marker.is_file() or json.loads(marker.read_text()) != _sizes(path):
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk is full. torch's writer says it only in words."""
    chain: BaseException | None = error
    while chain is not None:
        if getattr(chain, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(chain) for words in (os.strerror(errno.ENOSPC), *TORCH_WRITE_FAULTS)):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
