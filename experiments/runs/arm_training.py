"""Train one arm at one learning rate, as every process of the launch does it."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ctrl.sharded import sharded
from experiments.common.errors import ModelError, NotFinite
from experiments.common.files import write_json
from experiments.methods import ActiveMethod, Method, MethodContext
from experiments.methods.config import ArmConfig
from experiments.methods.saving import differing_base, facts_of, round_files, write_facts
from experiments.runs.messages import TrainArm
from experiments.runs.prepared import Prepared
from experiments.runs.trained import KEPT, TRAINED
from experiments.tracking.uri import without_password
from experiments.training.callbacks import Hooks
from experiments.training.channel import AbortLaunch
from experiments.training.config import TrainingConfig
from experiments.training.processes import ALONE, LaunchMismatch, MainProcessError, Processes
from experiments.training.train import TrainingPlan, train_arm
from experiments.training.trainer import ArmFailed

CHECKPOINTS = 10  # of an arm that is measured at its end alone
OTHERS = re.compile(r"Process \d+ has (\d{1,4}\.\d+ [MG]iB) memory in use")  # in torch's message
KNOWN_TO_ALL = (ArmFailed, MainProcessError, NotFinite)  # every process of a launch meets these at the same place


class ArmTraining:
    """An arm with all that its training needs.

    index: of the arm and its learning rate in the config. folder: `arms/<name>-<learning rate>/` of the run.
    micro_batch: what fits, if `training.micro_batch` is not set; the main process finds it out for all.
    """

    def __init__(
        self, prepared: Prepared, arm: ArmConfig, learning_rate: float, index: int = 0, processes: Processes = ALONE
    ) -> None:
        self.prepared, self.arm, self.learning_rate = prepared, arm, learning_rate
        self.index, self.processes = index, processes
        self.micro_batch: int | None = None
        self.folder = prepared.folder / "arms" / f"{arm.name}-{learning_rate:g}"
        self.context = MethodContext(prepared.config.seed, prepared.precision, prepared.data.old_batches)

    @property
    def training(self) -> TrainingConfig:
        """The section `training`, with the micro-batch that fits, and checkpoints if the end alone is measured."""
        config, given = self.prepared.config, self.prepared.config.training
        often = None if config.evaluation.every else math.ceil(given.steps / CHECKPOINTS)
        update = {"micro_batch": given.micro_batch or self.micro_batch, "save_every": given.save_every or often}
        return given.model_copy(update=update)

    def train(self, hooks: Hooks) -> dict[str, float]:
        """Prepare the model, train it, save what was trained, and return the cost. The main process calls the others.

        Raises an error of KNOWN_TO_ALL in all processes; AbortLaunch for an error of this one among several.
        """
        if self.processes.is_main:
            self.processes.send(TrainArm(self.index, self.micro_batch))
        with own_errors_abort(self.folder.name, self.processes):
            method = self.arm.build()
            base = self.load_base(method)
            base_parameters, facts = sum(p.numel() for p in base.parameters()), self._facts(base)
            model = method.prepare(base, self.context)
            added = sum(p.numel() for p in model.parameters()) - base_parameters
            active = method.begin(model, self.context)
            keep = self.prepared.config.training.keep

            def keep_best(step: int) -> None:
                best = hooks.is_best(step) if self.processes.is_main else None
                if self.processes.broadcast(f"whether step {step} is the best", best):
                    self._save(model, active, facts, step)

            given = replace(hooks, keep=keep_best) if keep == "best" else hooks
            cost = train_arm(model, active, self.context, self.plan(), given, self.processes)
            if keep in ("last", "local") or (keep == "best" and not self._has_trained()):
                with active.evaluated(model):
                    self._save(model, active, facts)
        return {**cost, "added_parameters": float(added)}

    def _facts(self, base: PreTrainedModel) -> dict[str, Any]:
        """Return the facts of the base that was loaded. Raises ModelError if it is not the one that was measured.

        Each arm loads it anew, hours later perhaps: somebody may have saved another model to its folder meanwhile.
        """
        facts = facts_of(base)
        if different := differing_base(self.prepared.facts, facts):
            raise ModelError(
                f"base_model {self.prepared.config.base_model} is another one than when this run measured it: "
                f"{different}. Bring the old one back, and the same command goes on"
            )
        return facts

    def _has_trained(self) -> bool:
        """Whether weights are kept already. Not if `best` was set after the best evaluation: then the last stay.

        Of weights without a note nobody knows the step: a process that was killed in between has left them.
        """
        return bool(self.processes.broadcast("kept weights", (self.folder / TRAINED / KEPT).is_file()))

    def _save(
        self, model: PreTrainedModel, active: ActiveMethod, facts: dict[str, Any], step: int | None = None
    ) -> None:
        """Write what was trained in place of what is there, and the facts of its base. Every process calls it.

        model: with the weights that are measured. step: of the evaluation, if it is not the last step for certain. An
        arm that is killed in between measures this step again: its checkpoint comes later.
        """
        trained = self.folder / TRAINED
        if self.processes.is_main:
            shutil.rmtree(trained, ignore_errors=True)
        self.processes.on_main("trained model", lambda: active.save(model, trained), together=sharded(model))
        if self.processes.is_main:
            round_files(trained, self.prepared.config.training.keep_dtype)
            write_facts(trained, facts)
            if step is not None:
                write_json(trained / KEPT, {"step": step})

    def load_base(self, method: Method) -> PreTrainedModel:
        """Load the base that a method starts from: in bf16 what stays so, if results are the same bit for bit.

        Adapters are drawn in the dtype of the matrix that they are put on, so their base is loaded in fp32.
        """
        narrow = self.prepared.precision.bf16 and not method.tuning.draws
        return self.prepared.config.load_base(narrow)[0]

    def follow(self, micro_batch: int | None = None) -> None:
        """Train with the main process, which called for it and records; it notes an error that all of them meet."""

        def evaluate(model: torch.nn.Module) -> None:
            self.prepared.evaluate(model, progress=False)  # type: ignore[arg-type]

        self.micro_batch = micro_batch
        with suppress(*KNOWN_TO_ALL):
            self.train(Hooks(evaluate, lambda step, found: None, lambda step, logs: None))

    def plan(self) -> TrainingPlan:
        """Return what this arm is trained on and for how long."""
        config, data = self.prepared.config, self.prepared.data
        return TrainingPlan(
            f"{self.arm.name} {self.learning_rate:g}",
            self.training,
            self.learning_rate,
            config.evaluation_steps,
            data.rows(self.arm),
            data.collator,
            self.folder / "checkpoints",
        )


def arm_trainings(prepared: Prepared, processes: Processes = ALONE) -> list[ArmTraining]:
    """Return the arms of a run at each of their learning rates, in the order of the config."""
    pairs = [(arm, rate) for arm in prepared.config.arms for rate in arm.learning_rates]
    return [ArmTraining(prepared, arm, rate, index, processes) for index, (arm, rate) in enumerate(pairs)]


@contextmanager
def own_errors_abort(name: str, processes: Processes) -> Iterator[None]:
    """Turn an error that only this one of several processes meets into AbortLaunch. name: of the arm."""
    try:
        yield
    except (*KNOWN_TO_ALL, AbortLaunch, LaunchMismatch):
        raise
    except Exception as error:
        if processes.count == 1:
            raise
        raise AbortLaunch(f"{name}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the text with which an arm's failure is recorded."""
    if isinstance(error, ArmFailed | MainProcessError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        way_out = "set training.micro_batch lower, or training.checkpointing to all; control-llm plan says what fits"
        others = " and ".join(OTHERS.findall(str(error)))  # a notebook that still has a model, for example
        return f"out of GPU memory: {f'other processes hold {others}: end them, or ' if others else ''}{way_out}"
    return without_password(f"{type(error).__name__}: {error}")
