"""Whether a loss reads Trainer's number of labels."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers as tf
from torch.nn.functional import cross_entropy

from ctrl.losses import loss_is_a_mean, reads_total


def in_a_cell(out: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return (lambda: out / num_items_in_batch)()


def handed_on(out: Any, labels: Any, **given: Any) -> Any:
    return in_a_cell(out, labels, **given)


class OfAnObject:
    __call__ = in_a_cell


class Mean:
    def __call__(self, out: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return out


class MeanModule(torch.nn.Module):
    def forward(self, out: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return out


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (OfAnObject(), True),
        (Mean(), False),
        (functools.partial(Mean(), None), False),
        (MeanModule(), False),
        (lambda out, labels, num_items_in_batch: out / num_items_in_batch, True),
        (lambda out, labels, *, num_items_in_batch=None: out, False),
        (lambda out, labels, *_, **given: out, False),
        (in_a_cell, True),
        (handed_on, True),
        (functools.partial(in_a_cell, None), True),
        (functools.partial(lambda weight, out, labels, **_: weight * out, 2), False),
        (tf.Trainer.compute_loss, True),
        (torch.nn.functional.cross_entropy.__call__, True),  # no code of Python is seen
    ],
)
def test_a_function_reads_the_total_if_its_code_does(function: Any, expected: bool) -> None:
    assert reads_total(function) is expected


class OwnCriterion(tf.LlamaForCausalLM):
    """A forward of a user's own: the loss is a mean, whatever it is called."""

    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        logits = super().forward(input_ids=input_ids, **given).logits
        return self.criterion(logits.flatten(0, 1), labels.flatten()), logits


class InAMethod(tf.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        return self.both(super().forward(input_ids, **given), labels)


class MeanNextToIt(tf.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        return cross_entropy(super().forward(input_ids, labels=labels, **given).logits[0], labels[0])


class HandsOnAll(tf.LlamaForCausalLM):
    def forward(self, *args: Any, **given: Any) -> Any:
        return super().forward(*args, **given)


class HandsOnBoth(tf.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        return super().forward(input_ids, labels=labels, **given)


class HandsToAMethod(tf.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, **given: Any) -> Any:
        shifted_labels = labels[:, 1:]
        return self.both(super().forward(input_ids), shifted_labels, **given)


class Named(tf.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, labels: Any = None, num_items_in_batch: Any = None) -> Any:
        return self.criterion(super().forward(input_ids), labels) / num_items_in_batch


@pytest.mark.parametrize(
    ("cls", "mean"),
    [
        *((one, True) for one in (OwnCriterion, InAMethod, MeanNextToIt, tf.ProphetNetForCausalLM, tf.BartForCausalLM)),
        *((one, True) for one in (tf.LlamaForSequenceClassification, tf.Qwen2AudioForConditionalGeneration)),
        *((one, False) for one in (HandsOnAll, HandsOnBoth, HandsToAMethod, Named, tf.LlamaForCausalLM)),
        *((one, False) for one in (tf.MixtralForCausalLM, tf.ParakeetForRNNT, tf.Gemma3ForConditionalGeneration)),
    ],
)
def test_a_model_s_loss_is_a_mean_if_its_forward_hands_the_total_to_nothing(cls: Any, mean: bool) -> None:
    assert loss_is_a_mean(cls) is mean


def made_by_exec() -> Any:
    """Return a function whose file and line are those of another function."""
    made: dict[str, Any] = {}
    exec(compile("\n" * 50 + "def forward(self, labels=None, **kw):\n    return 0", __file__, "exec"), made)
    return made["forward"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, labels=None, **kw: MeanModule().forward(kw, labels),
        functools.partial(MeanModule.forward, None),
        len,
        made_by_exec(),
        7,
    ],
)
def test_a_forward_without_code_of_its_own_is_believed(forward: Any) -> None:
    """Patches of other libraries put such things there; reading them must not end a training."""
    assert loss_is_a_mean(type("Patched", (), {"forward": forward})) is False
    assert loss_is_a_mean(type("Empty", (), {})) is False
