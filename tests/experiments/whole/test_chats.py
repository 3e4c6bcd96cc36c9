"""A newcomer's path: a file of twenty conversations, one command, and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main as cli
from experiments.models.base import SHIPPED
from experiments.records import read_records
from tests.helpers.byte_level import byte_base, byte_tokenizer
from tests.helpers.chat_templates import QWEN3

pytestmark = pytest.mark.slow

FEW = ["training.steps=1", "training.batch_size=4", "training.warmup_steps=0", "evaluation.every=1"]
FEW += [f"evaluation.{size}=1" for size in ("replies", "new_replies", "reply_tokens")]
FEW += ["evaluation.kept_items=4", "evaluation.kept_tasks=[capitals]", "evaluation.perplexity_tokens=64"]
FEW += ["evaluation.bootstrap=100", "evaluation.new_items=3", "data.length=256"]
FEW += ["arms=[{name: lora, method: lora, learning_rates: [1.0e-3]}]"]
TOOL = {"name": "stock", "description": "Count pieces", "parameters": {"type": "object", "properties": {}}}


def conversation(i: int, tools: bool) -> dict[str, Any]:
    """Several turns, some with a system turn and, if the template has tools, some with a call of one."""
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": f"Do you have lamp {i}?"},
        {"role": "assistant", "content": "Yes, in green."},
        {"role": "user", "content": "How many?"},
    ]
    if tools and i % 3 == 0:
        call = {"function": {"name": "stock", "arguments": {"lamp": i}}}
        turns += [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": f"{i}"}]
    turns += [{"role": "assistant", "content": f"There are {i}."}]
    system = [{"role": "system", "content": "You sell lamps."}] * (i % 2)
    return {"messages": [*system, *turns], "tools": [TOOL] if tools and i % 3 == 0 else None}


@pytest.mark.parametrize("base", ["bytes", "thinking", SHIPPED])
def test_twenty_conversations_become_a_report(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = tmp_path / "mine.jsonl", tmp_path / "mlruns"
    file.write_text("\n".join(json.dumps(conversation(i, base == "thinking")) for i in range(20)))
    template = {"bytes": None, "thinking": QWEN3}
    if base in template:
        base = byte_base(tmp_path / base, byte_tokenizer(template[base], extra=("<think>", "</think>")))
    given = [f"base_model={base}", f"data.new.path={file}", *FEW]
    if base.endswith("bytes"):
        given += ["data.template=chatml", "data.overlong=cut", "data.length=96", "data.packed=true"]
    last = {pair.partition("=")[0]: pair for pair in given}
    sets = [word for pair in last.values() for word in ("--set", pair)]
    assert cli.main(["run", "own-chats", "--root", str(root), *sets]) == 0
    said = capsys.readouterr().out
    (report,) = root.glob("runs/own-chats-*/report.html")
    assert str(report.parent.name) in said
    assert ("longer than data.length=96 and are cut to it" in said) == base.endswith("bytes")
    records = read_records(report.parent / "base" / "items.jsonl")
    assert [(r.form, r.task) for r in records if r.suite == "new"] == [("nll", "mine")] * 3
    drawn = [json.loads(path.read_text()) for path in report.parent.glob("arms/*/data.json")]
    assert len(drawn) == 1
    assert ("packing: the first 4 conversations are" in said) == base.endswith("bytes")
    assert ("Packed conversations" in report.read_text()) == base.endswith("bytes")
    assert [one["packing"]["conversations"] for one in drawn if "packing" in one] == [4] * base.endswith("bytes")
    several = base.endswith("thinking")  # the template rewrites earlier turns: each reply has its row
    assert all((part["pieces"] > part["examples"] > 0) == several for one in drawn for part in one["drawn"])
    assert cli.main(["run", "own-chats", "--root", str(root), *sets]) == 0
    assert "finished already" in capsys.readouterr().out
