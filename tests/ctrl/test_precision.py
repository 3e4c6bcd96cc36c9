"""Copies over a half-precision base: fp32 weights that all move, computed as half-precision copies to the last bit."""

from __future__ import annotations

import copy
import dataclasses
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

import ctrl
from ctrl import precision
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import expanded_layers
from ctrl.mark import MARK
from tests.helpers.families import build, in_turn, labelled, left_padded, perturb
from tests.helpers.tiny_llama import BATCHES, IDS, tiny
from tests.helpers.trainers import hf_trainer

MERGED = [name for name, cls in INTERPOLATIONS.items() if cls.merged is not None]

HALF = [torch.bfloat16, torch.float16]


def half(family: str = "llama", dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """As from_pretrained loads a half-precision checkpoint: RoPE's frequencies, which are no parameters, stay fp32."""
    model = build(family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def trained(**values: Any) -> Any:
    """An expansion of a bf16 llama whose copies were moved by less than bf16 holds, and by more."""
    model = ctrl.expand(half(), ctrl.ControlConfig(**{"layers": 2, **values}))
    perturb(model, size=0.1)
    perturb(model, seed=2, size=1e-4)
    return model


def dtypes(model: Any) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad}


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("family", "structure"), in_turn(0))
def test_every_family_starts_as_its_base_and_computes_as_half_copies(
    family: str, structure: Any, dtype: torch.dtype
) -> None:
    base, inputs = half(family, dtype), left_padded()
    config = ctrl.ControlConfig(layers=2, structure=structure)
    expected = base(**inputs).logits
    model = ctrl.expand(copy.deepcopy(base), config)
    assert dtypes(model) == {torch.float32}
    assert model.dtype == dtype
    assert torch.equal(model(**inputs).logits, expected)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)
    perturb(model)
    rounded = ctrl.expand(base, dataclasses.replace(config, copies_dtype="base"))
    rounded.load_state_dict(model.state_dict())
    assert {p.dtype for layer in expanded_layers(rounded) for p in layer.expanded.parameters()} == {dtype}
    assert torch.equal(rounded(**inputs).logits, model(**inputs).logits)
    assert not torch.equal(rounded(**inputs).logits, expected)


@pytest.mark.parametrize("family", [tf.MambaConfig, tf.FalconMambaConfig])
def test_copies_of_layers_that_pass_on_fp32_compute_as_these(family: Any) -> None:
    """Their hidden state is fp32 over weights in bf16: copies that read fp32 weights would not start as the base."""
    torch.manual_seed(0)
    config = family(vocab_size=96, hidden_size=32, num_hidden_layers=4, state_size=4)
    base: Any = tf.AutoModelForCausalLM.from_config(config).bfloat16().requires_grad_(False).eval()
    given = {"input_ids": IDS, "labels": IDS, "use_cache": False}
    model: Any = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=4))
    out = model(**given)
    assert torch.equal(out.logits, base(**given).logits)
    assert out.divergence == 0
    with torch.no_grad():
        perturb(model, size=0.02)
    rounded: Any = ctrl.expand(base, ctrl.ControlConfig(layers=4, copies_dtype="base"))
    rounded.load_state_dict(model.state_dict())
    moved = model(**given)
    assert torch.equal(moved.logits, rounded(**given).logits)
    moved.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert model.float()(**given).logits.dtype == torch.float32


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_starts_as_its_base(interpolation: str) -> None:
    base = half()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, interpolation=interpolation))
    assert torch.equal(model(IDS).logits, base(IDS).logits)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "dynamic", "static", "beams"])
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_generated_tokens_are_those_of_half_copies(structure: str, cache: str) -> None:
    """With a cache and without one, where half types may break a tie in another way, as they do in the base."""

    def tokens(copies: str) -> Tensor:
        model = trained(structure=structure, copies_dtype=copies)
        model.load_state_dict(trained(structure=structure).state_dict())
        kwargs: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "use_cache": cache != "none"}
        if cache == "static":
            kwargs["past_key_values"] = StaticCache(config=model.config, max_cache_len=40)
        found: Tensor = model.generate(**left_padded(), **kwargs, num_beams=3 if cache == "beams" else 1)
        return found

    assert torch.equal(tokens("fp32"), tokens("base"))


@torch.no_grad()
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_cached_logits_are_those_of_no_cache(structure: str) -> None:
    model, base = trained(structure=structure), half()
    found = []
    for each in (model, base):
        cache, steps = None, []
        for position in range(IDS.shape[1]):
            out = each(IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache, steps = out.past_key_values, [*steps, out.logits]
        whole = each(IDS, use_cache=False).logits.float()
        found.append((torch.cat(steps, 1).float() - whole).abs().max() / whole.std())
    assert found[0] < 2 * found[1] + 0.02  # bf16's own difference, which a shared cache slot would exceed by far


def small_random() -> LlamaForCausalLM:
    """Weights of the usual size, as in published checkpoints."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=96, num_hidden_layers=4, **shape))
    assert model.model.layers[0].mlp.up_proj.weight.std() < 0.03
    return model.bfloat16()


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "bf16"), [(1e-5, False), (5e-5, True)])
def test_at_the_paper_s_rates_all_weights_move(rate: float, bf16: bool, tmp_path: Path) -> None:
    """With copies_dtype='base' most stay as they are, the norms all: what AdamW adds is less than half a bf16 step."""

    def moved(copies: Any) -> tuple[float, float]:
        model = ctrl.expand(small_random(), ctrl.ControlConfig(layers=2, copies_dtype=copies))
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        settings = {"learning_rate": rate, "max_steps": 40, "bf16": bf16, "lr_scheduler_type": "constant"}
        hf_trainer(model, tmp_path / copies, **settings).train()
        now = dict(model.named_parameters())

        def share(names: list[str]) -> float:
            return sum(int((now[n] != before[n]).sum()) for n in names) / sum(before[n].numel() for n in names)

        return share(list(before)), share([n for n in before if "norm" in n])

    assert moved("fp32") == (pytest.approx(1.0, abs=0.01), pytest.approx(1.0, abs=0.01))
    weights, norms = moved("base")
    assert weights < 0.8
    assert norms == 0


def test_gradients_are_those_of_half_copies() -> None:
    models = [trained(), trained(copies_dtype="base")]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.train()(**labelled(left_padded())).loss.backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if p.requires_grad and ".expanded." in name:
            assert p.grad is not None
            assert p.grad.dtype == torch.float32
            assert torch.equal(p.grad, q.grad.float()), name
    models[0].zero_grad()
    models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    models[0](**labelled(left_padded())).loss.backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if p.requires_grad and ".expanded." in name:
            assert torch.equal(p.grad, q.grad.float()), name


@pytest.mark.parametrize("values", [{}, {"structure": "stack"}, {"structure": "hybrid"}, {"expanded": "lora"}], ids=str)
def test_reloaded_equals_saved(values: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**values)
    ctrl.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ctrl.load(half(), tmp_path)
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    with pytest.warns(UserWarning, match="tensors are rounded") if not values else warnings.catch_warnings():
        ctrl.load(build("llama").half(), tmp_path)


def test_folders_from_before_keep_their_half_copies(tmp_path: Path) -> None:
    import json

    model = trained(copies_dtype="base")
    ctrl.save(model, tmp_path)
    path = tmp_path / "control_config.json"
    meta = json.loads(path.read_text())
    del meta["control"]["copies_dtype"]
    path.write_text(json.dumps(meta))
    tensors = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if name != MARK}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})  # nor had they a mark
    again = ctrl.load(half(), tmp_path)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("interpolation", MERGED)
@pytest.mark.parametrize("structure", ["concat", "hybrid"])
def test_merged_models_are_half_and_exact_at_the_ends(structure: str, interpolation: str) -> None:
    model = trained(structure=structure, interpolation=interpolation)
    with ctrl.pretrained(model):
        base = model(IDS).logits
    merged = [ctrl.merge_back(model, alpha=alpha) for alpha in (0, 1)]
    assert {p.dtype for p in merged[0].parameters()} == {torch.bfloat16}
    assert {type(m) for m in merged[1].modules()} == {type(m) for m in half().modules()}
    if structure == "concat":
        assert torch.equal(merged[0](IDS).logits, base)
        with ctrl.at_alpha(model, 1.0):
            assert torch.equal(merged[1](IDS).logits, model(IDS).logits)
    _, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    assert gap.kl > 0


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_exported_models_keep_both_dtypes(structure: Any, tmp_path: Path) -> None:
    model = trained(structure=structure)
    again = ctrl.load_published(ctrl.export_published(model, tmp_path), half()).eval()
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("copies", ["fp32", "base"])
def test_low_rank_copies_start_as_the_base_and_follow_the_setting(copies: Any) -> None:
    base = half()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", copies_dtype=copies))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert dtypes(model) == {torch.float32 if copies == "fp32" else torch.bfloat16}


def test_what_is_written_to_a_weight_stays() -> None:
    """Rounded values are read while the copy runs, and only then."""
    model = trained()
    weight = expanded_layers(model)[0].expanded.mlp.up_proj.weight
    assert isinstance(weight, torch.nn.Parameter)
    before = model(IDS).logits
    with torch.no_grad():
        expanded_layers(model)[0].expanded.mlp.up_proj.weight.mul_(3)
    assert torch.equal(expanded_layers(model)[0].expanded.mlp.up_proj.weight, weight)
    assert not torch.equal(model(IDS).logits, before)
    kept = weight.detach().clone()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))
    expected = adapted(input_ids=IDS).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0.1, atol=0.1)
    assert not torch.equal(expanded_layers(merged)[0].expanded.mlp.up_proj.weight, kept)
    replaced = torch.nn.Parameter(torch.zeros_like(weight))
    expanded_layers(merged)[0].expanded.mlp.up_proj.weight = replaced
    assert expanded_layers(merged)[0].expanded.mlp.up_proj.weight is replaced


def test_an_error_inside_a_copy_leaves_full_precision() -> None:
    model = trained()
    copied = expanded_layers(model)[0].expanded
    broken = copied.mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        model(IDS)
    broken.remove()
    assert copied.mlp.up_proj.weight.dtype == torch.float32


def test_another_thread_reads_full_precision_meanwhile() -> None:
    model, seen = trained(), []
    weights = expanded_layers(model)[0].expanded.mlp.up_proj

    def read(*_: Any) -> None:
        thread = threading.Thread(target=lambda: seen.append(weights.weight.dtype))
        thread.start()
        thread.join()
        seen.append(weights.weight.dtype)

    expanded_layers(model)[0].expanded.mlp.register_forward_hook(read)
    model(IDS)
    assert seen == [torch.float32, torch.bfloat16]


def test_replicas_of_data_parallel_compute_alike() -> None:
    """A replica holds tensors, not parameters; made by hand, since DataParallel itself needs GPUs."""
    model = trained()
    linear = expanded_layers(model)[0].expanded.mlp.up_proj
    replica: Any = linear._replicate_for_data_parallel()
    tensor: Tensor = linear.weight * 1.0
    replica.weight = tensor
    assert replica.weight is tensor


def test_a_model_that_is_made_half_afterwards_is_half() -> None:
    model = trained().bfloat16()
    assert dtypes(model) == {torch.bfloat16}
    assert model(IDS).logits.dtype == torch.bfloat16
    assert trained().float()(IDS).logits.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_bases_have_plain_copies(dtype: torch.dtype) -> None:
    model = ctrl.expand(tiny().to(dtype), ctrl.ControlConfig(layers=2))  # type: ignore[arg-type]
    assert type(expanded_layers(model)[0].expanded.mlp.up_proj) is torch.nn.Linear
    assert expanded_layers(model)[0].expanded.mlp.up_proj.weight.dtype == dtype


def test_what_a_thread_holds_is_there_before_its_first_pass() -> None:
    """A compiled pass that was the first one of its thread ended in torch's `Guard failed on the same frame`."""
    held: list[set[str]] = []
    thread = threading.Thread(target=lambda: held.append({*vars(precision._thread)}))
    thread.start()
    thread.join()
    assert held == [{"dtype", "original"}]


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    model, batch = trained(), labelled(left_padded())
    reference = model(**batch)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
    torch.testing.assert_close(compiled.loss, reference.loss)
    compiled.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_adapters_on_single_weights_of_copies_are_refused(family: str) -> None:
    """PEFT puts another weight in place of theirs in each pass, which would not be read as rounded."""
    model = ctrl.expand(half(family), ctrl.ControlConfig(layers=2))
    weight = "mlp.gate_proj.weight" if family == "llama" else "experts.gate_up_proj"
    with pytest.raises(ctrl.ConfigError, match="target_parameters replaces a weight of a copy"):
        get_peft_model(model, LoraConfig(target_parameters=[weight], target_modules=[]))
