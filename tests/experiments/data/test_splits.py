"""Files of several splits in one folder are trained on together, and a run says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.data.files import LocalFile


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-00000-of-1.jsonl", "test/data.jsonl"), "test, train"),
        (("training.jsonl", "chats_testing.jsonl"), "test, train"),
        (("trainData.jsonl", "held_out.jsonl"), "holdout, train"),
        (("chats.jsonl", "chats-evaluation.jsonl"), "eval and others"),  # of which one may not be learned
        (("train.jsonl", "dev/a.jsonl", "b.jsonl"), "dev, train and others"),
        (("wiki.train.txt", "wiki.valid.txt"), "train, validation"),
        (("test/a.jsonl", "test/b.jsonl"), None),
        (("train.jsonl", "more.jsonl"), None),
        (("contest.jsonl", "values.jsonl"), None),
    ],
)
def test_splits_that_are_read_together_are_said(names: tuple[str, ...], splits: str | None, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": f"t{number}"}) + "\n")
    said = [f"trained on together: the files of {splits}; for one of them alone, name its path"] if splits else []
    assert LocalFile(path=str(tmp_path)).notes == said
    assert LocalFile(path=str((tmp_path / names[1]).parent)).notes == (said if "/" not in names[1] else [])
