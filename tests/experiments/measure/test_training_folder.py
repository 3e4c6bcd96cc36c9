"""Each training has its own folder, and no two measure in one at the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from experiments.common.errors import ConfigError
from experiments.common.files import write_json
from experiments.common.hashing import file_digest
from experiments.measure.training_folder import (
    default_folder,
    earlier_base,
    hold,
    libraries,
    release,
    said_moved,
    said_other,
    said_replaced,
)
from experiments.models.precision import gpu_of
from experiments.records import Record, write_records
from tests.helpers.measured import tiny_model


def test_trainings_whose_outputs_have_one_name_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "a" / "out", tmp_path / "b" / "out"
    folder = default_folder(first)
    assert (folder, default_folder(second)) == (tmp_path / "mlruns" / "runs" / "callback-out", folder)  # nothing there
    write_json(folder / "base" / "state.json", {"output": str(first)})
    assert default_folder(first) == folder
    assert default_folder(second).name.startswith("callback-out-")
    write_json(folder / "base" / "state.json", {})  # of an earlier version
    assert default_folder(second) == folder


def test_two_trainings_at_once_do_not_measure_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "out"
    hold(folder)
    hold(folder)  # a second training of this process, after one that broke off
    other = FileLock(f"{folder}.lock", timeout=0)  # as another process has it
    with pytest.raises(Timeout, match="could not be acquired"):
        other.acquire()
    release(folder)
    with other, pytest.raises(ConfigError, match=r"another training is measured in .*out now: take another folder"):
        hold(folder)


@pytest.mark.parametrize("note", [{}, {"command": "callback", "digest": ""}, {"command": "soften"}, {"digest": "4f1a"}])
def test_a_training_does_not_replace_the_base_of_a_measurement(note: dict[str, str], tmp_path: Path) -> None:
    write_json(tmp_path / "measure.json", note)
    if note in ({}, {"command": "callback", "digest": ""}):
        hold(tmp_path)
        release(tmp_path)
        (tmp_path / "config.yaml").write_text("name: a run")
    with pytest.raises(ConfigError, match="holds a run or a measurement, whose records would be replaced"):
        hold(tmp_path)


def test_a_training_that_goes_on_says_what_else_differs_from_its_base() -> None:
    model = tiny_model()
    assert [said_other(note, model) for note in ({}, {"with": libraries(model)})] == ["", ""]
    said = said_other({"with": {**libraries(model), "torch": "1.0", "device": "cuda"}}, model)
    assert said.startswith("the base was measured with torch 1.0, and torch is ")
    assert "; device cuda, and device is cpu here: figures may differ for that alone" in said
    said = said_other({"with": {**libraries(model), "products of fp32": "tf32"}}, model)
    assert "products of fp32 tf32, and products of fp32 is ieee here" in said


def test_another_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model decides on last digits too; an earlier version noted the kind of device alone."""
    model: Any = SimpleNamespace(
        device=torch.device("cuda:1"),
        parameters=lambda: [SimpleNamespace(device=torch.device("cuda", i)) for i in (1, 0, 1)],
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda one: "A100" if one.index else "L4")
    noted = libraries(model)
    assert noted["gpu"] == "A100, L4"
    assert gpu_of(tiny_model()) == {}
    before = {name: value for name, value in noted.items() if name != "gpu"}
    assert [said_other({"with": known}, model) for known in (noted, before)] == ["", ""]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda one: "H200")
    said = "the base was measured with gpu A100, L4, and gpu is H200 here: figures may differ for that alone"
    assert said_other({"with": noted}, model) == said
    assert "device cuda, and device is cpu here: fig" in said_other({"with": noted}, tiny_model())


def test_measurements_that_a_new_training_replaces_are_said(tmp_path: Path) -> None:
    write_json(tmp_path / "arms" / "trained" / "digests.json", {})
    assert said_replaced(tmp_path) == ""  # of one that did not end: it begins again
    write_json(tmp_path / "arms" / "trained" / "result.json", {})
    assert "the measurements of an earlier training are replaced" in said_replaced(tmp_path)


def test_a_training_that_begins_with_the_model_of_an_earlier_one_is_said(tmp_path: Path) -> None:
    """A cell that is run again after an interrupt: the model that had trained was the base, without a word."""
    first = [Record("kept", "capitals", "plain", name, correct=1, prompt="0") for name in "abc"]
    file, model = tmp_path / "base" / "items.jsonl", tiny_model()
    assert earlier_base(tmp_path, "bf16", model) == []
    write_records(file, first)
    assert earlier_base(tmp_path, "bf16", model) == []  # of an earlier version, or changed
    note = {"items": file_digest(file), "precision": "bf16", "with": libraries(model)}
    write_json(tmp_path / "base" / "state.json", note)
    assert earlier_base(tmp_path, "bf16", model) == first
    assert earlier_base(tmp_path, "fp32", model) == []  # the base itself answers some questions otherwise
    write_json(tmp_path / "base" / "state.json", {**note, "with": {**libraries(model), "device": "cuda"}})
    assert earlier_base(tmp_path, "bf16", model) == []
    assert said_moved([], first) == said_moved(first, first) == ""
    now = [replace(first[0], correct=0), first[1], replace(first[2], correct=0, prompt="1")]
    assert said_moved(first, now).startswith("the model answers 1 of 2 questions otherwise than at the start of the")
