"""Refuse a trial on other data, or on another base model, than the trials of the study before it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import BenchError, RunError
from experiments.studies.claim import ACTIVE
from experiments.studies.trials import RUNS

if TYPE_CHECKING:
    from experiments.studies.queue import Store

DATA = "data"  # the system attribute of a trial with its digests
COUNTS = ("RUNNING", "COMPLETE", "PRUNED")  # Optuna's states of trials with which others are compared


def agree(store: Store, root: Path, digests: Mapping[str, str], seen: dict[str, str]) -> None:
    """Note the digests of data and base model of this process's trial (`runs.same_data`), unless another has others.

    Data of which no trial has measured anything may still be corrected. seen: digests of earlier seeds of this trial,
    which is extended. Raises RunError if a digest is another one: the trial's figures would not compare.
    """
    from experiments.runs.same_data import named  # loads torch; `status` needs none

    with store.lock():
        trials = store.study.get_trials(deepcopy=False)
        known = dict(seen)
        for one in trials:
            if one._trial_id not in ACTIVE and one.state.name in COUNTS:
                known = _noted(one, root) | known
        changed = [key for key, digest in digests.items() if known.get(key, digest) != digest]
        if not changed:
            seen |= digests
            for own in (one._trial_id for one in trials if one._trial_id in ACTIVE and one.state.name == "RUNNING"):
                store.storage.set_trial_system_attr(own, DATA, seen)
            return
    raise RunError(
        f"{named(changed)} has changed since other trials of study {store.config.name!r} were trained, so this one "
        "would not compare with them: bring the old one back, and the same command goes on, or give the study another "
        "name"
    )


def _noted(trial: Any, root: Path) -> dict[str, str]:
    """Return the digests of a trial. Of an earlier version, or from a file, they are what its runs note, if here."""
    if DATA in trial.system_attrs:
        return dict(trial.system_attrs[DATA])
    found: dict[str, str] = {}
    for run in trial.system_attrs.get(RUNS, ()):
        found = _of_run(root / str(run.get("folder"))) | found
    return found


@functools.lru_cache(maxsize=1000)
def _of_run(run: Path) -> dict[str, str]:
    from experiments.runs.same_data import digests_noted

    with suppress(BenchError, OSError):
        return digests_noted(run)
    return {}
