"""Addresses of models, and files that are missing, cut short or damaged: found before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import ctrl
from ctrl.checkpoint import read_tensors
from experiments.common.errors import ConfigError
from experiments.measure.files import check_last, check_weights, checkpoints, folder_of, stamp, tokenizer_folder
from experiments.soften.path import WeightPath
from tests.helpers.measured import model_folder, tiny_model


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_folder(tmp_path_factory.mktemp("whole") / "model"))


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def test_an_address_in_mlflow_is_loaded_as_ctrl_loads_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def store(address: str) -> Path:
        if address != "models:/m-1":
            raise ctrl.CheckpointError(f"MLflow cannot provide {address}")
        return whole

    monkeypatch.setattr("experiments.measure.files.local_folder", store)
    assert folder_of("models:/m-1") == whole
    with pytest.raises(ConfigError, match="MLflow cannot provide runs:/r/trained"):
        folder_of("runs:/r/trained")


def test_what_has_no_such_address_says_so(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder nobody/nothing, and the Hugging Face Hub gives no such"):
        folder_of("nobody/nothing")
    with pytest.raises(ConfigError, match=r"there is no folder a b/c/d, .* it is no name of a repository"):
        folder_of("a b/c/d")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"model\.safetensors is a file: name the folder"):
        folder_of(str(tmp_path / "model.safetensors"))
    assert folder_of(str(whole)) == whole


def test_weights_in_one_file_or_several_are_accepted(copied: Path) -> None:
    check_weights(copied)
    (copied / "model.safetensors").unlink()
    tiny_model().save_pretrained(copied, max_shard_size="20KB")
    assert (copied / "model.safetensors.index.json").is_file()
    check_weights(copied)
    shard = next(copied.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(ConfigError, match=rf"{shard.name} is missing: half a checkpoint"):
        check_weights(copied)
    (copied / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"index\.json is no list of files"):
        check_weights(copied)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "{folder}/other/model.safetensors", "a/b"])
def test_an_index_that_names_files_of_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """`soften` writes each file of an index: it would write over the weights of another model."""
    (tmp_path / "m").mkdir()
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name.format(folder=tmp_path)}}))
    with pytest.raises(ConfigError, match=r"index\.json names .*, which is not in its folder"):
        check_weights(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"index\.json names .*, which is not in its folder"):
        WeightPath(tmp_path / "m", tmp_path / "m").write(0.5, tmp_path / "out")


def test_weights_that_are_missing_or_cut_short_are_found(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors is cut short or damaged"):
        check_weights(copied)
    file.unlink()
    with pytest.raises(ConfigError, match=r"has a config\.json but no weights \(model\.safetensors or pytorch_model"):
        check_weights(copied)


def test_weights_of_another_user_are_not_called_missing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).suffix != ".safetensors" and access(path, mode))
    with pytest.raises(ConfigError, match=r"model\.safetensors may not be read by this user: change its mode"):
        check_weights(copied)
    with pytest.raises(ctrl.CheckpointError, match=r"model\.safetensors may not be read by this user: change its mode"):
        read_tensors(copied / "model.safetensors")


def test_checkpoints_are_sorted_by_step_and_have_the_tokenizer_above(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-last", "logs"):
        (tmp_path / name).mkdir()
    assert list(checkpoints(tmp_path)) == [20, 100]
    assert tokenizer_folder(tmp_path / "checkpoint-20") is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(tmp_path / "checkpoint-20") == tmp_path
    assert tokenizer_folder(tmp_path / "logs") is None


def test_the_stamp_changes_with_a_file(copied: Path) -> None:
    before = stamp(copied)
    assert stamp(copied) == before
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**values, "more": 1}))
    assert stamp(copied) != before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"],
)
def test_a_training_folder_with_another_model_than_its_last_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    last = tmp_path / "checkpoint-2"
    last.mkdir()
    for folder in (tmp_path, last):
        (folder / name).write_bytes(b"weights")
        (folder / "training_args.bin").write_bytes(folder.name.encode())
    check_last(tmp_path, {2: last})
    (last / name).write_bytes(b"others!")
    with pytest.raises(ConfigError, match="of which the last, checkpoint-2, is another model"):
        check_last(tmp_path, {2: last})
