"""The names that a figure can have, so that a misspelt one is found before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

FIGURES = {  # by the suite that they need; `average_harmonic` is no figure of a run, which has no reference arm
    "new": ("gain", "gain_normalised", "new_nll_drop", "new_accuracy", "parse_failures", "answer_length",
            "answer_length_change", "new_accuracy_generated", "new_accuracy_likelihood"),
    "kept": ("retention", "retention_adjusted", "retention_chat", "retention_plain", "retention_generate",
             "retention_lm_eval", "kept_accuracy", "forgetting", "forgetting_bound", "nfr", "pfr", "nfr_mc",
             "mcnemar_p", "samplewise_forgetting", "samplewise_backward", "average_paper", "average_macro",
             "kept_accuracy_generated", "kept_accuracy_likelihood", "kept_parse_failures"),
    "drift": ("kl", "kl_new"),
    "text": ("perplexity_drift",),
    "instructions": ("instructions_accuracy", "retention_instructions"),
    "stream": ("stream_op", "stream_bwt", "stream_f", "stream_fwt"),
    "floor": ("floor_nfr", "floor_pfr", "floor_nfr_mc", "floor_samplewise_forgetting", "floor_samplewise_backward",
              "floor_persistence_corrected", "persistence_corrected", "nfr_above_floor", "persistence_above_floor"),
    "alignment": ("alignment_cosine", "alignment_relative_l2", "alignment_cka", "alignment_neighbours",
                  "alignment_update"),
}  # fmt: skip
COSTS = ("tokens", "seconds", "tokens_per_s", "peak_memory_gb", "trainable_parameters", "added_parameters")


def figure_names(
    suites: Iterable[str], kept_tasks: Iterable[str] = (), stream: bool = False, floor: bool = False
) -> list[str]:
    """What a run with these suites can measure, with `retention/TASK` of each kept task and `cost/NAME`.

    Suite lm_eval asks tasks that count as new or as kept, so it gives the figures of both. stream: it learns the tasks
    of suite `new` one after the other. floor: the A/A floor is measured.
    """
    measured = {"new", "kept", *suites} if "lm_eval" in suites else set(suites)
    measured |= {"stream"} if stream and "new" in suites else set()
    measured |= {"floor"} if floor else set()
    names = [name for suite, names in FIGURES.items() if suite in measured for name in names]
    tasks = [f"retention/{task}" for task in kept_tasks] if "kept" in measured else []
    return [*names, *tasks, *(f"cost/{name}" for name in COSTS)]
