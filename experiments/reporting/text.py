"""Write figures, learning rates and names of arms as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.records import ArmResult, Estimate
from experiments.scorecard.card import GAINS

Places = tuple[int, int, int]


RATE: Places = (2, 2, 2)


UNITS = {"gain": "", "new_nll_drop": " nats per token"}  # behind a gain in a sentence; accuracy has none


def rate_text(rate: float) -> str:
    """A learning rate: `3e-4`, `2.5e-5`, `0.01`."""
    if rate >= 0.01 or rate <= 0:
        return f"{rate:g}"
    mantissa, exponent = f"{rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def label(result: ArmResult) -> str:
    """The arm with its learning rate; a study's trial (`#7 ...`) has that in its name, or shares it with all others."""
    if result.arm.startswith("#"):
        return result.arm
    return f"{result.arm} {rate_text(result.learning_rate)}"


def number(value: float, signed: bool = False, places: Places = RATE) -> str:
    """`.41`, `1.02`, `n/a` for NaN. places: decimals of values below .1, below 1, and from 1 on."""
    return _digits(value, _places(value, places), signed)


def with_interval(estimate: Estimate | None, signed: bool = False, places: Places = RATE) -> str:
    """`+.41 [.35,.47]`; the value alone where there is no interval, `-` where there is nothing."""
    if estimate is None:
        return "-"
    digits = _places(estimate.value, places)
    value = _digits(estimate.value, digits, signed)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{_digits(estimate.low, digits)},{_digits(estimate.high, digits)}]"


def gain_name(results: Sequence[ArmResult]) -> str:
    """Which figure is the gain of these arms: `gain` (accuracy), or `new_nll_drop` where the new task is text."""
    known = {name for r in results for card in (r.scorecard, *r.trajectory) for name in card}
    return next((name for name in GAINS if name in known), GAINS[0])


def gain_text(card: Mapping[str, Estimate], name: str) -> str:
    """A gain with its interval and unit: `+.41 [.35,.47]`, `+.12 [.10,.14] nats per token`."""
    return with_interval(card.get(name), True) + (UNITS[name] if name in card else "")


def _places(value: float, places: Places) -> int:
    return places[0] if abs(value) < 0.0995 else places[1] if abs(value) < 0.995 else places[2]


def _digits(value: float, places: int, signed: bool = False) -> str:
    """Fixed decimals without the leading zero; no minus before zero."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "inf" if value > 0 else "-inf"
    text = f"{abs(value):.{places}f}"
    sign = "" if float(text) == 0 else "-" if value < 0 else "+" if signed else ""
    text = text.removeprefix("0") if text != "0" else text
    return sign + text
