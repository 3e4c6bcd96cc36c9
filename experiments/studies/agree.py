"""Refuse a trial on other data, or on another base model, than the trials of the study before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import BenchError, RunError
from experiments.studies.claim import ACTIVE
from experiments.studies.trials import RUNS

if TYPE_CHECKING:
    from experiments.studies.queue import Store

DATA = "data"  # the study's attribute with the digests
COUNTS = ("RUNNING", "COMPLETE", "PRUNED")  # Optuna's states of trials with which others are compared


def agree(store: Store, root: Path, digests: Mapping[str, str], seen: dict[str, str]) -> None:
    """Note the digests of a trial's data and base model (`runs.same_data`) in the study, or compare them.

    While no other trial has measured anything, data may still be corrected. seen: those of earlier seeds of this trial,
    which is extended. Raises RunError if a digest is another one: the trial's figures would not compare.
    """
    from experiments.runs.same_data import named  # loads torch; `status` needs none

    with store.lock():
        trials = store.study.get_trials(deepcopy=False)
        others = [one for one in trials if one._trial_id not in ACTIVE and one.state.name in COUNTS]
        known = store.study.user_attrs.get(DATA)
        known = _noted(others, root) if known is None else known
        compared = {**known, **seen} if others else seen
        changed = [key for key, digest in digests.items() if compared.get(key, digest) != digest]
        if not changed:
            seen |= digests
            store.study.set_user_attr(DATA, {**known, **digests})
            return
    raise RunError(
        f"{named(changed)} has changed since other trials of study {store.config.name!r} were trained, so this one "
        "would not compare with them: bring the old one back, and the same command goes on, or give the study another "
        "name"
    )


def _noted(trials: Sequence[Any], root: Path) -> dict[str, str]:
    """Return what the runs of trials note, of a study of an earlier version or from a file; nothing if none is here."""
    from experiments.runs.same_data import digests_noted

    found: dict[str, str] = {}
    for folder in dict.fromkeys(str(run.get("folder")) for one in trials for run in one.system_attrs.get(RUNS, ())):
        with suppress(BenchError, OSError):
            found = digests_noted(root / folder) | found
    return found
