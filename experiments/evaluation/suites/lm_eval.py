"""Suite `lm_eval`: any task of lm-evaluation-harness by name, measured on the live model, one record per item."""

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
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError
from experiments.common.hashing import sha256
from experiments.common.section import nearest
from experiments.data.grader_files import check_imported, own_files
from experiments.evaluation.lm_eval_code import no_code_of_others
from experiments.evaluation.lm_eval_data import check_data, load_alike
from experiments.evaluation.lm_eval_model import wrapped
from experiments.evaluation.lm_eval_samples import RIGHT, Side, no_verdict, to_records
from experiments.evaluation.lm_eval_watch import cuts_said, finite
from experiments.evaluation.suite import Suite, SuiteSettings
from experiments.models.generation import stopping
from experiments.models.reading import as_asked
from experiments.models.sharing import Progress
from experiments.models.tokens import asked_key, drop_added_end
from experiments.records import Record

logger = logging.getLogger(__name__)
FEWSHOT_SEED = 1234  # lm_eval's own default
PRESETS = Path(__file__).parents[2] / "presets"


class HarnessSettings(SuiteSettings):
    """Which tasks of lm_eval are measured, and how. `preset: NAME` reads presets/NAME.yaml; other keys override it."""

    new: tuple[str, ...] = Field((), description="tasks, groups or tags that count as the new task")
    kept: tuple[str, ...] = Field((), description="tasks, groups or tags that must not be forgotten")
    include_path: str | None = Field(None, description="folder with tasks of one's own")
    limit: int | None = Field(None, ge=1, description="items of each task; default: all")
    fewshot: int | None = Field(None, ge=0, description="examples in a prompt; default: the task's own number")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="prompts at a time; auto: 64 on a GPU, halved as often as memory asks for it, 8 on a CPU"
    )
    chat: bool = Field(False, description="ask through the chat template")
    run_code: bool = Field(
        False,
        description="allow tasks that run code: the model's (humaneval, mbpp), or Python files of include_path",
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        name, path = values["preset"], PRESETS / f"{values['preset']}.yaml"
        if path.parent != PRESETS or not path.is_file():
            raise ValueError(f"unknown preset {name!r}: {nearest(name, (p.stem for p in PRESETS.glob('*.yaml')))}")
        rest = {key: value for key, value in values.items() if key != "preset"}
        return yaml.safe_load(path.read_text(encoding="utf-8")) | rest

    @model_validator(mode="after")
    def _any(self) -> HarnessSettings:
        if not self.new and not self.kept:
            raise ValueError("needs `kept` or `new` with at least one task, or a preset")
        return self


class HarnessSuite(Suite):
    """Tasks of lm_eval 0.4, by the names that `lm_eval ls tasks` lists; a group or tag means all its tasks.

    A record is one item under one filter (lm_eval's word for reading an answer out of a reply). suite: `new` or `kept`;
    task: name of the task; form: `lm_eval`, or `lm_eval <filter>` if the filter has a name; item: hash of the document.
    Replies follow the settings of the task alone: a model's generation_config.json, such as a penalty on repetition, is
    not read, since a base and what was trained from it may have other ones. Raises ConfigError for a name that lm_eval
    does not know, and for a task that is both new and kept.
    """

    name = "lm_eval"
    # right answers that are digits; replies that stop at each end, and that the task's settings alone decide
    version = 4
    Settings = HarnessSettings
    settings: HarnessSettings

    def draw(self) -> None:
        self.tokenizer = copy.deepcopy(self.tokenizer)  # lm_eval changes its padding
        drop_added_end(self.tokenizer)  # which lm_eval would put between a question and its answer
        new, kept = load_tasks(self.settings)
        twice = sorted(new.keys() & kept.keys())
        if twice:
            raise ConfigError(f"evaluation.suites.lm_eval: {', '.join(twice)} cannot be new and kept: name each once")
        self.sides: dict[str, Side] = {**dict.fromkeys(new, "new"), **dict.fromkeys(kept, "kept")}
        self.loaded = {name: _prepared(name, task, self.settings.fewshot) for name, task in {**new, **kept}.items()}
        for name, task in self.loaded.items():
            if not {*RIGHT, "pass_at_k"} & set(task.aggregation()):  # which is pass@1 in results
                raise ConfigError(f"evaluation.suites.lm_eval: {no_verdict(name, task.aggregation())}: leave it out")

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Number of items of each task."""
        most = self.settings.limit
        counts = {name: len(task.eval_docs) for name, task in self.loaded.items()}
        return {name: count if most is None else min(most, count) for name, count in counts.items()}

    @property
    def size(self) -> int:
        return sum(self.counts.values())

    def content(self) -> Any:
        """Return lm_eval's version, the settings, and for each task a hash of its config and documents."""
        tasks = {}
        for name, task in self.loaded.items():
            docs = itertools.islice(task.eval_docs, self.counts[name])
            parts = [task.config.to_dict(keep_callable=True), *docs, *_further_code(task)]
            if self.settings.include_path and task.config.num_fewshot and hasattr(task, "sampler"):
                parts += task.sampler.fewshot_docs()  # examples in its prompts; those of lm_eval's own tasks are known
            text = json.dumps(parts, default=_plain, sort_keys=True)
            tasks[name] = sha256(text)
        settings = self.settings.model_dump(mode="json", exclude={"include_path", "batch_size"})
        version, asked = importlib.metadata.version("lm_eval"), asked_key(self.tokenizer)
        return {"lm_eval": version, "settings": settings, "tasks": tasks, "asked": asked}

    def questions(self) -> dict[tuple[str, str, str], str]:
        """Return the text of each document, without examples, by side, task and the item of its records."""
        from lm_eval.utils import handle_non_serializable, hash_string

        found: dict[tuple[str, str, str], str] = {}
        for name, task in self.loaded.items():
            for doc in itertools.islice(task.eval_docs, self.counts[name]):
                text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
                found[self.sides[name], name, hash_string(text)[:12]] = str(task.doc_to_text(doc))
        return found

    def measure(self, model: PreTrainedModel, progress: Progress) -> Iterator[Record]:
        """Return one record per item and filter, task by task. lm_eval computes under the autocast of the caller."""
        from lm_eval.evaluator import evaluate

        settings = self.settings
        if settings.run_code:
            os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # the metric that runs code wants it
        language_model = wrapped(model, self.tokenizer, settings.batch_size)
        for name, task in self.loaded.items():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # else each measurement draws other examples than the one before
            # its progress bars cannot be switched off
            with (
                redirect_stderr(io.StringIO()),
                finite(model),
                cuts_said(name),
                as_asked(model),
                stopping(model, self.tokenizer),
            ):
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
            except ValueError as error:  # only the results show that a task does not judge items
                raise ConfigError(f"evaluation.suites.lm_eval: {error}") from error
            progress(self.counts[name])
            yield from records


def _plain(value: Any) -> str:
    """Return the name and the code of a function, a class or what is called as one; other values as text.

    Both are equal in all processes. A file has several functions, so its code alone does not say which one is meant.
    That of a class is found by a function of it: its module may not be imported.
    """
    if isinstance(value, functools.partial):
        return "\n".join(map(_plain, (value.func, value.args, value.keywords)))
    if not callable(value):
        return str(value)
    value = inspect.unwrap(getattr(value, "__func__", value))
    cls = value if inspect.isclass(value) else type(value)
    inside = [one for one in vars(cls).values() if inspect.isfunction(one)]
    function = value if inspect.isfunction(value) else next(iter(inside), None)
    name = getattr(value, "__qualname__", cls.__qualname__)
    return f"{name}\n{_code_of(function)}" if function else str(value)


def _code_of(value: Any) -> str:
    """Return the text of the file that defines a function or class, and of the modules next to it that it imports."""
    return _text_of(Path(inspect.getfile(value)))


def _text_of(file: Path) -> str:
    files = own_files(file)
    check_imported(files[1:])  # lm_eval reads the first one anew
    return "\n".join(one.read_text(encoding="utf-8") for one in files)


def _further_code(task: Any) -> list[str]:
    """Return the code of a task's class and of its scripts of metrics, if they are not lm_eval's: its version is known.

    A script is a file, or one of the folder's name in a folder.
    """
    own = [] if type(task).__module__.partition(".")[0] == "lm_eval" else [_code_of(type(task))]
    named = [Path(str(metric.get("metric"))) for metric in task.config.metric_list or ()]
    scripts = [path / f"{path.name}.py" if path.is_dir() else path for path in named]
    return own + [_text_of(path) for path in scripts if path.is_file()]


def load_tasks(settings: HarnessSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load lm_eval's task objects by name, new ones and kept ones; their data is read or downloaded here.

    lm_eval's own index takes seconds to build, so `include_path` alone is tried first.
    """
    names = [*settings.new, *settings.kept]
    if settings.include_path and not Path(settings.include_path).is_dir():
        raise ConfigError(f"evaluation.suites.lm_eval.include_path={settings.include_path}: no such folder")
    manager = _task_manager(settings.include_path, names)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(f"evaluation.suites.lm_eval: {unknown_name('task', name, manager.all_tasks)}")
    try:
        with no_code_of_others(settings.run_code):
            sides = [load_alike(manager, side) for side in (settings.new, settings.kept)]
        for task in (task for side in sides for task in side.values()):
            check_data(task)
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError) as error:  # of the network, of the Hub, of a package that a task needs
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"evaluation.suites.lm_eval: the data of {', '.join(names)} could not be read: {reason}"
        ) from error
    new, kept = sides
    unsafe = sorted(name for name, task in {**new, **kept}.items() if getattr(task, "UNSAFE_CODE", False))
    if unsafe and not settings.run_code:
        raise ConfigError(
            f"evaluation.suites.lm_eval: {', '.join(unsafe)} runs code that the model wrote, on this machine: set "
            "run_code to true if you want that"
        )
    return new, kept


def _task_manager(include_path: str | None, names: Sequence[str]) -> Any:
    """Return lm_eval's index of the tasks in a folder if it has all names, else of those and lm_eval's own."""
    from lm_eval.tasks import TaskManager

    if include_path is None:
        return _own_tasks()
    alone = TaskManager(include_path=include_path, include_defaults=False)
    return alone if set(names) <= set(alone.all_tasks) else TaskManager(include_path=include_path)


@functools.cache
def _own_tasks() -> Any:
    """Index lm_eval's own tasks, once in a process: it reads 13,000 files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _prepared(name: str, task: Any, fewshot: int | None) -> Any:
    """Set the number of examples in a prompt: as configured, else the task's own, else 0. A task with 0 keeps it."""
    own = task.get_config("num_fewshot")
    if fewshot and own == 0:
        logger.warning("evaluation.suites.lm_eval.fewshot=%d: %s has 0 in lm_eval, and keeps it", fewshot, name)
    if own is None or (fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=fewshot or 0)
    return task
