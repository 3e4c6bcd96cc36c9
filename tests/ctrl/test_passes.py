"""The mean divergence of a pass: over the tokens that count, over micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

import ctrl
from ctrl.diagnostics import attach
from ctrl.layer import expanded_layers
from ctrl.passes import ForwardPass, mean_divergence
from tests.helpers import reference
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, MASK, disturbed, tiny
from tests.helpers.trainers import head_loss, unpadded, whole_batch


def divergence_of(model: PreTrainedModel, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> float:
    """From the branches: the mean over layers and chosen tokens of alpha |b - a|^2 / hidden."""
    seen: list[float] = []

    class Branches:
        def note(self, layer: object, a: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor, *_: object) -> None:
            a, b, share = (x.detach().double().numpy() for x in (a, b, alpha.expand(*a.shape[:2], 1)))
            per_token = share[..., 0] * reference.divergence("mse", a, b)
            seen.append(reference.masked_mean(per_token, chosen.numpy()))

    with attach(model, Branches()):  # type: ignore[arg-type]
        model(**batch)
    return float(np.mean(seen))


@pytest.mark.parametrize("tokens", ["real", "labels"])
@pytest.mark.parametrize("interpolation", ["lerp", "dlerp", "moe"])
def test_the_divergence_is_scaled_by_each_tokens_alpha_over_the_tokens_that_count(
    interpolation: str, tokens: str
) -> None:
    """Labels at padding do not make it count; with moe all real tokens do, those that are not routed with 0."""
    labels = IDS.clone()
    labels[:, 5:9] = -100
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": labels}
    config = {"interpolation": interpolation, "alpha": "learned", "scale_by_alpha": True, "divergence_tokens": tokens}
    model = disturbed(**config)
    chosen = MASK.bool() & (labels != -100) if tokens == "labels" else MASK.bool()
    want = divergence_of(model, batch, chosen)
    assert want > 0
    assert model(**batch).divergence.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("kind", ["one label", "one a class"])
def test_micro_batches_of_a_classifier_add_up(kind: str) -> None:
    """Labels of sequences: with Trainer's total, which counts them all, each sequence weighs as its share."""
    config = {**tiny().config.to_dict(), "num_labels": 3, "pad_token_id": 0}
    model = ctrl.expand(LlamaForSequenceClassification(LlamaConfig.from_dict(config)), ctrl.ControlConfig(layers=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    labels = torch.tensor([0, 2, 1]) if kind == "one label" else torch.eye(3)
    model.config.problem_type = None if kind == "one label" else "multi_label_classification"
    ids, total = IDS.repeat(2, 1)[:3], labels.numel()
    ids[2] = ids[2].flip(0)
    whole = model(input_ids=ids, labels=labels).divergence
    parts = [
        model(input_ids=ids[i], labels=labels[i], num_items_in_batch=total).divergence for i in (slice(1), slice(1, 3))
    ]
    assert whole > 0
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("tokens", ["real", "labels"])
@pytest.mark.parametrize("packed", ["positions", "documents"])
def test_sequences_in_one_row_weigh_as_in_rows_of_their_own(packed: str, tokens: str) -> None:
    """By Trainer's total each weighs as its share of the labels. That of a row's first token is not one of them."""
    model, rows = disturbed(divergence_tokens=tokens).train(), whole_batch()
    rows["labels"][0, 0] = 5
    total = int((rows["labels"][:, 1:] != -100).sum())
    expected = model(**rows, num_items_in_batch=total).divergence
    assert expected != model(**rows).divergence
    join = DataCollatorWithFlattening(return_seq_idx=packed == "documents")
    found = torch.zeros(())
    for part in (slice(3), slice(3, 8)):
        batch = join(unpadded()[part], return_tensors="pt")
        if packed == "documents":
            batch["documents"] = batch.pop("seq_idx").long() + 1
        batch["labels"][0, 0] = rows["labels"][part.start or 0, 0]
        found = found + model(**batch, num_items_in_batch=total, use_cache=False).divergence
        if packed == "positions":
            with ctrl.collect_divergence(model) as collected:
                model.base_model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            found = found + collected.divergence(batch["labels"], total)
    torch.testing.assert_close(found / (2 if packed == "positions" else 1), expected)


def test_a_total_without_labels_is_refused() -> None:
    with ctrl.collect_divergence(model := disturbed()) as collected:
        head_loss(model, whole_batch())
    with pytest.raises(ctrl.ConfigError, match=r"no pass has labels: give collected.divergence and weighted labels="):
        collected.divergence(total=100)


@pytest.mark.parametrize("batch", [1, 2, 12])
def test_labels_of_sequences_do_not_say_which_tokens_count(batch: int) -> None:
    config = {**tiny().config.to_dict(), "num_labels": 3, "pad_token_id": 0}
    classifier = LlamaForSequenceClassification(LlamaConfig.from_dict(config))
    model = ctrl.expand(classifier, ctrl.ControlConfig(layers=1, divergence_tokens="labels"))
    with pytest.raises(ctrl.ConfigError, match=r"needs a label for each of 12 tokens, but the labels have shape"):
        model(input_ids=IDS[:1].repeat(batch, 1), labels=torch.zeros(batch, dtype=torch.long))


def test_a_pass_that_leaves_a_layer_out_does_not_count_for_it() -> None:
    """LayerDrop skips layers at random in training."""
    ones = torch.ones(2, 3)
    first, second = (ForwardPass(None, divergences=found) for found in ({0: ones, 1: ones}, {1: 3 * ones}))
    found = mean_divergence([first, second], "real", torch.device("cpu"))
    assert found is not None
    assert found.item() == pytest.approx((1 + 2) / 2)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_padding_of_multiple_choice_does_not_count(kind: str) -> None:
    """The mask is (batch, choices, seq), and the model runs all choices as one batch."""
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = getattr(tf, f"{kind}ForMultipleChoice")(getattr(tf, f"{kind}Config")(vocab_size=40, pad_token_id=0, **size))
    ctrl.expand(model.eval(), ctrl.ControlConfig(layers=2))
    with torch.no_grad():
        perturb(model)
    branches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in expanded_layers(model):
        assert layer.interpolation is not None
        layer.interpolation.register_forward_hook(lambda _, args, __: branches.append(args[:2]))
    ids = torch.arange(2, 32).view(2, 3, 5)
    mask = torch.ones_like(ids)
    mask[0, 1, 2:] = mask[1, 0, 4:] = 0
    out = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 2]))
    real = mask.view(6, 5).bool()
    expected = sum((a.double() - b.double()).square().mean(-1)[real].mean() for a, b in branches) / 2
    assert float(out.divergence) == pytest.approx(float(expected), rel=1e-5)
