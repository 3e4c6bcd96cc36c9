"""Tasks of lm_eval are asked of the files of now, not of those that the cache of the package datasets was made of."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from experiments.common.errors import ConfigError
from experiments.evaluation.lm_eval_data import check_data, load_alike


@pytest.mark.parametrize("named", ["train.jsonl", "*.jsonl", {"test": ["train.jsonl"]}])
def test_another_file_of_the_same_time_is_refused(
    named: str | dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def load(word: str, time: int) -> None:
        Path("train.jsonl").write_text(f'{{"question": "{word}"}}\n')
        os.utime("train.jsonl", (time, time))
        config = SimpleNamespace(dataset_path="json", dataset_name=None, dataset_kwargs={"data_files": named})
        check_data(SimpleNamespace(config=config, dataset=datasets.load_dataset("json", data_files=named)))

    load("old", 1)
    load("old", 1)
    with pytest.raises(ConfigError, match=r"train\.jsonl is another file .* has the same time"):
        load("new", 1)
    load("new", 2)


def test_tasks_of_the_hub_or_without_data_are_not_asked_for_files() -> None:
    check_data(SimpleNamespace(config=SimpleNamespace(dataset_path="piqa"), dataset={"test": SimpleNamespace()}))
    check_data(SimpleNamespace(config=SimpleNamespace(dataset_path=None), dataset=None))
    check_data(SimpleNamespace(config=SimpleNamespace()))


def test_tasks_that_shuffle_are_the_same_in_all_processes() -> None:
    """As gpqa shuffles its options when it is loaded; with the seed of lm_eval's command, and each task for itself."""

    class Task:
        def __init__(self) -> None:
            self.loaded = self.test_docs()

        def test_docs(self) -> list[int]:
            return random.sample(range(100), 9)

        training_docs = validation_docs = test_docs

    manager = SimpleNamespace(load=lambda names: {"tasks": {name: Task() for name in names}})
    state = random.getstate()
    tasks = load_alike(manager, ["a", "b"])
    assert random.getstate() == state
    random.seed(7)
    found = [docs for task in tasks.values() for docs in (task.loaded, task.test_docs(), task.test_docs())]
    assert found == 6 * [random.Random(0).sample(range(100), 9)]
