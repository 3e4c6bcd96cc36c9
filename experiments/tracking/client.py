"""Open an MLflow client, and turn events into MLflow's entities. The only file that imports MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.tracking.journal import Event
from experiments.tracking.moved import ARTIFACTS, keep_artifacts_here

MAX_VALUE, MAX_TAG, MAX_BATCH, MAX_KEY = 6000, 8000, 100, 250  # MLflow's limits on params and tags
MAX_METRICS = 1000
PART = ".part"  # end of the name of a store in the making
DATABASES = ("postgresql", "mysql", "mssql")  # how their URIs begin
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}


def key(name: str) -> str:
    """Return a name in the form that MLflow accepts. One that changes gets four digits of its own: c+ is not c#."""
    name = str(name)
    accepted = re.sub(r"[^\w\-. :/]", "_", name)[:MAX_KEY]
    if accepted == name:
        return name
    return f"{accepted[: MAX_KEY - 5]}-{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def refused(error: BaseException) -> bool:
    """Whether the store answered and will never accept what it was sent, rather than being offline."""
    return getattr(error, "error_code", "") in REFUSED


def answered(error: BaseException) -> bool:
    """Whether the server answered that the caller may not do this: a missing or wrong user."""
    return getattr(error, "error_code", "") in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def unknown_endpoint(error: BaseException) -> bool:
    """Whether the server is too old for a request."""
    return getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"


def pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Return all results of a search, which gives a thousand at once. search: gets the token of a page."""
    page = search(None)
    found = list(page)
    while token := getattr(page, "token", None):
        page = search(token)
        found += page
    return found


def metric_entities(event: Event) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key(name), value, event["time"], event["step"]) for name, value in event["values"].items()]


def model_metric_entities(event: Event, model_id: str) -> list[Any]:
    """Return the figures of a `model` event without NaN, which MLflow stores as 0 and refuses the second time."""
    from mlflow.entities import Metric

    rows = [row for row in event["metrics"] if math.isfinite(row["value"])]
    return [Metric(key(row["name"]), row["value"], row["time"], event["step"], model_id=model_id) for row in rows]


def model_output(model_id: str, step: int) -> Any:
    from mlflow.entities import LoggedModelOutput

    return LoggedModelOutput(model_id, step)


def param_entities(values: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value) for name, value in values.items()]


def tag_entities(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value) for name, value in tag_values(values).items()]


def tag_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Cut names and values to the lengths that MLflow stores."""
    return {key(name): str(value)[:MAX_TAG] for name, value in values.items()}


def dataset_entity(values: Mapping[str, Any]) -> Any:
    """Make an MLflow run input of a dataset; all but its name, digest and kind becomes the profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {name: value for name, value in values.items() if name not in ("name", "digest", "kind")}
    source = json.dumps({"kind": values.get("kind", ""), "name": values["name"]})
    entity = Dataset(str(values["name"])[:500], str(values["digest"])[:36], "code", source, profile=json.dumps(profile))
    return DatasetInput(entity, [InputTag("mlflow.data.context", str(values.get("kind", "training")))])


def away(error: BaseException) -> bool:
    """Whether a database does not answer at present, rather than not being a store."""
    from sqlalchemy.exc import OperationalError

    return isinstance(error, OperationalError) or getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"


def connect(uri: str) -> Any:
    """Return a client of the store at a URI. A tracking server may be offline; a database must answer."""
    client_class = _import_mlflow()
    if uri.startswith(DATABASES):
        from mlflow.store.db.utils import create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(uri)
        try:
            engine.connect().close()  # MLflow would try an offline one for two minutes
        finally:
            engine.dispose()
    return client_class(tracking_uri=uri)


def open_local(root: Path) -> Any:
    """Return a client of `root/mlflow.db`; create the file if missing. Raises errors of SQLite or MLflow if broken."""
    client_class = _import_mlflow()
    root.mkdir(parents=True, exist_ok=True)
    path = root / "mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _create_store(client_class, path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would try a broken file for two minutes
        client = client_class(tracking_uri=f"sqlite:///{path}")
        client.search_experiments(max_results=1)  # migrates the store, or fails if it is none
        keep_artifacts_here(path, root.resolve() / ARTIFACTS)
    return client


def model_place(client: Any, model_id: str) -> Path | None:
    """Return the folder of a logged model's files; None if the store keeps them on a server."""
    place = str(client.get_logged_model(model_id).artifact_location)
    parts = urllib.parse.urlparse(place)
    if parts.scheme not in ("", "file") or parts.netloc:
        return None
    return Path(urllib.request.url2pathname(parts.path) if parts.scheme else place)


def download_model(client: Any, uri: str, model_id: str, to: Path) -> Path:
    """Download the files of a logged model into a folder and return their path. uri: of the store.

    MLflow 3.17 would look for `models:/<model_id>` in its default store, whatever store is passed.
    """
    from mlflow.artifacts import download_artifacts

    place = client.get_logged_model(model_id).artifact_location
    return Path(download_artifacts(artifact_uri=place, dst_path=str(to), tracking_uri=uri))


def _import_mlflow() -> Any:
    """Import the client class, on first use: it takes a second, and MLflow reads its settings then."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # six lines per run that `sync` sends
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the journal retries; the default blocks for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each file
    os.environ.setdefault("PGCONNECT_TIMEOUT", "15")
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; `Run` warns once, in one line
    if not event.contains(Engine, "connect", _sync_normal):
        event.listen(Engine, "connect", _sync_normal)
    _forget_places()
    return MlflowClient


class _Nothing(OrderedDict[str, Any]):
    """Keep nothing."""

    def __setitem__(self, key: str, value: Any) -> None:
        return None


def _forget_places() -> None:
    """Let MLflow look up where a run's artifacts are each time.

    It keeps the places by the ids of runs alone: of a root and its copy, the second one would get the first one's.
    """
    from mlflow.tracking._tracking_service import utils

    if hasattr(utils, "_artifact_repos_cache"):
        utils._artifact_repos_cache = _Nothing()


def _sync_normal(connection: Any, _: Any) -> None:
    """Set NORMAL, which with a write-ahead log survives a crash of the process and saves a flush per commit.

    A store in the making is synced once, at its end: a flush for each of its 300 tables and changes takes seconds.
    """
    if isinstance(connection, sqlite3.Connection):
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            cursor.execute("PRAGMA synchronous=NORMAL")
        if cursor.execute("PRAGMA database_list").fetchone()[2].endswith(PART):
            cursor.execute("PRAGMA synchronous=OFF")
        cursor.close()


def _create_store(client_class: Any, path: Path) -> None:
    """Create the database under another name, then rename it: a kill halfway leaves no file that looks complete."""
    part = path.with_name(path.name + PART)
    part.unlink(missing_ok=True)
    client = client_class(tracking_uri=f"sqlite:///{part}")
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()
    with contextlib.closing(sqlite3.connect(part)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
