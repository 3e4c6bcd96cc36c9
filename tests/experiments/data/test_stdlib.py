"""The standard library as a corpus: what is in it, and a split by module."""

from __future__ import annotations

import sys

import pytest

from experiments.common.errors import ConfigError
from experiments.common.hashing import text_id
from experiments.data.items import Text
from experiments.data.stdlib import PythonLibrary

SOME = ("json", "email", "html", "wave", "heapq", "bisect", "queue", "sched", "ast", "copy", "csv", "dis")


def texts(source: PythonLibrary, held_out_ids: frozenset[str] = frozenset()) -> list[Text]:
    return [example for example in source.epoch(0, 0, held_out_ids) if isinstance(example, Text)]


def test_the_whole_library_is_a_corpus_without_tests() -> None:
    found = texts(PythonLibrary())
    groups = {text.group for text in found}
    assert len(groups) > 100
    assert groups <= sys.stdlib_module_names
    assert sum(len(text.text) for text in found) > 3_000_000
    assert "test" not in groups


def test_a_document_is_the_source_of_a_module() -> None:
    import bisect
    import inspect

    assert [text.text for text in texts(PythonLibrary(modules=("bisect",)))] == [inspect.getsource(bisect)]


def test_the_split_is_by_module() -> None:
    source = PythonLibrary(modules=SOME)
    for seed in range(12):
        task = source.held_out(2, seed)
        (group,) = {text.group for text in texts(source) if text.text in task.documents}
        assert task.ids == {text_id(group)}
        trained = {text.group for text in texts(source, task.ids)}
        assert trained == set(SOME) - {group}
        assert len(task.documents) == min(2, sum(text.group == group for text in texts(source)))


def test_other_modules_other_digest() -> None:
    assert PythonLibrary(modules=("json",)).digest() != PythonLibrary(modules=("html",)).digest()


def test_unknown_module_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no source of 'jsn' in the standard library; did you mean 'json'\?"):
        PythonLibrary(modules=("jsn",)).held_out(1, 0)


def test_one_module_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match=r"1 module cannot be split into training and held-out data"):
        PythonLibrary(modules=("json",)).held_out(1, 0)
