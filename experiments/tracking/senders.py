"""Send the events of a journal to a store.

A delivery can be repeated from any line on and changes nothing: runs are found by their tag `journal_id`, params keep
their values, metrics have the time of their line and are stored once per (name, time, step, value), tags and artifacts
are replaced by equal ones, logged models are found by their tag `journal_id` and their name (models.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from filelock import FileLock

from experiments.tracking.client import (
    MAX_BATCH,
    MAX_METRICS,
    dataset_entity,
    metric_entities,
    param_entities,
    refused,
    tag_entities,
    tag_values,
)
from experiments.tracking.journal import Delivered, Event, Journal, own_path
from experiments.tracking.models import send_model
from experiments.tracking.store import DIED, TrackingStore, last_line

ENVIRONMENT = ("version/", "hardware/")  # how the names of tags begin that stay in the journal
CHAIN = ("study", "trial", "experiment", "run_folder")  # tags that a run inherits from its parent


class RunDeleted(RuntimeError):
    """The store had the run, but somebody deleted it."""


def deliver(store: TrackingStore, journal: Journal, look: bool = False) -> Delivered:
    """Send the lines that the store does not have, and note how many arrived. Raises errors of MLflow.

    A run that was deleted in the store is created again from the whole journal; if its experiment was deleted, that
    comes back with its runs. look: look for the run also if the note says that all lines arrived: the store may be
    another one at the same place.
    """
    with FileLock(f"{journal.path}.lock", timeout=60):
        done = journal.delivered(store.uri)
        if look and done.run_id and not store.find_run(done.run_id):
            done = _left(store, journal)
        try:
            return _deliver(store, journal, done)
        except RunDeleted:
            return _deliver(store, journal, _left(store, journal))


def _left(store: TrackingStore, journal: Journal) -> Delivered:
    """Return what the store has of a run that it had deleted: all that arrived, if its experiment brings it back."""
    done, start = journal.delivered(store.uri), journal.last("start")
    back = start is not None and store.restore(start["experiment"]) and store.find_run(done.run_id)
    return done if back else Delivered()


def _deliver(store: TrackingStore, journal: Journal, done: Delivered) -> Delivered:
    for events, offset in _groups(journal.read(done.offset)):
        try:
            run_id, models = _send(store, journal, done, events)
        except Exception as error:
            if not done.run_id or not refused(error):
                raise
            if not store.find_run(done.run_id):
                raise RunDeleted(done.run_id) from error
            run_id, models = done.run_id, done.models
            store.refused.append(last_line(error))
        done = Delivered(run_id, offset, models)
        journal.note(store.uri, done)
    return done


def _send(
    store: TrackingStore, journal: Journal, done: Delivered, events: Sequence[Event]
) -> tuple[str, dict[str, str]]:
    """Send events of one kind. Returns the run's id in the store, and its models."""
    kind, run_id = events[0]["event"], done.run_id
    if kind == "start":
        return _start(store, journal, run_id, events[0]), done.models
    if kind == "model":
        return run_id, done.models | send_model(store, journal, done, events[0])
    if kind == "metrics":
        rows = [row for event in events for row in metric_entities(event)]
        for start in range(0, len(rows), MAX_METRICS):
            store.client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS])
    elif kind in SENDERS:
        SENDERS[kind](store, journal, run_id, events[0])
    return run_id, done.models


def _start(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> str:
    """Create the run, or set it to running again. Raises LookupError while its parent is not in the store."""
    client, tags = store.client, {**_few(event["tags"]), "journal_id": journal.id}
    store.restore(event["experiment"])  # before a run of it is looked for
    if event["parent"]:
        parent = store.find_run(event["parent"])
        if not parent:
            raise LookupError(f"the parent run {event['parent']} is not in the store yet: sync its folder too")
        if event.get("joins"):
            return _join(store, parent, run_id, event)
        above = client.get_run(parent).data.tags
        tags |= {name: above[name] for name in CHAIN if name in above}
        tags |= {"parent": parent, "mlflow.parentRunId": parent}
    known = [name for name in (run_id, journal.id, event["run"]) if name]
    found = next(filter(None, map(store.find_run, known)), "")
    if not found and run_id:
        raise RunDeleted(run_id)
    if not found:
        experiment = store.experiment(event["experiment"])
        run = client.create_run(experiment, event["time"], tag_values(tags), event["name"])
        return str(run.info.run_id)
    if "error" in client.get_run(found).data.tags:  # of the attempt before
        client.delete_tag(found, "error")
    tags.pop("kind", None)  # a part of the run may have changed it
    client.log_batch(found, tags=tag_entities(tags))
    client.update_run(found, status="RUNNING")
    return found


def _join(store: TrackingStore, above: str, run_id: str, event: Event) -> str:
    """Let a journal be a part of the run above, which then has its kind: `arm` for a trial that is one run."""
    if run_id not in ("", above):
        raise RunDeleted(run_id)
    again = ("kind",) if run_id else ()
    tags = {name: value for name, value in _few(event["tags"]).items() if name not in again}
    store.client.log_batch(above, tags=tag_entities(tags))
    return above


def _few(tags: Mapping[str, str]) -> dict[str, str]:
    """Leave out what the artifact environment.json has: thirty tags hide the few that say something."""
    return {name: value for name, value in tags.items() if not name.startswith(ENVIRONMENT)}


def _tags(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> None:
    store.client.log_batch(run_id, tags=tag_entities(event["tags"]))


def _params(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> None:
    known = store.client.get_run(run_id).data.params  # a value that the run already has stays as it is
    new = param_entities({name: value for name, value in event["params"].items() if name not in known})
    for start in range(0, len(new), MAX_BATCH):
        store.client.log_batch(run_id, params=new[start : start + MAX_BATCH])


def _inputs(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> None:
    store.client.log_inputs(run_id, [dataset_entity(values) for values in event["datasets"]])


def _artifact(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> None:
    path, to = own_path(journal, event["path"]), event["to"]
    if path is None:
        store.refused.append(f"{event['path']} is outside of the run's folder, or a link: it is not sent")
    elif path.is_dir():
        store.client.log_artifacts(run_id, str(path), to)
    elif path.is_file():
        store.client.log_artifact(run_id, str(path), to)
    else:
        store.refused.append(f"{path} is gone before it could be sent")


def _end(store: TrackingStore, journal: Journal, run_id: str, event: Event) -> None:
    if journal.joins:  # the run above ends by itself
        return
    store.client.set_terminated(run_id, event["status"], event["time"])
    noted = journal.last("tags") or {"tags": {}}
    if store.client.get_run(run_id).data.tags.get("error") == DIED != noted["tags"].get("error"):
        store.client.delete_tag(
            run_id, "error"
        )  # set by `TrackingStore.kill` in a process that did not see this journal


SENDERS: dict[str, Callable[[TrackingStore, Journal, str, Event], None]] = {
    "tags": _tags,
    "params": _params,
    "inputs": _inputs,
    "artifact": _artifact,
    "end": _end,
}


def _groups(events: Iterable[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Group successive metrics up to the size of one request; every other event is a group of its own."""
    waiting: list[Event] = []
    after = count = 0
    for event, offset in events:
        metrics = event["event"] == "metrics"
        if waiting and (not metrics or count + len(event["values"]) > MAX_METRICS):
            yield waiting, after
            waiting, count = [], 0
        if metrics:
            waiting.append(event)
            after, count = offset, count + len(event["values"])
        else:
            yield [event], offset
    if waiting:
        yield waiting, after
