"""Sample files of lm_eval: those of one model, the latest of each task, and whole ones alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.evaluation.lm_eval_files import latest_files, measured_apart
from experiments.evaluation.lm_eval_samples import read_samples
from tests.helpers.planted_run import lm_eval_samples


def results(tasks: dict[str, int], model: str = "org/model", arguments: Any = "pretrained=org/model") -> dict[str, Any]:
    counts = {task: {"original": 100, "effective": count} for task, count in tasks.items()}
    return {"model_name": model, "config": {"model_args": arguments}, "n-samples": counts}


def test_the_latest_file_of_each_task(tmp_path: Path) -> None:
    lm_eval_samples(tmp_path / "m", "2025-01-01", True, "arc")
    lm_eval_samples(tmp_path / "m", "2025-01-02", True, "arc")
    lm_eval_samples(tmp_path / "m", "2025-01-01", True, "gsm8k", results=results({"arc": 20, "gsm8k": 20}))
    files = latest_files(tmp_path)
    assert {task: path.name for task, path in files.items()} == {
        "arc": "samples_arc_2025-01-02T00-00-00.1.jsonl",
        "gsm8k": "samples_gsm8k_2025-01-01T00-00-00.1.jsonl",
    }
    assert latest_files(files["arc"]) == {"arc": files["arc"]}
    assert len(read_samples(tmp_path).records) == 40
    assert measured_apart(tmp_path).startswith(
        "measured by several runs of lm_eval (gsm8k 2025-01-01T00-00, arc 2025-01-02T00-00): if the model was trained"
    )
    lm_eval_samples(tmp_path / "m", "2025-01-02", True, "gsm8k")
    assert measured_apart(tmp_path) == measured_apart(files["arc"]) == ""


@pytest.mark.parametrize(("first", "second"), [("base", "tuned"), (".", "tuned"), ("run1/m", "run2/m")])
def test_files_of_several_folders_are_never_mixed(first: str, second: str, tmp_path: Path) -> None:
    lm_eval_samples(tmp_path / first, "2025-01-01", True)
    lm_eval_samples(tmp_path / second, "2025-01-02", False, "gsm8k")
    with pytest.raises(ValueError, match=r"holds samples of several models or runs \(.*\): name the folder of one"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    "other",
    [{"model": "org/other"}, {"arguments": "pretrained=org/model,peft=tuned"}, {"arguments": {"pretrained": "x"}}],
)
def test_models_that_share_a_folder_are_never_mixed(other: dict[str, Any], tmp_path: Path) -> None:
    """lm_eval names the folder after the base, with an adapter or without."""
    lm_eval_samples(tmp_path, "2025-01-01", True, results=results({"arc": 20}))
    lm_eval_samples(tmp_path, "2025-01-02", True, "gsm8k", results=results({"gsm8k": 20}, **other))
    with pytest.raises(ValueError, match=r"holds samples of several models \(.*measure each with its own"):
        read_samples(tmp_path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    lm_eval_samples(tmp_path, "2025-01-01", True, n=7, results=results({"arc": 20}))
    with pytest.raises(ValueError, match=r"has 7 of 20 questions: it is not whole"):
        read_samples(tmp_path)


def test_results_that_are_newer_than_the_samples_are_refused(tmp_path: Path) -> None:
    file = lm_eval_samples(tmp_path, "2025-01-01", True, results=results({"arc": 20}))
    lm_eval_samples(tmp_path, "2025-01-02", True, "gsm8k", results=results({"arc": 20, "gsm8k": 20}))
    with pytest.raises(ValueError, match=rf"has results of arc, and {file.name} is older: measure arc again"):
        read_samples(tmp_path)


def test_nothing_that_can_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no samples_\*\.jsonl"):
        read_samples(tmp_path)
    lm_eval_samples(tmp_path, "2025-01-01", True, "wikitext", metric="word_perplexity")
    with pytest.raises(ValueError, match=r"no task that can be compared: task wikitext of lm_eval gives"):
        read_samples(tmp_path)
