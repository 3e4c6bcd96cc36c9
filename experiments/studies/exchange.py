"""Write a study's complete trials to one file, and begin a study from such a file, on this machine or another.

`trials.tar.xz` has `trials.json` (the study's identity, then picks, values and results of each trial) and the runs that
they were measured in: configs, results and item records, those of post-hoc operations too, without weights.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from experiments.common.errors import ConfigError
from experiments.common.files import part_folder, replacing, sweep
from experiments.common.paths import short_path
from experiments.common.yaml_values import load_yaml
from experiments.config import ExperimentConfig, parse_config
from experiments.records import ArmResult
from experiments.runs.result_file import RESULT, check_files, floor_file, is_result, result_values
from experiments.studies.archive import FILE, KEPT, LEFT_OUT, TRIALS, Archive, open_archive, run_of
from experiments.studies.config import StudyConfig
from experiments.studies.trial import TrialFailed, conclude
from experiments.studies.trial_results import TrialOutcome
from experiments.studies.trials import RUNS, SECONDS, TAKEN, Trial


class KnownRun(BaseModel):
    """A run of a trial; see `experiments.studies.trial.run_record`."""

    seed: int
    folder: str
    result: dict[str, Any]


class Known(BaseModel):
    """A complete trial as it is in the file."""

    model_config = ConfigDict(strict=True)
    number: int = Field(ge=0)
    picks: dict[str, Any]
    values: list[FiniteFloat] = Field(min_length=1)
    constraints: dict[str, FiniteFloat]
    seconds: float = Field(ge=0, le=1e10)
    runs: list[KnownRun]


def write_trials(study: StudyConfig, trials: list[Trial], root: Path, folder: Path) -> Path | None:
    """Write the complete trials whose runs are in root, as `trials.tar.xz` in a folder. None, and no file, if none is.

    Trials that repeat others are left out. The same trials give the same file.
    """
    whole = [t for t in trials if t.state == "complete" and t.repeats is None and _runs(t, root)]
    if not whole:
        return None
    fields = ("number", "picks", "values", "constraints", "seconds", "runs")
    values = {"identity": study.identity(), "trials": [{f: getattr(t, f) for f in fields} for t in whole]}
    sweep(folder)  # of a report that was killed
    with replacing(folder / FILE) as file, tarfile.open(fileobj=file, mode="w:xz") as archive:
        _add(archive, TRIALS, (json.dumps(values, sort_keys=True) + "\n").encode())
        runs = dict.fromkeys(run for trial in whole for run in _runs(trial, root))  # picks can share a run
        for path in (path for run in runs for path in _kept(run)):
            _add(archive, path.relative_to(root).as_posix(), path.read_bytes())
    return folder / FILE


def read_trials(study: StudyConfig, folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of a folder's file, complete, with the seconds that they took.

    Raises ConfigError if it is of another study, DamagedError for trials that this study cannot have.
    """
    with open_archive(folder) as archive:
        values = archive.trials
        identity, found = values["identity"], [_known(trial) for trial in values["trials"]]
        if identity != study.identity():
            raise ConfigError(
                f"--from {short_path(folder)}: its trials are of a study with another base, search or objective: give "
                f"the study.yaml in that folder, or leave out --from"
            )
        made = [_attempt(study, trial) for trial in found]
        for trial in found:
            _check_runs(study, trial, archive)
        own = {f"{run.folder}/arms/{_arm_of(run.result)}" for trial in found for run in trial.runs}
        if strange := sorted(name for name in archive.files if not _belongs(name, own)):
            raise ValueError(f"it has {strange[0]!r}, which is of none of its trials")
        return made


def unpack_runs(folder: Path, root: Path) -> None:
    """Copy the runs of a folder's file to root. A run folder that exists stays as it is. Raises DamagedError.

    Each run folder appears whole, after its records were checked: a kill or a full disk leaves none in part.
    """
    (root / "runs").mkdir(parents=True, exist_ok=True)
    with open_archive(folder) as archive, part_folder(root / "from") as part:
        new = {run for run in archive.runs if not (root / run).exists()}
        for name in archive.files:
            if run_of(name) in new:
                archive.unpack(name, part)
        for result in (*part.glob(f"runs/*/arms/*/{RESULT}"), *part.glob(f"runs/*/posthoc/*/{RESULT}")):
            check_files(result)
        for run in sorted(new):
            floor_file(part / run)
        for run in sorted(new):
            try:
                (part / run).rename(root / run)
            except OSError:
                if not (root / run).is_dir():  # by another process that begins with the same file
                    raise


def unpacked(trial: optuna.trial.FrozenTrial, root: Path) -> bool:
    """Whether the runs in root have the results of a trial of a file. Raises DamagedError for a damaged result.

    A run folder that was there before may be half done, or have figures of another machine. Such a trial is not taken:
    its values would not be those of its records.
    """
    return all(is_result(result_values(root / _result_file(run)), run["result"]) for run in trial.system_attrs[RUNS])


def _result_file(run: Mapping[str, Any]) -> str:
    """Return the path of the result of a trial's run, below the root."""
    return f"{run['folder']}/arms/{_arm_of(run['result'])}/{RESULT}"


def _arm_of(result: dict[str, Any]) -> str:
    made = ArmResult.from_dict(result)
    return f"{made.arm}-{made.learning_rate:g}"


def _belongs(name: str, arms: set[str]) -> bool:
    """Whether a file is of one of the arms, or of the run around it: config, sources, records of the base."""
    parts = name.split("/")
    if parts[2] == "arms":
        return "/".join(parts[:4]) in arms
    return any(arm.startswith(f"{run_of(name)}/") for arm in arms)


def _known(values: Any) -> Known:
    """Return a trial of the file. Raises ValueError."""
    try:
        return Known.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{TRIALS}, {place} of a trial: {fault['msg']}") from error


def _attempt(study: StudyConfig, trial: Known) -> optuna.trial.FrozenTrial:
    """Return Optuna's form of a trial. Raises ValueError for picks or values that are not of the study."""
    if trial.picks.keys() != study.search.keys() or len(trial.values) != len(study.objectives):
        raise ValueError(f"{TRIALS}, trial {trial.number}: it has picks or values that the study does not have")
    fixed = optuna.trial.FixedTrial(trial.picks)
    picks = {key: dimension.suggest(fixed, key) for key, dimension in study.search.items()}
    noted = {f"constraints:{name}": value for name, value in trial.constraints.items()}
    attempt = optuna.create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params=picks,
        distributions=fixed.distributions,
        user_attrs={SECONDS: trial.seconds},
        system_attrs={"fixed_params": picks, TAKEN: True, RUNS: [run.model_dump() for run in trial.runs], **noted},
    )
    assert attempt.datetime_complete is not None
    attempt.datetime_start = attempt.datetime_complete - timedelta(seconds=trial.seconds)
    return attempt


def _check_runs(study: StudyConfig, trial: Known, archive: Archive) -> None:
    """Raise ValueError if a trial's runs are not in the file, or are not of its picks, or give other values."""
    place = f"{TRIALS}, trial {trial.number}"
    for run in trial.runs:
        if run.folder not in archive.runs:
            raise ValueError(f"{place}: its run {run.folder!r} is not in the file")
        file = _result_file(run.model_dump())
        name, _, digest = run.folder.removeprefix("runs/").rpartition("-")
        config = study.run_config(trial.picks, 0, run.seed).model_copy(update={"name": name})
        if config.digest() != digest:
            raise ValueError(f"{place}: its run {run.folder!r} is of other picks or another seed")
        own = archive.values(file) if file in archive.files else {}
        if not is_result(own, run.result):
            raise ValueError(f"{place}: its result is not that of {file}")
        if _config(archive, f"{run.folder}/config.yaml").digest() != digest:
            raise ValueError(f"{place}: {run.folder}/config.yaml has other settings than its run")
    outcome = TrialOutcome(runs=[run.model_dump() for run in trial.runs])
    try:
        conclude(study, outcome)
    except TrialFailed as error:
        raise ValueError(f"{place}: {error}") from error
    if outcome.values != trial.values or not outcome.constraints.items() <= trial.constraints.items():
        raise ValueError(f"{place}: its values are not those of its results")


def _config(archive: Archive, name: str) -> ExperimentConfig:
    """Return a config of the file. Raises ValueError, which ConfigError is not."""
    try:
        return parse_config(load_yaml(archive.text(name)), name)
    except (ConfigError, yaml.YAMLError) as error:
        raise ValueError(f"{name} is no config of a run: {' '.join(str(error).split())}") from error


def _runs(trial: Trial, root: Path) -> list[Path]:
    """Return the folders of a trial's runs; none if one of them is not below root."""
    names = [f"{run['folder']}/config.yaml" for run in trial.runs]
    whole = all(run_of(name) and (root / name).is_file() for name in names)
    return [(root / name).parent for name in names] if whole else []


def _kept(run: Path) -> Iterator[Path]:
    for pattern in KEPT:
        yield from (path for path in sorted(run.glob(pattern)) if not path.name.endswith(LEFT_OUT))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
