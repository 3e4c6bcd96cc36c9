"""Data sets come from the package `datasets` with the texts of their files, and its errors in one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from experiments.common.errors import ConfigError
from experiments.data.hub import HuggingFace
from experiments.data.items import Item
from tests.helpers.question_files import write


def test_numbers_are_the_decimals_that_were_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV file with an empty cell is read as floats, 3 as 3.0; a narrow type makes .1 a number of 18 digits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for kind in ("csv", "parquet"):
        (tmp_path / kind).mkdir()
    (tmp_path / "csv" / "train.csv").write_text("question,answer\na,3\nb,\nc,4\n")
    table = pyarrow.table({"question": ["a", "b"], "answer": pyarrow.array([0.1, 3], pyarrow.float32())})
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "train.parquet")
    for kind, expected in (("csv", {"3", "4"}), ("parquet", {"0.1", "3"})):
        source = HuggingFace(name=str(tmp_path / kind), skip_bad_rows=True)
        found = source.epoch(0, 0, frozenset())
        assert {e.answer for e in found if isinstance(e, Item)} == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_csv_are_texts(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package reads digits as numbers, and None as no value, which source file never did: 007 became 7."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    answers = {"007", "1.50", "12"}
    for name, more in (("digits", []), ("words", ["true"]), ("empty", ["None", "NA"])):
        (tmp_path / name).mkdir()
        rows = [f"q{i},{answer},{i}" for i, answer in enumerate([*sorted(answers), *more])]
        (tmp_path / name / "train.csv").write_text("\n".join(["question,answer,n", *rows]))
        source = HuggingFace(name=str(tmp_path / name), streaming=streaming)
        found = source.epoch(0, 0, frozenset())
        assert {e.answer for e in found if isinstance(e, Item)} == answers | set(more)


def test_a_saved_data_set_is_read_as_it_was_saved_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_dataset` takes the result of `map`, which `datasets` keeps next to the rows, for rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    saved = Dataset.from_list([{"question": f"Q{i}", "answer": "a"} for i in range(3)])
    saved.save_to_disk(tmp_path / "one")
    with pytest.raises(ConfigError, match=r"one' was saved by save_to_disk: \{source: file, path: .*one\} reads it"):
        HuggingFace(name=str(tmp_path / "one")).loaded  # noqa: B018
    DatasetDict({"train": saved}).save_to_disk(tmp_path / "dict")
    assert len(HuggingFace(name=str(tmp_path / "dict")).loaded) == 3
    load_from_disk(str(tmp_path / "dict"))["train"].map(lambda row: {"answer": "other"})
    with pytest.raises(ConfigError, match=r"such as train/cache-\w+.arrow, which would be read as rows: delete them"):
        HuggingFace(name=str(tmp_path / "dict")).loaded  # noqa: B018


@pytest.mark.parametrize("fields", [{"name": "none/such"}, {"split": "tset"}])
def test_what_cannot_be_loaded(fields: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    write(tmp_path / "train.jsonl")
    source = HuggingFace(**{"name": str(tmp_path), "streaming": True, **fields})
    with pytest.raises(ConfigError, match=r"could not be loaded: .*With no network, give a local folder") as caught:
        source.held_out(1, 0)
    assert "\n" not in str(caught.value)
