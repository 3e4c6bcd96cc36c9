"""The best model of a training is found again, also after a kill, and replaces no folder of somebody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import write_json
from experiments.measure.best import best_of, check_best


@pytest.mark.parametrize(
    ("note", "best"),
    [
        ({"step": 4, "retention": 0.9}, (4.0, 4)),  # without a new task the latest is the best
        ({"step": 4, "retention": 0.9, "gain": 0.25}, (0.25, 4)),
        ({"step": 4, "new_nll_drop": 0.5}, (0.5, 4)),
        ({"step": 6, "gain": 0.5}, None),  # after the step at which the training goes on
        ({}, None),
    ],
)
def test_the_best_model_of_a_resumed_training(
    tmp_path: Path, note: dict[str, float], best: tuple[float, int] | None
) -> None:
    if note:
        write_json(tmp_path / "best" / "forgetting.json", note)
    assert best_of(tmp_path, step=4) == best


@pytest.mark.parametrize("killed", ["while it was written", "before its name", "between the two"])
def test_a_kill_loses_no_best_model(tmp_path: Path, killed: str) -> None:
    write_json(tmp_path / "best" / "forgetting.json", {"step": 2, "gain": 0.25})
    (tmp_path / "best.part").mkdir()
    if killed != "while it was written":
        write_json(tmp_path / "best.part" / "forgetting.json", {"step": 4, "gain": 0.5})
    if killed == "between the two":
        shutil.rmtree(tmp_path / "best")
    assert best_of(tmp_path, step=4) == ((0.25, 2) if killed == "while it was written" else (0.5, 4))


def test_a_folder_best_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    """It was deleted for the first model that was kept."""
    check_best(tmp_path)
    (tmp_path / "best").mkdir()
    with pytest.raises(ConfigError, match="best was not kept by a ForgettingCallback, and keep_best=True would"):
        check_best(tmp_path)
    write_json(tmp_path / "best.part" / "forgetting.json", {"step": 4})  # killed while the old one was deleted
    check_best(tmp_path)
