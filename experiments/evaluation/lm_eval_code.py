"""Run no code that comes with a folder of lm_eval tasks, unless it is asked for.

A YAML of lm_eval can name Python functions next to it (`!function`), a script with a metric, here or in a repository of
the Hugging Face Hub (`hf_evaluate`), and has templates of Jinja, which reach all of Python unless they are in a
sandbox.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError


@contextlib.contextmanager
def no_code_of_others(allowed: bool) -> Iterator[None]:
    """Load tasks inside the block: a function or metric script of another folder than lm_eval's raises ConfigError.

    allowed: let them run. Templates are in a sandbox from now on, in any case.
    """
    from lm_eval.api import registry
    from lm_eval.tasks import _yaml_loader

    sandbox_templates()
    own, load, metric = Path(_yaml_loader.__file__).parent, _yaml_loader._import_func_in_yml, registry.get_metric
    tasks = _task_module()

    def checked(name: str, base_dir: Path) -> Any:
        if own not in (Path(base_dir).resolve(), *Path(base_dir).resolve().parents):
            raise ConfigError(_refusal(f"{base_dir} names the Python function {name}"))
        return load(name, base_dir)

    def checked_metric(name: str, *args: Any, **kwargs: Any) -> Any:
        if Path(name).exists() or "/" in name:  # the latter is downloaded from a repository of anybody
            raise ConfigError(_refusal(f"a task names the script {name} as its metric"))
        return metric(name, *args, **kwargs)

    if allowed:
        yield
        return
    with _replaced(_yaml_loader, "_import_func_in_yml", checked), _replaced(tasks, "get_metric", checked_metric):
        yield


def sandbox_templates() -> None:
    """Let lm_eval render the templates of its tasks in a sandbox, without names that lead to Python's modules."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    before = lm_eval.utils.env
    if not isinstance(before, SandboxedEnvironment):
        sandbox = SandboxedEnvironment(
            loader=before.loader, undefined=before.undefined, keep_trailing_newline=before.keep_trailing_newline
        )
        sandbox.filters.update(before.filters)
        lm_eval.utils.env = sandbox


def _task_module() -> Any:
    from lm_eval.api import task

    return task


def _refusal(what: str) -> str:
    return (
        f"evaluation.suites.lm_eval: {what}, which would run on this machine: read it, then set run_code to true if "
        "you want that"
    )


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
