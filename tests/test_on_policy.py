"""The example that trains with TRL on a model's own replies: one step of each method on a tiny model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ctrl.checkpoint import CONFIG_FILE
from experiments.common.files import json_lines
from experiments.data.items import Item
from experiments.methods.saving import load_onto
from tests.helpers.small_run import tiny_base

pytestmark = pytest.mark.slow  # importing TRL's trainers takes seconds


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("trl", reason="trl is not installed: pip install '.[trl]'")
    pytest.importorskip("trl.experimental.sdft", reason="this trl has no SDFT: pip install 'trl>=1.16'")
    from docs.examples import train_on_policy

    return train_on_policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize(("kind", "copies"), [("grpo", 0), ("grpo", 1), ("sdft", 0), ("sdft", 1)])
def test_a_step_changes_what_trains_and_leaves_a_model_to_measure(
    script: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, copies: int
) -> None:
    given = itertools.cycle([0.0, 1.0, 0.25, 0.75])  # a tiny model has no right reply, and equal rewards teach nothing
    monkeypatch.setattr(script, "rewards", lambda *_: lambda completions, **__: [next(given) for _ in completions])
    script.main(kind, tmp_path, 1, copies, base, True)
    assert (tmp_path / "model" / CONFIG_FILE).is_file() == bool(copies)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    start = {name: p.clone() for name, p in before.named_parameters()}
    after = (
        load_onto(before, tmp_path / "model") if copies else AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    )
    found = dict(after.named_parameters())
    changed = [name for name, p in start.items() if not torch.equal(found[name], p)]
    assert bool(changed) == (copies == 0)  # with copies the base is frozen
    if copies:
        ids = torch.arange(20)[None]
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with torch.no_grad():
            assert not torch.equal(after.eval()(ids).logits, plain.eval()(ids).logits)
    (first, *rest) = json_lines((tmp_path / "test.jsonl").read_text())
    assert len(rest) == script.TESTED - 1
    assert "question" in first[1]


def test_a_reply_gets_what_the_verifier_says_of_it(script: Any) -> None:
    task = script.SUMS.held_out(2, 0)
    items: list[Item] = list(task.test)
    replies = [[{"role": "assistant", "content": text}] for text in (f" {items[1].answer}\n", "no idea")]
    found = script.rewards(items, task.scorer)(replies, number=[1, 0], prompts=[])
    assert found[0] == 1
    assert found[1] < 0.5
    dataset = script.rows(items)
    assert dataset[1]["prompt"] == [{"role": "user", "content": items[1].question}]
    assert items[1].answer in dataset[1]["privileged_context"]
