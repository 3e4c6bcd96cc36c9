"""Expanded models use caches of every kind, and refuse one that was filled without the copies."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import DynamicCache, StaticCache

import ctrl
from ctrl.errors import ConfigError
from ctrl.expansion import take_off
from tests.helpers.architectures import build as build_architecture
from tests.helpers.families import build, in_turn, perturb
from tests.helpers.tiny_llama import IDS, MASK, disturbed

ALONE = "past_key_values was filled while the expanded layers did not run"


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "beams", "config-less"])
@pytest.mark.slow
def test_every_cache_gives_the_tokens_of_none(structure: str, implementation: str) -> None:
    model = disturbed(structure=structure)
    kwargs: dict[str, object] = {"attention_mask": MASK, "max_new_tokens": 24, "do_sample": False}
    if implementation == "beams":
        kwargs["num_beams"] = 3
    expected = model.generate(IDS, **kwargs, use_cache=False)
    if implementation == "static":
        kwargs["past_key_values"] = StaticCache(config=model.config, max_cache_len=40)
    if implementation == "config-less":
        kwargs["past_key_values"] = DynamicCache()
    assert torch.equal(model.generate(IDS, **kwargs), expected)
    with ctrl.pretrained(model):
        base = model.generate(IDS, attention_mask=MASK, max_new_tokens=24, do_sample=False, use_cache=False)
    assert not torch.equal(base, expected[:, : base.shape[1]])


@pytest.mark.parametrize(("family", "structure"), in_turn(1))
@pytest.mark.slow
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(family: str, structure: str) -> None:
    model = ctrl.expand(build(family), ctrl.ControlConfig(structure=structure, layers=2))
    perturb(model, seed=3)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 16, "do_sample": False}
    static = StaticCache(config=model.config, max_cache_len=40)
    assert torch.equal(model.generate(IDS, **kwargs, past_key_values=static), model.generate(IDS, **kwargs))


@pytest.mark.parametrize("before", [0, 2], ids=["from the start", "in the middle"])
@pytest.mark.parametrize("config", [True, False], ids=["of the config", "config-less"])
def test_a_cache_filled_without_the_copies_is_refused(config: bool, before: int) -> None:
    model = disturbed()
    cache = DynamicCache(config=model.config) if config else DynamicCache()
    if before:
        model(IDS[:, :before], past_key_values=cache)
        ctrl.reference(model)(IDS[:, before:], past_key_values=cache)
    else:
        with ctrl.pretrained(model):
            model(IDS, past_key_values=cache)
    with pytest.raises(ValueError, match=ALONE):
        model(IDS[:, :1], past_key_values=cache)


@pytest.mark.parametrize("made", [lambda _: DynamicCache(), lambda config: StaticCache(config, max_cache_len=16)])
def test_a_cache_filled_by_the_copies_is_refused_inside_pretrained(made: Any) -> None:
    """Keys above the first copy are those of the expanded model, so the block would not give the base."""
    model = disturbed()
    cache = made(model.config)
    model(IDS[:, :4], past_key_values=cache)
    with ctrl.pretrained(model):
        with pytest.raises(ValueError, match=r"was filled while the expanded layers ran.* Pass a new cache"):
            model(IDS[:, 4:], past_key_values=cache)
        cache.reset()
        found = [model(IDS[:, part], past_key_values=cache).logits for part in (slice(4), slice(4, 12))]
        torch.testing.assert_close(torch.cat(found, 1), model(IDS).logits, rtol=0, atol=1e-5)


def test_a_static_cache_that_the_base_went_on_with_is_refused_until_it_is_reset() -> None:
    """It counts its tokens on the device, not in Python."""
    model = disturbed()
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(IDS[:, :2], past_key_values=cache)
    ctrl.reference(model)(IDS[:, 2:6], past_key_values=cache)
    with pytest.raises(ValueError, match=ALONE):
        model(IDS[:, 6:], past_key_values=cache)
    cache.reset()
    model(IDS[:, :2], past_key_values=cache)
    expected = model(IDS).logits[:, 2:]
    torch.testing.assert_close(model(IDS[:, 2:], past_key_values=cache).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "key"), [("mamba", "cache_params"), ("qwen3_next", "past_key_values")])
def test_states_that_count_no_tokens_are_refused_until_they_are_reset(name: str, key: str, tmp_path: Path) -> None:
    """Linear attention keeps one state for all tokens: the base's and the copy's must have seen the same ones."""

    def made(seed: int) -> Any:
        model: Any = ctrl.expand(build_architecture(name), ctrl.ControlConfig(layers=[0, 1]))
        perturb(model, seed)
        return model

    model, other = made(1), ctrl.save(made(2), tmp_path)
    cache = DynamicCache(config=model.config)
    run: Any = lambda ids: model(ids, **{key: cache}).logits  # noqa: E731
    with torch.no_grad():
        with ctrl.pretrained(model):
            run(IDS[:, :6])
        with pytest.raises(ValueError, match=ALONE):
            run(IDS[:, 6:])
        cache.reset()
        for at in range(4):
            again = run(IDS[:, at : at + 1])
        torch.testing.assert_close(again, model(IDS[:, :4], use_cache=False).logits[:, 3:], rtol=0, atol=1e-4)
        with ctrl.pretrained(model), pytest.raises(ValueError, match="was filled while the expanded layers ran"):
            run(IDS[:, 4:])
        ctrl.swap(model, other)
        with pytest.raises(ValueError, match="was filled by another expansion"):
            run(IDS[:, 4:])


def test_a_cache_shorter_than_the_base_is_refused() -> None:
    model = disturbed()
    cache = DynamicCache(config=model.config)
    del cache.layers[2:]
    with pytest.raises(ValueError, match="past_key_values has 2 layers, the base model 4: pass a cache made from"):
        model(IDS, past_key_values=cache)


@pytest.mark.parametrize("name", ["nemotron_h", "megatron-bert", "rembert", "roc_bert", "bart"])
def test_slots_of_every_kind_give_the_tokens_of_none(name: str) -> None:
    """Layers that keep nothing have empty slots; decoders that may run with an encoder hold two caches."""
    model = ctrl.expand(build_architecture(name), ctrl.ControlConfig(layers=4))
    perturb(model)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(IDS, **kwargs), model.generate(IDS, **kwargs, use_cache=False))


@pytest.mark.parametrize("encoder_layers", [4, 5, 12])
def test_the_other_half_of_an_encoder_decoder_does_not_count(encoder_layers: int) -> None:
    """BART's config counts the encoder's layers as num_hidden_layers, and its cache has as many slots."""
    config = tf.BartConfig(
        vocab_size=96, d_model=32, encoder_layers=encoder_layers, decoder_layers=4, decoder_attention_heads=4,
        encoder_attention_heads=4, decoder_ffn_dim=48, encoder_ffn_dim=48, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = ctrl.expand(tf.BartForCausalLM(config).eval(), ctrl.ControlConfig(layers=4))
    perturb(model)
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    tokens = model.generate(IDS, **kwargs)
    assert torch.equal(tokens, model.generate(IDS, **kwargs, use_cache=False))
    assert ctrl.merge_back(model).config.decoder_layers == 4


def batched(model: Any, prompts: list[list[int]], greedy: tf.GenerationConfig, **more: Any) -> list[list[int]]:
    """The replies of continuous batching."""
    room = tf.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, page_size=8)
    more |= {"continuous_batching_config": room, "warmup": False}
    found = model.generate_batch(prompts, generation_config=greedy, **more)
    assert not any(reply.error for reply in found.values())
    return [list(reply.generated_tokens) for reply in found.values()]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_continuous_batching_gives_the_tokens_of_generate(family: str, structure: str) -> None:
    """Its cache has slots for the copies too, of their originals' kind; the config is as before afterwards.

    GPT-2's names its number of layers n_layer.
    """
    model = ctrl.expand(build(family), ctrl.ControlConfig(structure=structure, layers=2)).eval()
    perturb(model, size=0.5)  # stacked copies of gemma3 start at norms of 0: .1 changed no token
    before = model.config.to_dict()
    greedy = tf.GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=95, pad_token_id=0)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]

    def alone() -> list[list[int]]:
        return [model.generate(torch.tensor([p]), generation_config=greedy)[0, len(p) :].tolist() for p in prompts]

    want = alone()
    assert batched(model, prompts, greedy) == want
    assert model.config.to_dict() == before
    with ctrl.pretrained(model):
        assert batched(model, prompts, greedy) == alone() != want


def test_continuous_batching_of_a_class_that_reads_no_such_cache_is_refused() -> None:
    """Of a plain GPT-J transformers gives the tokens of other texts, without an error."""
    model: Any = ctrl.expand(build_architecture("gptj"), ctrl.ControlConfig(layers=2))
    with pytest.raises(ConfigError, match=r"GPTJ\w* computes its attention itself and .* wrong: call model.generate"):
        model.generate_batch([[1, 2, 3]], warmup=False)


@pytest.mark.slow
def test_a_manager_that_is_kept_shares_no_blocks_of_another_mode() -> None:
    """Prompts that begin alike share their first blocks, which the copies have filled, or another alpha."""
    model: Any = disturbed()
    greedy = tf.GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=95, pad_token_id=0)
    prompts = [[*range(1, 21), 3, 4], [*range(1, 21), 7, 9, 2]]

    def same() -> list[list[int]]:
        found = batched(model, prompts, greedy, persistent_manager=True)
        with torch.no_grad():
            alone = [model.generate(torch.tensor([p]), generation_config=greedy)[0, len(p) :] for p in prompts]
        assert found == [row.tolist() for row in alone]
        return found

    found = [same()]
    with ctrl.pretrained(model):
        found.append(same())
    with ctrl.at_alpha(model, 2.0):
        found.append(same())
    waiting = ctrl.swap(model, take_off(disturbed(seed=6)))
    found.append(same())
    ctrl.unload(model)
    assert same() == found[1]
    ctrl.swap(model, waiting)
    assert same() == found[0]
    assert len({str(one) for one in found}) == 4
    kept = model._cached_continuous_batching_manager
    cache = kept.batch_processor.cache
    assert same() == found[0]
    assert kept.batch_processor.cache is cache  # of one mode it stays
    with (
        ctrl.pretrained(model),
        pytest.raises(ValueError, match=r"continuous batching runs, and the model computes so"),
    ):
        model(IDS, cache=cache)


TAKEN_OFF = (
    r"filled by another expansion, of other layers or weights or one that ctrl.swap or ctrl.unload has taken off"
)


def half_filled(model: Any) -> DynamicCache:
    """A cache with the first four tokens of IDS."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS[:, :4], past_key_values=cache)
    return cache


def unpickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_a_copied_cache_goes_on_as_the_first_one(copied: Any) -> None:
    model = disturbed()
    cache = half_filled(model)
    expected = model(IDS).logits[:, 4:]
    for one in (copied(cache), copied(copied(cache)), cache):
        torch.testing.assert_close(model(IDS[:, 4:], past_key_values=one).logits, expected, rtol=0, atol=1e-5)
    same = copy.deepcopy(model)  # the same copies, of another object
    assert torch.isfinite(same(IDS[:, 4:], past_key_values=half_filled(model)).logits).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: cache])
def test_a_cache_of_other_copies_of_the_same_layers_is_refused(copied: Any) -> None:
    """Two expansions of one base, both in use."""
    model, other, same = disturbed(), disturbed(seed=6), disturbed(seed=6)
    cache = copied(half_filled(model))
    with pytest.raises(ValueError, match=TAKEN_OFF):
        other(IDS[:, 4:], past_key_values=cache)
    assert torch.isfinite(other(IDS[:, 4:], past_key_values=half_filled(same)).logits).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled, lambda cache: cache])
def test_a_cache_of_copies_of_other_layers_is_refused(copied: Any) -> None:
    cache, other = copied(half_filled(disturbed())), disturbed(layers=[0, 2])
    with pytest.raises(ValueError, match=TAKEN_OFF):
        other(IDS[:, 4:], past_key_values=cache)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: cache])
def test_a_cache_of_an_expansion_that_is_gone_is_refused(copied: Any) -> None:
    """`ctrl.unload` keeps nothing of it: new copies of the same layers are others."""
    model = disturbed()
    cache = copied(half_filled(model))
    ctrl.expand(ctrl.unload(model), ctrl.ControlConfig(layers=2))
    gc.collect()
    with pytest.raises(ValueError, match=TAKEN_OFF):
        model(IDS[:, 4:], past_key_values=cache)


def test_a_cache_of_an_expansion_that_was_taken_off_is_refused() -> None:
    """Its slots are of other copies, of other layers maybe. One that was swapped in again may go on."""
    model, other = disturbed(), disturbed(layers=[0, 2])
    cache = DynamicCache(config=model.config)
    model(IDS[:, :4], past_key_values=cache)
    waiting = ctrl.swap(model, take_off(other))
    with pytest.raises(ValueError, match=TAKEN_OFF):
        model(IDS[:, 4:], past_key_values=cache)
    assert waiting is not None
    ctrl.swap(model, waiting)
    expected = model(IDS).logits[:, 4:]
    torch.testing.assert_close(model(IDS[:, 4:], past_key_values=cache).logits, expected, rtol=0, atol=1e-5)
