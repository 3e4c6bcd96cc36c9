"""The settings of a measurement: defaults, faults, and the digest that names the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.items import NewTask, NewText
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS
from experiments.measure.config import DEFAULT, devices, measure_config
from tests.helpers.byte_level import byte_tokenizer


def questions(folder: Path, count: int = 6) -> Path:
    file = folder / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{i} + 1 =", "answer": str(i + 1)}) for i in range(count)))
    return file


def test_defaults_and_changes(tmp_path: Path) -> None:
    assert measure_config("base").evaluation.suites == DEFAULT
    assert measure_config("base", new=questions(tmp_path)).evaluation.suites == ("new", *DEFAULT)
    config = measure_config("base", kept_tasks=["agreement"], changes={"kept.items": 8, "bootstrap": 200})
    as_in_a_run = {"evaluation.suites.kept.items": 8, "evaluation.bootstrap": 200}  # as lines of a run name them
    assert measure_config("base", kept_tasks=["agreement"], changes=as_in_a_run) == config
    assert (config.evaluation.settings("kept").items, config.evaluation.bootstrap) == (8, 200)
    assert config.evaluation.settings("kept").tasks == ("agreement",)
    assert config.evaluation.suites == DEFAULT
    kept = measure_config("base", kept_files=["exam.jsonl"]).evaluation.settings("kept")
    assert kept.names == (*DEFAULT_TASKS, "exam")
    kept = measure_config("base", kept_tasks=["agreement"], kept_files=["exam.jsonl"]).evaluation.settings("kept")
    assert kept.names == ("agreement", "exam")
    assert "retention/exam" in measure_config("base", kept_files=["exam.jsonl"]).figures()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"suites": ["kept", "drifd"]}, r"unknown name 'drifd': did you mean 'drift'"),
        ({"kept_tasks": ["capitols"]}, r"unknown name 'capitols': did you mean 'capitals'"),
        ({"changes": {"kept.item": 8}}, r"kept\.item: unknown key; did you mean 'items'"),
        ({"changes": {"bootstrap": 3}}, r"bootstrap: .*greater than or equal to 100"),
        (
            {"kept_files": ["exam.jsonl"], "changes": {"kept.tasks": ["capitals"]}},
            r"--set kept\.tasks replaces what --kept",
        ),
        (
            {"kept_tasks": ["plurals"], "changes": {"kept_tasks": ["capitals"]}},
            r"--set kept_tasks replaces what --kept",
        ),
        ({"kept_tasks": ["plurals"], "changes": {"kept": {"items": 8}}}, r"--set kept replaces what --kept"),
        ({"lm_eval": ["piqa"], "changes": {"lm_eval.kept": ["arc"]}}, r"--set lm_eval\.kept replaces .* or --lm-eval"),
        ({"changes": {"evaluation.every": 5}}, r"--set every has no effect: no model trains here"),
        ({"changes": {"new_items": 5}}, r"--set new_items has no effect: it is of the new task, add --new FILE"),
        ({"suites": ["kept"], "changes": {"suites": ["drift"]}}, r"--set suites replaces --suites"),
        ({"suites": ["new", "kept"]}, r"suite new needs a file of the new task: add --new FILE"),
        ({"grader": "exact"}, r"--grader reads the replies to the questions of --new"),
        ({"grader": "exat", "new": "sums.jsonl"}, r"grader: unknown name 'exat': did you mean 'exact'"),
        ({"device_map": "cdua:0"}, r"device_map: 'cdua:0' is no device: known: auto, balanced.*, such as cuda:0"),
        ({"dtype": "int8"}, r"dtype: .*'fp32', 'bf16' or 'fp16'"),
        ({"suites": ["kept"], "new": "sums.jsonl"}, r"--new sums\.jsonl is measured by the suite new"),
    ],
)
def test_faults_name_what_is_known(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        measure_config("base", **options)  # type: ignore[arg-type]


def test_the_digest_changes_with_settings_data_and_the_base(tmp_path: Path) -> None:
    file = questions(tmp_path)
    digests = [
        measure_config("base", new=file).digest("facts"),
        measure_config("base", new=file).digest("other facts"),
        measure_config("base", new=file, seed=1).digest("facts"),
        measure_config("base", new=file, changes={"kept.items": 8}).digest("facts"),
        measure_config("base").digest("facts"),
    ]
    assert measure_config("base", new=file).digest("facts") == digests[0]
    questions(tmp_path, 7)
    digests.append(measure_config("base", new=file).digest("facts"))
    digests.append(measure_config("base", new=file, grader="contains").digest("facts"))
    digests.append(measure_config("base", kept_files=[file]).digest("facts"))
    questions(tmp_path, 8)
    digests.append(measure_config("base", kept_files=[file]).digest("facts"))
    digests += [
        measure_config("base", dtype="bf16").digest("facts"),
        measure_config("base", lm_eval=["x"]).digest("facts"),
    ]
    assert len(set(digests)) == 11
    plain = measure_config("base").to_dict()
    assert not {"dtype", "device_map", "trust_remote_code"} & plain.keys()  # digests of earlier versions stay


def test_tasks_of_lm_eval_are_a_suite_with_figures() -> None:
    config = measure_config("base", lm_eval=["gsm8k", "mmlu"], changes={"lm_eval.limit": 10})
    assert config.evaluation.suites == (*DEFAULT, "lm_eval")
    settings = config.evaluation.settings("lm_eval")
    assert (settings.kept, settings.limit, settings.run_code) == (("gsm8k", "mmlu"), 10, False)
    assert {"retention/gsm8k", "retention/capitals"} <= set(config.figures())


def test_the_new_task_is_what_an_experiment_holds_out_or_the_whole_file(tmp_path: Path) -> None:
    file, tokenizer = questions(tmp_path), byte_tokenizer()
    (task,) = measure_config("base", new=file, changes={"new_items": 4}).task(tokenizer)
    assert task == LocalFile(path=str(file)).held_out(4, 0)
    (whole,) = measure_config("base", new=file).task(tokenizer)
    assert isinstance(whole, NewTask)
    assert len(whole.test) == 6
    (tmp_path / "story.txt").write_text("word " * 300)
    (text,) = measure_config("base", new=tmp_path / "story.txt").task(tokenizer)
    assert isinstance(text, NewText)
    assert len(text.documents[0]) == 512  # tokens, here bytes
    assert measure_config("base").task(tokenizer) == ()
    (graded,) = measure_config("base", new=file, grader={"numeric": 1}).task(tokenizer)
    assert isinstance(graded, NewTask)
    assert graded.correct(f"{int(graded.test[0].answer) + 1}", graded.test[0])


def test_figures_are_those_of_the_suites() -> None:
    names = measure_config("base", suites=["kept"]).figures()
    assert {"retention", "retention/capitals", "nfr_above_floor"} <= set(names)
    assert not {"kl", "gain", "cost/tokens"} & set(names)


def test_a_part_of_a_longer_file_is_said(tmp_path: Path) -> None:
    """128 of 500 test questions, and 100 of those of a kept task, were measured without a word."""
    file = questions(tmp_path, 140)
    config = measure_config("base", new=file, kept_files=[file])
    said = config.notes(config.task(byte_tokenizer()))
    assert said == [
        "source sums: 128 of its 140 questions or texts are measured, drawn by the seed (new_items)",
        "kept task sums: 100 of its 140 questions are measured (evaluation.suites.kept.items may be all)",
    ]
    whole = measure_config("base", new=file, kept_files=[file], changes={"new_items": 140, "kept.items": "all"})
    assert whole.notes(whole.task(byte_tokenizer())) == []


def test_texts_that_are_cut_are_said(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(["short", "long " * 200, "long " * 300]))
    config = measure_config("base", new=file)
    said = config.notes(config.task(byte_tokenizer()))
    assert said == [
        "source texts: 2 of 3 measured texts are longer than 512 tokens, and only their beginnings are measured"
    ]


@pytest.mark.parametrize(
    ("device_map", "known"),
    [("cuda:2", True), ("cuda", True), ("cuda:3", False), ("xpu:0", False), ("mps", False), ("meta", False),
     ("cpu", True), ("cpu:0", True), ("auto", True)],
)  # fmt: skip
def test_a_device_that_the_machine_lacks_is_named(
    device_map: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config.json of the base was blamed."""
    monkeypatch.setattr("experiments.measure.config.devices", lambda: {"cpu": 1, "cuda": 3})
    if known:
        assert measure_config("m", device_map=device_map).device_map == device_map
        return
    said = f"device_map: '{device_map}' is no device of this machine, which has cpu, cuda:0 to cuda:2: name one of"
    with pytest.raises(ConfigError, match=said):
        measure_config("m", device_map=device_map)


@pytest.mark.parametrize(("kind", "count"), [(None, 0), ("cuda", 2)])
def test_devices_of_this_machine(kind: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    assert devices() == {"cpu": 1, **({kind: count} if kind else {})}


FEW = {"kept.items": 50, "kept.aa_floor": False}


@pytest.mark.parametrize(
    ("changes", "items", "floor"),
    [
        ({}, 50, False),
        ({"kept.items": 20}, 20, False),
        ({"kept_items": 20}, 20, False),
        ({"kept": {"items": 20}}, 20, False),
        ({"evaluation.suites.kept.items": 20}, 20, False),
        ({"suites": {"kept": {"items": 20}}}, 20, False),
        ({"suites": ["drift"]}, 100, True),
        ({"aa_floor": True}, 50, True),
    ],
)
def test_few_questions_are_asked_where_no_change_sets_another_number(
    changes: dict[str, Any], items: int, floor: bool
) -> None:
    """A callback's own fields are no changes of the user, which one of the same field would replace."""
    kept = measure_config("base", changes=changes, default=("kept", "drift"), few=FEW).evaluation.settings("kept")
    assert (kept.items, kept.aa_floor) == (items, floor)
