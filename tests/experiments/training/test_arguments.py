"""Fields of TrainingArguments reach Trainer, or are refused with the reason; none of them is unknown to the bench."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from experiments.config import parse_config
from experiments.training.arguments import (
    FREE,
    OWNED,
    PASSED,
    check_arguments,
    identity,
    missing_package,
    optimizers,
    owned,
    unavailable,
)
from experiments.training.config import TrainingConfig
from experiments.training.train import training_arguments
from tests.helpers import engine
from tests.helpers.engine import Killed, arm_config, config, context, plan, train
from tests.helpers.tiny_llama import tiny

NESTED = "__bnb_optimizer_quant_state__"  # where bitsandbytes saves what FSDP is not to see
SMALLEST = 4096  # numbers of a tensor whose state is held in 8 bit
GIVEN = {  # a value of each that is not its default
    "optim": "adafactor", "optim_args": "eps=1e-6", "optim_target_modules": ["attn"], "adam_beta1": 0.8,
    "adam_beta2": 0.95, "adam_epsilon": 1e-6, "neftune_noise_alpha": 5.0, "tf32": False, "full_determinism": True,
    "torch_compile": True, "torch_compile_backend": "eager", "torch_compile_mode": "default",
    "torch_empty_cache_steps": 2, "dataloader_num_workers": 2, "dataloader_pin_memory": False,
    "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3,
    "dataloader_multiprocessing_context": "fork", "ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 50,
    "ddp_broadcast_buffers": False, "ddp_static_graph": True, "log_level": "error", "log_level_replica": "error",
}  # fmt: skip


def test_every_field_is_passed_or_refused_with_a_reason() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert [name for name in sorted(names) if name not in PASSED and not owned(name)] == []
    assert [name for name in PASSED if owned(name)] == []
    assert set(GIVEN) == set(PASSED)
    assert set(PASSED) > FREE


@pytest.mark.parametrize("name", [name for name in GIVEN if name not in ("full_determinism", "torch_compile_mode")])
def test_what_is_given_reaches_trainer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        "ACCELERATE_DYNAMO_BACKEND",
        "ACCELERATE_DYNAMO_MODE",
    ):  # which transformers sets for torch_compile
        monkeypatch.setenv(variable, "no")
    workers = {"dataloader_num_workers": 2} if name.startswith("dataloader_p") else {}
    given = config(arm_config("full"), arguments={**workers, name: GIVEN[name]})
    made = getattr(training_arguments(plan(given, tmp_path), context()), name)
    assert made in (GIVEN[name], str(GIVEN[name])) or made.value == GIVEN[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adam_beta2": "x"}, r"adam_beta2: Input should be a valid number \(got 'x'\)"),
        ({"adam_beta2": 1}, "adam_beta2=1: give a value from 0 on that is less than 1"),
        ({"dataloader_num_workers": 2.5}, "dataloader_num_workers: Input should be a valid integer"),
        ({"dataloader_num_workers": True}, "dataloader_num_workers: Input should be a valid integer"),
        ({"torch_compile": "maybe"}, "torch_compile: Input should be a valid boolean"),
        ({"adam_bta2": 0.9}, "unknown argument 'adam_bta2': did you mean 'adam_beta2'"),
        ({"optim": "adamw_8bt"}, "unknown optimizer 'adamw_8bt': did you mean 'adamw_8bit'"),
        ({"optim": "schedule_free_adamw"}, "its weights are those of training only after optimizer.train"),
        ({"optim": "galore_adamw_layerwise"}, "it steps inside the backward pass"),
        ({"dataloader_prefetch_factor": 2}, "no effect without dataloader_num_workers"),
        ({"save_steps": 5, "max_steps": 3}, r"save_steps: the bench saves .*; max_steps: it is training\.steps"),
    ],
)
def test_wrong_ones_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_arguments(given)


def test_owned_ones_name_a_field_of_the_bench_that_exists() -> None:
    for name, why in OWNED.items():
        for word in why.replace(",", " ").replace(":", " ").split():
            field = word.partition("training.")[2]
            assert not field or field in TrainingConfig.model_fields, (name, word)


def test_an_optimizer_without_its_package_is_named() -> None:
    assert missing_package({}) is None
    assert missing_package({"optim": "adafactor"}) is None
    said = missing_package({"optim": "adamw_anyprecision"})
    assert said == "training.arguments: optim 'adamw_anyprecision' needs the package torchdistx: pip install torchdistx"
    assert "adamw_torch_fused" in optimizers()


@pytest.mark.parametrize("value", ["nope", "spwan", "default"])
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("torch_compile_backend", "inductor"),
        ("torch_compile_mode", "default"),
        ("dataloader_multiprocessing_context", "spawn"),
    ],
)
def test_what_this_machine_does_not_have_is_named(name: str, right: str, value: str) -> None:
    """Before the base is measured; a file that names it can be read on any machine."""
    check_arguments({name: value})
    assert list(unavailable({name: right})) == []
    said = list(unavailable({name: value, "optim": "adamw_torch"}))
    assert [line.startswith(f"training.arguments: unknown {name} {value!r}: ") for line in said] == [True] * (
        value != right
    )


def test_a_digest_changes_with_what_can_change_a_result() -> None:
    def digest(**training: Any) -> str:
        arm = {"name": "a", "method": "full", "learning_rates": [1e-3]}
        return parse_config({"name": "x", "arms": [arm], "training": training}).digest()

    free = {"dataloader_num_workers": 2, "log_level": "error"}
    assert (
        digest()
        == digest(arguments=free)
        == digest(micro_batch=4)
        == digest(checkpointing="all")
        == digest(keep="none")
    )
    assert digest() == digest(arguments={}, rates={}, micro_batch=None, checkpointing="none")
    changed = [digest(arguments={"adam_beta2": 0.95}), digest(rates={"alpha": 10}), digest(batch_size=8)]
    assert len({digest(), *changed}) == 4
    assert identity({**free, "adam_beta2": 0.9}) == {"adam_beta2": 0.9}


def test_betas_optimizer_and_workers_are_those_of_the_step(tmp_path: Path) -> None:
    arm = arm_config("full")
    plain = train(arm, tmp_path / "plain", steps=3)
    workers = train(arm, tmp_path / "workers", steps=3, arguments={"dataloader_num_workers": 1})
    betas = train(arm, tmp_path / "betas", steps=3, arguments={"adam_beta1": 0.5})
    assert workers.logs == plain.logs
    assert betas.logs[1]["loss"] == plain.logs[1]["loss"]
    assert betas.logs[3]["loss"] != plain.logs[3]["loss"]


@pytest.mark.slow
def test_an_optimizer_in_8_bit_holds_large_tensors_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 4,096 numbers on; a model whose tensors are all smaller would train as with 32 bits."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("tests.helpers.engine.tiny", wide)
    arm, given = arm_config("full"), {"optim": "adamw_8bit"}
    plain = train(arm, tmp_path / "plain", steps=4)
    whole = train(arm, tmp_path / "whole", steps=4, arguments=given)
    large = {p.numel() for p in wide().parameters() if p.numel() >= SMALLEST}
    saved = torch.load(tmp_path / "whole" / "checkpoint-2" / "optimizer.pt", weights_only=False)
    states = [state.get(NESTED, state) for state in saved["state"].values()]
    held = {t.numel(): t.dtype for state in states for name, t in state.items() if name in ("state1", "state2")}
    held = {count: dtype for count, dtype in held.items() if count >= SMALLEST}
    assert set(held) == large
    assert set(held.values()) == {torch.uint8}
    assert whole.logs[4]["loss"] != plain.logs[4]["loss"]
    assert whole.logs[4]["loss"] == pytest.approx(plain.logs[4]["loss"], rel=0.02)
    with pytest.raises(Killed):
        train(arm, tmp_path / "killed", kill_at=4, steps=4, arguments=given)
    again = train(arm, tmp_path / "killed", steps=4, arguments=given)
    assert again.logs[4] == whole.logs[4]


def wide() -> LlamaForCausalLM:
    """A model with tensors on both sides of SMALLEST."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, pad_token_id=0, **sizes))


@pytest.mark.slow
def test_a_compiled_arm_trains_as_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through dynamo, without a compiler: the losses and the divergence are those of the plain run."""
    monkeypatch.setattr(engine, "tiny", lambda: tiny(depth=2))  # half of the layers to trace
    for variable in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(variable, "no")
    arm = arm_config("control", control={"layers": 1})
    plain = train(arm, tmp_path / "plain", steps=3)
    compiled = train(arm, tmp_path / "compiled", steps=3, arguments={"torch_compile_backend": "eager"})
    for step, logs in plain.logs.items():
        assert compiled.logs[step]["loss"] == pytest.approx(logs["loss"], rel=1e-4)
        assert compiled.logs[step]["divergence"] == pytest.approx(logs["divergence"], rel=1e-3, abs=1e-9)
    assert all(torch.isfinite(w).all() for w in compiled.weights.values())
