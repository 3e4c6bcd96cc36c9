"""The engine's own promises: which tensors change, what the shortcuts change (nothing), which checkpoints count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from experiments.config import ArmConfig, load_config
from experiments.methods import METHODS
from experiments.models import Precision
from experiments.train import COMPLETE, disk_full, last_checkpoint, only_label_logits, save_trained
from tests.ctrl.test_trainer import expanded, sequences, tiny


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


@pytest.mark.parametrize("method", list(METHODS))
def test_only_what_a_method_trains_changes(method: str) -> None:
    arm = ArmConfig(name="x", method=method, learning_rates=(1e-3,), control=ctrl.ControlConfig(layers=[1]))
    model = METHODS[method](tiny(), arm)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed == trained
    expected = {"full": "", "partial": "model.layers.1.", "control": "model.layers.1.expanded."}[method]
    assert all(name.startswith(expected) for name in trained)
    assert trained


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


@pytest.mark.parametrize("method", list(METHODS))
def test_trained_models_are_kept_and_load(method: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    arm = ArmConfig(name="x", method=method, learning_rates=(1e-3,), control=ctrl.ControlConfig(layers=[1]))
    model = METHODS[method](tiny(), arm)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_trained(model, tmp_path)
    if method == "control":
        again: Any = ctrl.load(tiny(), tmp_path)
    else:
        again = tiny()
        again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    ids = batch()["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_disk_full_is_seen_through_other_errors() -> None:
    outer = RuntimeError("writing failed")
    outer.__cause__ = OSError(28, "No space left on device")
    assert disk_full(outer)
    assert disk_full(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3153216 vs 3153104"))
    assert not disk_full(RuntimeError("something else"))


def test_every_shipped_config_loads() -> None:
    configs = sorted((Path(__file__).parents[2] / "experiments" / "configs").rglob("*.yaml"))
    assert configs
    for path in configs:
        assert path.read_text().startswith("# "), f"{path.name} says in its first line what it shows"
        load_config(path)
