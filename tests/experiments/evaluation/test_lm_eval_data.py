"""Tasks of lm_eval are asked of the files of now, not of those that the cache of the package datasets was made of."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from experiments.common.errors import ConfigError
from experiments.evaluation.lm_eval_data import check_data


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
