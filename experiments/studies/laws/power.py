"""A power law of two quantities and a constant: loss = a R^s T^t + b, and its least squares fit.

For given (s, t) the law is linear in (a, b), so only s and t are searched (variable projection, Golub & Pereyra 1973)
by scipy's least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]
STEEPEST = 6.0  # bound of |s| and |t|
FLATTEST = 0.05  # of |s|: below it R^s is nearly constant, and a and b cannot be separated
STARTS = (-1.5, -0.4, 0.4, 1.0, 2.5)


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
        """Find the largest R in [0, 1] with loss(R, tokens) <= most; NaN if no ratio is that low."""
        if self(1.0, tokens) <= most:
            return 1.0
        scale = self.a * (tokens / self.unit) ** self.t
        if scale * self.s <= 0:  # the loss falls with R and is still too high at R = 1
            return float("nan")
        power = (most - self.b) / scale  # R^s may be at most this if s > 0, at least this if s < 0
        if power <= 0:
            return float("nan") if self.s > 0 else 1.0
        return float(min(1.0, power ** (1 / self.s)))


def power_law(
    ratio: Array, tokens: Array, loss: Array, starts: tuple[tuple[float, float], ...] | None = None
) -> PowerLaw:
    """Fit a R^s (T/max T)^t + b by least squares; t is 0 for fewer than 3 different T. All arrays (n,).

    starts: (s, t) to search from. |s| is between 0.05 and 6: the search is done once for rising and once for falling.
    """
    horizon = len(np.unique(tokens)) >= 3
    unit = float(tokens.max())
    logs = np.log(ratio), np.log(tokens / unit)

    def solve(power: Array) -> tuple[float, float, Array]:
        """Fit the straight line loss = a x + b in x = R^s (T/unit)^t; returns a, b and the residuals."""
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
