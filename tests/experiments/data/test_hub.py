"""Datasets of the Hugging Face hub, from local folders: columns, digest, faults."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.config import load_config
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.items import Item, NewTask
from tests.helpers.question_files import COLUMNS, ROWS, write


class TestDatasets:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_local_folder_by_columns(self, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        data = tmp_path / "data"
        data.mkdir()
        write(data / "train-00000-of-00002.jsonl")
        source = HuggingFace(name=str(data), streaming=streaming, **COLUMNS)
        assert source.notes[-1].startswith("1 of 2 parts of the data are not here, such as train-00001-of-00002")
        task = source.held_out(2, 0)
        assert isinstance(task, NewTask)
        drawn = [e for _, e in itertools.islice(source.stream(0, task.ids), 12)]
        assert {e.question for e in drawn if isinstance(e, Item)} == {r["ask"] for r in ROWS} - {
            i.question for i in task.test
        }
        assert drawn[:4] != drawn[4:8]
        assert source.size == (None if streaming else 6)
        with pytest.raises(ConfigError, match=r"has 6 distinct rows, but 7 are to be held out"):
            source.held_out(7, 0)

    def test_streamed_files_that_changed_are_known_by_their_origin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The digest of a stream has no content: a run that goes on must not read other rows without a word."""
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        data = tmp_path / "data"
        data.mkdir()
        write(data / "train.jsonl")

        def origin(**fields: Any) -> str:
            return HuggingFace(name=str(data), **{"streaming": True, **COLUMNS, **fields}).origin

        before = origin()
        assert before
        assert origin() == before == origin(split="train[:3]")
        assert origin(streaming=False) == origin(split="none") == ""
        write(data / "train.jsonl", [*ROWS, ROWS[0]])
        assert origin() not in (before, "")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("files", ["https://bob:S3CRET@host/a.jsonl"]),
            ("files", ["https://host/a.jsonl", "https://host/b.jsonl?token=S3CRET"]),
            ("name", "https://bob:S3CRET@host/data"),
        ],
    )
    def test_a_password_in_an_address_is_refused(self, field: str, value: Any) -> None:
        """It would be in config.yaml, in MLflow's params, and in the archive of a study."""
        with pytest.raises(ValueError, match=r"\*\*\*.* has a password or a token.*: download the file") as refused:
            HuggingFace(**{"name": "json", **COLUMNS, field: value})
        assert "S3CRET" not in "".join(one["msg"] for one in refused.value.errors())  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=r"data\.new.*has a password or a token"):
            load_config("quickstart", {"data.new": {"source": "huggingface", "name": "json", **COLUMNS, field: value}})

    @pytest.mark.parametrize("streaming", [False, True])
    def test_files_choose_a_part_of_a_data_set(
        self, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        for part in ("a-cn", "b-cn", "c-en"):
            (tmp_path / "set" / "data" / part).mkdir(parents=True)
            write(
                tmp_path / "set" / "data" / part / "train.jsonl",
                [{"question": f"{part} {i}", "answer": "x"} for i in "12"],
            )
        source = HuggingFace(name=str(tmp_path / "set"), files=("data/a-cn/*", "data/b-cn/*"), streaming=streaming)
        found = {example.question for example in source.epoch(0, 0, frozenset()) if isinstance(example, Item)}
        assert found == {"a-cn 1", "a-cn 2", "b-cn 1", "b-cn 2"}
        whole = HuggingFace(name=str(tmp_path / "set"), streaming=streaming)
        assert whole.digest() != source.digest()
        assert "files" not in whole.model_dump()

    def test_words_for_an_empty_cell_are_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        rows = [{"question": f"q{i}", "answer": "NULL" if i % 3 else str(i)} for i in range(6)]
        name = str(write(tmp_path / "data" / "train.jsonl", rows).parent)
        said = "4 cells of column 'answer' with the text 'NULL': it is learned as text"
        assert [note.partition(", but")[0] for note in HuggingFace(name=name).notes] == [said]
        streamed = HuggingFace(name=name, streaming=True)
        with pytest.warns(UserWarning, match="1 cell of column 'answer' with the text 'NULL'"):
            assert len(list(streamed.epoch(0, 0, frozenset()))) == 6

    def test_bad_rows_are_found_at_the_start_or_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        rows = [{"question": f"q{i}", "answer": None if i == 23 else str(i)} for i in range(30)]
        name = str(write(tmp_path / "data" / "train.jsonl", rows).parent)
        with pytest.raises(ConfigError, match=r"split train, row 24: column 'answer' is empty.*skip_bad_rows"):
            HuggingFace(name=name).held_out(1, 0)
        source = HuggingFace(name=name, skip_bad_rows=True)
        assert source.notes == [f"1 row passed over (dataset {name}, split train, row 24: column 'answer' is empty)"]
        assert len(list(source.epoch(0, 0, frozenset()))) == source.size == 29
        streamed = HuggingFace(name=name, skip_bad_rows=True, streaming=True)
        with pytest.warns(UserWarning, match=r"passed over: dataset .*column 'answer' is empty"):
            assert len(list(streamed.epoch(0, 0, frozenset()))) == 29
        with pytest.raises(ConfigError, match=r"column 'answer' is empty"):
            list(HuggingFace(name=name, streaming=True).epoch(0, 0, frozenset()))

    def test_dates_that_pyarrow_makes_of_texts_have_a_way_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Passing over such rows would pass over all of them."""
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        data = tmp_path / "data"
        data.mkdir()
        path = write(data / "a.jsonl", [{"question": f"q{i}", "answer": f"2020-01-0{i}"} for i in range(1, 5)])
        with pytest.raises(ConfigError, match=r"holds a datetime, which is no text: write dates as texts; source file"):
            HuggingFace(name=str(data)).held_out(1, 0)
        read = LocalFile(path=str(path)).examples
        assert {e.answer for e in read if isinstance(e, Item)} == {f"2020-01-0{i}" for i in range(1, 5)}

    def test_columns_are_joined(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        rows = [{"instruction": f"i{i}", "input": "" if i % 2 else "x", "output": str(i)} for i in range(4)]
        name = str(write(tmp_path / "data" / "train.jsonl", rows).parent)
        source = HuggingFace(name=name, question="{instruction}\n{input}", answer="output")
        found = {e.question for e in source.epoch(0, 0, frozenset()) if isinstance(e, Item)}
        assert found == {"i0\nx", "i1", "i2\nx", "i3"}

    def test_a_digest_follows_the_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        digests = []
        for number, rows in enumerate((ROWS, ROWS[:3])):
            write(tmp_path / str(number) / "train.jsonl", rows)
            digests.append(
                (
                    LocalFile(path=str(tmp_path / str(number) / "train.jsonl"), **COLUMNS).digest(),
                    HuggingFace(name=str(tmp_path / str(number)), **COLUMNS).digest(),
                )
            )
        assert digests[0][0] != digests[1][0]
        assert digests[0][1] != digests[1][1]

    def test_wrong_columns_list_what_there_is(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl")
        with pytest.raises(ConfigError, match=r"split train has no column 'question': known: ask, reply, steps"):
            HuggingFace(name=str(tmp_path), streaming=True, answer="reply").held_out(1, 0)
        with pytest.raises(ConfigError, match=r"split train has no known shape \(its columns: ask, reply, steps"):
            HuggingFace(name=str(tmp_path), streaming=True).held_out(1, 0)
