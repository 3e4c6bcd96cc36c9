"""The gap of a merge, against its definition in numpy float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import LlamaForCausalLM

import ctrl
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import BATCHES, IDS, MASK, disturbed, tiny


@torch.no_grad()
def gap_by_hand(expanded: nn.Module, merged: nn.Module, batches: list[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Mean over real tokens of sum_v p_v ln(p_v / q_v), p of the expanded model; largest |logit - logit|."""
    divergences, largest = [], 0.0
    for batch in batches:
        x, y = (model(**batch).logits.double().numpy() for model in (expanded, merged))
        for row, column in np.argwhere(batch["attention_mask"].numpy() == 1):
            u, v = x[row, column], y[row, column]
            p, q = np.exp(u) / np.exp(u).sum(), np.exp(v) / np.exp(v).sum()
            divergences.append((p * np.log(p / q)).sum())
            largest = max(largest, np.abs(u - v).max())
    return float(np.mean(divergences)), float(largest)


def test_is_the_definition_and_has_a_direction() -> None:
    expanded, other = disturbed(seed=5), disturbed(seed=6)
    with torch.no_grad():
        other.lm_head.weight.mul_(4)  # far apart, so that the two directions differ
    short = {"input_ids": IDS + 40, "attention_mask": torch.zeros_like(MASK)}
    short["attention_mask"][1, -3:] = 1
    empty = {"input_ids": IDS, "attention_mask": torch.zeros_like(MASK)}
    batches = [*BATCHES, short, empty]
    gap = ctrl.merge_gap(expanded, other, batches)
    kl, largest = gap_by_hand(expanded, other, batches)
    assert gap.kl == pytest.approx(kl, rel=1e-4)
    assert gap.max_logit_difference == pytest.approx(largest, rel=1e-5)
    assert gap.tokens == int(MASK.sum()) + 3
    assert gap_by_hand(other, expanded, batches)[0] != pytest.approx(kl, rel=0.01)


def test_is_measured_in_eval_mode_and_modes_come_back() -> None:
    config = tiny().config
    config.attention_dropout = 0.5
    model = ctrl.expand(LlamaForCausalLM(config), ctrl.ControlConfig(layers=2)).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    merged, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)  # equal branches: merged is the same model
    assert gap.max_logit_difference < 1e-5
    assert [module.training for module in model.modules()] == modes
    assert merged.training


def test_a_merge_that_is_no_number_shows() -> None:
    model, broken = disturbed(), disturbed()
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    assert np.isnan(ctrl.merge_gap(model, broken, BATCHES).max_logit_difference)


def test_an_expanded_model_that_runs_as_its_base_is_refused() -> None:
    model = disturbed()
    with ctrl.pretrained(model), pytest.raises(ctrl.ConfigError, match=r"inside ctrl\.pretrained .* runs as its base"):
        ctrl.merge_gap(model, disturbed(), BATCHES)


@pytest.mark.parametrize("batches", [[], [{"input_ids": IDS, "attention_mask": torch.zeros_like(MASK)}]])
def test_no_text_is_refused(batches: list[dict[str, torch.Tensor]]) -> None:
    with pytest.raises(ctrl.ConfigError, match="merge_gap got no real token"):
        ctrl.merge_gap(disturbed(), disturbed(), batches)


@pytest.mark.parametrize(
    "given", [BATCHES[0], tf.BatchEncoding(BATCHES[0]), IDS, "text", 3, [IDS], [{"input_ids": [1]}]]
)
def test_what_are_no_batches_is_said(given: Any) -> None:
    model = disturbed(interpolation="dlerp")
    for call in (
        lambda: ctrl.merge_back(model, batches=given),
        lambda: ctrl.merge_back(model, gap_on=given, alpha=0.5),
        lambda: ctrl.merge_gap(model, model, given),
        lambda: ctrl.merge_models([model], batches=given),
    ):
        with pytest.raises(ctrl.ConfigError, match=r"batches must be a list of dicts|must be a tensor, but is a list"):
            call()


def test_a_generator_is_read_as_often_as_a_list() -> None:
    model = disturbed(interpolation="dlerp")
    several = [*BATCHES, {"input_ids": IDS + 40}]
    lists = [
        ctrl.merge_back(model, batches=several, gap_on=several),
        ctrl.merge_models([model] * 2, batches=several, gap_on=several),
    ]
    once = iter(several)
    read = [
        ctrl.merge_back(model, batches=once, gap_on=iter(several)),
        ctrl.merge_models([model] * 2, batches=iter(several), gap_on=iter(several)),
    ]
    for (plain, gap), (again, gap_again) in zip(lists, read, strict=True):
        assert gap == gap_again
        assert torch.equal(plain(IDS).logits, again(IDS).logits)


def classifier(classes: int) -> Any:
    torch.manual_seed(0)
    config = tiny().config
    config.num_labels = classes
    model: Any = ctrl.expand(tf.LlamaForSequenceClassification(config).eval(), ctrl.ControlConfig(layers=2))
    with torch.no_grad():
        perturb(model)
    return model


def test_of_a_classifier_each_sequence_counts_once() -> None:
    """Its logits are (batch, classes): a mask of tokens says nothing about them."""
    model, right_padded = classifier(3), {"input_ids": IDS, "attention_mask": MASK.flip(1)}
    batches = [right_padded, {"input_ids": IDS[:1] + 40}]
    merged, gap = ctrl.merge_back(model, gap_on=batches)
    x, y = (torch.cat([one.eval()(**batch).logits.double() for batch in batches]) for one in (model, merged))
    kl = (x.softmax(-1) * (x.log_softmax(-1) - y.log_softmax(-1))).sum(-1)
    assert gap.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert gap.max_logit_difference == pytest.approx(float((x - y).abs().max()), rel=1e-4)
    assert gap.tokens == 3


def test_a_single_logit_has_no_kl() -> None:
    _, gap = ctrl.merge_back(classifier(1), gap_on=[{"input_ids": IDS}])
    assert np.isnan(gap.kl)
    assert gap.max_logit_difference > 0


def test_without_logits_alphas_are_measured_and_a_gap_is_refused() -> None:
    torch.manual_seed(0)
    config = ctrl.ControlConfig(layers=2, interpolation="dlerp")
    model = ctrl.expand(tf.LlamaModel(tiny().config).eval(), config)
    assert type(ctrl.merge_back(model, batches=BATCHES)) is tf.LlamaModel
    with pytest.raises(ctrl.ConfigError, match="merge_gap compares logits, but LlamaModel returns none"):
        ctrl.merge_back(model, alpha=0.5, gap_on=BATCHES)


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """Text that has no length."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from ({"input_ids": ids, "attention_mask": mask} for ids, mask in zip(IDS, MASK, strict=True))


class Map(Dataset[dict[str, torch.Tensor]]):
    """Batches by number, without an iterator."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return BATCHES[index]


@pytest.mark.parametrize("batches", [DataLoader(Stream(), batch_size=2), Map()])
def test_batches_are_all_that_a_loop_can_read(batches: Any) -> None:
    model, merged = disturbed(seed=5), disturbed(seed=6)
    assert ctrl.merge_gap(model, merged, batches) == ctrl.merge_gap(model, merged, BATCHES)
