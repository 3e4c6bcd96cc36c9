"""A folder of lm_eval tasks of one's own: `sums` (generated), `colours` (multiple choice); eight documents each."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

COLOURS = ["red", "green", "blue", "yellow"]
THINGS = ["blood", "grass", "the sea", "a lemon", "a ripe tomato", "a leaf", "the sky", "the sun"]


def write_tasks(folder: Path) -> str:
    """Write the YAML and JSONL files; returns what `include_path` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = [{"a": a, "b": a + 3, "sum": 2 * a + 3} for a in range(1, 9)]
    colours = [{"thing": thing, "colour": i % 4} for i, thing in enumerate(THINGS)]
    _write(folder, "sums", sums, {
        "output_type": "generate_until",
        "doc_to_text": "What is {{a}} + {{b}}?\nAnswer:",
        "doc_to_target": "{{sum}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [_metric("exact_match")],
        "filter_list": [
            {"name": "strict", "filter": _first("^ *(\\d+)$")},
            {"name": "loose", "filter": _first("(\\d+)")},
        ],
    })  # fmt: skip
    _write(folder, "colours", colours, {
        "output_type": "multiple_choice",
        "doc_to_text": "The colour of {{thing}} is",
        "doc_to_choice": COLOURS,
        "doc_to_target": "colour",
        "metric_list": [_metric("acc"), _metric("acc_norm")],
    })  # fmt: skip
    return str(folder)


def _first(pattern: str) -> list[dict[str, str]]:
    return [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]


def _metric(name: str) -> dict[str, object]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _write(folder: Path, task: str, docs: list[dict[str, object]], config: dict[str, object]) -> None:
    data = folder / f"{task}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    source = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(source | config))
