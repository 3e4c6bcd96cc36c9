"""Stores of MLflow that tests need not make: the first of a process is made, all others are copies of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any


def copied(create: Callable[[Any, Path], None], first: Path) -> Callable[[Any, Path], None]:
    """Return what takes the place of `client._create_store`. first: the path of the store that `create` makes."""

    def copy(client_class: Any, path: Path) -> None:
        if not first.is_file():
            create(client_class, first)
            with contextlib.closing(sqlite3.connect(first)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        part = path.with_name(path.name + ".part")
        shutil.copy(first, part)
        os.replace(part, path)

    return copy
