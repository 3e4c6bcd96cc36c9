"""Switch a model for the time of a block: what runs inside, what stays after it, what a copy made inside keeps."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.expansion import take_off
from ctrl.layer import expanded_layers
from ctrl.switches import set_alpha
from tests.helpers.families import build
from tests.helpers.tiny_llama import IDS, disturbed, expanded, tiny
from tests.helpers.trainers import whole_batch

Block = Callable[[Any], contextlib.AbstractContextManager[Any]]


def test_pretrained_is_left_after_an_error() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(KeyError, match="inside"), ctrl.pretrained(model):
        raise KeyError("inside")
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids, labels=ids).divergence is not None


def test_a_share_is_held_inside_the_block_alone() -> None:
    base = build("llama")
    model = ctrl.expand(copy.deepcopy(base), ControlConfig(layers=2, interpolation="dlerp")).eval()
    for layer in expanded_layers(model):
        with torch.no_grad():
            for parameter in layer.expanded.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    with ctrl.at_alpha(model, 0.0):
        torch.testing.assert_close(model(input_ids=ids).logits, base.eval()(input_ids=ids).logits)
        with ctrl.at_alpha(model, 0.5):  # what alpha starts at
            torch.testing.assert_close(model(input_ids=ids).logits, before)
        with ctrl.at_alpha(model, 1.0):
            assert (model(input_ids=ids).logits - before).abs().max() > 0.01
        torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)
    with pytest.raises(KeyError, match="inside"), ctrl.at_alpha(model, 0.0):
        raise KeyError("inside")
    assert torch.equal(model(input_ids=ids).logits, before)


def gradients(forward: Block, backward: Block, checkpointed: bool, reentrant: bool) -> dict[str, torch.Tensor]:
    """Gradients of a pass inside one block whose backward pass runs inside another."""
    model = expanded(interpolation="dlerp", divergence="none" if reentrant else "mse").train()
    model.model.embed_tokens.weight.requires_grad_(True)  # so that ctrl.pretrained has a gradient too
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    with forward(model):
        loss = model(**whole_batch()).loss
    with backward(model):
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def as_it_is(model: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def at_a_fifth(model: Any) -> contextlib.AbstractContextManager[Any]:
    return ctrl.at_alpha(model, 0.2)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (at_a_fifth, as_it_is),
        (as_it_is, at_a_fifth),
        (ctrl.pretrained, as_it_is),
        (as_it_is, ctrl.pretrained),
        (at_a_fifth, ctrl.pretrained),
        (ctrl.pretrained, at_a_fifth),
    ],
)
def test_layers_that_run_again_in_the_backward_pass_do_what_they_did(
    forward: Block, backward: Block, reentrant: bool
) -> None:
    expected = gradients(forward, forward, checkpointed=False, reentrant=reentrant)
    found = gradients(forward, backward, checkpointed=True, reentrant=reentrant)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_stacked_layer_has_no_share() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=2, structure="hybrid"))
    with pytest.raises(ConfigError, match=r"at_alpha needs layers that mix .* layers \[\d\] are stacked"):
        ctrl.at_alpha(model, 0.5).__enter__()


def test_a_share_that_is_no_number_is_refused() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(ConfigError, match="alpha=nan is no finite number: give one"):
        ctrl.at_alpha(model, float("nan")).__enter__()


@pytest.mark.parametrize("shares", [[0.5], [0.1, 0.2, 0.3]])
def test_shares_of_another_number_of_layers_are_refused(shares: list[float]) -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=2))
    with pytest.raises(ConfigError, match=r"alpha=\[.*\]: the model has 2 expanded layers, give one number for each"):
        ctrl.at_alpha(model, shares).__enter__()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("first", [ctrl.pretrained, at_a_fifth])
@pytest.mark.parametrize("second", [ctrl.pretrained, at_a_fifth])
def test_blocks_that_overlap_leave_the_model_as_it_was(first: Block, second: Block) -> None:
    """As those of two threads do: the first ends while the second is open."""
    model = disturbed().eval()
    before = logits(model)
    alone = {}
    for block in (first, second):
        with block(model):
            alone[block] = logits(model)
    one, other = first(model), second(model)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.equal(logits(model), alone[second])
    other.__exit__(None, None, None)
    assert torch.equal(logits(model), before)


def test_each_layer_can_have_a_share_of_its_own() -> None:
    model = disturbed().eval()
    first, second = expanded_layers(model)
    with ctrl.at_alpha(model, [0.0, 1.0]):
        found = logits(model)
        assert [float(layer.interpolation.fixed_alpha) for layer in (first, second)] == [0.0, 1.0]  # type: ignore[union-attr, arg-type]
        with ctrl.at_alpha(model, 0.5):
            assert not torch.equal(logits(model), found)
        assert torch.equal(logits(model), found)
    assert first.interpolation.fixed_alpha is second.interpolation.fixed_alpha is None  # type: ignore[union-attr]
    set_alpha(model, (0.0, 1.0))
    assert torch.equal(logits(model), found)


def test_of_overlapping_alphas_the_last_counts() -> None:
    model = disturbed().eval()
    with ctrl.at_alpha(model, 0.7):
        expected = logits(model)
    one, other = ctrl.at_alpha(model, 0.2), ctrl.at_alpha(model, 0.7)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.equal(logits(model), expected)
    other.__exit__(None, None, None)
    assert all(layer.interpolation.fixed_alpha is None for layer in expanded_layers(model) if layer.interpolation)


def test_threads_see_the_base_until_the_last_block_ends() -> None:
    model = disturbed().eval()
    with ctrl.pretrained(model):
        base = logits(model)
    opened, left, seen = threading.Event(), threading.Event(), []

    def measure() -> None:
        with ctrl.pretrained(model):
            opened.set()
            left.wait(20)
            seen.append(logits(model))

    with ctrl.pretrained(model):
        thread = threading.Thread(target=measure)
        thread.start()
        opened.wait(20)
    left.set()
    thread.join()
    assert torch.equal(seen[0], base)
    assert model.control.enabled
    assert not torch.equal(logits(model), base)


def test_a_lasting_alpha_stays_after_a_block() -> None:
    model = disturbed().eval()
    set_alpha(model, 0.9)
    expected = logits(model)
    with ctrl.at_alpha(model, 0.2):
        assert not torch.equal(logits(model), expected)
    assert torch.equal(logits(model), expected)
    with ctrl.at_alpha(model, 0.2):
        set_alpha(model, 0.9)
    assert torch.equal(logits(model), expected)


def test_an_expansion_that_is_exchanged_inside_a_block_gets_its_alpha_back() -> None:
    model = disturbed().eval()
    before = logits(model)
    with ctrl.at_alpha(model, 0.2):
        with pytest.warns(UserWarning, match=r"ctrl\.swap inside ctrl\.at_alpha: .* with their own alpha"):
            former = ctrl.swap(model, take_off(disturbed(seed=6)))
        second = logits(model)
    assert torch.equal(logits(model), second)  # the block was of the former
    assert former is not None
    ctrl.swap(model, former)
    assert torch.equal(logits(model), before)
    with ctrl.at_alpha(model, 0.2):
        ctrl.unload(model)


def test_an_expansion_that_is_put_on_inside_pretrained_is_said_to_run() -> None:
    """The figures after it are no longer those of the base."""
    model = disturbed().eval()
    with ctrl.pretrained(model):
        base = logits(model)
        with pytest.warns(UserWarning, match=r"ctrl\.swap inside ctrl\.pretrained: .* copies of the new one run"):
            ctrl.swap(model, take_off(disturbed(seed=6)))
        assert not torch.equal(logits(model), base)


def pickled(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(("block", "named"), [(ctrl.pretrained, "ctrl.pretrained"), (at_a_fifth, "ctrl.at_alpha")])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_made_inside_a_block_is_said_to_stay_so(block: Block, named: str, copied: Callable[[Any], Any]) -> None:
    model = disturbed().eval()
    with block(model):
        inside = logits(model)
        with pytest.warns(UserWarning, match=f"copied inside {named}, and the copy stays as it is there"):
            other = copied(model)
    for again in (other, other):
        assert torch.equal(logits(again), inside)
        with ctrl.pretrained(again):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(logits(copied(model)), logits(model))


@pytest.mark.parametrize("block", [ctrl.pretrained, at_a_fifth])
def test_what_is_made_of_a_model_inside_a_block_has_nothing_of_it(block: Block, tmp_path: Any) -> None:
    """Merged models, references and folders are what they are outside."""
    model = disturbed().eval()
    before, base = logits(model), logits(ctrl.reference(model))
    merged = logits(ctrl.merge_back(model, alpha=0.5))
    with warnings.catch_warnings(), block(model):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the copies of this model have been trained")
        assert torch.equal(logits(ctrl.reference(model)), base)
        assert torch.equal(logits(ctrl.merge_back(model, alpha=0.5)), merged)
        ctrl.save(model, tmp_path / "saved")
        state = copy.deepcopy(model.state_dict())
    assert torch.equal(logits(ctrl.load(tiny(), tmp_path / "saved").eval()), before)
    again = expanded().eval()
    again.load_state_dict(state)
    assert torch.equal(logits(again), before)


def test_alphas_may_be_a_tensor_and_do_not_depend_on_the_default_dtype() -> None:
    """bf16 as torch's default would make .3 to .30078; numpy's arrays have `tolist` too."""
    model = disturbed()
    with ctrl.at_alpha(model, [0.3, 0.6]):
        expected = model(IDS).logits
    torch.set_default_dtype(torch.bfloat16)
    try:
        with ctrl.at_alpha(model, torch.tensor([0.3, 0.6], dtype=torch.float64)):
            found = model(IDS).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    merged = ctrl.merge_back(model, torch.tensor([0.3, 0.6], dtype=torch.float64))  # type: ignore[call-overload]
    assert torch.equal(merged(IDS).logits, ctrl.merge_back(model, [0.3, 0.6])(IDS).logits)
    for alpha in (torch.tensor(0.25), 0.25):
        with ctrl.at_alpha(model, alpha):  # type: ignore[arg-type]
            assert ctrl.merge_back(model, alpha)(IDS).logits.isfinite().all()  # type: ignore[call-overload]
