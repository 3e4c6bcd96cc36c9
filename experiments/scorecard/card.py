"""The figures of one checkpoint with their intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, check_draws, estimate
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.inference import wilson
from experiments.scorecard.sample import NotMeasured, Sample


def scorecard(
    base: Sequence[Record],
    after: Sequence[Record],
    draws: int = 10_000,
    seed: int = 0,
    gain_reference: float | None = None,
) -> dict[str, Estimate]:
    """Compute the figures of one checkpoint from the item records before and after training, by name.

    What each figure means is said in `figures.FIGURES`. Figures of a suite that was not measured are left out, and so
    are those of the A/A floor (`aa_floor`), of a stream (`stream`) and of several arms. gain_reference: the gain of a
    reference arm, taken as exact; adds average_harmonic. draws: resamples, at least 100.

    Differences, ratios, KL and perplexity drift have percentile intervals of the paired bootstrap. Rates have Wilson's
    interval with n = questions: two forms of one question are not two independent trials (never too narrow, somewhat
    wide). Differences and ratios of answers count flips that the sample may have missed (`flips.with_unseen`): without
    a flip among 120 questions the interval of forgetting is about -.02 to .02.

    Raises ValueError if an item has two records, no partner or no measurement.
    """
    check_draws(draws)
    if gain_reference is not None and not gain_reference > 0:
        raise ValueError(f"gain_reference must be above 0, but got {gain_reference}: use the gain of a reference arm")
    sample = Sample(base, after, draws, seed, gain_reference)
    return estimated(sample, drawn_figures(sample))


def drawn_figures(sample: Sample, names: Collection[str] = ()) -> dict[str, Array]:
    """Draw figures by name, each (1 + draws,): those of two arms may be subtracted draw by draw.

    names: of the figures; default: all but the floor's. Those that the sample does not have are left out.
    """
    found: dict[str, Array] = {}
    for figure in FIGURES.values():
        if figure.name in names or (not names and figure.suite != "floor"):
            with suppress(NotMeasured):
                found |= figure.drawn(sample)
    return found


def estimated(sample: Sample, drawn: Mapping[str, Array]) -> dict[str, Estimate]:
    """Give drawn figures their intervals, and add the figures of a closed formula."""
    card = {name: estimate(values) for name, values in drawn.items()}
    for figure in FIGURES.values():
        if figure.trials and figure.name in card:
            card[figure.name] = wilson(card[figure.name].value, figure.trials(sample))
        if figure.closed:
            with suppress(NotMeasured):
                card[figure.name] = figure.closed(sample)
    return card


def headline_gain(card: Mapping[str, Estimate]) -> tuple[str, Estimate]:
    """Return the name and value of the gain: `gain` of a task with answers, else `new_nll_drop` of texts.

    Raises KeyError if the new task was not measured.
    """
    for name in GAINS:
        if name in card:
            return name, card[name]
    raise KeyError(f"none of {', '.join(GAINS)} among the figures: measure the suite `new`")
