"""Open a study in Optuna's storage, and refuse one that is another program's or was started from another config."""

from __future__ import annotations

import contextlib
import os

import optuna

from experiments.common.errors import ConfigError, StudyError
from experiments.common.paths import short_path
from experiments.common.section import nearest
from experiments.studies.config import StudyConfig
from experiments.studies.load import stored_study
from experiments.studies.locks import STORAGE, STORAGE_FAULTS, engine_options, file_lock, shown, sqlite_file
from experiments.studies.trials import foreign

HEARTBEAT = 60  # seconds, until the study's own is known


def open_study(
    url: str, config: StudyConfig | None, name: str
) -> tuple[optuna.storages.RDBStorage, optuna.Study, StudyConfig]:
    """Return the storage, the study, which is made if there is none, and its config.

    config: None to open a study by name, with the config that it was begun with. Raises StudyError for a storage that
    cannot be used, a study that is not there, has not begun, or has results of another program.
    """
    if config is None and (file := sqlite_file(url)) and not file.is_file():
        raise StudyError(
            f"no study {name!r}: there is no database {short_path(file)}. Of a study in another storage, give its "
            f"--storage, or set {STORAGE}"
        )
    heartbeat = config.heartbeat if config else HEARTBEAT
    try:
        with contextlib.nullcontext() if config is None and _read_only(url) else file_lock(url):
            storage = optuna.storages.RDBStorage(
                url, engine_kwargs=engine_options(url), heartbeat_interval=heartbeat, grace_period=2 * heartbeat
            )
        if config is None:
            study, config = _known(storage, url, name)
            storage.heartbeat_interval, storage.grace_period = config.heartbeat, 2 * config.heartbeat
        else:
            aims = [objective.direction for objective in config.objectives]
            study = optuna.create_study(storage=storage, study_name=name, directions=aims, load_if_exists=True)
    except (*STORAGE_FAULTS, ImportError) as error:
        raise StudyError(
            f"the storage {shown(url)} cannot be used: {str(error).splitlines()[0]}\nIf its file is damaged, "
            "move it away: the same study then begins anew, and takes over the run folders that are there"
        ) from error
    return storage, study, config


def _read_only(url: str) -> bool:
    """Whether this process may not write the lock of an SQLite storage: on a disk for reading, or of another user."""
    if not (file := sqlite_file(url)):
        return False
    lock = file.with_name(f"{file.name}.lock")
    return not os.access(lock if lock.exists() else file.parent, os.W_OK)


def check_may_begin(study: optuna.Study, config: StudyConfig, url: str) -> None:
    """Raise ConfigError if the study was started from another config, or by another program; see `_check_own` too."""
    known = study.user_attrs.get("config")
    if not known:
        _check_new(study, config, url)
    _check_own(study, url)
    if known and stored_study(known).identity() != config.identity():
        raise ConfigError(
            f"study {config.name!r} in {shown(url)} was started from another config: give this one another name "
            "(budget, retries, failures, heartbeat, report and storage may change)"
        )


def _known(storage: optuna.storages.RDBStorage, url: str, name: str) -> tuple[optuna.Study, StudyConfig]:
    """Load a study that has begun, with its config."""
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise StudyError(f"no study {name!r} in {shown(url)}: {nearest(name, names)}")
    study = optuna.load_study(study_name=name, storage=storage)
    if "config" not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise StudyError(f"study {name!r} in {shown(url)} was made by another program: give another name")
        raise StudyError(f"study {name!r} was ended before it had begun: `study CONFIG` begins it")
    config = stored_study(study.user_attrs["config"], f"study {name}")
    _check_own(study, url)
    return study, config.model_copy(update={"storage": url}) if config.storage else config  # stored without password


def _check_new(study: optuna.Study, config: StudyConfig, url: str) -> None:
    """Raise ConfigError for a study without our config that has trials, or aims at something else.

    Another program made it, or a start of ours that was killed before it stored the config, with other objectives.
    """
    wanted = [objective.direction for objective in config.objectives]
    aims, trials = [direction.name.lower() for direction in study.directions], len(study.get_trials(deepcopy=False))
    if aims != wanted or trials:
        raise ConfigError(
            f"study {config.name!r} in {shown(url)} was not made by this config: it aims to {', '.join(aims)}, and has "
            f"{trials} trials. Give this study another name, or another --storage"
        )


def _check_own(study: optuna.Study, url: str) -> None:
    """Raise StudyError if another program has added complete trials: nothing was measured for their values."""
    if found := [trial.number for trial in study.get_trials(deepcopy=False) if foreign(trial)]:
        raise StudyError(
            f"study {study.study_name!r} in {shown(url)} has trials that another program added: "
            f"{', '.join(map(str, found))}. Their values were not measured here. With another --storage the same study "
            "begins anew, and takes over the run folders that are there"
        )
