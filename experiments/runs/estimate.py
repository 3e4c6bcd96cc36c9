"""Estimate how long the arms of a run will take, from a few timed steps of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from experiments.methods import Batch, Method
from experiments.runs.arm_training import ArmTraining
from experiments.training.lm_loss import lm_loss, only_label_logits

TIMED = 10  # steps; fewer are trained in the time that timing them takes
REPEATS = 3  # timed passes of each arm; the fastest counts


def say_time(arms: Sequence[ArmTraining], say: Callable[[str], None]) -> None:
    """Say how long arms will take in minutes, if they have TIMED steps or more. The arms belong to one run."""
    prepared = arms[0].prepared
    steps, evaluations = prepared.config.training.steps, len(prepared.config.evaluation_steps)
    if steps < TIMED:
        return
    try:
        probes = {name: step_seconds(arm) for name, arm in {arm.arm.name: arm for arm in arms}.items()}
    except Exception as error:  # the arm will say it again, and the others run
        say(f"the time cannot be estimated ({type(error).__name__}: {error})")
        return
    seconds = sum(probes[arm.arm.name] * steps + prepared.evaluation_seconds * evaluations for arm in arms)
    each = ", ".join(f"{name} {value:.2f} s" for name, value in probes.items())
    say(f"about {seconds / 60:.0f} min for {len(arms)} arms of {steps} steps (one step: {each})")


def step_seconds(arm: ArmTraining) -> float:
    """Return the seconds of one optimiser step, from forward and backward passes on the arm's first batch."""
    prepared, method = arm.prepared, arm.arm.build()
    model = method.prepare(prepared.config.load_base()[0], arm.context).train()
    prepared.precision.hold_frozen(model)
    method.begin(model, arm.context)
    marked = only_label_logits(_first_batch(arm, model.device))
    inputs = {k: v for k, v in marked.items() if k != "replayed"}
    with prepared.precision.autocast():
        loss = lm_loss(model, method.reads_logits, method.token_weights)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        with prepared.precision.autocast(), loss():
            out = model(**inputs)
        _total_loss(method, model, marked, out).backward()
        times.append(time.perf_counter() - start)
    return min(times) * prepared.config.training.gradient_accumulation


def _first_batch(arm: ArmTraining, device: torch.device) -> dict[str, Any]:
    prepared = arm.prepared
    rows, size = prepared.data.rows(arm.arm), arm.processes.per_process(prepared.config.training.batch_size)
    batch = prepared.data.collator([rows[i] for i in range(min(size, len(rows)))])
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _total_loss(method: Method, model: Any, batch: Batch, out: Any) -> torch.Tensor:
    penalty = method.penalty(model, batch, out, None)
    total: torch.Tensor = out.loss if penalty is None else out.loss + penalty
    return total
