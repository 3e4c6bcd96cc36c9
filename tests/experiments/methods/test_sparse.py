"""MoFO's steps, restated with plain Adam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.methods.sparse import Mofo, keep_largest
from experiments.runs.checks import check_run
from tests.helpers.engine import arm_config, config, train
from tests.helpers.tiny_llama import tiny


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_steps_are_adams_where_the_momentum_is_largest(share: float) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 7))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    Mofo(share=share).hook(optimizer)
    expected, m, v = weight.detach().clone(), torch.zeros(5, 7), torch.zeros(5, 7)
    for step in range(1, 5):
        weight.grad = torch.randn(5, 7)
        m, v = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad**2
        moved = 0.99 * expected - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        chosen = m.abs().flatten().argsort(descending=True)[: -int(-35 * share // 1)]
        mask = torch.zeros(35, dtype=torch.bool).index_fill(0, chosen, True).view(5, 7)
        expected = torch.where(mask, moved, expected)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_number_of_changed_entries_is_rounded_up() -> None:
    for share, count in ((0.01, 1), (0.1, 1), (0.11, 2), (0.5, 5), (1.0, 10)):
        now = torch.ones(10)
        keep_largest(now, torch.zeros(10), torch.arange(10.0) - 3.5, share)
        assert int(now.sum()) in (count, count + 1)  # |m| of two entries can be equal
        assert now[9] == 1


def test_in_the_engine_a_step_changes_the_share_of_each_tensor(tmp_path: Path) -> None:
    out = train(arm_config("mofo", {"share": 0.2}), tmp_path, steps=1, warmup_steps=0)
    for name, start in tiny().named_parameters():
        changed = int((out.weights[name] != start).sum())
        assert 0 < changed <= -int(-0.2 * start.numel() // 1) + 1, name


def test_it_is_refused_where_states_are_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.plan.launches.shards", lambda: True)
    with pytest.raises(ConfigError, match=r"method mofo changes the optimizer's steps, and FSDP and DeepSpeed have"):
        check_run(config(arm_config("mofo")), tiny())


@pytest.mark.parametrize("optim", ["muon", "adafactor", "sgd", "adamw_torch_8bit"])
def test_it_is_refused_with_an_optimizer_without_adams_means(optim: str) -> None:
    with pytest.raises(ConfigError, match=rf"method mofo reads Adam's means .* optim '{optim}' .* leave optim out"):
        check_run(config(arm_config("mofo"), arguments={"optim": optim}), tiny())
    check_run(config(arm_config("mofo"), arguments={"optim": "adamw_torch"}), tiny())
