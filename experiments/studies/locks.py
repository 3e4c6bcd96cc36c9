"""The URL of a study's storage, and a lock on it for one claim at a time: a lock file for SQLite, an advisory lock for
PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from filelock import FileLock
from optuna.exceptions import StorageInternalError

from experiments.tracking.uri import without_password

if TYPE_CHECKING:
    from experiments.studies.config import StudyConfig

STORAGE = "STUDY_STORAGE"  # all users of a machine can read a command line, and the URL may contain a password
KEY = 0x6374726C  # of PostgreSQL's advisory lock
STORAGE_FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
LOCKED = ("sqlite", "postgresql")  # dialects under which a claim is exclusive


@contextlib.contextmanager
def claim_lock(url: str, engine: sqlalchemy.Engine) -> Iterator[None]:
    """Hold the storage's lock. One process at a time has it, and it is released when the process dies.

    Other databases have no lock: two workers may then run one trial more than the budget. Nothing is lost.
    """
    if engine.dialect.name != "postgresql":
        with file_lock(url):
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": KEY})
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": KEY})


def file_lock(url: str) -> Any:
    """Return a lock file next to the file of an SQLite storage, and make its folder. No lock for other databases."""
    path = sqlite_file(url)
    if path is None:
        return contextlib.nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite storage; None for other databases and for one in memory."""
    path = sqlalchemy.make_url(url).database if url.startswith("sqlite") else None
    return Path(path) if path and path != ":memory:" else None


def engine_options(url: str) -> dict[str, Any]:
    """Return the engine's options: SQLite waits a minute for other writers; a server's connection is tested first."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def sqlite_url(path: Path) -> str:
    """Return the URL of a file. Its name may contain any character: `?` and `%` are escaped."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def storage_fault(error: BaseException) -> str:
    """Return the database's message on one line if the error is one of the storage, else an empty text."""
    for fault in (error, error.__cause__):  # Optuna wraps most of them
        if isinstance(fault, sqlalchemy.exc.SQLAlchemyError):
            return str(fault).splitlines()[0]
    return ""


def shown(url: str | sqlalchemy.URL) -> str:
    """Return the storage's URL without its password."""
    return without_password(sqlalchemy.make_url(url).render_as_string(hide_password=True))  # parameters too


def public_values(config: StudyConfig) -> dict[str, Any]:
    """Return the study's plain values without the password of its storage: for what leaves this machine or its user."""
    return config.to_dict() | {"storage": shown(config.storage) if config.storage else None}
