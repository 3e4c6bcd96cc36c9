"""Hidden-state alignment: each metric against its definition, the states against a plain forward, the suite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.config import ControlConfig
from ctrl.structure import decoder_layers
from experiments.evaluation.alignment import (
    METRICS,
    PAIRS,
    Array,
    States,
    branch_table,
    cka,
    cosine,
    hidden_states,
    layer_table,
    neighbours,
    projection,
    relative_l2,
    sentences,
    update_sizes,
)
from experiments.models import load_base
from tests.ctrl.families import perturb
from tests.experiments.small import tiny_base

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 12))
Y = X + 0.3 * RNG.normal(size=X.shape)


@pytest.fixture(scope="module")
def base_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base_name: str) -> PreTrainedModel:
    return load_base(base_name)[0].eval()


@pytest.fixture(scope="module")
def tokenizer(base_name: str) -> PreTrainedTokenizerBase:
    return load_base(base_name)[1]


@pytest.fixture
def expanded(base_name: str) -> PreTrainedModel:
    model = ctrl.expand(load_base(base_name)[0], ControlConfig(layers=2, alpha="learned", interpolation="dlerp"))
    perturb(model, size=0.05)
    return model.eval()


def rotation(size: int) -> Array:
    return np.linalg.qr(RNG.normal(size=(size, size)))[0]


def cka_by_definition(x: Array, y: Array) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC(K, L) = tr(K H L H), with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(p: Array, q: Array) -> float:
        return float(np.trace(p @ h @ q @ h))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def neighbours_by_definition(x: Array, y: Array, k: int) -> float:
    def near(states: Array, i: int) -> set[int]:
        def similarity(j: int) -> float:
            return float(
                states[i] @ states[j] / math.dist(states[i], 0 * states[i]) / math.dist(states[j], 0 * states[j])
            )

        return set(sorted((j for j in range(len(states)) if j != i), key=similarity, reverse=True)[:k])

    return sum(len(near(x, i) & near(y, i)) for i in range(len(x))) / (k * len(x))


class TestMetrics:
    def test_against_their_definitions(self) -> None:
        cosines = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(X, Y, strict=True)]
        lengths = [math.dist(x, y) / math.dist(x, 0 * x) for x, y in zip(X, Y, strict=True)]
        assert cosine(X, Y) == pytest.approx(sum(cosines) / len(X), abs=1e-12)
        assert relative_l2(X, Y) == pytest.approx(sum(lengths) / len(X), abs=1e-12)
        assert cka(X, Y) == pytest.approx(cka_by_definition(X, Y), abs=1e-12)
        assert 0.5 < cka(X, Y) < 0.99
        for k in (1, 5, 38):
            assert neighbours(X, Y, k) == pytest.approx(neighbours_by_definition(X, Y, k), abs=1e-12)
        assert 0.3 < neighbours(X, Y) < 0.95

    def test_of_the_same_states(self) -> None:
        perfect = {"cosine": 1.0, "relative_l2": 0.0, "cka": 1.0, "neighbours": 1.0}
        assert {name: metric(X, X.copy()) for name, metric in METRICS.items()} == pytest.approx(perfect, abs=1e-12)

    def test_cka_sees_neither_rotation_nor_scale_nor_shift(self) -> None:
        turned = 3.7 * Y @ rotation(12) + 5.0
        assert cka(X, turned) == pytest.approx(cka(X, Y), abs=1e-12)
        assert abs(cosine(X, turned) - cosine(X, Y)) > 0.1

    def test_cka_sees_a_stretched_axis(self) -> None:
        assert cka(X, X * np.array([10.0] + [1.0] * 11)) < 0.8

    def test_neighbours_see_neither_rotation_nor_scale(self) -> None:
        assert neighbours(X, 3.7 * Y @ rotation(12)) == neighbours(X, Y)

    def test_neighbours_of_unrelated_states_agree_by_chance(self) -> None:
        """k / (n - 1); over 4,000 sentences-with-5-places the standard deviation is about .003."""
        rng = np.random.default_rng(1)
        found = [neighbours(rng.normal(size=(40, 60)), rng.normal(size=(40, 60)), 5) for _ in range(100)]
        assert np.mean(found) == pytest.approx(5 / 39, abs=0.012)

    def test_cka_of_equal_states_is_undefined(self) -> None:
        assert math.isnan(cka(np.ones((4, 3)), X[:4, :3]))

    @pytest.mark.parametrize("k", [0, 39])
    def test_a_neighbourhood_that_says_nothing_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=rf"k={k}: 40 sentences have a neighbourhood for k in 1..38"):
            neighbours(X, Y, k)


class TestProjection:
    def test_is_the_principal_axes_of_the_base(self) -> None:
        pca = PCA(2).fit(X)
        base, tuned = projection(X, Y)
        for ours, theirs in ((base, pca.transform(X)), (tuned, pca.transform(Y))):
            np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
        assert base.shape == tuned.shape == (40, 2)

    def test_same_states_lie_at_the_same_place(self) -> None:
        base, tuned = projection(X, X.copy())
        np.testing.assert_allclose(base, tuned, atol=1e-12)
        np.testing.assert_allclose(base.mean(axis=0), 0, atol=1e-12)


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
        assert expanded.control.log is None

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
        self, base_name: str, tokenizer: PreTrainedTokenizerBase, structure: str
    ) -> None:
        config = ControlConfig(structure=structure, layers=2)  # type: ignore[arg-type]
        states = hidden_states(ctrl.expand(load_base(base_name)[0], config).eval(), tokenizer)
        assert states.layers.shape == (3, 60, 16)
        assert list(states.expanded) == ([] if structure == "stack" else [2])

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "gemma3_text"])
    def test_other_families(
        self, tiny_model: Callable[[str], PreTrainedModel], family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Letters:
            pad_token_id = 0

            def __call__(self, text: str) -> dict[str, list[int]]:
                return {"input_ids": [2 + ord(c) % 100 for c in text[:7]]}

        monkeypatch.setattr("experiments.evaluation.alignment.pad_id", lambda tokenizer: 0)
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
        assert list(table.columns) == [*METRICS, "alpha"]
        assert list(table.index) == sorted(expanded.control.layers)
        first = table.index[0]
        assert table.loc[first, "cosine"] == cosine(states.pretrained[first], states.expanded[first])
        assert table["alpha"].between(0.3, 0.7).all()

    def test_agree_with_the_librarys_diagnostics(
        self, expanded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """One sentence of one token: there the last token is all that the diagnostics see."""
        ids = torch.tensor([tokenizer("queen")["input_ids"][:1]])
        with ctrl.diagnostics(expanded) as log, torch.no_grad():
            expanded(ids)
        states = States(np.zeros((3, 1, 16)))
        from experiments.evaluation.alignment import _Branches, attach

        seen = _Branches(torch.tensor([0]))
        with attach(expanded, seen), torch.no_grad():
            expanded(ids)
        assert states.layers.shape[1] == 1
        for i, value in log.mean("cosine").items():
            assert cosine(seen.pretrained[i], seen.expanded[i]) == pytest.approx(value, abs=1e-6)
        for i, value in log.mean("relative_l2").items():
            assert relative_l2(seen.pretrained[i], seen.expanded[i]) == pytest.approx(value, abs=1e-6)

    def test_models_of_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"base has states \(2, 4, 3\), tuned \(3, 4, 3\)"):
            layer_table(States(np.zeros((2, 4, 3))), States(np.zeros((3, 4, 3))))


class TestUpdates:
    def test_full_and_partial(self, model: PreTrainedModel, base_name: str) -> None:
        tuned = load_base(base_name)[0]
        with torch.no_grad():
            for parameter in decoder_layers(tuned)[1].parameters():
                parameter.mul_(1.25)
        found = update_sizes(model, tuned)
        assert found.tolist() == pytest.approx([0.0, 0.25, 0.0])
        assert found.index.name == "layer"

    def test_expanded(self, model: PreTrainedModel, expanded: PreTrainedModel) -> None:
        found = update_sizes(model, expanded)
        assert (found.drop(index=[i for i in range(3) if i in expanded.control.layers]) == 0).all()
        assert (found[expanded.control.layers] > 0).all()

    def test_an_adapter_must_be_merged(self, model: PreTrainedModel, base_name: str, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(load_base(base_name)[0], LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(ValueError, match="merge adapters into them first"):
            update_sizes(model, adapted)  # type: ignore[arg-type]
        merged = adapted.merge_and_unload()  # type: ignore[operator]
        assert update_sizes(model, merged).tolist() == [0.0, 0.0, 0.0]
