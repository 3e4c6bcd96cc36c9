"""A run whose base model is another one than at its start, or computes in another way, is not gone on with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.common.errors import ConfigError, RunError
from experiments.common.files import write_json
from experiments.common.hashing import file_digest
from experiments.models.precision import Precision
from experiments.models.weights_digest import weights_digest
from experiments.runs.base_records import ITEMS, STATE, TIMING, BaseFolder, check_weights, is_whole
from experiments.runs.baseline import MeasuredBase
from tests.helpers.byte_level import byte_llama


def note(run: Path, **values: Any) -> None:
    write_json(run / "base" / TIMING, values)


def base_of(run: Path, precision: str) -> MeasuredBase:
    nothing: Any = SimpleNamespace(suites={})
    return MeasuredBase(run, Precision(precision), nothing, nothing, [], [], 0.0, 100, 0, nothing)


@pytest.mark.parametrize("began", ["fp32", "bf16"])
def test_another_precision_than_at_the_start(began: str, tmp_path: Path) -> None:
    """As `auto` on a laptop and on a server: the arms would be compared with a base in another arithmetic."""
    other = {"fp32": "bf16", "bf16": "fp32"}[began]
    note(tmp_path)  # of an earlier version
    assert base_of(tmp_path, other).checked is None
    note(tmp_path, precision=began)
    assert base_of(tmp_path, began).checked is None
    with pytest.raises(RunError, match=rf"began in {began}, and precision auto is {other} here .*start anew with"):
        _ = base_of(tmp_path, other).checked


def test_other_weights_than_at_the_start(tmp_path: Path) -> None:
    model = byte_llama(260)
    check_weights(tmp_path, model)
    note(tmp_path, weights=weights_digest(model))
    check_weights(tmp_path, model)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    with pytest.raises(ConfigError, match=r"base_model has other weights than when .* began: bring the old ones back"):
        check_weights(tmp_path, model)


def test_a_file_is_whole_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "base" / "reworded.jsonl"
    assert not is_whole(file)
    note(tmp_path)
    file.write_text("{}")
    assert is_whole(file)
    note(tmp_path, files={file.name: file_digest(file)})
    assert is_whole(file)
    file.write_text("{ }")
    assert not is_whole(file)
    file.with_name(TIMING).write_text("{")  # damaged: it vouches for nothing
    assert not is_whole(file)


def test_a_base_that_other_libraries_measured_is_said(tmp_path: Path) -> None:
    """The cache has them in its key; a folder of `measure` may get another model months later."""
    folder = tmp_path / "base"
    write_json(folder / STATE, {"kept": {}})
    (folder / ITEMS).touch()
    files = {name: file_digest(folder / name) for name in (STATE, ITEMS)}
    suites: Any = SimpleNamespace(prepare=lambda *_: None)
    cache: Any = SimpleNamespace(key={"torch": "2.9", "transformers": "5.1", "device": "cpu"}, ends=[1])
    model: Any = None
    base = BaseFolder(folder, suites, model, Precision("fp32"), cache)
    for measured_with, said in (
        ({}, ""),  # by an earlier version
        (cache.key, ""),
        ({**cache.key, "transformers": "5.0", "device": "cuda"}, "transformers 5.0, and transformers is 5.1 here; dev"),
        ({**cache.key, "products of fp32": "ieee"}, ""),
        ({**cache.key, "products of fp32": "tf32"}, "products of fp32 tf32, and products of fp32 is ieee here"),
        ({**cache.key, "gpu": "L4"}, ""),
        ({**cache.key, "gpu": "A100"}, "gpu A100, and gpu is L4 here"),
    ):
        cache.key |= {"gpu": "L4"} if "gpu" in measured_with else {}
        lines: list[str] = []
        note(tmp_path, files=files, **({"with": measured_with} if measured_with else {}))
        base.measured(lines.append)
        assert [said in line for line in lines] == [True] * bool(said)
