"""Between journals, stores and this disk, after the fact: send what a store missed, and fetch what it keeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.common.errors import TrackingError
from experiments.tracking.client import download_model
from experiments.tracking.journal import journals
from experiments.tracking.models import TRAINED, model_ids
from experiments.tracking.reap import end_dead
from experiments.tracking.senders import deliver
from experiments.tracking.store import Store, last_line

MODEL = "models:/"  # how the UI names a logged model


def sync(folders: Sequence[Path], root: Path, uri: str | None = None) -> dict[Path, str]:
    """Bring the journals at or below folders to the store: `uri`, MLFLOW_TRACKING_URI, or the local one in `root`.

    Returns what happened per journal: the run's id there, or why it is not. A run whose process died is ended as
    KILLED. Raises TrackingError where the store cannot be opened or a folder holds no journal.
    """
    store = Store(Path(root).resolve(), uri or os.environ.get("MLFLOW_TRACKING_URI"))
    found = {journal.path: journal for folder in folders for journal in journals(folder)}
    if not found:
        raise TrackingError(f"no journal in {', '.join(map(str, folders))}: give run folders, as mlruns/runs/NAME")
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:
        raise store.unusable(error) from error
    said = {}
    for path, journal in found.items():
        end_dead(journal)
        before = len(store.refused)
        try:
            said[path] = deliver(store, journal).run_id
            if lost := store.refused[before:]:
                said[path] += f" ({len(lost)} lines refused, the last: {lost[-1]})"
        except Exception as error:
            said[path] = f"not sent: {last_line(error)}"
    return said


def download(source: str, root: Path, name: str = TRAINED, to: Path | None = None) -> Path:
    """What a store keeps, on this disk: `ctrl.load(base, download(run_id, root))` is the trained model again.

    source: a run's id, or one of its logged models as `models:/<model_id>`. name: an artifact of the run, a file or a
    folder; by default the tensors that it trained, which for a method without expansion go to
    `experiments.methods.saving.load_onto` instead of `ctrl.load`. root: the folder of the local store, not read where
    MLFLOW_TRACKING_URI is set. to: the folder it is put in, a new temporary one by default.
    """
    store = Store(Path(root).resolve(), os.environ.get("MLFLOW_TRACKING_URI"))
    folder = to or Path(tempfile.mkdtemp(prefix="artifact-"))
    if source.startswith(MODEL):
        return download_model(store.client, store.uri, source.removeprefix(MODEL), folder)
    models = model_ids(store.client.get_run(source)) if name == TRAINED else []
    if models:
        return download_model(store.client, store.uri, models[-1], folder)
    return Path(store.client.download_artifacts(source, name, str(folder)))
