"""Work on all cores: in order, with errors, and without reading ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from experiments.common.errors import ConfigError
from experiments.common.spread import cores, spread


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_are_in_order(workers: int | None) -> None:
    offset = 7  # functions need not be picklable
    assert list(spread(lambda n: (n + offset, n * n), range(20), workers)) == [(n + 7, n * n) for n in range(20)]
    assert list(spread(lambda n: n, [], workers)) == []


def test_other_processes_do_the_work() -> None:
    assert cores() >= 1
    assert os.getpid() not in set(spread(lambda n: os.getpid(), range(8), 2))
    assert set(spread(lambda n: os.getpid(), range(8), 1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_after_the_results_before_it(workers: int) -> None:
    def check(n: int) -> int:
        if n >= 3:
            raise ConfigError(f"row {n}")
        return n

    found = []
    with pytest.raises(ConfigError, match=r"^row 3$"):
        found.extend(n for n in spread(check, range(50), workers))
    seen = spread(check, range(50), workers)
    assert [next(seen) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"^row 3$"):
        next(seen)


def test_few_chunks_are_read_ahead() -> None:
    read: list[int] = []

    def chunks() -> Iterator[int]:
        for n in range(1000):
            read.append(n)
            yield n

    results = spread(lambda n: n, chunks(), 2)
    assert next(results) == 0
    assert len(read) <= 6
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= 6


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        list(spread(lambda n: os._exit(1), range(3), 2))
