"""Operations on the trained weights of a finished run: their formulas, and what they leave."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import ctrl
from ctrl.layer import expanded_layers
from experiments.common.errors import ConfigError, RunError
from experiments.config import run_config
from experiments.models.base import load_base
from experiments.posthoc.checks import without_form
from experiments.posthoc.operations import (
    OPERATIONS,
    dial,
    dial_depth,
    ensemble,
    gate_batches,
    lines,
    merge,
    plain_model,
    task_vectors,
    wise,
)
from experiments.posthoc.run import posthoc
from experiments.runs.trained import load_trained
from tests.helpers.trained_arms import arm

pytestmark = pytest.mark.slow  # six arms are trained for it


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_the_run_says_what_each_arm_trained_and_added(run: Path, base: str) -> None:
    costs = {p.parent.name: json.loads(p.read_text())["cost"] for p in run.glob("arms/*/result.json")}
    whole = load_base(base)[0].num_parameters()
    assert costs["full-0.01"]["trainable_parameters"] == whole
    assert costs["full-0.01"]["added_parameters"] == costs["ewc-0.01"]["added_parameters"] == 0
    for name in ("lora-0.01", "stack-0.01"):
        assert costs[name]["added_parameters"] == costs[name]["trainable_parameters"] > 0
    assert costs["control-0.01"]["added_parameters"] == costs["control-0.01"]["trainable_parameters"] + 2  # two thetas
    (text,) = (run.parents[1] / "cache" / "self").glob("*/rows.jsonl")  # what EWC was estimated on
    assert 0 < len(text.read_text().splitlines()) <= 4


@pytest.mark.parametrize("name", ["full", "control", "lora"])
def test_wise_lies_between_base_and_plain_model(run: Path, name: str) -> None:
    start, end = weights(arm(run, name).base()), weights(plain_model(arm(run, name).trained()))
    assert any(not torch.equal(start[n], end[n]) for n in start)
    for alpha in (0.0, 0.3, 1.0):
        mixed = weights(wise(arm(run, name), alpha)[0])
        for n, value in mixed.items():
            if alpha == 0.3:
                torch.testing.assert_close(value, 0.7 * start[n] + 0.3 * end[n])
            else:
                assert torch.equal(value, end[n] if alpha else start[n])


@pytest.mark.parametrize("name", ["full", "lora"])
def test_lines_scales_the_change_linearly_with_depth(run: Path, name: str) -> None:
    """Three layers, tied embeddings or none: restated by the names of the parameters."""
    start, end = weights(arm(run, name).base()), weights(plain_model(arm(run, name).trained()))
    for alpha in (0.0, 0.4, 1.0):
        for n, value in weights(lines(arm(run, name), alpha)[0]).items():
            layer = re.search(r"layers\.(\d)\.", n)
            place = 0.0 if "embed_tokens" in n else 1.0 if layer is None else int(layer[1]) / 2
            share = alpha + (1 - alpha) * place
            torch.testing.assert_close(value, start[n] + share * (end[n] - start[n]), rtol=1e-5, atol=1e-7)
            assert share != 1 or torch.equal(value, end[n])


def test_merge_gives_a_plain_model_and_its_gap(run: Path) -> None:
    ids = torch.arange(40)[None]
    model, figures = merge(arm(run, "control", batches=[{"input_ids": ids}]), None)
    assert not hasattr(model, "control")
    expanded = load_trained(run, "control", 1e-2).eval()
    with torch.no_grad():
        p, q = expanded(ids).logits[0].log_softmax(-1), model.eval()(ids).logits[0].log_softmax(-1)
    assert figures["merge_gap_kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-2, abs=1e-7)
    nothing, _ = merge(arm(run, "control", batches=[{"input_ids": ids}]), 0.0)
    with torch.no_grad():
        assert torch.equal(nothing.eval()(ids).logits, arm(run, "control").base().eval()(ids).logits)
    adapter, none = merge(arm(run, "lora"), None)
    with torch.no_grad():
        tuned = load_trained(run, "lora", 1e-2).eval()(ids).logits
        torch.testing.assert_close(adapter.eval()(ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert none == {}


def test_a_gates_weights_count_when_it_is_merged(run: Path) -> None:
    """sigmoid(theta) is not the mean share of a gate with weights of its own: it is measured on text."""
    batches = [{"input_ids": torch.arange(5, 45)[None]}]
    model = arm(run, "dlerp").trained()
    for layer in expanded_layers(model):
        torch.nn.init.constant_(layer.interpolation.weight, 0.5)  # type: ignore[union-attr]
    expected, at_theta = weights(ctrl.merge_back(model, batches=batches)), weights(ctrl.merge_back(model))
    found = weights(plain_model(model, batches))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(found[name], value) for name, value in at_theta.items())
    assert gate_batches(arm(run, "control").trained(), batches) is None  # type: ignore[arg-type]


def test_a_run_is_found_from_its_own_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    (result,) = posthoc(run.name, "control", 1e-2, "dial", [0.7], say=lambda text: None)
    assert result.operation == "dial 0.7"


@pytest.mark.filterwarnings("ignore:structure 'stack' has no branches")
@pytest.mark.parametrize("name", ["full", "control", "stack", "lora", "dlerp", "ewc"])
@pytest.mark.parametrize("operation", ["wise", "lines", "merge", "dial", "dial_depth"])
def test_what_an_arm_cannot_have_is_known_from_its_config(run: Path, name: str, operation: str) -> None:
    """A study says it before its first trial."""
    config = next(one for one in run_config(run).arms if one.name == name)
    said = "needs an expanded arm|use |has no meaning|cannot be mixed"
    with pytest.raises(ValueError, match=said) if without_form(operation, config, 0.5) else nullcontext():
        OPERATIONS[operation](arm(run, name, batches=[{"input_ids": torch.tensor([[5, 6, 7]])}]), 0.5)


@pytest.mark.parametrize(("error", "told"), [(ctrl.ConfigError, ConfigError), (FileNotFoundError, RunError)])
def test_what_the_library_refuses_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], told: type[Exception]
) -> None:
    def refuse(*args: object) -> None:
        raise error("it has no merged form")

    monkeypatch.setitem(OPERATIONS, "dial", refuse)
    with pytest.raises(told, match="it has no merged form"):
        posthoc(run, "control", 1e-2, "dial", [0.123], say=lambda text: None)


def test_the_dial_mixes_hidden_states(run: Path) -> None:
    ids = torch.arange(40)[None]
    with torch.no_grad():
        start, _ = dial(arm(run, "control"), 0.0)
        torch.testing.assert_close(start.eval()(ids).logits, arm(run, "control").base().eval()(ids).logits)
        half, figures = dial(arm(run, "control"), 0.5)  # where the arm was trained
        torch.testing.assert_close(half.eval()(ids).logits, load_trained(run, "control", 1e-2).eval()(ids).logits)
    assert figures == {}
    (result,) = posthoc(run, "control", 1e-2, "dial", [0.25], say=lambda text: None)
    assert result.label == "control 0.01 dial 0.25"
    assert result.cost["added_parameters"] > 0


def test_task_vectors_are_added_to_the_base(run: Path) -> None:
    others = [run / "arms" / "lora-0.01", run / "arms" / "ewc-0.01"]
    found = weights(task_vectors(arm(run, "full", others=others), 0.4)[0])
    start = weights(arm(run, "full").base())
    vectors = [weights(plain_model(arm(run, name).trained())) for name in ("full", "lora", "ewc")]
    for n, value in found.items():
        torch.testing.assert_close(value, start[n] + 0.4 * sum(v[n] - start[n] for v in vectors), rtol=1e-4, atol=1e-6)


def test_one_task_vector_can_be_scaled_beyond_its_weights(run: Path) -> None:
    start, end = weights(arm(run, "full").base()), weights(arm(run, "full").trained())
    for n, value in weights(task_vectors(arm(run, "full"), -0.5)[0]).items():
        torch.testing.assert_close(value, start[n] - 0.5 * (end[n] - start[n]), rtol=1e-4, atol=1e-6)


def test_the_dial_by_depth_scales_each_copys_own_alpha(run: Path) -> None:
    ids = torch.arange(40)[None]
    model, figures = dial_depth(arm(run, "control"), 0.2)  # two copies, alpha .5
    expected = load_trained(run, "control", 1e-2).eval()
    with torch.no_grad(), ctrl.at_alpha(expected, [0.1, 0.5]):
        assert torch.equal(model.eval()(ids).logits, expected(ids).logits)
    assert figures == {}
    with torch.no_grad():
        whole = dial_depth(arm(run, "control"), 1.0)[0].eval()(ids).logits
        torch.testing.assert_close(whole, expected(ids).logits)
    with pytest.raises(ConfigError, match="dial_depth scales each layer's alpha, but here alpha depends on the token"):
        dial_depth(arm(run, "dlerp"), 0.5)


def test_an_ensemble_is_measured_like_an_arm(run: Path) -> None:
    """With the base, or with other arms; an adapter is folded in."""
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        own, start, lora = (
            m.eval()(ids).logits.log_softmax(-1)
            for m in (arm(run, "control").trained(), arm(run, "full").base(), arm(run, "lora").trained())
        )
        for others, second in (((), start), ((run / "arms" / "lora-0.01",), lora)):
            found, figures = ensemble(arm(run, "control", others=others), None)
            best = torch.maximum(own, second).exp()
            expected = (best / best.sum(-1, keepdim=True)).log()
            torch.testing.assert_close(found.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
            assert figures == {}
    (result,) = posthoc(run, "lora", 1e-2, "ensemble", others=[run / "arms" / "full-0.01"], say=lambda text: None)
    assert result.operation == f"ensemble {run.name}/full-0.01"
    assert result.cost["added_parameters"] == arm(run, "full").base().num_parameters()
