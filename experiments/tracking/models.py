"""Send trained tensors as MLflow's logged models: one per run and name, however often the journal is delivered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from experiments.common.files import link_files
from experiments.tracking.client import model_metric_entities, model_output, model_place, unknown_endpoint
from experiments.tracking.journal import Delivered, Event, Journal, own_path
from experiments.tracking.store import TrackingStore

TRAINED = "trained"  # MLflow's type of these models; name of the artifact if a store has no models


def send_model(store: TrackingStore, journal: Journal, done: Delivered, event: Event) -> dict[str, str]:
    """Send a `model` event to the store. Returns the model's name and id; nothing if its folder is gone.

    A server of MLflow 2 has no logged models: it gets the files as the artifact `trained` of the run.
    """
    folder = own_path(journal, event["path"])
    if folder is None or not folder.is_dir():
        fault = "is outside of the run's folder, or a link" if folder is None else "is gone before it could be sent"
        store.refused.append(f"{event['path']} {fault}")
        return {}
    try:
        return _send_model(store, journal, done, event, folder)
    except Exception as error:
        if not unknown_endpoint(error):
            raise
    store.client.log_artifacts(done.run_id, str(folder), TRAINED)
    return {}


def _send_model(store: TrackingStore, journal: Journal, done: Delivered, event: Event, folder: Path) -> dict[str, str]:
    """Create the model with its link, files and figures, unless the store has them.

    MLflow gives each new model an id of its own, so an existing model is looked up first: in the note of what was
    delivered, then (a crash may have come before the note) in the store by journal and name. Everything after that
    can be repeated: files and status are replaced, figures are stored once, the link is made once. A store in a folder
    on the disk of the run gets hard links, so that no weight is there twice.
    """
    client, run, name = store.client, store.client.get_run(done.run_id), model_name(event["name"])
    model_id = done.models.get(name) or find_model(store, run.info.experiment_id, journal.id, name)
    if not model_id:
        tags = {"journal_id": journal.id}
        made = client.create_logged_model(run.info.experiment_id, name, done.run_id, tags, event["params"], TRAINED)
        model_id = str(made.model_id)
    if not link_files(folder, model_place(client, model_id)):
        client.log_model_artifacts(model_id, str(folder))
    if metrics := model_metric_entities(event, model_id):
        client.log_batch(done.run_id, metrics=metrics)
    if model_id not in model_ids(run):
        client.log_outputs(done.run_id, [model_output(model_id, event["step"])])
    client.finalize_logged_model(model_id, "READY")
    return {name: model_id}


def find_model(store: TrackingStore, experiment_id: str, journal_id: str, name: str) -> str:
    """Return the id of the model that a journal's run has under a name; empty without one."""
    wanted = f"tags.journal_id = '{journal_id}' AND name = '{name}'"
    found = store.client.search_logged_models([experiment_id], wanted)
    return str(found[0].model_id) if found else ""


def model_ids(run: Any) -> list[str]:
    """Return the ids of the models among the outputs of an MLflow run."""
    return [str(output.model_id) for output in run.outputs.model_outputs] if run.outputs else []


def model_name(name: str) -> str:
    """Return a name in the form that MLflow accepts for a model."""
    return re.sub(r"[/:.%\"']", "_", name)
