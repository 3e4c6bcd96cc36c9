"""The table of all figures: a figure is added by one row here, and every table, picture and check reads it.

NOTATION explains the letters of the formulas. Columns of a row: see `figure.Figure`.
"""

from __future__ import annotations

import math

import numpy as np

from experiments.records import Estimate
from experiments.scorecard.bootstrap import Array, estimate, harmonic, ratio
from experiments.scorecard.figure import ABOVE_ZERO, CHANGE, FINE, NATS, PER_TOKEN, RATES, Figure
from experiments.scorecard.figures_elsewhere import ROWS
from experiments.scorecard.inference import forgetting_bound, mcnemar_p
from experiments.scorecard.sample import Sample, Totals

FORMS = ("chat", "plain", "generate", "lm_eval")  # how a kept question is asked
NOTATION = (
    "a0, a: accuracy before and after training, the share of right answers; N: new task; K: kept tasks; n: answers (a "
    "question that is asked in two forms has two), of which n10 went from right to wrong, n01 from wrong to right and "
    "y from one wrong option to another; k: options of a question; c: mean of 1/k; NLL: negative log-likelihood; "
    "R[t, j]: score on task j of a stream of T tasks after stage t."
)


def _accuracy(t: Totals) -> Array:
    return ratio(t["after"], t["n"])


def _retention(t: Totals) -> Array:
    return ratio(t["after"], t["before"])


def _efficiency(gain: Array, kl: Array) -> Array:
    """Return gain / sqrt(KL); NaN where the KL is 0, or below it by rounding."""
    return ratio(gain, np.sqrt(np.maximum(kl, 0)))


def _gain(s: Sample) -> Array:
    return ratio(s.new["after"] - s.new["before"], s.new["n"])


def _forgetting(s: Sample) -> Array:
    return ratio(s.kept["before"] - s.kept["after"], s.kept["n"])


def _forgetting_bound(s: Sample) -> Estimate:
    nfr, pfr = (float(s.kept[count][0] / s.kept["n"][0]) for count in ("lost", "won"))
    return Estimate(forgetting_bound(estimate(_forgetting(s)), nfr, pfr, s.questions("kept")))


# fmt: off
_NEW = (
    Figure("new_accuracy", "new", "new acc.", "accuracy on the new task after training", "a_N", "higher",
           tables=("base",), sign_test=True, bounds=RATES,
           draw=lambda s: _accuracy(s.new), trials=lambda s: s.questions("new")),
    Figure("gain", "new", "gain", "accuracy on the new task, after - before", "a_N - a0_N", "higher", signed=True,
           unchanged=0, tables=("gain", "compare"), sign_test=True, bounds=CHANGE, draw=_gain),
    Figure("gain_normalised", "new", "normalised gain", "share of the possible gain that was reached",
           "gain / (1 - a0_N)", "higher", signed=True, unchanged=0, sign_test=True, bounds=(-math.inf, 1.0),
           draw=lambda s: ratio(s.new["after"] - s.new["before"], s.new["n"] - s.new["before"])),
    Figure("answer_length", "new", "reply length", "mean length of the replies to questions of the new task",
           "mean of the characters", unit="characters", bounds=ABOVE_ZERO,
           draw=lambda s: s.reply_length(lambda before, after: after, positive=True)),
    Figure("answer_length_change", "new", "change of reply length", "change of the mean length of these replies",
           "after - before, paired by question; 90 of 100 intervals cover it, since a few replies are far longer",
           unit="characters", signed=True, unchanged=0,
           draw=lambda s: s.reply_length(lambda before, after: after - before)),
    Figure("new_nll_drop", "new", "gain, nats",
           "negative log-likelihood of the new texts, before - after, nats per token",
           "mean over tokens of NLL before - after, paired by document; the gain of a new task that is text", "higher",
           PER_TOKEN, (3, 2, 2), signed=True, unchanged=0, tables=("gain", "compare"),
           draw=lambda s: -s.nll_change("new"),
           units=lambda s: s.nll_changes("new", -1)),
)
_KEPT = (
    Figure("kept_accuracy", "kept", "kept acc.", "accuracy on the kept tasks after training", "a_K", "higher",
           tables=("base",), sign_test=True, bounds=RATES,
           draw=lambda s: _accuracy(s.kept), trials=lambda s: s.questions("kept")),
    Figure("forgetting", "kept", "forgetting", "accuracy on the kept tasks, before - after", "a0_K - a_K", "lower",
           places=FINE, unchanged=0, sign_test=True, bounds=CHANGE, draw=_forgetting),
    Figure("retention", "kept", "retention", "accuracy on the kept tasks, after / before; 1 forgets nothing",
           "a_K / a0_K", "higher", unchanged=1, tables=("run", "compare"), sign_test=True,
           bounds=ABOVE_ZERO, draw=lambda s: _retention(s.kept)),
    Figure("retention_adjusted", "kept", "adjusted retention", "retention of the accuracy above guessing",
           "(a_K - c) / (a0_K - c)", "higher", unchanged=1, sign_test=True,
           draw=lambda s: ratio(s.kept["after"] - s.kept["chance"], s.kept["before"] - s.kept["chance"])),
    Figure("average_harmonic", "comparison", "harmonic average", "harmonic mean of retention and relative gain",
           "2 r g / (r + g), r: retention, g: gain / gain of a reference arm; 0 if r or g is not above 0", "higher",
           tables=("compare",), bounds=ABOVE_ZERO,
           draw=lambda s: harmonic(_retention(s.kept), _gain(s) / s.gain_reference)),
    Figure("nfr", "kept", "neg. flips", "share of kept answers that were right before and are wrong after",
           "n10 / n (arXiv 2407.09435)", "lower", unchanged=0, tables=("run", "compare"), sign_test=True,
           bounds=RATES, draw=lambda s: s.kept["lost"] / s.kept["n"], trials=lambda s: s.questions("kept")),
    Figure("pfr", "kept", "pos. flips", "share of kept answers that were wrong before and are right after", "n01 / n",
           "higher", unchanged=0, sign_test=True, bounds=RATES, draw=lambda s: s.kept["won"] / s.kept["n"],
           trials=lambda s: s.questions("kept")),
    Figure("samplewise_forgetting", "kept", "neg. flips above chance", "negative flips beyond those of guessing",
           "max(n10 / n - (1 - a0)(1 - a) / (k - 1), 0) (arXiv 2510.17776)", "lower", unchanged=0,
           bounds=RATES, draw=lambda s: np.maximum(s.kept["lost"] / s.kept["n"] - s.guessed, 0)),
    Figure("samplewise_backward", "kept", "pos. flips above chance", "positive flips beyond those of guessing",
           "max(n01 / n - (1 - a0)(1 - a) / (k - 1), 0) (arXiv 2510.17776)", "higher", unchanged=0,
           bounds=RATES, draw=lambda s: np.maximum(s.kept["won"] / s.kept["n"] - s.guessed, 0)),
    Figure("nfr_mc", "kept", "neg. flips of choices", "negative flips, and moves to another wrong option",
           "(n10 + y) / n of the answers by choice (arXiv 2407.09435)", "lower", unchanged=0,
           bounds=RATES,
           draw=lambda s: s.kept_share("flipped", "chosen"), trials=lambda s: s.questions("kept", with_choice=True)),
    Figure("retention_FORM", "kept", "retention by form", "retention of kept questions in one form",
           f"a_K / a0_K; forms: {', '.join(FORMS)}", "higher", unchanged=1, family="FORM",
           bounds=ABOVE_ZERO, members=lambda s: {form: _retention(t) for form, t in s.kept_by_form.items()}),
    Figure("retention/TASK", "kept", "retention by task", "retention of one kept task", "a_K / a0_K", "higher",
           unchanged=1, family="TASK", bounds=ABOVE_ZERO,
           members=lambda s: {task: _retention(t) for task, t in s.kept_by_task.items()}),
    Figure("average_paper", "kept", "average", "mean of the accuracies on the new task and on the kept tasks",
           "(a_N + a_K) / 2 (arXiv 2501.10979, tables 1 and 2)", "higher",
           bounds=RATES, draw=lambda s: (_accuracy(s.new) + _accuracy(s.kept)) / 2),
    Figure("average_macro", "kept", "macro average", "mean of the accuracies of all tasks, new and kept",
           "mean over tasks of a; each task counts the same", "higher",
           bounds=RATES, draw=lambda s: np.mean([_accuracy(t) for t in s.by_task], axis=0)),
    Figure("mcnemar_p", "kept", "McNemar's p", "exact two-sided p that as many kept questions were lost as won",
           "binomial test over the questions that changed; no interval", unit="p", places=FINE, bounds=RATES,
           closed=lambda s: Estimate(mcnemar_p(*s.changed))),
    Figure("forgetting_bound", "kept", "bound of forgetting", "upper 95 % bound of forgetting, for non-inferiority",
           "the higher of the bootstrap's and a closed one that does not vanish without flips", "lower", places=FINE,
           bounds=CHANGE, closed=_forgetting_bound),
)
_DRIFT = (
    Figure("kl", "drift", "KL", "KL(base || trained) on replies of the base model, nats per token",
           "mean over tokens of KL(base || trained), whole vocabulary", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("run", "compare"), bounds=ABOVE_ZERO, draw=lambda s: s.divergence(),
           units=lambda s: s.divergences()),
    Figure("kl_new", "drift", "KL, new task",
           "KL(base || trained) on replies to questions of the new task, nats per token",
           "as kl, on the prompts of the new task", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("further", "compare"), bounds=ABOVE_ZERO, draw=lambda s: s.divergence("new_prompts"),
           units=lambda s: s.divergences("new_prompts")),
    Figure("kl_text", "drift", "KL, natural text", "KL(base || trained) on natural text, nats per token",
           "as kl, on a public-domain story", "lower", PER_TOKEN, NATS, unchanged=0, tables=("further", "compare"),
           bounds=ABOVE_ZERO, draw=lambda s: s.divergence("text"),
           units=lambda s: s.divergences("text")),
    Figure("kl_kept", "drift", "KL, kept", "KL(base || trained) on kept answers in the plain form, nats per token",
           "as kl, on the right answers to kept questions in the plain form", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("further", "compare"), bounds=ABOVE_ZERO, draw=lambda s: s.divergence("kept plain"),
           units=lambda s: s.divergences("kept plain")),
    Figure("kl_kept_chat", "drift", "KL, kept chats",
           "KL(base || trained) on kept answers in the chat form, nats per token",
           "as kl_kept, in the chat form", "lower", PER_TOKEN, NATS, unchanged=0, tables=("further",),
           bounds=ABOVE_ZERO, draw=lambda s: s.divergence("kept chat"),
           units=lambda s: s.divergences("kept chat")),
    Figure("eta", "drift", "eta", "gain for the change on natural text: gain / sqrt(kl_text)",
           "gain / sqrt(kl_text) (DCO, arXiv 2609.13680)", "higher", unit="", signed=True,
           tables=("further", "compare"), draw=lambda s: _efficiency(_gain(s), s.divergence("text", own=True))),
    Figure("perplexity_drift", "text", "ppl drift",
           "negative log-likelihood of general text, after - before, nats per token",
           "mean over tokens of NLL after - before, paired by document", "lower", PER_TOKEN, (2, 2, 1), signed=True,
           unchanged=0, tables=("run", "compare"), draw=lambda s: s.nll_change("text"),
           units=lambda s: s.nll_changes("text")),
    Figure("instructions_accuracy", "instructions", "instructions", "share of instructions followed, checked by code",
           "a", "higher", tables=("further",), bounds=RATES, draw=lambda s: _accuracy(s.instructions),
           trials=lambda s: s.questions("instructions")),
    Figure("retention_instructions", "instructions", "instructions kept", "instructions followed, after / before",
           "a / a0", "higher", unchanged=1, tables=("further", "compare"), bounds=ABOVE_ZERO,
           draw=lambda s: _retention(s.instructions)),
)
_FORMAT = (
    Figure("parse_failures", "new", "no answer", "share of new-task replies without a readable answer",
           "replies not parsed / replies", "lower", bounds=RATES, closed=lambda s: s.failures("new")),
    Figure("new_accuracy_generated", "new", "new, in own words", "accuracy on the new task of written answers",
           "a_N of the replies, if the suite has both kinds", "higher", bounds=RATES,
           closed=lambda s: s.accuracy("new", "reply")),
    Figure("new_accuracy_likelihood", "new", "new, by likelihood", "accuracy on the new task of the likeliest options",
           "a_N of the options, if the suite has both kinds", "higher", bounds=RATES,
           closed=lambda s: s.accuracy("new", "scores")),
    Figure("kept_accuracy_likelihood", "kept", "kept, by likelihood",
           "accuracy on the kept tasks of the likeliest options", "a_K of the options, if the suite has both kinds",
           "higher", tables=("further",), bounds=RATES, closed=lambda s: s.accuracy("kept", "scores")),
    Figure("kept_accuracy_generated", "kept", "kept, in own words", "accuracy on the kept tasks of written answers",
           "a_K of the replies, if the suite has both kinds", "higher", tables=("further",), bounds=RATES,
           closed=lambda s: s.accuracy("kept", "reply")),
    Figure("kept_parse_failures", "kept", "naming no option", "share of kept-task replies without a readable answer",
           "replies not parsed / replies", "lower", tables=("further",), bounds=RATES,
           closed=lambda s: s.failures("kept")),
)
# fmt: on

FIGURES: dict[str, Figure] = {figure.name: figure for figure in (*_NEW, *_KEPT, *_DRIFT, *_FORMAT, *ROWS)}


def shown(table: str) -> tuple[Figure, ...]:
    """The figures of a table, in its order: see `Figure.tables`."""
    return tuple(figure for figure in FIGURES.values() if table in figure.tables)


GAINS = tuple(figure.name for figure in shown("gain"))  # the gain of a run is the first that it has
HEADLINE = (*GAINS, *(f.name for table in ("run", "base") for f in shown(table) if f.suite != "cost"))


def bounded(name: str, value: Estimate) -> Estimate:
    """End an interval where its figure's values end: an accuracy of .95 [.87,1.02] becomes .95 [.87,1.00].

    The true value is never beyond, so the shorter interval has it as often. A logit scale would do the same, but a seed
    with all answers right has no logit. name: of a figure or of a family's member.
    """
    families = (figure for figure in FIGURES.values() if figure.family and name.startswith(figure.prefix))
    figure = FIGURES.get(name) or next(families, None)
    if figure is None or value.low is None or value.high is None:
        return value
    least, most = figure.bounds
    return Estimate(value.value, min(max(value.low, least), most), max(min(value.high, most), least))
