"""A model whose weights accelerate keeps in host memory or on disk: it saves, merges and reads as it did before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import LlamaForSequenceClassification

import ctrl
from ctrl.checkpoint import read_tensors
from ctrl.offloaded import in_memory, is_offloaded
from tests.helpers.families import build
from tests.helpers.tiny_llama import BATCHES, IDS, expanded, tiny

Offload = Callable[[Any, Path], Any]


def to_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, folder / "offloaded", offload_buffers=True)


def to_memory(model: Any, folder: Path) -> None:
    accelerate.cpu_offload(model)


def in_blocks(model: Any, folder: Path) -> None:
    """The hook of a block loads all of its children."""
    accelerate.cpu_offload(model, preload_module_classes=["LlamaMLP", "Lerp", "DLerp"])


@pytest.mark.slow
@pytest.mark.parametrize("offload", [to_disk, to_memory, in_blocks])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": torch.bfloat16, "interpolation": "dlerp", "alpha": "learned"},
        {"structure": "hybrid"},
        {"expanded": "lora"},
    ],
    ids=str,
)
def test_what_is_offloaded_is_what_it_was(tmp_path: Path, offload: Offload, settings: dict[str, Any]) -> None:
    model = expanded(**settings).eval()
    ctrl.save(model, tmp_path / "before")
    expected, table = model(IDS).logits, list(ctrl.describe(model))
    merged, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    offload(model, tmp_path)
    assert is_offloaded(model)
    with ctrl.diagnostics(model) as log:
        assert torch.equal(model(IDS).logits, expected)  # which leaves the empty tensors in the dtype of the pass
    assert log.rows[0].update != log.rows[0].update  # NaN
    ctrl.save(model, tmp_path / "after")
    before, after = (read_tensors(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    assert list(ctrl.describe(model)) == table
    again, gap_again = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    assert torch.equal(again(IDS).logits, merged(IDS).logits)
    assert gap_again == gap
    assert not is_offloaded(again)
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("offload", [to_disk, to_memory])
def test_an_offloaded_base_is_refused_with_what_to_do(offload: Offload, tmp_path: Path) -> None:
    """Without its hooks it would have no weights."""
    model = tiny()
    offload(model, tmp_path)
    with pytest.raises(ctrl.ConfigError, match=r"are offloaded.* load it without device_map, expand it"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2))


def test_tied_weights_are_exported_once(tmp_path: Path) -> None:
    model = ctrl.expand(build("gemma3_text").eval(), ctrl.ControlConfig(layers=2))
    expected = model(IDS).logits
    accelerate.cpu_offload(model)
    ctrl.export_published(model, tmp_path)
    assert "lm_head.weight" not in read_tensors(tmp_path / "model.safetensors")
    assert torch.equal(ctrl.load_published(tmp_path, base=build("gemma3_text")).eval()(IDS).logits, expected)


def test_an_empty_tensor_that_no_hook_keeps_stays_empty() -> None:
    linear = torch.nn.Linear(2, 2, device="meta")
    assert not is_offloaded(linear)
    assert in_memory(linear, linear.state_dict())["weight"].is_meta


def test_the_merged_model_ends_its_replies_as_before() -> None:
    model = expanded().eval()
    model.generation_config.eos_token_id = [5, 7]
    accelerate.cpu_offload(model)
    assert ctrl.merge_back(model).generation_config.eos_token_id == [5, 7]


def test_a_classifier_has_no_settings_of_generation() -> None:
    model = ctrl.expand(LlamaForSequenceClassification(tiny().config).eval(), ctrl.ControlConfig(layers=2))
    accelerate.cpu_offload(model)
    with torch.no_grad():
        assert torch.equal(ctrl.merge_back(model)(IDS).logits, model(IDS).logits)
