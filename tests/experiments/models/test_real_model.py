"""The shipped LLM itself: converted, expanded, generated with, and put through the quickstart with a few steps."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.cli import main as cli
from experiments.cli.run import overrides
from experiments.config import load_config
from experiments.models.base import SHIPPED, load_base
from experiments.records import read_records
from experiments.runs.run import run_folder
from tests.helpers.families import perturb

# two steps, a few items of everything, and one learning rate for each of the three methods
FEW = ["training.steps=2", "training.batch_size=2", "evaluation.every=2", "evaluation.bootstrap=500"]
FEW += ["evaluation.new_items=2", "evaluation.kept_items=4", "evaluation.reply_tokens=4"]
FEW += ["evaluation.kept_tasks=[capitals,plurals]", "evaluation.suites.drift.text_tokens=256"]
FEW += ["evaluation.replies=2", "evaluation.new_replies=1", "evaluation.perplexity_tokens=256"]
FEW += [f"arms.{i}.learning_rates=[1.0e-3]" for i in range(3)]


@pytest.fixture(scope="module", autouse=True)
def _all_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    shared = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // shared))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_base(SHIPPED)


def prompts(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    chats = [[{"role": "user", "content": text}] for text in ("What is 12 + 7?", "Name three European rivers.")]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    return dict(tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False))


@pytest.mark.slow
def test_the_shipped_model_is_the_real_one(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = loaded
    assert model.config.num_hidden_layers == 30
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(134.5e6, rel=0.001)
    assert not hasattr(model.config, "quantization_config")
    inputs = prompts(tokenizer)
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "12 + 7" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
def test_expanded_smollm_starts_as_the_base_and_its_cache_is_right(
    structure: str, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    base, tokenizer = loaded
    model = copy.deepcopy(base)
    inputs = prompts(tokenizer)
    with torch.no_grad():
        before = model(**inputs).logits
        ctrl.expand(model, ctrl.ControlConfig(structure=structure, layers=8))  # type: ignore[arg-type]
        assert torch.equal(model(**inputs).logits, before)
        perturb(model, seed=1, size=0.01)
        assert not torch.allclose(model(**inputs).logits, before)
        greedy = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        cached, uncached = (model.generate(**inputs, **greedy, use_cache=cache) for cache in (True, False))
        assert torch.equal(cached, uncached)
        with ctrl.pretrained(model):
            assert torch.equal(model(**inputs).logits, before)


@pytest.mark.slow
def test_the_quickstart_with_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mlruns"
    sets = [word for pair in FEW for word in ("--set", pair)]
    assert cli.main(["run", "quickstart", "--root", str(root), *sets]) == 0
    printed = capsys.readouterr().out
    config = load_config("quickstart", dict(overrides(FEW)))
    folder = run_folder(config, root)
    for arm in config.arms:
        for rate in arm.learning_rates:
            result = json.loads((folder / "arms" / f"{arm.name}-{rate:g}" / "result.json").read_text())
            assert result["status"] == "finished"
            assert result["scorecard"]["kl"]["value"] > 0
            assert f"{arm.name}" in printed
    base = read_records(folder / "base" / "items.jsonl")
    assert max(r.value for r in base if r.suite == "drift" and r.value is not None) < 1e-6
    assert "report.html" in printed
    assert f"ui --root {root}" in printed.split("MLflow UI: ")[1]
    # the same command again: nothing is trained, the answer comes at once
    assert cli.main(["run", "quickstart", "--root", str(root), *sets]) == 0
    assert "finished already" in capsys.readouterr().out
