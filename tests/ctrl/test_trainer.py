"""The expanded model inside transformers' own Trainer: accumulation, checkpoints and resume, checkpointing, compile."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import ctrl
from ctrl.interpolation import INTERPOLATIONS


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def sequences(count: int = 8, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Sequences of unlike length, prompts (no label) of unlike length, right-padded: nothing is proportional."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length, prompt = 6 + (5 * i) % 11, 1 + (3 * i) % 5
        ids = torch.zeros(17, dtype=torch.long)
        ids[:length] = torch.randint(1, 96, (length,), generator=generator)
        labels = ids.clone()
        labels[:prompt] = -100
        labels[length:] = -100
        rows.append({"input_ids": ids, "attention_mask": (torch.arange(17) < length).long(), "labels": labels})
    return rows


def expanded(layers: int | list[int] = 2, dtype: torch.dtype = torch.float32, **kwargs: Any) -> LlamaForCausalLM:
    """Expanded and disturbed, so that the branches differ and the divergence has a gradient. dtype: the base's."""
    base: Any = tiny().to(dtype)  # type: ignore[arg-type]
    model = ctrl.expand(base, ctrl.ControlConfig(layers=layers, divergence_weight=5.0, **kwargs))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


class KeepGradients(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def arguments(folder: Path, **kwargs: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-2, "max_grad_norm": 1e9, "use_cpu": True}
    defaults |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    return TrainingArguments(output_dir=str(folder), **(defaults | kwargs))


def trainer_gradients(folder: Path, batch: int, accumulation: int, **kwargs: Any) -> dict[str, torch.Tensor]:
    keep = KeepGradients()
    args = arguments(folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    Trainer(model=expanded(**kwargs), args=args, train_dataset=sequences(), callbacks=[keep]).train()
    return keep.gradients


@pytest.mark.parametrize("tokens", ["real", "labels"])
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path, tokens: str, micro: int) -> None:
    large = trainer_gradients(tmp_path / "a", 8, 1, divergence_tokens=tokens)
    small = trainer_gradients(tmp_path / "b", micro, 8 // micro, divergence_tokens=tokens)
    assert large.keys() == small.keys()
    assert large
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_accumulation_test_can_fail(tmp_path: Path) -> None:
    """Without the divergence the gradients are others: the test above does look at it."""
    with_divergence = trainer_gradients(tmp_path / "a", 8, 1)
    without = trainer_gradients(tmp_path / "b", 8, 1, divergence="none")
    assert any(not torch.allclose(without[n], g, rtol=1e-3, atol=1e-6) for n, g in with_divergence.items())


def test_loss_is_lm_loss_plus_weighted_mean_over_real_tokens() -> None:
    """Layer 0 alone is expanded, so both branches see the embeddings and a is the base model's first hidden state."""
    model = expanded(layers=[0])
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    b: list[torch.Tensor] = []
    model.model.layers[0].expanded.register_forward_hook(lambda module, inputs, output: b.append(output))
    out = model(**batch)
    with ctrl.pretrained(model):
        base = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    expected = (b[0] - base.hidden_states[1]).square().mean(-1)[real].mean()
    torch.testing.assert_close(out.divergence, expected)
    torch.testing.assert_close(out.loss, out.lm_loss + 5.0 * expected)
    assert expected > 0


def test_without_labels_nothing_is_added() -> None:
    model = expanded().eval()
    out = model(input_ids=sequences()[0]["input_ids"][None])
    assert out.loss is None
    assert not hasattr(out, "divergence")
    assert model.control.current is None


def test_padding_does_not_change_the_divergence() -> None:
    model = expanded().eval()
    row = sequences()[1]
    length = int(row["attention_mask"].sum())
    padded = model(**{k: v[None] for k, v in row.items()})
    bare = model(**{k: v[None, :length] for k, v in row.items()})
    torch.testing.assert_close(padded.divergence, bare.divergence)
    left = {k: torch.cat([torch.full((3,), -100 if k == "labels" else 0), v[:length]])[None] for k, v in row.items()}
    torch.testing.assert_close(model(**left).divergence, bare.divergence)


def test_reentrant_checkpointing_is_refused_and_the_other_gives_the_same_gradients() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    plain, checkpointed = expanded().train(), expanded().train()
    plain(**batch).loss.backward()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed(**batch).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.requires_grad:
            assert q.grad is not None, name
            torch.testing.assert_close(q.grad, p.grad, msg=name)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    checkpointed.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        checkpointed(**batch)


def test_a_loss_without_a_path_to_the_copies_is_no_fault_of_checkpointing() -> None:
    """Nothing trains but the head, or one gate: the divergence has no gradient, and needs none."""
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    for trains in ("lm_head", "3.interpolation"):
        model = expanded(interpolation="dlerpin", alpha="learned").train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains in name)
        for _ in range(2):
            model(**batch).loss.backward()
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
            model.zero_grad()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("taken", ["label_smoothing_factor", "compute_loss_func", None])
def test_labels_that_trainer_keeps_to_itself_are_missed_aloud(tmp_path: Path, taken: str | None) -> None:
    """Without labels the model computes no loss, so its divergence would vanish without a word."""
    smoothing = {"label_smoothing_factor": 0.1} if taken == "label_smoothing_factor" else {}
    own = (lambda out, labels, **_: out.logits.square().mean()) if taken == "compute_loss_func" else None
    args = arguments(tmp_path, max_steps=2, **smoothing)
    trainer = Trainer(model=expanded(), args=args, train_dataset=sequences(), compute_loss_func=own)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.train()
    found = [str(w.message) for w in seen if "leaves out divergence='mse'" in str(w.message)]
    assert len(found) == (taken is not None)
    assert all("label_smoothing_factor or compute_loss_func" in message for message in found)


@pytest.mark.parametrize("values", [{"divergence": "none"}, {"divergence_weight": 0.0}, {"structure": "stack"}])
def test_where_no_divergence_is_wanted_none_is_missed(values: dict[str, Any]) -> None:
    ids = sequences()[0]["input_ids"][None]
    model = ctrl.expand(tiny(), ctrl.ControlConfig(**{"layers": 2, **values})).train()
    other = expanded().train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids)
        with torch.no_grad():
            other(ids)
        with ctrl.pretrained(other):
            other(ids)
        other.eval()(ids)
    with pytest.warns(UserWarning, match="Pass the labels to the model"):
        other.train()(ids)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def trainer(folder: Path, steps: int, **kwargs: Any) -> Trainer:
        args = arguments(folder, max_steps=steps, per_device_train_batch_size=2, **kwargs)
        return Trainer(model=expanded(alpha="learned"), args=args, train_dataset=sequences())

    whole = trainer(tmp_path / "whole", 6)
    whole.train()
    first = trainer(tmp_path / "parts", 6, save_strategy="steps", save_steps=3)
    first.train()
    second = trainer(tmp_path / "parts", 6)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert second.state.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    weights = ctrl.checkpoint.read_tensors(tmp_path / "parts" / "checkpoint-3" / "model.safetensors")
    assert set(weights) == set(ctrl.checkpoint.trained_names(whole.model))  # the checkpoint holds what trains, no more


def test_evaluation_in_trainer_returns_logits_alone(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    out = Trainer(model=expanded(), args=args).predict(sequences())  # type: ignore[arg-type]
    assert out.predictions.shape == (8, 17, 96)
    assert out.metrics is not None
    assert out.metrics["test_loss"] > 0


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    model = expanded().eval()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    reference = model(**batch)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
    torch.testing.assert_close(compiled.loss, reference.loss)
    torch.testing.assert_close(compiled.divergence, reference.divergence)
    compiled.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *({"interpolation": name} for name in INTERPOLATIONS),
        {"structure": "stack"},
        {"structure": "hybrid"},
        {"divergence": "norm", "scale_by_alpha": True},
        {"norm_mix": "alpha"},
        {"expanded": "lora"},
    ],
    ids=str,
)
def test_every_variant_is_traced_without_a_graph_break(settings: dict[str, Any]) -> None:
    model = expanded(**settings).eval()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    expected = model(**batch).loss
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(**batch).loss, expected)


def test_deepcopy_after_a_forward_is_independent() -> None:
    model = expanded()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    out = model(**batch)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(**batch).loss, out.loss)
    with ctrl.pretrained(copied):
        assert model.control.enabled
        assert not copied.control.enabled
