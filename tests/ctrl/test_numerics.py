"""The two ways to mix vectors: lerp and slerp, at their ends and near collinear vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrl.numerics import above_zero, lerp, slerp
from tests.helpers.branches import branches, quick


@quick
@given(seed=st.integers(0, 999), alpha=st.floats(0, 1))
def test_lerp_and_slerp_reverse(seed: int, alpha: float) -> None:
    """Swapping the branches and alpha with 1 - alpha changes nothing."""
    a, b, _ = branches(seed=seed)
    share, rest = torch.tensor(alpha).double(), 1 - torch.tensor(alpha).double()
    for mix in (lerp, slerp):
        torch.testing.assert_close(mix(a, b, share), mix(b, a, rest), rtol=1e-9, atol=1e-9)


class TestSlerp:
    @quick
    @given(seed=st.integers(0, 999), alpha=st.floats(0, 1))
    def test_unit_vectors_stay_on_the_sphere(self, seed: int, alpha: float) -> None:
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in branches(seed=seed)[:2])
        length = slerp(a, b, torch.tensor(alpha).double()).norm(dim=-1)
        torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("scale", [1.0, 2.0, -1.0])
    def test_a_collinear_token_does_not_change_its_neighbours(self, scale: float) -> None:
        """Reference fault 3: one collinear token turned the whole batch into lerp."""
        a, b, _ = branches()
        share = torch.tensor(0.3).double()
        alone = slerp(a, b, share)
        b[0, 1] = scale * a[0, 1]
        beside = slerp(a, b, share)
        others = torch.ones(a.shape[:2], dtype=torch.bool)
        others[0, 1] = False
        assert torch.equal(beside[others], alone[others])
        assert not torch.allclose(alone[others], lerp(a, b, share)[others])
        torch.testing.assert_close(beside[0, 1], lerp(a[0, 1], b[0, 1], share), rtol=1e-12, atol=1e-12)

    def test_equal_branches_beside_others_are_unchanged(self) -> None:
        """Reference fault 3, second half: slerp(h, h) was off by up to 4 %."""
        a, b, _ = branches(batch=4, seq=8, dtype=torch.float32)
        b[1:] = a[1:]
        for alpha in (0.1, 0.5, 0.77):
            assert torch.equal(slerp(a, b, torch.tensor(alpha))[1:], a[1:])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_small_angles_join_without_a_step(self, dtype: torch.dtype) -> None:
        """On both sides of the change from arc to line the result is lerp's, up to the angle squared."""
        a, b, _ = branches(dtype=dtype)
        across = b - (b * a).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True) * a
        eps = torch.finfo(dtype).eps
        for angle in (eps, 0.1 * eps**0.5, 0.9 * eps**0.5, 1.1 * eps**0.5, 10 * eps**0.5):
            near = a + angle * across * a.norm(dim=-1, keepdim=True) / across.norm(dim=-1, keepdim=True)
            for alpha in (0.2, 0.5):
                share = torch.tensor(alpha, dtype=dtype)
                bound = angle**2 + 8 * eps
                torch.testing.assert_close(slerp(a, near, share), lerp(a, near, share), rtol=bound, atol=bound)


def test_what_a_step_took_below_zero_can_come_back() -> None:
    """With clamp alone half of the factors of learned norms never moved again after the first step."""
    for start, slope, wanted in (
        (-0.3, 1.0, 0.0),
        (-0.3, -1.0, -1.0),
        (0.0, 1.0, 1.0),
        (0.4, 1.0, 1.0),
        (0.4, -1.0, -1.0),
    ):
        x = torch.tensor(start, requires_grad=True)
        made = above_zero(x)
        (slope * made).backward()
        assert (made.item(), x.grad) == (pytest.approx(max(start, 0)), torch.tensor(wanted))
