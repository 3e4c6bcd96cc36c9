"""The benchmark for a GPU runs to its table on a CPU, at a toy size; its figures are of no use there."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("toy")
    sizes = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 8}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_the_table_of_a_gpu_is_written(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    values: dict[str, Any] = module["main"].__globals__
    arms = {name: module["ARMS"][name] for name in ("control, 8 layers",)}
    monkeypatch.setitem(values, "ARMS", arms)
    monkeypatch.setitem(values, "INTERPOLATIONS", ("dlerp",))
    given = ["--anywhere", "--model", toy, "--small", toy, "--length", "16"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
    module["main"]()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [c[:3] for c in cells if c[0] in arms] == [
        [name, how, "padded" if padded else "packed"] for name in arms for how, padded in module["WAYS"]
    ]
    assert all(float(c[3]) > 0 for c in cells if c[0] in arms)
    assert [c[0] for c in cells if c[0] == "dlerp"] == ["dlerp"]
    assert all("(0.0)" in c[-1] for c in cells if c[0] in ("dlerp", *arms))  # planned gigabytes


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    module["main"]()
    assert capsys.readouterr().out.startswith("skipped: no CUDA GPU here")
