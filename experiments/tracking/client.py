"""MLflow itself, and the only file that imports it: opening a client, and the entities that events become."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.tracking.journal import Event

MAX_VALUE, MAX_TAG, MAX_BATCH, MAX_KEY = 6000, 8000, 100, 250  # MLflow's limits on params and tags
MAX_METRICS = 1000
DATABASES = ("postgresql", "mysql", "mssql")  # how their URIs begin
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}


def key(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", str(name))[:MAX_KEY]


def refused(error: BaseException) -> bool:
    """Whether a store that answers will never take what it was sent, rather than being away."""
    return getattr(error, "error_code", "") in REFUSED


def unknown_endpoint(error: BaseException) -> bool:
    """Whether a server is too old for what was asked of it."""
    return getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"


def metric_entities(event: Event) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(key(name), value, event["time"], event["step"]) for name, value in event["values"].items()]


def model_metric_entities(event: Event, model_id: str) -> list[Any]:
    """The figures of a `model` event. A model stores NaN as 0 and refuses it when it comes again, so it is left out."""
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
    """Names and values cut to what MLflow stores."""
    return {key(name): str(value)[:MAX_TAG] for name, value in values.items()}


def dataset_entity(values: Mapping[str, Any]) -> Any:
    """A dataset as MLflow's run input; what is neither name nor digest becomes its profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {name: value for name, value in values.items() if name not in ("name", "digest", "kind")}
    source = json.dumps({"kind": values.get("kind", ""), "name": values["name"]})
    entity = Dataset(str(values["name"])[:500], str(values["digest"])[:36], "code", source, profile=json.dumps(profile))
    return DatasetInput(entity, [InputTag("mlflow.data.context", str(values.get("kind", "training")))])


def away(error: BaseException) -> bool:
    """Whether a database does not answer, or not now, rather than being no such store."""
    from sqlalchemy.exc import OperationalError

    return isinstance(error, OperationalError) or getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"


def connect(uri: str) -> Any:
    """A client of the store at a URI. A tracking server need not answer yet; a database must."""
    client_class = _import_mlflow()
    if uri.startswith(DATABASES):
        from mlflow.store.db.utils import create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(uri)
        try:
            engine.connect().close()  # MLflow would try one that is away for two minutes
        finally:
            engine.dispose()
    return client_class(tracking_uri=uri)


def open_local(root: Path) -> Any:
    """A client of `root/mlflow.db`, made where missing. Raises what SQLite or MLflow raise for a broken file."""
    client_class = _import_mlflow()
    root.mkdir(parents=True, exist_ok=True)
    path = root / "mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _create_store(client_class, path)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would try a broken file for two minutes
        client = client_class(tracking_uri=f"sqlite:///{path}")
        client.search_experiments(max_results=1)  # migrates the store, or says that it is not one
    return client


def download_model(client: Any, uri: str, model_id: str, to: Path) -> Path:
    """The files of a logged model of the store at a URI, put below a folder.

    Asked for `models:/<model_id>` itself, MLflow 3.17 looks in its default store, whatever store it is told.
    """
    from mlflow.artifacts import download_artifacts

    place = client.get_logged_model(model_id).artifact_location
    return Path(download_artifacts(artifact_uri=place, dst_path=str(to), tracking_uri=uri))


def _import_mlflow() -> Any:
    """The client class; imported on first use, since it takes a second and reads its settings then."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the journal tries again; the default blocks minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "15")
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks; `Run` warns once, in a line
    if not event.contains(Engine, "connect", _sync_normal):
        event.listen(Engine, "connect", _sync_normal)
    return MlflowClient


def _sync_normal(connection: Any, _: Any) -> None:
    """With a write-ahead log NORMAL survives a crash of the process, and saves a disk flush at every commit."""
    if isinstance(connection, sqlite3.Connection):
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()


def _create_store(client_class: Any, path: Path) -> None:
    """Make the database beside its place and move it there: killed halfway, it leaves nothing that looks whole."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    client = client_class(tracking_uri=f"sqlite:///{part}")
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()
    with contextlib.closing(sqlite3.connect(part)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    os.replace(part, path)
