"""The folder and the storage URL of a study, and the commands that open it again."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy
import yaml

from experiments.common.commands import command
from experiments.common.errors import StudyError
from experiments.common.files import write_json
from experiments.common.paths import default_root
from experiments.common.yaml_values import dump_yaml, load_yaml
from experiments.studies.locks import STORAGE, public_values, shown, sqlite_url

if TYPE_CHECKING:
    from experiments.studies.config import StudyConfig
    from experiments.studies.queue import Store


PROGRESS = "progress.json"


def study_folder(root: Path, name: str) -> Path:
    return root / "studies" / name


def storage_url(root: Path, storage: str | None) -> str:
    """Return `storage`, or the URL in the environment's STUDY_STORAGE, or that of `optuna.db` in root.

    Raises StudyError for a text that is no URL, and for a SQLite file in a folder that does not exist: a mistyped path
    would otherwise start a second, empty study.
    """
    storage = storage or os.environ.get(STORAGE)
    try:
        url = sqlalchemy.make_url(storage) if storage else None
        if url is not None:
            url.get_dialect()  # of a database that is known
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        # Of a wrong port the text of Python quotes what may be the end of a password with an @ or a colon.
        known = isinstance(error, sqlalchemy.exc.ArgumentError)
        fault = str(error).splitlines()[0] if known else "its port is no number"
        raise StudyError(
            f"the storage is not a database URL: {fault}; give for example sqlite:///studies.db "
            "or postgresql+psycopg://user@host:5432/name"
        ) from error
    if storage and url is not None and storage.startswith("sqlite:///"):
        folder = Path(url.database or "").parent
        if not folder.is_dir():
            raise StudyError(f"--storage {shown(storage)}: there is no folder {folder}; create it, or correct the path")
    return storage or sqlite_url(root.resolve() / "optuna.db")


def note_progress(store: Store, root: Path) -> None:
    """Write to the study's folder how many trials are in each state, and which complete ones are outside a constraint.

    `control-llm runs` opens no storage.
    """
    trials = store.trials()
    counts = Counter(trial.state for trial in trials)
    ended = "" if store.going_on() else store.ended()
    outside = [trial.number for trial in trials if trial.state == "complete" and not trial.feasible]
    values = {"trials": counts, "limit": store.limit(), "ended": ended, "infeasible": outside}
    write_json(study_folder(root, store.config.name) / PROGRESS, values)


def public_yaml(config: StudyConfig) -> str:
    """Return the study's YAML without the password of its storage, for reports and MLflow."""
    return dump_yaml(public_values(config))


def noted_storage(root: Path, name: str) -> str | None:
    """Return the `storage` in the YAML that a study's start left in its folder; None if there is none."""
    try:
        values = load_yaml((study_folder(root, name) / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return values.get("storage") if isinstance(values, dict) else None


def storages(root: Path) -> dict[str, str]:
    """Return the storage's URL of each study that was started with this root."""
    names = sorted(file.parent.name for file in (root / "studies").glob("*/study.yaml"))
    return {name: noted_storage(root, name) or storage_url(root, None) for name in names}


def command_line(store: Store, root: Path, *words: str) -> str:
    """Return `control-llm WORDS`, with --root and --storage if the study would not be found without them.

    Paths are relative to the working directory; a storage's password is left out.
    """
    options: list[str] = []
    if root.resolve() != default_root().resolve():
        options += ["--root", os.path.relpath(root)]
    if store.url != storage_url(root, noted_storage(root, store.config.name)):
        url = sqlalchemy.make_url(store.url)
        if url.drivername.startswith("sqlite") and url.database:
            url = url.set(database=os.path.relpath(url.database))
        options += ["--storage", shown(url)]
    return command(*words, *options)
