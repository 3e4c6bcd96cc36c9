"""A base that is loaded as its file has it gives the same arms, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from experiments.methods import MethodContext
from experiments.methods.saving import facts_of
from experiments.models.base import load_base
from experiments.models.narrow import stored_in_bf16, widen_rest
from experiments.models.precision import Precision
from tests.helpers.engine import OPTIONS, arm_config, old_text
from tests.helpers.small_run import tiny_base


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(Path(tiny_base(tmp_path_factory.mktemp("base"))), torch.bfloat16)


def stored(folder: Path, dtype: torch.dtype) -> Path:
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    return folder


def test_weights_in_fp32_stay_so(tmp_path: Path) -> None:
    """Also if config.json says something else, for fp16, and for a model that is not there."""
    folder = Path(tiny_base(tmp_path))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("float32", "bfloat16"))
    assert not stored_in_bf16(str(folder))
    assert not stored_in_bf16(str(folder / "nothing"))
    model = load_base(str(folder), narrow=True)[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not stored_in_bf16(str(stored(folder, torch.float16)))  # rounded to bf16, what trains would not be the same


def test_matrices_are_narrow_and_all_else_is_fp32(half: Path) -> None:
    assert stored_in_bf16(str(half))
    wide, narrow = load_base(str(half))[0], load_base(str(half), narrow=True)[0]
    linear = {f"{name}.weight" for name, m in narrow.named_modules() if isinstance(m, nn.Linear)}
    for (name, p), q in zip(narrow.named_parameters(), wide.parameters(), strict=True):
        assert p.dtype == (torch.bfloat16 if name in linear else torch.float32), name
        assert torch.equal(p, q.to(p.dtype))
    assert {b.dtype for b in narrow.buffers()} == {b.dtype for b in wide.buffers()}
    assert facts_of(narrow) == facts_of(wide)


def test_numbers_that_a_model_computes_are_not_rounded(tmp_path: Path) -> None:
    """Gemma multiplies its embeddings by the root of their size: 4.899 of 24, which in bf16 is 4.906."""
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 97, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Gemma3ForCausalLM(Gemma3TextConfig(**shape, **heads)).to(torch.bfloat16).save_pretrained(tmp_path)
    wide, narrow = (AutoModelForCausalLM.from_pretrained(tmp_path, dtype=d) for d in (torch.float32, torch.bfloat16))
    widen_rest(narrow)
    scale = dict(narrow.named_buffers())["model.embed_tokens.embed_scale"]
    assert float(scale) == pytest.approx(24**0.5, rel=1e-6)
    assert all(torch.equal(b, other) for b, other in zip(narrow.buffers(), wide.buffers(), strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["full", "partial", "half", "control", "stack", "hybrid", "l2sp"])
def test_an_arm_starts_with_the_same_bits(method: str, half: Path) -> None:
    context = MethodContext(0, Precision("bf16"), old_text)
    arm = arm_config(method, OPTIONS.get(method, {}), control={"layers": [0, 2]})
    states: list[dict[str, Any]] = []
    for narrow in (False, True):
        build = arm.build()
        model = build.prepare(load_base(str(half), narrow=narrow)[0], context)
        build.begin(model, context)
        states.append({name: (p.detach(), p.requires_grad) for name, p in model.named_parameters()})
    assert states[0].keys() == states[1].keys()
    for name, (value, trains) in states[0].items():
        other, other_trains = states[1][name]
        assert (value.dtype, trains) == (other.dtype, other_trains), name
        assert torch.equal(value, other), name


def test_what_is_drawn_in_the_dtype_of_the_base_is_not_loaded_so() -> None:
    low_rank = arm_config("control", control={"layers": 2, "expanded": "lora"})
    drawn = [arm.build().tuning.draws for arm in (low_rank, arm_config("lora"), arm_config("control"))]
    assert drawn == [True, True, False]
