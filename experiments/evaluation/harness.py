"""lm-evaluation-harness on the live model: any of its tasks by name, item by item, as records of this bench.

Also reads what an `lm_eval --log_samples` run of any model left, so that two such runs can be compared item by item.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import inspect
import io
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.errors import unknown_name
from experiments.evaluation.generation import Advance
from experiments.evaluation.suite import Suite
from experiments.records import Record
from experiments.section import ConfigError

if TYPE_CHECKING:
    from experiments.evaluation.config import LmEvalConfig

Side = Literal["new", "kept"]
# what says of one item whether it is right, the first that a task has
RIGHT = ("acc", "exact_match", "pass@1", "pass_at_1", "acc_norm", "math_verify", "em")
SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT.+)\.jsonl")
UNREADABLE = "[invalid]"  # what lm_eval's filters give where they find no answer
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
            tasks[name] = hashlib.sha256(text.encode()).hexdigest()
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
            records = to_records(name, found["samples"][name], self.sides[name])
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


def read_samples(path: str | Path, new: Sequence[str] = ()) -> list[Record]:
    """The records of an lm_eval run: a `samples_<task>_<date>.jsonl` file, or a folder with such files at any depth.

    new: patterns of the tasks that count as new (`gsm8k*`); the others are kept. Of several runs of a task in one
    folder the latest is read. Raises ValueError where there is no such file, or a line that is none of lm_eval's.
    """
    path = Path(path)
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    latest: dict[str, tuple[str, Path]] = {}
    for file in files:
        name = SAMPLES.fullmatch(file.name)
        if name is None:
            raise ValueError(f"{file} is not named samples_<task>_<date>.jsonl as `lm_eval --log_samples` names it")
        latest[name["task"]] = max(latest.get(name["task"], ("", file)), (name["date"], file))
    if not latest:
        raise ValueError(f"{path} holds no samples_*.jsonl: run lm_eval with --log_samples and --output_path")
    records = []
    for task, (_, file) in sorted(latest.items()):
        side: Side = "new" if any(fnmatch(task, pattern) for pattern in new) else "kept"
        try:
            samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            records += to_records(task, samples, side)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} does not hold lm_eval's samples ({type(error).__name__}: {error})") from error
    return records


def to_records(task: str, samples: Iterable[Mapping[str, Any]], side: Side) -> list[Record]:
    """One record per sample of lm_eval. Documents that are equal are numbered, so that their records still pair."""
    seen: Counter[tuple[str, str]] = Counter()
    records = []
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        form = "lm_eval" if sample["filter"] == "none" else f"lm_eval {sample['filter']}"
        item = sample["doc_hash"][:12]
        seen[form, item] += 1
        if seen[form, item] > 1:
            item = f"{item}-{seen[form, item]}"
        records.append(Record(side, task, form, item, correct=_correct(task, sample), **_answered(sample)))
    return records


def _correct(task: str, sample: Mapping[str, Any]) -> int:
    name = next((name for name in RIGHT if name in sample["metrics"]), None)
    if name is None:
        raise ValueError(
            f"task {task} of lm_eval gives {', '.join(sample['metrics'])}, none of which says whether an item is right "
            f"({', '.join(RIGHT)}): leave the task out"
        )
    value = float(sample[name])
    if value not in (0.0, 1.0):
        raise ValueError(f"task {task} of lm_eval: {name}={value:g} of an item is neither 0 nor 1: leave the task out")
    return int(value)


def _answered(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Multiple choice: options and their summed log-likelihoods, which lm_eval's `acc` compares. Else the reply.

    Files hold the arguments as dictionaries and every number as text.
    """
    asked, given, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    rows = [list(row.values()) for row in asked.values()] if isinstance(asked, dict) else [list(row) for row in asked]
    if len(rows) < 2:
        read = given[0][0] if isinstance(given[0], list | tuple) else given[0]
        parsed = None if sample["filter"] == "none" else str(read) != UNREADABLE
        return {"answer": str(target), "reply": str(sample["resps"][0][0]), "parsed": parsed}
    scores = tuple(float(pair[0]) for pair in given)
    return {
        "choice": max(range(len(scores)), key=lambda i: scores[i]),
        "answer": int(target) if str(target).isdigit() else str(target),
        "options": tuple(str(row[1]).strip() for row in rows),
        "scores": scores,
    }
