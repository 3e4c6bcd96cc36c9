"""One contract that every interpolation passes, and what is particular to the projections."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctrl import config
from ctrl.errors import ConfigError
from ctrl.interpolation import INTERPOLATIONS, build_interpolation
from ctrl.numerics import lerp, slerp
from ctrl.published_names import layout_of
from tests.helpers import reference
from tests.helpers.branches import HIDDEN, branches, quick
from tests.helpers.interpolations import DTYPES, built, gradients, reference_parameters

NAMES = list(INTERPOLATIONS)
SMOOTH = [name for name in NAMES if name != "moe"]  # moe's straight-through gradient is not that of its output
MERGED = [name for name in NAMES if INTERPOLATIONS[name].merged is not None]


@pytest.mark.parametrize("name", NAMES)
class TestEveryInterpolation:
    @pytest.mark.parametrize("trained", [False, True])
    @pytest.mark.parametrize("alpha_start", [0.2, 0.5, 0.9])
    def test_agrees_with_the_written_formula(self, name: str, alpha_start: float, trained: bool) -> None:
        module = built(name, alpha_start, trained)
        a, b, h = branches()
        mixed, alpha = module(a, b, h)
        want, shares = reference.mix(name, *(x.numpy() for x in (a, b, h)), reference_parameters(module))
        torch.testing.assert_close(mixed.detach(), torch.from_numpy(want), rtol=1e-10, atol=1e-10)
        spread = alpha.detach().expand(*a.shape[:2], 1).squeeze(-1)
        torch.testing.assert_close(spread, torch.from_numpy(shares), rtol=1e-10, atol=1e-10)

    def test_a_fixed_alpha_replaces_what_was_learned(self, name: str) -> None:
        module = built(name, 0.9, trained=True)
        a, b, h = branches()
        mixed, alpha = module(a, b, h, torch.tensor(0.25))
        want, _ = reference.mix(name, *(x.numpy() for x in (a, b, h)), reference_parameters(module), 0.25)
        torch.testing.assert_close(mixed.detach(), torch.from_numpy(want), rtol=1e-10, atol=1e-10)
        assert alpha.item() == 0.25

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_endpoints_are_the_branches_exactly(self, name: str, dtype: torch.dtype) -> None:
        a, b, h = branches(dtype=dtype)
        for alpha_start, branch in ((0.0, a), (1.0, b)):
            mixed, alpha = build_interpolation(name, HIDDEN, alpha_start)(a, b, h)
            assert torch.equal(mixed, branch)
            assert torch.all(alpha == alpha_start)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("alpha_start", [0.0, 0.3, 0.5, 0.99, 1.0])
    def test_equal_branches_pass_through_bit_for_bit(self, name: str, alpha_start: float, dtype: torch.dtype) -> None:
        a, _, h = branches(dtype=dtype)
        mixed, _ = build_interpolation(name, HIDDEN, alpha_start)(a, a.clone(), h)
        assert torch.equal(mixed, a)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_keeps_shape_and_dtype(self, name: str, dtype: torch.dtype) -> None:
        a, b, h = branches(dtype=dtype)
        module = build_interpolation(name, HIDDEN)
        mixed, alpha = module(a, b, h)
        assert (mixed.shape, mixed.dtype) == (a.shape, dtype)
        assert tuple(alpha.shape) in ((), (*a.shape[:2], 1))
        for side in (module.project(a), module.compared(a)):
            assert (side.shape, side.dtype) == (a.shape, dtype)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_types_are_mixed_in_fp32(self, name: str, dtype: torch.dtype) -> None:
        """One rounding, at the end: the result is the wide result rounded, up to a tie that fp32 itself moves.

        What plerp projects comes back in the half type, as a layer's output does; the mix starts from there.
        """
        module = built(name, 0.3, trained=True).float()
        a, b, h = branches(batch=8, seq=16, dtype=dtype)
        mixed, _ = module(a, b, h)
        wide = copy.deepcopy(module).double()
        if name == "plerp":
            a = module.project(a)
            torch.nn.init.zeros_(wide.get_parameter("offset"))
        want, _ = wide(a.double(), b.double(), h.double())
        assert (mixed == want.to(dtype)).double().mean() > 0.99

    def test_starts_at_alpha_start(self, name: str) -> None:
        a, b, h = branches()
        module = build_interpolation(name, HIDDEN, 0.7)
        assert torch.sigmoid(module.theta).item() == pytest.approx(0.7, abs=1e-6)
        _, alpha = module(a, b, h)
        if name == "moe":
            assert torch.all(alpha == 1)
        else:  # moe_soft's gate starts small and random
            torch.testing.assert_close(alpha, torch.full_like(alpha, 0.7), rtol=0, atol=0.03)

    def test_trains_in_fp32_whatever_torch_s_default_is(self, name: str) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            module = build_interpolation(name, HIDDEN, learned=True)
        finally:
            torch.set_default_dtype(before)
        assert {p.dtype for p in module.parameters()} == {torch.float32}

    def test_theta_trains_only_if_learned(self, name: str) -> None:
        assert not built(name, learned=False).theta.requires_grad
        module = built(name, learned=True)
        assert module.theta.shape == (1,)
        a, b, h = branches()
        (module(a, b, h)[0] * h).sum().backward()
        assert module.theta.grad is not None
        assert torch.all(module.theta.grad != 0)

    @pytest.mark.parametrize("learned", [False, True])
    def test_what_it_learns_besides_theta_always_trains(self, name: str, learned: bool) -> None:
        module = built(name, learned=learned)
        assert all(p.requires_grad for n, p in module.named_parameters() if n != "theta")

    @pytest.mark.parametrize("place", ["equal", "opposite", "a zero", "b zero", "both zero", "nearly equal"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_gradients_stay_bounded_in_hard_places(self, name: str, place: str, dtype: torch.dtype) -> None:
        """No NaN, and nothing that a clipped training step could not survive."""
        a, b, h = branches(dtype=dtype)
        a, b = {
            "equal": (a, a),
            "opposite": (a, -a),
            "a zero": (0 * a, b),
            "b zero": (a, 0 * b),
            "both zero": (0 * a, 0 * b),
            "nearly equal": (a, a * (1 + 4 * torch.finfo(dtype).eps)),
        }[place]
        for gradient in gradients(built(name).to(dtype), a, b, h):
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() < 1e4

    def test_same_inputs_give_the_same_bits(self, name: str) -> None:
        module, inputs = built(name, trained=True), branches()
        assert torch.equal(module(*inputs)[0], module(*inputs)[0])
        for first, second in zip(gradients(module, *inputs), gradients(module, *inputs), strict=True):
            assert torch.equal(first, second)

    def test_state_dict_round_trip(self, name: str) -> None:
        module, inputs = built(name, 0.3, trained=True), branches()
        fresh = built(name, 0.9)
        assert not torch.equal(fresh(*inputs)[0], module(*inputs)[0])
        fresh.load_state_dict(module.state_dict())
        assert torch.equal(fresh(*inputs)[0], module(*inputs)[0])

    def test_autocast_leaves_alpha_in_fp32(self, name: str) -> None:
        module = built(name, 0.3, trained=True).float()
        inputs = branches(dtype=torch.float32)
        _, plain = module(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, alpha = module(*inputs)
        assert torch.equal(alpha, plain)
        assert mixed.dtype == torch.float32

    def test_has_a_summary_of_its_own(self, name: str) -> None:
        summary = INTERPOLATIONS[name].summary()
        assert summary.endswith(".")
        assert [other for other in NAMES if INTERPOLATIONS[other].summary() == summary] == [name]

    def test_per_token_says_what_alpha_depends_on(self, name: str) -> None:
        """A scalar alpha is sigmoid(theta), so nothing has to be measured; a per-token one differs between tokens."""
        module = built(name, 0.3, trained=True)
        a, b, h = branches(batch=4, seq=8)
        _, alpha = module(a, b, h)
        if module.per_token:
            assert alpha.shape == (*a.shape[:2], 1)
            assert len(alpha.unique()) > 1
        else:
            assert alpha.shape == ()
            assert torch.equal(alpha, torch.sigmoid(module.theta).squeeze())

    def test_only_a_divergence_trains_what_the_mix_does_not_depend_on(self, name: str) -> None:
        """These parameters get no gradient from the mixed output, all others do; the divergence reaches them."""
        module, (a, b, h) = built(name, trained=True), branches()
        mixed, _ = module(a, b, h)
        (mixed * h).sum().backward()
        assert {n for n, p in module.named_parameters() if p.grad is None} == set(module.trained_by_divergence)
        if module.trained_by_divergence:
            (module.compared(a) * h).sum().backward()
            assert all(p.grad is not None for p in module.parameters())

    def test_published_tensors_are_all_parameters_and_come_back(self, name: str) -> None:
        module = built(name, trained=True).float()
        published = module.published
        if published is None:
            with pytest.raises(ConfigError, match=f"the published layout has no interpolation '{name}'"):
                layout_of(name)
            return
        assert layout_of(name) is published
        parameters = dict(module.named_parameters())
        assert set(published.tensors) == set(parameters)
        assert len(set(published.tensors.values())) == len(parameters)
        for own, value in parameters.items():
            back = module.from_published(own, module.to_published(own, value.detach()))
            torch.testing.assert_close(back, value.detach(), rtol=1e-5, atol=1e-6)

    @quick
    @given(batch=st.integers(1, 3), seq=st.integers(1, 4), seed=st.integers(0, 999), alpha=st.floats(0.01, 0.99))
    def test_tokens_do_not_see_each_other(self, name: str, batch: int, seq: int, seed: int, alpha: float) -> None:
        """Mixing a batch is mixing its tokens one by one."""
        module = built(name, alpha, trained=True)
        a, b, h = branches(batch, seq, seed)
        mixed, _ = module(a, b, h)
        for i, t in np.ndindex(batch, seq):
            alone, _ = module(*(x[i : i + 1, t : t + 1] for x in (a, b, h)))
            torch.testing.assert_close(mixed[i : i + 1, t : t + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MERGED)
def test_merged_weights_are_those_of_a_branch_at_the_ends(name: str, dtype: torch.dtype) -> None:
    """Of a matrix, a vector and a single value."""
    merged = INTERPOLATIONS[name].merged
    assert merged is not None
    for shape in ((5, HIDDEN), (HIDDEN,), (1,)):
        w, e = torch.randn(2, *shape, dtype=torch.float64).to(dtype)
        at_0, at_half, at_1 = (merged(w, e, torch.tensor(alpha, dtype=dtype)) for alpha in (0.0, 0.5, 1.0))
        assert torch.equal(at_0, w)
        assert torch.equal(at_1, e)
        assert (at_half.shape, at_half.dtype) == (w.shape, dtype)
        assert not torch.equal(at_half, w)


def test_merged_forms_of_the_paper() -> None:
    """Section 3.4: weights of dlerp and dlerpin, whose alpha differs between tokens, are mixed along the arc."""
    paper = {"lerp": lerp, "slerp": slerp, "dlerp": slerp, "dlerpin": slerp}
    assert {name: INTERPOLATIONS[name].merged for name in paper} == paper


def test_each_published_method_names_one_interpolation() -> None:
    """A class that inherits another's names would be loaded as that one."""
    methods = [cls.published.method for cls in INTERPOLATIONS.values() if cls.published is not None]
    assert len(set(methods)) == len(methods) > 0


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str) -> None:
    """Analytic gradients of mix and alpha for a, b, h and every parameter equal numeric ones."""
    module = built(name, 0.3, trained=True)
    names = [n for n, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    inputs = [x.requires_grad_() for x in branches(1, 2)]

    def run(a: Tensor, b: Tensor, h: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (a, b, h))

    assert torch.autograd.gradcheck(run, (*inputs, *values))


class TestProjections:
    @pytest.mark.parametrize("name", list(INTERPOLATIONS))
    def test_what_is_mixed_and_what_is_compared(self, name: str) -> None:
        """plerp mixes P a and compares a; proj mixes a and compares P a; the others have no P."""
        module = built(name, trained=True)
        a, _, _ = branches()
        projected = a
        if name in ("plerp", "proj"):
            projected = a @ torch.from_numpy(reference_parameters(module)["projection"]).T
            assert not torch.allclose(projected, a)
        torch.testing.assert_close(module.project(a).detach(), projected if name == "plerp" else a)
        torch.testing.assert_close(module.compared(a).detach(), projected if name == "proj" else a)

    @pytest.mark.parametrize("name", ["plerp", "proj"])
    def test_half_types_lose_one_rounding_in_the_projection(self, name: str) -> None:
        module: Any = built(name, trained=True).float()
        a, _, _ = branches(batch=8, seq=16, dtype=torch.bfloat16)
        want = copy.deepcopy(module).double().projected(a.double())
        assert (module.projected(a) == want.to(torch.bfloat16)).double().mean() > 0.99

    @pytest.mark.parametrize("name", ["plerp", "proj"])
    def test_the_projection_starts_as_the_identity(self, name: str) -> None:
        """Reference fault 8: a random term there changed the model before training."""
        a, _, _ = branches(dtype=torch.bfloat16)
        module: Any = build_interpolation(name, HIDDEN)
        assert torch.equal(module.projected(a), a)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown interpolation 'slrep': did you mean 'slerp'\? known: lerp, slerp"):
        build_interpolation("slrep", HIDDEN)


def test_the_config_takes_every_name_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERPOLATIONS, "new", INTERPOLATIONS["lerp"])  # one line elsewhere is all a new one needs
    for name in INTERPOLATIONS:
        assert config.ControlConfig(interpolation=name).interpolation == name
