"""Methods: one contract for all of them through the real engine, and their formulas against plain restatements."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.common.errors import ConfigError
from experiments.config import ArmConfig, parse_config
from experiments.methods import METHODS
from experiments.methods.base import share, snapshot, trainable
from experiments.methods.penalties import fisher, kl_sum
from experiments.methods.saving import load_onto
from experiments.methods.tuning import single_rows
from experiments.models.precision import Precision
from experiments.training.lm_loss import only_label_logits
from tests.ctrl.test_trainer import sequences, tiny
from tests.helpers.engine import LAYERS, OPTIONS, Killed, Outcome, arm_config, collate, old_text, rows, setting, train

ALL = list(METHODS)
LAYER_PARTS = tuple(f"model.layers.{i}." for i in LAYERS["layers"])
TRAINED = {
    "partial": LAYER_PARTS,
    "control": tuple(part + "expanded." for part in LAYER_PARTS),
    "stack": tuple(part + "expanded." for part in LAYER_PARTS),
    "hybrid": tuple(part + "expanded." for part in LAYER_PARTS),
    "lora": ("base_model.model.model.layers.",),
    "rslora": ("base_model.model.model.layers.",),
    "corda": ("base_model.model.model.layers.",),
}


@functools.cache
def whole(method: str) -> Outcome:
    """The uninterrupted run, made once."""
    with tempfile.TemporaryDirectory() as folder:
        return train(arm_config(method), Path(folder))


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    whole.cache_clear()


def ids() -> Tensor:
    return collate(sequences())["input_ids"]


def one_batch() -> dict[str, Any]:
    return only_label_logits(collate(sequences()))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.slow
def test_only_what_a_method_trains_changes(method: str) -> None:
    arm = arm_config(method)
    start = arm.build().prepare(tiny(), setting(arm))
    before = {name: p.detach().clone() for name, p in start.named_parameters()}
    after = dict(whole(method).model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trainable(start))
    assert all(name.startswith(TRAINED.get(method, "")) for name in changed)
    lora = {name for name in changed if "lora_" in name}
    assert lora == (changed if method in ("lora", "rslora", "corda") else set())
    assert any("self_attn" in name for name in changed) == (method != "rslora")  # which has `targets: mlp` here


@pytest.mark.parametrize("method", ALL)
def test_a_method_starts_as_the_base(method: str) -> None:
    arm = arm_config(method)
    model = arm.build().prepare(tiny(), setting(arm)).eval()
    base = tiny().eval()
    with torch.no_grad():
        if method == "corda":  # moves part of W into the adapter: equal up to rounding
            torch.testing.assert_close(model(ids()).logits, base(ids()).logits, rtol=0, atol=1e-5)
        else:
            assert torch.equal(model(ids()).logits, base(ids()).logits)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(method: str, tmp_path: Path) -> None:
    """Killed after the checkpoint of step 2; the objects of the second run are fresh. Also: the same run twice."""
    with pytest.raises(Killed):
        train(arm_config(method), tmp_path, kill_at=4)
    again, first = train(arm_config(method), tmp_path), whole(method)
    assert list(again.logs) == [3, 4, 5, 6]
    assert all(again.logs[step] == first.logs[step] for step in again.logs)
    assert all(torch.equal(again.measured[step], first.measured[step]) for step in (4, 6))
    assert again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[name], first.weights[name]) for name in first.weights)
    assert again.cost["tokens"] == first.cost["tokens"]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.slow
def test_two_micro_batches_are_one_large_batch(method: str, tmp_path: Path) -> None:
    options = {k: v for k, v in OPTIONS.get(method, {}).items() if k != "dropout"}
    arm = arm_config(method, options)
    large = whole(method) if options == OPTIONS.get(method, {}) else train(arm, tmp_path / "a", steps=3)
    small = train(arm, tmp_path / "b", steps=3, batch_size=2, gradient_accumulation=2)
    for step in (1, 2, 3):
        logs = large.logs[step]
        for part in ("loss", "lm_loss", "divergence", "penalty", "grad_norm"):
            if part in logs:
                assert small.logs[step][part] == pytest.approx(logs[part], rel=1e-3, abs=1e-6), (step, part)
    if method in ("kl", "l2sp", "ewc"):
        assert large.logs[3]["penalty"] > 1e-4


@pytest.mark.parametrize("method", ALL)
@pytest.mark.slow
def test_what_is_saved_loads_as_what_was_measured(method: str, tmp_path: Path) -> None:
    out = whole(method)
    model = out.model.eval()
    with out.method.evaluated(model), torch.no_grad():
        out.method.save(model, tmp_path)
        expected = model(ids()).logits
    with torch.no_grad():
        again = load_onto(tiny(), tmp_path).eval()(ids()).logits
        base = tiny().eval()(ids()).logits
    tolerance = 1e-5 if method == "corda" else 0.0  # saved as an adapter of the unchanged base
    torch.testing.assert_close(again, expected, rtol=0, atol=tolerance)
    assert (expected - base).abs().max() > 1e-3
    names = {p.name for p in tmp_path.iterdir()}
    assert ("adapter_config.json" in names) == (method in ("lora", "rslora", "corda"))


def test_low_rank_scales() -> None:
    scales = {}
    for method in ("lora", "rslora"):
        arm = arm_config(method, {"rank": 4, "alpha": 8})
        model: Any = arm.build().prepare(tiny(), setting(arm))
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        scales[method] = layer.scaling["default"]
    assert scales == {"lora": 2.0, "rslora": 4.0}


def test_corda_keeps_the_directions_that_old_text_uses() -> None:
    """Restated: with W C = U S V^T the adapter holds the `rank` smallest terms, so B A = U_r S_r V_r^T C^-1."""
    arm = arm_config("corda")
    model: Any = arm.build().prepare(tiny(), setting(arm))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    adapter = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    base: Any = tiny().eval()
    inputs: list[Tensor] = []
    base.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
    with torch.no_grad():
        for row in single_rows(old_text(2), base.device):
            base(input_ids=row["input_ids"])
    scaled = [x / x.max().abs() for x in inputs]
    covariance = torch.stack([x.T @ x for x in scaled]).mean(0)
    covariance = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    u, s, vh = torch.linalg.svd(base.model.layers[0].self_attn.q_proj.weight @ covariance)
    expected = u[:, -2:] @ torch.diag(s[-2:]) @ vh[-2:] @ torch.linalg.inv(covariance)
    torch.testing.assert_close(adapter.detach(), expected.detach(), rtol=1e-2, atol=1e-4)


def penalty_of(method: str, options: dict[str, Any], batch: dict[str, Any]) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """The disturbed model, its penalty on a batch, and where it started."""
    arm = arm_config(method, options)
    built = arm.build()
    model = built.prepare(tiny(), setting(arm))
    built.begin(model, setting(arm))
    start = snapshot(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.05 * torch.randn_like(p))
    inputs = {k: v for k, v in batch.items() if k != "replayed"}
    value = built.penalty(model, batch, model(**inputs), None)
    assert value is not None
    return model, value, start


def test_l2sp_is_half_the_weighted_squared_distance() -> None:
    model, value, start = penalty_of("l2sp", {"weight": 0.3}, one_batch())
    expected = 0.0
    for name, p in model.named_parameters():
        expected += float(((p.detach().double() - start[name].double()) ** 2).sum())
    assert value.item() == pytest.approx(0.15 * expected, rel=1e-5)


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
    model, value, start = penalty_of("ewc", {"weight": 3.0, "batches": 1}, one_batch())
    base = tiny()
    weights = fisher(base, list(single_rows(old_text(1), base.device)), Precision("fp32"))
    terms = [float((weights[n] * (p.detach() - start[n]) ** 2).sum()) for n, p in model.named_parameters()]
    assert value.item() == pytest.approx(1.5 * sum(terms), rel=1e-5)
    assert value > 0


@pytest.mark.parametrize("trains", ["full", "partial", "control", "lora"])
def test_kl_is_that_of_the_base_at_labelled_tokens(trains: str) -> None:
    batch = collate(rows(8, replayed=True))
    replayed = batch.pop("replayed")
    short = only_label_logits(batch)
    model, value, _ = penalty_of("kl", {"weight": 0.5, "trains": trains}, short)
    with torch.no_grad():
        p, q = (m(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits for m in (tiny(), model))
    kl = torch.zeros(batch["labels"].shape)
    for i in range(kl.shape[0]):
        for t in range(kl.shape[1] - 1):
            if batch["labels"][i, t + 1] != -100:
                a, b = p[i, t].double().softmax(-1), q[i, t].double().softmax(-1)
                kl[i, t] = float((a * (a / b).log()).sum())
    count = int((batch["labels"][:, 1:] != -100).sum())
    assert value.item() == pytest.approx(0.5 * kl.sum().item() / count, rel=1e-4)
    options = {"weight": 0.5, "trains": trains, "tokens": "replayed"}
    for marks in (replayed, replayed[:, None].expand_as(batch["labels"])):  # per row, per token
        _, only, _ = penalty_of("kl", options, {**short, "replayed": marks})
        assert only.item() == pytest.approx(0.5 * kl[replayed].sum().item() / count, rel=1e-4)
        assert 0 < only < value


@pytest.mark.parametrize("trains", ["full", "control", "lora"])
def test_the_base_of_kl_has_no_dropout_while_the_model_trains_with_it(trains: str) -> None:
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=4, n_head=2, resid_pdrop=0.5, embd_pdrop=0.5)
    arm = arm_config("kl", {"trains": trains})
    built: Any = arm.build()
    model = built.prepare(GPT2LMHeadModel(config), setting(arm)).train()
    built.begin(model, setting(arm))
    batch = {"input_ids": torch.arange(20)[None], "labels": torch.arange(20)[None]}
    torch.testing.assert_close(built._base_logits(model, batch), built._base_logits(model, batch), rtol=0, atol=0)
    assert not torch.equal(model(batch["input_ids"]).logits, model(batch["input_ids"]).logits)  # its mode is back


def test_kl_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    base = torch.randn(3, 7, dtype=torch.float64)
    tuned = torch.randn(150, 7, requires_grad=True)  # three chunks
    kl_sum(base.float()[torch.arange(150) % 3], tuned).backward()
    assert tuned.grad is not None
    expected = tuned.detach().softmax(-1) - base.float().softmax(-1)[torch.arange(150) % 3]
    torch.testing.assert_close(tuned.grad, expected, rtol=1e-4, atol=1e-6)


def test_kl_on_replayed_rows_runs_in_the_engine(tmp_path: Path) -> None:
    arm = arm_config("kl", {"weight": 2.0, "tokens": "replayed"})
    out = train(arm, tmp_path, data=rows(64, replayed=True), steps=3)
    assert out.logs[1]["penalty"] == pytest.approx(0.0, abs=1e-6)
    assert out.logs[3]["penalty"] > 1e-5


@pytest.mark.parametrize("trains", ["full", "control", "lora"])
def test_in_bf16_the_base_is_still_the_base(trains: str, tmp_path: Path) -> None:
    """The frozen copy holds its linear layers in bf16, as autocast would read them; the others need no copy."""
    out = train(arm_config("kl", {"weight": 1.0, "trains": trains}), tmp_path, steps=3, precision="bf16")
    assert out.logs[1]["penalty"] == 0.0
    assert out.logs[3]["penalty"] > 1e-4
    copied: Any = out.method._base  # type: ignore[attr-defined]
    assert (copied is not None) == (trains == "full")
    if copied is not None:
        assert copied.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert copied.model.norm.weight.dtype == torch.float32


def walk(method: str, options: dict[str, Any], steps: int) -> tuple[Any, Any, list[dict[str, Tensor]]]:
    """A method on a model whose weights a fixed sequence of steps moves: the weights before, then after each step."""
    arm = arm_config(method, options)
    built = arm.build()
    model = built.prepare(tiny(), setting(arm))
    built.begin(model, setting(arm))
    seen = [snapshot(model)]
    torch.manual_seed(9)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.1 * torch.randn_like(p))
        seen.append(snapshot(model))
        built.after_step(model, step)
    return built, model, seen


def test_ema_is_the_weighted_sum_of_all_steps() -> None:
    built, model, seen = walk("ema", {"decay": 0.8}, 5)
    fast = snapshot(model)
    with built.evaluated(model):
        average = snapshot(model)
    for name in fast:
        expected = 0.8**5 * seen[0][name] + sum(0.2 * 0.8 ** (5 - t) * seen[t][name] for t in range(1, 6))
        torch.testing.assert_close(average[name], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(fast[name], dict(model.named_parameters())[name])  # training goes on with its own weights


def test_wise_is_measured_between_base_and_tuned() -> None:
    for alpha, expected in ((0.0, "base"), (0.25, "between"), (1.0, "tuned")):
        built, model, seen = walk("wise", {"alpha": alpha}, 2)
        with built.evaluated(model):
            mixed = snapshot(model)
        for name, value in mixed.items():
            start, end = seen[0][name], seen[2][name]
            if expected == "between":
                torch.testing.assert_close(value, 0.75 * start + 0.25 * end)
            else:
                assert torch.equal(value, start if expected == "base" else end)


def test_mer_pulls_weights_to_the_slow_ones_every_k_steps() -> None:
    built, model, seen = walk("mer", {"every": 2, "rate": 0.25}, 5)
    slow = {name: t.double() for name, t in seen[0].items()}
    for step in (2, 4):
        slow = {name: t + 0.25 * (seen[step][name].double() - t) for name, t in slow.items()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(built.state()[name].double(), slow[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(p, seen[5][name])  # step 5 is no multiple of 2: the fast weights


def test_share_of_a_micro_batch_adds_up_to_one() -> None:
    batch = collate(sequences(8))
    total = (batch["labels"][:, 1:] != -100).sum()
    parts = [only_label_logits({k: v[i : i + 2] for k, v in batch.items()}) for i in range(0, 8, 2)]
    shares = [float(share(part, total)) for part in parts]
    assert sum(shares) == pytest.approx(1.0)
    assert len(set(shares)) > 1
    assert share(parts[0], None) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ful"}, "unknown method 'ful': did you mean 'full'"),
        ({"method": "kl", "options": {"wieght": 1}}, "unknown option 'wieght' of method 'kl': did you mean 'weight'"),
        ({"method": "full", "options": {"rank": 1}}, "unknown option 'rank' of method 'full': it has none"),
        ({"method": "lora", "options": {"rank": 0}}, "option rank of method 'lora': Input should be greater"),
        ({"method": "l2sp", "options": {"trains": "lora"}}, "option trains of method 'l2sp': Input should be"),
        ({"method": "stack", "control": {"structure": "hybrid"}}, "method 'stack' has structure 'stack', but"),
    ],
)
def test_wrong_arms_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "arms": [{"name": "x", "learning_rates": [1.0], **changes}]})


def test_structure_methods_set_the_structure_and_survive_a_round_trip() -> None:
    for method in ("stack", "hybrid"):
        arm = ArmConfig.model_validate({"name": "x", "method": method, "learning_rates": [1.0]})
        assert arm.control.structure == method
        config = parse_config({"name": "x", "arms": [arm]})
        assert parse_config(config.to_dict()).digest() == config.digest()
