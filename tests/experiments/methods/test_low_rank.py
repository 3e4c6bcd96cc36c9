"""Low-rank adapters: their scales, and CorDA's directions against a restatement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.methods.adapters import Peft
from experiments.methods.batches import single_rows
from experiments.methods.low_rank import Corda, Lora, Rslora, linear_names
from tests.helpers.engine import context, old_text
from tests.helpers.readers import build_other
from tests.helpers.tiny_llama import tiny


def test_low_rank_scales() -> None:
    scales = []
    for cls in (Lora, Rslora):
        model: Any = cls(rank=4, alpha=8).prepare(tiny(), context())
        scales.append(model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"])
    assert scales == [2.0, 4.0]


def test_targets_never_hold_the_head() -> None:
    every, mlp = (set(linear_names(tiny(), targets)) for targets in ("all", "mlp"))
    assert len(every) == 4 * 7
    assert mlp == {name for name in every if ".mlp." in name}


@pytest.mark.parametrize(
    "made", [Lora(), Peft.model_validate({"type": "lora"}), Peft.model_validate({"type": "oft", "oft_block_size": 4})]
)
def test_what_peft_refuses_of_mamba_stays_as_it_is(made: Lora | Peft) -> None:
    """The arm failed in PEFT, after all others had trained."""
    adapted: Any = made.prepare(build_other("mamba"), context())
    known = {name.rpartition(".")[2] for name, m in adapted.named_modules() if hasattr(m, "base_layer")}
    assert known == {"in_proj", "x_proj", "dt_proj", *(["out_proj"] if getattr(made, "type", "") == "oft" else [])}


def test_corda_keeps_the_directions_that_old_text_uses() -> None:
    """Restated: with W C = U S V^T the adapter holds the `rank` smallest terms, so B A = U_r S_r V_r^T C^-1."""
    model: Any = Corda(rank=2, batches=2).prepare(tiny(), context())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    adapter = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    base: Any = tiny().eval()
    inputs: list[Tensor] = []
    base.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
    with torch.no_grad():
        for row in single_rows(old_text(2), base.device):
            base(input_ids=row["input_ids"])
    scaled = [x / x.max().abs() for x in inputs]
    covariance = torch.stack([x.T @ x for x in scaled]).mean(0)
    covariance = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    u, s, vh = torch.linalg.svd(base.model.layers[0].self_attn.q_proj.weight @ covariance)
    expected = u[:, -2:] @ torch.diag(s[-2:]) @ vh[-2:] @ torch.linalg.inv(covariance)
    torch.testing.assert_close(adapter.detach(), expected.detach(), rtol=1e-2, atol=1e-4)
