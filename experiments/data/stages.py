"""A stream of tasks: the ends of its stages, what each draws from, and the source that replays earlier tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from experiments.data.mixture import Part
from experiments.data.source import Source


class Earlier(Source):
    """The earlier tasks of a stream, for `data.old`: their training examples from the first one on, in the same order.

    So what is replayed has been trained on before, unless more is replayed than that. The tasks have the same
    proportions as in the stream. In the first stage nothing is replayed: the share goes to the task itself.
    """

    source: Literal["earlier"] = "earlier"

    @property
    def label(self) -> str:
        return "earlier tasks"


def check_stream(new: Sequence[Source], old: Sequence[Source], sequential: bool) -> None:
    """Raise ValueError if `new` cannot form a stream, or if `old` replays earlier tasks and there is no stream."""
    if any(isinstance(source, Earlier) for source in new):
        raise ValueError("new: source earlier replays the tasks of new; it belongs under old")
    if not sequential:
        if any(isinstance(source, Earlier) for source in old):
            raise ValueError("old: source earlier needs stages that come one after the other: set order: sequential")
        return
    names = [source.label for source in new]
    if len(names) < 2:
        raise ValueError(f"order: sequential needs two or more sources under new, but got {names[0]} alone")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"order: sequential needs different names, but {twice[0]} appears more than once under new: merge them, "
            "or take other tasks"
        )


def stage_ends(new: Sequence[Source], steps: int) -> tuple[int, ...]:
    """Return the last step of each stage: round(steps x sum of the shares of `new` so far).

    Raises ValueError if a stage would have no step.
    """
    sums = list(itertools.accumulate(source.share for source in new))
    ends = (*(round(steps * total) for total in sums[:-1]), steps)
    for source, start, end in zip(new, (0, *ends), ends, strict=False):
        if end <= start:
            raise ValueError(
                f"training.steps={steps} leaves no step for the stage {source.label} (share {source.share:.3g}): give "
                "more steps, or a larger share"
            )
    return ends


def stage_parts(new: Sequence[Source], old: Sequence[Source], replay: float, sequential: bool) -> list[Part]:
    """Return the sources of each stage with their shares of its tokens. replay: share of `old`."""
    if not sequential:
        return [
            *(Part(source, (1 - replay) * source.share, False) for source in new),
            *(Part(source, replay * source.share, True) for source in old),
        ]
    return [part for stage in range(len(new)) for part in _parts_of(stage, new, old, replay)]


def _parts_of(stage: int, new: Sequence[Source], old: Sequence[Source], replay: float) -> list[Part]:
    given = [Part(source, replay * source.share, True, stage) for source in old if not isinstance(source, Earlier)]
    again = replay * sum(source.share for source in old if isinstance(source, Earlier))
    before = new[:stage]
    total = sum(source.share for source in before)
    given += [Part(source, again * source.share / total, True, stage) for source in before]
    return [Part(new[stage], 1.0 - sum(part.share for part in given), False, stage), *given]
