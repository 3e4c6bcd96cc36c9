"""Further readings of a study for its report: retention at matched gain, hypervolume, the mixture law.

Each returns a sentence (empty where it does not apply) and a figure or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.records import Estimate, read_records
from experiments.studies.attempts import Trial
from experiments.studies.selection import Arm
from experiments.studies.trial import result_of
from experiments.summary import number

if TYPE_CHECKING:
    from experiments.studies.engine import Store

Reading = tuple[str, Any]
NOTHING: Reading = ("", None)
MOST = 12  # arms that a sentence lists


def matched_gain(arms: Sequence[Arm], root: Path) -> Reading:
    """Each arm's retention where its trajectory first reaches the highest gain that all arms reach."""
    paths = {arm.name: path for arm in arms if (path := _path(arm))}
    if len(paths) < 2 or len(paths) < len(arms):
        return NOTHING
    target = min(max(gain for gain, _ in path) for path in paths.values())
    if target <= 0:
        return NOTHING
    kept = {name: _retention_at(path, target) for name, path in paths.items()}
    ranked = sorted(kept, key=lambda name: -kept[name])
    more = f" and {len(ranked) - MOST} more" if len(ranked) > MOST else ""
    listed = ", ".join(f"{name} {number(kept[name])}" for name in ranked[:MOST]) + more
    return f"Retention at a common gain of {number(target, True)} (interpolated, no interval): {listed}.", None


def pareto_volume(store: Store, trials: Sequence[Trial]) -> Reading:
    """Area that the trials dominate, with two objectives; the reference is the worst value of each over the trials."""
    objectives = store.config.objectives
    points = np.array([t.values for t in trials if t.values and t.feasible])
    if len(objectives) != 2 or len(points) < 2:
        return NOTHING
    signs = np.array([1 if o.direction == "maximize" else -1 for o in objectives])
    reference = (points * signs).min(axis=0)
    at = ", ".join(f"{o.figure} {r * s:.3g}" for o, r, s in zip(objectives, reference, signs, strict=True))
    front = len(store.front())
    volume = hypervolume(points * signs, reference)
    return f"{front} of {len(points)} trials are on the Pareto front; hypervolume {volume:.4g} above {at}.", None


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Area dominated by points (n, 2), both to be high: sum over descending x of (x - next x) * best y so far."""
    above = np.clip(points - reference, 0, None)
    above = above[np.argsort(-above[:, 0], kind="stable")]
    widths = above[:, 0] - np.append(above[1:, 0], 0)
    return float(widths @ np.maximum.accumulate(above[:, 1]))


def mixture_law(store: Store, trials: Sequence[Trial], root: Path) -> Reading:
    """The fit of `experiments.mixture_law` over the replayed shares of all complete trials."""
    if store.config.report.law is None:
        return NOTHING
    from experiments.mixture_law import fit
    from experiments.plots.mixture_law import plot_law

    try:
        law = fit(law_table(store, trials, root))
    except ValueError as error:
        return f"No mixture law: {error}.", None
    text = "Loss against the share of new text; the line is the fit."
    return str(law), ("law", "The mixture law", text, plot_law(law))


def law_table(store: Store, trials: Sequence[Trial], root: Path) -> pd.DataFrame:
    """Rows: arm, ratio (share of new tokens, 1 - replay), tokens, loss_new, loss_kept (nats per token).

    loss_kept: of the general text, after training. loss_new: of the new text where the new task is text, else the
    share of wrong answers.
    """
    key = store.config.report.law or ""
    rows = []
    for trial in trials:
        for run in trial.runs if trial.state == "complete" else ():
            result, folder = result_of(run), root / run["folder"]
            records = folder / "arms" / f"{result.arm}-{result.learning_rate:g}" / f"items-{result.steps}.jsonl"
            if not records.is_file():
                continue
            found = read_records(records)
            new = _loss([r for r in found if r.suite == "new" and r.form == "nll"])
            wrong = 1 - result.scorecard["new_accuracy"].value if "new_accuracy" in result.scorecard else math.nan
            rows.append({
                "arm": result.arm,
                "ratio": 1 - float(str(trial.picks[key])),
                "tokens": result.cost.get("tokens", math.nan),
                "loss_new": wrong if math.isnan(new) else new,
                "loss_kept": _loss([r for r in found if r.suite == "text"]),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "ratio", "tokens", "loss_new", "loss_kept"])


def _loss(records: Sequence[Any]) -> float:
    tokens = sum(r.tokens for r in records)
    return math.fsum(r.value * r.tokens for r in records) / tokens if tokens else math.nan


def _path(arm: Arm) -> list[tuple[float, float]]:
    pairs = [(p.get("gain"), p.get("retention")) for p in arm.result.trajectory]
    finite = [(g.value, r.value) for g, r in pairs if isinstance(g, Estimate) and isinstance(r, Estimate)]
    return [(g, r) for g, r in finite if math.isfinite(g) and math.isfinite(r)]


def _retention_at(path: Sequence[tuple[float, float]], target: float) -> float:
    """Linear between the two evaluations around the first at which the gain is reached."""
    after = next(i for i, (gain, _) in enumerate(path) if gain >= target)
    if after == 0:
        return path[0][1]
    (g0, r0), (g1, r1) = path[after - 1], path[after]
    return r0 + (r1 - r0) * (target - g0) / (g1 - g0)
