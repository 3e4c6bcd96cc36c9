"""Attach pictures to studies and trials: optuna-dashboard shows them (`control-llm ui --optuna`)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import optuna

FOLDER = "optuna-artifacts"  # in the root


def attach_pictures(owner: optuna.Trial | optuna.Study, root: Path, pictures: Mapping[str, Path]) -> None:
    """Copy pictures to the root's folder of artifacts, and note them at a study or a trial.

    pictures: files by the names that the dashboard shows. One replaces an earlier one of that name. A picture that is
    not there is passed over, and so are all if the disk is full: nothing is read back from them.
    """
    from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

    folder = root / FOLDER
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as scratch:
        folder.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(str(folder))
        known = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(owner)}
        for name, path in pictures.items():
            if not path.is_file():
                continue
            if name in known:
                with path.open("rb") as content:
                    store.write(known[name], content)
            else:
                named = shutil.copyfile(path, Path(scratch, name))
                upload_artifact(artifact_store=store, file_path=str(named), study_or_trial=owner)
