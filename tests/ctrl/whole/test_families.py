"""One contract for every model family in every structure: an expanded model is right from its first to its last use.

The families of the unit tier meet each test in each structure, the others in one structure, another in each test.
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.config import ControlConfig
from tests.helpers import reference
from tests.helpers.families import (
    EVERY,
    FAMILIES,
    STRUCTURES,
    WINDOW,
    build,
    greedy_by_hand,
    in_turn,
    labelled,
    left_padded,
    perturb,
)

Batch = dict[str, Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "structure" in metafunc.fixturenames:
        turn = zlib.crc32(metafunc.function.__name__.encode())
        metafunc.parametrize(("family", "structure"), in_turn(turn))
    elif "family" in metafunc.fixturenames:
        metafunc.parametrize("family", EVERY)


def test_every_family_meets_every_structure() -> None:
    tests = [name for cls in globals().values() if isinstance(cls, type) for name in vars(cls) if name[:5] == "test_"]
    pairs = [getattr(pair, "values", pair) for name in tests for pair in in_turn(zlib.crc32(name.encode()))]
    assert set(pairs) == {(family, structure) for family in FAMILIES for structure in STRUCTURES}


@pytest.fixture
def inputs() -> Batch:
    return left_padded()


@pytest.fixture
def base(family: str) -> PreTrainedModel:
    return build(family)


@pytest.fixture
def fresh(family: str, structure: str) -> PreTrainedModel:
    """Just expanded: 2 of 4 layers."""
    return ctrl.expand(build(family), ControlConfig(structure=structure, layers=2))  # type: ignore[arg-type]


@pytest.fixture
def trained(fresh: PreTrainedModel) -> PreTrainedModel:
    """Its copies moved away from their originals."""
    perturb(fresh)
    return fresh


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: Batch) -> Tensor:
    """Compute logits of the real positions, not of the padding."""
    return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def trainable(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def pretrained_bits(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor of the base model, buffers too: what training must leave alone."""
    return {name: t.detach().clone() for name, t in model.state_dict().items() if ".expanded." not in name}


def gradients(model: PreTrainedModel, inputs: Batch) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(**labelled(inputs), use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class TestForward:
    def test_starts_as_the_base_model(self, base: PreTrainedModel, fresh: PreTrainedModel, inputs: Batch) -> None:
        assert torch.equal(logits(fresh, inputs), logits(base, inputs))

    def test_the_copies_matter(self, base: PreTrainedModel, trained: PreTrainedModel, inputs: Batch) -> None:
        """The guard of all the tests below: a copy that never runs would pass most of them."""
        assert (logits(trained, inputs) - logits(base, inputs)).abs().max() > 0.1

    def test_each_copy_matters(self, fresh: PreTrainedModel, inputs: Batch) -> None:
        before = logits(fresh, inputs)
        for row in ctrl.describe(fresh):
            alone = copy.deepcopy(fresh)
            for name, parameter in alone.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and f".{row.layer}.expanded." in name)
            assert trainable(alone)
            perturb(alone)
            assert (logits(alone, inputs) - before).abs().max() > 0.01

    def test_the_pretrained_model_is_still_there(
        self, base: PreTrainedModel, trained: PreTrainedModel, inputs: Batch
    ) -> None:
        changed = logits(trained, inputs)
        with ctrl.pretrained(trained) as inside:
            assert inside is trained
            assert torch.equal(logits(trained, inputs), logits(base, inputs))
            plain = base.generate(**inputs, max_new_tokens=8, do_sample=False)
            assert torch.equal(trained.generate(**inputs, max_new_tokens=8, do_sample=False), plain)
            assert torch.equal(trained(**labelled(inputs)).loss, base(**labelled(inputs)).loss)
        assert torch.equal(logits(trained, inputs), changed)

    def test_records_one_hidden_state_and_attention_per_layer(
        self, base: PreTrainedModel, trained: PreTrainedModel, inputs: Batch
    ) -> None:
        for model in (base, trained):
            model.set_attn_implementation("eager")
        want = base(**inputs, output_hidden_states=True, output_attentions=True)
        found = trained(**inputs, output_hidden_states=True, output_attentions=True)
        assert len(found.hidden_states) == len(want.hidden_states)
        assert len(found.attentions) == len(want.attentions)
        assert torch.equal(found.hidden_states[1], want.hidden_states[1])  # layer 0 has no copy
        assert not torch.equal(found.hidden_states[2], want.hidden_states[2])  # layer 1 has

    def test_padding_in_front_changes_nothing(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """The padded row alone, without its pads, gives the same logits."""
        mask = inputs["attention_mask"][-1].bool()
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():
            padded = trained(**inputs, position_ids=positions).logits[-1, mask]
            alone = trained(input_ids=inputs["input_ids"][-1:, mask]).logits[0]
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)

    def test_padding_behind_changes_nothing(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """The same row with its pads on the right."""
        length = int(inputs["attention_mask"][-1].sum())
        right = {name: values.roll(length, dims=1)[-1:] for name, values in inputs.items()}
        assert right["attention_mask"][0].tolist() == [1] * length + [0] * (12 - length)
        both = {name: torch.cat([values[:1], right[name]]) for name, values in inputs.items()}
        with torch.no_grad():
            padded = trained(**both).logits[-1, :length]
            alone = trained(input_ids=right["input_ids"][:, :length]).logits[0]
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)

    def test_a_change_of_attention_reaches_the_copies(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """And changes numbers in the last bits only."""
        before = logits(trained, inputs)
        trained.set_attn_implementation("eager")
        seen = {m.config._attn_implementation for m in trained.modules() if hasattr(m, "config")}
        assert seen == {"eager"}
        torch.testing.assert_close(logits(trained, inputs), before, rtol=1e-4, atol=1e-4)


class TestGeneration:
    def test_cached_equals_uncached_token_for_token(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """A copy in its original's cache slot, or with the wrong kind of slot, gives wrong tokens without an error."""
        tokens = 3 * WINDOW
        cached = trained.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        assert cached.shape == (2, inputs["input_ids"].shape[1] + tokens)
        assert torch.equal(cached, greedy_by_hand(trained, inputs, tokens))

    def test_cached_logits_equal_uncached(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """Numbers, where tokens could agree by luck: beyond the sliding window, one token at a time."""
        ids = left_padded(batch=1, length=14, pads=0)["input_ids"]
        with torch.no_grad():
            whole = trained(input_ids=ids, use_cache=False).logits
            cache, steps = None, []
            for t in range(ids.shape[1]):
                out = trained(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


class TestTraining:
    def test_gradients_reach_all_that_trains_and_nothing_else(self, trained: PreTrainedModel, inputs: Batch) -> None:
        found = gradients(trained, inputs)
        assert set(found) == set(trainable(trained))
        for name, gradient in found.items():
            assert torch.isfinite(gradient).all(), name
            assert gradient.any(), name

    def test_only_the_copies_train(self, base: PreTrainedModel, fresh: PreTrainedModel) -> None:
        assert all(".expanded." in name for name in trainable(fresh))
        kept = {name for name, p in fresh.named_parameters() if not p.requires_grad}
        assert {name for name, _ in base.named_parameters()} <= kept

    def test_frozen_tensors_keep_their_bits(self, fresh: PreTrainedModel, inputs: Batch) -> None:
        before, start = pretrained_bits(fresh), copy.deepcopy(fresh.state_dict())
        optimizer = torch.optim.AdamW(trainable(fresh).values(), lr=1e-2)
        for _ in range(5):
            gradients(fresh, inputs)
            optimizer.step()
        for name, tensor in pretrained_bits(fresh).items():
            assert torch.equal(tensor, before[name]), name
        moved = [name for name in trainable(fresh) if not torch.equal(fresh.state_dict()[name], start[name])]
        assert moved == list(trainable(fresh))

    def test_five_steps_learn(self, fresh: PreTrainedModel, structure: str, inputs: Batch) -> None:
        """Stacked copies of gemma and olmo2 learn more slowly (`ctrl.post_norms`)."""
        optimizer = torch.optim.AdamW(trainable(fresh).values(), lr=1e-2 if structure == "concat" else 5e-2)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            out = fresh(**labelled(inputs), use_cache=False)
            out.loss.backward()
            optimizer.step()
            losses.append(float(out.lm_loss.detach()))
        assert losses[-1] < 0.9 * losses[0]

    def test_checkpointing_gives_the_same_gradients(self, trained: PreTrainedModel, inputs: Batch) -> None:
        trained.train()
        plain = gradients(trained, inputs)
        trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        checkpointed = gradients(trained, inputs)
        assert checkpointed.keys() == plain.keys()
        for name, gradient in checkpointed.items():
            torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6, msg=name)

    def test_eval_and_train_mode_agree(self, trained: PreTrainedModel, inputs: Batch) -> None:
        """Without dropout the mode changes neither loss nor divergence."""
        still = trained(**labelled(inputs))
        trained.train()
        moving = trained(**labelled(inputs))
        torch.testing.assert_close(moving.loss, still.loss)
        torch.testing.assert_close(moving.divergence, still.divergence)


class TestDivergence:
    @pytest.mark.parametrize("name", ["mse", "cosine", "cosine_smooth", "norm", "attention"])
    def test_is_the_distance_of_the_two_branches(self, family: str, name: str, inputs: Batch) -> None:
        """Layer 1 alone has a copy, so both branches see the same input: a is in the base model's records, b in those
        of the model that has the copy in layer 1's place."""
        models = [build(family), ctrl.expand(build(family), ControlConfig(layers=[1], alpha_start=1.0))]
        perturb(models[1])
        for model in models:
            model.set_attn_implementation("eager")
        models[1] = ctrl.merge_back(models[1])
        config = ControlConfig(layers=[1], divergence=name, divergence_weight=0.5)  # type: ignore[arg-type]
        model = build(family)
        model.set_attn_implementation("eager")
        ctrl.expand(model, config)
        perturb(model)

        with torch.no_grad():
            out = model(**labelled(inputs))
            records = [m(**inputs, output_hidden_states=True, output_attentions=True) for m in models]
        rows = name == "attention"
        a, b = ((r.attentions[1] if rows else r.hidden_states[2]).double().numpy() for r in records)
        per_token = reference.attention(a, b) if rows else reference.divergence(name, a, b)
        want = reference.masked_mean(per_token, inputs["attention_mask"].bool().numpy())
        assert want > 1e-3
        assert out.divergence.item() == pytest.approx(want, rel=1e-3)
        assert out.loss.item() == pytest.approx(out.lm_loss.item() + 0.5 * want, rel=1e-4)


class TestCopies:
    def test_deepcopy_after_a_pass_is_equal_and_independent(self, trained: PreTrainedModel, inputs: Batch) -> None:
        loss = trained(**labelled(inputs)).loss
        copied = copy.deepcopy(trained)
        before = logits(trained, inputs)
        assert torch.equal(logits(copied, inputs), before)
        perturb(copied, seed=5)
        assert not torch.equal(logits(copied, inputs), before)
        assert torch.equal(logits(trained, inputs), before)
        with ctrl.pretrained(copied):
            assert torch.equal(logits(trained, inputs), before)
        loss.backward()  # the original's graph is still whole

    def test_save_then_load_into_a_fresh_base(
        self, base: PreTrainedModel, trained: PreTrainedModel, inputs: Batch, tmp_path: Path
    ) -> None:
        start = logits(base, inputs)
        ctrl.save(trained, tmp_path / "expansion")
        loaded = ctrl.load(base, tmp_path / "expansion")
        assert torch.equal(logits(loaded, inputs), logits(trained, inputs))
        assert set(trainable(loaded)) == set(trainable(trained))
        with ctrl.pretrained(loaded):
            assert torch.equal(logits(loaded, inputs), start)


class TestMergeBack:
    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    @pytest.mark.slow
    def test_is_exact_at_the_ends(self, family: str, structure: str, alpha: float, inputs: Batch) -> None:
        """Where all of the share is on one side, mixing weights is mixing outputs."""
        base = build(family)
        model = ctrl.expand(build(family), ControlConfig(structure=structure, layers=2, alpha_start=alpha))  # type: ignore[arg-type]
        perturb(model)
        want = logits(model, inputs)
        merged = ctrl.merge_back(model)
        assert type(merged) is type(base)
        assert torch.equal(logits(merged, inputs), want)
        changed = (want - logits(base, inputs)).abs().max()
        assert changed == 0 if (structure, alpha) == ("concat", 0.0) else changed > 0.1
        assert torch.equal(logits(model, inputs), want)  # merging took a copy

    @pytest.mark.slow
    def test_the_result_is_a_plain_model(
        self, base: PreTrainedModel, trained: PreTrainedModel, structure: str, inputs: Batch, tmp_path: Path
    ) -> None:
        merged = ctrl.merge_back(trained)
        assert {type(m) for m in merged.modules()} == {type(m) for m in base.modules()}
        if structure == "concat":
            assert set(merged.state_dict()) == set(base.state_dict())
        merged.save_pretrained(tmp_path)
        again = type(base).from_pretrained(tmp_path)
        assert torch.equal(logits(again, inputs), logits(merged, inputs))
        tokens = merged.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert torch.equal(tokens, greedy_by_hand(merged, inputs, 8))
