"""A model whose tensors are sharded is saved whole."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def test_a_sharded_model_is_saved_whole(tmp_path: Path) -> None:
    model, single = disturbed(), disturbed()
    expected = model(IDS).logits
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sharded = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        ctrl.save(sharded, tmp_path / "gathered")
        whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        ctrl.save(sharded, tmp_path / "given", state_dict=whole)
        merged = ctrl.merge_back(sharded)
    finally:
        dist.destroy_process_group()
    for folder in ("gathered", "given"):
        assert torch.equal(ctrl.load(tiny().eval(), tmp_path / folder)(IDS).logits, expected)
    assert torch.equal(merged(IDS).logits, ctrl.merge_back(single)(IDS).logits)
