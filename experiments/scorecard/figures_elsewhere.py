"""Rows of the table of figures that other code computes: of a stream, the A/A floor, costs, several arms, ...

`figures.FIGURES` has them with the others. Columns of a row: see `figure.Figure`.
"""

from __future__ import annotations

from experiments.scorecard.figure import ABOVE_ZERO, CHANGE, FINE, NATS, PER_TOKEN, RATES, Figure

# fmt: off
STREAM = (  # computed by `stream.stream_figures`
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
FLOOR = (  # computed by `floor.aa_floor`
    Figure("floor_nfr", "floor", "A/A floor", "negative flips of the base against itself, asked in other words",
           "nfr of the base measured twice", places=FINE, tables=("further",), bounds=RATES),
    Figure("floor_retention", "floor", "A/A floor of retention",
           "retention of the base against itself, asked in other words", "a_K / a0_K of the base measured twice",
           tables=("further",), bounds=ABOVE_ZERO),
    Figure("floor_retention_FORM", "floor", "floor of retention by form", "the same for one form",
           "a_K / a0_K of the base measured twice", family="FORM", bounds=ABOVE_ZERO),
    Figure("floor_retention/TASK", "floor", "floor of retention by task", "the same for one kept task",
           "a_K / a0_K of the base measured twice", family="TASK", bounds=ABOVE_ZERO),
    Figure("floor_pfr", "floor", "floor of pos. flips", "positive flips of the base against itself",
           "pfr of the base measured twice", places=FINE, bounds=RATES),
    Figure("floor_samplewise_forgetting", "floor", "floor of neg. flips above chance",
           "negative flips of the base against itself beyond those of guessing",
           "samplewise_forgetting of the base measured twice", places=FINE, bounds=RATES),
    Figure("floor_samplewise_backward", "floor", "floor of pos. flips above chance",
           "positive flips of the base against itself beyond those of guessing",
           "samplewise_backward of the base measured twice", places=FINE, bounds=RATES),
    Figure("floor_nfr_mc", "floor", "floor of neg. flips of choices",
           "negative flips and moves to another wrong option, of the base against itself",
           "nfr_mc of the base measured twice", places=FINE, bounds=RATES),
    Figure("floor_persistence_corrected", "floor", "floor of corrected flips",
           "corrected negative flips of the base against itself", "persistence_corrected of the base measured twice",
           places=FINE, bounds=(-1.5, 1.5)),
    Figure("nfr_above_floor", "floor", "flips above floor", "negative flips beyond those of the base against itself",
           "nfr - floor_nfr of what was asked twice, by resample", "lower", places=FINE, unchanged=0,
           tables=("further",), bounds=CHANGE),
    Figure("persistence_above_floor", "floor", "corrected flips above floor",
           "corrected negative flips beyond those of the base against itself",
           "persistence_corrected - floor_persistence_corrected of the same, by resample", "lower", places=FINE,
           unchanged=0, bounds=(-3.0, 3.0)),
    Figure("persistence_corrected", "floor", "corrected flips",
           "estimate of the answers forgotten without lucky guesses; compare it only with its floor",
           "k/(k-1) (n10/n - y/n/(k-2)), k >= 3", "lower", places=FINE, unchanged=0, bounds=(-1.5, 1.5),
           draw=lambda s: s.kept_share("corrected", "eligible")),
)
ALIGNMENT = (
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
           bounds=RATES, closed=lambda s: s.alignment("neighbours")),
    Figure("alignment_update", "alignment", "|dW|/|W|", "size of the weights' change",
           "mean over layers of |W - W0| / |W0|", unit="", places=(4, 3, 3), unchanged=0, tables=("further",),
           closed=lambda s: s.alignment("update")),
)
COSTS = (  # measured by the trainer
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
COMPARISON = (  # computed by `trajectory`, over the evaluations of an arm and over several arms
    Figure("retention_matched", "comparison", "retention at matched gain", "retention at a gain that all arms reach",
           "interpolated where the trajectory first reaches the matched gain, in each bootstrap resample", "higher",
           unchanged=1,
           bounds=ABOVE_ZERO, tables=("compare",)),
    Figure("area", "comparison", "area", "mean retention over gains from 0 to the matched gain",
           "area under the upper envelope retention(gain) / matched gain", "higher", unchanged=1, tables=("compare",),
           bounds=ABOVE_ZERO),
    Figure("hypervolume", "comparison", "hypervolume",
           "area that the evaluations dominate above gain 0 and retention 0",
           "hypervolume of the points (gain, retention)", "higher", tables=("compare",), bounds=ABOVE_ZERO),
    Figure("gap_depth", "comparison", "gap depth", "largest fall of kept accuracy below the base at any evaluation",
           "max over steps of a0_K - a_K (arXiv 2205.13452)", "lower", unchanged=0, bounds=CHANGE),
    Figure("gap_recovery", "comparison", "recovered at step", "first later evaluation at the level of the base",
           "step", "lower", "steps"),
)
# fmt: on

ROWS = (*STREAM, *FLOOR, *ALIGNMENT, *COSTS, *COMPARISON)
