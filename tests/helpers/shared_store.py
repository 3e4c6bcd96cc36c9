"""A store that several machines use: folders with roots of their own, and one MLflow database with its artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking import client


def use_shared_store(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make the store and set MLFLOW_TRACKING_URI. Returns the folder of its artifacts."""
    client.open_local(folder / "server")
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'server' / 'mlflow.db'}")
    patch.chdir(folder / "server")  # below which MLflow puts artifacts of a database without a server
    return folder / "server" / "mlruns"


def stored(artifacts: Path, name: str) -> list[Path]:
    """The files of all runs whose path ends like this."""
    return [path for path in artifacts.rglob("*") if path.as_posix().endswith(name)]
