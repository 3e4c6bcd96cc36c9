"""Choose the alpha of an operation by half of the items, and report it on the other half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.common.errors import ConfigError
from experiments.common.files import write_json
from experiments.common.paths import absolute
from experiments.config import run_config
from experiments.posthoc.run import result_file, result_folder
from experiments.records import ArmResult, Estimate, Record, read_records
from experiments.reporting.table import Table
from experiments.reporting.text import figure_text
from experiments.runs.base_records import ITEMS
from experiments.runs.baseline import score
from experiments.runs.result_file import floor_file, read_result
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.halves import of_half

NORMAL = 1.96  # standard errors from the middle to the end of a 95 % interval
SHOWN = (*GAINS, "retention", "nfr", "kl", "kl_text", "perplexity_drift")
RULE = "the fewest lost answers of the points whose gain is within one standard error of the best"


@dataclass(frozen=True)
class Point:
    """A model of a series in alpha. card: its figures on the items that choose."""

    alpha: float
    card: Mapping[str, Estimate]

    @property
    def gain(self) -> Estimate | None:
        return next((self.card[name] for name in GAINS if name in self.card), None)

    @property
    def lost(self) -> float:
        """Share of the base's kept answers that were lost."""
        return self.card["nfr"].value


def mildest(points: Sequence[Point]) -> Point:
    """Return the point that RULE chooses; of equal ones that of the lowest alpha. All points have a gain."""
    gains = {point.alpha: point.gain for point in points if point.gain}
    top = max(gains.values(), key=lambda gain: gain.value)
    least = top.value - standard_error(top)
    near = [point for point in points if gains[point.alpha].value >= least]
    return min(near, key=lambda point: (point.lost, point.alpha))


def standard_error(estimate: Estimate) -> float:
    """Return the half-width of the 95 % interval / 1.96; 0 without an interval."""
    if estimate.low is None or estimate.high is None:
        return 0.0
    return (estimate.high - estimate.low) / (2 * NORMAL)


@dataclass(frozen=True)
class Chosen:
    """The alpha that was chosen. cards: figures of each alpha on the items that did not choose."""

    alpha: float
    cards: Mapping[float, Mapping[str, Estimate]]

    def table(self) -> Table:
        figures = [FIGURES[name] for name in SHOWN if any(name in card for card in self.cards.values())]
        rows = tuple(
            (f"{alpha:g}{' (chosen)' if alpha == self.alpha else ''}", *(figure_text(card, f.name) for f in figures))
            for alpha, card in self.cards.items()
        )
        return Table("Half of the items", ("alpha", *(figure.title for figure in figures)), rows)

    def text(self) -> str:
        return (
            f"alpha {self.alpha:g}: {RULE}. Half of the items chose it; the figures are those of the other half.\n\n"
            f"{self.table().text()}"
        )


def check_choosable(run: str | Path, arm: str, learning_rate: float) -> None:
    """Raise ConfigError, before anything is measured, for an arm without the figures that RULE needs."""
    _check_figures(read_result(result_file(absolute(run), arm, learning_rate)).scorecard)


def _check_figures(card: Mapping[str, Estimate]) -> None:
    if not any(name in card for name in GAINS) or "nfr" not in card:
        raise ConfigError("choosing an alpha needs a gain and kept tasks, but the run lacks suite new or suite kept")


def choose_alpha(run: str | Path, results: Sequence[ArmResult], alphas: Sequence[float]) -> Chosen:
    """Choose among results of one operation at several alphas, by RULE.

    Writes `<run>/posthoc/chosen-ARM-OP.json`. Raises ConfigError if the run measures no gain or no kept tasks, which
    the rule needs.
    """
    run = absolute(run)
    points = [Point(alpha, _card(run, result, True)) for alpha, result in zip(alphas, results, strict=True)]
    for point in points:
        _check_figures(point.card)
    best = mildest(points)
    chosen = Chosen(best.alpha, {a: _card(run, result, False) for a, result in zip(alphas, results, strict=True)})
    figures = {n: e.value for n, e in chosen.cards[best.alpha].items() if n in SHOWN}
    write_json(
        run / "posthoc" / note_of(results[0]),
        {"alpha": best.alpha, "of": list(alphas), "rule": RULE, "other_half": figures},
    )
    return chosen


def note_of(result: ArmResult) -> str:
    """Return the name of the note of a choice: the arm, the operation and its other arms, without the alpha."""
    operation = str(result.operation).rpartition(" ")[0].replace(" ", "-").replace("/", "-")
    return f"chosen-{result.arm}-{result.learning_rate:g}-{operation}.json"


def _card(run: Path, result: ArmResult, choosing: bool) -> dict[str, Estimate]:
    """Return the figures of a result on the half of the items that chooses, or on the other half."""
    config, asked_again = run_config(run), floor_file(run)

    def own(path: Path) -> list[Record]:
        return of_half(read_records(path), choosing)

    floor = own(asked_again) if asked_again else []
    after = own(result_folder(run, result) / f"items-{result.steps}.jsonl")
    return score(own(run / "base" / ITEMS), floor, after, config.evaluation.bootstrap, config.seed)
