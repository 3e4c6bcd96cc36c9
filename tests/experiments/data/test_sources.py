"""The contract that every source of the table keeps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from experiments.data.items import Example, Item, NewTask, NewText, Text
from experiments.data.source import Source
from experiments.data.sources import SOURCES, AnySource

NONE: frozenset[str] = frozenset()
MEASURED = [name for name in SOURCES if name not in ("self", "earlier")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def source(request: pytest.FixtureRequest, folder: Path) -> Source:
    fields: dict[str, Any] = {
        "reasoning_gym": {},
        "facts": {"kinds": ("people", "products"), "number": 3},
        "language": {"words": 4, "number": 30},
        "file": {"path": str(folder / "train.jsonl")},
        "huggingface": {"name": str(folder), "streaming": True},
        "python": {"modules": ("json", "email", "html", "wave", "heapq", "bisect", "queue", "sched")},
    }[request.param]
    return SOURCES[request.param](**fields)


def drawn(source: Source, count: int, seed: int = 0, held_out_ids: frozenset[str] = NONE) -> list[Example]:
    return [example for _, example in itertools.islice(source.stream(seed, held_out_ids), count)]


@pytest.mark.parametrize("source", MEASURED, indirect=True)
class TestContract:
    def test_same_seed_same_examples_other_seed_other_order(self, source: Source) -> None:
        assert drawn(source, 8) == drawn(source, 8) != drawn(source, 8, seed=1)
        assert source.held_out(1, 0) == source.held_out(1, 0)
        assert any(source.held_out(1, 0) != source.held_out(1, seed) for seed in (1, 2, 3))

    def test_held_out_examples_are_never_trained_on(self, source: Source) -> None:
        task = source.held_out(4, 0)
        seen = drawn(source, 70, held_out_ids=task.ids)
        assert len(seen) == 70
        assert not {example.id for example in seen} & task.ids
        texts = {example.text if isinstance(example, Text) else example.question for example in seen}
        if isinstance(task, NewText):
            assert not texts & set(task.documents)
        else:
            assert not texts & {item.question for item in task.test}

    def test_more_held_out_examples_begin_with_the_fewer(self, source: Source) -> None:
        few, more = source.held_out(2, 0), source.held_out(4, 0)
        if isinstance(few, NewText) and isinstance(more, NewText):
            assert more.documents[:2] == few.documents[:2] != ()
        elif isinstance(few, NewTask) and isinstance(more, NewTask):
            assert more.test[:2] == few.test
            assert len(more.test) == 4

    def test_epochs(self, source: Source) -> None:
        size = source.size
        epochs = [number for number, _ in itertools.islice(source.stream(0, NONE), 90)]
        if source.source == "reasoning_gym":
            assert epochs == [0] * 90
        else:
            assert epochs == sorted(epochs)
            assert epochs[-1] > 0
            assert size in (None, epochs.count(0))

    def test_digest_changes_with_the_fields_that_change_the_data(self, source: Source) -> None:
        again = type(source)(**source.model_dump())
        assert source.digest() == again.digest()
        assert len(source.digest()) == 16
        assert type(source)(**{**source.model_dump(), "share": 0.5}).digest() == source.digest()

    def test_label_is_short(self, source: Source) -> None:
        assert 0 < len(source.label) < 40


def test_the_table_has_the_names_that_files_use() -> None:
    names = ("reasoning_gym", "file", "huggingface", "python", "self", "earlier")
    assert set(names) <= set(SOURCES)
    for name in names:
        source = {"source": name, "path": "x", "name": "x"}
        fields = {key: value for key, value in source.items() if key in SOURCES[name].model_fields}
        assert type(TypeAdapter(AnySource).validate_python(fields)) is SOURCES[name]


def test_a_question_that_stands_twice_is_one_example(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"question": "a?", "answer": "1"}\n' * 2 + '{"question": "b?", "answer": "2"}\n')
    examples = drawn(SOURCES["file"](path=str(path)), 2)
    assert sorted(e.question for e in examples if isinstance(e, Item)) == ["a?", "b?"]
