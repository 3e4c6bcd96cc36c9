"""Each part of the loss is logged, and one that is no number stops the arm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.common.errors import DamagedError
from experiments.common.files import write_json
from experiments.methods.config import ArmConfig
from experiments.methods.losses import FromStart
from experiments.training.checkpoints import COMPLETE, file_digests
from experiments.training.trainer import ArmFailed
from tests.helpers import engine, families
from tests.helpers.engine import CONTROL, Killed, arm_config, train


def test_each_step_logs_the_parts_of_its_loss_and_its_layers(tmp_path: Path) -> None:
    """Two micro-batches: the parts are those of the whole step."""
    options = {"weight": 0.5, "trains": "control"}
    out = train(arm_config("l2sp", options), tmp_path, steps=3, batch_size=2, gradient_accumulation=2)
    for logs in out.logs.values():
        assert logs["loss"] == pytest.approx(logs["lm_loss"] + logs["divergence"] + logs["penalty"], rel=1e-4)
        layers = [logs[f"layers/divergence_{i:02d}"] for i in (1, 3)]
        assert logs["layers/alpha_01"] == logs["layers/alpha_03"] == 0.5
        # per layer the mean over tokens, in the loss each row weighs by its labels: near, not equal
        assert logs["divergence"] == pytest.approx(sum(layers) / 2, rel=0.5)
    assert out.logs[1]["penalty"] == 0.0
    assert out.logs[3]["penalty"] > 0.0
    assert [logs["tokens_seen"] for logs in out.logs.values()] == sorted(
        logs["tokens_seen"] for logs in out.logs.values()
    )
    assert out.cost["tokens"] == out.logs[3]["tokens_seen"]


def test_the_loss_of_the_language_model_is_logged_where_it_is_the_whole_loss(tmp_path: Path) -> None:
    out = train(arm_config("full"), tmp_path, steps=3, batch_size=2, gradient_accumulation=2)
    assert len(out.logs) == 3
    for logs in out.logs.values():
        assert logs["lm_loss"] == pytest.approx(logs["loss"], rel=1e-4)


def test_the_plain_loss_is_logged_next_to_the_weighted_one_that_trains(tmp_path: Path) -> None:
    """Two micro-batches; control's divergence and a penalty next to them."""
    terms = ["dft", {"l2sp": {"weight": 0.5}}]
    weighted, plain = (
        train(
            ArmConfig.model_validate({"name": "x", "learning_rates": [1e-2], "train": CONTROL, "loss": loss}),
            tmp_path / str(len(loss)),
            steps=3,
            batch_size=2,
            gradient_accumulation=2,
        )
        for loss in (terms, terms[1:])
    )
    for logs in weighted.logs.values():
        parts = ("weighted_lm_loss", "divergence", "penalty")
        assert logs["loss"] == pytest.approx(sum(logs[part] for part in parts), rel=1e-4)
        assert 0 < logs["weighted_lm_loss"] < logs["lm_loss"]
    assert weighted.logs[1]["lm_loss"] == pytest.approx(plain.logs[1]["lm_loss"], rel=1e-6)  # the same weights still
    assert weighted.logs[3]["lm_loss"] != pytest.approx(plain.logs[3]["lm_loss"], rel=1e-6)
    assert "weighted_lm_loss" not in plain.logs[1]


def test_a_penalty_that_is_no_number_stops_the_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FromStart, "penalty", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(ArmFailed, match="loss became nan at step 1: lower the learning rate"):
        train(arm_config("l2sp"), tmp_path)


@pytest.mark.parametrize("arm", ["full", "partial", "control"])
def test_a_resumed_arm_has_the_tensors_that_the_hub_names_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """transformers writes experts one by one and holds them stacked: the arm went on with those of the base."""
    monkeypatch.setattr(engine, "tiny", lambda: families.build("mixtral"))

    def trained(folder: str, kill_at: int | None = None) -> dict[str, Tensor]:
        return train(arm_config(arm, {}, control={"layers": 1}), tmp_path / folder, kill_at, steps=4).weights

    whole = trained("whole")
    with pytest.raises(Killed):
        trained("cut", kill_at=4)
    resumed = trained("cut")
    assert [name for name, tensor in whole.items() if not torch.equal(resumed[name], tensor)] == []


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(arm_config("full"), tmp_path, kill_at=4)
    (folder,) = tmp_path.glob("checkpoint-*")
    file = folder / "model.safetensors"
    save_file({**load_file(file), "strange": torch.zeros(1)}, file, metadata={"format": "pt"})
    write_json(folder / COMPLETE, file_digests(folder))
    with pytest.raises(DamagedError, match="tensors that are not of this model"):
        train(arm_config("full"), tmp_path)
