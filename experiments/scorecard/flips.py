"""Count what happened to each answer between two measurements: columns that add up over resampled questions."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from experiments.records import Record
from experiments.scorecard.bootstrap import Array, Stratum, resample
from experiments.scorecard.pairing import Pair, chosen, require

COUNTS = ("n", "before", "after", "lost", "won", "chance", "guess", "chosen", "flipped", "eligible", "corrected")
UNSEEN = 0.75  # flips of each direction that a sample may have missed: between Jeffreys' 1/2 and the exact bound's 1
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


def with_unseen(totals: Mapping[str, Array], size: float, seed: Sequence[int]) -> dict[str, Array]:
    """Add flips that the sample may have missed to each draw: a gamma number of mean `UNSEEN` lost, and one won.

    For corrected flips also one of moves to another wrong option, which count against those lost.

    With few flips, weights of the questions alone give intervals that are too short, and of no width without a flip. k
    lost answers then vary as gamma(k + UNSEEN), whose ends are close to those of the exact interval of a rare count.
    size: answers that flip together (`flip_size`). Row 0 stays as it is, and so do the base's answers, unless all (or
    none) are right after training: a missed answer that was won was wrong before.
    """
    rows, rng = len(totals["n"]), np.random.default_rng([*seed])
    lost, won, moved = np.zeros((3, rows))
    lost[1:], won[1:] = size * rng.standard_gamma(UNSEEN, (2, rows - 1))
    moved[1:] = size * rng.standard_gamma(UNSEEN, rows - 1)
    after = totals["after"] + won - lost
    inside, before = after.clip(0, totals["n"]), totals["before"]
    least = np.minimum(before, size)  # a base that answered some right has not answered none
    return {
        **totals,
        "before": (before - (after - inside)).clip(least, totals["n"]),
        "lost": totals["lost"] + lost,
        "won": totals["won"] + won,
        "flipped": totals["flipped"] + lost,
        "corrected": totals["corrected"] + _corrected(totals, lost, moved),
        "after": inside,
    }


def _corrected(totals: Mapping[str, Array], lost: Array, moved: Array) -> Array:
    """Correct missed flips as `counts` does those of an answer: q = 1/(k-1), k: options of the eligible answers."""
    if not totals["eligible"][0]:
        return np.zeros_like(lost)
    q = min(0.5, float(totals["guess"][0] / totals["eligible"][0]))
    return (1 + q) * (lost - moved * q / (1 - q))


def flip_size(pairs: Iterable[Pair]) -> float:
    """Estimate how many answers to one question flip together: between 1 and the number of its forms.

    (sum d^2 + f^2) / (sum |d| + f) over the questions, d: answers won - lost, f: the most forms of a question. Without
    a flip it is f.
    """
    net, forms = net_changes(pairs)
    changes = np.abs(np.array(list(net.values()), dtype=float))
    most = max(forms.values())
    return float((np.square(changes).sum() + most**2) / (changes.sum() + most))


def questions_in(pairs: Iterable[Pair]) -> int:
    """Count the questions: the forms of one question are one."""
    return len({(after.task, after.item) for _, after in pairs})


def changed_questions(pairs: Iterable[Pair]) -> tuple[int, int]:
    """Count the questions with more forms lost than won, and those with more won than lost."""
    net, _ = net_changes(pairs)
    return sum(c < 0 for c in net.values()), sum(c > 0 for c in net.values())


def net_changes(pairs: Iterable[Pair]) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Count answers won less those lost, and forms, of each question (task, item)."""
    net: Counter[tuple[str, str]] = Counter()
    forms: Counter[tuple[str, str]] = Counter()
    for before, after in pairs:
        net[after.task, after.item] += require(after, "correct") - require(before, "correct")
        forms[after.task, after.item] += 1
    return net, forms


def distinct_keys(measured: Mapping[str, Iterable[Record]]) -> dict[str, int]:
    """Return the `answers_key` of each arm, another one for an arm that has the answers of an earlier one right.

    The flips that both samples missed would cancel else: two models that answer the same 96 of 120 questions rightly
    would differ by `0.00 [0.00,0.00]`. Arms of the same records, to the last digit, are the same model and share a key.
    """
    keys: dict[int, list[Record]] = {}
    found: dict[str, int] = {}
    for name, records in measured.items():
        own = sorted(records, key=lambda record: record.key)
        key = answers_key(own)
        while keys.setdefault(key, own) != own:
            key = zlib.crc32(key.to_bytes(4, "little"))
        found[name] = key
    return found


def answers_key(*measurements: Iterable[Record]) -> int:
    """Hash the answers of measurements: the seed of what is drawn for one arm alone. The order does not matter."""
    answers = sorted((*r.key, r.correct) for records in measurements for r in records if r.correct is not None)
    return zlib.crc32(repr(answers).encode())
