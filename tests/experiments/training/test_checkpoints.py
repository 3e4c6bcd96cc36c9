"""Which checkpoints count, and when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch

from experiments.common.files import write_json
from experiments.common.owner import SOURCES
from experiments.training.checkpoints import COMPLETE, complete, drop_checkpoints, file_digests, last_checkpoint
from experiments.training.meter import Meter
from tests.helpers.engine import (
    Killed,
    arm_config,
    train,
)
from tests.helpers.hostile import Ran


def test_unfinished_and_cut_checkpoints_do_not_count(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"12345678")
    for step in (2, 6):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text('{"model.safetensors": 8}')
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"1234")  # cut short after it was whole
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2"]


FILES = {"model.safetensors": b"weights" * 99, "optimizer.pt": b"moments" * 99, "trainer_state.json": b"{}"}


def one_bit_at_its_old_time(file: Path) -> None:
    known, data = file.stat(), file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, 1),
    "empty": lambda file: file.write_bytes(b""),
    "NUL": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "one bit": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "one bit, at its old time": one_bit_at_its_old_time,
    "missing": lambda file: file.unlink(),
    "of the one before": lambda file: shutil.copy2(file.parents[1] / "checkpoint-2" / file.name, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, COMPLETE])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for file, data in FILES.items():
            (folder / file).write_bytes(data.replace(b"{}", b"{ %d }" % step).replace(b"w", b"%d" % step))
        (folder / "optimizer.pt").write_bytes(b"%d" % step * 700)
        write_json(folder / COMPLETE, file_digests(folder))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    DAMAGES[damage](tmp_path / "checkpoint-4" / name)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()


def test_checkpoints_of_another_run_or_arm_do_not_count(tmp_path: Path) -> None:
    """They are whole, and of a model of the same shapes."""
    places = [tmp_path / run / "arms" / arm / "checkpoints" for run in "ab" for arm in ("full-0.1", "full-0.2")]
    for place in places:
        write_json(place.parents[2] / SOURCES, {"0 sums": place.parents[2].name})
        (place / "checkpoint-2").mkdir(parents=True)
        complete(place / "checkpoint-2", {}, Meter())
        assert last_checkpoint(place) == str(place / "checkpoint-2")
    own, *others = places
    for other in others:
        shutil.copytree(other / "checkpoint-2", own / "checkpoint-4")
        assert last_checkpoint(own) == str(own / "checkpoint-2")
        assert not (own / "checkpoint-4").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_the_checkpoint_of_others_runs_no_code(name: str, tmp_path: Path) -> None:
    """Its digests fit, as in a run folder that somebody sent."""
    with pytest.raises(Killed):
        train(arm_config("full"), tmp_path / "arm", kill_at=4, save_every=2)
    checkpoint = Path(str(last_checkpoint(tmp_path / "arm")))
    assert (checkpoint / name).is_file()
    torch.save({"a": Ran(tmp_path / "ran")}, checkpoint / name)
    write_json(checkpoint / COMPLETE, file_digests(checkpoint))
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        train(arm_config("full"), tmp_path / "arm", save_every=2)
    assert not (tmp_path / "ran").exists()


def test_steps_that_are_measured_again_drop_their_checkpoints(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    drop_checkpoints(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    drop_checkpoints(tmp_path / "none", 4)


def test_an_old_checkpoint_stays_until_the_new_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Meter.save

    def killed(self: Meter, folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise Killed
        save(self, folder)

    monkeypatch.setattr(Meter, "save", killed)
    with pytest.raises(Killed):
        train(arm_config("full"), tmp_path, steps=6, save_every=2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert str(last_checkpoint(tmp_path)).endswith("checkpoint-2")
    monkeypatch.undo()
    train(arm_config("full"), tmp_path, steps=7, save_every=2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-6"}


def test_a_checkpoint_is_on_the_disk_before_it_counts_and_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: dict[int, bool] = {}  # inode -> whether checkpoint-4 did not count yet
    old: list[bool] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        flushed.setdefault(os.fstat(handle).st_ino, not (tmp_path / "checkpoint-4" / COMPLETE).is_file())
        if (tmp_path / "checkpoint-4" / COMPLETE).is_file():
            old.append((tmp_path / "checkpoint-2").is_dir())

    monkeypatch.setattr(os, "fsync", noting)
    train(arm_config("full"), tmp_path, steps=5, save_every=2)
    files = [path for path in (tmp_path / "checkpoint-4").rglob("*") if path.name != COMPLETE]
    assert any(path.name == "model.safetensors" for path in files)
    assert all(flushed[path.stat().st_ino] for path in files)
    assert flushed[(tmp_path / "checkpoint-4").stat().st_ino]
    assert old
    assert all(old)  # names were flushed once more, while the old checkpoint was still there
