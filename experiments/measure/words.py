"""Say in words what a model lost and won."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from experiments.evaluation.replies import spoken
from experiments.records import ArmResult, Record
from experiments.reporting.text import figure_text, gain_name, gain_text, with_interval
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.pairing import pair_records

BY_TASK = FIGURES["retention/TASK"]
WORST = 3  # tasks that fell
MANY = 0.1  # of the free replies


def sentence(result: ArmResult, base: Sequence[Record], records: Sequence[Record]) -> str:
    """Say how many kept answers a model lost and won, and what its figures are; one line."""
    parts = [_answers(result, base, records), *_others(result)]
    return f"{result.arm} " + "; ".join(part for part in parts if part) + "."


def _answers(result: ArmResult, base: Sequence[Record], records: Sequence[Record]) -> str:
    pairs = [(r0, r) for r0, r in pair_records(base, records) if r.suite == "kept" and r.correct is not None]
    if not pairs:
        return "was not asked kept questions"
    had = sum(bool(r0.correct) for r0, _ in pairs)
    lost, won = (sum((r0.correct, r.correct) == flip for r0, r in pairs) for flip in ((1, 0), (0, 1)))
    text = _judged(result, "retention", "it knows more than before")
    return f"lost {lost} of {had} kept answers that the base had right and won {won}: retention {text}{_fallen(result)}"


def _fallen(result: ArmResult) -> str:
    """Name the kept tasks that fell, the worst first. Intervals are widened for their number (Bonferroni)."""
    card = {name: e for name, e in result.scorecard.items() if name.startswith(BY_TASK.prefix)}
    wider = NormalDist().inv_cdf(1 - 0.025 / max(1, len(card))) / NormalDist().inv_cdf(0.975)
    fell = {name: e for name, e in card.items() if e.high is not None and e.value + wider * (e.high - e.value) < 1}
    worst = sorted(fell, key=lambda name: fell[name].value)[:WORST]
    texts = [f"{name.removeprefix(BY_TASK.prefix)} {with_interval(fell[name])}" for name in worst]
    return f"; tasks that fell: {', '.join(texts)}" if texts else ""


def _judged(result: ArmResult, name: str, better: str) -> str:
    """Return a retention with its interval, and what it shows."""
    retention = result.scorecard[name]
    if not math.isfinite(retention.value):
        return "n/a, since the base had none right that could be lost"
    verdict = "forgetting is not shown (the interval holds 1)"
    if retention.high is not None and retention.high < 1:
        verdict = "it forgot"
    elif retention.low is not None and retention.low > 1:
        verdict = better
    return f"{figure_text(result.scorecard, name)}, {verdict}"


def _others(result: ArmResult) -> list[str]:
    card, name = result.scorecard, gain_name([result])
    found = []
    if "retention_instructions" in card and math.isfinite(card["retention_instructions"].value):
        found.append(f"of instructions {_judged(result, 'retention_instructions', 'it follows more than before')}")
    if name in card:
        found.append(f"gain {gain_text(card, name)}")
    if "kl" in card:
        text = "its predictions are exactly the base's" if not card["kl"].value else f"KL {figure_text(card, 'kl')}"
        found.append(text)
    return found


def without_words(name: str, base: Sequence[Record], records: Sequence[Record]) -> str:
    """Say that many free replies hold no answer because the model thinks; nothing if the base has half as many.

    A server that gives thoughts apart sends an empty reply if these took all its tokens.
    """
    before, after = _silent(base), _silent(records)
    if sum(after) <= max(MANY * len(after), 2 * len(after) * sum(before) / max(1, len(before))):
        return ""
    return (
        f"{name}: {sum(after)} of {len(after)} free replies say nothing, or are cut off in their thoughts, and count "
        "as wrong: if the model thinks, give it a chat template, or its server an option, that leaves thoughts out"
    )


def _silent(records: Sequence[Record]) -> list[bool]:
    """Return for each free reply whether nothing is left of it after its thoughts."""
    return [not spoken(r.reply, str(r.answer)).strip() for r in records if r.reply is not None]
