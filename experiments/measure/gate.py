"""The gate of `control-llm measure`: conditions on figures, which must hold at the bound of their intervals."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.common.errors import ConfigError
from experiments.common.section import nearest
from experiments.comparison.gate import NOTHING, is_empty
from experiments.measure.config import MeasureConfig
from experiments.records import ArmResult, Estimate
from experiments.reporting.text import with_interval
from experiments.scorecard.figure import Figure
from experiments.scorecard.figures import FIGURES

PATTERN = re.compile(r"([^<>=]+)(>=|<=|>|<)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?)\s*", re.IGNORECASE)
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """One condition, such as retention >= .98: `>` is asked of the lower bound, `<` of the upper one."""

    figure: str
    sign: str
    limit: float

    @property
    def text(self) -> str:
        return f"{self.figure} {self.sign} {self.limit:g}"

    def bound(self, estimate: Estimate) -> float:
        """Return the bound that must hold; the value itself of a figure that never has an interval.

        NaN, which never holds, if this one has none because too few items were measured.
        """
        end, row = estimate.low if self.sign.startswith(">") else estimate.high, figure_of(self.figure)
        resampled = row.draw is not None or row.members is not None
        return end if end is not None else math.nan if resampled else estimate.value

    def holds(self, card: Mapping[str, Estimate]) -> bool:
        """Return whether the value itself, without its interval, fulfils it; True if it was not measured."""
        found = card.get(self.figure)
        return found is None or SIGNS[self.sign](found.value, self.limit)

    def is_empty(self, card: Mapping[str, Estimate]) -> bool:
        """Whether it is on forgetting, and the base has nothing to forget."""
        return is_empty(self.figure, card)

    def judge(self, result: ArmResult, left_out: Mapping[str, str]) -> tuple[bool, str]:
        """Return whether a model fulfils it, and one line. A figure that was not measured fails."""
        found = result.scorecard.get(self.figure)
        if found is None:
            why = "; ".join(f"suite {suite} is left out: {reason}" for suite, reason in left_out.items())
            return False, f"FAIL  {result.arm}: {self.text}: not measured{f' ({why})' if why else ''}"
        row = figure_of(self.figure)
        if self.is_empty(result.scorecard):
            return False, f"FAIL  {result.arm}: {self.text}: {NOTHING}"
        bound = self.bound(found)
        holds = math.isfinite(bound) and SIGNS[self.sign](bound, self.limit)
        value = with_interval(found, row.signed, (3, 3, 3))
        reached = "no interval: too few items were measured" if math.isnan(bound) else f"bound {bound:.4f}"
        return holds, f"{'pass' if holds else 'FAIL'}  {result.arm}: {self.text}: {value}, {reached}"


def conditions(texts: Sequence[str], config: MeasureConfig, option: str = "--gate") -> list[Condition]:
    """Read conditions. option: where the user wrote them, for errors.

    Raises ConfigError for one that is no condition, or of a figure that is not measured.
    """
    return [_read(text, config.figures(), f"{option} {text!r}") for text in texts]


def figure_of(name: str) -> Figure:
    """Return the row of a figure, or of its family: `retention/capitals` is of `retention/TASK`."""
    if name in FIGURES:
        return FIGURES[name]
    return next(f for f in FIGURES.values() if f.family and name.startswith(f.prefix))


def _read(text: str, known: Sequence[str], given: str) -> Condition:
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ConfigError(f'{given}: write FIGURE >= NUMBER, for example "retention >= .98"')
    name, sign, limit = match[1].strip(), match[2], float(match[3])
    if name not in known:
        raise ConfigError(f"{given}: no figure {name!r} is measured here: {nearest(name, known)}")
    row = figure_of(name)
    if (better := row.better) and sign[0] != {"higher": ">", "lower": "<"}[better]:
        right = ">=" if better == "higher" else "<="
        raise ConfigError(f"{given}: of {name}, {better} is better: write {name} {right} {limit:g}")
    if why := row.beyond(sign, limit):
        raise ConfigError(f"{given}: {why}")
    return Condition(name, sign, limit)
