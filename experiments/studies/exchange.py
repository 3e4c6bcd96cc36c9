"""Write a study's complete trials to one file, and begin a study from such a file, on this machine or another.

`trials.tar.xz` has `trials.json` (the study's identity, then picks, values and results of each trial) and the runs that
they were measured in: configs, results and item records, without weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.paths import short_path
from experiments.runs.result_file import RESULT, check_files
from experiments.studies.config import StudyConfig
from experiments.studies.trials import RUNS, Trial

FILE, TRIALS = "trials.tar.xz", "trials.json"
KEPT = ("config.yaml", "sources.json", "base/*.json", "base/*.jsonl", "arms/*/*.json", "arms/*/items-*.jsonl")
LEFT_OUT = ("mlflow.json", ".delivered.json")  # of this machine's MLflow
MOST = 4 * 2**30  # bytes after unpacking


def write_trials(study: StudyConfig, trials: list[Trial], root: Path, folder: Path) -> Path | None:
    """Write the complete trials whose runs are in root, as `trials.tar.xz` in a folder. None, and no file, if none is.

    Trials that repeat others are left out. The same trials give the same file.
    """
    whole = [t for t in trials if t.state == "complete" and t.repeats is None and _runs(t, root)]
    if not whole:
        return None
    fields = ("number", "picks", "values", "constraints", "seconds", "runs")
    values = {"identity": study.identity(), "trials": [{f: getattr(t, f) for f in fields} for t in whole]}
    handle, part = tempfile.mkstemp(dir=folder, prefix=f".{FILE}.")
    os.close(handle)
    try:
        with tarfile.open(part, "w:xz") as archive:
            _add(archive, TRIALS, (json.dumps(values, sort_keys=True) + "\n").encode())
            for path in (path for trial in whole for run in _runs(trial, root) for path in _kept(run)):
                _add(archive, path.relative_to(root).as_posix(), path.read_bytes())
        os.chmod(part, 0o644)
        os.replace(part, folder / FILE)
    except BaseException:
        os.unlink(part)
        raise
    return folder / FILE


def read_trials(study: StudyConfig, folder: Path) -> list[dict[str, Any]]:
    """Return the trials of a folder's file. Raises ConfigError if it is of another study, or no such file."""
    with _archive(folder) as archive:
        values = json.loads(_bytes(archive, archive.getmember(TRIALS)))
        identity, trials = values["identity"], values["trials"]
    if identity != study.identity():
        raise ConfigError(
            f"--from {short_path(folder)}: its trials are of a study with another base, search or objective: give the "
            f"study.yaml in that folder, or leave out --from"
        )
    return list(trials)


def unpack_runs(folder: Path, root: Path) -> None:
    """Copy the runs of a folder's file to root. A run folder that exists stays as it is. Raises DamagedError.

    Each run folder appears whole, after its records were checked: a kill or a full disk leaves none in part.
    """
    (root / "runs").mkdir(parents=True, exist_ok=True)
    with _archive(folder) as archive, tempfile.TemporaryDirectory(dir=root, prefix=".from-") as part:
        new = {run for run in _names(archive) if not (root / run).exists()}
        for member in archive.getmembers():
            if _run(member.name) in new:
                path = Path(part) / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_bytes(archive, member))
        for result in Path(part).glob(f"runs/*/arms/*/{RESULT}"):
            check_files(result)
        for run in sorted(new):
            (Path(part) / run).rename(root / run)


def as_attempts(study: StudyConfig, found: list[dict[str, Any]]) -> list[optuna.trial.FrozenTrial]:
    """Return Optuna's form of trials that were read: complete, with the seconds that they took."""
    return [_attempt(study, values) for values in found]


def _attempt(study: StudyConfig, values: dict[str, Any]) -> optuna.trial.FrozenTrial:
    fixed = optuna.trial.FixedTrial(values["picks"])
    picks = {key: dimension.suggest(fixed, key) for key, dimension in study.search.items()}
    noted = {f"constraints:{name}": value for name, value in values["constraints"].items()}
    attempt = optuna.create_trial(
        state=TrialState.COMPLETE,
        values=values["values"],
        params=picks,
        distributions=fixed.distributions,
        system_attrs={"fixed_params": picks, RUNS: values["runs"], **noted},
    )
    assert attempt.datetime_complete is not None
    attempt.datetime_start = attempt.datetime_complete - timedelta(seconds=values["seconds"])
    return attempt


def _runs(trial: Trial, root: Path) -> list[Path]:
    """Return the folders of a trial's runs; none if one of them is not below root."""
    folders = [root / str(run["folder"]) for run in trial.runs]
    return folders if all(f.is_relative_to(root) and (f / "config.yaml").is_file() for f in folders) else []


def _kept(run: Path) -> Iterator[Path]:
    for pattern in KEPT:
        yield from (path for path in sorted(run.glob(pattern)) if not path.name.endswith(LEFT_OUT))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@contextlib.contextmanager
def _archive(folder: Path) -> Iterator[tarfile.TarFile]:
    """Open the file of a folder. Raises ConfigError if there is none, DamagedError if another program wrote it."""
    try:
        with tarfile.open(folder / FILE, "r:xz") as archive:
            members = archive.getmembers()
            odd = [m.name for m in members if not m.isreg() or (m.name != TRIALS and not _run(m.name))]
            if odd or TRIALS not in archive.getnames() or sum(m.size for m in members) > MOST:
                raise DamagedError(
                    f"{short_path(folder / FILE)} was not written by `control-llm report`: it has "
                    f"{odd[0] if odd else f'no {TRIALS}, or more than {MOST >> 30} GB'}. Leave out --from"
                )
            yield archive
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"--from {short_path(folder)}: there is no {FILE}; `control-llm report STUDY --out FOLDER` writes one"
        ) from None
    except (EOFError, tarfile.TarError, lzma.LZMAError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{short_path(folder / FILE)} cannot be read: {error}. Bring it back whole") from error


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _run(name: str) -> str:
    """Return the run folder of a member, `runs/NAME`, or an empty text if it is outside."""
    parts = name.split("/")
    safe = len(parts) > 2 and parts[0] == "runs" and not {"", ".", ".."} & set(parts)
    return "/".join(parts[:2]) if safe else ""


def _names(archive: tarfile.TarFile) -> set[str]:
    return {_run(name) for name in archive.getnames() if name != TRIALS}
