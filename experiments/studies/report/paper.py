"""Our table next to the paper's (Control LLM, arXiv 2501.10979): ranks, their agreement, and sentences on both.

The paper's figures are facts to compare with: `paper_table5.csv` holds four columns of its tables 5 and 1 (full
tuning is in both). Model, task and scale differ, so orders of arms are compared, never values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from experiments.records import Estimate
from experiments.reporting.summary import overlap
from experiments.reporting.text import with_interval
from experiments.studies.config import StudyConfig
from experiments.studies.selection import ReportRow, arm_name, mean_result
from experiments.studies.trial_results import result_of
from experiments.studies.trials import Trial

TABLE = Path(__file__).parent / "paper_table5.csv"
PAIRS = (  # in the paper's tables the first keeps more of its abilities than the second
    ("lerp8-mse", "full"),
    ("partial", "full"),
    ("stack", "full"),
    ("hybrid", "stack"),
    ("lerp8-mse", "lerp8"),
    ("lerp8-cosine", "lerp8"),
    ("dlerp8", "lerp8"),
    ("dlerp8", "dlerp8-mse"),
    ("lerp8-mse", "plerp8"),
    ("lerp8-mse", "lerp16-mse"),
)
DRAWS = 10_000
FEW = 8  # arms: of fewer, draws with replacement repeat too many


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of one column over the arms in both tables; interval: bootstrap over arms."""

    column: str
    rho: Estimate
    arms: int


def paper_table() -> pd.DataFrame:
    """Read the paper's rows: new = mean of MathHard and GSM8K, kept = mean of GPQA and MMLU, average = of all (%)."""
    table = pd.read_csv(TABLE).set_index("arm")
    new, kept = table[["math_hard", "gsm8k"]].mean(axis=1), table[["gpqa", "mmlu"]].mean(axis=1)
    return pd.DataFrame({"new": new, "kept": kept, "average": (new + kept) / 2})


def compared(arms: Sequence[ReportRow]) -> pd.DataFrame:
    """Join the arms of both tables: our and the paper's new, kept and average (%), and their ranks, 1 the highest."""
    paper, rows = paper_table(), {}
    for arm in arms:
        card = arm.result.scorecard
        if arm.name in paper.index and {"new_accuracy", "kept_accuracy"} <= set(card):
            new, kept = 100 * card["new_accuracy"].value, 100 * card["kept_accuracy"].value
            rows[arm.name] = {"new": new, "kept": kept, "average": (new + kept) / 2}
    ours = pd.DataFrame.from_dict(rows, orient="index", columns=["new", "kept", "average"])
    theirs = paper.loc[ours.index]
    parts = [ours.add_prefix("our_"), theirs.add_prefix("paper_")]
    ranks = [part.rank(ascending=False, method="average").add_suffix("_rank") for part in parts]
    return pd.concat([*parts, *ranks], axis=1)


def agreement(table: pd.DataFrame, seed: int = 0) -> list[Agreement]:
    """Compute the rank agreement of each column. No interval below five arms; none at all below three."""
    if len(table) < 3:
        return []
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(table), size=(DRAWS, len(table)))
    found = []
    for column in ("new", "kept", "average"):
        ours, theirs = (table[f"{who}_{column}"].to_numpy(float) for who in ("our", "paper"))
        rho = float(spearman(ours[None], theirs[None])[0])
        drawn = spearman(ours[rows], theirs[rows])
        found.append(Agreement(column, _with_ends(rho, drawn[np.isfinite(drawn)], len(table)), len(table)))
    return found


def _with_ends(rho: float, drawn: np.ndarray, arms: int) -> Estimate:
    """Give a rank correlation the interval of its draws; of few arms or one order the wider of it and a closed one.

    Draws of the same order in both tables are all 1. The closed one is Fisher's z with the variance
    (1 + rho^2 / 2) / (n - 3) (Bonett & Wright 2000, doi:10.1007/BF02294183), rho at most 1 - 1 / n^2.
    """
    if arms < 5 or len(drawn) <= 0.9 * DRAWS:
        return Estimate(rho)
    low, high = np.percentile(drawn, [2.5, 97.5])
    if arms < FEW or abs(rho) > 1 - 1 / arms**2:
        inside = float(np.clip(rho, 1 / arms**2 - 1, 1 - 1 / arms**2))
        half = 1.96 * np.sqrt((1 + inside**2 / 2) / (arms - 3))
        low, high = min(low, np.tanh(np.arctanh(inside) - half)), max(high, np.tanh(np.arctanh(inside) + half))
    return Estimate(rho, float(low), float(high))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks, row by row: (rows, n) -> (rows,). NaN if a row is constant."""
    rx, ry = (rankdata(values, axis=1) for values in (x, y))
    rx, ry = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (rx, ry))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rx * ry).sum(axis=1) / np.sqrt((rx**2).sum(axis=1) * (ry**2).sum(axis=1))


def sentences(arms: Sequence[ReportRow]) -> list[str]:
    """Say what agrees with the paper and what does not."""
    table = compared(arms)
    words = {"new": "new-task accuracy", "kept": "kept accuracy", "average": "the average of both"}
    said = [
        f"Rank agreement with the paper in {words[a.column]}, over {a.arms} arms: Spearman {with_interval(a.rho)}"
        + (" (bootstrap over arms)" if a.rho.low is not None else "")
        + (_verdict(a.rho) if a.rho.low is not None else "")
        for a in agreement(table)
    ]
    return said + _pairs(arms, table, ("agree", "unclear", "differ")) + _moved(table)


def at_each(study: StudyConfig, trials: Sequence[Trial]) -> list[str]:
    """Compare kept accuracy with the paper's, every arm at the same pick of `report.select`: a sentence per pick.

    Of all items, since nothing is chosen. At its best learning rate an arm may forget as little as any other; one rate
    for all shows which arms break first.
    """
    select, said = study.report.select, []
    done = [t for t in trials if t.state == "complete" and t.runs and select in t.picks]
    for pick in dict.fromkeys(t.picks[str(select)] for t in done):
        arms = [
            ReportRow(arm_name(study, t), t, t.runs, mean_result([result_of(run) for run in t.runs]), 1, False, False)
            for t in done
            if t.picks[str(select)] == pick
        ]
        table = compared(arms)
        rho = next((a.rho for a in agreement(table) if a.column == "kept"), None)
        if rho is not None and rho.low is not None:
            at = f"{pick:g}" if isinstance(pick, float) else pick
            text = f"With all {len(table)} arms at {select}={at}: Spearman in kept accuracy {with_interval(rho)}"
            said.append(" ".join([text + _verdict(rho), *_pairs(arms, table, ("agree", "differ"))]))
    return said


def _verdict(rho: Estimate) -> str:
    if rho.low is not None and rho.low > 0:
        return ": the orders agree, beyond the interval."
    if rho.high is not None and rho.high < 0:
        return ": the orders are opposed, beyond the interval."
    return ": no agreement beyond the interval."


def _pairs(arms: Sequence[ReportRow], table: pd.DataFrame, kinds: Sequence[str]) -> list[str]:
    """List the pairs of the paper that agree here, differ, or are unclear: a sentence for each kind that has some."""
    ours = {arm.name: arm.result.scorecard["kept_accuracy"] for arm in arms if arm.name in table.index}
    groups: dict[str, list[str]] = {"agree": [], "unclear": [], "differ": []}
    for more, less in PAIRS:
        if more in ours and less in ours:
            unclear = overlap(ours[more], ours[less])
            same = (ours[more].value > ours[less].value) == (table.paper_kept[more] > table.paper_kept[less])
            groups["unclear" if unclear else "agree" if same else "differ"].append(f"{more} against {less}")
    titles = {
        "agree": "Who keeps more, as in the paper and outside the intervals",
        "unclear": "It is open who keeps more, the intervals overlap",
        "differ": "Who keeps more is the other way round than in the paper, outside the intervals",
    }
    return [f"{titles[kind]}: {', '.join(groups[kind])}." for kind in kinds if groups[kind]]


def _moved(table: pd.DataFrame) -> list[str]:
    """List the arms whose rank in kept accuracy differs by more than a quarter of the table."""
    if len(table) < 4:
        return []
    change = table.our_kept_rank - table.paper_kept_rank
    far = change[change.abs() > len(table) / 4].sort_values()
    up, down = (list(itertools.compress(far.index, mask)) for mask in (far < 0, far > 0))
    said = [f"Further up in kept accuracy here than in the paper: {', '.join(up)}."] if up else []
    return said + ([f"Further down: {', '.join(down)}."] if down else [])
