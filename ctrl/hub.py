"""Find the folder of an expansion that is on the Hugging Face Hub or in MLflow, and upload one to the Hub."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from ctrl.card import CARD_FILE, may_write
from ctrl.checkpoint import FILES
from ctrl.errors import CheckpointError

MLFLOW = ("models:/", "runs:/", "mlflow-artifacts:/")
REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def local_folder(address: str | os.PathLike[str]) -> Path:
    """Return the folder on this disk: itself, or what MLflow or the Hub (`me/name`, `me/name@revision`) gives.

    Raises CheckpointError with the reason if they do not have it.
    """
    text, folder = str(address), Path(address)
    if text.startswith(MLFLOW):
        return _from_mlflow(text)
    if folder.exists() or isinstance(address, os.PathLike) or not (match := REPOSITORY.fullmatch(text)):
        return folder
    try:
        return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=list(FILES)))
    except Exception as error:
        raise CheckpointError(
            f"there is no folder {text}, and the Hugging Face Hub does not provide such a repository: {error}"
        ) from error


def upload(folder: Path, repo_id: str, token: Any = None, private: bool | None = None, **kwargs: Any) -> Any:
    """Upload the folder of an expansion. A model card of your own that the repository has stays.

    A branch that is new begins as main. kwargs: commit_message, revision, create_pr, ... as `upload_folder` takes them.
    """
    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    revision: str | None = kwargs.get("revision")
    if revision and not revision.startswith("refs/pr") and not kwargs.get("create_pr"):
        api.create_branch(name, branch=revision, exist_ok=True)
    own = api.file_exists(name, CARD_FILE, revision=revision)
    own = own and not may_write(Path(api.hf_hub_download(name, CARD_FILE, revision=revision)))
    cards = [] if own else [CARD_FILE]  # that of an earlier upload may name another base
    return api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES, *cards], **kwargs)


def _from_mlflow(address: str) -> Path:
    """Download an artifact. MLflow, no dependency of this library, is imported only for its own addresses."""
    try:
        artifacts, store = importlib.import_module("mlflow.artifacts"), importlib.import_module("mlflow")
        _check_store(store.get_tracking_uri())
        return Path(artifacts.download_artifacts(address))
    except ImportError as error:
        raise CheckpointError(f"{address} needs mlflow: pip install mlflow, or pass a folder") from error
    except Exception as error:
        raise CheckpointError(
            f"MLflow cannot provide {address}: {error}. Set MLFLOW_TRACKING_URI to the store that has it, for example "
            "sqlite:///mlruns/mlflow.db"
        ) from error


def _check_store(uri: str) -> None:
    """Raise FileNotFoundError for a local store that is not there: MLflow would make an empty one."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"there is no store {uri}")
