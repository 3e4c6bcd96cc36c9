"""The parts of a step and the stages of an arm add up by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from experiments.methods import Method
from experiments.methods.sparse import Mofo
from experiments.models.generation import BATCH
from experiments.models.precision import Precision
from experiments.plan.memory import STATES, Setup, disk, mean_state, stages, state_bytes, training
from experiments.plan.meter import Pass
from experiments.plan.shape import Shape, build
from experiments.training.arguments import optimizers
from experiments.training.config import TrainingConfig
from experiments.training.muon import MuonAdamW
from tests.helpers.small_run import small_arm, tiny_base
from tests.helpers.tiny_llama import tiny

ONE = Pass(peak=900, activations=700, kept=600, gradients=400, flops=1)
ALONE = Setup(rows=2, micro_batches=1, length=16)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    given = small_arm(tiny_base(tmp_path_factory.mktemp("base")), method="control", control={"layers": 2})
    return build(given, given.arms[0], Precision("bf16"))


def test_a_step_is_the_sum_of_its_parts(shape: Shape) -> None:
    weights, trained = shape.bytes_of(True) + shape.bytes_of(False), shape.counts.trained
    parts = training(shape, ONE, ALONE)
    assert parts == {
        "weights": weights, "gradients": 400, "optimizer": 8 * trained, "method": 0, "activations": 500, "gathered": 0,
    }  # fmt: skip
    assert training(shape, ONE, replace(ALONE, micro_batches=2))["activations"] == 700  # gradients are there already
    assert training(shape, ONE, replace(ALONE, state=2.0))["optimizer"] == 2 * trained
    assert training(replace(shape, base_copies=7), ONE, ALONE)["method"] == 7
    mofo = replace(shape, method=Method(Mofo()))  # copies the weights when activations are gone
    assert training(mofo, ONE, ALONE)["activations"] == 4 * trained
    assert training(mofo, replace(ONE, peak=10**9), ALONE)["activations"] == 10**9 - 400
    four = replace(ALONE, devices=4, sharding="fsdp")
    assert training(mofo, ONE, four)["activations"] == trained


def test_devices_hold_parts(shape: Shape) -> None:
    counts = shape.counts
    whole = training(shape, ONE, ALONE)
    ddp = training(shape, ONE, replace(ALONE, devices=4))
    assert ddp["weights"] == whole["weights"]
    assert ddp["gathered"] == 400  # buckets
    zero2 = training(shape, ONE, replace(ALONE, devices=4, sharding="zero2"))
    assert (zero2["weights"], zero2["optimizer"], zero2["gradients"]) == (
        whole["weights"],
        whole["optimizer"] / 4,
        100,
    )
    fsdp = training(shape, ONE, replace(ALONE, devices=4, sharding="fsdp"))
    assert fsdp["weights"] == whole["weights"] / 4
    assert fsdp["gathered"] == 4 * (2 * counts.largest + counts.outside)


def test_stages_and_disk(shape: Shape) -> None:
    counts, parts = shape.counts, training(shape, ONE, ALONE)
    found = stages(shape, sum(parts.values()), parts, ALONE)
    per_layer = BATCH * 2 * 2 * 16 * 8  # rows, bf16, keys and values, tokens, one head of 8
    logits = BATCH * 4 * 2 * shape.model.config.vocab_size
    assert found["load"] == 4 * counts.base
    assert found["expansion"] == 4 * counts.total
    assert found["training"] == sum(parts.values())
    assert found["base evaluation"] == 4 * counts.base + shape.base_cast + 3 * per_layer + logits
    held = parts["weights"] + parts["optimizer"]
    assert found["evaluation"] == held + shape.linear_cast() + 5 * per_layer + logits  # two copies have caches too
    cast = shape.base_cast * counts.total / counts.base
    assert found["post-hoc"] == 4 * counts.total + cast + 5 * per_layer + logits
    assert disk(shape, ALONE, TrainingConfig()) == {
        "checkpoints": 2 * 12 * counts.trained, "trained": 4 * counts.trained, "MLflow": 4 * counts.trained,
    }  # fmt: skip


def test_every_optimizer_has_a_size() -> None:
    named = {name: state_bytes(name) for name in optimizers()}
    assert named["adamw_torch_fused"] == 8
    assert named["adamw_8bit"] == named["paged_adamw_8bit"] == named["adamw_torch_8bit"] == 2
    assert (named["adafactor"], named["lion_8bit"], named["rmsprop_bnb_8bit"]) == (0, 1, 1)
    assert named["ademamix"] == named["grokadamw"] == 12
    assert len(set(STATES.values())) > 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"optim": "muon"},
        {"optim": "sgd"},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9"},
        {"optim": "rmsprop", "optim_args": "momentum=0.5,centered=yes"},
    ],
)
def test_the_state_of_an_optimizer_is_what_it_keeps(arguments: dict[str, str], shape: Shape, tmp_path: Path) -> None:
    """Most numbers of this model are of words, which Muon leaves to AdamW."""
    model = tiny()
    optimizer: Any = MuonAdamW(model, set(), lr=1e-3)
    if arguments["optim"] != "muon":
        kind, given = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), **arguments))
        optimizer = kind(model.parameters(), **given)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(v.numel() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.dim())
    count = sum(p.numel() for p in model.parameters())
    mine = replace(shape, model=model, counts=replace(shape.counts, trained=count))
    assert mean_state(mine, arguments) * count == pytest.approx(4 * kept)


@pytest.mark.parametrize(
    ("given", "trained", "stored"),
    [
        ({"keep": "none"}, 0, 0),
        ({"keep": "local"}, 4, 0),
        ({"keep": "best"}, 4, 0),
        ({"keep_dtype": "bf16"}, 2, 2),
    ],
)
def test_weights_on_disk_are_those_that_stay(shape: Shape, given: dict[str, str], trained: int, stored: int) -> None:
    found = disk(shape, ALONE, TrainingConfig.model_validate(given))
    assert (found["trained"], found["MLflow"]) == (trained * shape.counts.trained, stored * shape.counts.trained)
