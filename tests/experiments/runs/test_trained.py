"""Trained weights of a run: which step they are of, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.posthoc.export import export
from experiments.posthoc.run import posthoc
from experiments.records import ArmResult, Estimate, read_records
from experiments.runs.arm_training import ArmTraining
from experiments.runs.result_file import write_result
from experiments.runs.run import run_experiment
from experiments.runs.trained import as_kept, best_step
from experiments.training.processes import ALONE
from tests.helpers.small_run import small_config

NAN = float("nan")


@pytest.mark.parametrize(
    ("cards", "best"),
    [
        ({2: {"gain": 0.1, "retention": 1.0}, 4: {"gain": 0.3, "retention": 0.7}}, 2),
        ({2: {"gain": 0.1, "retention": 1.0}, 4: {"gain": 0.3, "retention": 0.9}}, 4),
        ({2: {"new_nll_drop": 0.4}, 4: {"new_nll_drop": 0.2}}, 2),
        ({2: {"gain": 0.2, "new_nll_drop": 0.4}, 4: {"gain": 0.3, "new_nll_drop": 0.1}}, 4),  # the first of the two
        ({2: {"gain": 0.2, "retention": NAN}, 4: {"gain": 0.1, "retention": NAN}}, 2),
        ({2: {"kl": 1.0}, 4: {"kl": 2.0}}, 4),
        ({2: {"gain": 0.2}, 4: {"gain": 0.2}}, 4),
    ],
)
def test_the_best_evaluation_is_that_of_gain_and_retention(cards: dict[int, dict[str, float]], best: int) -> None:
    figures = {step: {name: Estimate(value) for name, value in card.items()} for step, card in cards.items()}
    assert best_step(figures) == best


def test_a_result_gets_the_figures_of_the_step_that_was_kept(tmp_path: Path) -> None:
    points: list[dict[str, Any]] = [{"step": step, "gain": Estimate(step / 10)} for step in (0, 2, 4)]
    result = ArmResult("a", "full", 1e-3, "finished", steps=4, trajectory=points, scorecard={"gain": Estimate(0.4)})
    assert as_kept(result, tmp_path) == result
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "kept.json").write_text('{"step": 2}')
    kept = as_kept(result, tmp_path)
    assert (kept.steps, kept.scorecard) == (2, {"gain": Estimate(0.2)})


def test_weights_without_a_note_are_not_those_of_the_best_evaluation(tmp_path: Path) -> None:
    """A process was killed after it had written them: at the end they would be taken for those of the last step."""
    training = ArmTraining.__new__(ArmTraining)
    training.folder, training.processes = tmp_path, ALONE
    (tmp_path / "trained").mkdir()
    assert not training._has_trained()
    (tmp_path / "trained" / "kept.json").write_text('{"step": 2}')
    assert training._has_trained()


@pytest.mark.slow
def test_the_weights_of_the_best_evaluation_stay_alone(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three evaluations the second is called the best; its weights are those of a run that ends there."""
    arms = [{"name": "full", "train": "full", "average": {"ema": {"decay": 0.5}}, "learning_rates": [1e-3]}]
    training = {"batch_size": 4, "warmup_steps": 1, "keep": "best"}
    long, short = (small_config(base, arms=arms, training={**training, "steps": steps}) for steps in (6, 4))
    whole = run_experiment(short, tmp_path / "short").folder / "arms" / "full-0.001"
    monkeypatch.setattr("experiments.runs.arm.best_step", lambda figures: min(max(figures), 4))
    outcome = run_experiment(long, tmp_path / "long")
    trained = outcome.folder / "arms" / "full-0.001" / "trained"
    assert json.loads((trained / "kept.json").read_text()) == {"step": 4}
    assert outcome.results[0].steps == 6
    kept, ended = (load_file(file) for file in (trained / "model.safetensors", whole / "trained/model.safetensors"))
    assert all(torch.equal(kept[name], ended[name]) for name in ended)
    assert list((tmp_path / "long").rglob("model.safetensors")) == [trained / "model.safetensors"]
    export(outcome.folder, "full", 1e-3, tmp_path / "out", say=lambda text: None)
    assert ", 4 steps." in (tmp_path / "out" / "README.md").read_text()
    said: list[str] = []
    (made,) = posthoc(outcome.folder, "full", 1e-3, "wise", [1.0], say=said.append)  # the kept weights themselves
    assert [made.steps, *(point["step"] for point in made.trajectory)] == [4, 0, 4]
    assert said[-1:] == ["measuring full 0.001 wise 1 (weights of step 4 of 6, training.keep: best) ..."]
    files = outcome.folder / "posthoc" / "full-0.001-wise-1", outcome.folder / "arms" / "full-0.001"
    assert read_records(files[0] / "items-4.jsonl") == read_records(files[1] / "items-4.jsonl")
    write_result(trained.parent, replace(outcome.results[0], status="failed", reason="loss became nan at step 5"))
    (made,) = posthoc(outcome.folder, "full", 1e-3, "wise", [0.5], say=said.append)  # the arm failed, its weights not
    assert (made.status, made.reason, made.steps) == ("finished", None, 4)


@pytest.mark.slow
def test_local_weights_are_stored_once_and_can_be_read(base: str, tmp_path: Path) -> None:
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    training = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "keep": "local"}
    outcome = run_experiment(small_config(base, arms=arms, training=training), tmp_path)
    assert [result.status for result in outcome.results] == ["finished"]
    (file,) = tmp_path.rglob("model.safetensors")
    assert file.parent == outcome.folder / "arms" / "full-0.001" / "trained"
    assert (outcome.folder / "report.html").is_file()
    export(outcome.folder, "full", 1e-3, tmp_path / "out", say=lambda text: None)
