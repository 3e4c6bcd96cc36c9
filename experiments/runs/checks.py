"""Check a config against its base model and the launcher, which the checks of its fields cannot know."""

from __future__ import annotations

from transformers import PreTrainedModel

import ctrl
from ctrl.structure import decoder_layers, place
from experiments.common.errors import ConfigError
from experiments.config import ArmConfig, ExperimentConfig
from experiments.models.precision import Precision
from experiments.training.lm_loss import why_unweighted
from experiments.training.processes import deepspeed, shards


def check_run(config: ExperimentConfig, model: PreTrainedModel) -> None:
    """Raise ConfigError if an arm asks for layers or rows that do not exist, or for what the launcher cannot do.

    Called before anything is measured.
    """
    faults = _precision_faults(config)
    for arm in config.arms:
        faults += [f"arm {arm.name!r}: {fault}" for fault in _arm_faults(arm, config, model)]
    if faults:
        raise ConfigError("\n".join(faults))


def _precision_faults(config: ExperimentConfig) -> list[str]:
    if not (deepspeed() and Precision(config.precision).bf16):
        return []
    return [
        f"precision {config.precision!r} means bf16 here, and DeepSpeed would hold all weights in it, norms too, "
        "which is not the run of one process: set precision to fp32, or use accelerate launch --use_fsdp "
        "--fsdp_version 2"
    ]


def _arm_faults(arm: ArmConfig, config: ExperimentConfig, model: PreTrainedModel) -> list[str]:
    method, faults = arm.build(), []
    replay = config.data.replay if arm.replay is None else arm.replay
    if method.needs_replay and not (replay and config.data.old):
        faults.append("its options need replayed rows: give data.old, and data.replay or its replay")
    if method.reads_weights and shards():
        faults.append(
            f"method {arm.method_name} adds a function of all weights to the loss, and FSDP has them in shards: launch "
            "it without FSDP (each process then has the whole model), or leave the arm out"
        )
    if method.writes_weights and deepspeed():
        faults.append(
            f"method {arm.method_name} sets weights between steps, and DeepSpeed trains copies of its own: launch it "
            "without DeepSpeed, or leave the arm out"
        )
    if method.token_weights and (reason := why_unweighted(model)):
        faults.append(f"method {arm.method_name} weighs tokens, but {reason}")
    if method.layer_choice is not None:
        try:
            place(method.layer_choice, len(decoder_layers(model)))
        except ctrl.ConfigError as error:
            faults.append(str(error))
    return faults
