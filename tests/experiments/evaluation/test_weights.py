"""|dW| / |W| per layer, of every way to train: whole weights, copies, adapters, in fp32 and under bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from ctrl.config import ControlConfig
from ctrl.diagnostics import update_size
from ctrl.layer import ExpandedLayer
from ctrl.structure import decoder_layers
from experiments.evaluation.weights import update_sizes
from experiments.models.base import load_base
from experiments.models.precision import Precision
from tests.helpers import families
from tests.helpers.families import perturb
from tests.helpers.small_run import draw_suites, small_config, small_values


@pytest.fixture
def expanded(base: str) -> PreTrainedModel:
    model = ctrl.expand(load_base(base)[0], ControlConfig(layers=2))
    perturb(model, size=0.05)
    return model.eval()


def test_full_and_partial(model: PreTrainedModel, base: str) -> None:
    tuned = load_base(base)[0]
    with torch.no_grad():
        for parameter in decoder_layers(tuned)[1].parameters():
            parameter.mul_(1.25)
    found = update_sizes(model, tuned)
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.0])
    assert found.index.name == "layer"


def test_expanded(model: PreTrainedModel, expanded: PreTrainedModel) -> None:
    found = update_sizes(model, expanded)
    assert (found.drop(index=[i for i in range(3) if i in expanded.control.layers]) == 0).all()
    assert (found[expanded.control.layers] > 0).all()


def test_learned_relaxed_norms_are_no_weights_of_the_base(model: PreTrainedModel, base: str) -> None:
    relaxed = ctrl.expand(load_base(base)[0], ControlConfig(layers=2, norm_mix="learned"))
    assert (update_sizes(model, relaxed) == 0).all()
    perturb(relaxed, size=0.05)
    assert (update_sizes(model, relaxed)[relaxed.control.layers] > 0).all()


def test_adapters_of_stacked_experts_count_in_their_matrices() -> None:
    """Against the plain model that merging makes. PEFT puts a wrapper around the experts for each matrix."""
    wanted = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapters = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=wanted, init_lora_weights=False)
    adapted = get_peft_model(families.build("mixtral"), adapters)  # type: ignore[arg-type]  # a PeftModel
    found = update_sizes(families.build("mixtral"), adapted)
    merged = update_sizes(families.build("mixtral"), adapted.merge_and_unload())
    assert found.tolist() == pytest.approx(merged.tolist(), rel=1e-5)
    assert (found > 0).all()


@pytest.mark.parametrize("init", ["gaussian", "corda"])
def test_an_adapter_counts_in_its_weight(model: PreTrainedModel, base: str, init: str) -> None:
    """Against the plain model that merging makes. `corda`: the weight below it is not the base's."""
    adapted = get_peft_model(
        load_base(base)[0], LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian")
    )
    if init == "corda":
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "q_proj.base_layer" in name:
                    parameter.mul_(0.5)
    else:
        assert update_sizes(model, adapted).tolist() == [0.0, 0.0, 0.0]  # type: ignore[arg-type]
    perturb(adapted)
    found = update_sizes(model, adapted)  # type: ignore[arg-type]
    assert (found > 0).all()
    merged = adapted.merge_and_unload()  # type: ignore[operator]
    assert found.tolist() == pytest.approx(update_sizes(model, merged).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "config", [LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), OFTConfig(target_modules=["q_proj"])]
)
def test_adapters_that_do_not_add_count_as_what_merging_changes(
    model: PreTrainedModel, base: str, config: PeftConfig
) -> None:
    adapted = get_peft_model(load_base(base)[0], config)
    assert update_sizes(model, adapted).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)  # type: ignore[arg-type]
    perturb(adapted)
    found = update_sizes(model, adapted)  # type: ignore[arg-type]
    assert (found > 1e-4).all()
    merged = adapted.merge_and_unload()  # type: ignore[operator]
    assert found.tolist() == pytest.approx(update_sizes(model, merged).tolist(), rel=1e-5)


def test_low_rank_copies(model: PreTrainedModel, base: str) -> None:
    low = ctrl.expand(load_base(base)[0], ControlConfig(layers=[2], expanded="lora", lora_rank=2))
    assert update_sizes(model, low).tolist() == [0.0, 0.0, 0.0]
    perturb(low)
    (layer,) = (m for m in low.modules() if isinstance(m, ExpandedLayer))
    assert update_sizes(model, low)[2] == pytest.approx(float(update_size(layer)), rel=1e-5)


def test_a_frozen_weight_held_in_bf16_has_not_moved(model: PreTrainedModel, base: str) -> None:
    held = load_base(base)[0].requires_grad_(False)
    assert Precision("bf16").hold_frozen(held)
    assert update_sizes(model, held).tolist() == [0.0, 0.0, 0.0]


def test_layers_of_another_model_are_refused(
    model: PreTrainedModel, tiny_model: Callable[[str], PreTrainedModel]
) -> None:
    with pytest.raises(ValueError, match="other parameters than the base's"):
        update_sizes(model, tiny_model("gpt_neox"))


def test_a_run_in_bf16_measures_the_weights_as_they_are_trained(
    base: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """A change far below bf16's rounding, in which the model is measured."""
    evaluation = small_values(base)["evaluation"] | {"suites": ["alignment"]}
    suites, bf16 = draw_suites(small_config(base, evaluation=evaluation), tokenizer), Precision("bf16")
    prepared = suites.prepare(model, bf16)
    tuned = load_base(base)[0]
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.0001)
    found = [r.value for r in prepared.evaluate(tuned, bf16) if r.task == "update"]
    assert found == pytest.approx([1e-4] * 3, rel=0.01)
