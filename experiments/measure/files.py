"""Find the folder of a model by its address, and check its files before anything heavy is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

import ctrl
from ctrl.hub import MLFLOW, local_folder
from experiments.common.errors import ConfigError
from experiments.common.files import parse_json
from experiments.common.hashing import BLOCKS, BLOCKS_ONCE, file_stamp, json_digest
from experiments.models.base import SHIPPED, shipped_folder

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PICKLED = re.compile(r"(pytorch|adapter)_model(-\d+-of-\d+)?\.bin")
INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
REPOSITORY = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # of a repository
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def folder_of(address: str, remote_code: bool = False) -> Path:
    """Return the folder of a model. Raises ConfigError if nothing has this address.

    address: a folder, the shipped model's name, a repository of the Hugging Face Hub (`me/name`, `me/name@revision`),
    or an address in MLflow (`models:/...`, `runs:/...`). remote_code: download Python files of a repository too.
    """
    if address.lower() == SHIPPED:
        return shipped_folder()
    folder = Path(address).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ConfigError(f"{address} is a file: name the folder of the model")
    if address.startswith(MLFLOW):
        try:
            return local_folder(address)
        except ctrl.CheckpointError as error:
            raise ConfigError(str(error)) from error
    return _downloaded(address, [*WANTED, "*.py"] if remote_code else WANTED)


def _downloaded(address: str, wanted: list[str]) -> Path:
    match, reason = REPOSITORY.fullmatch(address), "it is no name of a repository"
    if match:
        try:
            return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=wanted))
        except Exception as error:  # of the network, of the Hub, of its cache: each has classes of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ConfigError(
        f"there is no folder {address}, and the Hugging Face Hub gives no such model to this machine: {reason}"
    )


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the folders `checkpoint-STEP` of a training run by step; empty if there are none."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))}
    return dict(sorted(found.items()))


def check_last(folder: Path, steps: Mapping[int, Path]) -> None:
    """Raise ConfigError if a training's folder holds a model of its own that is not its last checkpoint.

    A trainer leaves both: the best model of the training, or one that was merged afterwards. Figures of the last
    checkpoint would be taken for those of the model. steps: its checkpoints.
    """
    own = weights_in(folder)
    if steps and own and own != weights_in(steps[max(steps)]):
        raise ConfigError(
            f"{folder} holds a model and checkpoints, of which the last, {steps[max(steps)].name}, is another model: "
            f"name the one that you mean, {steps[max(steps)]}, or move the checkpoint folders elsewhere"
        )


def weights_in(folder: Path) -> dict[str, list[Any]]:
    """Return size and digest of each file of weights, also of an adapter."""
    files = [path for path in folder.iterdir() if path.suffix == ".safetensors" or PICKLED.fullmatch(path.name)]
    return {path.name: file_stamp(path)[::2] for path in files if path.is_file()}


def tokenizer_folder(folder: Path) -> Path | None:
    """Return the folder with the tokenizer of a model: its own, or for a checkpoint the one above; None without."""
    above = [folder.parent] if CHECKPOINT.fullmatch(folder.name) else []
    return next((place for place in (folder, *above) if any((place / name).is_file() for name in TOKENIZER)), None)


def check_weights(folder: Path) -> None:
    """Raise ConfigError if the weights of a model, in one file or several, are missing, cut short or damaged."""
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is not None:
        for name in sorted(set(shards(index).values())):
            check_file(folder / name)
        return
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{folder} has a {CONFIG} but no weights ({' or '.join(WEIGHTS)}): save the model again")
    check_file(file)


def check_file(file: Path) -> None:
    """Raise ConfigError if a file of weights is missing, or if its header does not fit its length."""
    if not file.is_file():
        raise ConfigError(f"{file} is missing: half a checkpoint, save or download it again")
    if not os.access(file, os.R_OK):  # safetensors would say that there is no such file
        raise ConfigError(f"{file} may not be read by this user: change its mode, or ask its owner to")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ConfigError(f"{file} is cut short or damaged ({error}): save or download it again") from error


def stamp(folder: Path) -> str:
    """Return what changes when a file of the folder changes: a digest of names, sizes and modification times."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return json_digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])[:16]


def content(folder: Path, blocks: int = BLOCKS) -> str:
    """Return a digest of samples of the folder's files: new weights of the same size and time are seen too."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return json_digest([[path.name, *file_stamp(path, blocks)] for path in files])[:16]


def same_content(known: str | None, folder: Path) -> bool:
    """Whether a folder has the content that was noted, or nothing was. Earlier versions noted a digest of less."""
    return known is None or known == content(folder) or known == content(folder, BLOCKS_ONCE)


def shards(index: Path) -> dict[str, str]:
    """Return the file of each tensor. Raises ConfigError for an index that is damaged, or names files of elsewhere."""
    try:
        found = dict(parse_json(index.read_text(encoding="utf-8"))["weight_map"])
        strange = [name for name in found.values() if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no list of files ({error!r}): save or download it again") from error
    if strange:
        raise ConfigError(
            f"{index} names {strange[0]!r}, which is not in its folder: do not use this model, or save it again"
        )
    return found
