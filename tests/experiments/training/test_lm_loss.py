"""The chunked loss: the number and the gradients of the model's own, in less memory, and only where it may be used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.profiler import profile

import ctrl
from experiments.methods.token_weights import Dft
from experiments.models.head import only_label_logits, why_whole
from experiments.training import chunked_nll, lm_loss
from experiments.training.chunked_nll import summed_nll
from experiments.training.lm_loss import ChunkedLoss, WholeLoss
from tests.helpers.engine import arm_config, train
from tests.helpers.families import FAMILIES, SHAPE, VOCAB, build, labelled, left_padded, perturb

CAPPED = ("gemma2",)
NO_FP64 = ("mixtral",)  # its experts' grouped product has none
TOTAL = torch.tensor(31)  # labelled tokens of a whole step, of which the batch is a part


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens a chunk of the tiny models, so that the last chunk of a batch is not full."""
    monkeypatch.setattr(chunked_nll, "LOGITS", 5 * VOCAB)


def adapted(model: Any, *targets: str) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=list(targets)))


def tied() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()


def expanded(divergence: str = "mse") -> Any:
    config = ctrl.ControlConfig(layers=2, divergence=divergence, divergence_weight=5.0)  # type: ignore[arg-type]
    return ctrl.expand(build("llama"), config)


MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: build(name) for name in FAMILIES if name not in CAPPED},
    "tied": tied,
    "expanded": expanded,
    "expanded tied": lambda: ctrl.expand(tied(), ctrl.ControlConfig(layers=2)),
    "expanded stack": lambda: ctrl.expand(build("llama"), ctrl.ControlConfig(layers=2, structure="stack")),
    "lora": lambda: adapted(build("llama"), "q_proj", "up_proj"),
    "lora of expanded": lambda: adapted(expanded(), "q_proj"),
}


def exact_loss(logits: Tensor, labels: Tensor, vocab_size: int, shift_labels: Tensor, **kwargs: Any) -> Tensor:
    """transformers' own loss without its cast to fp32."""
    total = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum")
    return total / kwargs["num_items_in_batch"]


def dft_loss(logits: Tensor, labels: Tensor, vocab_size: int, shift_labels: Tensor, **kwargs: Any) -> Tensor:
    """Dynamic fine-tuning restated, token by token: -p log p with p as a constant."""
    total = logits.new_zeros(())
    for row, targets in zip(logits, shift_labels, strict=True):
        for z, target in zip(row, targets.tolist(), strict=True):
            if target != -100:
                total = total - z.softmax(-1)[target].detach() * z.log_softmax(-1)[target]
    return total / kwargs["num_items_in_batch"]


def gradients(model: Any, batch: dict[str, Any], context: Any) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    with context:
        out = model(**batch)
    out.loss.backward()
    return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_whole_logits(name: str, small_chunks: None) -> None:
    model = MODELS[name]()
    perturb(model)
    batch = {**only_label_logits(labelled(left_padded())), "num_items_in_batch": TOTAL}
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10))[: 1 if name in NO_FP64 else 2]:
        model = model.to(dtype)
        assert why_whole(model) is None
        chunked = ChunkedLoss(model)
        two, found = gradients(model, batch, chunked.computed())
        assert two.logits.shape == (2, 0, VOCAB)
        if dtype == torch.float64:
            chunked.model.loss_function = exact_loss
        one, expected = gradients(model, batch, nullcontext())
        for part in ("loss", "lm_loss", "divergence"):
            if part in one:
                torch.testing.assert_close(two[part], one[part], rtol=tolerance, atol=0)
        assert found.keys() == expected.keys()
        assert len(found) > 0
        for n, gradient in expected.items():
            assert (found[n] - gradient).norm() <= tolerance * gradient.norm() + 1e-12, n


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "tied", "expanded", "expanded stack", "lora"])
@pytest.mark.parametrize("reads_logits", [False, True])
def test_weighted_loss_is_its_restatement_from_chunks_and_from_whole_logits(
    name: str, reads_logits: bool, small_chunks: None
) -> None:
    """In float64, but for gemma2, whose attention gives NaN there for padded rows."""
    dtype, tolerance = (torch.float32, 1e-5) if name == "gemma2" else (torch.float64, 1e-10)
    model = (MODELS[name]() if name in MODELS else build(name)).to(dtype)
    perturb(model)
    batch = {**only_label_logits(labelled(left_padded())), "num_items_in_batch": TOTAL}
    context = lm_loss.lm_loss(model, reads_logits, Dft().weights_of)
    with context() as computed:
        model(**batch)
    whole, plain = type(computed) is WholeLoss, computed.plain
    assert whole == (reads_logits or name in CAPPED)
    two, found = gradients(model, batch, context())
    assert two.logits.shape[1] == (batch["shift_labels"].shape[1] if whole else 0)
    causal = lm_loss.inner(model)
    causal.loss_function = exact_loss
    out = model(**batch)
    assert plain is not None
    assert not plain.requires_grad
    torch.testing.assert_close(plain, out.get("lm_loss", out.loss).detach(), rtol=tolerance, atol=0)
    causal.loss_function = dft_loss
    one, expected = gradients(model, batch, nullcontext())
    for part in ("loss", "lm_loss", "divergence"):
        if part in one:
            torch.testing.assert_close(two[part], one[part], rtol=tolerance, atol=0)
    assert found.keys() == expected.keys()
    for n, gradient in expected.items():
        assert (found[n] - gradient).norm() <= tolerance * gradient.norm() + 1e-12, n


def test_token_weights_of_another_shape_are_refused() -> None:
    model, batch = build("llama"), only_label_logits(labelled(left_padded()))
    context = lm_loss.lm_loss(model, token_weights=lambda tokens: tokens.log_p[:, None])
    refusal = pytest.raises(ValueError, match=r"one weight for each token, shape \(\d+,\), but .* shape \(\d+, 1\)")
    with refusal, context():
        model(**batch)
    context = lm_loss.lm_loss(model, token_weights=lambda tokens: None)
    with context() as computed:
        loss = model(**batch).loss
    torch.testing.assert_close(loss, model(**batch).loss)
    assert computed.plain is not None
    torch.testing.assert_close(computed.plain, loss.detach())


@pytest.mark.parametrize("reads_logits", [False, True])
def test_a_model_with_a_loss_of_its_own_cannot_weigh_tokens(reads_logits: bool) -> None:
    with pytest.raises(ValueError, match="is not transformers' ForCausalLMLoss: leave out the loss term that weighs"):
        lm_loss.lm_loss(other_loss(), reads_logits, Dft().weights_of)


def test_a_model_that_does_not_call_its_loss_function_is_not_trained_without_weights() -> None:
    model: Any = build("llama")
    context = lm_loss.lm_loss(model, True, Dft().weights_of)
    with pytest.raises(ValueError, match="did not call its loss_function, so no token got its weight"), context():
        F.cross_entropy(model(torch.arange(4)[None]).logits[0], torch.arange(4))


def test_without_a_total_it_is_the_mean_over_the_batch() -> None:
    model, batch = build("llama"), only_label_logits(labelled(left_padded()))
    with ChunkedLoss(model).computed():
        loss = model(**batch).loss
    torch.testing.assert_close(loss, model(**batch).loss)


@pytest.mark.parametrize("name", ["llama", "tied", "expanded", "lora"])
def test_under_autocast_it_is_as_near_as_bf16_allows(name: str, small_chunks: None) -> None:
    """Its gradient is no further from that of fp32 than the one of whole logits under autocast, but for a quarter."""
    model, batch = MODELS[name](), {**only_label_logits(labelled(left_padded())), "num_items_in_batch": TOTAL}
    perturb(model)
    _, exact = gradients(model, batch, nullcontext())
    with torch.autocast("cpu", torch.bfloat16):
        assert why_whole(model) is None
        one, own = gradients(model, batch, nullcontext())
        two, found = gradients(model, batch, ChunkedLoss(model).computed())
    assert two.loss.dtype == torch.float32
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-5, atol=0)  # logits are the same bf16 numbers
    assert found.keys() == own.keys()
    errors = [sum(float((g[n] - exact[n]).square().sum()) for n in exact) ** 0.5 for g in (found, own)]
    assert 0 < errors[0] <= 1.25 * errors[1]


def hooked() -> Any:
    model: Any = build("llama")
    model.lm_head.register_forward_hook(lambda module, args, out: None)
    return model


def normed() -> Any:
    model: Any = build("llama")
    parametrizations.weight_norm(model.lm_head)
    return model


def other_loss() -> Any:
    model: Any = build("llama")
    model.loss_function = exact_loss
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "soft cap": (lambda: build("gemma2"), "capped or scaled"),
    "granite": (lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**SHAPE, logits_scaling=4.0)), "capped or scaled"),
    "cohere": (lambda: tf.CohereForCausalLM(tf.CohereConfig(**SHAPE)), "capped or scaled"),
    "lora": (lambda: adapted(build("llama"), "q_proj", "lm_head"), "not a plain nn.Linear"),
    "weight norm": (normed, "not a plain nn.Linear"),
    "hook": (hooked, "has hooks"),
    "other loss": (other_loss, "not transformers' ForCausalLMLoss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_need_their_logits_keep_their_loss(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = REFUSED[name]
    model = make()
    assert reason in str(why_whole(model))
    batch = {**only_label_logits(labelled(left_padded())), "num_items_in_batch": TOTAL}
    lm_loss._warn.cache_clear()
    contexts = [lm_loss.lm_loss(model) for _ in range(2)]
    (warning,) = [record.getMessage() for record in caplog.records]  # once, not for every arm
    assert "logits of a whole batch" in warning
    assert reason in warning
    with contexts[0]():
        assert model(**batch).logits.shape[1] > 0


def test_the_model_is_left_as_it_was() -> None:
    model: Any = expanded().train()
    batch = only_label_logits(labelled(left_padded()))
    before, own, state = model(**batch), model.loss_function, torch.get_rng_state()
    context = lm_loss.lm_loss(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # the probe draws nothing
    with pytest.raises(ValueError, match="call the model with only_label_logits"), context():
        model(**labelled(left_padded()))
    assert model.loss_function is own
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model(**batch).logits, before.logits)


@pytest.mark.parametrize("method", ["full", "control", "lora", "kl", "dft", "dft on control"])
def test_the_engine_uses_it_unless_the_method_reads_logits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    monkeypatch.setattr(chunked_nll, "LOGITS", 7 * 96)
    monkeypatch.setattr(lm_loss, "summed_nll", lambda *args: (passes.append(1), summed_nll(*args))[1])
    arm = arm_config(method, {})
    found = train(arm, tmp_path / "a", steps=2, batch_size=2, gradient_accumulation=2)
    assert len(passes) == (0 if arm.build().reads_logits else 4)
    whole = partial(lm_loss.lm_loss, reads_logits=True)
    monkeypatch.setattr(
        "experiments.training.trainer.lm_loss",
        lambda model, reads, weights, reads_pass, penalties: whole(
            model, token_weights=weights, token_penalties=penalties
        ),
    )
    expected = train(arm, tmp_path / "b", steps=2, batch_size=2, gradient_accumulation=2)
    assert found.logs.keys() == expected.logs.keys()
    for step, logs in expected.logs.items():
        assert found.logs[step] == pytest.approx(logs, rel=1e-4)


def peak_bytes(model: nn.Module, batch: dict[str, Any], context: Any) -> int:
    """Of torch's own CPU allocations in one forward and backward pass, above what was there before."""
    with profile(profile_memory=True) as profiled:
        gradients(model, batch, context)
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.slow
def test_peak_memory_of_a_large_vocabulary_falls_to_a_quarter() -> None:
    """2048 labelled tokens of a vocabulary of 32,000: logits in fp32 alone are 262 MB, and there are three such."""
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**{**SHAPE, "vocab_size": 32000, "hidden_size": 16}))
    ids = torch.randint(2, 32000, (16, 129))
    batch = only_label_logits({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    whole = peak_bytes(model, batch, nullcontext())
    chunked = peak_bytes(model, batch, ChunkedLoss(model).computed())
    assert whole > 3 * 4 * 2048 * 32000
    assert chunked < whole / 4
