"""Say in words what a model lost and won, and show the answers that it lost most clearly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import NormalDist

from experiments.evaluation.suite import DrawnSuite
from experiments.evaluation.suites.instructions import InstructionSuite
from experiments.evaluation.suites.kept import KeptSuite
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.evaluation.suites.new_task import NewTaskSuite
from experiments.records import ArmResult, Record
from experiments.reporting.text import figure_text, gain_name, gain_text, with_interval
from experiments.scorecard.figures import FIGURES
from experiments.scorecard.pairing import pair_records

ANSWERS = ("kept", "instructions")  # suites of what the base knew
BY_TASK = FIGURES["retention/TASK"]
SHOWN, WORST = 5, 3  # lost answers; tasks that fell
Questions = Mapping[tuple[str, str, str, str], str]  # text by the key of a record


@dataclass(frozen=True)
class Lost:
    """An answer that was right before and is wrong after. clarity: fall of the right option's lead, in nats."""

    task: str
    question: str
    right: str
    before: str
    after: str
    clarity: float = 0.0


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


def lost_answers(
    base: Sequence[Record], records: Sequence[Record], questions: Questions, count: int = SHOWN
) -> list[Lost]:
    """Return the answers that were lost most clearly, one for each question: of kept tasks and replies in turn.

    Of a choice, clarity is how far the lead of the right option over the best wrong one fell. questions: see
    `question_texts`.
    """
    pairs = [(r0, r) for r0, r in pair_records(base, records) if r.suite in ANSWERS]
    found: dict[tuple[str, str, str], Lost] = {}
    for r0, r in pairs:
        if r0.correct and not r.correct:
            one = _lost(r0, r, questions.get(r.key) or questions.get((r.suite, r.task, "", r.item), r.item))
            known = found.get((r.suite, r.task, r.item))
            if known is None or known.clarity < one.clarity:
                found[r.suite, r.task, r.item] = one
    by_suite = [[one for key, one in found.items() if key[0] == suite] for suite in ANSWERS]
    ranked = [sorted(ones, key=lambda one: -one.clarity) for ones in by_suite]
    return [one for row in zip_longest(*ranked) for one in row if one is not None][:count]


def question_texts(suites: Iterable[DrawnSuite]) -> dict[tuple[str, str, str, str], str]:
    """Return the text of each question of suites by the key of its record: records hold only its digest.

    Of lm_eval's tasks the form in the key is empty: it has several.
    """
    texts: dict[tuple[str, str, str, str], str] = {}
    for suite in suites:
        if isinstance(suite, KeptSuite):
            for q in suite.questions:
                chat, plain = q.template.chat, f"{q.template.plain} ..."
                texts |= {(suite.name, q.task, form, q.id): chat for form in ("chat", "generate")}
                texts[suite.name, q.task, "plain", q.id] = plain
            written = [(task.name, item) for task in suite.written for item in task.test]
            texts |= {(suite.name, name, "generate", item.id): item.question for name, item in written}
        elif isinstance(suite, InstructionSuite):
            texts |= {(suite.name, item.kind, "generate", item.id): item.prompt for item in suite.items}
        elif isinstance(suite, HarnessSuite):
            texts |= {(side, name, "", item): text for (side, name, item), text in suite.questions().items()}
        elif isinstance(suite, NewTaskSuite):
            asked = [(task.name, item) for task in suite.tasks for item in getattr(task, "test", ())]
            forms = ("chat", *suite.settings.forms)
            texts |= {(suite.name, name, form, item.id): item.question for name, item in asked for form in forms}
    return texts


def _lost(r0: Record, r: Record, question: str) -> Lost:
    if r0.choice is None or r.choice is None or not r.options:
        return Lost(r.task, question, str(r.answer or ""), r0.reply or "", r.reply or "")
    clarity = _lead(r0) - _lead(r)
    return Lost(r.task, question, r.options[int(r.answer or 0)], _option(r0), _option(r), clarity)


def _option(record: Record) -> str:
    return (record.options or ())[record.choice or 0]


def _lead(record: Record) -> float:
    """Return the log-likelihood of the right option less that of the best wrong one."""
    scores, right = record.scores or (), int(record.answer or 0)
    return scores[right] - max(score for i, score in enumerate(scores) if i != right)
