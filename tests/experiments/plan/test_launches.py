"""A plan refuses what a run in that launch refuses, in the same words, and proposes no launch of that kind."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.plan.accelerators import GPUS, Device
from experiments.plan.memory import Sharding
from experiments.plan.plan import plan_run
from experiments.runs.checks import check_run
from tests.helpers.small_run import small_config, tiny_base
from tests.helpers.tiny_llama import tiny

USES = {"fsdp": "ACCELERATE_USE_FSDP", "zero2": "ACCELERATE_USE_DEEPSPEED"}
FULL = {"name": "full", "method": "full", "learning_rates": [1e-3]}
TRAINING = {"steps": 10, "batch_size": 8, "warmup_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def launched(sharding: Sharding, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a launcher sets."""
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    if sharding in USES:
        monkeypatch.setenv(USES[sharding], "true")


@pytest.mark.parametrize(
    ("arm", "training", "sharding", "devices"),
    [
        ({"train": "full", "loss": ["l2sp"]}, {}, "fsdp", 2),
        ({"method": "mofo"}, {}, "fsdp", 2),
        ({"method": "mofo"}, {}, "zero2", 2),
        ({"method": "mer"}, {}, "zero2", 2),
        ({"train": "full", "loss": ["talr"]}, {}, "none", 2),
        ({"train": "full", "loss": ["talr"]}, {"micro_batch": 2}, "none", 1),
    ],
)
def test_an_arm_that_a_launch_cannot_train_is_not_planned(
    arm: dict[str, Any],
    training: dict[str, Any],
    sharding: Sharding,
    devices: int,
    base: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms = [FULL, {"name": "x", "learning_rates": [1e-3], **arm}]
    config = small_config(base, arms=arms, training=TRAINING | training, data={"length": 16})
    plan = plan_run(config, GPUS["h100-80gb"], devices, sharding)
    assert [one.name for one in plan.arms] == ["full"]
    launched(sharding, devices, monkeypatch)
    with pytest.raises(ConfigError, match="arm 'x': method") as refused:
        check_run(config, tiny())
    assert str(refused.value) == f"arm 'x': {plan.failed['x']}"


@pytest.mark.parametrize(
    ("fields", "training", "sharding"),
    [
        ({"precision": "bf16"}, {}, "zero2"),
        ({"precision": "auto"}, {}, "zero2"),
        ({}, {"arguments": {"optim": "muon"}}, "fsdp"),
        ({"quantised": "8bit"}, {}, "zero2"),
    ],
)
def test_what_no_arm_can_do_in_a_launch_is_refused(
    fields: dict[str, Any], training: dict[str, Any], sharding: Sharding, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = {"name": "x", "method": "lora", "learning_rates": [1e-3]} if "quantised" in fields else FULL
    config = small_config(base, arms=[arm], training=TRAINING | training, **fields)
    launched(sharding, 2, monkeypatch)
    monkeypatch.setattr("experiments.models.precision.bf16_pays", lambda: (True, "as on that GPU"))
    with pytest.raises(ConfigError, match="DeepSpeed") as run:
        check_run(config, tiny())
    with pytest.raises(ConfigError, match="DeepSpeed") as plan:
        plan_run(config, GPUS["h100-80gb"], 2, sharding)
    assert str(plan.value) == str(run.value)


@pytest.mark.slow
def test_no_change_is_proposed_that_a_run_refuses(base: str) -> None:
    """Parts of a batch, or shards, for an arm that needs the whole."""

    def small(arm: dict[str, Any]) -> ExperimentConfig:
        arms = [{"name": "x", "learning_rates": [1e-3], **arm}]
        return small_config(base, arms=arms, training=TRAINING, data={"length": 64})

    whole = plan_run(small({"method": "full"}), Device("a roomy device", 1e12)).arms[0].peak
    changes = [
        plan_run(small(arm), Device("a device", share * whole)).arms[0].change
        for arm, share in (
            ({"method": "full"}, 0.25),
            ({"method": "mofo"}, 0.25),
            ({"train": "full", "loss": ["talr"]}, 0.6),
        )
    ]
    assert changes[0] is not None
    assert changes[0].endswith("and --devices 4 --sharding fsdp")
    assert changes[1:] == [None, None]
