"""Load lm_eval's tasks with the draws of its own command, and check that their data is that of the files of now."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from experiments.data.hub_loading import check_times, local_files
from experiments.models.modes import random_states_kept

DOCUMENTS = ("training_docs", "validation_docs", "test_docs")  # methods of a task; some shuffle options or documents


def load_alike(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """Load tasks by name, each with the same draws whatever was loaded before it. manager: lm_eval's index of them."""
    tasks: dict[str, Any] = {}
    for name in names:
        with _seeded():
            tasks |= manager.load([name])["tasks"]
    for task in tasks.values():
        for method in DOCUMENTS:
            setattr(task, method, _alike(getattr(task, method)))
    return tasks


def _alike(read: Any) -> Any:
    def again() -> Any:
        with _seeded():
            return read()

    return again


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed as lm_eval's command does before it loads tasks; afterwards all random states are as before."""
    with random_states_kept(gpus=False):  # loading starts none
        random.seed(0)
        np.random.seed(1234)
        torch.default_generator.manual_seed(1234)
        yield


def check_data(task: Any) -> None:
    """Raise ConfigError for a task of one's own whose local file was replaced by one of the same time."""
    path, rows = getattr(task.config, "dataset_path", None), getattr(task, "dataset", None)
    if not path or not rows:
        return
    given = getattr(task.config, "dataset_kwargs", None) or {}
    options = {name: given[name] for name in ("data_files", "data_dir") if given.get(name)}
    files = local_files(path, getattr(task.config, "dataset_name", None), **options)
    for part in rows.values():
        check_times(part, files)
