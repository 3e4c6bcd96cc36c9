"""Large tables on disk: the same examples, order, digest and faults as in memory, and read once."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.items import Example, Item, Text, chat
from experiments.data.source import Source
from experiments.data.stored import Stored, packed, unpacked
from tests.helpers.question_files import write

TURNS = [{"role": role, "content": f"{role} \u2028 {i}"} for i in range(2) for role in ("user", "assistant")]
TOOL = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "stock"}}]}
EXAMPLES = [
    Item("a?", "1"),
    Item("a?", "1", solution="so", ended=False),
    Item("a?", "b", {"options": ("a", "b"), "tests": "assert 1 == 1\n", "more": [1.5, None, {"x": True}]}),
    Text("once"),
    Text("once", "module", ended=False),
    chat(TURNS, place="a.jsonl, line 7"),
    chat(TURNS, [TOOL], place="here", context=2),
    chat([*TURNS[:1], {**TURNS[1], "reasoning_content": "hm"}]),
    chat([TURNS[0], CALL], [TOOL]),
]
TABLES: dict[str, list[dict[str, Any]]] = {
    "questions": [{"question": f"q{i % 20}", "answer": str(i % 40)} for i in range(90)],  # some rows repeat
    "chats": [{"messages": [{"role": "system", "content": f"s{i % 3}"}, *TURNS[:2], {**TURNS[2], "content": f"{i}"},
                            TURNS[3]], "tools": [TOOL] * (i % 2)} for i in range(30)],
    "texts": [{"text": f"once {i}"} for i in range(30)],
    "graded": [{"question": f"q{i}", "answer": "B", "options": [f"a{i}", "b"], "by": None} for i in range(30)],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("experiments.data.columns.PART", 7)
    monkeypatch.setattr("experiments.common.spread.cores", lambda: 1)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("files", "hub"):
        monkeypatch.setattr(f"experiments.data.{place}.LARGE", 0)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_read_as_it_was_written(example: Example) -> None:
    one = packed(example)
    again = unpacked(one.row)
    assert again == example
    assert (repr(again), again.id) == (one.text, one.ids.split()[0])
    assert getattr(again, "metadata", None) == getattr(example, "metadata", None)
    assert getattr(again, "place", None) == getattr(example, "place", None)
    assert set(one.ids.split()) == set(getattr(example, "ids", {example.id}))


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 1), float("nan"), len])
def test_values_for_a_grader_that_are_no_literals_are_not_stored(value: Any) -> None:
    with pytest.raises(TypeError, match="values for a grader that are no literals"):
        packed(Item("a?", "1", {"tests": value}))


def sources(kind: str, table: str, folder: Path, rows: list[dict[str, Any]] | None = None, **fields: Any) -> Any:
    """Make new sources of one kind over the same table."""
    file = folder / "data" / ("train.parquet" if kind == "parquet" else "train.jsonl")
    if not file.exists():
        write(file, rows or TABLES[table])
    if kind == "huggingface":
        return HuggingFace(name=str(file.parent), **fields)
    return LocalFile(path=str(file), **fields)


def facts(source: Source) -> dict[str, Any]:
    """All that a run asks of a source."""
    task = source.held_out(5, 0)
    return {
        "digest": source.digest(), "size": source.size, "notes": source.notes, "recognised": source.recognised,
        "task": task, "ids": task.ids, "more": source.held_out(9, 3), "stored": list(source.stored()),
        "epochs": [list(source.epoch(n, 0, task.ids)) for n in (0, 1)],
    }  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
@pytest.mark.parametrize("test", [None, {"share": 0.3}])
def test_a_large_table_is_as_a_small_one(
    kind: str, table: str, test: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fields = ({"test": test} if test else {}) | ({"grader": "choice"} if table == "graded" else {})
    small = sources(kind, table, tmp_path, **fields)
    wanted = facts(small)
    assert small.table is None
    request.getfixturevalue("large")
    found = sources(kind, table, tmp_path, **fields)
    assert isinstance(found.table, Stored)
    assert facts(found) == wanted
    order = found.order(0, 0, wanted["ids"])
    assert [found.table[i] for i in order] == wanted["epochs"][0]
    assert len(list(found.table[2:4])) == 2
    assert list(copy.deepcopy(found).table) == list(found.table)


@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
@pytest.mark.usefixtures("large")
def test_it_is_read_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = facts(sources(kind, "chats", tmp_path))

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patched:
        patched.setattr("experiments.data.columns.Columns.usable", never)
        assert facts(sources(kind, "chats", tmp_path)) == wanted
        with pytest.raises(AssertionError, match="read again"):  # another reading of its columns is another table
            _ = sources(kind, "chats", tmp_path, messages="messages").table
    for file in tmp_path.glob("cache/tables/*/rows.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    assert facts(sources(kind, "chats", tmp_path)) == wanted  # a damaged file is made again


@pytest.mark.usefixtures("large")
def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    before = sources("jsonl", "questions", tmp_path).digest()
    write(tmp_path / "data" / "train.jsonl", TABLES["questions"][:30])
    assert sources("jsonl", "questions", tmp_path).digest() != before


@pytest.mark.parametrize("kind", ["jsonl", "huggingface"])
def test_faults_are_said_as_of_a_small_one(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rows = [{"question": f"q{i}", "answer": None if i in (20, 24) else str(i)} for i in range(30)]
    said = []
    for fixture in (None, "large"):
        if fixture:
            request.getfixturevalue(fixture)
        with pytest.raises(ConfigError, match=r"(line|row) 21: column 'answer' is empty") as caught:
            sources(kind, "", tmp_path, rows).held_out(1, 0)
        passed = facts(sources(kind, "", tmp_path, rows, skip_bad_rows=True))
        assert passed["size"] == 28
        said.append((str(caught.value), passed))
    assert said[0] == said[1]
    (tmp_path / "data" / "train.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(ConfigError, match="has no known shape"):
        sources(kind, "", tmp_path).held_out(1, 0)


@pytest.mark.usefixtures("large")
def test_what_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"q{i}", "answer": "B", "when": datetime.date(2026, 1, 1)} for i in range(9)]
    (tmp_path / "own.py").write_text("def grade(reply, entry):\n    return 1.0\n")
    own = {f"{tmp_path / 'own.py'}:grade": {"columns": ["when"]}}
    graded = sources("parquet", "", tmp_path, rows, grader=own)
    assert graded.table is None
    assert len(graded.examples) == 9
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert LocalFile(path=str(tmp_path / "a.txt")).table is None
    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path / "a.txt"))  # no folder can be made there
    assert len(sources("parquet", "", tmp_path, question="question", answer="answer").examples) == 9


def test_all_cores_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    wanted = facts(sources("jsonl", "questions", tmp_path))
    request.getfixturevalue("large")
    monkeypatch.setattr("experiments.common.spread.cores", lambda: 2)
    assert facts(sources("jsonl", "questions", tmp_path)) == wanted
    (note,) = tmp_path.glob("cache/tables/*/note.json")
    assert json.loads(note.read_text())["examples"] == wanted["size"] < 90


def test_the_rows_of_another_table_are_not_believed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A whole entry of the cache, under another name."""
    request.getfixturevalue("large")
    wanted = list(sources("jsonl", "texts", tmp_path).table)
    (own,) = (path.parent for path in tmp_path.rglob("rows.arrow"))
    (tmp_path / "more" / "data").mkdir(parents=True)
    list(sources("jsonl", "questions", tmp_path / "more").table)
    (other,) = (path.parent for path in tmp_path.rglob("rows.arrow") if path.parent != own)
    shutil.copytree(other, own, dirs_exist_ok=True)
    assert list(sources("jsonl", "texts", tmp_path).table) == wanted


@pytest.mark.parametrize("damage", ["NUL", "a byte", "another table", "gone", "of an earlier version"])
def test_a_stored_table_that_was_changed_is_made_again(
    damage: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("large")
    wanted = list(sources("jsonl", "texts", tmp_path).table)
    (rows,) = tmp_path.rglob("rows.arrow")
    data = rows.read_bytes()
    changed = {
        "NUL": bytes(len(data)),
        "a byte": data.replace(b"once 3", b"onXe 3"),
        "another table": data[: len(data) // 2] + data[len(data) // 2 :][::-1],
    }.get(damage)
    if damage == "of an earlier version":
        note = rows.with_name("note.json")
        note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "rows"}))
    elif changed is None:
        rows.unlink()
    else:
        assert changed != data
        rows.write_bytes(changed)
    assert list(sources("jsonl", "texts", tmp_path).table) == wanted
