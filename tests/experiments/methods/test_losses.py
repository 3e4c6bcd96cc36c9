"""Loss terms: one contract for all of them, and their formulas against plain restatements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.methods import LOSS_TERMS, TUNINGS
from experiments.methods.active import ActiveTerm
from experiments.methods.base import LossTerm
from experiments.methods.batches import single_rows
from experiments.methods.losses import Dual, Kl, fisher, kl, top_kl
from experiments.methods.method import ActiveMethod, Method
from experiments.methods.parts import read_part
from experiments.methods.token_weights import Dft
from experiments.methods.tuning import Full
from experiments.methods.weights import snapshot, trainable
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision
from experiments.training.lm_loss import ChunkedLoss, WholeLoss
from tests.helpers.engine import TUNED, arm_config, collate, context, old_text, rows, train
from tests.helpers.tiny_llama import sequences, tiny

FIELDS: dict[str, dict[str, Any]] = {"kl": {"weight": 0.5}, "l2sp": {"weight": 0.5}, "ewc": {"weight": 5.0}}


def has_penalty(name: str) -> bool:
    term = LOSS_TERMS[name].active_class()
    return term.penalty is not ActiveTerm.penalty or term.penalty_of is not ActiveTerm.penalty_of


PENALTIES = [name for name in LOSS_TERMS if has_penalty(name)]
TRAIN = TUNED


def read(name: str, **fields: Any) -> Any:
    return read_part(LOSS_TERMS, {name: FIELDS.get(name, {}) | fields})


def begun(part: LossTerm, train: Any = "full") -> tuple[ActiveMethod, Any, dict[str, Tensor]]:
    """A method of this term, begun on a model whose weights then moved; that model; its start."""
    model: Any = read_part(TUNINGS, train).prepare(tiny(), context())
    method = Method(Full(), (part,)).begin(model, context())
    start = snapshot(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.05 * torch.randn_like(p))
    return method, model, start


def short(count: int = 8, replayed: bool = False) -> dict[str, Any]:
    """A batch as the engine gives it to a penalty."""
    batch = collate(rows(count, replayed=replayed))
    marks = {"replayed": batch.pop("replayed")} if replayed else {}
    return {**only_label_logits(batch), **marks}


def penalty(method: ActiveMethod, model: Any, batch: dict[str, Any], total: Tensor | None = None) -> Tensor:
    """What the term adds to the loss, without the logits of a batch."""
    inputs = {k: v for k, v in batch.items() if k != "replayed"}
    if not method.method.penalises_tokens:
        out = model(**inputs)
        out.logits = out.logits[:, :0]
        value = method.penalty(model, batch, out, total)
        assert value is not None
        return value
    noted, found = method.begin_pass(model, batch), method.token_penalties
    computed = ChunkedLoss(model, lambda tokens: torch.zeros_like(tokens.log_p), token_penalties=found)
    with computed.computed(noted):
        out = model(**inputs, **({} if total is None else {"num_items_in_batch": total}))
    alone: Tensor = out.lm_loss if hasattr(out, "lm_loss") else out.loss
    torch.testing.assert_close(computed.penalty, alone.detach())
    return alone


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("name", PENALTIES)
def test_micro_batches_add_up_to_a_large_batch(name: str, train: str) -> None:
    """Value and gradient of the penalty, on everything that can train."""
    term, model, _ = begun(read(name), TRAIN[train])
    model.eval()
    total = (collate(sequences(8))["labels"][:, 1:] != -100).sum()
    large, leaves = penalty(term, model, short(), total), list(trainable(model).values())
    expected = torch.autograd.grad(large, leaves, allow_unused=True)
    parts = [collate(sequences(8)[i : i + 2]) for i in range(0, 8, 2)]
    values = [penalty(term, model, only_label_logits(part), total) for part in parts]
    torch.testing.assert_close(torch.stack(values).sum(), large, rtol=1e-4, atol=1e-7)
    found = torch.autograd.grad(torch.stack(values).sum(), leaves, allow_unused=True)
    assert large > 0
    assert any(g is not None and g.abs().max() > 0 for g in expected)
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSS_TERMS)
def test_a_term_adds_a_penalty_or_weighs_tokens(name: str) -> None:
    term = read(name)
    assert term.weighs_tokens or has_penalty(name)
    assert LossTerm().token_weights(torch.zeros(3)) is None
    assert LossTerm().penalty(None, {}, None, None) is None


def test_l2sp_is_half_the_weighted_squared_distance() -> None:
    term, model, start = begun(read("l2sp", weight=0.3))
    expected = 0.0
    for name, p in model.named_parameters():
        expected += float(((p.detach().double() - start[name].double()) ** 2).sum())
    assert penalty(term, model, short()).item() == pytest.approx(0.15 * expected, rel=1e-5)


def test_fisher_is_the_mean_square_of_gradients_row_by_row() -> None:
    model, texts = tiny().eval(), old_text(2)
    found = fisher(model, list(single_rows(texts, model.device)), Precision("fp32"))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    tokens = 0
    for batch in texts:
        for i in range(len(batch["labels"])):
            model.zero_grad()
            row = {k: v[i : i + 1] for k, v in batch.items()}
            count = int((row["labels"][:, 1:] != -100).sum())
            (model(**row).loss * count).backward()  # the model's own loss is the mean over labelled tokens
            tokens += count
            for name, p in model.named_parameters():
                assert p.grad is not None
                expected[name] += p.grad**2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / tokens, rtol=1e-3, atol=1e-9)


def test_ewc_weighs_each_parameter_by_its_fisher_information() -> None:
    term, model, start = begun(read("ewc", weight=3.0, batches=1))
    base = tiny()
    weights = fisher(base, list(single_rows(old_text(1), base.device)), Precision("fp32"))
    terms = [float((weights[n] * (p.detach() - start[n]) ** 2).sum()) for n, p in model.named_parameters()]
    value = penalty(term, model, short()).item()
    assert value == pytest.approx(1.5 * sum(terms), rel=1e-5)
    assert value > 0


@pytest.mark.parametrize("train", TRAIN)
def test_kl_is_that_of_the_base_at_labelled_tokens(train: str) -> None:
    batch = collate(rows(8, replayed=True))
    replayed = batch.pop("replayed")
    marked = short(replayed=True)
    term, model, _ = begun(Kl(weight=0.5), TRAIN[train])
    model.eval()
    value = penalty(term, model, marked)
    with torch.no_grad():
        p, q = (m(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits for m in (tiny(), model))
    each = torch.zeros(batch["labels"].shape)
    for i in range(each.shape[0]):
        for t in range(each.shape[1] - 1):
            if batch["labels"][i, t + 1] != -100:
                a, b = p[i, t].double().softmax(-1), q[i, t].double().softmax(-1)
                each[i, t] = float((a * (a / b).log()).sum())
    count = int((batch["labels"][:, 1:] != -100).sum())
    assert value.item() == pytest.approx(0.5 * each.sum().item() / count, rel=1e-3)
    only, model, _ = begun(Kl(weight=0.5, tokens="replayed"), TRAIN[train])
    model.eval()
    for marks in (replayed, replayed[:, None].expand_as(batch["labels"])):  # per row, per token
        found = penalty(only, model, {**marked, "replayed": marks})
        assert found.item() == pytest.approx(0.5 * each[replayed].sum().item() / count, rel=1e-3)
        assert 0 < found < value


@pytest.mark.parametrize("top", [None, 1, 3, 6, 7, 9])
def test_kl_has_the_value_and_the_gradient_of_its_formula(top: int | None) -> None:
    """Restated with autograd: the likeliest tokens of the base one by one, the others as one outcome."""
    torch.manual_seed(0)
    q = torch.randn(50, 7, dtype=torch.float64).softmax(-1)
    logits = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(-1)
    whole = (q * (q / p).log()).sum()
    expected = whole.new_zeros(())
    for one, other in zip(q, p, strict=True):
        alone = one.argsort(descending=True)[:top]
        rest = [i for i in range(7) if i not in alone]
        expected = expected + (one[alone] * (one[alone] / other[alone]).log()).sum()
        if rest:
            expected = expected + one[rest].sum() * (one[rest].sum() / other[rest].sum()).log()
    (slope,) = torch.autograd.grad(expected, logits)
    log_p = p.detach().log()
    found = kl(q.log(), log_p) if top is None else top_kl(q.log(), log_p, top)
    torch.testing.assert_close(found, (expected.detach(), slope), rtol=1e-8, atol=1e-9)
    assert found[0] <= whole + 1e-9
    if top is None or top >= 6:  # a rest of one token counts by itself
        torch.testing.assert_close(expected, whole, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("term", [Kl(weight=0.5), Kl(weight=0.5, tokens="replayed"), Kl(top=5)])
@pytest.mark.parametrize("train", ["full", "control", "lora"])
def test_chunks_and_whole_logits_give_one_kl(train: str, term: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, next to a cross-entropy with weights; also with a base whose logits are kept whole."""
    method, model, _ = begun(term, TRAIN[train])
    model.eval()
    batch = short(replayed=True)
    inputs = {**{k: v for k, v in batch.items() if k != "replayed"}, "num_items_in_batch": torch.tensor(50)}
    penalties, found = method.token_penalties, []
    for loss, by_states, chunk in ((WholeLoss, True, 2**24), (ChunkedLoss, True, 7 * 96), (ChunkedLoss, False, 96)):
        monkeypatch.setattr("experiments.training.chunked_nll.LOGITS", chunk)
        method.terms[0].base.by_states = by_states  # type: ignore[attr-defined]
        noted = method.begin_pass(model, batch)
        with loss(model, Dft().weights_of, token_penalties=penalties).computed(noted) as done:
            value = model(**inputs).loss
        found.append((value, done.penalty, *torch.autograd.grad(value, list(trainable(model).values()))))
    assert found[0][1] > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-6)


def test_the_factor_of_a_budget_follows_the_mean_kl_by_its_rule() -> None:
    """Restated step by step; two micro-batches count as one step, and a step without counted tokens changes nothing."""
    dual, mean, factor = Dual(0.05), 0.05, 1.0
    for kl_sum, tokens in ((4.0, 10), (0.0, 0), (0.001, 4), *[(0.0, 5)] * 70, *[(50.0, 5)] * 200):
        dual.note(torch.tensor(kl_sum / 2), tokens // 2)
        dual.note(torch.tensor(kl_sum / 2), tokens - tokens // 2)
        dual.step(torch.device("cpu"))
        if tokens:
            mean = 0.8 * mean + 0.2 * kl_sum / tokens
            factor = float(np.clip(factor * np.exp(0.05 * np.clip(mean / 0.05 - 1, -1, 1)), 0.1, 10))
        assert (dual.mean, dual.factor) == pytest.approx((mean, factor))
    assert dual.factor == 10


def test_a_budget_multiplies_the_weight_and_is_kept_in_the_checkpoint() -> None:
    method, model, _ = begun(read("kl", budget=0.01))
    dual: Dual = method.terms[0].dual  # type: ignore[attr-defined]
    first = penalty(method, model, short())
    for _ in range(4):
        penalty(method, model, short())
        method.after_step(model, 1)
    torch.testing.assert_close(first * dual.factor, penalty(method, model, short()))
    assert dual.factor > 1
    two = Method(Full(), (read("kl"), read("kl", budget=0.01)))
    one, again = (two.begin(tiny(), context()) for _ in range(2))
    one.terms[1].load_state({"dual": method.state()["loss 0 dual"]})
    assert list(one.state()) == ["loss 1 dual"]
    again.load_state(one.state())
    found: Dual = again.terms[1].dual  # type: ignore[attr-defined]
    assert (found.mean, found.factor) == (dual.mean, dual.factor)
    assert again.terms[0].state() == {}


def test_rows_without_replayed_tokens_are_not_shown_to_the_base() -> None:
    term, model, _ = begun(Kl(tokens="replayed"))
    seen: list[int] = []
    term.terms[0].base.copy.model.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    batch = short(replayed=True)
    assert penalty(term, model, batch) > 0
    assert penalty(term, model, {**batch, "replayed": torch.zeros(8, dtype=torch.bool)}) == 0
    assert seen == [3]  # of 8, and no second pass


@pytest.mark.parametrize("train", ["full", "control"])
def test_kl_on_replayed_rows_runs_in_the_engine(train: str, tmp_path: Path) -> None:
    arm = arm_config("kl", {"weight": 2.0, "tokens": "replayed", "trains": train})
    out = train_three(arm, tmp_path, data=rows(64, replayed=True))
    assert out.logs[1]["penalty"] == pytest.approx(0.0, abs=1e-6)
    assert out.logs[3]["penalty"] > 1e-5


@pytest.mark.parametrize("train", ["full", "control", "lora"])
def test_in_bf16_the_base_is_still_the_base(train: str, tmp_path: Path) -> None:
    """The frozen copy holds its linear layers in bf16, as autocast would read them; the others need no copy."""
    out = train_three(arm_config("kl", {"weight": 1.0, "trains": train}), tmp_path, precision="bf16")
    assert out.logs[1]["penalty"] == 0.0
    assert out.logs[3]["penalty"] > 1e-4
    copied: Any = out.method.terms[0].base.copy  # type: ignore[attr-defined]
    assert (copied is not None) == (train == "full")
    if copied is not None:
        assert copied.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert copied.model.norm.weight.dtype == torch.float32


def train_three(*args: Any, **kwargs: Any) -> Any:
    return train(*args, steps=3, **kwargs)
