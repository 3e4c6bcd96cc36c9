"""Every figure of one checkpoint in every resample, so that figures of two arms can be subtracted draw by draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.records import Record
from experiments.scorecard.bootstrap import Array, ratio, weighted
from experiments.scorecard.flips import CORRECTED, Sums, flip_figures, resampled_counts, total
from experiments.scorecard.pairing import Pair, number

NEW_PROMPTS = "new_prompts"  # task of the drift records on the new task's own prompts


def drawn_figures(
    pairs: dict[str, list[Pair]], drift: Sequence[Record], draws: int, seed: int, gain_reference: float | None = None
) -> dict[str, Array]:
    """Figures by name, each (1 + draws,), row 0 as observed; what each is stands in `scorecard`.

    pairs: by suite. drift: the tuned model's records of suite drift. An absent suite leaves its figures out.
    """
    answered = [pair for pair in pairs.get("new", []) if pair[1].form != "nll"]
    texts = [pair for pair in pairs.get("new", []) if pair[1].form == "nll"]
    new = resampled_counts(answered, draws, seed) if answered else {}
    kept = resampled_counts(pairs["kept"], draws, seed) if pairs.get("kept") else {}
    figures: dict[str, Array] = {}
    if new:
        figures |= _new_task(total(new)) | _lengths(answered, draws, seed)
    if texts:
        figures["new_nll_drop"] = -_nll_change(texts, draws, seed)
    if kept:
        figures |= _kept_tasks(kept)
    if new and kept:
        figures |= _averages(new, kept, figures, gain_reference)
    if pairs.get("instructions"):
        t = total(resampled_counts(pairs["instructions"], draws, seed))
        figures["instructions_accuracy"] = ratio(t["after"], t["n"])
        figures["retention_instructions"] = ratio(t["after"], t["before"])
    for name, wanted in (("kl", False), ("kl_new", True)):
        records = [r for r in drift if (r.task == NEW_PROMPTS) == wanted]
        if records:
            rows = ((r, number(r, "value"), number(r, "tokens")) for r in records)
            figures[name] = np.maximum(weighted(rows, draws, seed), 0)  # widened draws may fall below
    if pairs.get("text"):
        figures["perplexity_drift"] = _nll_change(pairs["text"], draws, seed)
    return figures


def _new_task(t: dict[str, Array]) -> dict[str, Array]:
    won = t["after"] - t["before"]
    return {
        "new_accuracy": ratio(t["after"], t["n"]),
        "gain": ratio(won, t["n"]),
        "gain_normalised": ratio(won, t["n"] - t["before"]),
    }


def _kept_tasks(sums: Sums) -> dict[str, Array]:
    t = total(sums)
    figures = {
        "kept_accuracy": ratio(t["after"], t["n"]),
        "forgetting": ratio(t["before"] - t["after"], t["n"]),
        "retention": ratio(t["after"], t["before"]),
        "retention_adjusted": ratio(t["after"] - t["chance"], t["before"] - t["chance"]),
        **{name: values for name, values in flip_figures(t).items() if name != CORRECTED},
    }
    forms = _grouped(sums, lambda key: key[1])
    tasks = _grouped(sums, lambda key: key[0][0])
    figures |= {f"retention_{form}": ratio(s["after"], s["before"]) for form, s in forms.items()}
    return figures | {f"retention/{task}": ratio(s["after"], s["before"]) for task, s in tasks.items()}


def _averages(new: Sums, kept: Sums, figures: dict[str, Array], reference: float | None) -> dict[str, Array]:
    tasks = [t for sums in (new, kept) for t in _grouped(sums, lambda key: key[0][0]).values()]
    averages = {
        "average_paper": (figures["new_accuracy"] + figures["kept_accuracy"]) / 2,
        "average_macro": np.mean([ratio(t["after"], t["n"]) for t in tasks], axis=0),
    }
    if reference is not None:
        averages["average_harmonic"] = harmonic(figures["retention"], figures["gain"] / reference)
    return averages


def harmonic(first: Array, second: Array) -> Array:
    """2 x y / (x + y); 0 where one of them is 0 or below: nothing gained makes up for no loss, nor the reverse. NaN
    stays NaN."""
    first, second = np.maximum(first, 0), np.maximum(second, 0)
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(first), where=(total > 0) | np.isnan(total))


def _lengths(pairs: list[Pair], draws: int, seed: int) -> dict[str, Array]:
    """Characters of the replies after training, and after - before."""
    written = [(len(r0.reply), len(r.reply), r) for r0, r in pairs if r0.reply is not None and r.reply is not None]
    if not written:
        return {}
    return {
        "answer_length": weighted(((r, after, 1.0) for _, after, r in written), draws, seed),
        "answer_length_change": weighted(((r, after - before, 1.0) for before, after, r in written), draws, seed),
    }


def _nll_change(pairs: list[Pair], draws: int, seed: int) -> Array:
    """NLL after - before, nats per token, paired by document."""
    rows = ((r, number(r, "value") - number(r0, "value"), number(r, "tokens")) for r0, r in pairs)
    return weighted(rows, draws, seed)


def _grouped(sums: Sums, name: Callable[[Any], str]) -> dict[str, dict[str, Array]]:
    names = sorted({name(key) for key in sums})
    return {one: total({key: s for key, s in sums.items() if name(key) == one}) for one in names}
