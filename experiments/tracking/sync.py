"""Send to a store what it missed from journals, and download what it keeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from experiments.common.errors import TrackingError
from experiments.common.files import read_note, write_json
from experiments.tracking.client import download_model
from experiments.tracking.journal import Journal, journals
from experiments.tracking.models import TRAINED, model_ids
from experiments.tracking.reap import end_dead
from experiments.tracking.senders import deliver
from experiments.tracking.store import TrackingStore, last_line

MODEL = "models:/"  # how the UI names a logged model


def store_of(root: Path, uri: str | None = None) -> TrackingStore:
    """Return the store `uri`, that of MLFLOW_TRACKING_URI, or else the local one in `root`."""
    return TrackingStore(Path(root).resolve(), uri or os.environ.get("MLFLOW_TRACKING_URI"))


def sync(folders: Sequence[Path], root: Path, uri: str | None = None) -> dict[Path, str]:
    """Deliver the journals at or below folders to the store: `uri`, MLFLOW_TRACKING_URI, or the local one in `root`.

    Returns for each journal the run's id in the store, or why it was not sent. A run whose process died is ended as
    KILLED. Raises TrackingError if the store cannot be opened or one of the folders holds no journal.
    """
    store = store_of(root, uri)
    read = {folder: journals(folder) for folder in folders}
    if empty := [str(folder) for folder, own in read.items() if not own] or ([] if read else ["no folder"]):
        raise TrackingError(f"no journal in {', '.join(empty)}: give run folders, as mlruns/runs/NAME")
    found = {journal.path: journal for own in read.values() for journal in own}
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:
        raise store.unusable(error) from error
    outcomes = {}
    for path, journal in found.items():
        end_dead(journal)
        before = len(store.refused)
        try:
            outcomes[path] = deliver(store, journal, look=True).run_id
            if lost := store.refused[before:]:
                outcomes[path] += f" ({len(lost)} lines refused, the last: {lost[-1]})"
        except Exception as error:
            outcomes[path] = f"not sent: {last_line(error)}"
    return outcomes


def send_missing(store: TrackingStore, found: Iterable[Journal], running: Collection[str]) -> str:
    """Deliver the ended journals whose runs the store lacks. Returns why it cannot.

    The store may be another one at the same place, since somebody deleted mlflow.db. running: ids of journals that are
    delivered already.
    """
    for journal in found:
        if journal.id in running or not journal.ended():
            continue
        file = journal.folder / "mlflow.json"
        noted = read_note(file).get("run_id")
        own = noted is not None and journal.known_as(noted)
        try:
            run_id = deliver(store, journal, look=True).run_id
        except Exception as error:
            return last_line(error)
        if own and run_id != noted:  # reports link to it
            write_json(file, {"run_id": run_id})
    return ""


def download(source: str, root: Path, name: str = TRAINED, to: Path | None = None) -> Path:
    """Download an artifact: `ctrl.load(base, download(run_id, root))` is the trained model again.

    source: a run's id, or one of its logged models as `models:/<model_id>`. name: an artifact of the run, a file or a
    folder; by default the trained tensors. Those of a method without expansion go to
    `experiments.methods.saving.load_onto` instead of `ctrl.load`. root: the folder of the local store, not used if
    MLFLOW_TRACKING_URI is set. to: the folder to write to, a new temporary one by default.
    """
    store = store_of(root)
    folder = to or Path(tempfile.mkdtemp(prefix="artifact-"))
    if source.startswith(MODEL):
        return download_model(store.client, store.uri, source.removeprefix(MODEL), folder)
    models = model_ids(store.client.get_run(source)) if name == TRAINED else []
    if models:
        return download_model(store.client, store.uri, models[-1], folder)
    return Path(store.client.download_artifacts(source, name, str(folder)))
