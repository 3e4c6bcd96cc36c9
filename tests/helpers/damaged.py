"""What `tests.helpers.damage` damages: how each is made, how it goes on, and the facts that must not change.

All inputs (base model, data, YAML) are in one folder, which is the working directory; each root is a folder of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.main import main
from experiments.common.errors import BenchError
from experiments.common.files import read_note
from experiments.runs.trained import load_trained
from experiments.training.checkpoints import complete
from tests.helpers.byte_level import byte_base
from tests.helpers.measured import SMALL, model_folder

ARM = "arms/full-0.03"
MEASURE = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


@dataclass(frozen=True)
class Subject:
    """make: (folder, root, seed) -> exit code. again: (folder, root) -> exit code. facts: of the root afterwards.

    made_as: another subject whose root this one is a copy of.
    """

    name: str
    make: Callable[[Path, Path, int], int]
    again: Callable[[Path, Path], int]
    facts: Callable[[Path, Path], dict[str, Any]]
    made_as: str = ""

    @staticmethod
    def left_out(file: Path) -> bool:
        """Whether no command reads a file: locks, copies in the store, differences of code, what `soften` made."""
        return file.name.endswith((".lock", "uncommitted.diff")) or bool({"artifacts", "soft"} & set(file.parts))


def inputs(folder: Path) -> None:
    """Write the base model, the data and the models to measure, and go to their folder."""
    os.chdir(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not (folder / "sums.jsonl").is_file():
        byte_base(folder / "m")
        model_folder(folder / "base")
        model_folder(folder / "model", noise=0.2)
        rows = [{"question": f"{i} + {i + 1} =", "answer": str(2 * i + 1)} for i in range(40)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """They take two thirds of a run that has its results, and read no file."""
    patch.setattr("experiments.runs.closing.write_report", lambda folder, *_, **__: folder / "report.html")
    patch.setattr("experiments.runs.closing.REPORT_FILES", ())


def values(seed: int, **changes: Any) -> dict[str, Any]:
    evaluation = {"every": 2, "suites": ["new", "kept"], "kept_tasks": ["capitals"], "new_items": 4, "kept_items": 20}
    return {
        "name": "case", "base_model": "m", "precision": "fp32", "seed": seed,
        "data": {"new": {"source": "file", "path": "sums.jsonl"}},
        "training": {"steps": 4, "batch_size": 4, "warmup_steps": 1, "save_every": 1},
        "evaluation": {**evaluation, "bootstrap": 100},
        "arms": [{"name": "full", "method": "full", "learning_rates": [3e-2]}],
    } | changes  # fmt: skip


def study_values(seed: int) -> dict[str, Any]:
    base = {key: value for key, value in values(seed).items() if key != "name"}
    rate = {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [1e-2, 3e-2]}
    objectives = [{"figure": "gain", "direction": "maximize"}]
    return {"name": "tiny", "base": base, "search": {"rate": rate}, "objectives": objectives, "sampler": "grid"}


def command(folder: Path, root: Path, kind: str, read: Callable[[int], dict[str, Any]], seed: int = 0) -> int:
    """Run an experiment or a study of a YAML file that is the same for all roots of a seed."""
    inputs(folder)
    file = folder / f"{kind}-{seed}.yaml"
    file.write_text(json.dumps(read(seed)))
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        return main([kind, file.name, "--root", str(root)])


def run_again(folder: Path, root: Path) -> int:
    return command(folder, root, "run", values)


def interrupted(folder: Path, root: Path, seed: int) -> int:
    """Stop a run right after the checkpoint of step 3, before the one of step 2 is deleted."""

    def stopped(checkpoint: Path, *given: Any) -> None:
        kept = checkpoint.with_name("checkpoint-2")
        if checkpoint.name != "checkpoint-3":
            return complete(checkpoint, *given)
        shutil.copytree(kept, checkpoint.parents[1] / "kept")
        complete(checkpoint, *given)
        (checkpoint.parents[1] / "kept").rename(kept)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.training.callbacks.complete", stopped)
        return int(command(folder, root, "run", values, seed) != 130)


def output(words: list[str]) -> dict[str, Any]:
    """Run a command that only reads, and return its exit code and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(words)
    return {"code": code, "text": said.getvalue()}


def digests(folder: Path, *patterns: str) -> dict[str, Any]:
    found = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}


def results(runs: Path) -> dict[str, Any]:
    """Return the results of all arms without their costs, which differ by nature, and what covers these."""
    found = {str(f.relative_to(runs)): read_note(f) for f in sorted(runs.glob("**/result.json"))}
    unlike = ("cost", "digest", "made_from")
    return {name: {k: v for k, v in result.items() if k not in unlike} for name, result in found.items()}


def run_facts(folder: Path, root: Path) -> dict[str, Any]:
    """Return all that runs measured, what is trained, and what `gate` says."""
    runs = root / "runs"
    facts = digests(runs, "**/items*.jsonl", "**/reworded.jsonl", "**/trained/*.safetensors") | results(runs)
    for run in sorted(runs.glob("case-*/")):
        facts |= {"drawn": json.loads((run / ARM / "data.json").read_text())["drawn"]}
        facts |= {"gate": output(["gate", str(run), "--margin", ".9"])}
    return facts


def cached(folder: Path, root: Path, seed: int) -> int:
    """Leave the cache of the base model's results alone, for a run that begins."""
    code = command(folder, root, "run", values, seed)
    shutil.rmtree(root / "runs")
    return code


def read_again(folder: Path, root: Path) -> int:
    """Judge a run that is not gone on with, and load its trained weights."""
    inputs(folder)
    (run,) = root.glob("runs/case-*/")
    if code := main(["gate", str(run), "--margin", ".99"]):
        return code
    try:
        load_trained(run, "full", 0.03)
    except BenchError as error:
        print(error)
        return 2
    return 0


def read_facts(folder: Path, root: Path) -> dict[str, Any]:
    (run,) = root.glob("runs/case-*/")
    weights = [float(p.sum()) for p in load_trained(run, "full", 0.03).parameters()]
    return {"gate": output(["gate", str(run), "--margin", ".99"]), "weights": weights}


def study_again(folder: Path, root: Path) -> int:
    """Go on, and read the study with each command that does."""
    code = command(folder, root, "study", study_values)
    for words in (["status", "tiny"], ["export", "tiny", str(root / "all.json")]):
        code = code or main([*words, "--root", str(root)])
    return code


def study_facts(folder: Path, root: Path) -> dict[str, Any]:
    rows = json.loads((root / "all.json").read_text())
    return run_facts(folder, root) | {"export": without_times(rows)}


def without_times(values: Any) -> Any:
    """Drop what differs by nature: times, seconds, costs and ids."""
    if isinstance(values, list):
        return [without_times(value) for value in values]
    if not isinstance(values, dict):
        return values
    unlike = ("time", "second", "cost", "tokens_per", "memory", "run", "start", "ended", "folder", "complete")
    return {k: without_times(v) for k, v in values.items() if not any(word in k for word in unlike)}


def measure_again(folder: Path, root: Path, seed: int = 0) -> int:
    inputs(folder)
    words = ["measure", "--base", "base", "--model", "model", "--new", "sums.jsonl", "--precision", "fp32"]
    return main([*words, "--seed", str(seed), "--out", str(root / "runs" / "measured"), "--root", str(root), *MEASURE])


def measure_facts(folder: Path, root: Path) -> dict[str, Any]:
    measured = root / "runs" / "measured"
    facts = digests(root / "runs", "**/items*.jsonl", "**/reworded.jsonl", "**/figures.json") | results(root / "runs")
    return facts | {"gate": output(["gate", str(measured), "--margin", ".9"])}


def soften_again(folder: Path, root: Path, seed: int = 0) -> int:
    inputs(folder)
    to = root / "soft"
    shutil.rmtree(to, ignore_errors=True)
    words = ["soften", "--base", "base", "--model", "model", "--to", str(to), "--new", "sums.jsonl", "--alphas", ".5"]
    words += ["--precision", "fp32", "--seed", str(seed), *MEASURE]
    return main([*words, "--out", str(root / "runs" / "softened"), "--root", str(root)])


def soften_facts(folder: Path, root: Path) -> dict[str, Any]:
    chosen = json.loads((root / "runs" / "softened" / "chosen.json").read_text())
    facts = digests(root / "runs", "**/items*.jsonl", "**/reworded.jsonl") | results(root / "runs")
    return facts | digests(root, "soft/*.safetensors") | {"alpha": chosen["alpha"]}


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("finished", lambda f, r, seed: command(f, r, "run", values, seed), run_again, run_facts),
        Subject("interrupted", interrupted, run_again, run_facts),
        Subject("cached", cached, run_again, run_facts),
        Subject("read", lambda f, r, seed: command(f, r, "run", values, seed), read_again, read_facts, "finished"),
        Subject("study", lambda f, r, seed: command(f, r, "study", study_values, seed), study_again, study_facts),
        Subject("measured", measure_again, measure_again, measure_facts),
        Subject("softened", soften_again, soften_again, soften_facts),
    )
}
