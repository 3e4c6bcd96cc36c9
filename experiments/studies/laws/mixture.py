"""The data-mixture law: loss as a power of the share of new-domain tokens and of the tokens trained.

L(R, T) = a R^s T^t + b, one fit per loss; R in (0, 1]: share of new-domain tokens, T: tokens trained. The law gives the
largest share that is safe. If the runs share fewer than 4 values of T (three to fit t and one to see whether it
predicts), only the longest T is fitted and t = 0, which leaves L(R) = a R^s + b (arXiv 2407.17467).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.records import Estimate
from experiments.scorecard.bootstrap import estimate, question_weights, student_factor
from experiments.studies.laws.power import Array, PowerLaw, power_law

COLUMNS = ("ratio", "tokens", "loss_new", "loss_kept")
LEAST = 5  # different ratios
HORIZONS = 4  # values of T
KINDS = ("new", "kept")


class TooFewRatios(ValueError):
    """The table cannot carry a fit; the message says how many ratios there are."""


@dataclass(frozen=True)
class Missed:
    """The errors of fits on data that they had not seen.

    rms: root mean square over the runs, which its interval resamples. largest: of all. plain: the rms of a prediction
    without a law: the mean of the other ratios' runs at that T, or the run's own loss at the T before.
    """

    rms: Estimate
    largest: float
    plain: float


@dataclass(frozen=True)
class MixtureLaw:
    """The result of `fit`. new, kept: the laws; new_draws, kept_draws: the laws of resampled residuals.

    table: the rows that were fitted. horizons: how many T the runs share; t was fitted if they are 4 or more.
    critical_ratio: the largest R whose kept loss at `tokens` (the longest T) stays within epsilon of base_kept, with
    its 95 % interval; NaN if none does. errors: on what was held out, by `ratio new`, `ratio kept` (each ratio left
    out in turn) and, if t was fitted, `horizon new`, `horizon kept` (the longest T left out). predicted: the laws
    without the longest T, by `new` and `kept`; empty if t was not fitted.
    """

    table: pd.DataFrame
    new: PowerLaw
    kept: PowerLaw
    new_draws: tuple[PowerLaw, ...]
    kept_draws: tuple[PowerLaw, ...]
    base_kept: float
    epsilon: float
    tokens: float
    horizons: int
    critical_ratio: Estimate
    errors: dict[str, Missed]
    predicted: dict[str, PowerLaw]

    def draws(self, kind: str) -> tuple[PowerLaw, ...]:
        return self.new_draws if kind == "new" else self.kept_draws

    def band(self, kind: str, ratios: Array) -> tuple[Array, Array]:
        """Compute the 95 % band of a law at the longest T. kind: `new` or `kept`."""
        low, high = np.percentile([law(ratios, self.tokens) for law in self.draws(kind)], [2.5, 97.5], axis=0)
        return low, high

    def exponent(self, kind: str, name: str) -> Estimate:
        """Estimate the exponent `s` (of R) or `t` (of T) of a law with its 95 % interval."""
        law = self.new if kind == "new" else self.kept
        return estimate(np.array([getattr(each, name) for each in (law, *self.draws(kind))]))


def fit(
    table: pd.DataFrame, base_kept: float | None = None, epsilon: float = 0.05, draws: int = 1_000, seed: int = 0
) -> MixtureLaw:
    """Fit both losses. table: columns ratio, tokens, loss_new, loss_kept; a row for each run and horizon.

    A column `run` tells the runs; without it the k-th rows of a ratio at each T are one run. Runs that lack the longest
    T are left out, and so is a T that not all the others have. base_kept: the base model's kept loss; default: the mean
    of rows with tokens 0. epsilon: nats that it may rise. Rows with ratio 0 or tokens 0 are not fitted: R^s has no
    value at 0 for a falling law.
    Raises TooFewRatios below 5 ratios, ValueError for missing columns, an unknown base, or a ratio outside 0 to 1.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"the table needs the columns {', '.join(COLUMNS)}, but lacks {', '.join(missing)}")
    if not table["ratio"].between(0, 1).all():
        raise ValueError(f"ratio is a share between 0 and 1, but got {table['ratio'].min()} to {table['ratio'].max()}")
    if base_kept is None:
        start = table.loc[table["tokens"] == 0, "loss_kept"]
        if start.empty:
            raise ValueError("base_kept is unknown: give the base model's kept loss, or rows with tokens 0")
        base_kept = float(start.mean())
    used, horizons = _fitted(table)
    count = used["ratio"].nunique()
    if count < LEAST:
        raise TooFewRatios(f"a mixture law needs at least {LEAST} different ratios above 0, but the table has {count}")
    tokens = float(used["tokens"].max())
    rng = np.random.default_rng(seed)
    (new, new_draws), (kept, kept_draws) = (_with_draws(used, kind, draws, rng) for kind in KINDS)
    most = base_kept + epsilon
    found = np.array([law.largest_ratio(most, tokens) for law in kept_draws])
    critical = _interval(kept.largest_ratio(most, tokens), np.nan_to_num(found, nan=0.0))
    errors = {f"ratio {kind}": _without_each_ratio(used, kind, rng) for kind in KINDS}
    predicted = {}
    if horizons >= HORIZONS:
        predicted = {kind: _law(used[used["tokens"] < tokens], kind) for kind in KINDS}
        errors |= {f"horizon {kind}": _at_longest(used, predicted[kind], kind, rng) for kind in KINDS}
    return MixtureLaw(
        used, new, kept, new_draws, kept_draws, base_kept, epsilon, tokens, horizons, critical, errors, predicted
    )


def _fitted(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Select the rows to fit, sorted by run and T, and count the T that all runs share."""
    used = table[(table["tokens"] > 0) & (table["ratio"] > 0)].copy()
    if "run" not in used:
        order = used.groupby(["ratio", "tokens"]).cumcount().astype(str)
        used["run"] = used["ratio"].astype(str) + "/" + order
    used[list(COLUMNS)] = used[list(COLUMNS)].astype(float)
    used = used[["run", *COLUMNS]].replace([np.inf, -np.inf], np.nan).dropna()
    last = used["tokens"] == used["tokens"].max()
    used = used[used["run"].isin(used.loc[last, "run"])]
    runs = used.groupby("tokens")["run"].transform("nunique")
    used = used[runs == used["run"].nunique()]
    horizons = int(used["tokens"].nunique())
    if horizons < HORIZONS:
        used = used[used["tokens"] == used["tokens"].max()]
    return used.sort_values(["run", "tokens"]).reset_index(drop=True), horizons


def _interval(value: float, found: Array) -> Estimate:
    """Give the critical ratio its interval, also if it is NaN; a draw without a safe ratio counts as 0."""
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _law(table: pd.DataFrame, kind: str, starts: tuple[tuple[float, float], ...] | None = None) -> PowerLaw:
    ratio, tokens, loss = (table[name].to_numpy() for name in ("ratio", "tokens", f"loss_{kind}"))
    return power_law(ratio, tokens, loss, starts)


def _residuals(table: pd.DataFrame, law: PowerLaw, kind: str) -> Array:
    """Subtract the fit from the measured losses: (runs, horizons)."""
    values = table[f"loss_{kind}"] - law(table["ratio"].to_numpy(), table["tokens"].to_numpy())
    return values.to_numpy().reshape(table["run"].nunique(), -1)


def _with_draws(
    table: pd.DataFrame, kind: str, draws: int, rng: np.random.Generator
) -> tuple[PowerLaw, tuple[PowerLaw, ...]]:
    """Fit the law, and the laws of a bootstrap of residuals around the fitted values.

    The residuals of a run at all T are drawn together, since they go the same way. They are widened by
    sqrt(n / (n - 3)) for the parameters that n runs fix at each T, and from the normal to Student's t of n - 3 degrees
    of freedom: 5 runs do not show how far a run strays. Each fit starts from the law.
    """
    law = _law(table, kind)
    residuals = _residuals(table, law, kind)
    runs = len(residuals)
    centre = table[f"loss_{kind}"] - residuals.ravel()
    residuals = (residuals - residuals.mean()) * np.sqrt(runs / max(1, runs - 3)) * student_factor(max(runs, 4), 3)
    again = [residuals[rng.integers(runs, size=runs)].ravel() for _ in range(draws)]
    laws = (_law(table.assign(**{f"loss_{kind}": centre + drawn}), kind, ((law.s, law.t),)) for drawn in again)
    return law, tuple(laws)


def _without_each_ratio(table: pd.DataFrame, kind: str, rng: np.random.Generator) -> Missed:
    missed, plain = [], []
    for ratio in table["ratio"].unique():
        seen, unseen = table[table["ratio"] != ratio], table[table["ratio"] == ratio]
        missed.append(_residuals(unseen, _law(seen, kind), kind))
        means = unseen["tokens"].map(seen.groupby("tokens")[f"loss_{kind}"].mean())
        plain.append(unseen[f"loss_{kind}"] - means)
    return _missed(np.concatenate(missed), np.concatenate(plain), rng)


def _at_longest(table: pd.DataFrame, law: PowerLaw, kind: str, rng: np.random.Generator) -> Missed:
    last = table[table["tokens"] == table["tokens"].max()]
    losses = table[f"loss_{kind}"].to_numpy().reshape(len(last), -1)
    return _missed(_residuals(last, law, kind), losses[:, -1] - losses[:, -2], rng)


def _missed(errors: Array, plain: Array, rng: np.random.Generator, draws: int = 1_000) -> Missed:
    """Summarise errors (runs, horizons). Runs are few: the deviations of drawn mean squares are widened."""
    squares = (errors**2).mean(axis=1)
    drawn = question_weights(rng, draws, len(squares)) @ squares / len(squares)
    drawn = squares.mean() + student_factor(len(squares)) * (drawn - squares.mean())
    rms = estimate(np.sqrt(np.clip([squares.mean(), *drawn], 0, None)))
    return Missed(rms, float(np.abs(errors).max()), float(np.sqrt((plain**2).mean())))
