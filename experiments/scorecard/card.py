"""The figures of one checkpoint with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array, check_draws, estimate
from experiments.scorecard.draws import drawn_figures
from experiments.scorecard.flips import changed_questions, questions_in
from experiments.scorecard.inference import forgetting_bound, mcnemar_p, wilson
from experiments.scorecard.pairing import Pair, pair_records

GAINS = ("gain", "new_nll_drop")  # the headline gain of a run: the first that it has
RATES = {"new_accuracy": "new", "kept_accuracy": "kept", "nfr": "kept", "pfr": "kept", "nfr_mc": "kept"}
RATES |= {"instructions_accuracy": "instructions"}  # figures with Wilson's interval, and the suite they are of


def scorecard(
    base: Sequence[Record],
    after: Sequence[Record],
    draws: int = 10_000,
    seed: int = 0,
    gain_reference: float | None = None,
) -> dict[str, Estimate]:
    """Figures by name, for the suites that were measured. a0, a: accuracy before, after; K: kept, N: new task.

    New task. gain = a_N - a0_N; gain_normalised = gain / (1 - a0_N); new_accuracy = a_N. For texts there is no
    accuracy: new_nll_drop = NLL before - after, nats per token, paired by document, is their gain (`headline_gain`).
    Kept tasks. forgetting = a0_K - a_K; kept_accuracy = a_K; retention = a_K / a0_K, also by form
    (`retention_chat`) and by task (`retention/capitals`); retention_adjusted = (a_K - c) / (a0_K - c) with c the mean
    of 1/options. forgetting_bound: its upper 95 % bound, for non-inferiority (`inference.forgetting_bound`).
    Flips. n10, n01, y: answers right -> wrong, wrong -> right, wrong -> another wrong option, of n; k: options.
    nfr = n10/n; pfr = n01/n; nfr_mc = (n10 + y)/n (MUSCLE, arXiv 2407.09435); mcnemar_p: two-sided exact test that as
    many kept questions were lost as won (no interval); samplewise_forgetting, samplewise_backward: see
    `flips.flip_figures`. The persistence-corrected share stands beside the A/A floor alone: `aa_floor`.
    Averages. average_paper = (a_N + a_K)/2, each weighted by items (arXiv 2501.10979, tables 1 and 2); average_macro:
    mean of the tasks' accuracies; average_harmonic: of retention and gain/gain_reference, where that is given.
    Drift. kl: KL(base || tuned), nats per token, on general prompts; kl_new: the same on the new task's prompts;
    perplexity_drift: NLL after - before of general text, nats per token, paired by document.
    Format. parse_failures: share of new-task replies without an answer; kept_parse_failures: the same of kept tasks
    that are answered in words (lm_eval's); answer_length: their mean length in
    characters, answer_length_change: after - before; instructions_accuracy, retention_instructions: instructions
    that code can check; new_accuracy_generated, new_accuracy_likelihood (also kept_): where one suite has both.

    Stream. stream_op, stream_bwt, stream_f, stream_fwt of an arm that learned tasks one after the other: see
    `stream.stream_figures`; they need the records of each stage, so a run adds them to the card of its last step.

    Mechanism. alignment_cosine, _relative_l2, _cka, _neighbours: hidden states against the base's; alignment_update:
    |W - W_base| / |W_base|. Means over layers (no interval).

    Accuracies are means over items: a task weighs as much as it has questions. Differences, ratios, kl and drift have
    percentile intervals of the paired bootstrap; rates have Wilson's with n = questions, since two forms of one
    question are not two independent trials (never too narrow, somewhat wide). Where no item changed, the bootstrap
    cannot vary and the interval of a difference has width 0: read forgetting_bound and the one of nfr there.

    draws: resamples, at least 100. Raises ValueError where a record stands twice, has no partner or no measurement.
    """
    check_draws(draws)
    if gain_reference is not None and not gain_reference > 0:
        raise ValueError(f"gain_reference must be above 0, but got {gain_reference}: use the gain of a reference arm")
    pairs = by_suite(pair_records(base, after))
    drawn = drawn_card(base, after, draws, seed, gain_reference)
    card = {name: estimate(values) for name, values in drawn.items()}
    for name, suite in RATES.items():
        if name in card:
            card[name] = wilson(card[name].value, questions_in(_counted(pairs[suite], name)))
    if pairs["kept"]:
        card["mcnemar_p"] = Estimate(mcnemar_p(*changed_questions(pairs["kept"])))
        rates, n = (card["nfr"].value, card["pfr"].value), questions_in(pairs["kept"])
        card["forgetting_bound"] = Estimate(forgetting_bound(card["forgetting"], *rates, n))
    return card | _format(pairs) | _alignment(after)


def drawn_card(
    base: Sequence[Record], after: Sequence[Record], draws: int, seed: int, gain_reference: float | None = None
) -> dict[str, Array]:
    """The figures of `scorecard` that are drawn, each (1 + draws,): those of two arms may be subtracted."""
    drift = [record for record in after if record.suite == "drift"]
    return drawn_figures(by_suite(pair_records(base, after)), drift, draws, seed, gain_reference)


def _alignment(after: Sequence[Record]) -> dict[str, Estimate]:
    """Mean over layers of each metric against the base. No interval: a model's layers are no sample of others."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in after:
        if record.suite == "alignment" and record.form == "base" and record.value is not None:
            values[record.task].append(record.value)
    return {f"alignment_{name}": Estimate(sum(found) / len(found)) for name, found in values.items()}


def headline_gain(card: Mapping[str, Estimate]) -> tuple[str, Estimate]:
    """The one figure that says how much of the new task was learned: `gain` of a task with answers, in accuracy, else
    `new_nll_drop` of texts, in nats per token. Raises KeyError where the new task was not measured."""
    for name in GAINS:
        if name in card:
            return name, card[name]
    raise KeyError(f"none of {', '.join(GAINS)} among the figures: measure the suite `new`")


def by_suite(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    suites: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        suites[pair[1].suite].append(pair)
    return suites


def _counted(pairs: Sequence[Pair], name: str) -> list[Pair]:
    """The pairs that a rate is over."""
    if name == "nfr_mc":
        return [pair for pair in pairs if pair[0].choice is not None and pair[1].choice is not None]
    return [pair for pair in pairs if pair[1].form != "nll"]


def _format(pairs: Mapping[str, list[Pair]]) -> dict[str, Estimate]:
    """Parse failures, and generated beside likelihood accuracy in a suite that has both."""
    card: dict[str, Estimate] = {}
    for suite in ("new", "kept"):
        replied = [pair for pair in pairs.get(suite, []) if pair[1].parsed is not None]
        if replied:
            failed = sum(not r.parsed for _, r in replied)
            name = "parse_failures" if suite == "new" else "kept_parse_failures"
            card[name] = wilson(failed / len(replied), questions_in(replied))
        kinds = {
            "generated": [pair for pair in pairs.get(suite, []) if pair[1].reply is not None],
            "likelihood": [pair for pair in pairs.get(suite, []) if pair[1].scores is not None],
        }
        if all(kinds.values()):
            for kind, own in kinds.items():
                right = sum(r.correct or 0 for _, r in own)
                card[f"{suite}_accuracy_{kind}"] = wilson(right / len(own), questions_in(own))
    return card
