"""The gate: a run passes only if its forgetting is below a margin, by non-inferiority."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from experiments.common.errors import CompareError
from experiments.comparison.folders import ComparedRun
from experiments.records import Estimate
from experiments.reporting.text import figure_text
from experiments.scorecard.card import scorecard
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.inference import non_inferior

NOTHING = "its base answers none of the kept questions, so nothing could be forgotten: look at the base's replies"


def knows_nothing(card: Mapping[str, Estimate]) -> bool:
    """Whether the base answered no kept question: all figures of forgetting are then perfect, whatever happened."""
    return "retention" in card and math.isnan(card["retention"].value)


def is_empty(figure: str, card: Mapping[str, Estimate]) -> bool:
    """Whether a figure is on forgetting, and the base has nothing to forget."""
    row = FIGURES.get(figure) or next((f for f in FIGURES.values() if f.family and figure.startswith(f.prefix)), None)
    return knows_nothing(card) and row is not None and row.suite in ("kept", "floor") and row.unchanged is not None


def gate(run: ComparedRun, margin: float, draws: int = 10_000, seed: int = 0) -> tuple[bool, str]:
    """Test for non-inferiority: passed only if the run finished and its bound of forgetting is below the margin.

    The weights that are there are judged: with `training.keep: best`, or a
    callback's keep_best, those of the best step, not of the last.
    Returns (passed, one line). Raises CompareError if the run or its base has no records of kept tasks, or for a margin
    that is not between 0 and 1.
    """
    if run.fault:
        return False, f"FAIL  {run.name}: {run.fault}"
    try:
        card = scorecard(run.base, run.usable, draws, seed)
        if "forgetting" not in card:
            raise CompareError(f"{run.name} has no records of kept tasks: the gate has nothing to judge")
        bound = card["forgetting_bound"].value
        passed = non_inferior(bound, margin)
    except ValueError as error:
        raise CompareError(str(error)) from error
    if knows_nothing(card):
        return False, f"FAIL  {run.name}: {NOTHING}"
    text = figure_text(card, "forgetting")
    sign = "<" if passed else ">=" if np.isfinite(bound) else "against"
    tasks = sorted({record.task for record in run.usable if record.suite == "kept"})
    step = "" if run.kept is None else f" at step {run.kept}, whose weights were kept,"
    of = (
        f" of {', '.join(tasks[:6])}{f' and {len(tasks) - 6} more' if len(tasks) > 6 else ''}" if len(tasks) > 1 else ""
    )
    verdict = "pass" if passed else "FAIL"
    more = "".join(f"; left out: {reason}" for reason in run.left_out)
    more += f"; {run.remark}" if run.remark and not step else ""  # of kept weights the step is said
    return passed, f"{verdict}  {run.name}: forgetting{step}{of} {text}, bound {bound:.4f} {sign} {margin:g}{more}"


def by_task(run: ComparedRun) -> list[ComparedRun]:
    """Cut what is judged to each kept task alone, for a gate on each: a mean over tasks can hide one."""
    kept = [record for record in run.usable if record.suite == "kept"]
    return [
        replace(
            run,
            name=f"{run.name}, {task}",
            base=[r for r in run.base if r.suite == "kept" and r.task == task],
            checkpoints={1: [r for r in kept if r.task == task]},
            left_out=(),
            remark="",
            kept=None,
        )
        for task in sorted({record.task for record in kept})
    ]
