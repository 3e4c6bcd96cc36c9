"""Count what happened to each answer between two measurements: columns that add up over resampled questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from experiments.scorecard.bootstrap import Array, Stratum, resample
from experiments.scorecard.pairing import Pair, chosen, require

COUNTS = ("n", "before", "after", "lost", "won", "chance", "guess", "chosen", "flipped", "eligible", "corrected")
Sums: TypeAlias = dict[tuple[Stratum, str], Array]  # (stratum, form) -> (1 + draws, len(COUNTS))


def counts(before: tuple[int, str | None], after: tuple[int, str | None], k: int) -> list[float]:
    """Return the COUNTS of one answer. before, after: (correct, text of the chosen option); k: options, 0 if none.

    lost: right -> wrong; won: wrong -> right. chance 1/k, guess 1/(k-1). chosen: 1 if both choices are known; of
    these, flipped: right -> wrong, or wrong -> another wrong one; and eligible: those with k >= 3, of which corrected
    = k/(k-1) * (lost - moved/(k-2)), moved: wrong -> another wrong one.
    """
    (c0, first), (c, second) = before, after
    lost = c0 * (1 - c)
    known = first is not None and second is not None
    moved = int(known and not c0 and not c and first != second)
    eligible = known and k >= 3
    corrected = k / (k - 1) * (lost - moved / (k - 2)) if eligible else 0.0
    chance, guess = (1 / k if k else 0.0), (1 / (k - 1) if k > 1 else 0.0)
    return [1, c0, c, lost, (1 - c0) * c, chance, guess, known, known * max(lost, moved), eligible, corrected]


def resampled_counts(pairs: Sequence[Pair], draws: int, seed: int) -> Sums:
    """Sum COUNTS over resampled questions, by (stratum, form)."""
    questions: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for before, after in pairs:
        questions[after.task, after.item][after.form] = counts(
            (require(before, "correct"), chosen(before)),
            (require(after, "correct"), chosen(after)),
            len(after.options or ()),
        )
    columns = {
        ((task, tuple(sorted(forms))), item): np.array([forms[form] for form in sorted(forms)], dtype=float).ravel()
        for (task, item), forms in questions.items()
    }
    width = len(COUNTS)
    return {
        (stratum, form): sums[:, width * i : width * (i + 1)]
        for stratum, sums in resample(columns, draws, seed).items()
        for i, form in enumerate(stratum[1])
    }


def total(sums: Mapping[Any, Array]) -> dict[str, Array]:
    """Sum COUNTS over strata and forms, each (1 + draws,)."""
    return dict(zip(COUNTS, np.sum(list(sums.values()), axis=0).T, strict=True))


def questions_in(pairs: Iterable[Pair]) -> int:
    """Count the questions: the forms of one question are one."""
    return len({(after.task, after.item) for _, after in pairs})


def changed_questions(pairs: Iterable[Pair]) -> tuple[int, int]:
    """Count the questions with more forms lost than won, and those with more won than lost."""
    change: Counter[tuple[str, str]] = Counter()
    for before, after in pairs:
        change[after.task, after.item] += require(after, "correct") - require(before, "correct")
    return sum(c < 0 for c in change.values()), sum(c > 0 for c in change.values())
