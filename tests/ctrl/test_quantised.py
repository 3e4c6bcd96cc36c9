"""A quantised base stays as it is; its copies train in floats, or it is refused with the way out."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

import ctrl
from ctrl.errors import ConfigError
from ctrl.layer import expanded_layers
from ctrl.quantised import has_quantised, is_quantised, is_quantised_linear
from tests.helpers.families import build, labelled, left_padded, perturb
from tests.helpers.quantised import QUANTISED, FakeByMode, FakeInt8, FakeRepacked, replace_linears

CONFIGS: dict[str, dict[str, Any]] = {
    "concat": {},
    "dlerp": {"interpolation": "dlerp", "divergence": "cosine"},
    "stack": {"structure": "stack"},
    "lora": {"expanded": "lora"},
}
IDS = left_padded(pads=0)["input_ids"]
every_kind = pytest.mark.parametrize("kind", QUANTISED)


def quantised(kind: str) -> PreTrainedModel:
    """A base of this kind; bitsandbytes' int8 on a CPU has other outputs after its first pass in training."""
    model = QUANTISED[kind]().requires_grad_(False)
    model.train()(IDS)
    model.eval()(IDS)
    return model


def expanded(kind: str, **values: Any) -> PreTrainedModel:
    return ctrl.expand(quantised(kind), ctrl.ControlConfig(layers=2, **values))


def bits(model: nn.Module) -> dict[str, Tensor]:
    """The values of the base, those of packed tensors as floats."""
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if ".expanded." not in n and "interpol" not in n}
    return {n: (t.dequantize() if is_packed(t) else t).detach().clone() for n, t in state.items()}


def is_packed(tensor: Tensor) -> bool:
    return is_quantised(tensor) and tensor.is_floating_point()


@every_kind
@pytest.mark.parametrize("config", CONFIGS)
class TestCopies:
    def test_it_starts_as_the_base_and_only_copies_train(self, kind: str, config: str) -> None:
        base = quantised(kind)
        with torch.no_grad():
            want = base(IDS).logits
        if config == "lora" and kind == "fake packed":
            with pytest.raises(ConfigError, match=r"adapts nn\.Linear .* but LlamaDecoderLayer has none"):
                ctrl.expand(base, ctrl.ControlConfig(layers=2, **CONFIGS[config]))
            return
        model = ctrl.expand(base, ctrl.ControlConfig(layers=2, **CONFIGS[config]))
        before = bits(model)
        with torch.no_grad():
            rounds = kind == "bitsandbytes int8"  # hidden states too; its copies do not
            torch.testing.assert_close(model(IDS).logits, want, atol=0.1 if rounds else 1e-5, rtol=1e-4)
        trained = [p for p in model.parameters() if p.requires_grad]
        model.train()(IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None and p.dtype == torch.float32 for p in trained)
        torch.optim.AdamW(trained, lr=1e-2).step()
        assert all(torch.equal(value, before[name]) for name, value in bits(model).items())
        model.eval()
        with torch.no_grad():
            assert (model(IDS).logits - want).abs().max() > 0.1
            with ctrl.pretrained(model):
                assert torch.equal(model(IDS).logits, want)
            assert torch.equal(ctrl.reference(model)(IDS).logits, want)

    def test_saved_ones_load_onto_the_same_kind(self, kind: str, config: str, tmp_path: Path) -> None:
        """Onto a base that has not run: in bitsandbytes two modules with one weight then have one set of scales."""
        if config == "lora" and kind == "fake packed":
            pytest.skip("refused")
        model = expanded(kind, **CONFIGS[config])
        perturb(model)
        folder = ctrl.save(model, tmp_path / "saved")
        loaded = ctrl.load(QUANTISED[kind](), folder)
        loaded.train()(IDS)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)
            tokens = loaded.generate(IDS, max_new_tokens=6, do_sample=False)
            assert torch.equal(tokens, loaded.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False))


@every_kind
def test_copies_are_the_matrices_that_the_layer_computes_with(kind: str) -> None:
    model = expanded(kind)
    layer = expanded_layers(model)[0]
    assert not has_quantised(layer.expanded)
    x = torch.randn(5, 32)
    with torch.no_grad():
        for name in ("self_attn.q_proj", "mlp.up_proj"):
            frozen, copied = layer.get_submodule(name), layer.expanded.get_submodule(name)
            assert is_quantised_linear(frozen)
            torch.testing.assert_close(copied(x), frozen(x), rtol=2e-2, atol=2e-2)
            assert (copied.weight - build("llama").model.layers[1].get_submodule(name).weight).abs().max() > 1e-4


@every_kind
@pytest.mark.parametrize("config", ["concat", "lora"])
def test_merging_and_exporting_are_refused_and_work_over_the_base_in_floats(
    kind: str, config: str, tmp_path: Path
) -> None:
    if config == "lora" and kind == "fake packed":
        pytest.skip("refused")
    model = expanded(kind, **CONFIGS[config])
    perturb(model, size=0.01)
    with pytest.raises(ConfigError, match="the base model is quantised, merge_back needs its weights in floats"):
        ctrl.merge_back(model)
    with pytest.raises(ConfigError, match="the base model is quantised, merge_back needs"):
        ctrl.merge_models([model, model])
    if config == "concat":
        with pytest.raises(ConfigError, match="the base model is quantised, export_published needs"):
            ctrl.export_published(model, tmp_path / "published")
    plain = ctrl.merge_back(ctrl.load(build("llama"), ctrl.save(model, tmp_path / "saved")))
    with torch.no_grad():
        near, far = ((plain(IDS).logits - one).abs().mean() for one in (model(IDS).logits, build("gpt2")(IDS).logits))
    assert near < far / 2


def test_bf16_copies_are_fp32_and_compute_in_bf16() -> None:
    base = QUANTISED["fake int8"]().to(torch.bfloat16)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2))
    copied = expanded_layers(model)[0].expanded
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, False),
        ({"bnb_4bit_compute_dtype": "bfloat16"}, True),
        ({"llm_int8_threshold": 0.0}, True),
        ({"llm_int8_skip_modules": ["lm_head"], "_load_in_4bit": True}, False),  # where, not how
        (None, False),  # quantised by hand: not known
    ],
)
def test_other_settings_of_quantisation_are_said(changes: dict[str, Any] | None, said: bool, tmp_path: Path) -> None:
    """The packed weights are the same, and the outputs are not."""
    own = {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": "float32", "llm_int8_threshold": 6.0}

    def base(settings: dict[str, Any] | None) -> Any:
        model: Any = quantised("fake int8")
        if settings is not None:
            model.config.quantization_config = settings
        return model

    model = ctrl.expand(base(own), ctrl.ControlConfig(layers=2, expanded="lora"))
    ctrl.save(model, tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ctrl.load(base(None if changes is None else own | changes), tmp_path)
    assert any("was quantised with other settings" in str(one.message) for one in seen) == said


def test_a_bias_is_copied_once() -> None:
    base = build("qwen2")
    replace_linears(base.model, FakeInt8)
    with torch.no_grad():
        want = base(IDS).logits
        torch.testing.assert_close(ctrl.expand(base, ctrl.ControlConfig(layers=2))(IDS).logits, want)


def test_quantised_experts_are_refused_and_low_rank_copies_are_not() -> None:
    base = build("mixtral")
    for layer in base.model.layers:
        experts = layer.mlp.experts
        experts.gate_up_proj = nn.Parameter(experts.gate_up_proj.to(torch.int8), requires_grad=False)
    kinds = [type(m) for m in base.modules()]
    with pytest.raises(
        ConfigError, match=r"mlp.experts of .*has quantised weights that are no matrix.*expanded='lora'"
    ):
        ctrl.expand(base, ctrl.ControlConfig(layers=2))
    assert [type(m) for m in base.modules()] == kinds


def test_modules_that_do_not_run_on_this_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a quantised kind may need a GPU."""
    base = quantised("fake int8")

    def fails(self: nn.Module, x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel for cpu")

    monkeypatch.setattr(FakeInt8, "forward", fails)
    with pytest.raises(
        ConfigError, match=r"do not run here \(NotImplementedError: no kernel for cpu\).*quantise its frozen"
    ):
        ctrl.expand(base, ctrl.ControlConfig(layers=2))
    assert type(base) is type(build("llama"))


@pytest.mark.parametrize("expanded", ["full", "lora"])
def test_the_layout_of_the_matrices_stays_that_of_training(expanded: Any) -> None:
    """In eval mode, in which from_pretrained gives a model, some are laid out for inference and pass no gradient."""
    base = build("llama")
    replace_linears(base.model, FakeRepacked)
    model = ctrl.expand(base.eval(), ctrl.ControlConfig(layers=[0], expanded=expanded))
    model.eval()(input_ids=IDS)
    assert not any(module.training for module in model.modules() if not isinstance(module, FakeRepacked))
    assert not any(hasattr(parameter, "repacked") for parameter in model.parameters())
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("expanded", ["full", "lora"])
def test_a_reference_leaves_the_layout_of_the_matrices_that_it_shares(expanded: Any) -> None:
    """It runs in eval mode, as trainers set it again: the copies then lost the gradients that pass frozen layers."""
    base = build("llama")
    replace_linears(base.model, FakeRepacked)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[0], expanded=expanded))
    reference = ctrl.reference(model).eval()
    with torch.no_grad():
        reference.model(input_ids=IDS)
    assert any(isinstance(module, FakeRepacked) for module in reference.modules())
    assert not any(hasattr(parameter, "repacked") for parameter in model.parameters())


@pytest.mark.parametrize("expanded", ["full", "lora"])
def test_matrices_that_compute_by_mode_are_those_of_the_base_in_each(expanded: Any) -> None:
    """Int8 of bitsandbytes on CPUs: in eval mode `ctrl.pretrained` once was a more exact model than the base."""
    base = build("llama")
    replace_linears(base.model, FakeByMode)
    with torch.no_grad():
        want = [base.train(mode)(IDS).logits for mode in (True, False)]
        model = ctrl.expand(base, ctrl.ControlConfig(layers=[0], expanded=expanded))
        perturb(model)
        assert (want[0] - want[1]).abs().max() > 0.01
        for mode in (True, False):
            with ctrl.pretrained(model.train(mode)):
                assert torch.equal(model(IDS).logits, want[not mode])


def test_a_base_that_is_laid_out_for_inference_is_refused() -> None:
    base = quantised("fake int8")
    base.model.layers[1].mlp.up_proj.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ConfigError, match=r"no gradient passes them\. Load the base anew and expand it before it runs"):
        ctrl.expand(base, ctrl.ControlConfig(layers=2))


def test_the_frozen_linears_may_be_quantised_after_expanding() -> None:
    """The way out that the refusal names."""
    model = ctrl.expand(build("llama"), ctrl.ControlConfig(layers=2))
    want = copy.deepcopy(model)(IDS).logits
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            replace_linears(part, FakeInt8)
    model.train()(**labelled(left_padded())).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert 0 < (model.eval()(IDS).logits - want).abs().max() < 1


def test_diagnostics_have_no_size_of_update() -> None:
    model = expanded("fake int8")
    with ctrl.diagnostics(model) as log:
        model.train()(IDS, labels=IDS)
    assert all(row.update != row.update and row.divergence >= 0 for row in log.rows)


def test_trainer_trains_the_copies(tmp_path: Path) -> None:
    """transformers marks a base that it has quantised, and refuses to train such a model."""
    base = quantised("fake int8")
    base.is_quantized = True
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, learning_rate=1e-2)
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS]
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(base, args, train_dataset=rows)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, args, train_dataset=rows).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".expanded." in name for name in moved)
    ctrl.unload(model)
    assert base.is_quantized


def test_only_quantised_tensors_are_taken_for_such() -> None:
    assert not has_quantised(build("llama"))
    assert not has_quantised(build("llama").bfloat16())
    assert not has_quantised(build("mixtral"))
    assert is_quantised(torch.zeros(2, dtype=torch.int8))


class RoundedStates(FakeInt8):
    """As bitsandbytes' int8 and torch.ao's dynamic modules: hidden states are rounded too."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().max() / 15
        return super().forward((x / step).round() * step)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("make", [FakeInt8, RoundedStates])
def test_copies_that_start_off_their_layers_are_said(make: Any, low_rank: bool) -> None:
    base = build("llama")
    replace_linears(base.model, make)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ctrl.expand(base, ctrl.ControlConfig(layers=2, expanded="lora" if low_rank else "full"))
    said = [str(w.message) for w in seen if "off their quantised layers, so the expanded model" in str(w.message)]
    assert len(said) == (make is RoundedStates and not low_rank)


def dynamic(model: nn.Module) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def test_torch_s_own_dynamic_modules_are_refused() -> None:
    """They hold neither parameters nor buffers: a copy of such a module would not train, and merging would skip it."""
    base = dynamic(build("llama"))
    with pytest.raises(ConfigError, match=r"modules of torch\.ao\.quantization, whose state cannot be loaded in part"):
        ctrl.expand(base, ctrl.ControlConfig(layers=2))
    model = dynamic(ctrl.expand(build("llama"), ctrl.ControlConfig(layers=2)))
    with pytest.raises(ConfigError, match="the base model is quantised, merge_back needs its weights in floats"):
        ctrl.merge_back(model)


def replaced(model: Any) -> Any:
    replace_linears(model.model, FakeInt8)
    return model


@pytest.mark.parametrize("config", ["concat", "stack", "lora"])
@pytest.mark.parametrize("quantise", [dynamic, replaced])
def test_copies_quantised_after_training_are_not_saved(quantise: Any, config: str, tmp_path: Path) -> None:
    model = quantise(ctrl.expand(build("llama"), ctrl.ControlConfig(layers=2, **CONFIGS[config])))
    with pytest.raises(ConfigError, match=r"modules of the copies are quantised .* ctrl\.save the model before you"):
        ctrl.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
