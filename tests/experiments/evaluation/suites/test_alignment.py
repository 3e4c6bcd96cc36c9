"""Hidden states of the probe sentences: against a plain forward, against ctrl's diagnostics, as tables and as suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.config import ControlConfig
from ctrl.diagnostics import attach
from ctrl.structure import decoder_layers
from experiments.evaluation.similarity import METRICS, cosine, relative_l2
from experiments.evaluation.suites.alignment import (
    PAIRS,
    AlignmentSuite,
    AlignmentWithBase,
    Branches,
    States,
    branch_table,
    hidden_states,
    layer_table,
    records_table,
    sentences,
)
from experiments.evaluation.weights import update_sizes
from experiments.models.base import load_base
from experiments.scorecard import scorecard
from tests.helpers.families import perturb
from tests.helpers.small_run import make_suite, small_config


@pytest.fixture
def expanded(base: str) -> PreTrainedModel:
    model = ctrl.expand(load_base(base)[0], ControlConfig(layers=2, alpha="learned", interpolation="dlerp"))
    perturb(model, size=0.05)
    return model.eval()


class TestSentences:
    def test_are_the_papers_pairs_both_ways(self) -> None:
        found = sentences()
        assert len(found) == len(set(found)) == 60
        assert {category for category, _ in found} == set(PAIRS)
        assert ("gender", "king is to queen") in found
        assert ("currency", "pound is to United Kingdom") in found


class TestStates:
    def test_equal_a_forward_of_one_sentence(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        states = hidden_states(model, tokenizer)
        assert states.layers.shape == (3, 60, 16)
        assert not states.expanded
        for i in (0, 17, 59):
            ids = torch.tensor([tokenizer(sentences()[i][1])["input_ids"]])
            with torch.no_grad():
                whole = model(ids, output_hidden_states=True).hidden_states
            for layer in (0, 1):  # the last entry of hidden_states comes after the final norm
                np.testing.assert_allclose(states.layers[layer, i], whole[layer + 1][0, -1].numpy(), atol=1e-5)
            normed = model.model.norm(torch.tensor(states.layers[2, i], dtype=torch.float32)).detach()
            np.testing.assert_allclose(normed.numpy(), whole[3][0, -1].numpy(), atol=1e-5)

    def test_leave_no_hook_and_no_log(self, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        hidden_states(expanded, tokenizer)
        assert not any(layer._forward_hooks for layer in decoder_layers(expanded))
        assert not expanded.control.logs

    def test_of_both_branches_mix_to_the_layers_output(
        self, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """dlerp: output = (1 - alpha) a + alpha b, token by token. The copies were moved, so the branches differ."""
        states = hidden_states(expanded, tokenizer)
        assert sorted(states.expanded) == sorted(expanded.control.layers)
        for i, b in states.expanded.items():
            a, alpha = states.pretrained[i], states.alpha[i][:, None]
            assert np.abs(a - b).max() > 1e-3
            assert alpha.std() > 0
            np.testing.assert_allclose((1 - alpha) * a + alpha * b, states.layers[i], atol=1e-5)

    @pytest.mark.parametrize("structure", ["stack", "hybrid"])
    def test_a_stacked_copy_has_no_second_branch(
        self, base: str, tokenizer: PreTrainedTokenizerBase, structure: str
    ) -> None:
        config = ControlConfig(structure=structure, layers=2)  # type: ignore[arg-type]
        states = hidden_states(ctrl.expand(load_base(base)[0], config).eval(), tokenizer)
        assert states.layers.shape == (3, 60, 16)
        assert list(states.expanded) == ([] if structure == "stack" else [2])

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "gemma3_text"])
    def test_other_families(
        self, tiny_model: Callable[[str], PreTrainedModel], family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Letters:
            pad_token_id = 0

            def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
                return {"input_ids": [2 + ord(c) % 100 for c in text[:7]]}

        monkeypatch.setattr("experiments.evaluation.suites.alignment.pad_id", lambda tokenizer: 0)
        plain = hidden_states(tiny_model(family), Letters())  # type: ignore[arg-type]
        model = ctrl.expand(tiny_model(family), ControlConfig(layers=2)).eval()
        table = layer_table(plain, hidden_states(model, Letters()))  # type: ignore[arg-type]
        assert table["relative_l2"].max() < 1e-5  # expansion starts as the base
        perturb(model)
        table = layer_table(plain, hidden_states(model, Letters()))  # type: ignore[arg-type]
        assert table["relative_l2"].iloc[-1] > 1e-3


class TestTables:
    def test_what_was_not_moved_is_seen_not_to_have_moved(
        self, model: PreTrainedModel, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """A copy at layer 2 of 3 moves what layer 2 gives and nothing before."""
        before = hidden_states(model, tokenizer)
        one = ctrl.expand(model, ControlConfig(layers=[2]))
        perturb(one, size=0.05)
        table = layer_table(before, hidden_states(one.eval(), tokenizer))
        assert list(table.columns) == list(METRICS)
        assert list(table.index) == [0, 1, 2]
        assert table.loc[[0, 1], "relative_l2"].tolist() == [0.0, 0.0]
        assert table.loc[[0, 1], "neighbours"].tolist() == [1.0, 1.0]
        assert table.loc[2, "relative_l2"] > 1e-3

    def test_branches(self, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        states = hidden_states(expanded, tokenizer)
        table = branch_table(states)
        assert list(table.columns) == [*METRICS, "alpha", "alpha_spread"]
        assert list(table.index) == sorted(expanded.control.layers)
        first = table.index[0]
        assert table.loc[first, "cosine"] == cosine(states.pretrained[first], states.expanded[first])
        assert table["alpha"].between(0.3, 0.7).all()
        assert table.loc[first, "alpha_spread"] == np.std(states.alpha[first]) > 0

    def test_agree_with_the_librarys_diagnostics(
        self, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """One sentence of one token: there the last token is all that the diagnostics see."""
        ids = torch.tensor([tokenizer("queen")["input_ids"][:1]])
        with ctrl.diagnostics(expanded) as log, torch.no_grad():
            expanded(ids)
        seen = Branches(torch.tensor([0]))
        with attach(expanded, seen), torch.no_grad():
            expanded(ids)
        for i, value in log.mean("cosine").items():
            assert cosine(seen.pretrained[i], seen.expanded[i]) == pytest.approx(value, abs=1e-6)
        for i, value in log.mean("relative_l2").items():
            assert relative_l2(seen.pretrained[i], seen.expanded[i]) == pytest.approx(value, abs=1e-6)

    def test_models_of_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"base has states \(2, 4, 3\), tuned \(3, 4, 3\)"):
            layer_table(States(np.zeros((2, 4, 3))), States(np.zeros((3, 4, 3))))


class TestSuite:
    @pytest.fixture
    def suite(self, base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> AlignmentWithBase:
        return make_suite(AlignmentSuite, small_config(base), tokenizer).prepare(model, {}, None)

    def test_the_base_is_aligned_with_itself(self, suite: AlignmentWithBase, model: PreTrainedModel) -> None:
        records = list(suite.measure(model, lambda count: None))
        assert len(records) == len(METRICS) * 3
        assert {r.item for r in records} == {"layer 00", "layer 01", "layer 02"}
        perfect = {"cosine": 1.0, "relative_l2": 0.0, "cka": 1.0, "procrustes": 0.0, "neighbours": 1.0}
        assert all(r.value == pytest.approx(perfect[r.task], abs=1e-12) for r in records)

    def test_records_are_the_tables(
        self, suite: AlignmentWithBase, model: PreTrainedModel, expanded: PreTrainedModel
    ) -> None:
        seen: list[int] = []
        records = list(suite.measure(expanded, seen.append))
        assert sum(seen) == suite.size == 60
        assert len({r.key for r in records}) == len(records)
        states = hidden_states(expanded, suite.tokenizer)
        pd.testing.assert_frame_equal(
            records_table(records), layer_table(hidden_states(model, suite.tokenizer), states)
        )
        branches = records_table(records, "branches")
        assert list(branches.columns) == [*METRICS, "alpha", "alpha_spread"]
        pd.testing.assert_frame_equal(branches, branch_table(states))
        weighed = list(suite.measure_weights(expanded))
        assert {(r.task, r.form) for r in weighed} == {("update", "base")}
        assert [r.value for r in weighed] == update_sizes(model, expanded).tolist()

    def test_the_scorecard_takes_them(
        self, suite: AlignmentWithBase, model: PreTrainedModel, expanded: PreTrainedModel
    ) -> None:
        before, after = ([*suite.measure(m, lambda count: None), *suite.measure_weights(m)] for m in (model, expanded))
        card = scorecard(before, after, draws=100)
        assert card.keys() == {f"alignment_{name}" for name in (*METRICS, "update")}
        assert card["alignment_update"].value > 0
        assert card["alignment_cka"].value == pytest.approx(records_table(after)["cka"].mean())
        assert card["alignment_cka"].low is None
