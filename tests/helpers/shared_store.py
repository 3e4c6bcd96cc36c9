"""A store that several machines use: folders with roots of their own, and one MLflow database with its artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tracking import client


def use_shared_store(folder: Path, patch: pytest.MonkeyPatch, experiment: str = "demo") -> Path:
    """Make the store with an experiment, and set MLFLOW_TRACKING_URI. Returns the folder of its artifacts."""
    artifacts = folder / "server" / "artifacts"
    client.open_local(folder / "server").create_experiment(experiment, artifact_location=str(artifacts))
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'server' / 'mlflow.db'}")
    return artifacts


def stored(artifacts: Path, name: str) -> list[Path]:
    """The files of all runs whose path ends like this."""
    return [path for path in artifacts.rglob("*") if path.as_posix().endswith(name)]
