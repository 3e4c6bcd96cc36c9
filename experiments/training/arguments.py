"""Pass fields of transformers' TrainingArguments on to Trainer: `training.arguments` in the YAML.

PASSED may be given, and each value is checked against the field's own annotation. OWNED are refused, each with the
reason and the bench's own field. A field in neither table is one of a later transformers that nobody has looked at.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from experiments.common.section import nearest

# name -> what it is, for the reference; the bench reads nothing of it
PASSED = {
    "optim": "the optimizer: `adamw_8bit`, `paged_adamw_8bit`, `adafactor`, `muon` (with AdamW for what is no matrix), "
    "... (default `adamw_torch_fused`)",
    "optim_args": "its further arguments, as in transformers: `key=value,key=value`",
    "optim_target_modules": "GaLore and APOLLO: the modules with low-rank gradients",
    "adam_beta1": "decay of Adam's mean of gradients",
    "adam_beta2": "decay of Adam's mean of squared gradients",
    "adam_epsilon": "added to the root in Adam's step",
    "neftune_noise_alpha": "noise on the embeddings of training rows (arXiv 2310.05914), drawn for each micro-batch "
    "and process, and larger where its rows are shorter",
    "tf32": "let fp32 products of NVIDIA GPUs use TF32",
    "full_determinism": "deterministic kernels, slower",
    "torch_compile": "compile the model with torch.compile",
    "torch_compile_backend": "of torch.compile; switches it on",
    "torch_compile_mode": "of torch.compile; switches it on",
    "torch_empty_cache_steps": "steps between two calls of torch.cuda.empty_cache",
    "dataloader_num_workers": "processes that make batches",
    "dataloader_pin_memory": "copy batches to pinned memory",
    "dataloader_persistent_workers": "keep the workers",
    "dataloader_prefetch_factor": "batches that each worker makes ahead",
    "dataloader_multiprocessing_context": "how workers start: `fork`, `spawn`",
    "ddp_find_unused_parameters": "several processes: look for parameters without a gradient",
    "ddp_bucket_cap_mb": "several processes: size of a bucket of gradients in MB",
    "ddp_broadcast_buffers": "several processes: send buffers at each pass",
    "ddp_static_graph": "several processes: each step uses the same parameters",
    "log_level": "of transformers, in the main process",
    "log_level_replica": "of transformers, in the others",
}
# those that change how a step runs, but no result: they are in no digest, so a run goes on with others
FREE = {
    *(name for name in PASSED if name.startswith(("dataloader_", "ddp_", "log_"))),
    "torch_empty_cache_steps",
}
EVALUATES = "the bench measures by its suites: evaluation.every, evaluation.suites"
LOGS = "the bench logs every step, to MLflow"
SAVES = "the bench saves what a resumed arm needs: training.save_every"
LAUNCHES = "accelerate launch or torchrun decides it, see docs/distributed.md"
HUB = "the bench uploads nothing: control-llm export-model writes a folder to upload"
CHECKPOINTING = "it is training.checkpointing, which sends no gradients below the first layer that trains"
ORDER = "all arms read the same rows in the same order: data"
DRIVES = "it belongs to scripts of transformers; control-llm run decides what is done"
OWNED = {
    "output_dir": "it is the arm's folder: --root",
    "per_device_train_batch_size": "it is training.micro_batch",
    "gradient_accumulation_steps": "it follows from training.batch_size and training.micro_batch",
    "auto_find_batch_size": "the run would depend on the machine: training.micro_batch, see control-llm plan",
    "num_train_epochs": "arms are compared at equal steps: training.steps",
    "max_steps": "it is training.steps",
    "learning_rate": "each arm has its own: arms.learning_rates",
    "lr_scheduler_type": "it is training.schedule",
    "lr_scheduler_kwargs": "they are the fields next to training.schedule: min_lr_ratio, constant_lr_ratio, ...",
    "warmup_steps": "it is training.warmup_steps",
    "warmup_ratio": "it is training.warmup_steps",
    "weight_decay": "it is training.weight_decay",
    "max_grad_norm": "it is training.max_grad_norm",
    "average_tokens_across_devices": "a run would depend on the number of processes without it",
    "label_smoothing_factor": "Trainer takes the labels away from the model then, and with them the divergence",
    "bf16": "it is precision",
    "fp16": "it is precision, which has bf16 and fp32",
    "bf16_full_eval": EVALUATES,
    "fp16_full_eval": EVALUATES,
    "activation_checkpointing": CHECKPOINTING,
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "gradient_checkpointing": CHECKPOINTING,
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "use_liger_kernel": "it replaces the model's forward, and the divergence would leave the loss; and it skips copies",
    "liger_kernel_config": "use_liger_kernel is refused too: the divergence would leave the loss",
    "use_cache": "a training pass has no cache",
    "seed": "it is seed, at the top of the file",
    "data_seed": "it is seed, at the top of the file",
    "use_cpu": "hide the GPUs: CUDA_VISIBLE_DEVICES=",
    "no_cuda": "hide the GPUs: CUDA_VISIBLE_DEVICES=",
    "train_sampling_strategy": ORDER,
    "group_by_length": ORDER,
    "length_column_name": ORDER,
    "remove_unused_columns": "rows have the columns that the methods read",
    "label_names": "rows have the columns that the methods read",
    "dataloader_drop_last": "steps would have fewer rows: training.batch_size",
    "dataloader_in_order": ORDER,
    "accelerator_config": "it decides which rows a process gets, and a run is the same on any number",
    "ignore_data_skip": "a resumed arm reads the rows that follow",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint",
    "restore_callback_states_from_checkpoint": SAVES,
    "enable_jit_checkpoint": "Ctrl-C and SIGTERM save the step already",
    "load_best_model_at_end": "an arm is measured at its last step: compare its evaluations in the report",
    "metric_for_best_model": "an arm is measured at its last step: compare its evaluations in the report",
    "greater_is_better": "an arm is measured at its last step: compare its evaluations in the report",
    "local_rank": LAUNCHES,
    "ddp_backend": LAUNCHES,
    "ddp_timeout": "processes wait as long as the others show signs of work, see docs/distributed.md",
    "fsdp": LAUNCHES,
    "fsdp_config": LAUNCHES,
    "fsdp_min_num_params": LAUNCHES,
    "fsdp_transformer_layer_cls_to_wrap": LAUNCHES,
    "deepspeed": LAUNCHES,
    "parallelism_config": LAUNCHES,
    "debug": "the bench stops an arm at a loss that is no number",
    "skip_memory_metrics": "the bench measures peak memory: cost/peak_memory_gb",
    "include_num_input_tokens_seen": "the bench counts tokens: tokens_seen",
    "include_tokens_per_second": "the bench counts tokens: tokens_per_s",
    "do_train": DRIVES,
    "do_eval": DRIVES,
    "do_predict": DRIVES,
    "past_index": DRIVES,
    "jit_mode_eval": EVALUATES,
    "torchdynamo": "it is torch_compile_backend",
    "mp_parameters": LAUNCHES,
    "overwrite_output_dir": "it is --fresh",
    "disable_tqdm": LOGS,
    "report_to": LOGS,
    "run_name": "it is name, at the top of the file",
    "project": LOGS,
    "log_on_each_node": LOGS,
    "neftune": "it is neftune_noise_alpha",
}
OWNED_STARTS = {  # beginnings of names that all have one reason
    "eval_": EVALUATES,
    "per_device_eval": EVALUATES,
    "prediction_": EVALUATES,
    "include_": EVALUATES,
    "batch_eval": EVALUATES,
    "use_legacy_prediction": EVALUATES,
    "logging_": LOGS,
    "trackio_": LOGS,
    "save_": SAVES,
    "push_to_hub": HUB,
    "hub_": HUB,
}
REFUSED_OPTIM = {  # beginnings of optimizers
    "schedule_free": "its weights are those of training only after optimizer.train(), so evaluations would be wrong",
    "lomo": "it steps inside the backward pass, where no gradient is clipped or accumulated",
    "adalomo": "it steps inside the backward pass, where no gradient is clipped or accumulated",
}
PACKAGES = {  # parts of an optimizer's name -> the package that has it
    "bnb": "bitsandbytes", "adamw_8bit": "bitsandbytes", "paged": "bitsandbytes", "lion": "bitsandbytes",
    "ademamix": "bitsandbytes", "torch_8bit": "torchao", "torch_4bit": "torchao", "galore": "galore_torch",
    "apollo": "apollo_torch", "grokadamw": "grokadamw", "stable_adamw": "optimi", "anyprecision": "torchdistx",
}  # fmt: skip
BOUNDS: dict[str, tuple[float, float]] = {  # least, and less than
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (1e-30, 1),
    "neftune_noise_alpha": (0, 1000),
    "torch_empty_cache_steps": (1, 10**7),
    "dataloader_num_workers": (0, 257),
    "dataloader_prefetch_factor": (1, 1001),
    "ddp_bucket_cap_mb": (1, 10**5),
}
CHOICES: dict[str, Callable[[], list[str]]] = {  # which values there are on this machine
    "torch_compile_backend": lambda: torch.compiler.list_backends(()),
    "torch_compile_mode": lambda: list(torch._inductor.list_mode_options()),
    "dataloader_multiprocessing_context": multiprocessing.get_all_start_methods,
}


def check_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as they were given. Raises ValueError with every fault: unknown, owned, of a wrong type."""
    faults = [fault for name, value in given.items() if (fault := _fault(name, value))]
    if not given.get("dataloader_num_workers"):
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if given.get(name):
                faults.append(f"{name} has no effect without dataloader_num_workers of 1 or more")
    if faults:
        raise ValueError("; ".join(faults))
    return dict(given)


def identity(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that can change a result."""
    return {name: value for name, value in given.items() if name not in FREE}


def unavailable(given: Mapping[str, Any]) -> Iterator[str]:
    """Say which of the arguments this machine has not. Another one may have them, so a file with them can be read."""
    if missing := missing_package(given):
        yield missing
    for name, known in CHOICES.items():
        if given.get(name) is not None and given[name] not in (names := known()):
            yield f"training.arguments: unknown {name} {given[name]!r}: {nearest(given[name], names)}"


def missing_package(given: Mapping[str, Any]) -> str | None:
    """Return which package the optimizer needs and this machine lacks, with the command, or None."""
    optim = str(given.get("optim", ""))
    package = next((package for part, package in PACKAGES.items() if part in optim), None)
    if package is None or importlib.util.find_spec(package):
        return None
    return f"training.arguments: optim {optim!r} needs the package {package}: pip install {package.replace('_', '-')}"


def owned(name: str) -> str | None:
    """Return why the bench keeps a field of TrainingArguments for itself, or None if it does not."""
    return OWNED.get(name) or next((why for start, why in OWNED_STARTS.items() if name.startswith(start)), None)


def _fault(name: str, value: Any) -> str | None:
    if name not in PASSED:
        return f"{name}: {why}" if (why := owned(name)) else f"unknown argument {name!r}: {nearest(name, PASSED)}"
    if name not in _annotations():
        return f"{name} is not in the installed transformers: leave it out, or upgrade"
    if name == "optim":
        return _optim_fault(value)
    try:
        TypeAdapter(_annotations()[name]).validate_python(value, strict=True)
    except ValidationError as error:
        said = dict.fromkeys(one["msg"] for one in error.errors())
        return f"{name}: {' or '.join(said)} (got {value!r})"
    return _bound_fault(name, value)


def _bound_fault(name: str, value: Any) -> str | None:
    least, below = BOUNDS.get(name, (-math.inf, math.inf))
    if not isinstance(value, int | float) or isinstance(value, bool) or least <= value < below:
        return None
    return f"{name}={value:g}: give a value from {least:g} on that is less than {below:g}"


def _optim_fault(value: Any) -> str | None:
    names = optimizers()
    if value in names:
        return None
    for start, why in REFUSED_OPTIM.items():
        if str(value).startswith(start):
            return f"optim {value!r}: {why}"
    if str(value).endswith("layerwise"):
        return f"optim {value!r}: it steps inside the backward pass, where no gradient is clipped or accumulated"
    return f"optim: unknown optimizer {value!r}: {nearest(value, names)}"


def optimizers() -> list[str]:
    """List the optimizers that the bench can use: those of the installed transformers, and `muon`."""
    from transformers.training_args import OptimizerNames

    names: Iterable[str] = (one.value for one in OptimizerNames)
    return ["muon", *(n for n in names if not n.startswith(tuple(REFUSED_OPTIM)) and not n.endswith("layerwise"))]


def _annotations() -> dict[str, Any]:
    from transformers import TrainingArguments  # a second to import, for files that give arguments only

    hints = get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments)}
