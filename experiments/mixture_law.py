"""The data-mixture law: loss as a power of the share of new-domain tokens, and the largest share that is safe.

L(R, T) = a R^s T^t + b, one fit per loss; R in (0, 1]: share of new-domain tokens, T: tokens trained, t = 0 where the
table has fewer than 3 values of T, which leaves L(R) = a R^s + b (arXiv 2407.17467). For given (s, t) the law is linear
in (a, b), so only s and t are searched (variable projection, Golub & Pereyra 1973) by scipy's least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from experiments.records import Estimate

Array = NDArray[np.float64]
COLUMNS = ("ratio", "tokens", "loss_new", "loss_kept")
LEAST = 5  # different ratios
STEEPEST = 6.0  # bound of |s| and |t|
FLATTEST = 0.05  # of |s|: below it R^s is a constant and a and b cannot be told apart
STARTS = (-1.5, -0.4, 0.4, 1.0, 2.5)


class TooFewRatios(ValueError):
    """The table cannot carry a fit; the message says how many ratios there are."""


@dataclass(frozen=True)
class PowerLaw:
    """loss(R, T) = a R^s (T / unit)^t + b, in nats per token. unit: the longest T of the fit, so that a is in nats."""

    a: float
    s: float
    t: float
    b: float
    unit: float

    def __call__(self, ratio: Array | float, tokens: Array | float) -> Array:
        scale = (np.asarray(tokens, dtype=np.float64) / self.unit) ** self.t
        return np.asarray(self.a * np.asarray(ratio, dtype=np.float64) ** self.s * scale + self.b)

    def largest_ratio(self, most: float, tokens: float) -> float:
        """The largest R in [0, 1] with loss(R, tokens) <= most; NaN where no ratio is that low."""
        if self(1.0, tokens) <= most:
            return 1.0
        scale = self.a * (tokens / self.unit) ** self.t
        if scale * self.s <= 0:  # the loss falls with R and is still too high at R = 1
            return float("nan")
        power = (most - self.b) / scale  # R^s may be at most this where s > 0, at least this where s < 0
        if power <= 0:
            return float("nan") if self.s > 0 else 1.0
        return float(min(1.0, power ** (1 / self.s)))


@dataclass(frozen=True)
class MixtureLaw:
    """What `fit` found. new, kept: the laws; new_draws, kept_draws: those of resampled residuals.

    critical_ratio: the largest R whose kept loss at `tokens` (the longest T) stays within epsilon of base_kept, with
    its 95 % interval; NaN where none does. errors: root mean squared and largest error in nats on what was held out,
    by `ratio new`, `ratio kept` (each ratio left out in turn), `horizon new`, `horizon kept` (the longest T left out).
    """

    table: pd.DataFrame
    new: PowerLaw
    kept: PowerLaw
    new_draws: tuple[PowerLaw, ...]
    kept_draws: tuple[PowerLaw, ...]
    base_kept: float
    epsilon: float
    tokens: float
    critical_ratio: Estimate
    errors: dict[str, tuple[float, float]]

    def band(self, kind: str, ratios: Array) -> tuple[Array, Array]:
        """The 95 % band of a law at the longest T. kind: `new` or `kept`."""
        draws = self.new_draws if kind == "new" else self.kept_draws
        low, high = np.percentile([law(ratios, self.tokens) for law in draws], [2.5, 97.5], axis=0)
        return low, high


def fit(
    table: pd.DataFrame, base_kept: float | None = None, epsilon: float = 0.05, draws: int = 200, seed: int = 0
) -> MixtureLaw:
    """Fit both losses. table: columns ratio, tokens, loss_new, loss_kept; a row for each run and horizon.

    base_kept: the base model's kept loss; default: the mean of rows with tokens 0. epsilon: nats that it may rise.
    Rows with ratio 0 or tokens 0 are not fitted: R^s has no value at 0 for a falling law.
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
    used = table[(table["tokens"] > 0) & (table["ratio"] > 0)][list(COLUMNS)].astype(float)
    finite: pd.DataFrame = used.replace([np.inf, -np.inf], np.nan).dropna().reset_index(drop=True)
    count = finite["ratio"].nunique()
    if count < LEAST:
        raise TooFewRatios(f"a mixture law needs at least {LEAST} different ratios above 0, but the table has {count}")
    tokens = float(finite["tokens"].max())
    rng = np.random.default_rng(seed)
    (new, new_draws), (kept, kept_draws) = (_with_draws(finite, f"loss_{kind}", draws, rng) for kind in ("new", "kept"))
    most = base_kept + epsilon
    found = np.array([law.largest_ratio(most, tokens) for law in kept_draws])
    value = kept.largest_ratio(most, tokens)
    critical = _interval(value, np.nan_to_num(found, nan=0.0))
    errors = {f"{what} {kind}": e for kind in ("new", "kept") for what, e in _held_out(finite, f"loss_{kind}").items()}
    return MixtureLaw(finite, new, kept, new_draws, kept_draws, base_kept, epsilon, tokens, critical, errors)


def _interval(value: float, found: Array) -> Estimate:
    """A draw in which no ratio is safe counts as 0."""
    if not np.isfinite(value):
        return Estimate(float("nan"))
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _with_draws(
    table: pd.DataFrame, column: str, draws: int, rng: np.random.Generator
) -> tuple[PowerLaw, tuple[PowerLaw, ...]]:
    """The law and those of the bootstrap: residuals drawn anew around the fitted values, widened by sqrt(n/(n - p))
    for the p parameters that were fitted, each refitted from the law found."""
    ratio, tokens, loss = (table[name].to_numpy() for name in ("ratio", "tokens", column))
    law = power_law(ratio, tokens, loss)
    centre = law(ratio, tokens)
    free = 4 if table["tokens"].nunique() >= 3 else 3
    residuals = (loss - centre) * np.sqrt(len(loss) / max(1, len(loss) - free))
    residuals -= residuals.mean()
    again = [rng.choice(residuals, len(loss)) + centre for _ in range(draws)]
    return law, tuple(power_law(ratio, tokens, values, starts=((law.s, law.t),)) for values in again)


def power_law(
    ratio: Array, tokens: Array, loss: Array, starts: tuple[tuple[float, float], ...] | None = None
) -> PowerLaw:
    """Least squares fit of a R^s (T/max T)^t + b; t is 0 for fewer than 3 different T. All arrays (n,).

    starts: (s, t) to search from. |s| is between 0.05 and 6: the search is done once for rising and once for falling.
    """
    horizon = len(np.unique(tokens)) >= 3
    unit = float(tokens.max())
    logs = np.log(ratio), np.log(tokens / unit)

    def solve(power: Array) -> tuple[float, float, Array]:
        """The straight line loss = a x + b in x = R^s (T/unit)^t, and its residuals."""
        x = np.exp(power[0] * logs[0] + (power[1] * logs[1] if horizon else 0.0))
        top = x.max()
        away = x / top - (x / top).mean()
        slope = away @ (loss - loss.mean()) / (away @ away)
        return slope / top, loss.mean() - slope * (x / top).mean(), loss.mean() + slope * away - loss

    found = []
    for s, t in starts or tuple((s, 0.5 if horizon else 0.0) for s in STARTS):
        low, high = (FLATTEST, STEEPEST) if s > 0 else (-STEEPEST, -FLATTEST)
        box = ([low, -STEEPEST], [high, STEEPEST]) if horizon else ([low], [high])
        first = np.clip([s, t][: 2 if horizon else 1], *box)
        found.append(least_squares(lambda power: solve(power)[2], first, bounds=box, x_scale=0.3))
    best = min(found, key=lambda result: result.cost)
    a, b, _ = solve(best.x)
    return PowerLaw(float(a), float(best.x[0]), float(best.x[1]) if horizon else 0.0, float(b), unit)


def _held_out(table: pd.DataFrame, column: str) -> dict[str, tuple[float, float]]:
    """(root mean square, largest) error on ratios and on the horizon that the fit did not see."""

    def errors(seen: pd.DataFrame, unseen: pd.DataFrame) -> Array:
        law = power_law(seen["ratio"].to_numpy(), seen["tokens"].to_numpy(), seen[column].to_numpy())
        return np.asarray(law(unseen["ratio"].to_numpy(), unseen["tokens"].to_numpy()) - unseen[column].to_numpy())

    ratios = [errors(table[table["ratio"] != r], table[table["ratio"] == r]) for r in table["ratio"].unique()]
    found = {"ratio": np.concatenate(ratios)}
    last = table["tokens"] == table["tokens"].max()
    if table.loc[~last, "tokens"].nunique() >= 3:
        found["horizon"] = errors(table[~last], table[last])
    return {what: (float(np.sqrt((e**2).mean())), float(np.abs(e).max())) for what, e in found.items()}
