"""What ctrl.attach adds to a trainer is the divergence that its own loss lacks."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import ctrl
from tests.helpers.tiny_llama import BATCHES, IDS, expanded, sequences, tiny
from tests.helpers.trainers import (
    TRAINERS,
    dpo_trainer,
    grpo_trainer,
    hf_trainer,
    losses,
    sft_trainer,
    weights,
    whole_batch,
)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["real", "labels"])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_attached_sft_trains_as_trainer_does(tokens: Any, batch: int, accumulation: int, tmp_path: Path) -> None:
    """Losses and weights of transformers' Trainer; so do both stay the same under accumulation."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    own = expanded(divergence_tokens=tokens)
    expected = losses(hf_trainer(own, tmp_path / "own"))
    model = expanded(divergence_tokens=tokens)
    assert losses(ctrl.attach(sft_trainer(model, tmp_path / "sft", **sizes))) == pytest.approx(expected, rel=2e-6)
    close = weights(own)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, close[name], rtol=1e-3, atol=1e-5, msg=name)  # AdamW divides by tiny numbers


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"bf16": True}])
@pytest.mark.parametrize("trainer", ["SFT", "SFT, packed"])
def test_attached_sft_has_the_model_s_own_loss(trainer: str, settings: dict[str, Any], tmp_path: Path) -> None:
    packed = {"packing": True, "max_length": 32} if "packed" in trainer else {}
    made = ctrl.attach(sft_trainer(expanded().train(), tmp_path, **packed, **settings))
    (batch, *_) = made.get_train_dataloader()
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    model = expanded().train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.get("bf16", False)):
        expected = model(**inputs, use_cache=False).loss  # a cache would let packed documents see each other
        found = made.compute_loss(made.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-3 if settings.get("bf16") else 1e-6, atol=0, check_dtype=False)
    for loss in (expected, found):
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    for name, p in made.model.named_parameters():
        if name in gradients:
            close = {"rtol": 0.1, "atol": 1e-3} if settings.get("bf16") else {"rtol": 1e-4, "atol": 1e-7}
            torch.testing.assert_close(p.grad, gradients[name], **close, msg=name)


def test_completions_alone_are_trained_and_all_real_tokens_held(tmp_path: Path) -> None:
    row = {"input_ids": [*range(3, 15)], "completion_mask": [0] * 5 + [1] * 7}
    made = ctrl.attach(sft_trainer(expanded().train(), tmp_path, [row] * 8, completion_only_loss=True))
    (batch, *_) = made.get_train_dataloader()
    assert (batch["labels"] == -100).sum() == 5 * 8
    torch.testing.assert_close(made.compute_loss(made.model, batch), expanded().train()(**batch).loss)


@pytest.mark.parametrize("trainer", ["DPO", "GRPO"])
def test_attached_preference_training_adds_the_weighted_divergence(trainer: str, tmp_path: Path) -> None:
    """The mean over the real tokens of prompts and answers, the padding left out."""
    made = TRAINERS[trainer](expanded().train(), tmp_path)
    made.current_gradient_accumulation_steps = 1
    (batch, *_) = made.get_train_dataloader()
    batch = made._prepare_inputs(batch)
    if trainer == "GRPO":
        ids, mask = (
            torch.cat([batch[f"{part}_{name}"] for part in ("prompt", "completion")], 1) for name in ("ids", "mask")
        )
    else:
        ids, mask = batch["input_ids"], batch["attention_mask"]
    assert not mask.all()
    before = made.compute_loss(made.model, dict(batch))
    after = ctrl.attach(made).compute_loss(made.model, dict(batch))
    expected = expanded().train()(input_ids=ids, attention_mask=mask, labels=ids).divergence
    torch.testing.assert_close(after - before, 5 * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trainer", ["DPO", "GRPO"])
def test_the_divergence_of_preference_training_does_not_grow_with_accumulation(trainer: str, tmp_path: Path) -> None:
    """Equal micro-batches: their mean divergence, not their sum, whoever divides by their number."""

    def moved(batch: int, accumulation: int) -> dict[str, torch.Tensor]:
        model = expanded()
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        if trainer == "DPO":
            made = dpo_trainer(model, tmp_path / str(batch), tiny(), **sizes)
        else:
            made = grpo_trainer(model, tmp_path / str(batch), **sizes)
        made.compute_loss = types.MethodType(lambda self, model, inputs, **_: 0.0 * head_of(model, inputs), made)
        gradients: dict[str, torch.Tensor] = {}
        made.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
        made.optimizer.register_step_pre_hook(
            lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
        ctrl.attach(made).train()
        return gradients

    def head_of(model: Any, inputs: Any) -> torch.Tensor:
        return model(input_ids=IDS, attention_mask=BATCHES[0]["attention_mask"]).logits.sum()

    once, four = moved(4, 1), moved(2, 2)
    assert any(gradient.abs().max() > 0 for gradient in once.values())
    for name, gradient in once.items():
        torch.testing.assert_close(four[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}])
def test_attach_leaves_a_trainer_that_uses_the_model_s_loss_as_it_is(settings: dict[str, Any], tmp_path: Path) -> None:
    own, attached = expanded(), expanded()
    expected = losses(hf_trainer(own, tmp_path / "own", **settings))
    trainer = ctrl.attach(ctrl.attach(hf_trainer(attached, tmp_path / "attached", **settings)))  # twice is once
    assert losses(trainer) == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(
        hf_trainer(own, tmp_path / "eval").evaluate(trainer.train_dataset)["eval_loss"], rel=1e-4
    )


@pytest.mark.parametrize("own", [{"label_smoothing_factor": 0.1}, {}])
def test_attach_mends_losses_from_logits(own: dict[str, Any], tmp_path: Path) -> None:
    """label_smoothing_factor and compute_loss_func: the loss without a divergence plus the model's own divergence."""

    def trainer(folder: str) -> Any:
        made = hf_trainer(expanded().train(), tmp_path / folder, **own)
        if not own:
            made.compute_loss_func = lambda out, labels, num_items_in_batch: out.logits.sum() / num_items_in_batch
        return made

    batch = whole_batch()
    total = (batch["labels"][:, 1:] != -100).sum()
    plain, attached = trainer("plain"), ctrl.attach(trainer("attached"))
    before, after = (t.compute_loss(t.model, dict(batch), num_items_in_batch=total) for t in (plain, attached))
    expected = expanded().train()(**batch, num_items_in_batch=total).divergence
    torch.testing.assert_close(after - before, 5 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "reads"),
    [
        (lambda out, labels, num_items_in_batch: 0 * out.logits.sum() / num_items_in_batch, True),
        (lambda out, labels, num_items_in_batch=None: 0 * out.logits.sum(), False),
        (lambda out, labels, **_: 0 * out.logits.sum(), False),
    ],
)
def test_a_loss_function_that_reads_no_total_gets_the_mean_divergence(loss: Any, reads: bool, tmp_path: Path) -> None:
    trainer, total = ctrl.attach(hf_trainer(expanded().train(), tmp_path)), torch.tensor(500)
    trainer.compute_loss_func = loss
    added = trainer.compute_loss(trainer.model, whole_batch(), num_items_in_batch=total)
    expected = expanded().train()(**whole_batch(), **({"num_items_in_batch": total} if reads else {})).divergence
    torch.testing.assert_close(added, 5 * expected)


def test_a_trainer_whose_own_loss_reads_no_total_gets_the_mean_divergence(tmp_path: Path) -> None:
    """The usual way to a loss of one's own: the labels are taken out, and the loss is a mean of the logits'."""

    class Own(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inputs.pop("labels")
            return 0 * model(**inputs).logits.sum()

    made = hf_trainer(expanded(), tmp_path)
    trainer = ctrl.attach(Own(expanded().train(), made.args, train_dataset=sequences()))  # type: ignore[arg-type]
    added = trainer.compute_loss(trainer.model, whole_batch(), num_items_in_batch=torch.tensor(500))
    torch.testing.assert_close(added, 5 * expanded().train()(**whole_batch()).divergence)


def test_attach_leaves_a_loss_that_reads_no_total_in_proportion(tmp_path: Path) -> None:
    """A compute_loss of the user often gives the model its inputs alone: then the model's loss is a mean."""

    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            out = model(**inputs)
            return (out.loss, out) if return_outputs else out.loss

    made, losses = hf_trainer(expanded(), tmp_path), []
    for attached in (False, True):
        trainer = Own(expanded(), made.args, train_dataset=sequences())  # type: ignore[arg-type]
        if attached:
            ctrl.attach(trainer)
        losses.append(trainer.compute_loss(trainer.model, whole_batch(), num_items_in_batch=torch.tensor(500)))
    assert losses[0] > expanded()(**whole_batch()).lm_loss
    torch.testing.assert_close(losses[1], losses[0])


@pytest.mark.parametrize("own", ["sum", "mean"])
def test_a_loss_that_reads_the_total_next_to_a_model_that_has_labels(own: str, tmp_path: Path) -> None:
    """A sum over the total adds up over micro-batches: its divergence was a mean, and counted once in each of them."""

    class Own(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            out = model(**inputs)
            return 0 * out.logits.sum() / num_items_in_batch if own == "sum" else out.loss

    made, total = hf_trainer(expanded(), tmp_path), torch.tensor(500)
    trainer = ctrl.attach(Own(expanded().train(), made.args, train_dataset=sequences()))  # type: ignore[arg-type]
    added = trainer.compute_loss(trainer.model, whole_batch(), num_items_in_batch=total)
    out = expanded().train()(**whole_batch(), **({"num_items_in_batch": total} if own == "sum" else {}))
    torch.testing.assert_close(added, 5 * out.divergence + (0 if own == "sum" else out.lm_loss))


def test_what_cannot_be_attached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ctrl.ConfigError, match="is not expanded"):
        ctrl.attach(hf_trainer(tiny(), tmp_path))
    with pytest.raises(ctrl.ConfigError, match=r"SimpleNamespace has no compute_loss: use ctrl\.collect_divergence"):
        ctrl.attach(types.SimpleNamespace(model=expanded()))
    trainer = hf_trainer(expanded(), tmp_path)
    trainer.args.sync_ref_model = True
    with pytest.raises(ctrl.ConfigError, match=r"frozen weights would be overwritten\. Set sync_ref_model=False"):
        ctrl.attach(trainer)
    trainer.args.sync_ref_model, trainer.args.use_vllm = False, True
    with pytest.raises(ctrl.ConfigError, match=r"the replies would be those of the base.*Set use_vllm=False"):
        ctrl.attach(trainer)
    trainer.args.use_vllm = False
    trainer.args._n_gpu = 2
    with pytest.raises(ctrl.ConfigError, match=r"other threads.*: start one process per GPU with torchrun"):
        ctrl.attach(trainer)


def test_an_attached_trainer_that_has_a_loss_elsewhere_is_refused_in_its_first_step(tmp_path: Path) -> None:
    """TRL's OnlineDPOTrainer computes it in `training_step`, so the divergence would be nowhere."""

    class Elsewhere(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            loss = model(**inputs).logits.square().mean()
            loss.backward()
            return loss.detach()

    made = hf_trainer(expanded(), tmp_path)
    trainer = ctrl.attach(Elsewhere(made.model, made.args, train_dataset=made.train_dataset))
    with pytest.raises(ctrl.ConfigError, match=r"Elsewhere computes its loss without compute_loss.*training_step"):
        trainer.train()
