"""Queue the failed trials of a study again."""

from __future__ import annotations

import contextlib
from pathlib import Path

from experiments.common.errors import StudyError
from experiments.common.files import remove
from experiments.studies.claim import next_attempt
from experiments.studies.queue import Store
from experiments.studies.trials import failed, lineages, origin, picks_of


def queue_failed(store: Store, root: Path) -> list[int]:
    """Queue each failed trial again and return their numbers. The folders of their runs are deleted: each starts anew.

    A failed trial stays failed otherwise, because most reasons are in its picks. Call it after the reason is gone: a
    fault that was mended, a package that was missing, another version of the bench. Raises StudyError if none failed.
    """
    from experiments.runs.run import only_one, run_folder  # loads torch; `status` needs none

    config = store.config
    with store.lock():
        ended = [a[-1] for a in lineages(store.study.get_trials()).values() if failed(a, config.retries)]
        if not ended:
            raise StudyError(f"no trial of {config.name!r} has failed: leave out --failed")
        for trial in ended:
            for seed in config.seeds:
                with contextlib.suppress(ValueError):  # picks that do not go together have no run
                    folder = run_folder(config.run_config(picks_of(trial), origin(trial), seed), root)
                    if folder.is_dir() and not folder.is_symlink():
                        with only_one(folder):
                            remove(folder, root / "cache" / "removed")
            store.study.add_trial(next_attempt(trial))
    return sorted(origin(trial) for trial in ended)
