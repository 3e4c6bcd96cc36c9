"""Bytes and FLOPs of a traced pass against real tensors and against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.config import ExperimentConfig
from experiments.methods import MethodContext
from experiments.methods.tables import TUNINGS
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision
from experiments.plan.meter import StorageMeter, trace
from experiments.plan.shape import build
from experiments.training.lm_loss import lm_loss
from tests.helpers.engine import OPTIONS
from tests.helpers.small_run import small_arm, tiny_base

FP32 = Precision("fp32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_bytes_that_exist_at_once() -> None:
    """Three products of 4 kB, of which the first is freed before the third; then a view and a gradient."""
    with FakeTensorMode():
        layer = nn.Linear(32, 32, bias=False)
        x = torch.zeros(32, 32)
        with StorageMeter(layer) as meter:
            first = x @ x
            second = first @ x
            assert meter.live == 2 * 4096
            del first
            assert meter.live == 4096
            third = second @ x
            view = third.view(-1)
            assert (meter.live, meter.peak, len(view)) == (2 * 4096, 2 * 4096, 1024)
            del second, third, view
            assert (meter.live, meter.flops) == (0, 3 * 2 * 32**3)
            layer(x).sum().backward()
            assert sum(meter.gradients.values()) == 4096
            layer.weight.grad = None
            assert not meter.gradients


def real(given: ExperimentConfig, rows: int, length: int) -> tuple[int, int]:
    """Return the bytes of gradients and the FLOPs of a real pass."""
    model: Any = given.arms[0].build().prepare(given.load_base()[0], MethodContext(0, FP32)).train()
    ids = torch.randint(5, 90, (rows, length), generator=torch.Generator().manual_seed(0))
    batch: dict[str, Tensor] = only_label_logits({"input_ids": ids, "labels": ids})
    with lm_loss(model)(), FlopCounterMode(display=False) as counter:
        model(**batch, use_cache=False).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return sum(g.numel() * g.element_size() for g in grads), counter.get_total_flops()


@pytest.mark.parametrize("method", sorted({*TUNINGS} - {"corda"}))  # which reads text before it trains
def test_a_pass_is_the_real_one(method: str, base: str) -> None:
    given = small_arm(base, method=method, control={"layers": 2}, options=OPTIONS.get(method, {}))
    one = trace(build(given, given.arms[0], FP32), 2, 16, False)
    gradients, flops = real(given, 2, 16)
    assert one.gradients == gradients
    # torch's counter knows neither the CPU's attention nor products in place, such as the gradient of the head
    assert flops <= one.flops <= 2 * flops
    assert one.peak >= one.activations > 0
    assert one.peak <= one.activations + one.gradients


def test_activations_are_a_straight_line_in_rows_and_checkpointing_lowers_it(base: str) -> None:
    given = small_arm(base, method="control", control={"layers": 2})

    def kept(rows: int, how: str = "none", padded: bool = False) -> int:
        return trace(build(given, given.arms[0], FP32), rows, 16, padded, how).kept

    assert kept(3) - kept(2) == kept(2) - kept(1) > 0
    assert kept(2, "all") < kept(2, "frozen") < kept(2)
    assert kept(2, padded=True) > kept(2)  # a mask of length x length
