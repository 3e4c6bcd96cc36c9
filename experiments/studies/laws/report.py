"""The mixture law of each arm of a study that searches the replayed share: its table, a sentence, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.records import Record, read_records
from experiments.reporting.text import format_number, with_interval
from experiments.studies.config import StudyConfig
from experiments.studies.laws.mixture import HORIZONS, MixtureLaw, TooFewRatios, fit
from experiments.studies.laws.plot import LOSS, plot_law
from experiments.studies.laws.power import STEEPEST
from experiments.studies.selection import ReportRow, arm_names
from experiments.studies.trial_results import has_records, record_files, result_of
from experiments.studies.trials import Trial

COLUMNS = ["arm", "run", "ratio", "step", "tokens", "loss_new", "loss_kept", "base_kept", "nats"]
WRONG = "share of wrong answers"
TITLES = {"kept": "general text", "new": "new task"}
PLACES = (3, 2, 2)
LEVEL = ("constant", "constant_with_warmup")  # schedules at which an evaluation on the way is the end of a shorter run


def mixture_laws(
    study: StudyConfig, arms: Sequence[ReportRow], root: Path, draws: int = 1_000
) -> tuple[list[str], dict[str, Figure]]:
    """Fit each arm over the replayed shares `report.law`: a sentence and a picture per arm; no law spans two arms."""
    sentences: list[str] = []
    pictures: dict[str, Figure] = {}
    for name, table in law_table(study, arms, root).groupby("arm", sort=False):
        try:
            # One number of steps, so one horizon: tokens differ with the lengths of replayed rows.
            horizons = table.groupby("step").tokens.transform("mean")
            law = fit(table.assign(tokens=horizons), float(table.base_kept.mean()), study.report.epsilon, draws)
        except TooFewRatios as error:
            sentences.append(f"No mixture law of {name}: {error}.")
            continue
        nats = bool(table.nats.all())
        sentences.append(law_sentence(str(name), law, nats))
        pictures[str(name)] = plot_law(law, LOSS if nats else WRONG)
    return sentences, pictures


def law_table(study: StudyConfig, arms: Sequence[ReportRow], root: Path) -> pd.DataFrame:
    """Make a row per run and evaluation whose item records are here.

    Of a run whose learning rate falls, only the last evaluation counts. Columns: arm, run, ratio (share of new tokens,
    1 - replay), step, tokens, loss_new, loss_kept, base_kept, nats.

    tokens: trained until then, by the steps' share of all. loss_kept, base_kept: of the general text, then and before
    training, nats per token. loss_new: of the new task's text, nats per token; if it has questions instead, whose
    answers have no likelihood, the share of wrong answers, and nats is False.
    """
    rows, names = [], _names_of(study, arms)
    for arm in arms:
        if not isinstance(arm.trial.picks.get(study.report.law or ""), int | float) or arm.result.operation:
            continue
        name = names[_without_share(study, arm.trial)]
        config = study.run_config(arm.trial.picks, arm.trial.number, study.seeds[0])
        schedule, own = config.training.schedule, config.arms[0].replay
        share = config.data.replay if own is None else own  # a pick may be a factor (`times`)
        for run in (run for run in arm.runs if has_records([run], root)):
            result = result_of(run)
            base, _ = record_files(run, root)
            steps = [point["step"] for point in result.trajectory] if schedule in LEVEL else [result.steps]
            for step in filter(None, steps):
                after = record_files(run, root, step)[1]
                if after.is_file():
                    tokens = result.cost.get("tokens", math.nan) * step / result.steps
                    rows.append([name, run["folder"], 1 - share, step, tokens, *losses(base, after)])
    return pd.DataFrame(rows, columns=COLUMNS)


def _without_share(study: StudyConfig, trial: Trial) -> tuple[object, ...]:
    """Return the picks of a trial but for the share: those of an arm, which one law describes."""
    own = (study.report.law, study.report.select)
    return tuple(pick for dimension, pick in trial.picks.items() if dimension not in own)


def _names_of(study: StudyConfig, arms: Sequence[ReportRow]) -> dict[tuple[object, ...], str]:
    first: dict[tuple[object, ...], Trial] = {}
    for arm in arms:
        first.setdefault(_without_share(study, arm.trial), arm.trial)
    return dict(zip(first, arm_names(study, list(first.values()), study.report.law), strict=True))


def losses(base: Path, after: Path) -> tuple[float, float, float, bool]:
    """loss_new, loss_kept, base_kept and nats of `law_table`, from item records."""
    start, records = read_records(base), read_records(after)
    new = nll(records, "new")
    answers = [record.correct for record in records if record.suite == "new" and record.correct is not None]
    wrong = 1 - sum(answers) / len(answers) if answers else math.nan
    return wrong if math.isnan(new) else new, nll(records, "text"), nll(start, "text"), not math.isnan(new)


def nll(records: Sequence[Record], suite: str) -> float:
    """Average the negative log-likelihood of a suite's texts, weighted by tokens; NaN without any."""
    used = [(r.value, r.tokens) for r in records if r.suite == suite and r.form == "nll"]
    known = [(value, tokens) for value, tokens in used if value is not None and tokens]
    return math.fsum(v * t for v, t in known) / sum(t for _, t in known) if known else math.nan


def law_sentence(name: str, law: MixtureLaw, nats: bool) -> str:
    """Say how much replay the law asks for, what it costs on the new task, and how far it can be trusted."""
    low, high = law.table["ratio"].min(), law.table["ratio"].max()
    within = f"within {law.epsilon:g} nats per token of the base's"
    critical = law.critical_ratio
    if not np.isfinite(critical.value) or critical.value < low:
        said = f"no replayed share up to {1 - low:.0%} keeps the loss of general text {within}{_needed(law)}"
    elif critical.value >= 1:
        said = f"the loss of general text stays {within} even without replay{_needed(law)}"
    else:
        said = f"replaying {1 - critical.value:.0%} or more{_bracket(law)} keeps the loss of general text {within}"
    change = float(law.new(low, law.tokens) - law.new(high, law.tokens))
    unit = "nats per token" if nats else "in the share of wrong answers (its answers have no likelihood here)"
    laws = {"general text": law.kept, "new task": law.new}
    at_bound = [what for what, part in laws.items() if max(abs(part.s), abs(part.t)) > 0.999 * STEEPEST]
    doubt = (
        f" The exponent of {' and '.join(at_bound)} ended at its bound: no power law fits there." if at_bound else ""
    )
    return (
        f"Mixture law of {name}: {said}. From a replay of {1 - high:.0%} to {1 - low:.0%} the loss on the new task "
        f"changes by {change:+.3f} {unit}. Shares that the fit had not seen were missed by "
        f"{_missed(law, 'ratio', 'the mean of the others')} {_horizon(law)}{doubt}"
    )


def _horizon(law: MixtureLaw) -> str:
    if not law.predicted:
        return (
            f"The law has no term in tokens: that takes {HORIZONS} evaluations of each run at a constant learning "
            f"rate, and here is {law.horizons}."
        )
    exponents = " and ".join(f"{with_interval(law.exponent(kind, 't'))} ({title})" for kind, title in TITLES.items())
    return (
        f"With the tokens T trained, losses go as T to the power of {exponents}. The last of {law.horizons} "
        f"evaluations, which the fit had not seen, was missed by {_missed(law, 'horizon', 'the one before')}"
    )


def _missed(law: MixtureLaw, what: str, plain: str) -> str:
    """Compare the errors on held-out data with those of a prediction without a law."""
    missed = {title: law.errors[f"{what} {kind}"] for kind, title in TITLES.items()}
    texts = [
        f"{with_interval(m.rms, places=PLACES)}{' nats' if title == TITLES['kept'] else ''} "
        f"({title}; {format_number(m.plain, places=PLACES)} by {plain})"
        for title, m in missed.items()
    ]
    better = [title for title, m in missed.items() if m.rms.high is not None and m.rms.high < m.plain]
    return f"{' and '.join(texts)}: the law does better, beyond the interval, for {' and '.join(better) or 'neither'}."


def _needed(law: MixtureLaw) -> str:
    bracket = _bracket(law)
    return f" (95 % interval of the share that is needed:{bracket})" if bracket else ""


def _bracket(law: MixtureLaw) -> str:
    low, high = law.critical_ratio.low, law.critical_ratio.high
    return "" if low is None or high is None else f" [{1 - high:.0%},{1 - low:.0%}]"
