"""The table of all figures: a figure is added by one row here, and every table, picture and check reads it.

NOTATION explains the letters of the formulas. Columns of a row: see `figure.Figure`.
"""

from __future__ import annotations

import numpy as np

from experiments.records import Estimate
from experiments.scorecard.bootstrap import Array, estimate, harmonic, ratio
from experiments.scorecard.figure import FINE, NATS, PER_TOKEN, Figure
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
    """Return gain / sqrt(KL); NaN where the KL is 0."""
    return ratio(gain, np.sqrt(kl))


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
           tables=("base",), sign_test=True, draw=lambda s: _accuracy(s.new), trials=lambda s: s.questions("new")),
    Figure("gain", "new", "gain", "accuracy on the new task, after - before", "a_N - a0_N", "higher", signed=True,
           unchanged=0, tables=("gain", "compare"), sign_test=True, draw=_gain),
    Figure("gain_normalised", "new", "normalised gain", "share of the possible gain that was reached",
           "gain / (1 - a0_N)", "higher", signed=True, unchanged=0, sign_test=True,
           draw=lambda s: ratio(s.new["after"] - s.new["before"], s.new["n"] - s.new["before"])),
    Figure("answer_length", "new", "reply length", "mean length of the replies to questions of the new task",
           "mean of the characters", unit="characters", draw=lambda s: s.reply_length(lambda before, after: after)),
    Figure("answer_length_change", "new", "change of reply length", "change of the mean length of these replies",
           "after - before, paired by question", unit="characters", signed=True, unchanged=0,
           draw=lambda s: s.reply_length(lambda before, after: after - before)),
    Figure("new_nll_drop", "new", "gain, nats",
           "negative log-likelihood of the new texts, before - after, nats per token",
           "mean over tokens of NLL before - after, paired by document; the gain of a new task that is text", "higher",
           PER_TOKEN, (3, 2, 2), signed=True, unchanged=0, tables=("gain", "compare"),
           draw=lambda s: -s.nll_change("new")),
)
_KEPT = (
    Figure("kept_accuracy", "kept", "kept acc.", "accuracy on the kept tasks after training", "a_K", "higher",
           tables=("base",), sign_test=True, draw=lambda s: _accuracy(s.kept), trials=lambda s: s.questions("kept")),
    Figure("forgetting", "kept", "forgetting", "accuracy on the kept tasks, before - after", "a0_K - a_K", "lower",
           places=FINE, unchanged=0, sign_test=True, draw=_forgetting),
    Figure("retention", "kept", "retention", "accuracy on the kept tasks, after / before; 1 forgets nothing",
           "a_K / a0_K", "higher", unchanged=1, tables=("run", "compare"), sign_test=True,
           draw=lambda s: _retention(s.kept)),
    Figure("retention_adjusted", "kept", "adjusted retention", "retention of the accuracy above guessing",
           "(a_K - c) / (a0_K - c)", "higher", unchanged=1, sign_test=True,
           draw=lambda s: ratio(s.kept["after"] - s.kept["chance"], s.kept["before"] - s.kept["chance"])),
    Figure("average_harmonic", "comparison", "harmonic average", "harmonic mean of retention and relative gain",
           "2 r g / (r + g), r: retention, g: gain / gain of a reference arm; 0 if r or g is not above 0", "higher",
           tables=("compare",), draw=lambda s: harmonic(_retention(s.kept), _gain(s) / s.gain_reference)),
    Figure("nfr", "kept", "neg. flips", "share of kept answers that were right before and are wrong after",
           "n10 / n (arXiv 2407.09435)", "lower", unchanged=0, tables=("run", "compare"), sign_test=True,
           draw=lambda s: s.kept["lost"] / s.kept["n"], trials=lambda s: s.questions("kept")),
    Figure("pfr", "kept", "pos. flips", "share of kept answers that were wrong before and are right after", "n01 / n",
           "higher", unchanged=0, sign_test=True, draw=lambda s: s.kept["won"] / s.kept["n"],
           trials=lambda s: s.questions("kept")),
    Figure("samplewise_forgetting", "kept", "neg. flips above chance", "negative flips beyond those of guessing",
           "max(n10 / n - (1 - a0)(1 - a) / (k - 1), 0) (arXiv 2510.17776)", "lower", unchanged=0,
           draw=lambda s: np.maximum(s.kept["lost"] / s.kept["n"] - s.guessed, 0)),
    Figure("samplewise_backward", "kept", "pos. flips above chance", "positive flips beyond those of guessing",
           "max(n01 / n - (1 - a0)(1 - a) / (k - 1), 0) (arXiv 2510.17776)", "higher", unchanged=0,
           draw=lambda s: np.maximum(s.kept["won"] / s.kept["n"] - s.guessed, 0)),
    Figure("nfr_mc", "kept", "neg. flips of choices", "negative flips, and moves to another wrong option",
           "(n10 + y) / n of the answers by choice (arXiv 2407.09435)", "lower", unchanged=0,
           draw=lambda s: s.kept_share("flipped", "chosen"), trials=lambda s: s.questions("kept", with_choice=True)),
    Figure("retention_FORM", "kept", "retention by form", "retention of kept questions in one form",
           f"a_K / a0_K; forms: {', '.join(FORMS)}", "higher", unchanged=1, family="FORM",
           members=lambda s: {form: _retention(t) for form, t in s.kept_by_form.items()}),
    Figure("retention/TASK", "kept", "retention by task", "retention of one kept task", "a_K / a0_K", "higher",
           unchanged=1, family="TASK", members=lambda s: {task: _retention(t) for task, t in s.kept_by_task.items()}),
    Figure("average_paper", "kept", "average", "mean of the accuracies on the new task and on the kept tasks",
           "(a_N + a_K) / 2 (arXiv 2501.10979, tables 1 and 2)", "higher",
           draw=lambda s: (_accuracy(s.new) + _accuracy(s.kept)) / 2),
    Figure("average_macro", "kept", "macro average", "mean of the accuracies of all tasks, new and kept",
           "mean over tasks of a; each task counts the same", "higher",
           draw=lambda s: np.mean([_accuracy(t) for t in s.by_task], axis=0)),
    Figure("mcnemar_p", "kept", "McNemar's p", "exact two-sided p that as many kept questions were lost as won",
           "binomial test over the questions that changed; no interval", unit="p", places=FINE,
           closed=lambda s: Estimate(mcnemar_p(*s.changed))),
    Figure("forgetting_bound", "kept", "bound of forgetting", "upper 95 % bound of forgetting, for non-inferiority",
           "the higher of the bootstrap's and a closed one that does not vanish without flips", "lower", places=FINE,
           closed=_forgetting_bound),
)
_DRIFT = (
    Figure("kl", "drift", "KL", "KL(base || trained) on replies of the base model, nats per token",
           "mean over tokens of KL(base || trained), whole vocabulary", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("run", "compare"), draw=lambda s: s.divergence()),
    Figure("kl_new", "drift", "KL, new task",
           "KL(base || trained) on replies to questions of the new task, nats per token",
           "as kl, on the prompts of the new task", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("further", "compare"), draw=lambda s: s.divergence("new_prompts")),
    Figure("kl_text", "drift", "KL, natural text", "KL(base || trained) on natural text, nats per token",
           "as kl, on a public-domain story", "lower", PER_TOKEN, NATS, unchanged=0, tables=("further", "compare"),
           draw=lambda s: s.divergence("text")),
    Figure("kl_kept", "drift", "KL, kept", "KL(base || trained) on kept answers in the plain form, nats per token",
           "as kl, on the right answers to kept questions in the plain form", "lower", PER_TOKEN, NATS, unchanged=0,
           tables=("further", "compare"), draw=lambda s: s.divergence("kept plain")),
    Figure("kl_kept_chat", "drift", "KL, kept chats",
           "KL(base || trained) on kept answers in the chat form, nats per token",
           "as kl_kept, in the chat form", "lower", PER_TOKEN, NATS, unchanged=0, tables=("further",),
           draw=lambda s: s.divergence("kept chat")),
    Figure("eta", "drift", "eta", "gain for the change on natural text: gain / sqrt(kl_text)",
           "gain / sqrt(kl_text) (DCO, arXiv 2609.13680)", "higher", unit="", signed=True,
           tables=("further", "compare"), draw=lambda s: _efficiency(_gain(s), s.divergence("text"))),
    Figure("perplexity_drift", "text", "ppl drift",
           "negative log-likelihood of general text, after - before, nats per token",
           "mean over tokens of NLL after - before, paired by document", "lower", PER_TOKEN, (2, 2, 1), signed=True,
           unchanged=0, tables=("run", "compare"), draw=lambda s: s.nll_change("text")),
    Figure("instructions_accuracy", "instructions", "instructions", "share of instructions followed, checked by code",
           "a", "higher", tables=("further",), draw=lambda s: _accuracy(s.instructions),
           trials=lambda s: s.questions("instructions")),
    Figure("retention_instructions", "instructions", "instructions kept", "instructions followed, after / before",
           "a / a0", "higher", unchanged=1, tables=("further", "compare"), draw=lambda s: _retention(s.instructions)),
)
_FORMAT = (
    Figure("parse_failures", "new", "no answer", "share of new-task replies without a readable answer",
           "replies not parsed / replies", "lower", closed=lambda s: s.failures("new")),
    Figure("new_accuracy_generated", "new", "new, in own words", "accuracy on the new task of written answers",
           "a_N of the replies, if the suite has both kinds", "higher", closed=lambda s: s.accuracy("new", "reply")),
    Figure("new_accuracy_likelihood", "new", "new, by likelihood", "accuracy on the new task of the likeliest options",
           "a_N of the options, if the suite has both kinds", "higher", closed=lambda s: s.accuracy("new", "scores")),
    Figure("kept_accuracy_likelihood", "kept", "kept, by likelihood",
           "accuracy on the kept tasks of the likeliest options", "a_K of the options, if the suite has both kinds",
           "higher", tables=("further",),
           closed=lambda s: s.accuracy("kept", "scores")),
    Figure("kept_accuracy_generated", "kept", "kept, in own words", "accuracy on the kept tasks of written answers",
           "a_K of the replies, if the suite has both kinds", "higher", tables=("further",),
           closed=lambda s: s.accuracy("kept", "reply")),
    Figure("kept_parse_failures", "kept", "naming no option", "share of kept-task replies without a readable answer",
           "replies not parsed / replies", "lower", tables=("further",), closed=lambda s: s.failures("kept")),
)
_STREAM = (  # computed by `stream.stream_figures`
    Figure("stream_op", "stream", "stream OP", "final score: mean over the tasks after the last stage",
           "mean_j R[T, j]", "higher", tables=("compare",)),
    Figure("stream_bwt", "stream", "stream BWT", "backward transfer: change of earlier tasks since their own stage",
           "1/(T-1) sum_{j<T} (R[T, j] - R[j, j]) (arXiv 1706.08840)", "higher", signed=True, unchanged=0,
           tables=("compare",)),
    Figure("stream_f", "stream", "stream F", "forgetting: fall of earlier tasks from their best score",
           "1/(T-1) sum_{j<T} max_{1<=l<T} (R[l, j] - R[T, j]) (arXiv 1801.10112)", "lower", signed=True, unchanged=0,
           tables=("compare",)),
    Figure("stream_fwt", "stream", "stream FWT", "forward transfer: change of later tasks before they are learned",
           "1/(T-1) sum_{j>=2} (R[j-1, j] - R[0, j]) (arXiv 1706.08840)", "higher", signed=True, unchanged=0,
           tables=("compare",)),
)
_FLOOR = (  # computed by `floor.aa_floor`
    Figure("floor_nfr", "floor", "A/A floor", "negative flips of the base against itself, asked in other words",
           "nfr of the base measured twice", places=FINE, tables=("further",)),
    Figure("floor_retention", "floor", "A/A floor of retention",
           "retention of the base against itself, asked in other words", "a_K / a0_K of the base measured twice",
           tables=("further",)),
    Figure("floor_retention_FORM", "floor", "floor of retention by form", "the same for one form",
           "a_K / a0_K of the base measured twice", family="FORM"),
    Figure("floor_retention/TASK", "floor", "floor of retention by task", "the same for one kept task",
           "a_K / a0_K of the base measured twice", family="TASK"),
    Figure("floor_pfr", "floor", "floor of pos. flips", "positive flips of the base against itself",
           "pfr of the base measured twice", places=FINE),
    Figure("floor_samplewise_forgetting", "floor", "floor of neg. flips above chance",
           "negative flips of the base against itself beyond those of guessing",
           "samplewise_forgetting of the base measured twice", places=FINE),
    Figure("floor_samplewise_backward", "floor", "floor of pos. flips above chance",
           "positive flips of the base against itself beyond those of guessing",
           "samplewise_backward of the base measured twice", places=FINE),
    Figure("floor_nfr_mc", "floor", "floor of neg. flips of choices",
           "negative flips and moves to another wrong option, of the base against itself",
           "nfr_mc of the base measured twice", places=FINE),
    Figure("floor_persistence_corrected", "floor", "floor of corrected flips",
           "corrected negative flips of the base against itself", "persistence_corrected of the base measured twice",
           places=FINE),
    Figure("nfr_above_floor", "floor", "flips above floor", "negative flips beyond those of the base against itself",
           "nfr - floor_nfr, for each bootstrap resample", "lower", places=FINE, unchanged=0, tables=("further",)),
    Figure("persistence_above_floor", "floor", "corrected flips above floor",
           "corrected negative flips beyond those of the base against itself",
           "persistence_corrected - floor_persistence_corrected, for each bootstrap resample", "lower", places=FINE,
           unchanged=0),
    Figure("persistence_corrected", "floor", "corrected flips",
           "estimate of the answers forgotten without lucky guesses; compare it only with its floor",
           "k/(k-1) (n10/n - y/n/(k-2)), k >= 3", "lower", places=FINE, unchanged=0,
           draw=lambda s: s.kept_share("corrected", "eligible")),
)
_ALIGNMENT = (
    Figure("alignment_cosine", "alignment", "cosine", "cosine of hidden states with the base's",
           "mean over layers and sentences", unit="", places=FINE, unchanged=1, tables=("further",),
           closed=lambda s: s.alignment("cosine")),
    Figure("alignment_relative_l2", "alignment", "relative L2", "distance of hidden states from the base's",
           "mean over layers and sentences of |h - h0| / |h0|", unit="", places=FINE, unchanged=0, tables=("further",),
           closed=lambda s: s.alignment("relative_l2")),
    Figure("alignment_cka", "alignment", "CKA", "linear centred kernel alignment of hidden states with the base's",
           "mean over layers (arXiv 1905.00414)", unit="", places=FINE, unchanged=1, tables=("further",),
           closed=lambda s: s.alignment("cka")),
    Figure("alignment_procrustes", "alignment", "Procrustes",
           "distance of hidden states from the base's that no rotation and scale can undo",
           "mean over layers of 1 - |X^T Y|_*^2, X and Y centred, of size 1 (arXiv 2605.28819)", unit="", places=FINE,
           unchanged=0, tables=("further",), closed=lambda s: s.alignment("procrustes")),
    Figure("alignment_neighbours", "alignment", "neighbours", "share of nearest neighbours in common with the base",
           "mean over layers and sentences", places=FINE, unchanged=1, tables=("further",),
           closed=lambda s: s.alignment("neighbours")),
    Figure("alignment_update", "alignment", "|dW|/|W|", "size of the weights' change",
           "mean over layers of |W - W0| / |W0|", unit="", places=(4, 3, 3), unchanged=0, tables=("further",),
           closed=lambda s: s.alignment("update")),
)
_COSTS = (  # measured by the trainer
    Figure("cost/tokens", "cost", "tokens trained on", "tokens of the training batches", "count", unit="tokens"),
    Figure("cost/replayed_tokens", "cost", "of them replayed", "tokens of replayed rows", "count", unit="tokens"),
    Figure("cost/seconds", "cost", "seconds", "time of the training steps", "sum", "lower", "s"),
    Figure("cost/tokens_per_s", "cost", "tok/s", "tokens trained on per second", "tokens / seconds", "higher",
           "tokens/s", (0, 0, 0), tables=("run",)),
    Figure("cost/peak_memory_gb", "cost", "GB",
           "peak memory in training, of the GPU or, if there is none, of the process", "maximum", "lower", "GB",
           (1, 1, 1), tables=("run",)),
    Figure("cost/trainable_parameters", "cost", "trained parameters", "parameters that are trained", "count",
           unit="parameters"),
    Figure("cost/added_parameters", "cost", "added at inference", "parameters of the trained model beyond the base's",
           "count", "lower", "parameters"),
    Figure("cost/merge_gap_kl", "posthoc", "KL of merging", "KL(expanded || merged back) on general text",
           "mean over tokens", "lower", PER_TOKEN, NATS),
    Figure("cost/merge_gap_logits", "posthoc", "logits of merging", "largest difference of a logit by merging back",
           "max |expanded - merged back|", "lower", "logits", NATS),
)
_COMPARISON = (  # computed by `trajectory`, over the evaluations of an arm and over several arms
    Figure("retention_matched", "comparison", "retention at matched gain", "retention at a gain that all arms reach",
           "interpolated where the trajectory first reaches the matched gain", "higher", unchanged=1,
           tables=("compare",)),
    Figure("area", "comparison", "area", "mean retention over gains from 0 to the matched gain",
           "area under the upper envelope retention(gain) / matched gain", "higher", unchanged=1, tables=("compare",)),
    Figure("hypervolume", "comparison", "hypervolume",
           "area that the evaluations dominate above gain 0 and retention 0",
           "hypervolume of the points (gain, retention)", "higher", tables=("compare",)),
    Figure("gap_depth", "comparison", "gap depth", "largest fall of kept accuracy below the base at any evaluation",
           "max over steps of a0_K - a_K (arXiv 2205.13452)", "lower", unchanged=0),
    Figure("gap_recovery", "comparison", "recovered at step", "first later evaluation at the level of the base",
           "step", "lower", "steps"),
)
# fmt: on

_ROWS = (*_NEW, *_KEPT, *_DRIFT, *_FORMAT, *_STREAM, *_FLOOR, *_ALIGNMENT, *_COSTS, *_COMPARISON)
FIGURES: dict[str, Figure] = {figure.name: figure for figure in _ROWS}


def shown(table: str) -> tuple[Figure, ...]:
    """The figures of a table, in its order: see `Figure.tables`."""
    return tuple(figure for figure in FIGURES.values() if table in figure.tables)


GAINS = tuple(figure.name for figure in shown("gain"))  # the gain of a run is the first that it has
HEADLINE = (*GAINS, *(f.name for table in ("run", "base") for f in shown(table) if f.suite != "cost"))
