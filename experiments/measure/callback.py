"""Measure forgetting during any training with transformers' Trainer: TRL's trainers, PEFT, ctrl, plain models."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks

import ctrl
from ctrl.control_model import ControlModel
from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.paths import default_root
from experiments.evaluation.evaluate import Evaluation, Suites
from experiments.evaluation.suite import SuiteContext
from experiments.measure.config import MeasureConfig, measure_config
from experiments.measure.gate import Condition, conditions
from experiments.methods.saving import is_peft
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.models.template import set_template
from experiments.records import MEASURED, ArmResult, Estimate, Record, read_records, write_records
from experiments.runs.base_records import ITEMS
from experiments.runs.baseline import headline, score
from experiments.runs.result_file import write_result

logger = logging.getLogger(__name__)
PREFIX = "forgetting/"
SUITES = ("kept", "drift")  # and `new`, if there is a file
STATE = "state.json"
NAME = "trained"


class ForgettingCallback(TrainerCallback):
    """Measure what a model forgets while it trains: `Trainer(..., callbacks=[ForgettingCallback(every=100)])`.

    base: name or folder of the base model; default: the model at the start of the training, which for PEFT and ctrl are
    the same weights with adapters or copies off. every: steps between measurements; the last step is always measured.
    budget: share of the training's time that measurements may take: one that would take more waits for a later step.
    new: file with questions of the new task that are not trained on. suites, changes: as for `measure`; few questions
    by default. limits: conditions such as "kl <= .1"; stop: end the training when the value of one is broken.
    keep_best: save to `folder`/best the model of the highest gain (without `new`: the latest) whose values keep the
    limits. folder: of the records, by default below `mlruns/runs`; `compare` and `gate` read it, and a resumed training
    goes on in it.

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
        names = list(suites) if suites else [*(["new"] if new else []), *SUITES]
        few = {"kept.items": 50, "kept.aa_floor": False} if "kept" in names else {}
        self.config: MeasureConfig = measure_config(
            base or "", new, names, None, "auto", seed, {**few, **(changes or {})}
        )
        self.limits: list[Condition] = conditions(limits, self.config)
        self.base, self.every, self.budget, self.stop, self.keep_best = base, every, budget, stop, keep_best
        self.folder = Path(folder) if folder else None
        self.points: dict[int, dict[str, Estimate]] = {}
        self.measuring = 0.0  # seconds
        self._longest = 0.0
        self._best: tuple[float, int] | None = None

    @property
    def result(self) -> ArmResult:
        """What was measured, as a result of the bench: for its tables and pictures."""
        base = score(self._base_records, [], self._base_records, self._draws, self.config.seed)
        points = [{"step": 0, **headline(base)}, *({"step": s, **headline(c)} for s, c in sorted(self.points.items()))]
        last = max(self.points, default=0)
        return ArmResult(
            NAME, MEASURED, 0.0, "finished", steps=last, trajectory=points, scorecard=self.points.get(last, base)
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure the base, or read it back in a resumed training."""
        self._check(args)
        self._began = time.perf_counter()
        if not state.is_world_process_zero:
            return
        model, tokenizer = kwargs["model"], copy.deepcopy(_tokenizer(kwargs))
        set_template(tokenizer)  # of a copy: the trainer goes on with its own
        self.folder = self.folder or default_root() / "runs" / f"callback-{Path(args.output_dir).resolve().name}"
        self._precision = Precision("bf16" if args.bf16 else "fp32")
        self._reporters = [cls() for cls in get_reporting_integration_callbacks(args.report_to)]
        task = self.config.task(tokenizer)
        suites = Suites.drawn(self.config.evaluation, SuiteContext(self.config.seed, self.base or ""), tokenizer, task)
        known = read_json(self.folder / "base" / STATE)
        if state.global_step and not known and self.base is None and not _has_base(model):
            raise ConfigError(
                f"the training goes on at step {state.global_step}, so the model is not the base any more, and "
                f"{self.folder} holds no measurement of it: name the base, ForgettingCallback(base=...)"
            )
        other = load_base(self.base)[0] if self.base else None
        with nullcontext() if other is not None else _as_base(model):
            self._prepare(suites, model if other is None else other, known)
        self._read_back(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = state.global_step % self.every == 0 and state.global_step < state.max_steps
        if due and state.is_world_process_zero and self._affordable():
            self._measure(args, state, control, kwargs["model"], _tokenizer(kwargs))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            if state.global_step not in self.points:
                self._measure(args, state, control, kwargs["model"], _tokenizer(kwargs))
            write_result(self._arm, self.result)

    def _check(self, args: Any) -> None:
        """Raise ConfigError for what cannot be measured from inside a training."""
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ConfigError(
                "ForgettingCallback needs a whole model in each process, but FSDP or DeepSpeed has it in shards: "
                "measure its checkpoints after the training, control-llm measure --model OUTPUT_DIR"
            )

    @property
    def _arm(self) -> Path:
        assert self.folder is not None  # set when the training begins
        return self.folder / "arms" / NAME

    @property
    def _draws(self) -> int:
        return self.config.evaluation.bootstrap

    def _prepare(self, suites: Suites, base: PreTrainedModel, known: Mapping[str, Any]) -> None:
        assert self.folder is not None
        self._evaluation: Evaluation = suites.prepare(base, self._precision, state=known.get("suites"))
        file = self.folder / "base" / ITEMS
        if known and file.is_file():
            self._base_records = read_records(file)
            return
        self._base_records = self._timed(base)
        write_records(file, self._base_records)
        write_json(self.folder / "base" / STATE, {"suites": self._evaluation.state(), **self.config.to_dict()})

    def _read_back(self, step: int) -> None:
        """Take the measurements of an earlier process, up to the step at which the training goes on."""
        for file in self._arm.glob("items-*.jsonl"):
            number = int(file.stem.rpartition("-")[2])
            if number <= step:
                self.points[number] = self._card(read_records(file))
            else:
                file.unlink()

    def _affordable(self) -> bool:
        passed = time.perf_counter() - self._began
        return self.measuring + self._longest <= self.budget * passed

    def _measure(self, args: Any, state: TrainerState, control: TrainerControl, model: Any, tokenizer: Any) -> None:
        records = self._timed(model)
        write_records(self._arm / f"items-{state.global_step}.jsonl", records)
        card = self.points[state.global_step] = self._card(records)
        logs = {PREFIX + name: figure.value for name, figure in headline(card).items()}
        state.log_history.append({**logs, "step": state.global_step})
        for reporter in self._reporters:
            reporter.on_log(args, state, control, logs=dict(logs), model=model)
        broken = [limit for limit in self.limits if not limit.holds(card)]
        if broken and self.stop:
            logger.warning("step %d: %s is broken: the training stops", state.global_step, broken[0].text)
            control.should_training_stop = True
        if self.keep_best and not broken:
            self._keep(state.global_step, card, model, tokenizer)

    def _keep(self, step: int, card: dict[str, Estimate], model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Save the model if it is the best so far that keeps the limits."""
        assert self.folder is not None
        value = next((card[name].value for name in ("gain", "new_nll_drop") if name in card), float(step))
        if self._best is None or value >= self._best[0]:
            self._best = (value, step)
            target = self.folder / "best"
            ctrl.save(model, target) if isinstance(model, ControlModel) else model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            figures = {name: estimate.value for name, estimate in headline(card).items()}
            write_json(target / "forgetting.json", {"step": step, **figures})

    def _timed(self, model: PreTrainedModel) -> list[Record]:
        start = time.perf_counter()
        records = self._evaluation.evaluate(model, self._precision, progress=False)
        self._longest = max(self._longest, time.perf_counter() - start)
        self.measuring += time.perf_counter() - start
        return records

    def _card(self, records: list[Record]) -> dict[str, Estimate]:
        return score(self._base_records, [], records, self._draws, self.config.seed)


def _tokenizer(kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return the trainer's tokenizer. Raises ConfigError if it has none."""
    tokenizer = kwargs.get("processing_class")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError("the trainer has no tokenizer: give it one, Trainer(..., processing_class=tokenizer)")
    return tokenizer


def _has_base(model: Any) -> bool:
    return is_peft(model) or isinstance(model, ControlModel)


def _as_base(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which a model with adapters or copies computes what its base does."""
    if is_peft(model):
        return model.disable_adapter()
    return ctrl.pretrained(model) if isinstance(model, ControlModel) else nullcontext()
