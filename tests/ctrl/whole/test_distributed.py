"""Two processes under DDP, FSDP and accelerate: the gradients of one, and whole models out of their shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launch import two_processes

DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
import ctrl
from ctrl.layer import expanded_layers
from tests.helpers.tiny_llama import expanded, sequences

dist.init_process_group("gloo")
rank = dist.get_rank()
batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
total = (batch["labels"][:, 1:] != -100).sum()
mine = {k: v[rank::2] for k, v in batch.items()}

def learned_norms(model):
    for name, parameter in model.named_parameters():
        if name.endswith("norm.interpolation_factor"):
            parameter.data.fill_(0.5)  # below 0 it has no gradient
    return model

def build(wrapper, interpolation):
    if wrapper == "fsdp-policy":
        return learned_norms(expanded(interpolation=interpolation, alpha="learned", norm_mix="learned"))
    if wrapper != "fsdp-bf16":  # fp32-copies: one shard for fp32 copies, fp32 interpolations and bf16 originals
        dtype = torch.bfloat16 if wrapper == "fsdp-fp32-copies" else torch.float32
        settings = {"interpolation": interpolation, "alpha": "learned", "norm_mix": "learned", "dtype": dtype}
        model = learned_norms(expanded(checkpoint_pretrained=interpolation == "dlerp", **settings))
        model.config.use_cache = False  # which would turn that off
        return model
    # as with copies_dtype="base": half-precision layers, fp32 interpolations
    model = expanded(interpolation=interpolation, alpha="learned").bfloat16()
    for layer in expanded_layers(model):
        layer.interpolation.float()
    return model

def wrap(wrapper, model):
    if wrapper == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if wrapper.startswith("accelerate"):
        from accelerate import Accelerator
        from tests.helpers.launch import shard_on_cpu
        if wrapper == "accelerate-fsdp":
            shard_on_cpu()
        accelerator = Accelerator(cpu=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained))
        shards = [p for p in wrapped.parameters() if hasattr(p, "full_tensor")]
        assert accelerator.num_processes == 2
        assert bool(shards) == (wrapped is model) == (wrapper == "accelerate-fsdp")  # FSDP2 wraps in place
        return wrapped
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    settings = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if wrapper == "fsdp-policy" else {}
    if wrapper == "fsdp-bf16":
        for layer in expanded_layers(model):
            fully_shard(layer.interpolation, reshard_after_forward=False)
    for layer in model.model.layers:
        fully_shard(layer, **settings)
    return fully_shard(model, **settings)

def compare(wrapper, interpolation):
    reference, model = build(wrapper, interpolation), build(wrapper, interpolation)
    if wrapper == "fsdp-policy":
        reference.bfloat16()  # theta's gradient is a sum that cancels: rounding alone changes it by a tenth
    reference(**batch, num_items_in_batch=total).loss.backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    wrapped = wrap(wrapper, model)  # kept: without DDP's reducer the backward pass would not average
    out = wrapped(**mine, num_items_in_batch=total)
    (out.loss * 2).backward()  # both wrappers average over the two processes
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            if wrapper in ("fsdp-bf16", "fsdp-policy", "fsdp-fp32-copies"):
                assert expected[name].any(), name
                apart = (gradient.float() - expected[name].float()).norm() / expected[name].float().norm()
                assert apart < 5e-2, (interpolation, name, apart)  # rounding
            else:
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=f"{wrapper} {name}")
    assert len(expected) > 10

for wrapper in sys.argv[1].split(","):
    for interpolation in ("lerp", "dlerpin") if wrapper == "fsdp-policy" else ("lerp", "dlerp", "plerp", "proj"):
        compare(wrapper, interpolation)
    print(f"{wrapper}: gradients agree", flush=True)
dist.destroy_process_group()
"""


GATHERED = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.distributed.fsdp import fully_shard

import ctrl
from tests.helpers.families import build
from tests.helpers.tiny_llama import BATCHES, IDS, disturbed
from tests.helpers.tiny_llama import tiny

dist.init_process_group("gloo")
first, folder = dist.get_rank() == 0, Path(sys.argv[1])

def sharded(**kwargs):
    model = disturbed(**kwargs)
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=False)
    fully_shard(model)
    with torch.no_grad():
        model(IDS)  # leaves its layers gathered
    return model

def equal(model, other):
    assert torch.equal(model(IDS).logits, other(IDS).logits)

for number, settings in enumerate((
    {"interpolation": "dlerp", "alpha": "learned"},
    {"structure": "hybrid", "alpha_start": 0.25},
    {"expanded": "lora"},
)):
    single, model = disturbed(**settings), sharded(**settings)
    saved = ctrl.save(model, folder / f"save-{number}")
    equal(ctrl.load(tiny().eval(), saved), single)
    model.save_pretrained(folder / f"pretrained-{number}", is_main_process=first)
    equal(ctrl.load(tiny().eval(), folder / f"pretrained-{number}"), single)
    if "expanded" not in settings:
        equal(ctrl.load_published(ctrl.export_published(model, folder / f"export-{number}")).eval(), single)
    merged, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    expected = ctrl.merge_back(single, batches=BATCHES)
    assert type(merged) is type(expected) and not merged.training
    equal(merged, expected)
    torch.testing.assert_close(gap.kl, ctrl.merge_gap(single, expected, BATCHES).kl, rtol=1e-4, atol=0)
    if settings.get("structure") != "hybrid":
        equal(ctrl.merge_back(sharded(**settings), alpha=0.5), ctrl.merge_back(single, alpha=0.5))
        pair = [sharded(**settings), sharded(seed=6, **settings)]
        equal(ctrl.merge_models(pair), ctrl.merge_models([single, disturbed(seed=6, **settings)]))
    equal(ctrl.merge_back(model), ctrl.merge_back(single))
    alphas = [row.alpha for row in ctrl.describe(model) if row.alpha is not None]  # theta's one value is the first's
    assert all((alpha == alpha) == first for alpha in alphas) and len(alphas) in (1, 2)
    assert ("alpha=nan" in repr(model)) != first

tied = ctrl.expand(build("gemma3_text"), ctrl.ControlConfig(layers=2))
fully_shard(tied)
ctrl.export_published(tied, folder / "tied")
assert "lm_head.weight" not in ctrl.checkpoint.read_tensors(folder / "tied" / "model.safetensors")
try:
    ctrl.save(model, folder / "save-0" / "control_config.json" / "below-a-file")
except ctrl.CheckpointError as error:
    assert ("rank 0, which writes" in str(error)) != first, error
else:
    raise AssertionError("a folder that cannot be made was not missed")
print("gathered", flush=True)
dist.destroy_process_group()
"""


WRAPPERS = (  # those of one line share two processes: most of the time is their start
    ("ddp", "fsdp", "fsdp-bf16", "fsdp-policy", "fsdp-fp32-copies", "accelerate"),
    ("accelerate-fsdp",),
)


@pytest.mark.slow
@pytest.mark.parametrize("wrappers", WRAPPERS, ids=lambda wrappers: wrappers[0])
def test_two_processes_give_the_gradients_of_one(wrappers: tuple[str, ...], tmp_path: Path) -> None:
    """ddp and fsdp: torch's own; accelerate: what its `prepare` makes of the model, with and without its FSDP2."""
    said = run_twice(DISTRIBUTED, tmp_path, ",".join(wrappers))
    assert [said.count(f"{wrapper}: gradients agree") for wrapper in wrappers] == [2] * len(wrappers)


@pytest.mark.slow
def test_sharded_models_are_gathered_and_written_once(tmp_path: Path) -> None:
    """save, save_pretrained, export_published, merge_back, merge_models: called by all, they give what one gives."""
    assert run_twice(GATHERED, tmp_path, str(tmp_path)).count("gathered") == 2


def run_twice(job: str, folder: Path, argument: str) -> str:
    """Standard output of two processes that run the job; their errors fail the test."""
    script = folder / "job.py"
    script.write_text(job)
    done = two_processes(script, argument, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
