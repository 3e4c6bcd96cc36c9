"""Hidden states with several streams per token: each value goes to its own token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import ctrl
from ctrl.layer import expanded_layers
from ctrl.streams import alpha_of_tokens, batch_dims, by_token, over_streams
from tests.helpers.architectures import build, config_of
from tests.helpers.families import labelled, left_padded, perturb

SHAPES = {"gemma3n_text": ((4, 1, 4, 32), 1), "deepseek_v4": ((1, 4, 4, 32), 0), "llama": ((1, 4, 32), 0)}


@pytest.mark.parametrize(("shape", "batch_dim"), SHAPES.values(), ids=list(SHAPES))
def test_the_batch_is_found_by_its_size_and_its_place(shape: tuple[int, ...], batch_dim: int) -> None:
    assert batch_dims(shape, 1, 4) == [batch_dim]
    assert batch_dims((1, 4, 1, 4, 32), 1, 4) == [0, 2]  # ambiguous
    assert batch_dims((1, 9, 32), 1, 4) == []
    assert batch_dims((1, 1, 4), 1, 4) == []  # the last dimension is hidden


def test_values_are_those_of_the_token_by_hand() -> None:
    state = torch.randn(3, 2, 5, 4)  # streams, batch, seq, hidden
    assert by_token(state, 1)[1, 4].tolist() == [value for s in range(3) for value in state[s, 1, 4].tolist()]
    torch.testing.assert_close(over_streams(state.mean(-1), 1)[1, 4], state[:, 1, 4].mean())
    other = state.permute(1, 2, 0, 3)  # batch, seq, streams, hidden
    assert torch.equal(by_token(other, 0), by_token(state, 1))
    assert torch.equal(over_streams(other.mean(-1), 0), over_streams(state.mean(-1), 1))
    alpha = torch.rand(2, 5, 3, 1)
    torch.testing.assert_close(alpha_of_tokens(alpha, 0), alpha.mean(2))
    assert alpha_of_tokens(torch.tensor(0.5), 0).dim() == 0


def test_streams_without_a_known_place_are_refused() -> None:
    """A model on device meta does not run the tokens that show it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("gemma3n_text"))
    ctrl.expand(model, ctrl.ControlConfig(layers=2))
    model.to_empty(device="cpu")
    ids = left_padded(pads=0)["input_ids"]
    with pytest.raises(ctrl.ConfigError, match="expand it with its weights loaded"):
        model(input_ids=ids, labels=ids)


def test_one_stream_stays_as_it_is() -> None:
    state, per_token = torch.randn(2, 5, 4), torch.randn(2, 5)
    assert by_token(state, 0) is state
    assert over_streams(per_token, 0) is per_token


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v4"])
class TestModels:
    """Before, a batch of one was averaged over the wrong dimension, and larger ones raised an error of shapes."""

    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("masked", [True, False])
    @pytest.mark.parametrize("items", [True, False])
    def test_the_divergence_is_the_mean_over_real_tokens(
        self, name: str, batch: int, masked: bool, items: bool
    ) -> None:
        model = ctrl.expand(build(name), ctrl.ControlConfig(layers=2))
        perturb(model)
        inputs = left_padded(batch=batch, pads=4 if masked else 0)
        given = labelled(inputs) if masked else {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}
        total = (given["labels"][:, 1:] != -100).sum() if items else None
        real = inputs["attention_mask"].bool()
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer in expanded_layers(model):
            layer.interpolation.register_forward_pre_hook(lambda _, args: pairs.append(args[:2]))
        with torch.no_grad():
            found = model(**given, **({"num_items_in_batch": total} if items else {}), use_cache=False).divergence
        sequences = []
        for a, b in pairs:
            squares = (a - b).square().mean(-1)
            squares = squares.mean(0) if name == "gemma3n_text" else squares.mean(-1)  # (batch, seq)
            sequences.append([row[kept].mean() for row, kept in zip(squares, real, strict=True)])
            if not items:
                sequences[-1] = [squares[real].mean()]
        weights = (given["labels"][:, 1:] != -100).sum(-1) / total if items else torch.ones(1)
        want = (torch.tensor(sequences) * weights).sum(-1).mean()
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)

    def test_alphas_and_diagnostics_are_those_of_tokens(self, name: str) -> None:
        config = ctrl.ControlConfig(layers=2, interpolation="dlerp", divergence="cosine", scale_by_alpha=True)
        model = ctrl.expand(build(name), config)
        perturb(model)
        inputs = left_padded()
        with ctrl.diagnostics(model) as log:
            model.train()(**labelled(inputs), use_cache=False).loss.backward()
        assert len(log.rows) == 2
        assert all(0 < row.alpha < 1 and row.alpha_spread > 0 and row.divergence > 0 for row in log.rows)
        with pytest.raises(ctrl.ConfigError, match="alpha must be one number or 2"):
            ctrl.merge_back(model, [0.5])
        _, gap = ctrl.merge_back(model, batches=[inputs], gap_on=[inputs])
        assert gap.tokens == int(inputs["attention_mask"].sum())
