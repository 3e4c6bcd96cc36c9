"""Micro-batches as fractions of a step, and rows without padding."""

from __future__ import annotations

import pytest
import torch

from experiments.methods.batches import micro_batch_fraction, single_rows
from experiments.models.head import only_label_logits
from tests.helpers.engine import collate
from tests.helpers.tiny_llama import sequences


def test_fractions_of_micro_batches_add_up_to_one() -> None:
    batch = collate(sequences(8))
    total = (batch["labels"][:, 1:] != -100).sum()
    parts = [only_label_logits({k: v[i : i + 2] for k, v in batch.items()}) for i in range(0, 8, 2)]
    fractions = [float(micro_batch_fraction(part, total)) for part in parts]
    assert sum(fractions) == pytest.approx(1.0)
    assert len(set(fractions)) > 1
    assert micro_batch_fraction(parts[0], None) == 1.0


def test_rows_come_one_at_a_time_without_padding() -> None:
    batch = collate(sequences(3))
    found = list(single_rows([batch], torch.device("cpu")))
    assert [row["input_ids"].shape[1] for row in found] == batch["attention_mask"].sum(1).tolist()
    assert all("attention_mask" not in row and row["labels"].shape == row["input_ids"].shape for row in found)
    without = {k: v for k, v in batch.items() if k != "attention_mask"} | {"name": "x"}
    assert [row["name"] for row in single_rows([without], torch.device("cpu"))] == ["x"] * 3  # type: ignore[list-item]
