"""Say what a run found in plain sentences, computed from the figures and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.records import ArmResult, Estimate
from experiments.reporting.text import figure_text, format_number, gain_name, gain_text, label
from experiments.scorecard.figures import FIGURES, GAINS
from experiments.scorecard.pairwise import SignificantPairs

PAIRED = (
    "Two arms differ significantly if Holm's p over all pairs of arms is below .05, from their answers to the same "
    "questions."
)
MORE_TEXT = 1.05  # times the tokens of another arm, from which on it is said
OVERLAP = "Two arms differ significantly if their intervals do not overlap, which is a cautious test."


@dataclass(frozen=True)
class Claim:
    """A sentence on arms, and what it rests on; `doubts.doubt` says what would change it.

    A comparison in a figure has best, and the arms that are tied with it or significantly below it (`behind`). A claim
    on the figure's distance from `bound` has arms, and whether their intervals exclude the bound (`decided`).
    """

    text: str
    figure: str = ""
    best: ArmResult | None = None
    tied: Sequence[ArmResult] = ()
    behind: Sequence[ArmResult] = ()
    bound: float = 0.0
    arms: Sequence[ArmResult] = ()
    decided: bool = False


def overlap(first: Estimate, second: Estimate) -> bool:
    """Whether two intervals share a value. True if one of them is missing: no difference is known then."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return True
    return first.low <= second.high and second.low <= first.high


def comparable(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Select the finished arms whose gain (`gain_name`) and retention are numbers."""
    names = (gain_name(results), "retention")
    return [
        r
        for r in results
        if r.status == "finished" and all(n in r.scorecard and math.isfinite(r.scorecard[n].value) for n in names)
    ]


def tied_best(results: Sequence[ArmResult], name: str, significant: SignificantPairs | None = None) -> list[ArmResult]:
    """Find the best arm in a figure, first, and the arms that do not differ significantly from it.

    significant: the pairs of labels that differ, by figure; for a figure that it lacks, arms differ if their intervals
    do not overlap.
    """
    have = [r for r in comparable(results) if name in r.scorecard and math.isfinite(r.scorecard[name].value)]
    if not have:
        return []
    best = (max if FIGURES[name].better == "higher" else min)(have, key=lambda r: r.scorecard[name].value)

    def tied(result: ArmResult) -> bool:
        if significant is not None and name in significant:
            return frozenset((label(result), label(best))) not in significant[name]
        return overlap(result.scorecard[name], best.scorecard[name])

    return [best, *(r for r in have if r is not best and tied(r))]


def summary(results: Sequence[ArmResult], significant: SignificantPairs | None = None, seeds: int = 1) -> list[str]:
    """Return the sentences of `claims`."""
    return [claim.text for claim in claims(results, significant, seeds)]


def claims(results: Sequence[ArmResult], significant: SignificantPairs | None = None, seeds: int = 1) -> list[Claim]:
    """Say who gains most, who forgets least, whether the lead is significant, and by which test.

    significant: see `tied_best`. seeds: training runs of each arm; fewer than 3 carry no claim about a method.
    """
    arms = comparable(results)
    if not arms:
        return [Claim("No arm finished with a gain and a retention, so there is nothing to compare.")]
    alone = [*_forgetting(arms), *_learning(arms)]
    if len(arms) == 1:
        card = arms[0].scorecard
        gain, retention = gain_text(card, gain_name(arms)), figure_text(card, "retention")
        first = f"{label(arms[0])} gains {gain} on the new task at a retention of {retention} on the kept tasks."
        return [Claim(first), *alone, *map(Claim, _few_seeds(seeds))]
    tokens = unequal_tokens({label(r): r.cost.get("tokens", math.nan) for r in arms})
    return [
        _lead(arms, gain_name(arms), "gains most on the new task", significant),
        _lead(arms, "retention", "forgets least, by its retention of the kept tasks", significant),
        *_trade(arms, significant),
        Claim(PAIRED if {gain_name(arms), "retention"} <= (significant or {}).keys() else OVERLAP),
        *alone,
        *map(Claim, filter(None, [tokens, *_few_seeds(seeds)])),
    ]


def unequal_tokens(tokens: Mapping[str, float]) -> str:
    """Say which arms trained on the fewest and on the most tokens; empty if all trained on about as many.

    tokens: by arm; those that are not known, or 0 for a model that did not train, do not count.
    """
    known = {name: count for name, count in tokens.items() if count > 0}  # NaN is not
    if not known or max(known.values()) <= MORE_TEXT * min(known.values()):
        return ""
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return (
        f"The arms were not trained on as many tokens: {least} on {known[least]:,.0f}, {most} on {known[most]:,.0f}; "
        "a difference can come from that."
    )


def _lead(arms: list[ArmResult], name: str, words: str, significant: SignificantPairs | None) -> Claim:
    best, *tied = tied_best(arms, name, significant)
    behind = [r for r in arms if r is not best and r not in tied]
    value = gain_text(best.scorecard, name) if name in GAINS else figure_text(best.scorecard, name)
    return Claim(f"{label(best)} {words}: {value}{_ahead(tied, behind)}", name, best, tied, behind)


def _ahead(tied: Sequence[ArmResult], behind: Sequence[ArmResult]) -> str:
    if not tied:
        return ", ahead of all other arms."
    if not behind:
        return ", but it is not distinguishable from any other arm."
    if len(behind) < len(tied):
        return f". It is ahead of {_listed(behind)}, and not distinguishable from the others."
    return f". It is not distinguishable from {_listed(tied)}, and ahead of the others."


def _trade(arms: list[ArmResult], significant: SignificantPairs | None) -> list[Claim]:
    """Compare retention among the arms whose gain is as good as the best: who learns nothing forgets nothing."""
    level = tied_best(arms, gain_name(arms), significant)
    if len(level) == 1:
        return []
    best, *tied = tied_best(level, "retention", significant)
    behind = [r for r in level if r is not best and r not in tied]
    text = f"Among the {len(level)} arms whose gain is level with the highest, {label(best)} keeps most"
    if behind:
        kept = format_number(best.scorecard["retention"].value)
        text += f" ({kept}); below it: {_listed(behind, 'retention')}."
    else:
        text += ", but their retentions are not distinguishable."
    return [Claim(text, "retention", best, tied, behind)]


def _forgetting(arms: list[ArmResult]) -> list[Claim]:
    """Compare each arm with no forgetting at all, a retention of 1."""
    forgot = [r for r in arms if (high := r.scorecard["retention"].high) is not None and high < 1]
    unclear = [r for r in arms if r not in forgot]
    found = []
    if forgot:
        text = f"Retention is below 1 by more than its interval for {_listed(forgot)}."
        found.append(Claim(text, "retention", bound=1, arms=forgot, decided=True))
    if unclear:
        text = f"Not distinguishable from no forgetting: {_listed(unclear)}."
        found.append(Claim(text, "retention", bound=1, arms=unclear))
    return found


def _learning(arms: list[ArmResult]) -> list[Claim]:
    name = gain_name(arms)
    idle = [r for r in arms if (low := r.scorecard[name].low) is None or low <= 0]
    if not idle:
        return []
    text = f"No gain outside the interval: {_listed(idle)}; retention without a gain says little."
    return [Claim(text, name, arms=idle)]


def _few_seeds(seeds: int) -> list[str]:
    if seeds >= 3:
        return []
    if seeds == 2:
        return ["Two seeds: three or more are needed for a claim about a method."]
    return ["One seed: another one can change more than these intervals say."]


def _listed(arms: Sequence[ArmResult], figure: str | None = None) -> str:
    """List arms as `a, b and c`, each with its figure if one is named; the seventh and later are counted."""
    names = [label(r) + (f" ({format_number(r.scorecard[figure].value)})" if figure else "") for r in arms]
    if len(names) > 6:
        return f"{', '.join(names[:5])} and {len(names) - 5} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
