"""Trained tensors in the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

import ctrl
from experiments.models import load_base
from experiments.tracking.sync import download
from experiments.tracking.tracking import Tracker
from tests.experiments.small import tiny_base


def test_trained_tensors_come_back_from_the_store(root: Path, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    model, _ = load_base(base)
    ctrl.expand(model, ctrl.ControlConfig(layers=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    ctrl.save(model, tmp_path / "trained")
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run.log_model(tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained")
    again = ctrl.load(load_base(base)[0], download(run.id, "trained", root))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(tokens).logits, model.eval()(tokens).logits)
        assert not torch.equal(load_base(base)[0].eval()(tokens).logits, model(tokens).logits)
