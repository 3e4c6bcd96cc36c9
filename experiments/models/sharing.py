"""Share the parts of a measurement among the processes of a launch: each computes some, and all get all results.

A part is what goes through the model at once, such as a batch of replies. One process computes the same parts as many
do, so records do not depend on their number: another batch would round in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

P = TypeVar("P")
R = TypeVar("R")
Progress = Callable[[int], object]  # called with the number of items just finished


def no_progress(count: int) -> None:
    """Ignore the progress."""


@dataclass
class Sharing:
    """The processes that share parts, as one of them sees it.

    index: of this process, below `count`. gather: gets a name, the own results and an error of this process or None;
    returns the results of all processes in their order, or raises in all of them. wait: called when the own parts are
    done, in place of `None` if passes of all processes have to keep step (`lockstep.py`). given: parts so far.
    """

    index: int
    count: int
    gather: Callable[[str, list[Any], Exception | None], list[list[Any]]]
    wait: Callable[[], None] | None = None
    given: int = 0


_current: ContextVar[Sharing | None] = ContextVar("sharing", default=None)


@contextmanager
def shared(sharing: Sharing | None) -> Iterator[None]:
    """Share the parts of `each` inside the block; None: this process computes all of them."""
    token = _current.set(sharing)
    try:
        yield
    finally:
        _current.reset(token)


def each(
    parts: Sequence[P],
    work: Callable[[P], R],
    progress: Progress = no_progress,
    size: Callable[[P], int] = lambda part: 1,
) -> list[R]:
    """Return work(part) for each part, in order. All processes call it with the same parts.

    progress: called after each part with its `size`. Results of other processes are pickled, so they should be small.
    Parts go round: the first one of a call belongs to the process after that of the last one before.
    """
    sharing = _current.get()
    if sharing is None or not parts:
        return [_done(part, work, progress, size) for part in parts]
    owners = [(sharing.given + i) % sharing.count for i in range(len(parts))]
    sharing.given += len(parts)
    found: list[R] = []
    fault: Exception | None = None
    try:
        for part, owner in zip(parts, owners, strict=True):
            if owner == sharing.index:
                found.append(_done(part, work, progress, size))
    except Exception as error:  # whatever it is: the others wait for these results
        fault = error
    if sharing.wait:
        sharing.wait()
    results = [iter(one) for one in sharing.gather(f"parts up to {sharing.given}", found, fault)]
    progress(sum(size(part) for part, owner in zip(parts, owners, strict=True) if owner != sharing.index))
    return [next(results[owner]) for owner in owners]


def once(work: Callable[[], R]) -> R:
    """Return work(), done by one of the processes; by all if passes have to keep step, as they hold parts of it."""
    sharing = _current.get()
    if sharing is None or sharing.wait:
        return work()
    return each([work], lambda part: part())[0]


def in_order(parts: Sequence[Sequence[int]], found: Sequence[Sequence[R]]) -> list[R]:
    """Return the results of parts by index: parts[k] are the indices of found[k], each of 0 to n - 1 once."""
    pairs = (pair for part, own in zip(parts, found, strict=True) for pair in zip(part, own, strict=True))
    return [result for _, result in sorted(pairs, key=lambda pair: pair[0])]


def _done(part: P, work: Callable[[P], R], progress: Progress, size: Callable[[P], int]) -> R:
    result = work(part)
    progress(size(part))
    return result
