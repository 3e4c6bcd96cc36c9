"""A base in 8 or 4 bit is loaded through the config, trains copies and adapters, and is refused where it cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import ctrl
from ctrl.layer import expanded_layers
from ctrl.quantised import has_quantised, plain_linears
from ctrl.structure import decoder_layers
from experiments.common.errors import ConfigError, ModelError
from experiments.config import ExperimentConfig
from experiments.methods import MethodContext
from experiments.methods.saving import facts_of, load_onto, save_trained, write_facts
from experiments.models import quantised
from experiments.models.precision import Precision
from experiments.models.weights_digest import weights_digest
from experiments.plan.accelerators import Device
from experiments.plan.plan import ArmPlan, plan_run
from experiments.posthoc.operations import plain_model
from experiments.runs.checks import check_run
from tests.helpers.small_run import small_arm, wide_base

IDS = torch.arange(24).view(2, 12)
BITS = pytest.mark.parametrize("bits", ["8bit", "4bit"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return wide_base(tmp_path_factory.mktemp("base"))


def given(base: str, bits: str, **values: Any) -> ExperimentConfig:
    values = {"method": "control", "control": ctrl.ControlConfig(layers=2).to_dict()} | values
    return small_arm(base, **values).model_copy(update={"quantised": bits})


def in_floats(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"quantised": None})


@BITS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_copies_begin_as_the_quantised_base_and_alone_train(base: str, bits: str, precision: str) -> None:
    pytest.importorskip(quantised.PACKAGES[bits])
    config = given(base, bits).model_copy(update={"precision": precision})
    loaded, _ = config.load_base()
    plain, _ = in_floats(config).load_base()
    assert has_quantised(loaded)
    assert not has_quantised(plain)
    assert weights_digest(loaded) != weights_digest(plain)
    loaded.eval()
    with torch.no_grad(), Precision(precision).autocast():
        want = loaded(IDS).logits
        assert 0 < (want - plain(IDS).logits).abs().max() < 0.5 * want.abs().max()
    model = ctrl.expand(loaded, config.arms[0].control)
    with torch.no_grad(), Precision(precision).autocast():
        torch.testing.assert_close(model.eval()(IDS).logits, want, rtol=0.02, atol=0.02 * float(want.abs().max()))
    with Precision(precision).autocast():
        model.train()(IDS, labels=IDS).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(has_quantised(layer.expanded) for layer in expanded_layers(model))


@BITS
def test_gradients_pass_the_quantised_matrices_after_an_evaluation(base: str, bits: str) -> None:
    """They are those of a base in floats with the same values."""
    pytest.importorskip(quantised.PACKAGES[bits])
    model, _ = given(base, bits).load_base()  # which evaluates it
    floats = in_floats(given(base, bits)).load_base()[0]
    for layer, plain in zip(decoder_layers(model), decoder_layers(floats), strict=True):
        made = plain_linears(layer)
        for name, module in layer.named_modules():
            if id(module) in made:
                plain.set_submodule(name, made[id(module)])
    found = []
    for one in (model, floats):
        embeddings = one.get_input_embeddings()(IDS).detach().requires_grad_(True)
        one.requires_grad_(False)
        one.train()(inputs_embeds=embeddings, labels=IDS).loss.backward()
        found.append(embeddings.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


@BITS
@pytest.mark.parametrize("method", ["control", "stack", "lora"])
def test_its_floats_compute_the_same_and_can_be_merged(base: str, bits: str, method: str, tmp_path: Path) -> None:
    """What was trained next to the quantised base is loaded onto the floats that it computes with."""
    pytest.importorskip(quantised.PACKAGES[bits])
    layers = {} if method == "lora" else {"control": {"layers": 2}}
    config = given(base, bits, method=method, **layers).model_copy(update={"precision": "fp32"})
    loaded, _ = config.load_base()
    write_facts(tmp_path, facts_of(loaded))
    trained: Any = config.arms[0].build().prepare(loaded, MethodContext(0, Precision("fp32"))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
        want = trained(IDS).logits
    save_trained(trained, tmp_path)
    floats = quantised.dequantise(config.load_base()[0])
    assert not has_quantised(floats)
    assert quantised.dequantise(floats) is floats
    again = load_onto(floats, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, want, rtol=1e-3, atol=2e-3 * float(want.abs().max()))
    plain_model(again).save_pretrained(tmp_path / "plain")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "plain")
    assert not has_quantised(found)
    assert getattr(found.config, "quantization_config", None) is None


@BITS
def test_a_missing_package_is_named(base: str, bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    package = quantised.PACKAGES[bits]
    with pytest.raises(ModelError, match=f"quantised: {bits} of base_model .* needs the package {package}: pip"):
        given(base, bits).load_base()


@pytest.mark.parametrize("method", ["full", "partial"])
def test_methods_that_train_the_base_are_refused(base: str, method: str) -> None:
    values = small_arm(base, method=method).to_dict() | {"quantised": "8bit"}
    with pytest.raises(ValueError, match=r"quantised=8bit: arm 'x' .* trains the base's own matrices.*take control"):
        ExperimentConfig.model_validate(values)


def test_a_suite_that_reads_the_base_s_floats_is_refused(base: str) -> None:
    values = small_arm(base, method="lora").to_dict() | {"quantised": "4bit"}
    values["evaluation"] |= {"suites": ["alignment"]}
    with pytest.raises(ValueError, match="quantised=4bit: suite alignment compares weights with the base's floats"):
        ExperimentConfig.model_validate(values)


def test_shards_are_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.plan.launches.shards", lambda: True)
    config = given(base, "8bit")
    with pytest.raises(ConfigError, match=r"quantised=8bit: FSDP and DeepSpeed .* launch with torchrun"):
        check_run(config, in_floats(config).load_base()[0])


def test_digests_of_runs_with_another_base_differ(base: str) -> None:
    config = small_arm(base, method="lora")
    found = {config.model_copy(update={"quantised": bits}).digest() for bits in (None, "8bit", "4bit")}
    assert len(found) == 3
    assert "quantised" not in config.to_dict()


def planned(base: str, bits: str | None, how: str = "none") -> ArmPlan:
    config = small_arm(base, method="control", control={"layers": [0]}).model_copy(
        update={"quantised": bits, "precision": "bf16"}
    )
    training = config.training.model_copy(update={"checkpointing": how})
    plan = plan_run(config.model_copy(update={"training": training}), Device("a GPU", 1e12, 1e12, 1e12), length=4)
    return plan.arms[0]


def test_the_plan_counts_the_matrices_in_few_bits(base: str) -> None:
    floats, eight, four = (planned(base, bits) for bits in (None, "8bit", "4bit"))
    matrices = 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert floats.parts["weights"] - eight.parts["weights"] == matrices
    assert floats.parts["weights"] - four.parts["weights"] == matrices * (2 - quantised.BYTES["4bit"])
    assert floats.stages["load"] - eight.stages["load"] == 3 * matrices
    above = 2 / 3 * matrices  # of the layers after the one that trains: their matrices are needed on the way back
    assert eight.parts["activations"] - floats.parts["activations"] == pytest.approx(2 * above)
    assert four.parts["activations"] == floats.parts["activations"]
    kept, alone = (planned(base, bits, "all").parts["activations"] for bits in ("8bit", None))
    assert kept - alone <= matrices  # of the layer that runs again
