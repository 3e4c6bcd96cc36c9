"""A result knows the files that it was made from; results of earlier versions still open."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import DamagedError, RunError
from experiments.common.files import read_json, write_json
from experiments.common.hashing import file_digest
from experiments.common.owner import ARM, LAUNCH, SOURCES
from experiments.records import MEASURED, ArmResult, Estimate
from experiments.runs.result_file import (
    check_files,
    check_operation_of,
    floor_file,
    owners_noted,
    read_result,
    trained_digest,
    whole_results,
    write_result,
)

RESULT = ArmResult("full", "full", 1e-3, "finished", steps=4, scorecard={"gain": Estimate(0.1, -0.1, 0.3)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arm = tmp_path / "arms" / "full-0.001"
    for file in (tmp_path / "base" / "items.jsonl", arm / "items-4.jsonl", arm / "trained" / "model.safetensors"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    RESULT.cost = {"seconds": float("nan")}
    write_result(arm, RESULT)
    return arm


def test_what_is_whole_is_read(folder: Path) -> None:
    (again,) = whole_results([folder / "result.json"])
    assert (again.arm, again.scorecard, again.steps) == ("full", RESULT.scorecard, 4)
    check_files(folder / "result.json", trained=True)
    assert set(read_json(folder / "result.json")["made_from"]) == {
        "base/items.jsonl", "arms/full-0.001/items-4.jsonl", "arms/full-0.001/trained/model.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"learning_rate": 1e-2}, {"steps": 5}, {"scorecard": {"gain": {"value": 0.9}}}])
def test_a_changed_result(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "result.json"
    write_json(file, read_json(file) | change)
    for read in (read_result, check_files):
        with pytest.raises(DamagedError, match=r"result\.json was changed after it was written: bring it back"):
            read(file)


def test_the_result_of_another_arm(folder: Path) -> None:
    other = folder.with_name("full-0.01")
    other.mkdir()
    (other / "result.json").write_text((folder / "result.json").read_text())
    with pytest.raises(DamagedError, match=r"full-0\.01/result\.json is the result of full-0\.001, another arm"):
        read_result(other / "result.json")


@pytest.mark.parametrize("name", ["base/items.jsonl", "arms/full-0.001/items-4.jsonl"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("x")], ids=["gone", "changed"])
def test_other_records(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(folder.parents[1] / name)
    with pytest.raises(DamagedError, match=rf"{name} is .*result\.json was made from: bring it back, "):
        whole_results([folder / "result.json"])


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("x")], ids=["gone", "changed"])
def test_other_answers_for_the_floor(folder: Path, damage: Callable[[Path], object]) -> None:
    """A study's report had no A/A floor, without a word, and `posthoc --choose` had that of the other answers."""
    run, file = folder.parents[1], folder.parents[1] / "base" / "reworded.jsonl"
    assert floor_file(run) is None
    file.write_text("answers")
    assert floor_file(run) == file  # an earlier version noted no digest
    write_json(file.with_name("timing.json"), {"files": {file.name: file_digest(file)}})
    assert floor_file(run) == file
    damage(file)
    with pytest.raises(
        DamagedError, match=r"base/reworded\.jsonl is not as .*timing\.json notes it: bring it back, run"
    ):
        floor_file(run)


def test_other_records_of_a_model_called_trained(folder: Path) -> None:
    """As ForgettingCallback calls its own: they were taken for weights, and a gate passed on those of another one."""
    arm = folder.with_name("trained")
    folder.rename(arm)
    write_result(arm, replace(RESULT, arm="trained", method=MEASURED))
    (arm / "items-4.jsonl").write_text("others")
    with pytest.raises(DamagedError, match=r"items-4\.jsonl is not the file that"):
        check_files(arm / "result.json")
    check_files(arm / "result.json", trained=True)


def test_other_weights_matter_where_they_are_loaded(folder: Path) -> None:
    (folder / "trained" / "model.safetensors").write_text("x")
    check_files(folder / "result.json")
    with pytest.raises(DamagedError, match=r"model\.safetensors is not the file"):
        check_files(folder / "result.json", trained=True)


def test_a_whole_arm_of_another_run(folder: Path) -> None:
    """Same base, records and names, but other settings or data: all its files fit each other."""
    run = folder.parents[1]
    for name, own in ({"config": "a"}, {"config": "b"}), ({"0 sums": "a"}, {"0 sums": "b"}):
        write_json(run / SOURCES, name)
        write_result(folder, RESULT)
        check_files(folder / "result.json")
        write_json(run / SOURCES, own)
        with pytest.raises(DamagedError, match=r"result\.json is of a run with other settings or data than"):
            whole_results([folder / "result.json"])


def test_a_run_without_its_sources_knows_them_from_what_was_made_of_them(folder: Path) -> None:
    run = folder.parents[1]
    checkpoint = run / "arms" / "other-0.001" / "checkpoints" / "checkpoint-2"
    write_json(run / SOURCES, {"0 sums": "a", "config": "c"})
    write_result(folder, RESULT)
    write_json(checkpoint / LAUNCH, {"owner": {"1 chats": "b", "arm": "other-0.001", "settings": "s", "config": "c"}})
    (run / SOURCES).unlink()
    assert owners_noted(run) == {"0 sums": "a", "1 chats": "b"}


def test_an_operation_on_weights_that_the_arm_no_longer_has(folder: Path) -> None:
    run, made = folder.parents[1], folder.parents[1] / "posthoc" / "full-0.001-wise-0.5"
    (run / "posthoc").mkdir()
    write_result(made, RESULT, {folder: trained_digest(folder)})
    check_files(made / "result.json")
    write_result(folder, RESULT)  # measured again, of the same weights
    check_files(made / "result.json")
    (folder / "trained" / "model.safetensors").write_text("trained again")
    write_result(folder, RESULT)
    with pytest.raises(DamagedError, match=r"wise-0\.5/result\.json was made from other weights than .*full"):
        whole_results([made / "result.json"])


@pytest.mark.parametrize("meanwhile", ["trained again", "removed"])
def test_an_operation_on_weights_that_were_trained_again_while_they_were_measured(folder: Path, meanwhile: str) -> None:
    """As by `run --fresh` in another shell: the result would name the new weights and have the figures of the old."""
    made, loaded = folder.parents[1] / "posthoc" / "full-0.001-wise-0.5", trained_digest(folder)
    (folder / "trained" / "model.safetensors").write_text(meanwhile)
    write_result(folder, RESULT)
    if meanwhile == "removed":
        (folder / "result.json").unlink()
    with pytest.raises(RunError, match=r"full-0\.001 was trained again, or removed, while its earlier"):
        write_result(made, RESULT, {folder: loaded})
    assert not (made / "result.json").exists()


def test_results_of_earlier_versions_are_read_as_they_are(folder: Path) -> None:
    file = folder / "result.json"
    write_json(file, RESULT.to_dict())
    (folder / "items-4.jsonl").unlink()
    assert whole_results([file])[0].scorecard == RESULT.scorecard


@pytest.mark.parametrize("text", ["{}", '{"arm": "full"}', json.dumps({"scorecard": 3, "trajectory": []})])
def test_what_is_no_result(folder: Path, text: str) -> None:
    (folder / "result.json").write_text(text)
    with pytest.raises(DamagedError, match=r"is no result of an arm \("):
        read_result(folder / "result.json")


def test_files_next_to_the_weights_that_the_arm_did_not_write(folder: Path) -> None:
    """An adapter of another arm would be loaded in place of the weights."""
    (folder / "trained" / "notes.txt").write_text("mine")
    check_files(folder / "result.json", trained=True)
    (folder / "trained" / "adapter_config.json").write_text("{}")
    check_files(folder / "result.json")
    with pytest.raises(DamagedError, match=r"adapter_config\.json is not of this arm, .*: move it out of .*trained"):
        check_files(folder / "result.json", trained=True)


def test_an_arm_with_other_settings_than_its_result(folder: Path) -> None:
    check_files(folder / "result.json")  # of an earlier version, which noted none
    for settings in ("a", "b"):
        write_json(folder / ARM, {"settings": settings})
        if settings == "a":
            write_result(folder, RESULT)
        else:
            with pytest.raises(DamagedError, match=r"is of a run with other settings .*delete the folder"):
                check_files(folder / "result.json")
    (folder / ARM).write_text("{")
    check_files(folder / "result.json")


@pytest.mark.parametrize(
    ("asked", "arms", "said"),
    [
        ({"arm": "full"}, ["full-0.001"], ""),
        ({"arm": "fu-ll"}, ["full-0.001"], "is the result of 'full 0.001 merge', not of 'fu-ll 0.001 merge' on these"),
        ({"operation": "wise 0.5"}, ["full-0.001"], "not of 'full 0.001 wise 0.5' on these arms"),
        ({}, ["full-0.001", "other-0.001"], "not of 'full 0.001 merge' on these arms, which has the same folder"),
        ({}, ["other-0.001"], "move .*posthoc/x out of"),
    ],
)
def test_two_operations_whose_folders_have_one_name(
    folder: Path, asked: dict[str, Any], arms: list[str], said: str
) -> None:
    """As of the arms `a b` and `a-b`, or of arms with one name in two roots."""
    (folder.with_name("other-0.001") / "trained").mkdir(parents=True)
    (folder.with_name("other-0.001") / "trained" / "model.safetensors").write_text("other")
    write_result(folder.with_name("other-0.001"), replace(RESULT, arm="other"))
    made, done = folder.parents[1] / "posthoc" / "x", replace(RESULT, operation="merge")
    write_result(made, done, {folder: trained_digest(folder)})
    changed = [folder.with_name(name) for name in arms]
    with pytest.raises(DamagedError, match=said) if said else nullcontext():
        check_operation_of(made / "result.json", replace(done, **asked), changed)
