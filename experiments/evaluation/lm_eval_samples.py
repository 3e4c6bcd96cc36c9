"""Convert samples of lm-evaluation-harness to records, from the live model or from files.

The files are written by `lm_eval --log_samples` for any model, so two such runs can be compared item by item.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.common.files import json_lines
from experiments.evaluation.lm_eval_files import check_whole, latest_files
from experiments.records import Record

Side = Literal["new", "kept"]
# metrics that judge a single item; the first one that a task has is used
RIGHT = (
    *("acc", "exact_match", "pass@1", "pass_at_1", "acc_norm", "math_verify", "em"),
    "prompt_level_strict_acc",  # IFEval
)
PLAIN = ("acc", "exact_match")  # metrics that a record's form does not name
UNREADABLE = "[invalid]"  # result of lm_eval's filters if they find no answer


class Samples(NamedTuple):
    """The records of an lm_eval run. left_out: why tasks have none."""

    records: list[Record]
    left_out: list[str]


class NoVerdict(ValueError):
    """A task whose items are not right or wrong."""


def read_samples(path: str | Path, new: Sequence[str] = ()) -> Samples:
    """Read the records of an lm_eval run: a `samples_<task>_<date>.jsonl` file, or a folder that contains such files.

    new: patterns of the tasks that count as new (`gsm8k*`); the others are kept. If a task has several files, the
    latest is read. Tasks whose items are neither right nor wrong are left out. Raises ValueError if there is no such
    file, if files are of several models or not whole, or for a line that lm_eval did not write.
    """
    records, left_out = [], []
    for task, file in latest_files(Path(path)).items():
        side: Side = "new" if any(fnmatch(task, pattern) for pattern in new) else "kept"
        try:
            samples = [json.loads(line) for _, line in json_lines(file.read_text(encoding="utf-8"))]
            check_whole(task, file, samples)
            records += _with_indices(to_records(task, samples, side))
        except NoVerdict as error:
            left_out.append(str(error))
        except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{file} does not hold lm_eval's samples ({type(error).__name__}: {error})") from error
    if not records:
        raise ValueError(f"{path} has no task that can be compared: {'; '.join(left_out) or 'its files are empty'}")
    return Samples(records, left_out)


def to_records(task: str, samples: Iterable[Mapping[str, Any]], side: Side) -> list[Record]:
    """Return one record per sample of lm_eval. Equal documents get numbers, so that their records still pair."""
    seen: Counter[tuple[str, str]] = Counter()
    records = []
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        metric = _metric(task, sample)
        filtered = "" if sample["filter"] == "none" else f" {sample['filter']}"
        form = f"lm_eval{filtered}{'' if metric in PLAIN else f' {metric}'}"  # verdicts of other metrics do not pair
        item = sample["doc_hash"][:12]
        seen[form, item] += 1
        if seen[form, item] > 1:
            item = f"{item}-{seen[form, item]}"
        asked = str(sample["prompt_hash"])[:12] if sample.get("prompt_hash") else None  # few-shot examples included
        records.append(
            Record(
                side,
                task,
                form,
                item,
                correct=_correct(task, metric, sample),
                prompt=asked,
                **_answered(sample, metric),
            )
        )
    return records


def _with_indices(records: Sequence[Record]) -> list[Record]:
    """Return the records of a task of a file with the index of the right option, which is digits in a text there.

    Digits are an option's text if that fits the verdicts better: those of lm_eval are of the one or the other.
    """
    digits = [(r, r.options, r.choice or 0) for r in records if r.options and str(r.answer).isdigit()]
    by_index = sum((choice == int(r.answer or 0)) != r.correct for r, _, choice in digits)
    by_text = sum(
        (options[choice] == r.answer) != r.correct or r.answer not in options for r, options, choice in digits
    )
    indexed = {id(r) for r, options, _ in digits if by_index <= by_text and int(r.answer or 0) < len(options)}
    return [dataclasses.replace(r, answer=int(r.answer or 0)) if id(r) in indexed else r for r in records]


def _metric(task: str, sample: Mapping[str, Any]) -> str:
    name = next((name for name in RIGHT if name in sample["metrics"]), None)
    if name is None:
        raise NoVerdict(no_verdict(task, sample["metrics"]))
    return name


def _correct(task: str, name: str, sample: Mapping[str, Any]) -> int:
    value = float(sample[name])
    if value not in (0.0, 1.0):
        raise NoVerdict(f"task {task} of lm_eval: {name}={value:g} of an item is neither 0 nor 1")
    return int(value)


def no_verdict(task: str, metrics: Iterable[str]) -> str:
    return (
        f"task {task} of lm_eval gives {', '.join(metrics)}, none of which says whether an item is right "
        f"({', '.join(RIGHT)})"
    )


def _answered(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return options and summed log-likelihoods for multiple choice, else the reply.

    The choice is the option that the metric judges: `acc` compares the sums, `acc_norm` the sums by character. Files
    hold the arguments as dictionaries, and every number as text.
    """
    asked, given, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    rows = [list(row.values()) for row in asked.values()] if isinstance(asked, dict) else [list(row) for row in asked]
    if len(rows) < 2:
        read = given[0][0] if isinstance(given[0], list | tuple) else given[0]
        parsed = None if sample["filter"] == "none" else str(read) != UNREADABLE
        return {"answer": str(target), "reply": str(sample["resps"][0][0]), "parsed": parsed}
    scores = tuple(float(pair[0]) for pair in given)
    options = tuple(str(row[1]).strip() for row in rows)
    sizes = [max(len(option), 1) if metric == "acc_norm" else 1 for option in options]
    return {
        "choice": max(range(len(scores)), key=lambda i: scores[i] / sizes[i]),
        "answer": int(target) if isinstance(target, Integral) else str(target),
        "options": options,
        "scores": scores,
    }
