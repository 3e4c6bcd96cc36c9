"""Output head and cross entropy in chunks: the number and the gradients of the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.methods import Tokens
from experiments.training import chunked_nll
from experiments.training.chunked_nll import summed_nll


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")


def operands(tokens: int, biased: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, 6), (20, 6), (20,))
    made: list[Any] = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    labels = torch.randint(0, 20, (tokens,), generator=generator)
    return [made[0], made[1], made[2] if biased else None, labels]


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("trained", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_formula_in_chunks_of_any_size(rows: int, trained: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_nll, "LOGITS", 20 * rows + 19)
    values = operands(7, biased=2 in trained)
    leaves = [values[i].requires_grad_() for i in trained]
    found, expected = summed_nll(*values), plain(*values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    scale = torch.tensor(0.37, dtype=torch.float64)
    pairs = zip(torch.autograd.grad(scale * found, leaves), torch.autograd.grad(scale * expected, leaves), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def weighted(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Restatement: sum of sqrt(p) (-log p) with sqrt(p) as a constant; and log p."""
    log_p = F.linear(hidden, weight, bias).log_softmax(-1)[torch.arange(len(labels)), labels]
    return -(log_p.detach().exp().sqrt() * log_p).sum(), log_p.detach()


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("trained", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_token_weights_in_chunks_of_any_size(
    rows: int, trained: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_nll, "LOGITS", 20 * rows + 19)
    values, seen = operands(7, biased=2 in trained), []
    leaves = [values[i].requires_grad_() for i in trained]

    def weights(tokens: Tokens) -> Tensor:
        log_p = tokens.log_p
        assert tokens.start == sum(map(len, seen))
        torch.testing.assert_close(tokens.logits.logsumexp(-1, keepdim=True), tokens.log_sum)
        assert not log_p.requires_grad
        seen.append(log_p)
        return (0.5 * log_p).exp()

    found = summed_nll(*values, weights)
    expected, log_p = weighted(*values)
    assert [len(part) for part in seen[:-1]] == [rows] * (len(seen) - 1)
    torch.testing.assert_close(torch.cat(seen), log_p, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    pairs = zip(torch.autograd.grad(0.37 * found, leaves), torch.autograd.grad(0.37 * expected, leaves), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_weights_of_one_or_none_change_no_bit() -> None:
    results = []
    for token_weights in (None, lambda tokens: None, lambda tokens: torch.ones_like(tokens.log_p)):
        values = operands(7)
        leaves = [x.requires_grad_() for x in values[:3]]
        results.append((loss := summed_nll(*values, token_weights), *torch.autograd.grad(loss, leaves)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-15, atol=1e-15)
    assert all(torch.equal(one, two) for one, two in zip(results[0], results[1], strict=True))


def test_no_token_costs_nothing_and_extreme_logits_stay_finite() -> None:
    none = operands(0)
    none[0].requires_grad_()
    summed_nll(*none).backward()
    assert none[0].grad.shape == (0, 6)
    large = operands(5)
    large[0] = (1e4 * large[0].float()).requires_grad_()
    large[1:3] = [x.float() for x in large[1:3]]
    loss = summed_nll(*large)
    loss.backward()
    torch.testing.assert_close(loss, plain(*large))
    assert torch.isfinite(large[0].grad).all()


def test_a_second_backward_is_refused() -> None:
    values = operands(4)
    values[0].requires_grad_()
    loss = summed_nll(*values)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice: compute the loss again"):
        loss.backward()


@pytest.mark.slow
def test_weights_that_note_what_they_see_work_in_a_compiled_model() -> None:
    """`Weighing` does; dynamo cannot trace such a function inside of an autograd.Function."""
    seen: list[Tensor] = []

    def noted(tokens: Tokens) -> Tensor:
        seen.append(tokens.log_p.sum())
        return tokens.log_p.exp()

    values = operands(7)
    values[1].requires_grad_()
    compiled = torch.compile(lambda *args: summed_nll(*args, noted), backend="eager")
    expected, found = summed_nll(*values, noted), compiled(*values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, values[1])[0] for loss in (found, expected)))
    assert torch.equal(*seen)
