"""Muon moves matrices by orthogonal steps, AdamW all else; a resumed arm goes on with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.runs.checks import check_run
from experiments.training.muon import MuonAdamW, of_words
from tests.helpers.engine import arm_config, train
from tests.helpers.small_run import small_config
from tests.helpers.tiny_llama import tiny

MUON = {"optim": "muon"}


def moved(folder: Path, method: str, **training: Any) -> dict[str, torch.Tensor]:
    """What one step changes of each parameter that trains, by name; its size is the learning rate of .01."""
    once = train(arm_config(method), folder / "one", steps=1, warmup_steps=0, **training)
    none = train(arm_config(method), folder / "none", steps=1, warmup_steps=1, **training)  # at a rate of 0
    return {name: once.weights[name] - none.weights[name] for name in once.weights}


def test_a_step_is_the_orthogonal_matrix_nearest_to_the_gradient() -> None:
    """U V^T of the gradient's U S V^T, up to what five steps of Newton-Schulz in bf16 leave."""
    model = tiny()
    weight = model.model.layers[0].mlp.up_proj.weight
    optimizer, before = MuonAdamW(model, set(), lr=1e-2), weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
    turned = u.T @ (before - weight.detach()) @ v.T / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
    assert turned.diagonal().min() > 0.5
    assert turned.diagonal().max() < 1.5
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.1


def test_matrices_move_by_a_fifth_of_the_rate_and_all_else_as_with_adam(tmp_path: Path) -> None:
    muon, adam = moved(tmp_path / "m", "full", arguments=MUON), moved(tmp_path / "a", "full")
    model = tiny()
    own = {id(p) for p in of_words(model)}
    for name, p in model.named_parameters():
        if p.dim() != 2 or id(p) in own:
            torch.testing.assert_close(muon[name], adam[name])
            continue
        assert 0.05 < muon[name].square().mean().sqrt() / 1e-2 < 0.3  # of the rate; adam's first step is all of it


def test_a_resumed_arm_goes_on_with_both(tmp_path: Path) -> None:
    given = {"arguments": MUON, "weight_decay": 0.1, "rates": {"alpha": 3}}
    arm = arm_config("control", control={"layers": 2, "alpha": "learned"})
    whole = train(arm, tmp_path / "whole", **given)
    train(arm, tmp_path / "killed", steps=4, save_every=2, **given)
    again = train(arm, tmp_path / "killed", **given)
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())
    plain = train(arm, tmp_path / "plain", **{**given, "arguments": {}})
    assert any(not torch.equal(plain.weights[name], value) for name, value in whole.weights.items())


def test_shards_are_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.plan.launches.shards", lambda: True)
    values = small_config(base).to_dict()
    values["training"]["arguments"] = MUON
    given = parse_config(values)
    with pytest.raises(ConfigError, match="optim 'muon' needs whole matrices, and FSDP and DeepSpeed cut them"):
        check_run(given, given.load_base()[0])
