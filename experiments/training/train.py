"""Train one arm: a method at one learning rate, by transformers' Trainer, with evaluations during training.

Everything that a resumed process needs is in the arm's folder; everything measured is written before it is used.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils.import_utils import enable_tf32

from experiments.common.progress import progress
from experiments.methods import ActiveMethod, MethodContext
from experiments.models.precision import BACKENDS
from experiments.training.callbacks import Checkpoint, Evaluate, Hooks, Log, MethodStep, Progress, ZeroGradient
from experiments.training.checkpointing import checkpoint_layers
from experiments.training.checkpoints import last_checkpoint, resume
from experiments.training.config import TrainingConfig
from experiments.training.meter import Meter
from experiments.training.muon import NAME as MUON
from experiments.training.processes import ALONE, TENSOR_TIMEOUT, Processes
from experiments.training.stopping import StopRequest, stops_after_step
from experiments.training.trainer import ArmTrainer

OPTIMIZER = "adamw_torch_fused"  # by default
PRECISION = "ACCELERATE_MIXED_PRECISION"  # which accelerate's launcher sets, and every TrainingArguments reads


@dataclass(frozen=True)
class TrainingPlan:
    """What an arm is trained on, for how long, and where its checkpoints go.

    label: of the progress bar. evaluate_at: steps. collator: makes a batch of rows. checkpoints: a folder.
    """

    label: str
    training: TrainingConfig
    learning_rate: float
    evaluate_at: Container[int]
    rows: Dataset[Any]
    collator: Any
    checkpoints: Path


def train_arm(
    model: PreTrainedModel,
    method: ActiveMethod,
    context: MethodContext,
    plan: TrainingPlan,
    hooks: Hooks,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Train to `plan.training.steps`, from the last complete checkpoint if there is one.

    model: at its start. method: begun on it. processes: all of them call this with the same arguments. Returns the
    cost: tokens, seconds, tokens_per_s, peak_memory_gb (of the process that needs most), trainable_parameters. Raises
    ArmFailed at a NaN. Ctrl-C and SIGTERM let the step end and save a checkpoint first (`stops_after_step`).
    """
    checkpoint_layers(model, plan.training.checkpointing, plan.label)
    how = products()
    with products_as(how):
        return _trained(
            model, method, context, plan, replace(hooks, evaluate=_measured(hooks.evaluate, how)), processes
        )


def _trained(
    model: PreTrainedModel,
    method: ActiveMethod,
    context: MethodContext,
    plan: TrainingPlan,
    hooks: Hooks,
    processes: Processes,
) -> dict[str, float]:
    with launcher_precision(context.precision.bf16):
        trainer = ArmTrainer(
            model=model,
            args=training_arguments(plan, context, processes),
            train_dataset=plan.rows,
            data_collator=plan.collator,
            method=method,
            training=plan.training,
        )
    trainer.remove_callback(PrinterCallback)
    checkpoint = processes.broadcast(
        "checkpoint to resume from", last_checkpoint(plan.checkpoints) if processes.is_main else None
    )
    if checkpoint:
        resume(Path(checkpoint), method, trainer.meter)
    gc.collect()
    bar = progress(plan.label, plan.training.steps, "step", shown=processes.is_main, keep=True)
    with bar as task, trainer.meter.memory, stops_after_step(processes.count) as asked:
        for callback in [*_callbacks(method, plan, hooks, trainer.meter, processes, asked), Progress(task)]:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.model = trainer.optimizer = None  # the next arm needs the memory
    return _cost(model, trainer.meter, processes)


@contextmanager
def launcher_precision(bf16: bool) -> Iterator[None]:
    """Replace the precision that a launcher has set, and put it back: other Trainers of this process read it too."""
    before = os.environ.get(PRECISION)
    os.environ[PRECISION] = "bf16" if bf16 else "no"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PRECISION]
        else:
            os.environ[PRECISION] = before


def products() -> str:
    """Return how products of fp32 are computed: `tf32` is faster on GPUs and has 10 bits of mantissa."""
    return str(BACKENDS.fp32_precision)


@contextmanager
def products_as(how: str) -> Iterator[None]:
    """Compute products of fp32 in this way, and as before afterwards.

    Trainer sets it for tf32 and torch_compile, for the whole process: evaluations would be computed in another way than
    the base's, and so would all that comes later in a notebook or study. It does so once, unless it is made to forget
    that it did: the next arm would train in another way.
    """
    before = products()
    BACKENDS.fp32_precision = how
    try:
        yield
    finally:
        BACKENDS.fp32_precision = before
        enable_tf32.cache_clear()


def _measured(evaluate: Callable[[PreTrainedModel], Any], how: str) -> Callable[[PreTrainedModel], Any]:
    def measured(model: PreTrainedModel) -> Any:
        with products_as(how):
            return evaluate(model)

    return measured


def training_arguments(plan: TrainingPlan, context: MethodContext, processes: Processes = ALONE) -> TrainingArguments:
    """Return Trainer's arguments. Evaluation, logging and saving are timed by our callbacks."""
    training = plan.training
    rows, micro_batches = processes.cut(training)
    own: dict[str, Any] = {
        "output_dir": str(plan.checkpoints),
        "max_steps": training.steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": micro_batches,
        "learning_rate": plan.learning_rate,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": OPTIMIZER,
        "bf16": context.precision.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": context.seed,
        "data_seed": context.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # `Checkpoint` decides
        "report_to": [],
        "disable_tqdm": True,  # the bar is `progress`
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "ddp_timeout": int(TENSOR_TIMEOUT.total_seconds()),
    }
    given = {name: value for name, value in training.arguments.items() if value != MUON}  # which is ArmTrainer's own
    arguments = TrainingArguments(**{**own, **given})
    # Several GPUs without a launcher would mean DataParallel: larger batches than were asked for, and slow.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _callbacks(
    method: ActiveMethod, plan: TrainingPlan, hooks: Hooks, meter: Meter, processes: Processes, asked: StopRequest
) -> list[TrainerCallback]:
    at, every = plan.evaluate_at, plan.training.save_every
    seen = [Log(hooks.log), ZeroGradient(plan.label)] if processes.is_main else []
    return [
        *seen,
        MethodStep(method),
        Evaluate(at, hooks, method, meter, processes),
        Checkpoint(at, every, method, meter, processes, asked),
    ]


def _cost(model: PreTrainedModel, meter: Meter, processes: Processes) -> dict[str, float]:
    return {
        "tokens": float(meter.tokens),
        "seconds": meter.seconds,
        "tokens_per_s": meter.tokens / meter.seconds if meter.seconds else math.nan,
        "peak_memory_gb": max(processes.all_gather("peak memory", meter.memory.peak)) / 1e9,
        "trainable_parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
    }
