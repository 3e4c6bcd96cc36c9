"""Expanded models under the machinery people use: caches, packing, PEFT, DDP and FSDP, mixed precision, diagnostics."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, StaticCache

import ctrl
from tests.ctrl.families import FAMILIES, build, perturb
from tests.ctrl.test_merge import IDS, MASK, disturbed
from tests.ctrl.test_trainer import sequences, tiny


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "beams", "config-less"])
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


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(family: str, structure: str) -> None:
    model = ctrl.expand(build(family), ctrl.ControlConfig(structure=structure, layers=2))
    perturb(model, seed=3)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 16, "do_sample": False}
    static = StaticCache(config=model.config, max_cache_len=40)
    assert torch.equal(model.generate(IDS, **kwargs, past_key_values=static), model.generate(IDS, **kwargs))


def test_a_cache_filled_without_the_copies_is_refused() -> None:
    model = disturbed()
    with ctrl.pretrained(model):
        cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values was filled while the expanded layers did not run"):
        model(IDS[:, :1], past_key_values=cache)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = disturbed()
    packed = torch.cat([IDS[0], IDS[1]])[None]
    positions = torch.cat([torch.arange(12), torch.arange(12)])[None]
    together = model(packed, position_ids=positions, use_cache=False).logits
    alone = [model(IDS[i : i + 1], use_cache=False).logits for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-6)


def test_attention_divergence_is_the_kl_of_the_rows() -> None:
    base = tiny()
    with pytest.raises(ctrl.ConfigError, match="attn_implementation='eager'"):
        ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, divergence="attention"))
    base.set_attn_implementation("eager")
    model = ctrl.expand(base, ctrl.ControlConfig(layers=[0], divergence="attention"))
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    assert model(**batch).divergence.item() == 0.0
    with torch.no_grad():
        model.model.layers[0].expanded.self_attn.q_proj.weight.mul_(3.0)
    out = model(**batch)
    out.loss.backward()
    assert out.divergence > 0
    assert model.model.layers[0].expanded.self_attn.q_proj.weight.grad is not None
    assert not any("attention_rows" in vars(m) for m in model.modules())
    copy.deepcopy(model)


def test_alpha_scaling_and_detaching() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}

    def alpha_gradient(**kwargs: object) -> torch.Tensor:
        model = disturbed(interpolation="dlerpin", alpha="learned", divergence_weight=100.0, **kwargs)
        model(**batch).divergence.backward()
        gradient = ctrl.model.expanded_layers(model)[-1].interpolation.weight.grad
        return torch.zeros(1) if gradient is None else gradient

    assert alpha_gradient(scale_by_alpha=True).abs().max() > 0  # the gate can shrink its own penalty
    assert alpha_gradient(scale_by_alpha=True, detach_alpha=True).abs().max() == 0
    plain, scaled = disturbed(alpha_start=0.25), disturbed(alpha_start=0.25, scale_by_alpha=True)
    torch.testing.assert_close(scaled(**batch).divergence, 0.25 * plain(**batch).divergence)


def test_detached_pretrained_side_changes_lower_gradients_only() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    gradients = []
    for detach in (False, True):
        model = disturbed(detach_pretrained=detach)
        model(**batch).divergence.backward()
        low, high = ctrl.model.expanded_layers(model)
        gradients.append([layer.expanded.mlp.up_proj.weight.grad for layer in (low, high)])
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_relaxed_norm_is_the_formula() -> None:
    model = disturbed(norm_mix=0.25)
    norm = ctrl.model.expanded_layers(model)[0].expanded.input_layernorm
    x = torch.randn(2, 3, 32)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    torch.testing.assert_close(norm(x), 0.25 * x + 0.75 * plain)


def test_lora_on_top_of_an_expanded_model() -> None:
    model = disturbed()
    before = model(IDS).logits
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert torch.equal(peft(input_ids=IDS).logits, before)
    out = peft(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.divergence > 0
    trained = [n for n, p in peft.named_parameters() if p.grad is not None]
    assert any(".expanded." in n and "lora_" in n for n in trained)
    assert all("lora_" in n for n in trained)


def test_low_rank_copies_start_as_the_base_and_train_alone() -> None:
    base = tiny().eval()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", lora_rank=2))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    full = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    sizes = [sum(row.trainable for row in ctrl.describe(m)) for m in (model, full)]
    assert sizes[0] < sizes[1] / 4
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    assert not torch.allclose(model(IDS).logits, base(IDS).logits)
    with ctrl.pretrained(model):
        assert torch.equal(model(IDS).logits, base(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    base = tiny().eval().to(dtype)  # type: ignore[arg-type]
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, interpolation="slerp"))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.logits.dtype == dtype
    disturbed().to(dtype)(IDS)


def test_diagnostics_give_the_figures_and_cost_no_gradient() -> None:
    model = disturbed(interpolation="dlerpin")
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    plain = model(**batch).loss
    with ctrl.diagnostics(model, tokens=10_000, update_every=2) as log:
        assert torch.equal(model(**batch).loss, plain)
        model(**batch)
    assert model.control.log is None
    rows = log.rows
    assert [(row.step, row.layer) for row in rows] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    layer = ctrl.model.expanded_layers(model)[0]
    change = sum((e - dict(layer.named_parameters())[n]).square().sum() for n, e in layer.expanded.named_parameters())
    size = sum(dict(layer.named_parameters())[n].square().sum() for n, _ in layer.expanded.named_parameters())
    assert rows[0].update == pytest.approx((change / size).sqrt().item(), rel=1e-5)
    assert rows[2].update != rows[2].update  # nan: measured every second pass
    assert 0 < rows[0].alpha < 1
    assert rows[0].alpha_spread > 0
    assert log.latest()["relative_l2/layer_3"] == rows[3].relative_l2
    mean = sum(row.divergence for row in rows[:2]) / 2
    assert model(**batch).divergence.item() == pytest.approx(mean, rel=1e-5)


DISTRIBUTED = """
import copy, os, sys, torch
import torch.distributed as dist
import ctrl
from tests.ctrl.test_trainer import expanded, sequences

dist.init_process_group("gloo")
rank = dist.get_rank()
batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
total = (batch["labels"][:, 1:] != -100).sum()
reference = expanded()
reference(**batch, num_items_in_batch=total).loss.backward()
expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
mine = {k: v[rank::2] for k, v in batch.items()}
model = expanded()
if sys.argv[1] == "ddp":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
elif sys.argv[1] == "accelerate":
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained))
    assert accelerator.num_processes == 2 and wrapped is not model
else:
    from torch.distributed.fsdp import fully_shard
    for layer in model.model.layers:
        fully_shard(layer)
    wrapped = fully_shard(model)
out = wrapped(**mine, num_items_in_batch=total)
(out.loss * 2).backward()  # both wrappers average over the two processes
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        gradient = parameter.grad
        gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
assert len(expected) > 10
print("gradients agree", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "accelerate"])
def test_two_processes_give_the_gradients_of_one(wrapper: str, tmp_path: Path) -> None:
    """FSDP is torch's own: accelerate's plugin shards on accelerators alone and falls back to DDP on a CPU."""
    script = tmp_path / "job.py"
    script.write_text(DISTRIBUTED)
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        wrapper,
    ]
    done = subprocess.run(
        command, check=False, cwd=root, env=_environment(root), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("gradients agree") == 2


def _environment(root: Path) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def test_a_dispatched_model_is_refused_rather_than_left_as_it_is() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules

    model = tiny()
    add_hook_to_module(model.model.layers[1], AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ctrl.ConfigError, match="has hooks around its forward"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2))
    remove_hook_from_submodules(model)
    assert len(ctrl.describe(ctrl.expand(model, ctrl.ControlConfig(layers=2)))) == 2


def test_router_logits_are_recorded_as_often_as_in_the_base() -> None:
    base = build("mixtral")
    expected = base(IDS, output_router_logits=True)
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2))
    out = model(IDS, output_router_logits=True)
    assert len(out.router_logits) == len(expected.router_logits)
    assert torch.equal(out.aux_loss, expected.aux_loss)
