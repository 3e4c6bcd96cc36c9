"""The mixture law of each arm of a study that searches the replayed share: its table, a sentence, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.mixture_law import STEEPEST, MixtureLaw, TooFewRatios, fit
from experiments.plots.mixture_law import LOSS, plot_law
from experiments.records import Record, read_records
from experiments.studies.config import StudyConfig
from experiments.studies.selection import Arm, arm_name, record_files
from experiments.studies.trial import result_of

COLUMNS = ["arm", "ratio", "tokens", "loss_new", "loss_kept", "base_kept", "nats"]
WRONG = "share of wrong answers"


def mixture_laws(
    study: StudyConfig, arms: Sequence[Arm], root: Path, draws: int = 200
) -> tuple[list[str], dict[str, Figure]]:
    """A sentence and a picture per arm, fitted over the replayed shares `report.law`; one law never spans two arms."""
    sentences: list[str] = []
    pictures: dict[str, Figure] = {}
    for name, table in law_table(study, arms, root).groupby("arm", sort=False):
        try:
            # One number of steps, so one horizon: tokens differ a little with the lengths of replayed rows.
            law = fit(table.assign(tokens=table.tokens.mean()), float(table.base_kept.mean()), draws=draws)
        except TooFewRatios as error:
            sentences.append(f"No mixture law of {name}: {error}.")
            continue
        nats = bool(table.nats.all())
        sentences.append(law_sentence(str(name), law, nats))
        pictures[str(name)] = plot_law(law, LOSS if nats else WRONG)
    return sentences, pictures


def law_table(study: StudyConfig, arms: Sequence[Arm], root: Path) -> pd.DataFrame:
    """A row per run whose item records are here. Columns: arm, ratio (share of new tokens, 1 - replay), tokens,
    loss_new, loss_kept, base_kept, nats.

    loss_kept, base_kept: of the general text, after training and before, nats per token. loss_new: of the new task's
    text, nats per token; where it has questions instead, whose answers have no likelihood, the share of wrong answers,
    and nats is False.
    """
    rows = []
    for arm in arms:
        share = arm.trial.picks.get(study.report.law or "")
        if not isinstance(share, int | float) or arm.result.operation:
            continue
        for run in arm.runs:
            files = record_files(run, root)
            if not all(path.is_file() for path in files):
                continue
            before, after = (read_records(path) for path in files)
            new = nll(after, "new")
            answers = [record.correct for record in after if record.suite == "new" and record.correct is not None]
            wrong = 1 - sum(answers) / len(answers) if answers else math.nan
            loss = wrong if math.isnan(new) else new
            tokens = result_of(run).cost.get("tokens", math.nan)
            name = arm_name(study, arm.trial, study.report.law)
            rows.append([name, 1 - share, tokens, loss, nll(after, "text"), nll(before, "text"), not math.isnan(new)])
    return pd.DataFrame(rows, columns=COLUMNS)


def nll(records: Sequence[Record], suite: str) -> float:
    """Mean negative log-likelihood of a suite's texts, weighted by tokens; NaN where it has none."""
    used = [(r.value, r.tokens) for r in records if r.suite == suite and r.form == "nll"]
    known = [(value, tokens) for value, tokens in used if value is not None and tokens]
    return math.fsum(v * t for v, t in known) / sum(t for _, t in known) if known else math.nan


def law_sentence(name: str, law: MixtureLaw, nats: bool) -> str:
    """How much replay the law asks for, what it costs on the new task, and how far it can be trusted."""
    low, high = law.table["ratio"].min(), law.table["ratio"].max()
    within = f"within {law.epsilon:g} nats per token of the base's"
    critical = law.critical_ratio
    if not np.isfinite(critical.value) or critical.value < low:
        said = f"no replayed share up to {1 - low:.0%} keeps the loss of general text {within}"
    elif critical.value >= 1:
        said = f"the loss of general text stays {within} even without replay"
    else:
        said = f"replaying {1 - critical.value:.0%} or more{_bracket(law)} keeps the loss of general text {within}"
    change = float(law.new(low, law.tokens) - law.new(high, law.tokens))
    unit = "nats per token" if nats else "in the share of wrong answers (its answers have no likelihood here)"
    errors = f"{law.errors['ratio kept'][0]:.3f} nats (general text) and {law.errors['ratio new'][0]:.3f} (new task)"
    laws = {"general text": law.kept, "new task": law.new}
    at_bound = [what for what, part in laws.items() if abs(part.s) > 0.999 * STEEPEST]
    doubt = (
        f" The exponent of {' and '.join(at_bound)} ended at its bound: no power law fits there." if at_bound else ""
    )
    return (
        f"Mixture law of {name}: {said}. From a replay of {1 - high:.0%} to {1 - low:.0%} the loss on the new task "
        f"changes by {change:+.3f} {unit}. Shares that the fit had not seen were missed by {errors}.{doubt}"
    )


def _bracket(law: MixtureLaw) -> str:
    low, high = law.critical_ratio.low, law.critical_ratio.high
    return "" if low is None or high is None else f" [{1 - high:.0%},{1 - low:.0%}]"
