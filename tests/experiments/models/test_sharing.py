"""Parts of a measurement are computed once, by the processes in turn, and all of them get all results in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from experiments.models.sharing import Sharing, each, in_order, once, shared

COUNT = 3


def in_processes(work: Callable[[int], Any]) -> list[Any]:
    """What each of COUNT processes returns, threads here; or the error that it meets."""
    barrier, sent, results = threading.Barrier(COUNT), dict[tuple[str, int], Any](), dict[int, Any]()

    def run(index: int) -> None:
        def gather(name: str, found: list[Any], fault: Exception | None) -> list[list[Any]]:
            sent[name, index] = fault or found
            barrier.wait(10)
            answers = [sent[name, other] for other in range(COUNT)]
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

        with shared(Sharing(index, COUNT, gather)):
            try:
                results[index] = work(index)
            except Exception as error:
                results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [results[index] for index in range(COUNT)]


def test_one_process_does_all_parts_in_order() -> None:
    seen: list[int] = []
    assert each([1, 2, 3], lambda part: part * part, seen.append, lambda part: 10 * part) == [1, 4, 9]
    assert seen == [10, 20, 30]
    assert once(lambda: "x") == "x"


def test_parts_go_round_and_all_processes_get_all_results() -> None:
    done: list[tuple[int, str]] = []

    def work(index: int) -> Any:
        def one(part: str) -> str:
            done.append((index, part))
            return part.upper()

        seen: list[int] = []
        first = each(list("abcd"), one, seen.append, lambda part: 5)
        return first, each(list("e"), one), each(list("fg"), one), once(lambda: one("h")), each([], one), sum(seen)

    assert in_processes(work) == [(list("ABCD"), ["E"], ["F", "G"], "H", [], 20)] * COUNT
    owners = {part: index for index, part in done}
    assert len(done) == 8
    assert [owners[part] for part in "abcdefgh"] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
        1,
    ]  # a call of one part is not always the first's


def test_an_error_of_one_process_is_that_of_all() -> None:
    def work(index: int) -> Any:
        return each([0, 1, 2, 3], lambda part: 1 // (part - 1))

    assert [str(error) for error in in_processes(work)] == ["integer division or modulo by zero"] * COUNT


def test_all_do_what_needs_passes_of_all() -> None:
    """Parameters in shards: what each does alone would wait for the others."""
    waited: list[int] = []
    with shared(Sharing(0, 2, lambda name, found, fault: [found, ["theirs"]], lambda: waited.append(1))):
        assert once(lambda: "mine") == "mine"
        assert not waited
        assert each([0, 1], lambda part: "own") == ["own", "theirs"]
    assert waited == [1]
    assert each([0], lambda part: "alone") == ["alone"]  # outside of the block


def test_results_are_put_back_in_order() -> None:
    assert in_order([[2, 0], [1]], [["c", "a"], ["b"]]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="shorter"):
        in_order([[0, 1]], [["a"]])
