"""Estimate how long the arms of a run will take, from a few timed steps of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from experiments.methods import ActiveMethod, Batch
from experiments.methods.batches import read_by
from experiments.models.head import only_label_logits
from experiments.runs.arm_training import ArmTraining
from experiments.training.checkpointing import checkpoint_layers
from experiments.training.checkpoints import step_reached
from experiments.training.lm_loss import lm_loss

TIMED = 10  # steps; fewer are trained in the time that timing them takes
MINUTE, OFF = 60.0, 0.25  # a time left is said anew if it is a minute or more, and this share off
REPEATS = 3  # timed passes of each arm; the fastest counts


class TimeLeft:
    """The time that the arms of a run still need: predicted before the first, corrected by what steps really take.

    predicted: seconds of each arm, from its first step, by the name of its folder. steps: of an arm. say: prints a
    line. reached: the step that an arm goes on from, by name.
    """

    def __init__(
        self,
        predicted: Mapping[str, float],
        steps: int,
        say: Callable[[str], None],
        reached: Mapping[str, int] | None = None,
    ) -> None:
        self.predicted, self.steps, self.say = dict(predicted), steps, say
        self.left = {name: s * (1 - (reached or {}).get(name, 0) / steps) for name, s in predicted.items()}
        self.begun = ""  # name of the arm that trains
        self.took, self.done = 0.0, 0.0  # seconds of the steps so far, and those predicted for them
        self.promised = (time.perf_counter(), sum(self.left.values()))  # when, and how many seconds were left

    def arm(self, name: str, start: int = 0) -> Callable[[int], None]:
        """Begin an arm. Returns a function to call after a step's evaluation. start: the step of its checkpoint."""
        if self.begun:
            self.left[self.begun] = 0.0  # it has ended, even if it failed before its last step
        self.begun, last = name, [time.perf_counter(), float(start)]

        def evaluated(step: int) -> None:
            now = time.perf_counter()
            self._measured(name, step, step - last[1], now - last[0])
            last[:] = now, step

        return evaluated

    def _measured(self, name: str, step: int, steps: float, seconds: float) -> None:
        if name not in self.predicted:
            return
        self.took += seconds
        self.done += self.predicted[name] * steps / self.steps
        self.left[name] = self.predicted[name] * (1 - step / self.steps)
        if self.done:
            self._renew(sum(self.left.values()) * self.took / self.done)

    def _renew(self, left: float) -> None:
        """Say the seconds that are left, if it is a minute or more and a quarter off what was said before."""
        now, (when, promised) = time.perf_counter(), self.promised
        expected = promised - (now - when)
        if left >= MINUTE and abs(left - expected) > OFF * max(expected, MINUTE):
            self.promised = (now, left)
            slower = self.took / self.done
            self.say(
                f"  about {left / 60:.0f} min left: steps take {slower:.1f} times as long as estimated at the start"
            )


def say_time(arms: Sequence[ArmTraining], say: Callable[[str], None]) -> TimeLeft:
    """Say how long arms will take in minutes, if they have TIMED steps or more. The arms belong to one run."""
    prepared = arms[0].prepared
    steps, evaluations = prepared.config.training.steps, len(prepared.config.evaluation_steps)
    unknown = TimeLeft({}, steps, say)
    if steps < TIMED:
        return unknown
    try:
        probes = {name: step_seconds(arm) for name, arm in {arm.arm.name: arm for arm in arms}.items()}
    except Exception as error:  # the arm will say it again, and the others run
        say(f"the time cannot be estimated ({type(error).__name__}: {error})")
        return unknown
    seconds = {
        arm.folder.name: probes[arm.arm.name] * steps + prepared.evaluation_seconds * evaluations for arm in arms
    }
    reached = {arm.folder.name: step_reached(arm.folder / "checkpoints") for arm in arms}
    left = TimeLeft(seconds, steps, say, reached)
    done = f", {sum(reached.values())} of them done," if any(reached.values()) else ""
    each = ", ".join(f"{name} {value:.2f} s" for name, value in probes.items())
    say(f"about {sum(left.left.values()) / 60:.0f} min for {len(arms)} arms of {steps} steps{done} (one step: {each})")
    return left


def step_seconds(arm: ArmTraining) -> float:
    """Return the seconds of one optimiser step, from forward and backward passes on the arm's first batch."""
    prepared, method = arm.prepared, arm.arm.build()
    model = method.prepare(arm.load_base(method), arm.context).train()
    active = method.begin(model, arm.context)
    label = f"{arm.arm.name} {arm.learning_rate:g}"
    checkpoint_layers(model, prepared.config.training.checkpointing, label)
    marked = only_label_logits(_first_batch(arm, model.device))
    inputs = read_by(model, marked)
    with prepared.precision.autocast():
        hooks = active.token_weights, method.reads_pass, active.token_penalties
        loss = lm_loss(model, method.reads_logits, *hooks)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        noted = active.begin_pass(model, marked)
        with prepared.precision.autocast(), loss(noted):
            out = model(**inputs)
        _total_loss(active, model, marked, out).backward()
        times.append(time.perf_counter() - start)
    return min(times) * arm.processes.cut(arm.training)[1]


def _first_batch(arm: ArmTraining, device: torch.device) -> dict[str, Any]:
    prepared = arm.prepared
    rows, size = prepared.data.rows(arm.arm), arm.processes.cut(arm.training)[0]
    batch = prepared.data.collator([rows[i] for i in range(min(size, len(rows)))])
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _total_loss(method: ActiveMethod, model: Any, batch: Batch, out: Any) -> torch.Tensor:
    penalty = method.penalty(model, batch, out, None)
    total: torch.Tensor = out.loss if penalty is None else out.loss + penalty
    return total
