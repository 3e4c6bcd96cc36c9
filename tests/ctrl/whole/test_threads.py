"""Several threads run one model, or nn.DataParallel's replicas of it: each pass keeps its own state."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import ctrl
from ctrl.layer import expanded_layers
from tests.helpers.tiny_llama import expanded, sequences
from tests.helpers.trainers import head_loss

SETTINGS: list[dict[str, Any]] = [
    {},
    {"divergence": "cosine", "divergence_tokens": "labels", "interpolation": "dlerp"},
    {"divergence": "attention"},
    {"norm_mix": "learned", "dtype": torch.bfloat16},
    {"expanded": "lora", "structure": "concat"},
    {"structure": "hybrid"},
]
REPLICATION: Any = importlib.import_module("torch.nn.parallel.replicate")
Pass = Callable[[Any, dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]


def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches of one sequence, of unlike length and mask."""
    return [{name: value[None] for name, value in row.items()} for row in sequences(2)]


def at_once(models: list[Any], run: Pass) -> list[tuple[torch.Tensor, ...]]:
    """Run one batch per model, each in a thread. The threads wait for each other at each expanded layer."""
    results: dict[int, tuple[torch.Tensor, ...]] = {}
    together = threading.Barrier(len(models), timeout=20)

    def wait(*_: Any) -> None:
        together.wait()

    for layer in {layer for model in models for layer in expanded_layers(model)}:
        for module in (layer.mlp, layer.expanded.mlp):
            module.register_forward_hook(wait)

    def work(index: int) -> None:
        results[index] = run(models[index], batches()[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(models))]


def own_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    out = model(**batch)
    return out.loss, out.divergence


def collected_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    with ctrl.collect_divergence(model) as collected:
        loss = head_loss(model, batch)
    return loss, collected.divergence(batch["labels"])


@pytest.fixture
def copied_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `replicate`, the first half of nn.DataParallel, copy tensors without GPUs."""

    def copies(tensors: Any, devices: Any, detach: bool = False) -> list[list[torch.Tensor]]:
        return [[tensor * 1 for tensor in tensors] for _ in devices]

    monkeypatch.setattr(REPLICATION, "_broadcast_coalesced_reshape", copies)
    monkeypatch.setattr(REPLICATION, "_get_device_index", lambda device, _: device)


def gradients(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, p.grad) for name, p in model.named_parameters() if p.requires_grad and p.grad is not None)


def check(model: Any, found: list[tuple[torch.Tensor, ...]], run: Pass, **settings: Any) -> None:
    """The results and gradients are those of one batch after the other."""
    reference = expanded(**settings)
    expected = [run(reference, batch) for batch in batches()]
    for (loss, divergence), (loss_alone, divergence_alone) in zip(found, expected, strict=True):
        assert divergence_alone > 0
        assert torch.equal(divergence, divergence_alone)
        assert torch.equal(loss, loss_alone)
        (loss + divergence).backward()
        (loss_alone + divergence_alone).backward()
    assert expected[0][1] != expected[1][1]
    want = dict(gradients(reference))
    got = dict(gradients(model))
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name])


@pytest.mark.parametrize("run", [own_loss, collected_loss])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_threads_keep_their_passes_apart(settings: dict[str, Any], run: Pass) -> None:
    model = expanded(**settings)
    check(model, at_once([model, model], run), run, **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.usefixtures("copied_on_the_cpu")
def test_replicas_of_data_parallel_keep_their_passes_apart(settings: dict[str, Any]) -> None:
    model = expanded(**settings)
    replicas = REPLICATION.replicate(model, [0, 1])
    check(model, at_once(replicas, own_loss), own_loss, **settings)
