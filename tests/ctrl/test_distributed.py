"""Two processes under DDP, FSDP and accelerate give the gradients of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from ctrl.model import expanded_layers
from tests.ctrl.test_trainer import expanded, sequences

dist.init_process_group("gloo")
rank = dist.get_rank()
half = sys.argv[1] == "fsdp-bf16"
batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
total = (batch["labels"][:, 1:] != -100).sum()
mine = {k: v[rank::2] for k, v in batch.items()}

def build(interpolation):
    if not half:
        return expanded()
    # what `from_pretrained(dtype=bfloat16)` and `expand` give: half-precision layers, fp32 interpolations
    model = expanded(interpolation=interpolation, alpha="learned").bfloat16()
    for layer in expanded_layers(model):
        layer.interpolation.float()
    return model

def wrap(model):
    if sys.argv[1] == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if sys.argv[1] == "accelerate":
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained))
        assert accelerator.num_processes == 2 and wrapped is not model
        return wrapped
    from torch.distributed.fsdp import fully_shard
    if half:
        for layer in expanded_layers(model):
            fully_shard(layer.interpolation, reshard_after_forward=False)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)

for interpolation in ("lerp", "dlerp", "plerp", "proj") if half else ("lerp",):
    reference, model = build(interpolation), build(interpolation)
    reference(**batch, num_items_in_batch=total).loss.backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    wrapped = wrap(model)  # kept: without DDP's reducer the backward pass would not average
    out = wrapped(**mine, num_items_in_batch=total)
    (out.loss * 2).backward()  # both wrappers average over the two processes
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            if half:
                assert expected[name].any(), name
                apart = (gradient.float() - expected[name].float()).norm() / expected[name].float().norm()
                assert apart < 5e-2, (interpolation, name, apart)
            else:
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert len(expected) > 10
print("gradients agree", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp-bf16", "accelerate"])
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
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
