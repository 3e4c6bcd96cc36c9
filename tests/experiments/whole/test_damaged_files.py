"""Each file of a run is damaged in turn: the run heals it, or refuses it by name. No traceback, no other figures."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.main import main
from experiments.common.errors import DamagedError
from experiments.runs.trained import load_trained
from experiments.training.checkpoints import complete
from tests.helpers.byte_level import byte_base

pytestmark = pytest.mark.slow
Damage = Callable[[Path, Path], object]  # gets the file, and the same file of another run
DAMAGES: dict[str, Damage] = {
    "cut": lambda file, _: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file, _: file.write_bytes(b""),
    "NUL": lambda file, _: file.write_bytes(bytes(file.stat().st_size)),
    "random": lambda file, _: file.write_bytes(bytes(7 * i % 256 for i in range(file.stat().st_size))),
    "missing": lambda file, _: file.unlink(),
    "of another run": lambda file, other: shutil.copyfile(other, file),
}
ARM = "arms/full-0.03"
TRAINED = [f"{ARM}/trained/{name}" for name in ("model.safetensors", "config.json")]
FINISHED = [
    "config.yaml", "sources.json", "mlflow.json", "journal-{experiment}.jsonl",
    "journal-{experiment}.delivered.json", "base/items.jsonl", "base/state.json", "base/timing.json",
    "base/reworded.jsonl", f"{ARM}/items-2.jsonl", f"{ARM}/items-4.jsonl", f"{ARM}/result.json", f"{ARM}/data.json",
    f"{ARM}/measured.json", f"{ARM}/mlflow.json", f"{ARM}/journal-{{arm}}.jsonl",
]  # fmt: skip
CHECKPOINT = [
    f"{ARM}/checkpoints/checkpoint-3/{name}"
    for name in (
        "model.safetensors", "config.json", "generation_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "trainer_state.json", "training_args.bin", "meter.json", "launch.json", "complete.json",
    )
]  # fmt: skip
STARTED = [name for name in FINISHED if not name.endswith(("items-4.jsonl", "result.json", "data.json"))]


def rotated(names: list[str]) -> list[tuple[str, str]]:
    """Take one damage for each file, so that all damages are tried on about as many files: all pairs take minutes."""
    return list(zip(names, itertools.cycle(DAMAGES), strict=False))


SAMPLE = [
    ("base/items.jsonl", "of another run"), ("base/timing.json", "cut"), (f"{ARM}/result.json", "of another run"),
    (f"{ARM}/items-4.jsonl", "NUL"), ("mlflow.json", "empty"),
]  # fmt: skip
CASES = [
    *(("finished", *case) for case in [*SAMPLE, *(case for case in rotated(FINISHED) if case not in SAMPLE)]),
    *(("started", *case) for case in rotated(STARTED + CHECKPOINT)),
]


class Runs:
    """Runs of one arm, made when they are first asked for, and the facts that a whole one leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        byte_base(folder / "m")
        rows = [{"question": f"{i} + {i + 1} =", "answer": str(2 * i + 1)} for i in range(40)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def root(self, kind: str, seed: int = 0) -> Path:
        """Return the root of a run that is finished, or that was stopped right after the checkpoint of step 3."""
        root = self.folder / f"{kind}-{seed}"
        if not root.is_dir():
            (self.folder / f"{seed}.yaml").write_text(json.dumps(values(seed)))
            with pytest.MonkeyPatch.context() as patch:
                if kind == "started":
                    patch.setattr("experiments.training.callbacks.complete", stopped)
                assert self.again(root, seed) == (130 if kind == "started" else 0)
        return root

    def again(self, root: Path, seed: int = 0) -> int:
        os.chdir(self.folder)
        return main(["run", f"{seed}.yaml", "--root", str(root)])


def values(seed: int) -> dict[str, Any]:
    evaluation = {"every": 2, "suites": ["new", "kept"], "kept_tasks": ["capitals"], "new_items": 4, "kept_items": 20}
    return {
        "name": "case", "base_model": "m", "precision": "fp32", "seed": seed,
        "data": {"new": {"source": "file", "path": "sums.jsonl"}},
        "training": {"steps": 4, "batch_size": 4, "warmup_steps": 1, "save_every": 1},
        "evaluation": {**evaluation, "bootstrap": 100},
        "arms": [{"name": "full", "method": "full", "learning_rates": [3e-2]}],
    }  # fmt: skip


def stopped(folder: Path, *given: Any) -> None:
    """Complete a checkpoint; stop after the third one, before the second is deleted."""
    kept = folder.with_name("checkpoint-2")
    if folder.name != "checkpoint-3":
        return complete(folder, *given)
    shutil.copytree(kept, folder.parents[1] / "kept")
    complete(folder, *given)
    (folder.parents[1] / "kept").rename(kept)
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    before = Path.cwd()
    yield Runs(tmp_path_factory.mktemp("damaged"))
    os.chdir(before)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take two thirds of a run that has its results, and read no file."""
    monkeypatch.setattr("experiments.runs.closing.write_report", lambda folder, *_, **__: folder / "report.html")
    monkeypatch.setattr("experiments.runs.closing.REPORT_FILES", ())


@dataclass(frozen=True)
class Found:
    """The file to damage, and the same file of another run."""

    run: Path
    file: Path
    other: Path


def find(root: Path, other: Path, name: str) -> Found:
    files = []
    for folder in (run_below(root), run_below(other)):
        pattern = name.format(experiment="experiment-*[0-9a-f]", arm="arm-*[0-9a-f]")
        files.append(next(folder.glob(pattern), folder / name))
    return Found(run_below(root), *files)


def run_below(root: Path) -> Path:
    return next(root.glob("runs/case-*/"))


def facts(run: Path) -> dict[str, Any]:
    """Return all that a run measured, without times and the machine's memory."""
    files = [*run.rglob("items*.jsonl"), run / "base" / "reworded.jsonl", run / ARM / "trained" / "model.safetensors"]
    read: dict[str, Any] = {str(file.relative_to(run)): file.read_bytes() for file in files}
    result = json.loads((run / ARM / "result.json").read_text())
    for name in ("cost", "digest"):
        del result[name]
    read["drawn"] = json.loads((run / ARM / "data.json").read_text())
    return read | {"result": result}


def gate(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["gate", str(run), "--margin", ".9"])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("kind", "name", "damage"), CASES, ids=map(" ".join, CASES))
def test_a_damaged_file_is_healed_or_refused_by_name(
    kind: str, name: str, damage: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runs.root("finished")
    root = Path(shutil.copytree(runs.root(kind), tmp_path / "root"))
    if kind == "started":
        shutil.rmtree(root / "cache")
        shutil.copytree(whole / "cache", root / "cache")
    found = find(root, runs.root(kind, seed=1), name)
    said = gate(run_below(whole), capsys)
    DAMAGES[damage](found.file, found.other)
    judged = gate(found.run, capsys)
    if kind == "finished":
        assert judged == said or (judged[0] and found.file.name in judged[1] + judged[2]), judged
    code = runs.again(root)
    error = capsys.readouterr().err
    if code:
        assert found.file.name in error.splitlines()[-1], error
        assert code in (1, 2)
        assert any(word in error for word in ("delete", "bring", "--fresh")), error
    else:
        assert facts(found.run) == facts(run_below(whole))
        assert gate(found.run, capsys) == said


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name in TRAINED for damage in DAMAGES])
def test_damaged_weights_are_not_loaded(name: str, damage: str, runs: Runs, tmp_path: Path) -> None:
    root = Path(shutil.copytree(runs.root("finished"), tmp_path / "root"))
    found = find(root, runs.root("finished", seed=1), name)
    if damage == "of another run" and name.endswith("config.json"):
        found.other.with_name("x").write_text("{}")
        found = Found(found.run, found.file, found.other.with_name("x"))
    load_trained(found.run, "full", 0.03)
    DAMAGES[damage](found.file, found.other)
    with pytest.raises(DamagedError, match=found.file.name):
        load_trained(found.run, "full", 0.03)
