"""Pictures of studies and trials, as optuna-dashboard finds them."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta

from experiments.studies.artifacts import FOLDER, attach_pictures


@pytest.mark.parametrize("of_a_trial", [False, True])
def test_a_picture_is_found_by_its_name_and_replaces_an_earlier_one(of_a_trial: bool, tmp_path: Path) -> None:
    study = optuna.create_study()
    owner = study.ask() if of_a_trial else study
    file = tmp_path / "forgetting.png"
    for content in (b"first", b"second"):
        file.write_bytes(content)
        attach_pictures(owner, tmp_path / "root", {"seed-0.png": file, "seed-1.png": file, "x.png": tmp_path / "none"})
        found = {meta.filename: meta for meta in get_all_artifact_meta(owner)}
        assert sorted(found) == ["seed-0.png", "seed-1.png"]
        assert {meta.mimetype for meta in found.values()} == {"image/png"}
        store = FileSystemArtifactStore(str(tmp_path / "root" / FOLDER))
        for meta in found.values():
            assert store.open_reader(meta.artifact_id).read() == content


def test_a_full_disk_takes_only_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("shutil.copyfile", full)
    study = optuna.create_study()
    attach_pictures(study, tmp_path, {"a.png": tmp_path / "a.png"})
    assert get_all_artifact_meta(study) == []
