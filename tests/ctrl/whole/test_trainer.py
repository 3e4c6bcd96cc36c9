"""The expanded model inside transformers' own Trainer: accumulation, resume, evaluation; traced by torch.compile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

import ctrl
from ctrl.interpolation import INTERPOLATIONS
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import expanded, sequences, tiny


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


@pytest.mark.parametrize("cls", [transformers.LlamaForSequenceClassification, transformers.LlamaForTokenClassification])
def test_micro_batches_of_a_classifier_keep_both_parts_of_the_loss_in_proportion(cls: Any, tmp_path: Path) -> None:
    """Its loss is a mean whatever the total is: undivided over micro-batches, the divergence would weigh less."""
    ids = torch.arange(48).reshape(8, 6) + 1
    labels = ids % 2 if cls is transformers.LlamaForTokenClassification else ids[:, 0] % 2
    rows = [{"input_ids": one, "labels": label} for one, label in zip(ids, labels, strict=True)]
    gradients = []
    for batch in (8, 2):
        torch.manual_seed(0)
        model = ctrl.expand(cls(tiny().config), ctrl.ControlConfig(layers=2, divergence_weight=5.0))
        with torch.no_grad():
            perturb(model)
        args = arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch)
        keep = KeepGradients()
        Trainer(model=model, args=args, train_dataset=rows, callbacks=[keep]).train()
        gradients.append(keep.gradients)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def mean_loss(logits: Any, labels: Any, vocab_size: int, **kwargs: Any) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def additive_loss(logits: Any, labels: Any, vocab_size: int, **kwargs: Any) -> torch.Tensor:
    return ForCausalLMLoss(logits, labels, vocab_size, **kwargs)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(("loss", "times"), [(mean_loss, 4.0), (additive_loss, 1.0)])
def test_with_a_loss_function_of_ones_own_both_parts_grow_alike(
    loss: Any, times: float, attached: bool, tmp_path: Path
) -> None:
    """Trainer does not divide a mean by the number of micro-batches if the class takes the total."""
    row = {name: value[:6] for name, value in sequences()[0].items()}
    model = expanded().train()
    parts = model(**{name: value[None] for name, value in row.items()})
    model.loss_function = loss  # type: ignore[assignment]
    args = arguments(tmp_path, learning_rate=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer = Trainer(model, args, train_dataset=[row] * 8)  # type: ignore[arg-type]
    found = (ctrl.attach(trainer) if attached else trainer).train().training_loss
    assert found == pytest.approx(times * (parts.lm_loss.item() + 5.0 * parts.divergence.item()), rel=1e-4)


class Scored(torch.nn.Module):
    """An expanded model in a module of one's own that computes the loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": mean_loss(logits, labels, 96), "logits": logits}


class DividesItself(Trainer):
    """The usual remedy for a mean, which Trainer does not divide by the number of micro-batches."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return mean_loss(logits, inputs["labels"], 96) / self.args.gradient_accumulation_steps


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("cls", "wrap"), [(Trainer, Scored), (DividesItself, lambda model: model)])
def test_with_a_loss_outside_of_the_model_both_parts_grow_alike(
    cls: Any, wrap: Any, steps: int, tmp_path: Path
) -> None:
    row = {name: value[:6] for name, value in sequences()[0].items()}
    model = expanded().train()
    parts = model(**{name: value[None] for name, value in row.items()})
    args = arguments(
        tmp_path, learning_rate=0.0, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps
    )
    found = ctrl.attach(cls(wrap(model), args, train_dataset=[row] * 8)).train().training_loss
    times = steps if cls is Trainer else 1
    assert found == pytest.approx(times * (parts.lm_loss.item() + 5.0 * parts.divergence.item()), rel=1e-4)


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
        {"norm_mix": "learned"},
        {"expanded": "lora"},
    ],
    ids=str,
)
def test_every_variant_is_traced_without_a_graph_break(settings: dict[str, Any]) -> None:
    model = expanded(layers=1, depth=2, **settings).eval()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    expected = model(**batch).loss
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(**batch).loss, expected)
