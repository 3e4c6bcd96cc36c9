"""Measure forgetting during any training with transformers' Trainer: TRL's trainers, PEFT, ctrl, plain models."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

import ctrl
from ctrl.control_model import ControlModel
from experiments.common.errors import ConfigError
from experiments.common.files import read_note
from experiments.comparison.gate import NOTHING
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.measure.best import check_best
from experiments.measure.config import MeasureConfig, measure_config
from experiments.measure.gate import Condition, conditions
from experiments.measure.reporters import reporters_of
from experiments.measure.training_folder import (
    default_folder,
    earlier_base,
    hold,
    measured_base,
    release,
    said_moved,
    said_other,
    said_replaced,
)
from experiments.measure.watch import Watch
from experiments.methods.reference import keeps_base
from experiments.methods.saving import is_peft
from experiments.models.base import load_base
from experiments.models.precision import DTYPES
from experiments.models.template import set_template
from experiments.models.turns import said_unwritten
from experiments.models.weights_digest import frozen_digest, weights_digest
from experiments.records import ArmResult
from experiments.runs.base_records import STATE
from experiments.runs.baseline import headline, remarks_on

logger = logging.getLogger(__name__)
PREFIX = "forgetting/"
SUITES = ("kept", "drift")  # and `new`, if there is a file
FEW = {"kept.items": 50, "kept.aa_floor": False}  # where `changes` set nothing else


class ForgettingCallback(TrainerCallback):
    """Measure what a model forgets while it trains: `Trainer(..., callbacks=[ForgettingCallback(every=100)])`.

    base: name or folder of the base model; default: the model at the start of the training, which for PEFT and ctrl are
    the same weights with adapters or copies off. every: steps between measurements; the base and the last step are
    always measured. budget: share of the training's time that measurements may take, those two included: one on the way
    that would leave no room for the last waits for a later step. A training that is too short for the two is said.
    new: file with questions of the new task that are not trained on. suites, changes: as for `measure`; few questions
    by default. limits: conditions such as "kl <= .1"; a value that breaks one is said. stop: end the training then.
    keep_best: save to `folder`/best the model of the highest gain (without `new`: the latest) whose values keep the
    limits. With load_best_model_at_end the last step is that of the checkpoint that Trainer loads. folder: of the
    records, by default below `mlruns/runs`; `compare` and `gate` read it, and a resumed training goes on in it.

    Figures go to the trainer's `report_to` as `forgetting/retention`, ... and to `state.log_history`; `result` holds
    them for the pictures of the bench. Raises ConfigError before training for wrong settings.
    """

    def __init__(
        self,
        base: str | None = None,
        every: int = 100,
        budget: float = 0.1,
        new: str | Path | None = None,
        suites: Sequence[str] | None = None,
        limits: Sequence[str] = (),
        stop: bool = False,
        keep_best: bool = False,
        folder: str | Path | None = None,
        changes: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1 or not 0 < budget <= 1:
            raise ConfigError(f"every={every}, budget={budget:g}: every is 1 or more, budget a share of time up to 1")
        if stop and not limits:
            raise ConfigError('stop=True needs limits, for example limits=["kl <= .1"]')
        self.config: MeasureConfig = measure_config(
            base or "", new, suites, None, "fp32", seed, changes, default=SUITES, few=FEW
        )
        if self.config.evaluation.has_floor:
            raise ConfigError(
                "kept.aa_floor: a training asks nothing in other words, so it has no effect: leave it out, and measure "
                "the model afterwards"
            )
        self.limits: list[Condition] = conditions(limits, self.config, "limits")
        self.base, self.every, self.budget, self.stop, self.keep_best = base, every, budget, stop, keep_best
        self.folder = self._given = Path(folder).expanduser() if folder else None
        self._watch: Watch | None = None  # while a training is measured, in its first process
        self._reporters: list[TrainerCallback] = []

    @property
    def result(self) -> ArmResult:
        """What was measured, as a result of the bench: for its tables and pictures. Raises ConfigError before that."""
        return self._watched().result()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure the base, or read it back in a resumed training."""
        check_whole(args)
        if not state.is_world_process_zero:
            return
        output = Path(args.output_dir).resolve()
        folder = self.folder = self._given or default_folder(output)  # that of this training, not of an earlier one
        if self.keep_best:
            check_best(folder)
        hold(folder)
        precision = "bf16" if args.bf16 else "fp32"
        config = self.config.model_copy(update={"precision": precision})
        self._reporters = reporters_of(self, args.report_to)
        suites = self._suites(_tokenizer(kwargs))
        model = kwargs["model"]
        if state.global_step and not measured_base(folder) and self.base is None and not _has_base(model):
            raise ConfigError(
                f"the training goes on at step {state.global_step}, so the model is not the base any more, and "
                f"{folder} holds no measurement of it: name the base, ForgettingCallback(base=...)"
            )
        base = load_base(self.base, dtype=_dtype(model))[0] if self.base else model
        whole = self.base is None and not _has_base(model)
        weights = weights_digest(base) if self.base else frozen_digest(model)  # adapters that are off are frozen too
        with nullcontext() if self.base else _as_base(model):
            if state.global_step and measured_base(folder):
                self._watch = Watch.resumed(
                    folder, config, suites, base, self.budget, state.global_step, whole, weights
                )
                said = [said_other(read_note(folder / "base" / STATE), base)]
            else:
                said, earlier = [said_replaced(folder)], [] if self.base else earlier_base(folder, precision, model)
                self._watch = Watch.begun(folder, config, suites, base, self.budget, str(output), whole, weights)
                said.append(said_moved(earlier, self._watch.base))
        said += remarks_on(self._watch.base, suites, _tokenizer(kwargs))
        if self.stop and self.every >= state.max_steps:
            said.append(f"stop=True has no effect: every={self.every}, but this training has {state.max_steps} steps")
        for line in filter(None, said):
            logger.warning("%s", line)
        if self.limits:
            measured = self._watch.card(self._watch.base)
            for limit in self.limits:
                if limit.figure not in measured or limit.is_empty(measured):
                    why = NOTHING if limit.figure in measured else f"no {limit.figure} is measured here"
                    raise ConfigError(f"limits: {limit.text} would never be broken: {why}")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        stop = False
        if state.is_world_process_zero and self._watched().budget.allows(2):  # this one and the last
            stop = self._measure(args, state, control, kwargs["model"], _tokenizer(kwargs), state.global_step)
        if self.stop and broadcast_object_list([stop])[0]:  # all processes, or none
            control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Measure the last step at the trainer's closing line: in `on_train_end` its trackers have closed already."""
        closing = "train_runtime" in (logs or {}) and not args.load_best_model_at_end  # which changes the weights yet
        if closing and state.is_world_process_zero and state.global_step not in self._watched().points:
            self._measure(args, state, control, kwargs["model"], _tokenizer(kwargs), state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        watch, step = self._watched(), weights_step(args, state)
        if step < state.global_step:
            logger.warning("the training ends with the weights of step %d: what was measured later is deleted", step)
            watch.back_to(step)
        if step not in watch.points:
            if self._reporters:  # MLflow would begin another run for it
                said = "the figures of step %d are in state.log_history and %s alone: %s had closed before"
                logger.warning(said, step, watch.folder, " and ".join(args.report_to))
            self._reporters = []
            self._measure(args, state, control, kwargs["model"], _tokenizer(kwargs), step)
        watch.write()
        release(watch.folder)
        if not watch.budget.allows(0):
            logger.warning(
                "measuring took %.0f s, more than budget=%g: base and end are always measured. Fewer questions take "
                'less: ForgettingCallback(changes={"kept.items": 20})', watch.budget.spent, self.budget,
            )  # fmt: skip
        if self.keep_best and watch.best is None:
            logger.warning("no measured model keeps %s: none is saved", " and ".join(c.text for c in self.limits))

    def _watched(self) -> Watch:
        if self._watch is None:
            raise ConfigError("nothing is measured before the training begins; results are in its first process alone")
        return self._watch

    def _suites(self, tokenizer: PreTrainedTokenizerBase) -> Suites:
        own = copy.deepcopy(tokenizer)
        set_template(own)  # of a copy: the trainer goes on with its own
        context, task = SuiteContext(self.config.seed, self.base or ""), self.config.task(own)
        suites = Suites.drawn(self.config.evaluation, context, own, task)
        notes = (note for suite in suites.suites.values() for note in suite.notes)
        for line in (*said_unwritten(own), *self.config.notes(task), *notes):
            logger.warning("%s", line)
        return suites

    def _measure(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any, tokenizer: Any, step: int
    ) -> bool:
        """Measure, report, and keep the model if it is the best. Returns whether a limit is broken that ends it."""
        watch = self._watched()
        card = watch.measure(step, model)
        logs = {PREFIX + name: figure.value for name, figure in headline(card).items()}
        state.log_history.append({**logs, "step": step})
        for reporter in self._reporters:
            reporter.on_log(args, state, control, logs=dict(logs), model=model)
        broken = [limit for limit in self.limits if not limit.holds(card)]
        if broken:
            said = " and ".join(limit.text for limit in broken)
            logger.warning("step %d: %s is broken%s", step, said, ": the training stops" if self.stop else "")
        if self.keep_best and not broken:
            watch.keep_best(step, model, tokenizer)
        return bool(broken)


def weights_step(args: Any, state: TrainerState) -> int:
    """Return the step whose weights a model has at the end: Trainer may have loaded its best checkpoint by then.

    It keeps the last ones, with a warning, if the checkpoint is gone: of a training that was moved, for example.
    """
    best = state.best_model_checkpoint if getattr(args, "load_best_model_at_end", False) else None
    if best is None or not Path(best).is_dir():
        return state.global_step
    return int(best.rstrip("/").rpartition("-")[2])


def check_whole(args: Any) -> None:
    """Raise ConfigError for a training whose models cannot be measured from inside of it."""
    if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        raise ConfigError(
            "ForgettingCallback needs a whole model in each process, but FSDP or DeepSpeed has it in shards: "
            "measure its checkpoints after the training, control-llm measure --model OUTPUT_DIR"
        )


def _tokenizer(kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return the trainer's tokenizer. Raises ConfigError if it has none."""
    tokenizer = kwargs.get("processing_class")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError("the trainer has no tokenizer: give it one, Trainer(..., processing_class=tokenizer)")
    return tokenizer


def _dtype(model: Any) -> str:
    """Return the name of the dtype of a model's weights: a base of another one has a KL from rounding alone."""
    own = model.get_input_embeddings().weight.dtype  # adapters are fp32 next to weights in bf16
    return next((name for name, dtype in DTYPES.items() if dtype == own), "fp32")


def _has_base(model: Any) -> bool:
    return keeps_base(model) if is_peft(model) else isinstance(model, ControlModel)


def _as_base(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which a model with adapters or copies computes what its base does.

    Adapters that took a part out of the base's weights stay on: at the start of a training all together is the base.
    """
    if not _has_base(model):
        return nullcontext()
    return model.disable_adapter() if is_peft(model) else ctrl.pretrained(model)
