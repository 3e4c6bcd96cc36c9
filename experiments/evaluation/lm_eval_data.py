"""Check that the data of lm_eval's tasks, which it reads with the package datasets, is that of the files of now."""

from __future__ import annotations

from typing import Any

from experiments.data.hub_loading import check_times, local_files


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
