"""What happened to each answer between two measurements, as columns that add up over resampled questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.scorecard.bootstrap import Array, Stratum, ratio, resample
from experiments.scorecard.pairing import Pair, chosen, number

COUNTS = ("n", "before", "after", "lost", "won", "chance", "guess", "chosen", "flipped", "eligible", "corrected")
CORRECTED = "persistence_corrected"  # shown by `aa_floor` alone, beside the floor
Sums = dict[tuple[Stratum, str], Array]  # (stratum, form) -> (1 + draws, len(COUNTS))


def counts(before: tuple[int, str | None], after: tuple[int, str | None], k: int) -> list[float]:
    """COUNTS of one answer. before, after: (correct, text of the option chosen); k: number of options, 0 if none.

    lost: right -> wrong; won: wrong -> right. chance 1/k, guess 1/(k-1). chosen: 1 where both choices are known; of
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
    """COUNTS summed over resampled questions, by (stratum, form)."""
    questions: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for before, after in pairs:
        questions[after.task, after.item][after.form] = counts(
            (number(before, "correct"), chosen(before)),
            (number(after, "correct"), chosen(after)),
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
    """COUNTS summed over strata and forms, each (1 + draws,)."""
    return dict(zip(COUNTS, np.sum(list(sums.values()), axis=0).T, strict=True))


def flip_figures(t: dict[str, Array]) -> dict[str, Array]:
    """Flips by name, each (1 + draws,); see `scorecard`. Those over choices only where there are any.

    samplewise_forgetting = max(n10/n - G, 0), samplewise_backward = max(n01/n - G, 0) with the share of flips that
    guessing alone explains, G = (1 - a0)(1 - a)/(k - 1) (arXiv 2510.17776; the mean of 1/(k - 1) where k differs).
    """
    guessed = (1 - t["before"] / t["n"]) * (1 - t["after"] / t["n"]) * t["guess"] / t["n"]
    figures = {
        "nfr": t["lost"] / t["n"],
        "pfr": t["won"] / t["n"],
        "samplewise_forgetting": np.maximum(t["lost"] / t["n"] - guessed, 0),
        "samplewise_backward": np.maximum(t["won"] / t["n"] - guessed, 0),
    }
    if t["chosen"][0]:
        figures["nfr_mc"] = ratio(t["flipped"], t["chosen"])
    if t["eligible"][0]:
        figures[CORRECTED] = ratio(t["corrected"], t["eligible"])
    return figures


def questions_in(pairs: Iterable[Pair]) -> int:
    return len({(after.task, after.item) for _, after in pairs})


def changed_questions(pairs: Iterable[Pair]) -> tuple[int, int]:
    """Questions with more forms lost than won, and with more won than lost."""
    change: Counter[tuple[str, str]] = Counter()
    for before, after in pairs:
        change[after.task, after.item] += number(after, "correct") - number(before, "correct")
    return sum(c < 0 for c in change.values()), sum(c > 0 for c in change.values())
