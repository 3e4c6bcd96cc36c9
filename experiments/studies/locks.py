"""The storage's address, and one claim at a time: a file's lock for SQLite, an advisory lock for PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from filelock import FileLock

KEY = 0x6374726C  # of PostgreSQL's advisory lock
LOCKED = ("sqlite", "postgresql")  # dialects under which a claim is exclusive


@contextlib.contextmanager
def claim_lock(url: str, engine: sqlalchemy.Engine) -> Iterator[None]:
    """Held by one process at a time; it ends with the process.

    Other databases have none: two workers may then exceed the budget by a trial, and lose nothing.
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
    """A lock beside the file of an SQLite storage, whose folder is made; nothing for others."""
    path = sqlalchemy.make_url(url).database if url.startswith("sqlite") else None
    if not path or path == ":memory:":
        return contextlib.nullcontext()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def engine_options(url: str) -> dict[str, Any]:
    """SQLite waits a minute for another process's write; a server's connection is tested before its use."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def sqlite_url(path: Path) -> str:
    """The URL of a file of any name: `?` and `%` mean something else in a URL."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def storage_fault(error: BaseException) -> str:
    """What the database said, on one line, where an error is one of the storage's; else empty."""
    for fault in (error, error.__cause__):  # Optuna wraps most of them
        if isinstance(fault, sqlalchemy.exc.SQLAlchemyError):
            return str(fault).splitlines()[0]
    return ""


def shown(url: str | sqlalchemy.URL) -> str:
    """The storage's URL without its password."""
    return sqlalchemy.make_url(url).render_as_string(hide_password=True)
