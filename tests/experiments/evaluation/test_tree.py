"""A tree of choices: each shared beginning is one node, seen by what follows it alone."""

from __future__ import annotations

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from experiments.evaluation.tree import Tree, reads_trees


class TestTree:
    def test_nodes(self) -> None:
        tree = Tree()
        assert tree.add([5, 6]) == 1
        assert tree.add([5, 7], 1) == 3
        assert tree.add([5, 6, 5]) == 2  # there already
        assert tree.add([6]) == 4
        assert (tree.tokens, tree.parents, tree.depths) == ([5, 6, 5, 7, 6], [-1, 0, 1, 2, -1], [0, 1, 2, 3, 0])
        seen = (tree.mask(torch.float32)[0, 0] == 0).int().tolist()
        assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_mask_keeps_scores_finite(self, dtype: torch.dtype) -> None:
        tree = Tree()
        tree.add([1, 2])
        mask = tree.mask(dtype)
        assert mask.dtype == dtype
        assert mask.isfinite().all()
        assert mask.shape == (1, 1, 2, 2)


@pytest.mark.parametrize("alibi", [True, False])
def test_falcons_alibi_is_read_in_rows(alibi: bool) -> None:
    """Its positions come from a mask of two dimensions, and a tree's mask has four."""
    config = FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=alibi)
    assert reads_trees(FalconForCausalLM(config).eval(), 8) == (not alibi)
