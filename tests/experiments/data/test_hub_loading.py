"""Data sets come from the package `datasets` with the texts of their files, and its errors in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from experiments.common.errors import ConfigError
from experiments.data.cells import BadRow
from experiments.data.files import LocalFile
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
def test_whole_numbers_of_json_keep_their_digits_or_are_refused(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package makes a column one type: of 2.5 in another row, 9007199254740993 becomes 9007199254740992.0."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    big = {"ints": [2**53 + 1, 3], "mixed": [2**53 + 1, 2.5]}
    for name, answers in big.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [{"question": f"q{n}", "answer": n} for n in answers])
        source = HuggingFace(name=str(tmp_path / name), streaming=streaming)
        if name == "ints":
            assert {e.answer for e in source.stored() if isinstance(e, Item)} == set(map(str, answers))
            continue
        with pytest.raises(
            BadRow, match=r"'answer' holds \d.*, a number above 2\^53, .*: read the files with \{source"
        ):
            list(source.stored())
        file = LocalFile(path=str(tmp_path / name))
        assert [e.answer for e in file.examples if isinstance(e, Item)] == list(map(str, answers))


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


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_another_file_of_the_same_time_is_not_read_from_the_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library goes by the time of a local file, which images and archives set: the old rows were trained on."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "data" / f"train.{kind}"
    file.parent.mkdir()

    def answer(word: str, time: int) -> str:
        rows = Dataset.from_list([{"question": f"Q{i}", "answer": word} for i in range(3)])
        {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](file)
        os.utime(file, (time, time))
        return str(HuggingFace(name=str(file.parent)).loaded[0]["answer"])

    assert [answer("old", 1), answer("old", 1)] == ["old", "old"]
    with pytest.raises(ConfigError, match=rf"train\.{kind} is another file .* has the same time, .* touch .*{kind}$"):
        answer("new", 1)
    assert answer("new", 2) == "new"


@pytest.mark.parametrize("named", ["../private.jsonl", "ABSOLUTE", ["train.jsonl", "../*.jsonl"]])
def test_the_card_of_a_folder_names_no_files_of_elsewhere(
    named: str | list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, private = tmp_path / "data", tmp_path / "private.jsonl"
    folder.mkdir()
    for file in (folder / "train.jsonl", private):
        file.write_text('{"question": "Q", "answer": "a"}\n')
    files = str(private) if named == "ABSOLUTE" else named
    card = {"configs": [{"config_name": "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    for streaming in (False, True):
        with pytest.raises(ConfigError, match=r"its README\.md names .*private\.jsonl, which is not in this folder"):
            HuggingFace(name=str(folder), streaming=streaming).loaded  # noqa: B018
    assert HuggingFace(name=str(folder), files=("../private.jsonl",)).loaded.num_rows == 1
    (folder / "README.md").unlink()
    (folder / "train-2.jsonl").symlink_to(private)  # which whoever made the folder put there
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, tmp_path / "link"):
        assert HuggingFace(name=str(name)).loaded.num_rows == 2
