"""What is particular to gates that take one branch whole, or close: moe and gate."""

from __future__ import annotations

import torch

from ctrl.interpolation import build_interpolation
from tests.helpers.branches import HIDDEN, branches
from tests.helpers.interpolations import DTYPES, built, gradients


class TestMoe:
    def test_takes_one_branch_whole(self) -> None:
        a, b, h = branches(batch=4, seq=8)
        module = built("moe", trained=True)
        mixed, alpha = module(a, b, h)
        assert set(alpha.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(mixed, torch.where(alpha == 1, b, a))

    def test_gradient_is_the_soft_gates(self) -> None:
        """Reference fault 4: a bare argmax gives the gate no gradient. Here it is that of alpha = p.

        d loss / d p = grad . (b - a), for every token, whichever branch it took.
        """
        a, b, h = branches(batch=4, seq=8)
        module = built("moe", trained=True)
        weights = torch.randn_like(a)
        (module(a, b, h)[0] * weights).sum().backward()
        gate = module.get_parameter("weight")
        p = torch.sigmoid(h @ (gate[1] - gate[0]).detach() + module.theta.detach())
        pull = (weights * (b - a)).sum(-1) * p * (1 - p)
        want = torch.einsum("bs,bsh->h", pull, h)
        assert gate.grad is not None
        assert want.abs().min() > 0.01
        torch.testing.assert_close(gate.grad[1], want)
        torch.testing.assert_close(gate.grad[0], -want)
        torch.testing.assert_close(module.theta.grad, pull.sum().view(1))

    def test_branches_get_gradient_only_where_they_were_taken(self) -> None:
        a, b, h = branches(batch=4, seq=8)
        module = built("moe", trained=True)
        _, alpha = module(a, b, h)
        to_a, to_b = gradients(module, a, b, h)[:2]
        took_b = (alpha == 1).expand_as(a)
        assert torch.equal(to_a != 0, ~took_b)
        assert torch.equal(to_b != 0, took_b)

    def test_the_gate_learns_the_better_branch(self) -> None:
        """Descent on |mix - target| routes every token to the branch that is its target."""
        a, b, h = branches(batch=4, seq=8)
        wants_b = h[..., :1] > 0
        target = torch.where(wants_b, b, a)
        module = built("moe")
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            (module(a, b, h)[0] - target).square().mean().backward()
            optimizer.step()
        _, alpha = module(a, b, h)
        assert torch.equal(alpha == 1, wants_b)


class TestGate:
    def test_a_closed_gate_passes_the_pretrained_branch_on_bit_for_bit_and_trains_nothing(self) -> None:
        """Above 1 it is the copy. Between them the gradient is that of the smooth step, which is 0 at both ends."""
        module = built("gate", learned=False)
        weight = module.get_parameter("weight")
        with torch.no_grad():
            weight.zero_()[0, 0] = 1.0
        a, b, h = branches(batch=4, seq=8)
        h[..., 0] *= 3
        mixed, alpha = module(a, b, h)
        s = 0.5 + h[..., :1] / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        assert (alpha[s <= 0] == 0).all()
        assert (alpha[s >= 1] == 1).all()
        assert 0 < (alpha == 0).double().mean() < 1
        closed, opened = ((alpha == value).expand_as(a) for value in (0, 1))
        assert torch.equal(mixed[closed], a[closed])
        assert torch.equal(mixed[opened], b[opened])
        inside = ((s > 0) & (s < 1)).double()
        (alpha * torch.arange(32).view(4, 8, 1)).sum().backward()
        hn = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        want = (torch.arange(32).view(4, 8, 1) * inside * 6 * s * (1 - s) * hn).sum((0, 1))
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad[0], want)

    def test_it_starts_exactly_half_open(self) -> None:
        for dtype in DTYPES:
            _, alpha = build_interpolation("gate", HIDDEN)(*branches(dtype=dtype))
            assert (alpha == 0.5).all()
