"""Check a config against its base model, the launcher and the device, which the checks of its fields cannot know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.attention_rows import check_attention
from ctrl.structure import decoder_layers, place
from experiments.common.errors import ConfigError, MachineError
from experiments.config import ExperimentConfig
from experiments.data.base_text import BaseText
from experiments.data.items import NewTask, NewText
from experiments.evaluation.evaluate import Suites
from experiments.methods.config import ArmConfig
from experiments.methods.low_rank import linear_names, lora_names, not_linear
from experiments.methods.tuning import Control
from experiments.models.positions import alike_up_to, embedding_rows, positions, trained_positions
from experiments.models.precision import Precision
from experiments.models.tokens import answer_ids, end_of_text, prompt_ids
from experiments.plan.launches import arm_faults, launch_faults, this_sharding
from experiments.training.arguments import unavailable
from experiments.training.checkpointing import why_not
from experiments.training.launcher import world_size
from experiments.training.lm_loss import why_unweighted

ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused")
MUCH = 0.1  # of the weights of the layers


def check_device() -> None:
    """Raise MachineError if a CUDA error has cost this process its GPU: all that it does next would fail for that."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise MachineError(
            f"this process lost its GPU by the error before ({str(error).partition(chr(10))[0]}). Everything recorded "
            "so far is kept, and what has not run does not count as failed: the same command goes on with it"
        ) from error


def check_run(config: ExperimentConfig, model: PreTrainedModel) -> None:
    """Raise ConfigError if an arm asks for layers or rows that do not exist, or for what the launcher cannot do.

    Called before anything is measured.
    """
    sharding = this_sharding()
    faults = [*launch_faults(config, sharding, Precision(config.precision).bf16), *_training_faults(config, model)]
    for arm in config.arms:
        of_arm = [*arm_faults(arm, config, sharding, world_size()), *_arm_faults(arm, config, model)]
        faults += [f"arm {arm.name!r}: {fault}" for fault in of_arm]
    if faults:
        raise ConfigError("\n".join(faults))


def passed_over(config: ExperimentConfig, model: PreTrainedModel) -> Iterator[str]:
    """Say which arms train linear layers alone, if much of the model is none: the experts of a mixture are stacked."""
    arms = [arm.name for arm in config.arms if arm.build().tuning.linear_layers(model) is not None]
    share, names = not_linear(model) if arms else (0.0, [])
    if share > MUCH:
        yield (
            f"{', '.join(arms)}: {share:.0%} of the weights of the model's layers are in no linear layer, so they do "
            f"not train ({', '.join(names)}). To adapt them: "
            "train: {peft: {type: lora, target_parameters: [NAME, ...]}}"
        )
    refused = {*linear_names(model, "all")} - {*lora_names(model, "all")} if arms else set()
    found = {arm.name: arm.build().tuning for arm in config.arms}
    low = [name for name, t in found.items() if t.adapts and refused.isdisjoint(t.linear_layers(model) or refused)]
    if refused and low:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in refused}))
        yield f"{', '.join(low)}: PEFT puts no low-rank adapters on {kinds} of this model, so it stays as it is"


def check_tokens(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if prompts have ids without an embedding, or if rows or sampled texts are too long.

    Called before anything is measured.
    """
    faults = [*_id_faults(config, model, tokenizer), *_length_faults(config, positions(model), tokenizer)]
    if faults:
        raise ConfigError("\n".join(faults))


def check_suites(name: str, model: PreTrainedModel, suites: Suites) -> None:
    """Raise ConfigError if a suite reads more tokens at once than the model has positions. name: of the base model."""
    most = positions(model)
    for asked, suite in suites.suites.items():
        if most is not None and suite.longest > most:
            raise ConfigError(
                f"evaluation.suites.{asked}: its longest prompt and reply have {suite.longest} tokens, but "
                f"{name} has {most} positions: ask for shorter ones, or leave the suite out"
            )


def beyond_training(name: str, model: PreTrainedModel, suites: Suites, length: int = 0) -> Iterator[str]:
    """Say what reads more tokens at once than a model that computes positions was trained with, or reads alike.

    name: of the base model. length: of the rows that are trained on, if any are.
    """
    most, alike = trained_positions(model) or math.inf, alike_up_to(model) or math.inf
    longest = {"data.length: rows": length}
    longest |= {f"evaluation.suites.{asked}: texts": suite.longest for asked, suite in suites.suites.items()}
    for what, tokens in longest.items():
        if tokens > most:
            yield (
                f"{what} may have up to {tokens:,} tokens, and {name} was trained with {most:,} positions "
                "(max_position_embeddings): it reads more, but has learned none of them"
            )
        if tokens > alike:
            yield (
                f"{what} may have up to {tokens:,} tokens, and beyond {alike:,} {name} reads all texts of "
                "a pass with other frequencies (rope_type), so that shorter ones depend on what is read with them"
            )


def unread_loss(config: ExperimentConfig, tasks: Iterable[NewTask | NewText]) -> Iterator[str]:
    """Say that `data.loss` is given and that the new task has no chats."""
    if config.data.loss != "all_turns" and all(isinstance(task, NewText) for task in tasks):
        yield (
            f"data.loss: {config.data.loss} is of chats, and has no effect on the new task: of its texts all tokens "
            "are learned"
        )


def _id_faults(config: ExperimentConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = embedding_rows(model)
    ids = {*prompt_ids(tokenizer, "a"), *answer_ids(tokenizer, "a", "a"), end_of_text(tokenizer)}
    beyond = [f"{i} ({tokenizer.convert_ids_to_tokens(i)})" for i in sorted(ids) if i >= rows]
    if not beyond:
        return []
    return [
        f"base_model {config.base_model}: its tokenizer writes the ids {', '.join(beyond)}, but its embedding has "
        f"{rows} rows: take the tokenizer that it was trained with, or save it after resize_token_embeddings"
    ]


def _length_faults(config: ExperimentConfig, most: int | None, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """most: the model's positions."""
    if most is None:
        return []
    has, faults = f"but {config.base_model} has {most} positions", []
    if config.data.length > most:
        faults.append(f"data.length={config.data.length}, {has}: lower it to {most}")
    for source in config.data.old:
        if isinstance(source, BaseText) and (needed := _sampled(source, tokenizer)) > most:
            asked = f"data.old, source self: max_tokens={source.max_tokens} needs up to {needed} tokens"
            faults.append(f"{asked}, {has}: lower it")
    return faults


def _sampled(source: BaseText, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens of a sampled chat, or of a text if there is no chat template."""
    if not tokenizer.chat_template:
        return 1 + source.max_tokens
    return len(prompt_ids(tokenizer, "")) + 2 * source.max_tokens


def _training_faults(config: ExperimentConfig, model: PreTrainedModel) -> list[str]:
    training = config.training
    reason = None if training.checkpointing == "none" else why_not(model)
    return [
        *unavailable(training.arguments),
        *([f"training.checkpointing: {reason}"] if reason else []),
    ]


def _arm_faults(arm: ArmConfig, config: ExperimentConfig, model: PreTrainedModel) -> list[str]:
    method, faults = arm.build(), []
    replay = config.data.replay if arm.replay is None else arm.replay
    if method.needs_replay and not (replay and config.data.old):
        faults.append("its options need replayed rows: give data.old, and data.replay or its replay")
    optim = config.training.arguments.get("optim", "adamw_torch")
    if method.hooks_optimizer and optim not in ADAM:
        faults.append(
            f"method {arm.method_name} reads Adam's means of gradients, whole and in floats, which optim {optim!r} of "
            "training.arguments has not: leave optim out, or leave the arm out"
        )
    if (method.weighs_tokens or method.penalises_tokens) and (reason := why_unweighted(model)):
        faults.append(f"method {arm.method_name} weighs or penalises tokens, but {reason}")
    compares_attention = isinstance(method.tuning, Control) and method.tuning.config.divergence == "attention"
    if compares_attention and (attention := model.config._attn_implementation) != "eager":
        return [
            *faults,
            f"control.divergence 'attention' reads attention weights, which {attention!r} attention does not return: "
            "set attention: eager",
        ]
    try:
        if method.tuning.linear_layers(model) == []:
            faults.append("its targets are linear layers, and this model has none there: set targets to all")
        if compares_attention:
            check_attention(model.config)
        if method.layer_choice is not None:
            place(method.layer_choice, len(decoder_layers(model)))
    except ctrl.ConfigError as error:
        faults.append(str(error))
    return faults
