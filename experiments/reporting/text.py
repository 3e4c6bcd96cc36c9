"""Write figures, learning rates and names of arms as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from experiments.records import MEASURED, ArmResult, Estimate
from experiments.scorecard.figure import NATS, RATE, SHARE, Places
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.tracking.view import INTERVAL, SPREADS

LEAST = 5e-7  # nats per token: what is smaller is rounding
TRIAL = re.compile(r"#\d+(?: |$)")  # the beginning of a trial's name: an arm may be called #best


def rate_text(rate: float) -> str:
    """Write a learning rate: `3e-4`, `2.5e-5`, `0.01`."""
    if rate >= 0.01 or rate <= 0:
        return f"{rate:g}"
    mantissa, exponent = f"{rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def label(result: ArmResult) -> str:
    """Name the arm with its learning rate; a trial (`#7 ...`) has it in its name, or shares it with all others.

    A model that was only measured has none.
    """
    if TRIAL.match(result.arm) or result.method == MEASURED:
        return result.arm
    return f"{result.arm} {rate_text(result.learning_rate)}"


def ended_label(result: ArmResult) -> str:
    """Return `label`, and how the arm ended if it did not finish: `full 0.01 (failed)`."""
    return label(result) + ("" if result.status == "finished" else f" ({result.status})")


def format_number(value: float, signed: bool = False, places: Places = RATE) -> str:
    """Write a number: `.41`, `1.02`, `n/a` for NaN. places: decimals of values below .1, below 1, and from 1 on."""
    return _digits(value, _places(value, places), signed)


def with_interval(estimate: Estimate | None, signed: bool = False, places: Places = RATE) -> str:
    """Write a value with its interval: `+.41 [.35,.47]`; without one the value alone, `-` for None."""
    if estimate is None:
        return "-"
    digits = _places(estimate.value, places)
    value = _digits(estimate.value, digits, signed)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{_digits(estimate.low, digits)},{_digits(estimate.high, digits)}]"


def p_text(p: float) -> str:
    """Write a p to three places: `.023`, `<.001`."""
    return "n/a" if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def hover_number(value: float) -> str:
    """Write a number of a picture to three places, `0.412`; a smaller one by its first digit, `0.0003`."""
    return f"{value:.1g}" if LEAST <= abs(value) < 0.0005 else f"{value:.3f}"


def figure_text(card: Mapping[str, Estimate], name: str) -> str:
    """Write a figure of a card as the table of figures says (`with_interval`); `-` if the card lacks it."""
    return with_interval(card.get(name), FIGURES[name].signed, FIGURES[name].places)


def gain_name(results: Sequence[ArmResult]) -> str:
    """Name the gain of these arms: `gain` (accuracy), or `new_nll_drop` if the new task is text."""
    known = {name for r in results for card in (r.scorecard, *r.trajectory) for name in card}
    return next((name for name in GAINS if name in known), GAINS[0])


def interval_tags(card: Mapping[str, Estimate]) -> dict[str, str]:
    """Return the tags of a run in MLflow that hold its gain, retention and KL with their intervals."""
    names = [next((name for name in GAINS if name in card), ""), *SPREADS]
    return {f"{INTERVAL}{name}": figure_text(card, name) for name in names if name in card}


def gain_text(card: Mapping[str, Estimate], name: str) -> str:
    """Write a gain with its interval and unit: `+.41 [.35,.47]`, `+.12 [.10,.14] nats per token`."""
    unit = FIGURES[name].unit
    return figure_text(card, name) + (f" {unit}" if name in card and unit != SHARE else "")


def _places(value: float, places: Places) -> int:
    size = abs(value)
    if places == NATS and LEAST <= size < 0.0005:  # a KL has no lower end: .000 would say that nothing moved
        return math.ceil(-math.log10(size))
    return places[0] if size < 0.0995 else places[1] if size < 0.995 else places[2]


def _digits(value: float, places: int, signed: bool = False) -> str:
    """Write fixed decimals without the leading zero; no minus before zero."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "inf" if value > 0 else "-inf"
    text = f"{abs(value):.{places}f}"
    sign = "" if float(text) == 0 else "-" if value < 0 else "+" if signed else ""
    text = text.removeprefix("0") if text != "0" else text
    return sign + text
