"""Runs on disk with invented answers whose true forgetting is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from experiments.records import Record, read_records, write_records

OPTIONS = ("a", "b", "c", "d")


def kept(item: int, choice: int, task: str = "facts", form: str = "chat") -> Record:
    """The right answer is option 0."""
    return Record("kept", task, form, str(item), correct=int(choice == 0), choice=choice, options=OPTIONS)


def new(item: int, correct: int) -> Record:
    return Record("new", "sums", "generate", str(item), correct=correct, reply="7" * (1 + correct), parsed=True)


def base_records(rng: np.random.Generator, n: int, a0: float = 0.8) -> list[Record]:
    """n kept questions of two tasks, n // 2 of the new task, of which one in ten is known."""
    choices = np.where(rng.random(n) < a0, 0, rng.integers(1, 4, n))
    own = [kept(i, int(choice), f"facts{i % 2}") for i, choice in enumerate(choices)]
    return own + [new(i, int(rng.random() < 0.1)) for i in range(n // 2)]


def trained(rng: np.random.Generator, base: list[Record], lost: float, gain: float) -> list[Record]:
    """A right kept answer is lost with probability `lost`; a wrong new one is won with `gain`."""
    after = []
    for record in base:
        if record.suite == "kept":
            choice = record.choice or 0
            if choice == 0 and rng.random() < lost:
                choice = int(rng.integers(1, 4))
            after.append(kept(int(record.item), choice, record.task))
        else:
            after.append(new(int(record.item), int(bool(record.correct) or rng.random() < gain)))
    return after


def write_run(folder: Path, arms: dict[str, tuple[float, float]], n: int = 400, seed: int = 0) -> Path:
    """arms: `name-lr` -> (lost, gain). Two checkpoints, the first with half of the change."""
    rng = np.random.default_rng(seed)
    base = base_records(np.random.default_rng(99), n)
    write_records(folder / "base" / "items.jsonl", base)
    for arm, (lost, gain) in arms.items():
        for step, share in ((10, 0.5), (20, 1.0)):
            write_records(folder / "arms" / arm / f"items-{step}.jsonl", trained(rng, base, share * lost, share * gain))
        result = {"status": "finished", "reason": None}
        (folder / "arms" / arm / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


ARMS = {"full-0.001": (0.3, 0.5), "control-0.001": (0.0, 0.4)}


def records_of(run: Path, arm: str) -> tuple[list, list]:  # type: ignore[type-arg]
    return read_records(run / "base" / "items.jsonl"), read_records(run / "arms" / arm / "items-20.jsonl")


def lm_eval_samples(
    folder: Path, date: str, right: bool, task: str = "arc", n: int = 20, metric: str = "acc", results: object = None
) -> Path:
    """One task as lm_eval leaves it: n answers that are all right, or all wrong. results: of the JSON file of the date.

    Returns the file of the samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc_id": i, "doc_hash": f"{i:04d}", "prompt_hash": f"{i:04d}", "filter": "none", "metrics": [metric],
         metric: float(right), "arguments": [["q", " a"]], "target": "a", "filtered_resps": ["a"], "resps": [["a"]]}
        for i in range(n)
    ]  # fmt: skip
    file = folder / f"samples_{task}_{date}T00-00-00.1.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    if results:
        (folder / f"results_{date}T00-00-00.1.json").write_text(json.dumps(results), encoding="utf-8")
    return file


def samples(folder: Path, rng: np.random.Generator, rates: dict[str, float], shots: int = 0) -> Path:
    """What `lm_eval --log_samples` leaves of tasks with 400 items each, answered right at these rates."""
    folder.mkdir()
    for task, rate in rates.items():
        lines = [
            {"doc_id": i, "doc_hash": f"{task} {i:04d}", "prompt_hash": f"{shots} {task} {i:04d}", "filter": "none",
             "metrics": ["acc"], "acc": float(rng.random() < rate), "arguments": [["q", " a"]], "target": "a",
             "filtered_resps": ["a"], "resps": [["a"]]}
            for i in range(400)
        ]  # fmt: skip
        file = folder / f"samples_{task}_2026-01-01T00-00-00.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder
