"""Every adapter type of the installed PEFT: it works from start to merge, or it is refused with the reason."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from experiments.common.errors import ConfigError
from experiments.evaluation.weights import update_sizes
from experiments.methods.adapters import Peft, probe
from experiments.methods.parts import read_part, write_part
from experiments.methods.reference import has_base
from experiments.methods.saving import load_onto
from experiments.methods.tables import TUNINGS
from experiments.methods.weights import trainable
from experiments.models.precision import Precision
from experiments.posthoc.operations import plain_model
from tests.helpers.byte_level import byte_llama
from tests.helpers.engine import bf16_start, collate, context
from tests.helpers.tiny_llama import sequences, tiny

TYPES = [str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
FIELDS: dict[str, dict[str, Any]] = {  # sizes that fit the tiny model
    "c3a": {"block_size": 8, "init_weights": True},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": list(range(1, 50))},
    "vblora": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "waveft": {"n_frequency": 50},
}
TOKENS, START = "it puts tokens of its own before the text", "does not start as the base model with these fields"
WHY = {
    "adalora": "it moves ranks between layers",
    "adaption_prompt": TOKENS,
    "beft": "has no bias, cannot merge",
    "cartridge": TOKENS,
    "cpt": TOKENS,
    "fourierft": START,
    "lily": "not supported for Lily",
    "multitask_prompt_tuning": TOKENS,
    "p_tuning": TOKENS,
    "poly": "needs the number of a task",
    "prefix_tuning": TOKENS,
    "prompt_tuning": TOKENS,
    "shadow": "cannot adapt this model: 'ShadowCarrier' object has no attribute",
    "unilora": START,
    "vblora": START,
    "xlora": "it mixes adapters that are trained already",
}


def batch() -> dict[str, Tensor]:
    return collate(sequences(4))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(batch()["input_ids"]).logits
    return found


def trained(tuning: Peft) -> Any:
    """The tiny model after two steps."""
    model: Any = tuning.prepare(tiny(), context())
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for _ in range(2):
        model.train()(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def check_from_start_to_merge(kind: str, folder: Path) -> None:
    tuning = Peft.model_validate({"type": kind, **FIELDS.get(kind, {})})
    rebuilt = kind in ("deft", "frod", "hra")  # compute W from parts
    with pytest.warns(UserWarning, match="starts as the base model up to rounding") if rebuilt else nullcontext():
        assert 0 <= bf16_start(tuning, folder / "bf16") <= (1e-3 if rebuilt else 0)
    start: Any = tuning.prepare(tiny(), context()).eval()
    base = logits(tiny())
    torch.testing.assert_close(logits(start), base, rtol=0, atol=1e-5)
    assert has_base(start)
    model = trained(tuning)
    after = logits(model)
    assert (after - base).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    again = load_onto(tiny(), tuning.save(model, folder))
    assert torch.equal(logits(again), after)
    sizes = update_sizes(tiny(), model)
    plain = plain_model(model)
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in tiny().named_parameters()}
    torch.testing.assert_close(logits(plain), after, rtol=0, atol=1e-5)
    assert sizes.tolist() == pytest.approx(update_sizes(tiny(), plain).tolist(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["oft", "vera"])
def test_a_type_works_from_start_to_merge(kind: str, tmp_path: Path) -> None:
    check_from_start_to_merge(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_each_type_of_peft_works_or_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    if kind not in WHY:
        check_from_start_to_merge(kind, tmp_path)
        return
    with pytest.raises(ValueError, match=WHY[kind]):
        Peft.model_validate({"type": kind, **FIELDS.get(kind, {})}).prepare(tiny(), context())


def test_an_adapter_on_the_head_starts_as_the_base_in_bf16(tmp_path: Path) -> None:
    """Some suites compute the head in fp32, and its adapter must not round that."""
    assert bf16_start(Peft.model_validate({"type": "oft", "target_modules": ["lm_head"]}), tmp_path) == 0


def test_osf_trains_in_bf16() -> None:
    """Its hooks multiply gradients by the frozen directions, which must then be of one type."""
    model: Any = Peft(type="osf").prepare(tiny(), context())
    bf16 = Precision("bf16")
    assert bf16.hold_frozen(model) > 0
    with bf16.autocast():
        loss = model.train()(**batch()).loss
    loss.backward()
    assert all(p.grad is not None for p in trainable(model).values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "ofd"}, r"unknown type 'ofd' of the installed PEFT: did you mean 'o[fs][tf]'\?"),
        ({"type": "oft", "oft_block": 8}, r"unknown field 'oft_block' of OFTConfig: did you mean 'oft_block_size'\?"),
        ({"type": "oft", "oft_block_size": "8"}, r"oft_block_size='8': OFTConfig wants int"),
        ({"type": "oft", "oft_block_size": True}, r"oft_block_size=True: OFTConfig wants int"),
        ({"type": "oft", "task_type": "SEQ_CLS"}, r"task_type is set by the bench: the bench trains causal"),
        ({"type": "oft", "inference_mode": True}, r"inference_mode is set by the bench: the adapters train"),
        ({"type": "oft", "base_model_name_or_path": "x"}, r"base_model_name_or_path is set by the bench: the run's"),
        ({"type": "adalora"}, r"type 'adalora' cannot be used: it moves ranks"),
        ({"type": "prefix_tuning"}, r"type 'prefix_tuning' cannot be used: it puts tokens of its own"),
        ({"type": "ia3", "targets": "mlp"}, r"targets='mlp' has no meaning here: type ia3"),
        ({"type": "oft", "targets": "mlp", "target_modules": ["q_proj"]}, r"targets='mlp' has no meaning here"),
        ({"type": "lora", "init_lora_weights": "eva"}, r"init_lora_weights='eva' cannot be used: it needs text"),
        ({"type": "lora", "init_lora_weights": "corda"}, r"'corda' cannot be used: .* take train: corda"),
        ({"type": "lora", "init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' cannot be used: it is drawn at ra"),
        ({"type": "lora", "use_qalora": True}, r"use_qalora has no effect here: it is for layers of another library"),
        ({}, r"peft\.type\n  Field required"),
    ],
)
def test_wrong_fields_are_refused_before_anything_runs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_part(TUNINGS, {"peft": values})


def test_what_the_model_cannot_have_is_refused_with_the_error_of_peft() -> None:
    with pytest.raises(ConfigError, match=r"peft: type 'miss' cannot adapt this model: `r` \(64\) must be less"):
        Peft(type="miss").prepare(tiny(), context())
    with pytest.raises(ConfigError, match=r"type 'c3a' does not start as the base model .* such as init_weights"):
        Peft.model_validate({"type": "c3a", "block_size": 8}).prepare(tiny(), context())
    with pytest.raises(ConfigError, match=r"modules_to_save: no module is called 'lm_haed': did you mean 'lm_head'\?"):
        Peft.model_validate({"type": "lora", "modules_to_save": ["lm_haed"]}).prepare(tiny(), context())
    with pytest.raises(ConfigError, match=r"target_modules: no module is called 'k_prjo': did you mean 'k_proj'\?"):
        Peft.model_validate({"type": "lora", "target_modules": ["q_proj", "k_prjo"]}).prepare(tiny(), context())
    with pytest.raises(ConfigError, match=r"exclude_modules: no module is called 'v_porj': did you mean 'v_proj'\?"):
        Peft.model_validate({"type": "lora", "exclude_modules": ["q_proj", "v_porj"]}).prepare(tiny(), context())
    with pytest.raises(ConfigError, match=r"target_parameters: no parameter is called 'up_porj.weight'"):
        Peft.model_validate({"type": "lora", "target_parameters": ["up_porj.weight"]}).prepare(tiny(), context())
    for layers in (99, [0, 99]):
        with pytest.raises(ConfigError, match=r"layers_to_transform=99: the model has \d+ layers, 0 to"):
            Peft.model_validate({"type": "lora", "layers_to_transform": layers}).prepare(tiny(), context())
    for field in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(ConfigError, match=rf"{field}: no module is called 'q_porj': did you mean 'q_proj'\?"):
            Peft.model_validate({"type": "lora", field: {"o_proj": 2, "q_porj": 2}}).prepare(tiny(), context())
    for targets in ("mlp", "all"):  # with "all", PEFT shortens the names
        tuning = Peft.model_validate({"type": "lora", "targets": targets, "layers_to_transform": [0, 2]})
        adapted = tuning.prepare(tiny(), context())
        assert {name.split("layers.")[1][0] for name, p in adapted.named_parameters() if p.requires_grad} == {"0", "2"}
    fine = {"target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [0], "rank_pattern": {"mlp.*proj": 2}}
    Peft.model_validate({"type": "lora", **fine}).prepare(tiny(), context())
    Peft.model_validate({"type": "lora", "target_modules": "all-linear"}).prepare(tiny(), context())


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_one_of_two_tied_layers_is_refused(tied: bool) -> None:
    """Merged, it was on both: an exported model had other answers than the one that was measured."""
    for values in ({"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["embed_tokens"]}):
        said = r"target_modules: (lm_head|embed_tokens) shares its weight with another layer \(tied embeddings\)"
        with pytest.raises(ConfigError, match=said) if tied else nullcontext():
            Peft.model_validate({"type": "lora", **values}).prepare(byte_llama(96, tie_word_embeddings=tied), context())
    for more in ({"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}):
        Peft.model_validate({"type": "lora", **more}).prepare(byte_llama(96, tie_word_embeddings=tied), context())


@pytest.mark.parametrize("start", [True, "gaussian", "pissa", "olora", "orthogonal", "mica"])
def test_a_start_of_lora_is_the_same_when_it_is_loaded(start: Any, tmp_path: Path) -> None:
    """Some take a part out of the base's weights: another part at loading would be another model."""
    tuning = Peft.model_validate({"type": "lora", "r": 4, "init_lora_weights": start})
    model = trained(tuning)
    torch.manual_seed(7)
    assert torch.equal(logits(load_onto(tiny(), tuning.save(model, tmp_path))), logits(model))


def test_fields_of_peft_are_used_and_written() -> None:
    values = {"type": "oft", "targets": "mlp", "oft_block_size": 16, "exclude_modules": ["down_proj"]}
    tuning = read_part(TUNINGS, {"peft": values})
    assert write_part(tuning) == {"peft": values}
    assert read_part(TUNINGS, write_part(tuning)) == tuning
    model: Any = tuning.prepare(tiny(), context())
    assert model.peft_config["default"].oft_block_size == 16
    adapted = {name.split(".oft_R")[0].rpartition(".")[2] for name in trainable(model)}
    assert adapted == {"gate_proj", "up_proj"}
    own: Any = Peft.model_validate({"type": "oft", "oft_block_size": 8, "target_modules": ["q_proj"]})
    assert all("q_proj" in name for name in trainable(own.prepare(tiny(), context())))


def test_a_start_is_drawn_by_the_seed_alone() -> None:
    one, two = (trainable(Peft(type="lora").prepare(tiny(), context())) for _ in range(2))
    torch.manual_seed(5)
    three = trainable(Peft(type="lora").prepare(tiny(), context()))
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n], three[n]) for n in one)
    assert probe(tiny()).shape == (1, 8, 96)
