"""A whole run over a base in few bits: stopped, resumed, merged afterwards, exported and loaded as a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from experiments.config import ExperimentConfig
from experiments.models.quantised import PACKAGES
from experiments.posthoc.export import export
from experiments.posthoc.run import posthoc
from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config, wide_base

pytestmark = pytest.mark.slow
ARM = {"name": "control", "method": "control", "learning_rates": [1e-2], "control": {"layers": 2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return wide_base(tmp_path_factory.mktemp("base"))


def stop_at(step: int) -> Any:
    def observe(label: str, at: int, figures: Any) -> None:
        if at == step:
            raise KeyboardInterrupt

    return observe


def run_stopped(config: ExperimentConfig, root: Path, step: int) -> Path:
    """Stop a run after an evaluation, and go on."""
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, root, observe=stop_at(step))
    said: list[str] = []
    outcome = run_experiment(config, root, say=said.append)
    assert any("continues from checkpoint-" in line for line in said)
    assert [result.status for result in outcome.results] == ["finished"]
    return outcome.folder


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_run_over_a_quantised_base_from_start_to_export(base: str, bits: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[bits])
    training = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "checkpointing": "all"}
    config = small_config(base, arms=[ARM], quantised=bits, training=training)
    whole = run_experiment(config, tmp_path / "whole").folder
    stopped = run_stopped(config, tmp_path / "stopped", 4)
    first, second = (folder / "arms" / "control-0.01" for folder in (whole, stopped))
    for name in ("items-2.jsonl", "items-4.jsonl", "items-6.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    weights = [load_file(next((folder / "trained").glob("*.safetensors"))) for folder in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (merged,) = posthoc(stopped, "control", 1e-2, "merge")
    assert (merged.status, merged.operation) == ("finished", "merge")
    export(stopped, "control", 1e-2, tmp_path / "out", say=lambda text: None)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(plain.config, "quantization_config")
    assert plain(torch.arange(5, 17)[None]).logits.isfinite().all()
