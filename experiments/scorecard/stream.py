"""Figures of a stream: T tasks learned one after the other, all of them measured after each stage."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import (
    Array,
    Stratum,
    check_draws,
    estimate,
    lost_degrees,
    of_highest,
    resample,
    student_factor,
)
from experiments.scorecard.flips import UNSEEN, answers_key
from experiments.scorecard.pairing import by_key, require


def stream_figures(scores: Array) -> dict[str, Array]:
    """Compute the figures of suite `stream` from scores (T + 1, T, ...): R[t, j], row 0 before any training.

    Formulas: `figures.FIGURES` (Lopez-Paz & Ranzato 2017, arXiv 1706.08840; Chaudhry et al. 2018, arXiv 1801.10112).
    Raises ValueError for another shape, or fewer than 2 tasks.
    """
    scores = np.asarray(scores, dtype=np.float64)
    tasks = scores.shape[1] if scores.ndim > 1 else 0
    if tasks < 2 or scores.shape[0] != tasks + 1:
        raise ValueError(f"R needs T + 1 rows (row 0: untrained) and T >= 2 columns, but got shape {scores.shape}")
    last = scores[tasks]
    earlier = range(tasks - 1)
    answers = scores.reshape(*scores.shape[:2], -1)[..., 0].min() >= 0  # not -NLL of texts
    fall = np.mean([scores[1:tasks, j].max(axis=0) - last[j] for j in earlier], axis=0)
    return {
        "stream_op": last.mean(axis=0).clip(0, 1) if answers else last.mean(axis=0),
        "stream_bwt": np.mean([last[j] - scores[j + 1, j] for j in earlier], axis=0),
        "stream_f": of_highest(fall) if fall.ndim and tasks > 2 else fall,
        "stream_fwt": np.mean([scores[j, j] - scores[0, j] for j in range(1, tasks)], axis=0),
    }


def stream(
    stages: Sequence[Sequence[Record]], tasks: Sequence[str], draws: int = 10_000, seed: int = 0
) -> dict[str, Estimate]:
    """Compute `stream_figures` with intervals from item records; arguments and errors as in `stream_matrix`."""
    return {n: estimate(values) for n, values in stream_figures(stream_matrix(stages, tasks, draws, seed)).items()}


def stream_matrix(
    stages: Sequence[Sequence[Record]], tasks: Sequence[str], draws: int = 10_000, seed: int = 0
) -> Array:
    """Compute R of `stream_figures` from item records: (T + 1, T, 1 + draws).

    The items of a task are resampled for all stages at once. Draws count answers that flipped between two stages and
    that the sample missed (`_unseen`), as those of `flips.with_unseen`; texts are few, as in `bootstrap.weighted`. The
    score is the accuracy of a task with answers, and -NLL
    in nats per token of a task of texts. stages: records of the untrained model, then after each stage. tasks: names in
    the order of learning; records of other tasks, and of suites without a score, are not used. Raises ValueError if a
    stage lacks a task or item, or if answers and texts would be averaged.
    """
    check_draws(draws)
    if len(stages) != len(tasks) + 1:
        raise ValueError(
            f"{len(tasks)} tasks need {len(tasks) + 1} stages, the untrained model first: got {len(stages)}"
        )
    texts = {task for task in tasks if any(r.task == task and r.form == "nll" for r in stages[0])}
    if texts and len(texts) < len(tasks):
        raise ValueError(
            f"answers and texts have no common scale, but {sorted(texts)[0]!r} is a text and others are not"
        )
    matrix, arm = np.empty((len(stages), len(tasks), 1 + draws)), answers_key(*stages)
    for j, task in enumerate(tasks):
        found = [by_key([r for r in stage if r.task == task and _scored(r)], "stage") for stage in stages]
        if not found[0] or any(stage.keys() != found[0].keys() for stage in found):
            raise ValueError(
                f"task {task!r} was not measured on the same items at every stage: evaluate it at each one"
            )
        questions: dict[tuple[Stratum, str], list[list[float]]] = {}
        for key in sorted(found[0]):
            weight = _weight(found[0][key])
            row = [weight * _score(stage[key]) for stage in found]
            questions.setdefault(((task, ()), key[3]), []).append([weight, *row])
        columns = {question: np.sum(rows, axis=0) for question, rows in questions.items()}
        sums = resample(columns, draws, seed)[task, ()]
        own = matrix[:, j]
        own[:] = (sums[:, 1:] / sums[:, :1]).T
        if task in texts:
            factor = student_factor(len(columns), lost=lost_degrees(np.array([row[0] for row in columns.values()])))
            own[:, 1:] = own[:, :1] + factor * (own[:, 1:] - own[:, :1])
        else:
            rng = np.random.default_rng([seed, arm, zlib.crc32(task.encode())])
            own[:, 1:] += _unseen(rng, len(stages), draws) / len(columns)
    return matrix


def _unseen(rng: np.random.Generator, stages: int, draws: int) -> Array:
    """Draw how many more right answers each stage would have among those that the sample missed: (stages, draws).

    Between any two stages that is a gamma number of mean UNSEEN won less one lost, as in `flips.with_unseen`. Without
    it a task of 20 questions of which none flipped would have a transfer of `0.00 [0.00,0.00]`.
    """
    return np.asarray(rng.standard_gamma(UNSEEN, (stages, draws)) * rng.choice([-1.0, 1.0], draws))


def _scored(record: Record) -> bool:
    return record.correct is not None or record.form == "nll"


def _score(record: Record) -> float:
    return -float(require(record, "value")) if record.form == "nll" else float(require(record, "correct"))


def _weight(record: Record) -> float:
    """Weigh a text by its tokens, an answer by 1."""
    return float(require(record, "tokens")) if record.form == "nll" else 1.0
