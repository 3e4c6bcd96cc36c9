"""One contract that every divergence passes, the masked mean, and the reference code's faults in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctrl import config
from ctrl.divergence import DIVERGENCES, additive_mean, additive_mean_of_documents, masked_mean
from tests.helpers import reference
from tests.helpers.branches import HIDDEN, quick

NAMES = list(DIVERGENCES)
HIDDEN_NAMES = [name for name in NAMES if name != "attention"]  # compare hidden states; attention compares rows
COSINES = ["cosine", "cosine_smooth", "norm"]
masks = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3).map(torch.tensor)


def pair(name: str, batch: int = 2, seq: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """a and b: hidden states (batch, seq, hidden), or causal attention rows (batch, heads, seq, seq)."""
    generator = torch.Generator().manual_seed(seed)
    if name != "attention":
        return [torch.randn(batch, seq, HIDDEN, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    scores = [torch.randn(batch, 3, seq, seq, generator=generator, dtype=torch.float64) for _ in range(2)]
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    return [x.masked_fill(later, -torch.inf).softmax(-1).to(dtype) for x in scores]


def expected(name: str, a: Tensor, b: Tensor, margin: float = 0.0) -> Tensor:
    x, y = a.double().numpy(), b.double().numpy()
    found = reference.attention(x, y) if name == "attention" else reference.divergence(name, x, y, margin)
    return torch.from_numpy(found)


def gradients(values: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    a, b = (x.detach().clone().requires_grad_() for x in (a, b))
    total = values(a, b).sum()
    if not total.requires_grad:  # `none` is a constant
        return torch.zeros_like(a), torch.zeros_like(b)
    return torch.autograd.grad(total, [a, b])


@pytest.mark.parametrize("name", NAMES)
class TestEveryDivergence:
    @quick
    @given(batch=st.integers(1, 3), seq=st.integers(1, 4), seed=st.integers(0, 999))
    def test_agrees_with_the_written_formula(self, name: str, batch: int, seq: int, seed: int) -> None:
        a, b = pair(name, batch, seq, seed)
        torch.testing.assert_close(DIVERGENCES[name](a, b), expected(name, a, b), rtol=1e-10, atol=1e-10)

    @quick
    @given(seed=st.integers(0, 999))
    def test_is_never_negative(self, name: str, seed: int) -> None:
        a, b = pair(name, seed=seed)
        far = DIVERGENCES[name](a, b)
        assert torch.all(far == 0 if name == "none" else far >= -1e-12)
        near = DIVERGENCES[name](a, a + 1e-9 * (b - a))
        assert torch.all(near >= -1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_equal_branches_cost_exactly_nothing(self, name: str, dtype: torch.dtype) -> None:
        a, _ = pair(name, dtype=dtype)
        assert torch.equal(DIVERGENCES[name](a, a.clone()), torch.zeros(2, 5, dtype=_wide(dtype)))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_one_number_per_token_in_fp32(self, name: str, dtype: torch.dtype) -> None:
        """Half inputs are widened first: the result is as good as that of the same numbers in fp32."""
        a, b = pair(name, dtype=dtype)
        found = DIVERGENCES[name](a, b)
        assert (found.shape, found.dtype) == (torch.Size([2, 5]), _wide(dtype))
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found.double(), expected(name, a, b), rtol=tolerance, atol=tolerance)

    def test_gradcheck(self, name: str) -> None:
        a, b = (x.requires_grad_() for x in pair(name, batch=1, seq=3))
        if name == "none":
            assert not DIVERGENCES[name](a, b).requires_grad
        elif name == "attention":  # at unreachable keys both weights are 0, where the logarithm has no derivative
            logits = [torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
            check = lambda p, e: DIVERGENCES[name](p.softmax(-1), e.softmax(-1))  # noqa: E731
            assert torch.autograd.gradcheck(check, logits)
        else:
            assert torch.autograd.gradcheck(DIVERGENCES[name], (a, b))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_gradients_are_finite_at_and_near_equal_branches(self, name: str, dtype: torch.dtype) -> None:
        """Where every concat model starts."""
        a, _ = pair(name, dtype=dtype)
        for b in (a, a * (1 + 4 * torch.finfo(dtype).eps)):
            for gradient in gradients(DIVERGENCES[name], a, b):
                assert torch.isfinite(gradient).all()
                assert gradient.abs().max() < (2 if name == "attention" else 1e-3)

    def test_pulls_the_expanded_branch_towards_the_pretrained_one(self, name: str) -> None:
        """A small step of b against its gradient lowers the divergence of every token."""
        a, b = pair(name)
        before = DIVERGENCES[name](a, b)
        _, to_b = gradients(DIVERGENCES[name], a, b)
        after = DIVERGENCES[name](a, b - 1e-3 * to_b)
        moved = before[:, 1:] if name == "attention" else before  # the first row has one key: nothing to choose
        assert torch.all((after < before)[:, -moved.shape[1] :]) or name == "none"

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_same_inputs_give_the_same_bits(self, name: str, dtype: torch.dtype) -> None:
        a, b = pair(name, batch=3, seq=8, dtype=dtype)
        assert torch.equal(DIVERGENCES[name](a, b), DIVERGENCES[name](a.clone(), b.clone()))
        for first, second in zip(*(gradients(DIVERGENCES[name], a, b) for _ in range(2)), strict=True):
            assert torch.equal(first, second)

    @quick
    @given(mask=masks, seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1e4, -3.0]))
    def test_padding_has_no_influence(self, name: str, mask: Tensor, seed: int, scale: float) -> None:
        """Reference fault 2: whatever the padded places hold, mean and gradients at real ones keep their bits."""
        a, b = pair(name, len(mask), mask.shape[1], seed)
        pads = (mask[:, None, :, None] if name == "attention" else mask[:, :, None]).logical_not()
        other_a, other_b = (
            torch.where(pads, (scale * x).abs() if name == "attention" else scale * x, x) for x in (a, b)
        )

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return masked_mean(DIVERGENCES[name](a, b), mask)

        assert torch.equal(mean(a, b), mean(other_a, other_b))
        for plain, padded in zip(gradients(mean, a, b), gradients(mean, other_a, other_b), strict=True):
            assert torch.equal(plain.masked_fill(pads, 0.0), plain)
            assert torch.equal(padded, plain)


@pytest.mark.parametrize("name", HIDDEN_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("place", ["opposite", "a zero", "b zero", "both zero"])
def test_gradients_stay_bounded_in_hard_places(name: str, dtype: torch.dtype, place: str) -> None:
    """No NaN, and nothing that a clipped training step could not survive."""
    a, b = pair(name, dtype=dtype)
    a, b = {"opposite": (a, -a), "a zero": (0 * a, b), "b zero": (a, 0 * b), "both zero": (0 * a, 0 * b)}[place]
    for gradient in gradients(DIVERGENCES[name], a, b):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e4


class TestMargin:
    @pytest.mark.parametrize("name", COSINES)
    @pytest.mark.parametrize("margin", [0.0, 0.4, 1.2])
    def test_agrees_with_the_written_formula(self, name: str, margin: float) -> None:
        a, b = pair(name, batch=4, seq=8)
        want = expected(name, a, b, margin)
        torch.testing.assert_close(DIVERGENCES[name](a, b, margin), want, rtol=1e-10, atol=1e-10)
        if name != "norm" and margin:
            assert 0 < (want == 0).sum() < want.numel()  # tokens on both sides of the margin

    @pytest.mark.parametrize("name", ["cosine", "cosine_smooth"])
    def test_gradcheck_on_both_sides(self, name: str) -> None:
        a, b = (x.requires_grad_() for x in pair(name, batch=1, seq=6))
        inside = expected(name, a.detach(), b.detach(), 0.8) == 0
        assert 0 < inside.sum() < inside.numel()
        assert torch.autograd.gradcheck(lambda a, b: DIVERGENCES[name](a, b, 0.8), (a, b))


class TestMagnitude:
    def test_norm_sees_length_where_cosine_does_not(self) -> None:
        """Reference fault 1: the magnitude term was always 0."""
        a, _ = pair("norm")
        lengths = a.norm(dim=-1)
        assert torch.all(DIVERGENCES["cosine"](a, 3 * a) < 1e-12)
        torch.testing.assert_close(DIVERGENCES["norm"](a, 3 * a), (2 * lengths) ** 2 / 2)

    def test_the_variants_differ(self) -> None:
        """Reference fault 1, second half: its cosine modes gave one number."""
        a, b = pair("cosine", batch=4, seq=8)
        found = [DIVERGENCES[name](a, b) for name in ("mse", *COSINES)]
        for i, one in enumerate(found):
            for other in found[i + 1 :]:
                assert torch.all((one - other).abs() > 1e-6)

    def test_cosine_is_exact_at_small_angles(self) -> None:
        """1 - a.b would cancel: in fp32 every angle below 2e-4 would cost nothing."""
        a, b = pair("cosine", batch=8, seq=8, dtype=torch.float32)
        near = a + 1e-4 * b
        torch.testing.assert_close(
            DIVERGENCES["cosine"](a, near).double(), expected("cosine", a, near), rtol=1e-2, atol=1e-12
        )


class TestAttention:
    def test_is_the_divergence_of_the_expanded_rows(self) -> None:
        """KL is not symmetric: where the copy looks and the pretrained layer does not is what costs."""
        p, e = (torch.tensor(row, dtype=torch.float64) for row in ([0.9, 0.1], [0.5, 0.5]))
        want = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
        rows = [x.view(1, 1, 1, 2).expand(1, 2, 1, 2) for x in (p, e)]
        assert DIVERGENCES["attention"](*rows).item() == pytest.approx(want, rel=1e-12)

    def test_rows_of_padded_queries_may_be_nan(self) -> None:
        p, e = pair("attention")
        p[0, :, 0] = e[0, :, 0] = torch.nan
        mask = torch.ones(2, 5)
        mask[0, 0] = 0
        found = masked_mean(DIVERGENCES["attention"](p, e), mask)
        want = reference.masked_mean(expected("attention", p, e).numpy(), mask.bool().numpy())
        assert found.item() == pytest.approx(want, rel=1e-10)


class TestMaskedMean:
    @quick
    @given(mask=masks, seed=st.integers(0, 999), kind=st.sampled_from([torch.bool, torch.long, torch.float32]))
    def test_agrees_with_the_written_formula(self, mask: Tensor, seed: int, kind: torch.dtype) -> None:
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        want = reference.masked_mean(values.numpy(), mask.numpy())
        assert masked_mean(values, mask.to(kind)).item() == pytest.approx(want, rel=1e-12, abs=1e-12)

    @pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
    def test_nan_and_inf_at_padded_places_do_not_count(self, garbage: float) -> None:
        """Neither in the value nor in the gradient."""
        values = torch.tensor([[garbage, 1.0, 3.0]], requires_grad=True)
        mean = masked_mean(values, torch.tensor([[0, 1, 1]]))
        mean.backward()
        assert mean.item() == 2.0
        assert values.grad is not None
        assert values.grad.tolist() == [[0.0, 0.5, 0.5]]

    def test_nan_at_a_real_place_is_not_hidden(self) -> None:
        assert torch.isnan(masked_mean(torch.tensor([[torch.nan, 1.0]]), torch.tensor([[1, 1]])))

    def test_without_any_real_token_it_is_zero(self) -> None:
        values = torch.full((2, 3), 7.0, requires_grad=True)
        mean = masked_mean(values, torch.zeros(2, 3))
        mean.backward()
        assert mean.item() == 0.0
        assert values.grad is not None
        assert not values.grad.any()

    def test_no_mask_means_all_tokens(self) -> None:
        values = torch.randn(2, 3)
        torch.testing.assert_close(masked_mean(values, None), masked_mean(values, torch.ones(2, 3)))


class TestAdditiveMean:
    @quick
    @given(mask=masks, seed=st.integers(0, 999), data=st.data())
    def test_any_split_adds_up_to_the_whole(self, mask: Tensor, seed: int, data: Any) -> None:
        """Micro-batches of one optimiser step: their sum is the value of the undivided batch."""
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        items = mask.sum(-1)
        total = int(items.sum()) or 1
        cut = data.draw(st.integers(0, len(mask)))
        parts = [additive_mean(values[rows], mask[rows], items[rows], total) for rows in (slice(cut), slice(cut, None))]
        torch.testing.assert_close(sum(parts), additive_mean(values, mask, items, total))

    @quick
    @given(mask=masks, seed=st.integers(0, 999))
    def test_is_the_plain_mean_where_all_real_tokens_are_labelled(self, mask: Tensor, seed: int) -> None:
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        items = mask.sum(-1)
        found = additive_mean(values, mask, items, int(items.sum()) or 1)
        torch.testing.assert_close(found, masked_mean(values, mask))

    def test_nan_at_padded_places_does_not_count(self) -> None:
        values, mask = torch.tensor([[torch.nan, 1.0], [3.0, 5.0]]), torch.tensor([[0, 1], [1, 1]])
        assert additive_mean(values, mask, torch.tensor([1, 2]), 3).item() == pytest.approx((1 + 2 * 4) / 3)

    @quick
    @given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), cut=st.integers(0, 6), seed=st.integers(0, 99))
    def test_packed_documents_count_as_sequences_do(self, lengths: list[int], cut: int, seed: int) -> None:
        """Two rows hold the documents one after the other, with padding of any value behind them."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn((len(lengths), 5), generator=generator, dtype=torch.float64)
        labelled = torch.rand((len(lengths), 5), generator=generator) < 0.5
        labelled[:, 0] = False
        mask = torch.arange(5) < torch.tensor(lengths)[:, None]
        packed, marks = torch.full((2, 30), torch.nan, dtype=torch.float64), torch.zeros((2, 30), dtype=torch.int64)
        labels = torch.zeros((2, 30), dtype=torch.bool)
        for row, documents in enumerate((range(len(lengths))[:cut], range(len(lengths))[cut:])):
            start = 0
            for number, i in enumerate(documents, start=1):
                where = slice(start, start + lengths[i])
                packed[row, where], labels[row, where] = values[i, : lengths[i]], labelled[i, : lengths[i]]
                marks[row, where], start = number, start + lengths[i]
        found = additive_mean_of_documents(packed, marks > 0, labels, marks, 7)
        wanted = additive_mean(values, mask, (labelled & mask).sum(-1), 7)
        torch.testing.assert_close(found, wanted)


def test_the_config_takes_every_name_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "new", DIVERGENCES["mse"])  # one line elsewhere is all a new one needs
    for name in DIVERGENCES:
        assert config.ControlConfig(divergence=name).divergence == name


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def test_rows_with_a_sink_are_closest_when_they_are_equal() -> None:
    """GPT-OSS gives part of each row to a sink, so that it sums to less than 1."""
    full = torch.randn(2, 3, 4, 5, dtype=torch.float64).softmax(-1)
    pretrained = full[..., :-1]
    rows = pretrained.clone().requires_grad_()
    equal = DIVERGENCES["attention"](pretrained, rows)
    assert torch.equal(equal, torch.zeros_like(equal))
    equal.sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().max() < 1e-12
    assert (DIVERGENCES["attention"](pretrained, pretrained * 0.5) > 0).all()
