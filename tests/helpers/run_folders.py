"""Folders of runs and studies as the bench leaves them, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiments.common.files import write_json, write_text
from experiments.records import MEASURED, ArmResult, Estimate

CONFIG = {
    "base_model": "some-model",
    "precision": "auto",
    "seed": 0,
    "data": {"new": [{"source": "reasoning_gym", "name": "chain_sum"}], "old": [], "replay": 0.0},
    "training": {"steps": 20, "batch_size": 4},
    "evaluation": {"every": 10, "suites": ["new", "kept"]},
    "arms": [{"name": "full", "learning_rates": [1e-3, 1e-4]}, {"name": "control", "learning_rates": [1e-3]}],
}


def make_run(root: Path, name: str = "demo-0123abcd", results: dict[str, dict[str, float]] | None = None) -> Path:
    """results: the scorecard of each finished arm by `name rate`."""
    folder = root / "runs" / name
    write_text(folder / "config.yaml", yaml.safe_dump({"name": name, **CONFIG}))
    for label, card in (results or {}).items():
        add_result(folder, label, "finished", card)
    return folder


def add_result(folder: Path, label: str, status: Any, card: dict[str, float] | None = None) -> None:
    arm, rate = label.split()
    figures = {name: Estimate(value) for name, value in (card or {}).items()}
    result = ArmResult(arm, "full", float(rate), status, scorecard=figures)
    write_json(folder / "arms" / f"{arm}-{rate}" / "result.json", result.to_dict())


def make_measurement(root: Path, name: str, command: str, cards: dict[str, dict[str, float] | None]) -> Path:
    """cards: the figures of each model by its name; None: not measured yet."""
    folder = root / "runs" / name
    evaluation = {"suites": ["kept", "drift"]}
    facts = {"digest": "0123abcd", "command": command, "arms": list(cards), "new": None, "evaluation": evaluation}
    write_json(folder / "measure.json", {**facts, "base_model": "some-model", "precision": "fp32", "seed": 0})
    for arm, card in cards.items():
        if card is not None:
            figures = {name: Estimate(value) for name, value in card.items()}
            result = ArmResult(arm, MEASURED, 0.0, "finished", scorecard=figures)
            write_json(folder / "arms" / arm / "result.json", result.to_dict())
    return folder


def make_study(root: Path, name: str, owner: dict[str, str] | None = None, **progress: Any) -> Path:
    folder = root / "studies" / name
    write_text(folder / "study.yaml", yaml.safe_dump({"name": name}))
    write_json(folder / "mlflow.json", {"run_id": "1"} | ({"owner": owner} if owner else {}))
    if progress:
        write_json(folder / "progress.json", progress)
    return folder
