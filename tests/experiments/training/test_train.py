"""The engine's own promises: which tensors change, what the shortcuts change (nothing), which checkpoints count."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from experiments.config import ArmConfig, load_config
from experiments.methods.losses import L2sp
from experiments.models.precision import Precision
from experiments.studies.load import load_study
from experiments.training.checkpoints import COMPLETE, disk_full, last_checkpoint
from experiments.training.lm_loss import only_label_logits
from experiments.training.meter import Meter
from experiments.training.train import training_arguments
from experiments.training.trainer import ArmFailed
from tests.ctrl.test_trainer import expanded, sequences, tiny
from tests.helpers.engine import (
    CONTROL,
    GOLDEN,
    GOLDEN_METHODS,
    Killed,
    arm_config,
    config,
    context,
    golden_curve,
    plan,
    train,
)


def batch() -> dict[str, torch.Tensor]:
    return {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}


def test_logits_at_labels_alone_give_the_same_loss_and_gradient() -> None:
    total = (batch()["labels"][:, 1:] != -100).sum()
    for build in (tiny, expanded):
        whole, part = build(), build()
        one = whole(**batch(), num_items_in_batch=total)
        two = part(**only_label_logits(batch()), num_items_in_batch=total)
        assert two.logits.shape[1] < one.logits.shape[1]
        torch.testing.assert_close(two.loss, one.loss)
        one.loss.backward()
        two.loss.backward()
        for p, q in zip(whole.parameters(), part.parameters(), strict=True):
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad)


def test_frozen_linears_in_bf16_change_no_bit_under_autocast() -> None:
    precision = Precision("bf16")
    results = []
    for hold in (False, True):
        model = expanded()
        cast = precision.hold_frozen(model) if hold else 0
        with precision.autocast():
            out = model(**batch())
        out.loss.backward()
        results.append((out.loss, [p.grad for p in model.parameters() if p.requires_grad]))
        assert (cast > 0) == hold
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(p, q) for p, q in zip(results[0][1], results[1][1], strict=True))


def test_unfinished_and_cut_checkpoints_do_not_count(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"12345678")
    for step in (2, 6):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text('{"model.safetensors": 8}')
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"1234")  # cut short after it was whole
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2"]


@pytest.mark.parametrize("method", GOLDEN_METHODS)
def test_ten_step_loss_curves_are_the_recorded_ones(method: str, tmp_path: Path) -> None:
    """Recorded by `python -m tests.helpers.engine`; the tolerance leaves room for other CPUs' fp32 sums."""
    recorded = json.loads((GOLDEN / f"{method}.json").read_text())
    assert len(set(recorded)) == 10
    assert golden_curve(method, tmp_path) == pytest.approx(recorded, rel=1e-4)


def test_each_step_logs_the_parts_of_its_loss_and_its_layers(tmp_path: Path) -> None:
    """Two micro-batches: the parts are those of the whole step."""
    options = {"weight": 0.5, "trains": "control"}
    out = train(arm_config("l2sp", options), tmp_path, steps=3, batch_size=2, gradient_accumulation=2)
    for logs in out.logs.values():
        assert logs["loss"] == pytest.approx(logs["lm_loss"] + logs["divergence"] + logs["penalty"], rel=1e-4)
        layers = [logs[f"divergence/layer_{i:02d}"] for i in (1, 3)]
        assert logs["alpha/layer_01"] == logs["alpha/layer_03"] == 0.5
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


def test_noting_layers_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = train(arm_config("control"), tmp_path / "a", steps=2)
    monkeypatch.setattr("experiments.training.trainer.LayerFigures.noting", lambda self: nullcontext())
    two = train(arm_config("control"), tmp_path / "b", steps=2)
    assert "alpha/layer_01" in one.logs[2]
    assert "alpha/layer_01" not in two.logs[2]
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_a_penalty_that_is_no_number_stops_the_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L2sp, "penalty", lambda *args: torch.tensor(float("nan")))
    with pytest.raises(ArmFailed, match="loss became nan at step 1: lower the learning rate"):
        train(arm_config("l2sp"), tmp_path)


def test_disk_full_is_seen_through_other_errors() -> None:
    outer = RuntimeError("writing failed")
    outer.__cause__ = OSError(28, "No space left on device")
    assert disk_full(outer)
    assert disk_full(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3153216 vs 3153104"))
    assert not disk_full(RuntimeError("something else"))


def test_every_shipped_config_loads() -> None:
    configs = sorted((Path(__file__).parents[3] / "experiments" / "configs").rglob("*.yaml"))
    assert configs
    for path in configs:
        assert path.read_text().startswith("# "), f"{path.name} says in its first line what it shows"
        if path.parent.name == "studies":
            load_study(path)
        else:
            load_config(path)


def test_an_old_checkpoint_stays_until_the_new_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Meter.save

    def killed(self: Meter, folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise Killed
        save(self, folder)

    monkeypatch.setattr(Meter, "save", killed)
    with pytest.raises(Killed):
        train(arm_config("full"), tmp_path, steps=6, save_every=2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert str(last_checkpoint(tmp_path)).endswith("checkpoint-2")
    monkeypatch.undo()
    train(arm_config("full"), tmp_path, steps=7, save_every=2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-6"}


def test_a_checkpoint_is_on_the_disk_before_it_counts_and_before_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: dict[int, bool] = {}  # inode -> whether checkpoint-4 did not count yet
    old: list[bool] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        flushed.setdefault(os.fstat(handle).st_ino, not (tmp_path / "checkpoint-4" / COMPLETE).is_file())
        if (tmp_path / "checkpoint-4" / COMPLETE).is_file():
            old.append((tmp_path / "checkpoint-2").is_dir())

    monkeypatch.setattr(os, "fsync", noting)
    train(arm_config("full"), tmp_path, steps=5, save_every=2)
    files = [path for path in (tmp_path / "checkpoint-4").rglob("*") if path.name != COMPLETE]
    assert any(path.name == "model.safetensors" for path in files)
    assert all(flushed[path.stat().st_ino] for path in files)
    assert flushed[(tmp_path / "checkpoint-4").stat().st_ino]
    assert old
    assert all(old)  # names were flushed once more, while the old checkpoint was still there


def test_several_gpus_without_a_launcher_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 2))
    arm = arm_config("full")
    arguments = training_arguments(plan(config(arm), tmp_path), context())
    assert arguments._n_gpu == 1
    assert "save_total_limit" not in {k for k, v in vars(arguments).items() if v}
