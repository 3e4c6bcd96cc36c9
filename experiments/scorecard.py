"""The forgetting scorecard: figures with 95 % intervals from the item records of the base and of a tuned model.

The resampled unit is the question, not the record: the forms in which one question was asked (chat, plain) are drawn
together, within strata of the same task and forms. Indices depend on the seed, the stratum and its size alone, so
base, arms and steps that share a seed see the same resampled questions and their figures may be subtracted.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from experiments.records import Estimate, Record

Array = NDArray[np.float64]
Pair = tuple[Record, Record]  # the same question and form, before and after training
Stratum = tuple[str, tuple[str, ...]]  # task, forms
COUNTS = ("n", "before", "after", "lost", "won", "chance")  # columns of the suites `new` and `kept`
UNPAIRED = ("drift", "alignment")  # suites whose records are distances to the base already
CELLS = 2_000_000  # questions x draws held at once


def scorecard(
    base: Sequence[Record], after: Sequence[Record], draws: int = 10_000, seed: int = 0
) -> dict[str, Estimate]:
    """Figures by name, for the suites that were measured. a0, a: accuracy before, after; K: kept, N: new task.

    gain = a_N - a0_N; new_accuracy = a_N; parse_failures: share of replies without an answer.
    forgetting = a0_K - a_K; kept_accuracy = a_K; retention = a_K / a0_K, also by form (`retention_chat`) and by task
    (`retention/capitals`); retention_adjusted = (a_K - c) / (a0_K - c) with c the mean of 1/options.
    nfr, pfr: share of kept answers that turned from right to wrong, and from wrong to right.
    mcnemar_p: two-sided exact test that as many kept questions were lost as won (no interval).
    kl: KL(base || tuned), nats per token; perplexity_drift: NLL after - before, nats per token, paired by document.
    alignment_cosine, _relative_l2, _cka, _neighbours: hidden states against the base's, mean over layers (no interval).

    Accuracies are means over items: a task weighs as much as it has questions. Differences, ratios, kl and drift have
    percentile intervals of the paired bootstrap; rates have Wilson's with n = questions, since two forms of one
    question are not two independent trials (never too narrow, somewhat wide). Where no item changed, the bootstrap
    cannot vary and the interval of a difference has width 0: read the one of nfr there.

    draws: resamples, at least 100. Raises ValueError where a record stands twice, has no partner or no measurement.
    """
    if draws < 100:
        raise ValueError(f"draws must be at least 100 for a 95 % interval, but got {draws}")
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for pair in pair_records(base, after):
        pairs[pair[1].suite].append(pair)
    card: dict[str, Estimate] = {}
    if pairs["new"]:
        card |= _new_task(pairs["new"], draws, seed)
    if pairs["kept"]:
        card |= _kept_tasks(pairs["kept"], draws, seed)
    drift = [record for record in after if record.suite == "drift" and record.task != "new_prompts"]
    if drift:
        card["kl"] = _per_token(((r, _number(r, "value")) for r in drift), draws, seed)
    if pairs["text"]:
        changes = ((r, _number(r, "value") - _number(r0, "value")) for r0, r in pairs["text"])
        card["perplexity_drift"] = _per_token(changes, draws, seed)
    return card | _alignment(after)


def _alignment(after: Iterable[Record]) -> dict[str, Estimate]:
    """Mean over layers of each metric against the base. No interval: a model's layers are no sample of others."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in after:
        if record.suite == "alignment" and record.form == "base":
            values[record.task].append(_number(record, "value"))
    return {f"alignment_{name}": Estimate(float(np.mean(found))) for name, found in values.items()}


def pair_records(base: Iterable[Record], after: Iterable[Record]) -> list[Pair]:
    """Records of the same key, sorted by it. Those of UNPAIRED suites need no partner.

    Raises ValueError naming a record that stands twice, lacks its partner, or covers other tokens than it.
    """
    first, second = _by_key(base, "base"), _by_key(after, "after")
    for have, lack, side in ((first, second, "after"), (second, first, "base")):
        missing = sorted(key for key in have.keys() - lack.keys() if key[0] not in UNPAIRED)
        if missing:
            raise ValueError(
                f"no partner among the {side} records for {'/'.join(missing[0])} ({len(missing)} missing in all): "
                "evaluate both on the same items, with the same evaluation section and seed"
            )
    pairs = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    for r0, r in pairs:
        if r.suite == "text" and r0.tokens != r.tokens:
            raise ValueError(
                f"{'/'.join(r.key)} covers {r0.tokens} tokens in base and {r.tokens} in after: use one tokenizer"
            )
    return pairs


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided exact binomial p of `lost` changes for the worse against `won` for the better; 1 if none changed."""
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def wilson(rate: float, n: int) -> Estimate:
    """A rate with Wilson's 95 % interval for n independent trials."""
    low, high = proportion_confint(rate * n, n, alpha=0.05, method="wilson")
    return Estimate(rate, max(0.0, float(low)), min(1.0, float(high)))


def resample(questions: Mapping[tuple[Stratum, str], Array], draws: int, seed: int) -> dict[Stratum, Array]:
    """Sums of columns over resampled questions, by stratum: (1 + draws, columns). Row 0 is the sample as observed.

    questions: (stratum, item) -> its columns. In each row a stratum of m questions gives m, drawn with replacement.
    """
    strata: dict[Stratum, list[Array]] = defaultdict(list)
    for stratum, item in sorted(questions):
        strata[stratum].append(questions[stratum, item])
    return {stratum: _resample(np.stack(rows), stratum, draws, seed) for stratum, rows in strata.items()}


def _resample(values: Array, stratum: Stratum, draws: int, seed: int) -> Array:
    """values (m, columns) -> (1 + draws, columns): times drawn (draws, m) @ values, in chunks of draws."""
    m = len(values)
    rng = np.random.default_rng([seed, zlib.crc32(repr(stratum).encode())])
    sums = [values.sum(axis=0, keepdims=True)]
    step = max(1, CELLS // m)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        cells = rng.integers(m, size=(rows, m)) + m * np.arange(rows)[:, None]
        times = np.bincount(cells.ravel(), minlength=rows * m).reshape(rows, m)
        sums.append(times.astype(np.float64) @ values)
    return np.concatenate(sums)


def _new_task(pairs: list[Pair], draws: int, seed: int) -> dict[str, Estimate]:
    total, questions = _total(_sums(pairs, draws, seed)), len({(r.task, r.item) for _, r in pairs})
    card = {
        "new_accuracy": wilson(_observed(total, "after"), questions),
        "gain": _estimate(_ratio(total["after"] - total["before"], total["n"])),
    }
    parsed = [r.parsed for _, r in pairs if r.parsed is not None]
    if parsed:
        card["parse_failures"] = wilson(parsed.count(False) / len(parsed), len(parsed))
    return card


def _kept_tasks(pairs: list[Pair], draws: int, seed: int) -> dict[str, Estimate]:
    sums = _sums(pairs, draws, seed)
    total, questions = _total(sums), len({(r.task, r.item) for _, r in pairs})
    chance = total["chance"]
    card = {
        "kept_accuracy": wilson(_observed(total, "after"), questions),
        "forgetting": _estimate(_ratio(total["before"] - total["after"], total["n"])),
        "retention": _retention(total),
        "retention_adjusted": _estimate(_ratio(total["after"] - chance, total["before"] - chance)),
        "nfr": wilson(_observed(total, "lost"), questions),
        "pfr": wilson(_observed(total, "won"), questions),
        "mcnemar_p": Estimate(mcnemar_p(*_changed_questions(pairs))),
    }
    for form in sorted({form for _, form in sums}):
        card[f"retention_{form}"] = _retention(_total({key: s for key, s in sums.items() if key[1] == form}))
    for task in sorted({stratum[0] for stratum, _ in sums}):
        card[f"retention/{task}"] = _retention(_total({key: s for key, s in sums.items() if key[0][0] == task}))
    return card


def _changed_questions(pairs: list[Pair]) -> tuple[int, int]:
    """Questions with more forms lost than won, and with more won than lost."""
    change: Counter[tuple[str, str]] = Counter()
    for before, after in pairs:
        change[after.task, after.item] += _number(after, "correct") - _number(before, "correct")
    return sum(c < 0 for c in change.values()), sum(c > 0 for c in change.values())


def _sums(pairs: list[Pair], draws: int, seed: int) -> dict[tuple[Stratum, str], Array]:
    """Resampled COUNTS by (stratum, form): (1 + draws, 6)."""
    questions: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for before, after in pairs:
        questions[after.task, after.item][after.form] = _counts(before, after)
    columns = {
        ((task, tuple(sorted(forms))), item): np.array([forms[form] for form in sorted(forms)]).ravel()
        for (task, item), forms in questions.items()
    }
    width = len(COUNTS)
    return {
        (stratum, form): sums[:, width * i : width * (i + 1)]
        for stratum, sums in resample(columns, draws, seed).items()
        for i, form in enumerate(stratum[1])
    }


def _counts(before: Record, after: Record) -> list[float]:
    c0, c = _number(before, "correct"), _number(after, "correct")
    return [1, c0, c, c0 * (1 - c), (1 - c0) * c, 1 / len(after.options) if after.options else 0.0]


def _total(sums: Mapping[Any, Array]) -> dict[str, Array]:
    """COUNTS summed over strata and forms, each (1 + draws,)."""
    return dict(zip(COUNTS, np.sum(list(sums.values()), axis=0).T, strict=True))


def _observed(total: dict[str, Array], name: str) -> float:
    return float(total[name][0] / total["n"][0])


def _retention(total: dict[str, Array]) -> Estimate:
    return _estimate(_ratio(total["after"], total["before"]))


def _per_token(values: Iterable[tuple[Record, float]], draws: int, seed: int) -> Estimate:
    """sum(tokens * value) / sum(tokens) over documents."""
    columns: dict[tuple[Stratum, str], Array] = {}
    for record, value in values:
        tokens = _number(record, "tokens")
        columns[(record.task, (record.form,)), record.item] = np.array([tokens * value, tokens])
    totals = np.sum(list(resample(columns, draws, seed).values()), axis=0)
    return _estimate(_ratio(totals[:, 0], totals[:, 1]))


def _ratio(top: Array, bottom: Array) -> Array:
    """top / bottom, NaN where the bottom is not positive: a ratio to nothing says nothing."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _estimate(values: Array) -> Estimate:
    """Row 0 with the 2.5 and 97.5 percentiles of the rest; no interval where over 1 % of the draws have no value."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(drawn) < 0.99 * len(values[1:]):
        return Estimate(float(values[0]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))


def _by_key(records: Iterable[Record], side: str) -> dict[tuple[str, str, str, str], Record]:
    found: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        if record.key in found:
            raise ValueError(f"{'/'.join(record.key)} stands twice among the {side} records: evaluate once per item")
        found[record.key] = record
    return found


def _number(record: Record, name: str) -> Any:
    value = getattr(record, name)
    if value is None:
        raise ValueError(f"{'/'.join(record.key)} has no {name!r}, which suite {record.suite!r} needs: evaluate again")
    return value
