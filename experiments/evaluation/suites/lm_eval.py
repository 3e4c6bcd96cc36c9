"""lm-evaluation-harness on the live model: any of its tasks by name, item by item, as records of this bench."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import inspect
import io
import itertools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError
from experiments.common.hashing import sha256
from experiments.evaluation.lm_eval_samples import RIGHT, Side, no_verdict, to_records
from experiments.evaluation.suite import Suite
from experiments.models.generation import Advance
from experiments.records import Record

if TYPE_CHECKING:
    from experiments.evaluation.config import LmEvalConfig

FEWSHOT_SEED = 1234  # lm_eval's own default


class HarnessSuite(Suite):
    """Tasks of lm_eval 0.4, by the names that `lm_eval ls tasks` lists; groups and tags become their tasks.

    A record is one item under one filter (lm_eval's word for reading an answer out of a reply): task is the task's
    name, form `lm_eval`, or `lm_eval <filter>` where the filter has a name, item the hash of the item's document.
    Raises ConfigError for a name that lm_eval does not know, and for a task that is named as new and as kept.
    """

    name = "lm_eval"

    def draw(self) -> None:
        self.tokenizer = copy.deepcopy(self.tokenizer)  # lm_eval changes its padding
        settings = self.config.evaluation.lm_eval
        if settings is None:
            raise ConfigError("suite 'lm_eval' needs its tasks: set evaluation.lm_eval, for example {kept: [mmlu]}")
        self.settings = settings
        new, kept = load_tasks(settings)
        twice = sorted(new.keys() & kept.keys())
        if twice:
            raise ConfigError(f"evaluation.lm_eval: {', '.join(twice)} cannot be new and kept: name each task once")
        self.sides: dict[str, Side] = {**dict.fromkeys(new, "new"), **dict.fromkeys(kept, "kept")}
        self.loaded = {name: _prepared(task, settings.fewshot) for name, task in {**new, **kept}.items()}
        for name, task in self.loaded.items():
            if not {*RIGHT, "pass_at_k"} & set(task.aggregation()):  # which is pass@1 in results
                raise ConfigError(f"evaluation.lm_eval: {no_verdict(name, task.aggregation())}")

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Items by task."""
        most = self.settings.limit
        counts = {name: len(task.eval_docs) for name, task in self.loaded.items()}
        return {name: count if most is None else min(most, count) for name, count in counts.items()}

    @property
    def size(self) -> int:
        return sum(self.counts.values())

    def content(self) -> Any:
        """lm_eval's version, the settings, and per task a hash of its own config and of the documents asked."""
        tasks = {}
        for name, task in self.loaded.items():
            docs = itertools.islice(task.eval_docs, self.counts[name])
            text = json.dumps([task.config.to_dict(keep_callable=True), *docs], default=_plain, sort_keys=True)
            tasks[name] = sha256(text)
        settings = self.settings.model_dump(mode="json", exclude={"include_path", "batch_size"})
        return {"lm_eval": importlib.metadata.version("lm_eval"), "settings": settings, "tasks": tasks}

    def measure(self, model: PreTrainedModel, advance: Advance) -> Iterator[Record]:
        """One record per item and filter, task by task. Autocast in force around the call is kept inside lm_eval."""
        from lm_eval.evaluator import evaluate

        settings = self.settings
        if settings.run_code:
            os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # asked for by the metric that runs code
        language_model = _wrapped(model, self.tokenizer, settings.batch_size)
        for name, task in self.loaded.items():
            with redirect_stderr(io.StringIO()):  # bars of its own, which cannot be switched off
                found = evaluate(
                    lm=language_model,
                    task_dict={"tasks": {name: task}},
                    limit=settings.limit,
                    bootstrap_iters=0,
                    apply_chat_template=settings.chat,
                    fewshot_as_multiturn=settings.chat,
                    confirm_run_unsafe_code=settings.run_code,
                )
            try:
                records = to_records(name, found["samples"][name], self.sides[name])
            except ValueError as error:  # only its results show that a task gives no verdicts on items
                raise ConfigError(f"evaluation.lm_eval: {error}") from error
            advance(self.counts[name])
            yield from records


def _plain(value: Any) -> str:
    """A task's function as its file's text, which stays the same between processes; anything else as text."""
    return Path(inspect.getfile(value)).read_text(encoding="utf-8") if inspect.isfunction(value) else str(value)


def load_tasks(settings: LmEvalConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """lm_eval's task objects by name, the new ones and the kept ones; their data is read or downloaded here.

    lm_eval's own index takes seconds to build, so a folder of one's own is tried alone first.
    """
    from lm_eval.tasks import TaskManager

    names = [*settings.new, *settings.kept]
    if settings.include_path and not Path(settings.include_path).is_dir():
        raise ConfigError(f"evaluation.lm_eval.include_path={settings.include_path}: no such folder")
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=settings.include_path)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(f"evaluation.lm_eval: {unknown_name('task', name, manager.all_tasks)}")
    new, kept = (dict(manager.load(list(side))["tasks"]) if side else {} for side in (settings.new, settings.kept))
    unsafe = sorted(name for name, task in {**new, **kept}.items() if getattr(task, "UNSAFE_CODE", False))
    if unsafe and not settings.run_code:
        raise ConfigError(
            f"evaluation.lm_eval: {', '.join(unsafe)} runs code that the model wrote, on this machine: set run_code to "
            "true if that is wanted"
        )
    return new, kept


def _prepared(task: Any, fewshot: int | None) -> Any:
    """Examples in the prompt: as configured, else the task's own number, else none. A task that fixes 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def _wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    """lm_eval's view of the model. It switches autocast off unless it is told the dtype."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)  # it warns of every model that is loaded
    kind = model.device.type
    wrapped = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        mixed_precision_dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        softmax_dtype=torch.float32,
    )
    return wrapped
