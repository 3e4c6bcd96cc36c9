"""Packed conversations: few rows, and the loss and the gradients of the same conversations in padded rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import ctrl
from experiments.data.encoding import PaddingCollator
from experiments.data.packing import PackingCollator, best_fit, pack, packing
from experiments.methods.batches import read_by
from experiments.models.head import only_label_logits
from experiments.models.tokens import IGNORED
from experiments.training.meter import real_tokens
from tests.helpers.families import EVERY, PAD, VOCAB, build, perturb

TOKENIZER: Any = SimpleNamespace(pad_token_id=PAD)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)
LENGTHS = [11, 4, 14, 2, 12]  # 43 tokens: three rows of 15, two of them padding


def conversations(lengths: list[int], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of random tokens; half of the tokens of each carry loss, and one conversation carries it on all."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, n in enumerate(lengths):
        ids = torch.randint(2, VOCAB, (n,), generator=generator).tolist()
        labels = ids if i == 1 else [IGNORED] * (n // 2) + ids[n // 2 :]
        made.append({"input_ids": ids, "labels": labels, "replayed": i % 3 == 0})
    return made


class TestRows:
    @given(SIZES, st.integers(40, 100))
    def test_each_item_is_in_one_row_and_no_row_is_too_long(self, lengths: list[int], most: int) -> None:
        for rows in (best_fit(lengths, most), pack(lengths, most)):
            assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
            assert max(sum(lengths[i] for i in row) for row in rows) <= most
        fullest = max(sum(lengths[i] for i in row) for row in best_fit(lengths, most))
        packed = pack(lengths, most)
        assert len(packed) <= len(best_fit(lengths, most))
        assert max(sum(lengths[i] for i in row) for row in packed) <= fullest

    def test_rows_are_as_few_and_as_short_as_can_be(self) -> None:
        assert pack([5, 5, 5, 5], 19) == [[0, 1], [2, 3]]  # not 15 and 5
        assert pack([8, 8, 8], 10) == [[0], [1], [2]]
        assert pack([3], 512) == [[0]]

    @pytest.mark.slow  # the import of TRL takes seconds
    def test_trl_needs_as_many_rows(self) -> None:
        from datasets import Dataset
        from trl import pack_dataset

        generator = torch.Generator().manual_seed(0)
        for most in (64, 100):
            lengths = torch.randint(1, 60, (200,), generator=generator).tolist()
            given = Dataset.from_dict({"input_ids": [[i] * n for i, n in enumerate(lengths)]})
            assert len(best_fit(lengths, most)) == len(pack_dataset(given, most, strategy="bfd"))

    def test_the_counts_are_those_of_the_batches(self) -> None:
        found = packing(iter([10, 4, 5, 3, 3]), 3, 12)
        assert found == packing([10, 4, 5, 3, 3], 3, 12)
        assert (found.conversations, found.rows, found.tokens) == (5, 3, 25)
        assert (found.computed, found.padded) == (2 * 10 + 6, 3 * 10 + 2 * 3)
        assert found.saved == pytest.approx(1 - 26 / 36)
        assert packing([], 3, 12).saved == 0


class TestCollator:
    @given(SIZES, st.integers(40, 100))
    def test_every_conversation_is_found_again(self, lengths: list[int], most: int) -> None:
        given = conversations(lengths)
        batch = PackingCollator(TOKENIZER, most)(given)
        assert batch.pop("use_cache") is False
        shape = batch["input_ids"].shape
        assert shape[1] <= most
        assert all(one.shape == shape for one in batch.values())
        found = []
        for row in range(shape[0]):
            for number in range(1, int(batch["documents"][row].max()) + 1):
                at = batch["documents"][row] == number
                ids, labels = (batch[name][row, at].tolist() for name in ("input_ids", "labels"))
                assert batch["position_ids"][row, at].tolist() == list(range(len(ids)))
                assert labels[0] == IGNORED
                (replayed,) = set(batch["replayed"][row, at].tolist())
                found.append((ids, labels[1:], replayed))
        asked = [(one["input_ids"], one["labels"][1:], one["replayed"]) for one in given]
        assert sorted(found) == sorted(asked)
        padding = batch["documents"] == 0
        assert (batch["labels"][padding] == IGNORED).all()
        assert not batch["replayed"][padding].any()
        assert real_tokens(batch) == sum(lengths)

    def test_nothing_is_padded_more_than_without_packing(self) -> None:
        given = conversations(LENGTHS)
        packed = PackingCollator(TOKENIZER, 23)(given)
        assert packed["input_ids"].shape == (2, 23)
        assert PaddingCollator(TOKENIZER)(given)["input_ids"].shape == (5, 14)


def loss_and_gradients(model: PreTrainedModel, batch: dict[str, Any], items: int) -> list[torch.Tensor]:
    """The loss of a step's batch as Trainer asks for it, and the gradient of each weight that trains."""
    model.zero_grad()
    out = model(**read_by(model, only_label_logits(batch)), num_items_in_batch=torch.tensor(items))
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    divergence = [out.divergence.detach()] if "divergence" in out else []
    return [out.loss.detach(), *divergence, *gradients]


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("structure", [None, "concat", "stack"])
def test_loss_and_gradients_are_those_of_padded_rows(family: str, structure: Any) -> None:
    """In three rows with padding. Of the whole step: a batch is a part of its labelled tokens."""
    model, given = build(family), conversations(LENGTHS)
    if structure:
        divergence = "cosine" if structure == "concat" else "none"
        ctrl.expand(model, ctrl.ControlConfig(layers=2, structure=structure, divergence=divergence))
        perturb(model)

    packed, padded = PackingCollator(TOKENIZER, 21)(given), PaddingCollator(TOKENIZER)(given)
    assert packed["input_ids"].shape == (3, 15)
    items = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in (packed, padded)]
    assert items[0] == items[1]
    found = loss_and_gradients(model, packed, 2 * items[0])
    wanted = loss_and_gradients(model, padded, 2 * items[0])
    assert len(found) == len(wanted) > 5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
    seen = loss_and_gradients(model, {**packed, "position_ids": torch.arange(15).expand(3, -1)}, 2 * items[0])
    # the guard: conversations that see one another differ
    assert not all(torch.allclose(one, other, rtol=1e-2, atol=1e-3) for one, other in zip(seen, wanted, strict=True))


def test_the_divergence_counts_conversations_and_not_rows() -> None:
    """Trainer's total needs the positions alone. The guard: in a plain mean padding without marks counts as tokens."""
    model = build("llama")
    ctrl.expand(model, ctrl.ControlConfig(layers=2, divergence="mse"))
    perturb(model)
    packed = only_label_logits(PackingCollator(TOKENIZER, 21)(conversations(LENGTHS)))
    unmarked = {name: value for name, value in packed.items() if name != "documents"}
    padded = read_by(model, only_label_logits(PaddingCollator(TOKENIZER)(conversations(LENGTHS))))
    for total in ({"num_items_in_batch": torch.tensor(40)}, {}):  # Trainer's total, and models that take none
        own, rows, wanted = (
            model(**read_by(model, batch), **total).divergence.detach() for batch in (packed, unmarked, padded)
        )
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-7)
        if total:
            torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-7)
        else:
            assert abs(float(rows / wanted) - 1) > 1e-3
