"""One arm: a method at one learning rate, trained by transformers' Trainer and evaluated on the way.

Everything that a resumed process needs lies in the arm's folder; everything measured is written before it is used.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from experiments.config import ExperimentConfig
from experiments.methods import Method, MethodContext
from experiments.models.precision import Precision
from experiments.training.callbacks import Evaluate, Measure, Progress, Report
from experiments.training.checkpoints import METHOD_STATE, last_checkpoint, same_launch
from experiments.training.processes import ALONE, PATIENCE, Processes
from experiments.training.trainer import ArmTrainer


def train_arm(
    config: ExperimentConfig,
    setting: MethodContext,
    method: Method,
    learning_rate: float,
    model: PreTrainedModel,
    data: Dataset[Any],
    collator: Any,
    folder: Path,
    measure: Measure,
    on_log: Callable[[int, dict[str, float]], None],
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Train to `config.training.steps`, from the last whole checkpoint in `folder` if there is one.

    model: prepared by `method`, at its start. processes: all of them call this, each with the same arguments. Returns
    the cost: tokens, seconds, tokens_per_s, peak_memory_gb (of the process that needs most), trainable_parameters.
    Raises ArmFailed at a NaN.
    """
    setting.precision.hold_frozen(model)
    method.begin(model, setting)
    trainer = ArmTrainer(
        model=model,
        args=training_arguments(config, learning_rate, setting.precision, folder, processes),
        train_dataset=data,
        data_collator=collator,
        callbacks=[Report(on_log), *([Progress(folder.parent.name)] if processes.first else [])],
        method=method,
        training=config.training,
    )
    trainer.remove_callback(PrinterCallback)
    meter = trainer.meter
    every = config.training.save_every
    trainer.add_callback(Evaluate(config.evaluation_steps, every, measure, meter, method, processes))
    checkpoint = processes.told(last_checkpoint(folder) if processes.first else None)
    if checkpoint:
        same_launch(Path(checkpoint))
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
        "peak_memory_gb": max(processes.gathered(meter.memory.peak)) / 1e9,
        "trainable_parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
    }
    trainer.model = trainer.optimizer = None  # the next arm needs the memory
    return cost


def training_arguments(
    config: ExperimentConfig, learning_rate: float, precision: Precision, folder: Path, processes: Processes = ALONE
) -> TrainingArguments:
    """Trainer's arguments; evaluation, logging and saving are ours to time."""
    training = config.training
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if precision.bf16 else "no"  # not what a launcher says
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=processes.part(training.batch_size),
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
        report_to=[],
        disable_tqdm=True,  # Progress has the bar
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        ddp_timeout=int(PATIENCE.total_seconds()),
    )
    # Several GPUs without a launcher would mean DataParallel: larger batches than were asked for, and slow.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
