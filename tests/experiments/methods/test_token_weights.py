"""Weights of tokens: one contract for all terms that have them, and their formulas against plain restatements."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.methods import LOSS_TERMS, Tokens
from experiments.methods.parts import read_part
from experiments.methods.token_weights import Dft, NotReplayed, Prift, Prox, Talr
from experiments.models.head import only_label_logits
from experiments.training.chunked_nll import label_log_probs, summed_nll
from experiments.training.lm_loss import ChunkedLoss, WholeLoss
from tests.helpers.engine import collate, context, rows
from tests.helpers.tiny_llama import sequences, tiny

WEIGHING = [name for name in LOSS_TERMS if read_part(LOSS_TERMS, name).weighs_tokens]


def seen(count: int = 9, vocabulary: int = 30, seed: int = 0) -> tuple[Tokens, Tensor]:
    """Some tokens of a pass, and the probabilities of all words at each."""
    torch.manual_seed(seed)
    logits = 3 * torch.randn(count, vocabulary, dtype=torch.float64)
    log_q = logits.log_softmax(-1)
    log_p = log_q[torch.arange(count), torch.randint(0, vocabulary, (count,))]
    return Tokens(log_p, logits, logits.logsumexp(-1, keepdim=True), 0, log_p), log_q.exp()


def batch() -> dict[str, Any]:
    """A batch whose second half is replayed."""
    found = collate(rows(4, replayed=True))
    marks = torch.tensor([False, False, True, True])
    found.pop("replayed")
    return {**only_label_logits(found), "replayed": marks}


def ready(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """A term's weights of the tokens of a batch, its model, and the batch."""
    model = tiny().eval()
    term = read_part(LOSS_TERMS, name).begin(model, context())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    noted = term.begin_pass(model, batch())
    return lambda tokens: term.weights_of(replace(tokens, noted=noted)), model, batch()


@pytest.mark.parametrize("name", WEIGHING)
def test_weights_are_constants_between_0_and_1_whatever_the_chunks(name: str) -> None:
    """In chunks, and from whole logits: the same loss and gradient, and each token's weight times its own loss."""
    (weights_of, model, marked), reads_pass = ready(name), LOSS_TERMS[name].reads_pass
    inputs = {k: v for k, v in marked.items() if k != "replayed"}
    weights: list[Tensor] = []

    def noted(tokens: Tokens) -> Tensor:
        weights.append(weights_of(tokens))
        return weights[-1]

    losses = []
    for loss in (WholeLoss(model, noted, reads_pass), ChunkedLoss(model, noted, reads_pass)):
        with loss.computed():
            value = model(**inputs).loss
        losses.append((value, *torch.autograd.grad(value, model.lm_head.weight)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-7)
    whole = weights[0]
    assert whole.shape == ((inputs["shift_labels"] != -100).sum(),)
    assert not whole.requires_grad
    assert 0 <= whole.min() <= whole.max() <= 1 + 1e-6
    assert whole.max() > whole.min()  # it tells tokens apart


@pytest.mark.parametrize("name", WEIGHING)
def test_chunks_of_any_size_give_the_same_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_of, model, marked = ready(name)
    labelled = marked["shift_labels"] != -100
    hidden = model.model(marked["input_ids"]).last_hidden_state[:, marked["logits_to_keep"]][labelled].detach()
    weight, labels = model.lm_head.weight.detach(), marked["shift_labels"][labelled]
    found = []
    for chunk in (2**24, 5 * len(weight), len(weight)):
        monkeypatch.setattr("experiments.training.chunked_nll.LOGITS", chunk)
        found.append(summed_nll(hidden, weight, None, labels, weights_of, LOSS_TERMS[name].reads_pass))
    torch.testing.assert_close(found[1:], [found[0]] * 2, rtol=1e-5, atol=1e-6)


def test_log_probabilities_of_labels_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(7, 5), torch.randn(11, 5), torch.randint(0, 11, (7,))
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(7), labels]
    torch.testing.assert_close(label_log_probs(hidden, weight, None, labels), expected)


def test_eaft_is_the_entropy_of_the_twenty_likeliest_over_its_maximum() -> None:
    tokens, probabilities = seen()
    weights = read_part(LOSS_TERMS, "eaft").weights_of(tokens)
    for weight, row in zip(weights.tolist(), probabilities.numpy(), strict=True):
        top = np.sort(row)[-20:] / np.sort(row)[-20:].sum()
        assert weight == pytest.approx(-(top * np.log(top)).sum() / math.log(20))
    flat = Tokens(tokens.log_p, torch.zeros(9, 30), torch.zeros(9, 1))
    torch.testing.assert_close(read_part(LOSS_TERMS, "eaft").weights_of(flat), torch.ones(9))


def test_talr_gives_the_token_of_median_loss_the_weight_1_over_e() -> None:
    tokens, _ = seen()
    nll = -tokens.log_p.numpy()
    expected = np.maximum(np.exp(-nll / np.median(nll)), 0.01)
    np.testing.assert_allclose(Talr().weights_of(tokens).numpy(), expected, rtol=1e-12)
    assert np.isclose(expected, math.exp(-1)).any()


def test_prox_is_the_gradient_towards_a_distribution_in_which_the_label_is_limited() -> None:
    """Restated: the cross-entropy to q has gradient p - q; q(y) = min(1, e^rho p(y)), others in proportion."""
    torch.manual_seed(2)
    logits, labels, rho = torch.randn(40, 6, dtype=torch.float64).mul(3).requires_grad_(), torch.arange(40) % 6, 1.5
    p = logits.detach().softmax(-1)
    own = p[torch.arange(40), labels]
    raised = (math.exp(rho) * own).clamp_max(1.0)
    q = p * ((1 - raised) / (1 - own))[:, None]
    q[torch.arange(40), labels] = raised
    log_p = logits.log_softmax(-1)[torch.arange(40), labels]
    weights = Prox(rho=rho).token_weights(log_p.detach())
    (found,) = torch.autograd.grad((weights * -log_p).sum(), logits)
    torch.testing.assert_close(found, p - q, rtol=1e-9, atol=1e-12)
    assert weights.min() < weights.max() == 1
    assert Prox().token_weights(torch.zeros(1)) == 1  # a sure label


def test_prift_weighs_by_the_bases_probability_unless_the_label_is_no_surprise() -> None:
    _, q = seen(seed=4)
    labels = q.argsort(-1)[torch.arange(9), torch.tensor([0, 5, 10, 15, 20, 25, 27, 28, 29])]
    found = Prift().weights_by(q.log(), labels)
    for weight, row, label in zip(found.tolist(), q.numpy(), labels.tolist(), strict=True):
        mass = row[row <= row[label]].sum()
        assert weight == pytest.approx(1.0 if mass >= 0.5 else row[label])
    assert 0 < (found == 1).sum() < 9


def test_replayed_tokens_are_not_learned_by_their_labels() -> None:
    weights_of, _, marked = ready("not_replayed")
    labelled = marked["shift_labels"] != -100
    tokens, _ = seen(int(labelled.sum()))
    expected = (~marked["replayed"][:, None].expand_as(labelled)[labelled]).to(tokens.log_p)
    torch.testing.assert_close(weights_of(tokens), expected)
    assert NotReplayed().needs_replay


def test_asft_is_dft_and_kl() -> None:
    model = tiny().eval()
    term, kl = (read_part(LOSS_TERMS, {n: {"weight": 0.3}}).begin(model, context()) for n in ("asft", "kl"))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    inputs = only_label_logits(collate(sequences(4)))
    count = int((inputs["shift_labels"] != -100).sum())
    tokens, _ = seen(count, vocabulary=96)
    found, expected = (one.penalty_of(replace(tokens, noted=one.begin_pass(model, inputs))) for one in (term, kl))
    assert found.value == expected.value > 0
    assert torch.equal(found.slope, expected.slope)
    torch.testing.assert_close(term.token_weights(torch.tensor([-1.0])), torch.tensor([-1.0]).exp())


def test_dft_is_the_gradient_of_the_probability() -> None:
    """-sg(p) log p has the gradient of -p: a plain restatement in float64, differentiated by torch alone."""
    torch.manual_seed(1)
    logits = torch.randn(9, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (9,))
    log_p = logits.log_softmax(-1)[torch.arange(9), labels]
    weights = Dft().token_weights(log_p.detach())
    torch.testing.assert_close(weights, logits.softmax(-1)[torch.arange(9), labels].detach())
    (found,) = torch.autograd.grad((weights * -log_p).sum(), logits)
    again = copy.deepcopy(logits.detach()).requires_grad_()
    (expected,) = torch.autograd.grad(-again.softmax(-1)[torch.arange(9), labels].sum(), again)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
